"""The system calls that a lab needs and Python 3.11 lacks: namespaces, mounts, pidfds.

Called by the other modules of `mosix.lab` only. One function per system call, one place that
turns errno into `OSError`. Nothing here is on a hot path, hence ctypes. Never holds state.
"""

from __future__ import annotations

import ctypes
import os

# linux/sched.h
CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
#: what a node has of its own
NODE_NAMESPACES = (
    CLONE_NEWTIME | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
)

# linux/mount.h
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

_PIVOT_ROOT = 155  # x86-64; glibc has no wrapper

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """New namespaces for the caller; PID and time ones begin with its next child."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int) -> None:
    """Join the namespaces `flags` of a process (`fd`: pidfd, all at once) or the one of `fd`."""
    _check(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _check(
        _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()), target
    )


def unmount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(target.encode(), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    _check(_libc.syscall(_PIVOT_ROOT, new_root.encode(), put_old.encode()), "pivot_root")


def set_hostname(name: str) -> None:
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname")
