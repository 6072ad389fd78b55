"""`mosix.job`: how a program in Python speaks to mosix about itself.

For programs that run under mosrun: where am I, move me, lock me here. Each function is one open
of a file of /proc/self that only jobs have (mosix(7), "Interface for programs"); with open() or
os.open() it cannot be done, since they add O_CLOEXEC and would make a descriptor of the value.
In a program that is no job every function raises FileNotFoundError. Needs nothing else of the
package, and only the standard library.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os

_SYS_OPEN = 2
_READ, _WRITE, _EXCHANGE = 0, os.O_WRONLY | os.O_CREAT, os.O_RDWR | os.O_CREAT
_CONSIDER = 2**32 - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _open(name: str, flags: int, value: int) -> int:
    path = f"/proc/self/{name}"
    arguments = (ctypes.c_long(flags), ctypes.c_ulong(value & _CONSIDER))
    result: int = _libc.syscall(ctypes.c_long(_SYS_OPEN), path.encode(), *arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def read(name: str) -> int:
    """The value of one of the files of mosix(7). OSError: EACCES, it can only be written."""
    return _open(name, _READ, 0)


def write(name: str, value: int) -> None:
    """Sets it. OSError: EACCES, it can only be read; EINVAL, no such value."""
    _open(name, _WRITE, value)


def exchange(name: str, value: int) -> int:
    """Sets it and returns what it was. OSError as `read` and `write`."""
    return _open(name, _EXCHANGE, value)


def is_job() -> bool:
    """Whether this program runs under mosrun, with the files."""
    try:
        _open("nmigs", _READ, 0)
    except OSError:
        return False
    return True


def whereami() -> int | str:
    """0: at home; else the number of the node, or its IP when it has none."""
    value = _open("whereami", _READ, 0)
    return value if value < 1 << 16 else str(ipaddress.IPv4Address(value))


def migrate(node: int | str) -> None:
    """Moves this process, which goes on there: to a node's number or IP; 0: home.

    OSError: it stays where it is. EINVAL, there is no such node; EHOSTUNREACH, it is down;
    EAGAIN, it cannot move now (`mosps --why` tells why)."""
    _open("migrate", _WRITE, int(ipaddress.IPv4Address(node)) if isinstance(node, str) else node)


def consider_migration() -> None:
    """Asks the system to think now about where this process should be."""
    _open("migrate", _WRITE, _CONSIDER)


def clear() -> None:
    """What this process did so far does not count any more for where it should be."""
    _open("clear", _WRITE, 1)


def nmigs() -> int:
    """How many moves this process has made, those of its ancestors before its birth included."""
    return _open("nmigs", _READ, 0)


def lock() -> None:
    """The system does not move this process any more; people and itself still do."""
    _open("lock", _WRITE, 1)


def unlock() -> None:
    """The system may move it."""
    _open("lock", _WRITE, 0)
