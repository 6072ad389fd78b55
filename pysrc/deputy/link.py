"""The deputy's end of the control connection to one remote.

Answers are awaited by type and epoch, so that a frame of an older epoch can never be taken for
one of the current; what the remote says unasked (a call to cancel, a need to come home, a death)
goes to the owner. Made by `mosix.deputy.moves`; it never decides where a process is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TypeVar

import msgspec
from mosix.errors import MosixError, MoveFailedError, NodeDownError, ProtocolError, RefusedError
from mosix.wire.channel import Frames
from mosix.wire.messages import (
    Cancel,
    Failed,
    GuestDied,
    NeedHome,
    Refused,
    Stats,
    ToDeputy,
    Token,
    ToRemote,
)

M = TypeVar("M", bound=msgspec.Struct)
Unasked = Cancel | NeedHome | GuestDied | Stats


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
        self._frames: Frames[ToDeputy] = Frames(sock, ToDeputy)
        self._on_unasked = on_unasked
        self._on_lost = on_lost
        self._waiting: list[tuple[type[msgspec.Struct], int | None, asyncio.Future[ToDeputy]]] = []
        self._arrived: list[ToDeputy] = []
        self._outbox: asyncio.Queue[ToRemote] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    def post(self, message: ToRemote) -> None:
        """Sends in order, later; a lost connection is told by `expect` and `on_lost`."""
        self._outbox.put_nowait(message)

    async def expect(self, kind: type[M], epoch: int | None = None, timeout: float = 60) -> M:
        """The next message of `kind` (of `epoch`).

        RefusedError, MoveFailedError: the remote said so instead; NodeDownError: it is gone or
        silent for `timeout` seconds."""
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
            return self._checked(await asyncio.wait_for(future, timeout), kind)
        except TimeoutError as error:
            raise NodeDownError(f"node {self.ip} did not answer for {timeout:.0f} s") from error
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    async def close(self) -> None:
        """Says what is still to be said (a `Drop`), then ends the connection."""
        if not self.lost:
            self.lost = True
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5):
                    while not self._outbox.empty():
                        await self._frames.send(self._outbox.get_nowait())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._frames.close()

    def _checked(self, message: ToDeputy, kind: type[M]) -> M:
        if isinstance(message, kind):
            return message
        if isinstance(message, Refused):
            raise RefusedError(f"node {self.ip} refused: {message.reason}", message.hint)
        if isinstance(message, Failed):
            raise MoveFailedError(f"node {self.ip}: {message.reason}")
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
                self._dispatch(await self._frames.receive())
        except (EOFError, OSError, MosixError):
            self._lose()

    async def _write(self) -> None:
        try:
            while True:
                await self._frames.send(await self._outbox.get())
        except OSError:
            self._lose()

    def _dispatch(self, message: ToDeputy) -> None:
        if isinstance(message, (Cancel, NeedHome, GuestDied, Stats)):
            self._on_unasked(self, message)
            return
        for kind, epoch, future in self._waiting:
            if not future.done() and self._matches(message, kind, epoch):
                future.set_result(message)
                return
        self._arrived.append(message)
        if len(self._arrived) > 16:
            raise ProtocolError(f"node {self.ip} sends what nobody asked for")

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        for _, _, future in self._waiting:
            if not future.done():
                future.set_exception(NodeDownError(f"the connection to node {self.ip} was lost"))
        self._on_lost(self)
