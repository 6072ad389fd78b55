"""Deputy and remote as on an older kernel: a filter refuses what newer ones have.

For mosd's options --deputy and --remote. The guests inherit the remote's filter, and so find no
more than it does. What is refused is refused as a kernel that has it not would.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from mosix.deputy import main as deputy_main
from mosix.remote import main as remote_main

_SYS_IOCTL, _SYS_SECCOMP, _SYS_CLONE3 = 16, 317, 435
_NOTIF_SET_FLAGS = 0x40082104  # Linux 6.6
_PAGEMAP_SCAN = 0xC0606610  # Linux 6.7
_WAIT_KILLABLE_RECV = 1 << 5  # Linux 5.19
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARG1 = 0, 24


def _instruction(code: int, k: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("HBBI", code, true, false, k)


def _program() -> bytes:
    """Jumps count from the next instruction."""
    return b"".join(
        (
            _instruction(_LOAD, _NR),
            _instruction(_EQUAL, _SYS_CLONE3, 8, 0),
            _instruction(_EQUAL, _SYS_IOCTL, 2, 0),
            _instruction(_EQUAL, _SYS_SECCOMP, 4, 0),
            _instruction(_RETURN, _ALLOW),
            _instruction(_LOAD, _ARG1),
            _instruction(_EQUAL, _NOTIF_SET_FLAGS, 4, 0),
            _instruction(_EQUAL, _PAGEMAP_SCAN, 4, 5),
            _instruction(_LOAD, _ARG1),
            _instruction(_ANY_BIT, _WAIT_KILLABLE_RECV, 1, 3),
            _instruction(_RETURN, _ERRNO | errno.ENOSYS),
            _instruction(_RETURN, _ERRNO | errno.EINVAL),
            _instruction(_RETURN, _ERRNO | errno.ENOTTY),
            _instruction(_RETURN, _ALLOW),
        )
    )


def _become_old() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    program = ctypes.create_string_buffer(_program())
    descriptor = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(program))
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _MODE_FILTER, descriptor)):
        if libc.prctl(*arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "the filter")


def deputy(sock: socket.socket) -> None:
    _become_old()
    deputy_main.run(sock)


def remote(sock: socket.socket) -> None:
    _become_old()
    remote_main.run(sock)


# What they compute once in the spawner.
warm_up = remote_main.warm_up
