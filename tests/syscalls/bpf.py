"""A small interpreter of the classic BPF instructions that seccomp filters are made of."""

from __future__ import annotations

import struct

LD_W_ABS, JA, JEQ, JGE, AND, RET = 0x20, 0x05, 0x15, 0x35, 0x54, 0x06


def run(program: bytes, nr: int, args: tuple[int, ...], arch: int = 0xC000003E) -> int:
    """What the filter returns for a call; ValueError when the kernel would refuse the program."""
    data = struct.pack("<IIQ6Q", nr & 0xFFFFFFFF, arch, 0, *args)
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        if op == LD_W_ABS:
            if k % 4 or k > len(data) - 4:
                raise ValueError(f"load at {k}")
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif op == AND:
            accumulator &= k
        elif op == JA:
            at += k
        elif op == JEQ:
            at += jt if accumulator == k else jf
        elif op == JGE:
            at += jt if accumulator >= k else jf
        elif op == RET:
            return int(k)
        else:
            raise ValueError(f"instruction {op:#x}")
