"""The link to another node: how long it takes there and back, and how fast bytes go.

On a connection of purpose "measure", which `tune` has mosd make: blocks go to the peer, which
answers each with one byte. Called by `mosix.node.services` on both sides. Bounded in bytes and
time, whatever the other side does.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import Final

from mosix.errors import NodeDownError

_SIZE: Final = struct.Struct("<I")
_TURNS: Final = 50
_BLOCK: Final = 1 << 20
#: Bytes that a block may have, and a connection altogether.
_MOST: Final = 4 << 20
_MOST_ALL: Final = 256 << 20
#: For as long bytes are sent.
_SENDING_S: Final = 1.0
PATIENCE_S: Final = 20.0
_ANSWER: Final = b"x"


async def serve(sock: socket.socket) -> None:
    """Takes blocks and answers each, until the peer has enough. OSError, EOFError, TimeoutError."""
    loop = asyncio.get_running_loop()
    buffer = bytearray(1 << 20)
    room = _MOST_ALL
    async with asyncio.timeout(PATIENCE_S):
        while True:
            head = await _exactly(sock, _SIZE.size)
            if head is None:
                return
            (left,) = _SIZE.unpack(head)
            room -= left
            if left > _MOST or room < 0:
                return
            while left:
                taken = await loop.sock_recv_into(sock, memoryview(buffer)[:left])
                if not taken:
                    raise EOFError
                left -= taken
            await loop.sock_sendall(sock, _ANSWER)


async def measure(sock: socket.socket) -> tuple[int, float]:
    """Nanoseconds there and back, the best of many; MB (10**6 bytes) a second. NodeDownError."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            turns = [await _turn(sock, 0) for _ in range(_TURNS)]
            sent, rates = 0, []
            end = time.monotonic() + _SENDING_S
            while time.monotonic() < end and sent < _MOST_ALL // 2:
                took_ns = await _turn(sock, _BLOCK)
                sent += _BLOCK
                rates.append(_BLOCK / 1e6 / max(1e-9, (took_ns - min(turns)) / 1e9))
    except (OSError, EOFError, TimeoutError) as error:
        raise NodeDownError("the node does not answer any more") from error
    return min(turns), max(rates)


async def _turn(sock: socket.socket, size: int) -> int:
    """A block of `size` there, a byte back; ns."""
    loop = asyncio.get_running_loop()
    began = time.monotonic_ns()
    await loop.sock_sendall(sock, _SIZE.pack(size) + bytes(size))
    if await _exactly(sock, 1) is None:
        raise EOFError
    return time.monotonic_ns() - began


async def _exactly(sock: socket.socket, size: int) -> bytes | None:
    """None: it ended before any of it."""
    data = b""
    while len(data) < size:
        part = await asyncio.get_running_loop().sock_recv(sock, size - len(data))
        if not part:
            if data:
                raise EOFError
            return None
        data += part
    return data
