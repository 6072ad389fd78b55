"""What a namesake of a job's owner on a guest's node can do to the guest: all of it must fail.

Argument: the guest's PID on this node. Prints a JSON list of what succeeded.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

PTRACE_SEIZE = 0x4206


def main() -> None:
    pid = int(sys.argv[1])
    done: list[str] = []
    for name in ("mem", "environ", "maps", "auxv", "syscall", "fd", "cwd", "exe", "ns/user"):
        path = f"/proc/{pid}/{name}"
        try:
            if name in ("cwd", "exe", "ns/user"):
                os.readlink(path)
            elif name == "fd":
                os.listdir(path)
            else:
                with open(path, "rb") as file:
                    file.read(1)
            done.append(name)
        except OSError:
            continue
    for number in (0, signal.SIGCONT, signal.SIGSTOP):
        try:
            os.kill(pid, number)
            done.append(f"kill {int(number)}")
        except PermissionError:
            continue
    if ctypes.CDLL(None).ptrace(PTRACE_SEIZE, pid, None, None) == 0:
        done.append("ptrace")
    print(json.dumps(done))


if __name__ == "__main__":
    main()
