"""System calls of a stopped process by plain ptrace, for tests that look out of a guest.

Independent of `mosix.native`, so that a test of the confinement does not rest on the injector.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct

_SEIZE, _INTERRUPT, _GETREGS, _SETREGS, _SINGLESTEP, _DETACH = 0x4206, 0x4207, 12, 13, 9, 17
_REGS = struct.Struct("27Q")
_RAX, _RIP, _RSP, _ORIG_RAX = 10, 16, 19, 15
_ARGS = (14, 13, 12, 7, 9, 8)  # rdi rsi rdx r10 r8 r9
_WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, data: object = None) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def seize(pid: int) -> None:
    ptrace(_SEIZE, pid)


class Puppet:
    """A process that sleeps in a system call and makes others for us."""

    def __init__(self, pid: int, mem: int) -> None:
        """`mem`: descriptor of /proc/PID/mem. Stops the process until `release`."""
        self.pid = pid
        self.mem = mem
        seize(pid)
        ptrace(_INTERRUPT, pid)
        os.waitpid(pid, _WALL)
        buffer = ctypes.create_string_buffer(_REGS.size)
        ptrace(_GETREGS, pid, buffer)
        self._saved = list(_REGS.unpack(buffer.raw))
        self._scratch = self._saved[_RSP] - 2048
        self._free = self._scratch
        self._held = self._scratch - 4096

    def call(self, nr: int, *args: int | bytes) -> int:
        """The result (or -errno) of system call `nr`; bytes are put into its memory."""
        regs = list(self._saved)
        self._free = self._scratch
        for slot, arg in zip(_ARGS, args, strict=False):
            regs[slot] = (self._put(arg) if isinstance(arg, bytes) else arg) & (2**64 - 1)
        regs[_RAX], regs[_ORIG_RAX] = nr, 2**64 - 1
        regs[_RIP] = self._saved[_RIP] - 2  # its own `syscall` instruction
        ptrace(_SETREGS, self.pid, _REGS.pack(*regs))
        ptrace(_SINGLESTEP, self.pid)
        _, status = os.waitpid(self.pid, _WALL)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP, status
        buffer = ctypes.create_string_buffer(_REGS.size)
        ptrace(_GETREGS, self.pid, buffer)
        result: int = struct.unpack_from("q", buffer, 8 * _RAX)[0]
        return result

    def hold(self, data: bytes) -> int:
        """Address of `data`, which stay there; for pointers in arguments."""
        os.pwrite(self.mem, data, self._held)
        self._held += (len(data) + 15) // 16 * 16
        return self._held - (len(data) + 15) // 16 * 16

    def _put(self, data: bytes) -> int:
        address = self._free
        os.pwrite(self.mem, data, address)
        self._free += (len(data) + 15) // 16 * 16
        return address

    def read(self, size: int, offset: int = 0) -> bytes:
        """Bytes of the first argument that was given as bytes to the last call."""
        return os.pread(self.mem, size, self._scratch + offset)

    def release(self) -> None:
        ptrace(_SETREGS, self.pid, _REGS.pack(*self._saved))
        ptrace(_DETACH, self.pid)
