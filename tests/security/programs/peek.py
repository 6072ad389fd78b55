"""What a user can get at of processes and files that are not his: all of it must fail.

Arguments: PIDs and paths; "-k" before them: also signals that do nothing. Prints a JSON list of
what succeeded.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

_SEIZE = 0x4206
_READV, _WRITEV, _PIDFD_OPEN, _PIDFD_GETFD = 310, 311, 434, 438
_FILES = (
    "mem",
    "environ",
    "maps",
    "smaps",
    "pagemap",
    "auxv",
    "syscall",
    "stack",
    "io",
    "clear_refs",
)
_LINKS = ("cwd", "exe", "root", "ns/user", "ns/mnt", "fd/0", "fd/3")


def files(pid: int) -> list[str]:
    done = []
    for name in _FILES:
        for mode in ("rb", "r+b"):
            try:
                with open(f"/proc/{pid}/{name}", mode, buffering=0) as file:
                    file.read(8)
                done.append(f"{name} {mode}")
            except (OSError, ValueError):
                continue
    for look, names in (
        (os.readlink, _LINKS),
        (os.listdir, ("fd", "map_files", f"task/{pid}/fd")),
    ):
        for name in names:
            try:
                look(f"/proc/{pid}/{name}")
                done.append(name)
            except OSError:
                continue
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        done.append("oom_score_adj")
    except OSError:
        pass
    return done


def process(pid: int, libc: ctypes.CDLL) -> list[str]:
    done = files(pid)
    buffer = ctypes.create_string_buffer(16)
    iovec = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 8)
    for call in (_READV, _WRITEV):
        if libc.syscall(call, pid, iovec, 1, iovec, 1, 0) >= 0:
            done.append(f"call {call}")
    pidfd = libc.syscall(_PIDFD_OPEN, pid, 0)
    for fd in range(12):
        if pidfd >= 0 and libc.syscall(_PIDFD_GETFD, pidfd, fd, 0) >= 0:
            done.append(f"descriptor {fd}")
    if libc.ptrace(_SEIZE, pid, None, None) == 0:
        done.append("ptrace")
    return done


def path(name: str) -> list[str]:
    where = Path(name)
    done = []
    if os.access(name, os.W_OK):
        done.append("writable")
    if where.is_dir():
        try:
            (where / "new").mkdir()
            done.append("new")
        except OSError:
            pass
    return done


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = sys.argv[1:]
    killing = arguments[:1] == ["-k"]
    found = []
    for argument in arguments[killing:]:
        if not argument.isdigit():
            found += [f"{argument}: {what}" for what in path(argument)]
            continue
        pid = int(argument)
        found += [f"{pid}: {what}" for what in process(pid, libc)]
        for number in (0, signal.SIGURG) if killing else ():
            try:
                os.kill(pid, number)
                found.append(f"{pid}: signal {int(number)}")
            except PermissionError:
                continue
    print(json.dumps(found))


if __name__ == "__main__":
    main()
