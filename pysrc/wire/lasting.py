"""A conversation that outlives its connection: what was lost with one is said again on the next.

Used by deputy and remote for their control connection. Messages are numbered by counting, on both
sides; each side keeps what it has said until the other has told that it came (`Ack`). A new
connection begins with `Rejoin` and `Rejoined`, which tell how much each has; the rest is said
again in its order, so that every message comes once. What is about a connection itself is not
counted, and dies with them.
"""

from __future__ import annotations

import asyncio
import collections
import socket
from typing import Any, Generic, TypeVar

import msgspec
from mosix.errors import ProtocolError
from mosix.wire.channel import Frames
from mosix.wire.messages import Ack, CallsLost, Ping, Pong, Rejoin, Rejoined

T = TypeVar("T")

#: After so many messages the other side may forget them.
_ACK_EVERY = 16
#: Nobody answers that many without having heard the first.
_MAX_KEPT = 1 << 16
#: Answers that wait to be sent: who does not read them may not ask for more.
_MAX_LOOSE = 256
#: After so many messages without a pause others have their turn: who floods us waits for them.
_YIELD_EVERY = 16
#: From a new connection to the other side's first word on it (seconds).
_REJOIN_S = 10
_UNCOUNTED = (Ack, CallsLost, Ping, Pong, Rejoin, Rejoined)


class Lasting(Generic[T]):
    """One end. `kind`: what may arrive. `say` keeps; `write` is a task for each connection;
    EOFError and OSError of `receive` and `write` mean that the connection has ended."""

    def __init__(self, sock: socket.socket, kind: type[T] | Any) -> None:
        self._kind = kind
        self._frames: Frames[T] = Frames(sock, kind)
        #: what was said and perhaps did not come; the first is number `_first`
        self._kept: collections.deque[msgspec.Struct] = collections.deque()
        self._first = 0
        #: number of the next to be sent over this connection
        self._next = 0
        self._loose: collections.deque[msgspec.Struct] = collections.deque()
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self.received = 0
        self._in_a_row = 0

    @property
    def sock(self) -> socket.socket:
        """Of the connection there is now, or was."""
        return self._frames.sock

    def say(self, message: msgspec.Struct) -> None:
        """Sends in order, later, over this connection or another."""
        (self._loose if isinstance(message, _UNCOUNTED) else self._kept).append(message)
        self._empty.clear()
        self._more.set()

    async def write(self) -> None:
        """Until the connection ends (OSError). ProtocolError: the other side hears nothing."""
        while True:
            self._more.clear()
            while self._loose:
                await self._frames.send(self._loose.popleft())
            while self._next < self._first + len(self._kept):
                message = self._kept[self._next - self._first]
                self._next += 1
                await self._frames.send(message)
            if len(self._kept) > _MAX_KEPT:
                raise ProtocolError("the other side does not say that it hears")
            if not self._more.is_set():
                self._empty.set()
                await self._more.wait()

    async def drained(self) -> None:
        """Everything has been given to the kernel."""
        await self._empty.wait()

    async def receive(self) -> T:
        """The next message. EOFError, OSError; ProtocolError."""
        while True:
            if len(self._loose) > _MAX_LOOSE:
                raise ProtocolError("the other side asks and does not hear")
            message = await self._frames.receive()
            self._in_a_row += 1
            if self._in_a_row % _YIELD_EVERY == 0:  # asyncio reads what is there without a pause
                await asyncio.sleep(0)
            if isinstance(message, Ack):
                self._heard(message.received)
                continue
            if not isinstance(message, _UNCOUNTED):
                self.received += 1
                if self.received % _ACK_EVERY == 0:
                    self.say(Ack(received=self.received))
            return message

    def _heard(self, received: int) -> None:
        if not self._first <= received <= self._next:
            raise ProtocolError(f"{received} messages heard of {self._next}")
        while self._first < received:
            self._kept.popleft()
            self._first += 1

    def close(self) -> None:
        self._frames.close()

    # ---- another connection; `write` must not be running ----

    async def rejoin(self, sock: socket.socket, epoch: int) -> None:
        """From the side that has dialled. EOFError, OSError, TimeoutError, ProtocolError: it did
        not come to that, and `sock` is closed."""
        frames: Frames[T] = Frames(sock, self._kind)
        try:
            async with asyncio.timeout(_REJOIN_S):
                await frames.send(Rejoin(epoch=epoch, received=self.received))
                answer = await frames.receive()
            if not isinstance(answer, Rejoined):
                raise ProtocolError(f"{type(answer).__name__} instead of Rejoined")
            self._go_on(frames, answer.received)
        except BaseException:
            frames.close()
            raise

    async def rejoined(self, sock: socket.socket, epoch: int) -> None:
        """The same from the side that was called."""
        frames: Frames[T] = Frames(sock, self._kind)
        try:
            async with asyncio.timeout(_REJOIN_S):
                order = await frames.receive()
                if not isinstance(order, Rejoin) or order.epoch != epoch:
                    raise ProtocolError(f"not a connection to epoch {epoch}")
                await frames.send(Rejoined(received=self.received))
            self._go_on(frames, order.received)
        except BaseException:
            frames.close()
            raise

    def _go_on(self, frames: Frames[T], received: int) -> None:
        # What was given to the old connection is not more than what was said.
        self._next = self._first + len(self._kept)
        self._heard(received)
        self._next = received
        self._loose.clear()
        self._frames.close()
        self._frames = frames
        self._more.set()
