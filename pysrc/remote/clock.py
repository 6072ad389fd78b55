"""The clock page of a guest: a page of memory that it shares with us, which alone may write it.

Made and owned by `mosix.remote.guest`; read by the guest's vdso (`mosix.native.vdso`) and by its
redirector. See clock.h. All times in ns.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from typing import Any

from mosix.native._native import ffi, lib

#: the monotonic clocks, raw, coarse and boottime: always the node's own, in the time namespace
_MONOTONIC_CLOCKS = (
    time.CLOCK_MONOTONIC,
    time.CLOCK_MONOTONIC_RAW,
    6,  # CLOCK_MONOTONIC_COARSE
    time.CLOCK_BOOTTIME,
)
_DATE_CLOCKS = (time.CLOCK_REALTIME, 5, time.CLOCK_TAI)  # 5: CLOCK_REALTIME_COARSE
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | 0x10  # F_SEAL_FUTURE_WRITE


class ClockPage:
    """`fd`: to be mapped in the guest, read-only. `shift_ns`: the guest's CLOCK_MONOTONIC minus
    ours. `localtime`: dates are this node's."""

    def __init__(self, shift_ns: int, *, localtime: bool) -> None:
        self.shift_ns = shift_ns
        self._offset_ns = 0
        self.fd = os.memfd_create("clock", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        #: struct mx_clock *
        self.c: Any = ffi.from_buffer("struct mx_clock *", self._memory, require_writable=True)
        direct = _MONOTONIC_CLOCKS + (_DATE_CLOCKS if localtime else ())
        self.c.direct = sum(1 << clock for clock in direct)

    def call(self, functions: tuple[int, int, int]) -> None:
        """Addresses, in the guest, of clock_gettime, clock_getres and getcpu."""
        self.c.clock_gettime, self.c.clock_getres, self.c.getcpu = functions

    def set_date(self, offset_ns: int) -> int:
        """The date is from now on our CLOCK_MONOTONIC plus this. It never runs back for that:
        returns by how much it is still ahead."""
        self._offset_ns = offset_ns
        return int(lib.mx_clock_set(self.c, self.shift_ns, offset_ns - self.shift_ns))

    def begin(self, date_ns: int) -> None:
        """A guest begins that has read `date_ns` elsewhere."""
        offset_ns = self._offset_ns
        self.set_date(date_ns - time.monotonic_ns())
        self.set_date(offset_ns)

    def date_ns(self) -> int:
        """What the guest would read now."""
        return int(lib.mx_clock_date(self.c, self.shift_ns))

    def close(self) -> None:
        ffi.release(self.c)
        self._memory.close()
        os.close(self.fd)
