"""The program's maps that are used as long as it decides, by their descriptors alone.

Used by `mosix.kernel.intercept`, which loads the program with bcc, and by a keeper that has taken
over from one that was killed (`mosix.kernel.keeper`). Never loads or attaches anything.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from mosix.errors import KernelError
from mosix.kernel.headers import constants, shared

_ffi = shared("bpf/intercept.h")
_ffi.cdef(
    "struct map_order { uint32_t fd, zero; uint64_t key, value, flags; };"  # union bpf_attr
    "long syscall(long, ...);"
)
_libc: Any = _ffi.dlopen(None)
_C = constants(_ffi, "MX_")
_SYS_BPF, _LOOKUP, _UPDATE = 321, 1, 2
_COUNTS = {
    name.removeprefix("COUNT_").lower(): value
    for name, value in _C.items()
    if name.startswith("COUNT_")
}


def _order(number: int, fd: int, key: Any, value: Any) -> None:
    """bpf(2); OSError."""
    addresses = (int(_ffi.cast("uintptr_t", each)) for each in (key, value))
    order = _ffi.new("struct map_order *", (fd, 0, *addresses, 0))
    size = _ffi.sizeof("struct map_order")
    if _libc.syscall(_SYS_BPF, _ffi.cast("long", number), order, _ffi.cast("long", size)):
        raise OSError(_ffi.errno, os.strerror(_ffi.errno))


def _cpus() -> int:
    """How many the kernel keeps counters for."""
    possible = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return int(possible.strip().rpartition("-")[2]) + 1


class Maps:
    """Descriptors of the maps `tasks` and `counts`, which stay their owner's."""

    def __init__(self, tasks: int, counts: int) -> None:
        self.fds = tasks, counts

    def add(self, tid: int, policy: int, owner: int, orphan: int, epoch: int = 0) -> None:
        """Intercept this task and all that it will start. KernelError when the map is full."""
        task = _ffi.new("struct mx_task *", (policy, owner, orphan, epoch, 0))
        try:
            _order(_UPDATE, self.fds[0], _ffi.new("uint32_t *", tid), task)
        except OSError as error:
            why = "the map is full" if error.errno == errno.E2BIG else error.strerror
            raise KernelError(f"task {tid} cannot be intercepted: {why}") from error

    def counts(self) -> dict[str, int]:
        """How often what was decided, over all CPUs. OSError."""
        values = _ffi.new("uint64_t[]", _cpus())
        found = {}
        for name, index in _COUNTS.items():
            _order(_LOOKUP, self.fds[1], _ffi.new("uint32_t *", index), values)
            found[name] = sum(values)
        return found
