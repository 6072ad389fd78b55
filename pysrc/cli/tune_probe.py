"""The process that `tune` sends to other nodes: it measures what calls cost where it is.

A line on standard input is an order, a line on standard output its result in seconds:
`calls N`, `bytes N` (MB, in pieces of 128 KiB), `grow N` (MB of memory more). Uses only the
standard library, so that little of it has to travel.
"""

from __future__ import annotations

import os
import sys
import time

_PIECE = 128 << 10
_PAGE = 4096


def main() -> None:
    zeros = os.open("/dev/zero", os.O_RDONLY)
    held: list[bytearray] = []
    for line in sys.stdin:
        order, amount = line.split()
        began = time.perf_counter()
        if order == "calls":
            for _ in range(int(amount)):
                os.getppid()
        elif order == "bytes":
            for _ in range(int(amount) * 1_000_000 // _PIECE):
                os.read(zeros, _PIECE)
        else:
            more = bytearray(int(amount) * 1_000_000)
            more[::_PAGE] = b"x" * len(range(0, len(more), _PAGE))
            held.append(more)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main()
