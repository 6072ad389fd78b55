"""Message channels over sockets, for asyncio: whole messages in, whole messages out.

`Packets`: a unix SOCK_SEQPACKET socket between mosd and its workers; descriptors ride along.
`Frames`: a stream socket between nodes, with a 4-byte length before each message.
Both check every message on arrival (`mosix.wire.messages.decode`) and raise `ProtocolError`;
`EOFError` when the other side is gone.
"""

from __future__ import annotations

import array
import asyncio
import socket
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
from mosix.errors import ProtocolError
from mosix.wire.frames import FrameDecoder, frame
from mosix.wire.messages import decode, encode

T = TypeVar("T")

#: No control message is larger; a length above it is an attack or a bug.
MAX_FRAME = 4 << 20
_MAX_PACKET = 160 << 10
_MAX_FDS = 8
_INT = array.array("i")


class Packets(Generic[T]):
    """One end of a SOCK_SEQPACKET pair. `kind` is what may arrive."""

    def __init__(self, sock: socket.socket, kind: type[T] | Any) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._kind = kind

    async def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        while True:
            try:
                self.send_now(message, fds)
                return
            except BlockingIOError:
                await _writable(self.sock)

    def send_now(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """BlockingIOError when there is no room."""
        socket.send_fds(self.sock, [encode(message)], list(fds))

    async def receive(self) -> tuple[T, list[int]]:
        """Next message and the descriptors that came with it (the caller closes them)."""
        while True:
            try:
                return self.receive_now()
            except BlockingIOError:
                await _readable(self.sock)

    def receive_now(self) -> tuple[T, list[int]]:
        """As `receive`; BlockingIOError when there is nothing."""
        data, ancillary, flags, _ = self.sock.recvmsg(
            _MAX_PACKET,
            socket.CMSG_SPACE(_MAX_FDS * _INT.itemsize),
            socket.MSG_CMSG_CLOEXEC,  # socket.recv_fds of Python 3.11 drops its flags
        )
        fds = _descriptors(ancillary)
        if not data:
            raise EOFError("the other process is gone")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _close_all(fds)
            raise ProtocolError("oversized message")
        try:
            return decode(data, self._kind), fds
        except ProtocolError:
            _close_all(fds)
            raise

    def close(self) -> None:
        self.sock.close()


class Frames(Generic[T]):
    """One end of a stream connection. `kind` is what may arrive.

    Reads never go beyond the message asked for, so that a socket can be handed on."""

    def __init__(self, sock: socket.socket, kind: type[T] | Any) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._kind = kind
        self._decoder = FrameDecoder(MAX_FRAME)
        self._sending = asyncio.Lock()

    async def send(self, message: msgspec.Struct) -> None:
        data = frame(encode(message), MAX_FRAME)
        async with self._sending:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self) -> T:
        loop = asyncio.get_running_loop()
        while True:
            data = await loop.sock_recv(self.sock, self._decoder.wanted)
            if not data:
                raise EOFError("connection closed")
            complete = self._decoder.feed(data)
            if complete is not None:
                message: T = decode(complete, self._kind)
                return message

    def close(self) -> None:
        self.sock.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return numbers.tolist()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        socket.close(fd)


def _finish(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock.fileno(), _finish, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock.fileno(), _finish, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock.fileno())
