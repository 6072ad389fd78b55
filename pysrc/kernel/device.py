"""/dev/mosix: the module's device, for whoever serves redirected calls and whoever sets them up.

A `Device` is one open file: the owner of tasks, or the holder of the program that decides, or
both, or none, to send the memory of a traced process. Becoming one of the first takes root;
serving and sending take only the descriptor. Never decides anything.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosix.errors import KernelError
from mosix.kernel.headers import constants, shared

PATH = Path("/dev/mosix")

_ffi = shared("module/mosix_uapi.h")
_ffi.cdef("int ioctl(int, unsigned long, ...);")
_C = constants(_ffi, "MOSIX_")
_libc: Any = _ffi.dlopen(None)
_REQUEST = struct.Struct("<QIIii6QQQ")
_REPLY = struct.Struct("<QqII")
_SEND = struct.Struct("<iiQIIQ")
assert _REQUEST.size == _ffi.sizeof("struct mosix_request")
assert _REPLY.size == _ffi.sizeof("struct mosix_reply")
assert _SEND.size == _ffi.sizeof("struct mosix_send_pages")

ORPHAN_NATIVE, ORPHAN_EIO, ORPHAN_KILL = (
    _C["ORPHAN_NATIVE"],
    _C["ORPHAN_EIO"],
    _C["ORPHAN_KILL"],
)
_READ_AT_ONCE = 64

# asm-generic/ioctl.h
_WRITE, _READ = 1 << 30, 2 << 30


def _ioctl_number(direction: int, number: int, size: int) -> int:
    return direction | size << 16 | ord("M") << 8 | number


_VERSION = _ioctl_number(_READ, 0, 4)
_OWN = _ioctl_number(_READ | _WRITE, 1, 4)
_HOOK = _ioctl_number(_WRITE, 2, _ffi.sizeof("struct mosix_hook"))
_PROGRAM = _ioctl_number(0, 3, 0)
_COUNTERS = _ioctl_number(_READ, 4, _ffi.sizeof("struct mosix_counters"))
_SEND_PAGES = _ioctl_number(_READ | _WRITE, 5, _ffi.sizeof("struct mosix_send_pages"))
_WAITS = _ioctl_number(_WRITE, 7, 8)
_TELL = _ioctl_number(_WRITE, 10, _ffi.sizeof("struct mosix_told"))
_FORGET = _ioctl_number(0, 11, 0)
_TOLD = struct.Struct("<iIii16s16s")
assert _TOLD.size == _ffi.sizeof("struct mosix_told")
#: that a guest is frozen at its home, if at all
FREEZER_GUEST: int = _C["FREEZER_GUEST"]
_HOOK_FIELDS = struct.Struct(f"<QII{_C['NAME_SIZE']}s")
#: SYSCALL_DEFINEx makes both names; of a call without arguments there may be only the second
_FUNCTION = re.compile(rb"^([0-9a-f]{16}) [tTwW] (__x64_sys_|__do_sys_)(\w+)$", re.M)


@dataclass(frozen=True, slots=True)
class Request:
    """A call that its task waits with (`cancel`: that it wants to leave, for a signal)."""

    id: int
    cancel: bool
    nr: int
    #: as seen from our PID namespace; 0: not visible there
    tid: int
    tgid: int
    args: tuple[int, ...]
    ip: int
    sp: int


@dataclass(frozen=True, slots=True)
class Told:
    """What everyone may read of process `pid` in /proc/mosix (mosix(7)). `origin_pid`: its PID at
    home; 0: this is its home. `home`, `where`: IPs, or "0": here."""

    pid: int
    job_class: int
    origin_pid: int
    freezer: int
    home: str
    where: str


class Device:
    """One open file of the module's device."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def open(cls, path: Path = PATH, *, blocking: bool = False) -> Device:
        """KernelError when there is no module, or one of another version. `blocking`: whoever
        serves waits in read(2)."""
        waits = 0 if blocking else os.O_NONBLOCK
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | waits)
        except OSError as error:
            raise KernelError(
                f"cannot open {path}: {error.strerror}", hint="modprobe mosix, as root"
            ) from error
        device = cls(fd)
        (version,) = struct.unpack("<I", device._ask(_VERSION, 4))
        if version != _C["API_VERSION"]:
            device.close()
            raise KernelError(
                f"mosix.ko speaks version {version}, this mosix {_C['API_VERSION']}",
                hint="build and load the module that belongs to it",
            )
        return device

    def _ask(self, number: int, size: int) -> bytes:
        return fcntl.ioctl(self.fd, number, bytes(size))

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        """Its tasks go on as their verdicts say; if it held the program, nothing is hooked."""
        os.close(self.fd)

    def own(self, sets: int = 1) -> int:
        """Become an owner of tasks that need these sets of hooks (a bit for each); the number that
        verdicts name it by. OSError."""
        return int(struct.unpack("<I", fcntl.ioctl(self.fd, _OWN, struct.pack("<I", sets)))[0])

    def hook(self, name: str, group: int = 0, address: int = 0) -> bool:
        """Let the program be asked about this system call, while somebody owns tasks that need the
        set `group`; False: the kernel has none such. `address`: as `addresses` tells; without, the
        kernel looks through all its functions."""
        try:
            fcntl.ioctl(self.fd, _HOOK, _HOOK_FIELDS.pack(address, group, 0, name.encode()))
        except FileNotFoundError:
            return False
        return True

    def decide_by(self, program_fd: int) -> None:
        """Let this program decide until the file is closed. OSError (EBUSY: there is one)."""
        fcntl.ioctl(self.fd, _PROGRAM, program_fd)

    def counters(self) -> dict[str, int]:
        """What the module has done so far, and has in hand now (hooks, owners, parked)."""
        names = [name for name, _ in _ffi.typeof("struct mosix_counters").fields]
        data = self._ask(_COUNTERS, _ffi.sizeof("struct mosix_counters"))
        return dict(zip(names, struct.unpack(f"<{len(names)}Q", data), strict=True))

    def requests(self) -> list[Request]:
        """What is there to be served; empty when there is nothing now."""
        try:
            data = os.read(self.fd, _READ_AT_ONCE * _REQUEST.size)
        except BlockingIOError:
            return []
        return [
            Request(number, kind == _C["CANCEL"], nr, tid, tgid, tuple(rest[:6]), *rest[6:])
            for number, kind, nr, tid, tgid, *rest in _REQUEST.iter_unpack(data)
        ]

    def waits(self, request: Request) -> bool:
        """Whether the call, which was read, still waits for its answer."""
        try:
            fcntl.ioctl(self.fd, _WAITS, struct.pack("<Q", request.id))
        except FileNotFoundError:
            return False
        return True

    def answer(self, request: Request, result: int) -> bool:
        """Let the call return `result`; False: its task has been killed."""
        return self._reply((request.id, result, 0, 0))

    def run_natively(self, request: Request) -> bool:
        """Let the task make the call itself; False: it has been killed."""
        return self._reply((request.id, 0, _C["RUN_NATIVELY"], 0))

    def send_pages(self, pid: int, fd: int, runs: Sequence[tuple[int, int]]) -> int:
        """Send memory of a process that we trace, as (start, size) each, raw and in order, to a
        blocking descriptor; bytes sent. OSError: EPERM not ours, or not dumpable, EFAULT memory
        that is not there, or as write(2)."""
        given = _ffi.new("struct mosix_run[]", list(runs))
        address = int(_ffi.cast("uintptr_t", given))
        order = bytearray(_SEND.pack(pid, fd, address, len(runs), 0, 0))
        # Not fcntl.ioctl: for an argument as small as this it keeps all other threads waiting.
        if _libc.ioctl(self.fd, _SEND_PAGES, _ffi.from_buffer(order)) < 0:
            raise OSError(_ffi.errno, os.strerror(_ffi.errno))
        return int(_SEND.unpack(order)[-1])

    def tell(self, told: Told) -> bool:
        """From now on it is in /proc/mosix, until it ends; False: it has. OSError."""
        fixed = (told.pid, told.job_class, told.origin_pid, told.freezer)
        try:
            fcntl.ioctl(self.fd, _TELL, _TOLD.pack(*fixed, told.home.encode(), told.where.encode()))
        except ProcessLookupError:
            return False
        return True

    def forget(self, pid: int) -> None:
        """It is not in /proc/mosix any more, if it was."""
        with contextlib.suppress(ProcessLookupError):
            fcntl.ioctl(self.fd, _FORGET, pid)

    def _reply(self, fields: Sequence[int]) -> bool:
        try:
            os.write(self.fd, _REPLY.pack(*fields))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True


def addresses(symbols: Path = Path("/proc/kallsyms")) -> dict[str, int]:
    """Where the functions of system calls are, by their names; empty when the kernel hides it."""
    found: dict[str, int] = {}
    for address, prefix, name in _FUNCTION.findall(symbols.read_bytes()):
        where, call = int(address, 16), name.decode()
        if where and (prefix == b"__x64_sys_" or call not in found):
            found[call] = where
    return found
