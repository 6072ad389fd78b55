"""The deputy's end of the control connection to one remote.

Answers are awaited by type and epoch, so that a frame of an older epoch can never be taken for
one of the current; what the remote says unasked (a call to cancel, a need to come home, a death)
goes to the owner. Made by `mosix.deputy.moves`; it never decides where a process is.

Once the body runs there (`keep`) the link outlives its connections: it is *down* until another one
is made (`mosix.deputy.reconnect`), and lost when that is given up. What was said meanwhile is said
then; what was waited for has failed at once, for no move goes on over two connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
from mosix.errors import MosixError, MoveFailedError, NodeDownError, ProtocolError, RefusedError
from mosix.wire.dialer import STALL
from mosix.wire.lasting import Lasting
from mosix.wire.messages import (
    Ask,
    AskDate,
    CallsLost,
    Cancel,
    Date,
    Drop,
    Dropped,
    Failed,
    GuestDied,
    NeedHome,
    Ping,
    Pong,
    Refused,
    ToDeputy,
    Token,
    ToRemote,
    Used,
)

#: How often a remote that is waited for is asked whether it lives, in seconds.
_ASK = 5.0
#: How long a remote may take to hear that it is not wanted any more, in seconds.
_DISMISS = 5.0
#: Messages that wait for somebody to want them.
_MAX_KEPT = 16

M = TypeVar("M", bound=msgspec.Struct)
T = TypeVar("T")
Unasked = Cancel | Ask | NeedHome | GuestDied | CallsLost | Used


class RemoteLink:
    """Connection to the remote on node `ip`; `token` names the guest there."""

    def __init__(
        self,
        ip: str,
        token: Token,
        sock: socket.socket,
        on_unasked: Callable[[RemoteLink, Unasked], None],
        on_down: Callable[[RemoteLink], None],
    ) -> None:
        self.ip = ip
        self.token = token
        self.lost = False
        self.down = False
        #: what the remote said that it may not say; "": nothing
        self.broke = ""
        #: that the guest was told to run as; None: it was not
        self.epoch: int | None = None
        #: ours of the ghost's connection for calls
        self._call: socket.socket | None = None
        #: see `Launch`
        self.date_ahead_ns = 0
        #: the connection over which the guest's image will go home, made beforehand: one of
        #: the two mosds may be dead by then. None: used up
        self.way_home: socket.socket | None = None
        self._heard = time.monotonic()
        self._lasting: Lasting[ToDeputy] = Lasting(sock, ToDeputy)
        self._on_unasked = on_unasked
        self._on_down = on_down
        self._up = asyncio.Event()
        self._waiting: list[tuple[type[msgspec.Struct], int | None, asyncio.Future[ToDeputy]]] = []
        self._arrived: list[ToDeputy] = []
        #: said unasked before `adopt`; None since then
        self._early: list[Unasked] | None = []
        self._tasks: list[asyncio.Task[None]] = []
        self._begin()

    def date_ns(self) -> int:
        """Home's CLOCK_REALTIME, as guests are to see it."""
        return time.time_ns() + self.date_ahead_ns

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """For failpoints."""
        call = () if self._call is None else (self._call,)
        return (self._lasting.sock, *call)

    def post(self, message: ToRemote) -> None:
        """Sends in order, later; a lost connection is told by `expect` and `on_lost`."""
        self._lasting.say(message)

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
        if self.lost or self.down:
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

    async def dismiss(self) -> bool:
        """Tells the remote that its guest is not wanted any more, and ends the connection. False:
        perhaps it has not heard of it."""
        heard = False
        try:
            async with asyncio.timeout(_DISMISS):
                self.post(Drop())
                while not heard:
                    # What it said before about a move that was given up does not matter.
                    with contextlib.suppress(RefusedError, MoveFailedError):
                        heard = bool(await self.expect(Dropped))
        except (NodeDownError, TimeoutError):
            heard = False
        finally:
            await self.close()
        return heard

    async def close(self) -> None:
        self.lost = True
        self._fail(f"the connection to node {self.ip} was closed")
        self._up.set()
        await self._end()
        self._lasting.close()
        self.forget_way_home()
        self._forget_call()

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

    # ---- the connection ----

    def _begin(self) -> None:
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    async def _end(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while True:
                message = await self._lasting.receive()
                self._heard = time.monotonic()
                self._dispatch(message)
        except ProtocolError as error:
            self._violated(error)
        except (EOFError, OSError, MosixError):
            self.cut()

    async def _write(self) -> None:
        try:
            await self._lasting.write()
        except ProtocolError as error:
            self._violated(error)
        except OSError:
            self.cut()

    def _violated(self, error: ProtocolError) -> None:
        # Nothing that another connection would mend.
        self.broke = error.message
        self.cut()

    def keep(self, epoch: int, call: socket.socket) -> None:
        """The body runs there as `epoch`, its calls come over `call`: from now on the
        connections are made again when they are lost."""
        self.epoch = epoch
        self._call = call.dup()
        if self.lost:
            self.lost, self.down = False, True
            self._on_down(self)

    def cut(self) -> None:
        """A connection has ended, or is no good any more."""
        if self.lost or self.down:
            return
        reason = f"the connection to node {self.ip} was lost"
        if self.broke:
            reason = f"node {self.ip} broke the rules of the connection: {self.broke}"
        if self.epoch is None:
            self.lost = True
        else:
            self.down = True
            self._up.clear()
            # Whoever still waits at the others, here or there, must not.
            for sock in self.sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self.forget_way_home()
            self._arrived.clear()
        self._fail(reason)
        if self.down:
            self._on_down(self)

    async def until_up(self) -> None:
        """Returns when there is a connection again, or will never be."""
        while self.down and not self.lost:
            await self._up.wait()

    async def rejoin(
        self, control: socket.socket, call: socket.socket, way_home: socket.socket
    ) -> None:
        """Goes on over these, which are the link's from now on; the ghost needs `call`, too.
        EOFError, OSError, TimeoutError, ProtocolError: they are no good."""
        assert self.epoch is not None
        await self._end()
        await self._lasting.rejoin(control, self.epoch)
        self._forget_call()
        self._call, self.way_home = call.dup(), way_home
        self.down = False
        self._up.set()
        self._begin()

    def give_up(self) -> None:
        self.down, self.lost = False, True
        self._up.set()

    def _forget_call(self) -> None:
        if self._call is not None:
            self._call.close()
            self._call = None

    def _dispatch(self, message: ToDeputy) -> None:
        if isinstance(message, AskDate):
            self.post(Date(asked_ns=message.asked_ns, date_ns=self.date_ns()))
            return
        if isinstance(message, (Cancel, Ask, NeedHome, GuestDied, CallsLost, Used)):
            if self._early is None:
                self._on_unasked(self, message)
                return
            if isinstance(message, Used):  # the newest is enough, however long it is early
                self._early = [early for early in self._early if not isinstance(early, Used)]
            self._early.append(message)
            if len(self._early) > _MAX_KEPT:
                raise ProtocolError("it sends what nobody asked for")
            return
        for kind, epoch, future in self._waiting:
            if not future.done() and self._matches(message, kind, epoch):
                future.set_result(message)
                return
        if isinstance(message, Pong):
            return  # of a `while_alive` that is over
        # The oldest are about moves that were given up.
        self._arrived = [*self._arrived, message][-_MAX_KEPT:]

    def _fail(self, reason: str) -> None:
        for _, _, future in self._waiting:
            if not future.done():
                future.set_exception(NodeDownError(reason))
