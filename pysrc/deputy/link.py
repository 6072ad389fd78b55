"""The deputy's end of the control connection to one remote.

Answers are awaited by type and epoch, so that a frame of an older epoch can never be taken for
one of the current; what the remote says unasked (a call to cancel, a need to come home, a death)
goes to the owner. Made by `mosix.deputy.moves`; it never decides where a process is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sized
from typing import TypeVar

import msgspec
from mosix.errors import MosixError, MoveFailedError, NodeDownError, ProtocolError, RefusedError
from mosix.wire.channel import Frames
from mosix.wire.dialer import STALL
from mosix.wire.messages import (
    Ask,
    AskDate,
    Cancel,
    Date,
    Failed,
    GuestDied,
    NeedHome,
    Ping,
    Pong,
    Refused,
    ToDeputy,
    Token,
    ToRemote,
)

#: How often a remote that is waited for is asked whether it lives, in seconds.
_ASK = 5.0
#: Messages that wait for somebody to want them.
_MAX_KEPT = 16

M = TypeVar("M", bound=msgspec.Struct)
T = TypeVar("T")
Unasked = Cancel | Ask | NeedHome | GuestDied


class RemoteLink:
    """Connection to the remote on node `ip`; `token` names the guest there."""

    def __init__(
        self,
        ip: str,
        token: Token,
        sock: socket.socket,
        on_unasked: Callable[[RemoteLink, Unasked], None],
        on_lost: Callable[[RemoteLink], None],
    ) -> None:
        self.ip = ip
        self.token = token
        self.lost = False
        #: see `Launch`
        self.date_ahead_ns = 0
        #: the connection over which the guest's image will go home, made beforehand: one of
        #: the two mosds may be dead by then. None: used up
        self.way_home: socket.socket | None = None
        self._heard = time.monotonic()
        self._frames: Frames[ToDeputy] = Frames(sock, ToDeputy)
        self._on_unasked = on_unasked
        self._on_lost = on_lost
        self._waiting: list[tuple[type[msgspec.Struct], int | None, asyncio.Future[ToDeputy]]] = []
        self._arrived: list[ToDeputy] = []
        #: said unasked before `adopt`; None since then
        self._early: list[Unasked] | None = []
        self._outbox: asyncio.Queue[ToRemote] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    def date_ns(self) -> int:
        """Home's CLOCK_REALTIME, as guests are to see it."""
        return time.time_ns() + self.date_ahead_ns

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """For failpoints."""
        return (self._frames.sock,)

    def post(self, message: ToRemote) -> None:
        """Sends in order, later; a lost connection is told by `expect` and `on_lost`."""
        self._outbox.put_nowait(message)

    def adopt(self) -> None:
        """The guest there has the body and its owner is ready to serve it: from now on what it
        says unasked is told, first what it has said already. A guest may need home with its
        first instruction, before anybody has taken note that it runs."""
        early, self._early = self._early or [], None
        for message in early:
            self._on_unasked(self, message)

    async def expect(
        self, kind: type[M], epoch: int | None = None, timeout: float | None = STALL
    ) -> M:
        """The next message of `kind` (of `epoch`) within `timeout` seconds; None: whenever it
        comes, as long as the remote answers at all.

        RefusedError, MoveFailedError: the remote said so instead; NodeDownError: it is gone,
        said nothing at all for `STALL` seconds, or not this for `timeout`."""
        for message in self._arrived:
            if self._matches(message, kind, epoch):
                self._arrived.remove(message)
                return self._checked(message, kind)
        if self.lost:
            raise NodeDownError(f"the connection to node {self.ip} was lost")
        future: asyncio.Future[ToDeputy] = asyncio.get_running_loop().create_future()
        entry = (kind, epoch, future)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(timeout):
                return self._checked(await self.while_alive(future), kind)
        except TimeoutError as error:
            raise NodeDownError(f"node {self.ip} did not answer for {timeout} s") from error
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    async def while_alive(self, future: asyncio.Future[T]) -> T:
        """Its result. NodeDownError: the remote stands still (its node may be quite alive)."""
        self._heard = time.monotonic()
        while True:
            done, _ = await asyncio.wait((future,), timeout=_ASK)
            if done:
                return future.result()
            if time.monotonic() - self._heard > STALL:
                raise NodeDownError(f"the remote on node {self.ip} stands still")
            self.post(Ping(sent_ns=time.monotonic_ns()))

    async def why_it_ended(self, epoch: int) -> None:
        """After a transfer was cut: raises what the remote says about it, if it does so soon."""
        with contextlib.suppress(NodeDownError):
            await self.expect(Failed, epoch, timeout=2)

    async def close(self) -> None:
        """Says what is still to be said (a `Drop`), then ends the connection."""
        if not self.lost:
            self.lost = True
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5):
                    while not self._outbox.empty():
                        await self._frames.send(self._outbox.get_nowait())
        self._fail(f"the connection to node {self.ip} was closed")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._frames.close()
        self.forget_way_home()

    def forget_way_home(self) -> None:
        if self.way_home is not None:
            self.way_home.close()
            self.way_home = None

    def _checked(self, message: ToDeputy, kind: type[M]) -> M:
        if isinstance(message, Refused):
            raise RefusedError(f"node {self.ip} refused: {message.reason}", message.hint)
        if isinstance(message, Failed):
            raise MoveFailedError(f"node {self.ip}: {message.reason}")
        if isinstance(message, kind):
            return message
        raise ProtocolError(f"node {self.ip} answered {type(message).__name__}")

    @staticmethod
    def _matches(message: ToDeputy, kind: type[msgspec.Struct], epoch: int | None) -> bool:
        if isinstance(message, Refused):
            return True
        if not isinstance(message, (kind, Failed)):
            return False
        return epoch is None or getattr(message, "epoch", epoch) == epoch

    async def _read(self) -> None:
        try:
            while True:
                message = await self._frames.receive()
                self._heard = time.monotonic()
                self._dispatch(message)
        except (EOFError, OSError, MosixError):
            self._lose()

    async def _write(self) -> None:
        try:
            while True:
                await self._frames.send(await self._outbox.get())
        except OSError:
            self._lose()

    def _dispatch(self, message: ToDeputy) -> None:
        if isinstance(message, AskDate):
            self.post(Date(asked_ns=message.asked_ns, date_ns=self.date_ns()))
            return
        if isinstance(message, (Cancel, Ask, NeedHome, GuestDied)):
            if self._early is None:
                self._on_unasked(self, message)
                return
            self._early.append(message)
            self._limit(self._early)
            return
        for kind, epoch, future in self._waiting:
            if not future.done() and self._matches(message, kind, epoch):
                future.set_result(message)
                return
        if isinstance(message, Pong):
            return  # of a `while_alive` that is over
        self._arrived.append(message)
        self._limit(self._arrived)

    def _limit(self, kept: Sized) -> None:
        if len(kept) > _MAX_KEPT:
            raise ProtocolError(f"node {self.ip} sends what nobody asked for")

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        self._fail(f"the connection to node {self.ip} was lost")
        self._on_lost(self)

    def _fail(self, reason: str) -> None:
        for _, _, future in self._waiting:
            if not future.done():
                future.set_exception(NodeDownError(reason))
