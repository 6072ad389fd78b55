"""The agent's blob as a file, and what it takes to get it into a process.

Helpers of `mosix.native.agent` (and `mapped` for restore): where a process has room, the control
socket made inside it, descriptors taken from it. Injected calls only, which cure themselves.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mosix.errors import KernelError, MoveFailedError
from mosix.native._native import ffi, lib
from mosix.native.tracee import Tracee

Range = tuple[int, int]  # start, end

_BLOB = Path(__file__).resolve().parent / "bin" / "agent.bin"
_PAGE = 4096
_LOWEST = 0x10000  # the usual vm.mmap_min_addr
_HIGHEST = 0x7FFFFFFFF000
#: agent.c: descriptors go no higher, a table of descriptors is as large as its highest one
_HIGHEST_FD = 4096

_NR_CLOSE, _NR_SOCKETPAIR, _NR_FCNTL, _NR_PIDFD_GETFD = 3, 53, 72, 438
_F_DUPFD_CLOEXEC = 1030


class Mapped(NamedTuple):
    """A line of /proc/PID/maps; `name` is a path or something like ``[vdso]``."""

    start: int
    end: int
    name: str


class Blob(NamedTuple):
    """`image`: the file; behind it come zero pages. `scratch`: offsets of its memory for
    arguments of calls."""

    image: bytes
    header: Any
    scratch: Range  # offsets

    @property
    def size(self) -> int:
        return int(self.header.blob_size)


@cache
def load_blob() -> Blob:
    """The blob as it is loaded; KernelError if the file belongs to another build."""
    image = _BLOB.read_bytes()
    header = ffi.new("struct mx_agent_header *")
    ffi.buffer(header)[:] = image[: ffi.sizeof("struct mx_agent_header")]
    if header.magic != lib.MX_AGENT_MAGIC or header.version != lib.MX_ABI_VERSION:
        raise KernelError(f"{_BLOB} belongs to another version", "build and install again")
    return Blob(image, header, (header.stack_top, header.blob_size))


# ---- making the control socket ----


def make_control(tracee: Tracee, scratch: int) -> tuple[socket.socket, int]:
    """A socket pair made inside the process: our end, and the number of its own."""
    kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC
    result = tracee.inject(_NR_SOCKETPAIR, socket.AF_UNIX, kind, 0, scratch)
    if result < 0:
        raise MoveFailedError(f"no socket in process {tracee.pid}: {strerror(result)}")
    low, ours = struct.unpack("<ii", tracee.read(scratch, 8))
    number = low
    try:
        control = socket.socket(fileno=take_fd(tracee.pid, ours))
    except OSError as error:
        tracee.inject_many([(_NR_CLOSE, (ours,)), (_NR_CLOSE, (low,))])
        raise MoveFailedError(
            f"cannot take a descriptor of process {tracee.pid}: {error.strerror}"
        ) from error
    # Programs count on getting the lowest number: ours goes as high as is free.
    soft, _ = resource.prlimit(tracee.pid, resource.RLIMIT_NOFILE)
    wanted = min(soft, _HIGHEST_FD) if soft >= 0 else _HIGHEST_FD
    high = -1
    while high < 0 and wanted - 1 > low:
        wanted -= 1
        high = tracee.inject(_NR_FCNTL, low, _F_DUPFD_CLOEXEC, wanted)
    closing = [(_NR_CLOSE, (ours,))]
    if high >= 0:
        number = high
        closing.append((_NR_CLOSE, (low,)))
    tracee.inject_many(closing)
    return control, number


def take_fd(pid: int, number: int) -> int:
    """A duplicate of descriptor `number` of process `pid`; close-on-exec (pidfd_getfd(2))."""
    pidfd = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        got = int(libc.syscall(_NR_PIDFD_GETFD, pidfd, number, 0))
        if got < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return got
    finally:
        os.close(pidfd)


def mapped(pid: int) -> list[Mapped]:
    """All that is mapped in process `pid`, by address."""
    ranges: list[Mapped] = []
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(None, 5)
            start, end = fields[0].split("-")
            name = fields[5] if len(fields) > 5 else ""
            ranges.append(Mapped(int(start, 16), int(end, 16), name))
    return ranges


def ranges_of(pid: int) -> list[Range]:
    """The same, only the ranges."""
    return [(at.start, at.end) for at in mapped(pid)]


def find_hole(size: int, taken: Iterable[Range]) -> int:
    """The lowest page address where `size` bytes and a page on both sides are free."""
    at = _LOWEST
    for start, end in sorted(taken):
        if at + size + 2 * _PAGE <= start:
            break
        at = max(at, end)
    if at + size + 2 * _PAGE > _HIGHEST:
        raise MoveFailedError("the address space has no hole left", "this process cannot move")
    return at + _PAGE


def strerror(result: int) -> str:
    """What a system call's result that was not the wanted one means."""
    return os.strerror(-result) if result < 0 else f"unexpected result {result:#x}"
