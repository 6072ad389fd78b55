"""The process that capturing.py looks at: memory of many kinds, changed when told to.

Prints where its pages are. A line of standard input, "write I J…", "drop I J…", "read I J…" or
"map", is done and answered.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

PAGES = 2000
PAGE = 4096
MANY = 600

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def mapped(size: int, prot: int = 3, flags: int = 0x22, fd: int = -1, offset: int = 0) -> int:
    address = int(_libc.mmap(None, size, prot, flags, fd, offset))
    assert 0 < address < 1 << 47
    return address


def advised(size: int, *advice: int) -> int:
    address = mapped(size)
    for each in advice:
        _libc.madvise(address, size, each)
    return address


def byte(address: int) -> ctypes.c_ubyte:
    return ctypes.c_ubyte.from_address(address)


def main() -> None:
    path = "/tmp/captured file\nof two lines"
    with open(path, "wb") as file:
        file.write(os.urandom(3 * PAGE))
    with open(path, "rb") as file:
        mapped(2 * PAGE, 1, mmap.MAP_SHARED, file.fileno(), PAGE)
        mapped(2 * PAGE, 5, mmap.MAP_PRIVATE, file.fileno())
    os.unlink(path)  # it is shown as deleted
    mapped(1 << 40, 0, 0x4022)  # MAP_NORESERVE, nothing in it
    for advice in (10, 12, 14, 15, 16, 18, 1, 2):
        byte(advised(4 << 20, advice)).value = 1
    _libc.mlock(advised(PAGE, 15), PAGE)
    guarded = advised(MANY * 2 * PAGE, 15)
    for number in range(MANY):  # each a mapping of its own
        byte(guarded + 2 * number * PAGE).value = 1
        _libc.mprotect(guarded + 2 * number * PAGE, PAGE, number % 2)
    huge = (mapped(8 << 20) + (2 << 20) - 1) & -(2 << 20)
    _libc.madvise(huge, 4 << 20, 14)
    byte(huge).value = 1
    assert byte(huge + (2 << 20)).value == 0  # the huge zero page, if there is one
    pages = advised(PAGES * PAGE, 15)  # no huge pages here: each page is told by itself
    print(pages, flush=True)
    for number, line in enumerate(sys.stdin, 1):
        what, *numbers = line.split()
        if what == "map":
            # Never with the flags of the pages alone: it would become one mapping with them.
            byte(advised(3 * PAGE, 10, 15)).value = 7
        for index in map(int, numbers):
            if what == "write":
                byte(pages + index * PAGE + index).value = number % 255 + 1
            elif what == "drop":
                _libc.madvise(pages + index * PAGE, PAGE, 4)
            else:
                byte(pages + index * PAGE).value  # noqa: B018 - it becomes the zero page, if it was none
        print("done", flush=True)


main()
