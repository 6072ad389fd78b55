"""The listener of a job at home, behind cffi: what is asked through it, and who serves it.

The deputy makes a `Listener`, which lets ordinary opens go on by itself (native/listener.c, a
thread that needs no GIL), tells those processes their CPU time that were away, and hands on the
opens of /proc/self/{special}. `survive` is the loop of whoever serves when the deputy is dead;
`new_memory` makes what the two share. It must never make any other call wait for Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

from mosix.native._native import ffi, lib

_LINK = "anon_inode:seccomp notify"


@dataclass(frozen=True, slots=True)
class Asked:
    """Thread `tid` has opened /proc/self/{name} with these flags and third argument."""

    id: int
    tid: int
    name: str
    flags: int
    value: int


class Listener:
    """Serves at once, until no process of the job is left. The descriptors become its own; it
    lives as long as this process. Without `memory`, `listener` is a file of /dev/mosix, behind
    which the module parks the job's calls (`mosix.kernel`)."""

    def __init__(self, listener: int, memory: int = -1) -> None:
        #: readable when something was asked
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._c = lib.mx_listener_start(listener, memory, self.event)
        if self._c == ffi.NULL:
            raise OSError(ffi.errno, "the job's listener")

    def listen(self, on_asked: Callable[[Asked], None]) -> None:
        """`on_asked` is called in the running loop for each question; it or somebody later must
        `answer` or `let`."""
        asyncio.get_running_loop().add_reader(self.event, self._take, on_asked)

    def answer(self, asked: Asked, result: int) -> bool:
        """The open returns `result`, or fails with -result. False: its caller is dead, or was
        stopped and asks again."""
        return bool(lib.mx_listener_answer(self._c, asked.id, result) == 0)

    def let(self, asked: Asked) -> None:
        """The open is made as it stands: there is no such file."""
        lib.mx_listener_go_on(self._c, asked.id)

    def restart(self, tid: int) -> None:
        """`tid`, whose ptrace stop is pending, makes its questions again later: it would not
        stop before it is answered, by the very thread that waits for the stop. 0: no longer."""
        lib.mx_listener_restart(self._c, tid)

    def came_home(self, pid: int, used_ns: tuple[int, int]) -> None:
        """`pid`, which is stopped and has one thread, is told of CPU time that it has used
        `used_ns` (user, system) on all nodes, and more as it runs here. Dead ones are ignored."""
        lib.mx_listener_came_home(self._c, pid, *used_ns)

    def not_here(self, pid: int) -> None:
        """What its kernel says is told again: its body has left, or it has ended."""
        lib.mx_listener_not_here(self._c, pid)

    def cpu_time(self, pid: int) -> tuple[int, int] | None:
        """User and system ns of a process that came home: not less than it was told. None:
        only its kernel knows."""
        used = ffi.new("int64_t [2]")
        if lib.mx_listener_cpu_time(self._c, pid, used):
            return None
        return used[0], used[1]

    def _take(self, on_asked: Callable[[Asked], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.event)
        asked = ffi.new("struct mx_asked *")
        while lib.mx_listener_take(self._c, asked):
            name = ffi.string(asked.name).decode("ascii")
            on_asked(Asked(asked.id, asked.tid, name, asked.flags, asked.value))


def survive(listener: int, memory: int) -> None:
    """Lets everything go on until no process has the filter any more. OSError."""
    result = lib.mx_listener_survive(listener, memory)
    if result < 0:
        raise OSError(-result, "a job's listener")


def new_memory() -> int:
    """What the servers of one listener share; nobody can take it away from under another."""
    fd = os.memfd_create("mosix-listener", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, lib.MX_LISTENER_MEMORY)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def special_names() -> list[str]:
    """The files /proc/self/{special} through which a program speaks to mosix."""
    found = itertools.takewhile(
        lambda name: name != ffi.NULL, map(lib.mx_listener_special, itertools.count())
    )
    return [ffi.string(name).decode("ascii") for name in found]


def is_listener(fd: int) -> bool:
    """Whether a descriptor that a user's process sent is what it says."""
    return os.readlink(f"/proc/self/fd/{fd}") == _LINK
