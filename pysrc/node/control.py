"""The control socket: requests of mosrun, migrate, mosctl and mosps.

Anybody may connect; who it is says the kernel, and what he may do is decided by the functions
that `Handlers` holds. A connection carries one request and one answer; a launch may be asked to
join its job's cgroup in between. Whatever a client sends
or leaves out costs it its connection and never more.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from mosix.errors import LAUNCH_FAILED, KernelError, MosixError, ProtocolError, RefusedError
from mosix.node.listening import Budget, Complaints, Server, listen_at
from mosix.node.requests import (
    MAX_ANSWER,
    MAX_REQUEST,
    PREPARE,
    TO_STDERR,
    Answer,
    Failure,
    Launch,
    LaunchAnswer,
    Request,
)
from mosix.node.rights import Caller, caller_of
from mosix.wire.frames import FrameDecoder, frame
from mosix.wire.messages import decode, encode

_log = logging.getLogger("mosd.control")

REQUEST_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
#: Connections at once of one user, and of all; root is only bound by the latter.
MAX_PER_USER = 512
MAX_CONNECTIONS = 4096
_MAX_FDS = 4
#: What requests and answers of one user may take of mosd's memory at once, and of all, bytes.
#: Smaller ones than `_SMALL` are bounded by the number of connections.
_USER_BYTES = 8 << 20
_ALL_BYTES = 256 << 20
_SMALL = 16 << 10


class Client:
    """Who waits for the answer to its request, and may be gone before."""

    def __init__(self, sock: socket.socket, stderr: int) -> None:
        self._sock = sock
        #: mosrun's, which stays the server's; -1: none
        self.stderr = stderr
        self._prepared: asyncio.Future[int] | None = None

    async def until_gone(self) -> None:
        """Returns when it has closed or says what nobody has asked for."""
        while True:
            await _readable(self._sock)
            prepared = self._prepared
            try:
                said, fds, _, _ = socket.recv_fds(self._sock, 1, 1)
            except BlockingIOError:
                continue
            except OSError:
                return
            for fd in fds:
                os.set_inheritable(fd, False)  # as in `_receive`
            self._prepared = None
            if said and prepared is not None and not prepared.done():
                prepared.set_result(fds[0] if fds else -1)
                continue
            for fd in fds:
                os.close(fd)
            if not said or prepared is None:
                return

    async def prepare(self, directory: int, *, interface: bool) -> int:
        """Has it try to join the cgroup that `directory` is open on (-1: none) and, with
        `interface`, install its filter; the listener of that, which is the caller's, or -1.
        OSError when it is gone; who waits here is cancelled with the request when it goes."""
        prepared: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._prepared = prepared
        order = frame(encode(LaunchAnswer(PREPARE, int(interface))), MAX_ANSWER)
        with_it = [directory] if directory >= 0 else []
        socket.send_fds(self._sock, [order], with_it, socket.MSG_NOSIGNAL)
        try:
            return await prepared
        except asyncio.CancelledError:
            # Its answer may be there all the same, and would be nobody's.
            if prepared.done() and not prepared.cancelled() and prepared.result() >= 0:
                os.close(prepared.result())
            raise


@dataclass(frozen=True)
class Handlers:
    """What mosd does."""

    launch: Callable[[Caller, Launch, Client], Awaitable[LaunchAnswer]]
    request: Callable[[Caller, Request], Awaitable[Answer]]


class ControlServer(Server):
    """The socket and its connections."""

    def __init__(self, path: Path, handlers: Handlers, complaints: Complaints, node: str) -> None:
        """`node`: how users are told which one this is."""
        super().__init__(complaints)
        self._node = node
        self._path = path
        self._handlers = handlers
        self._connections: collections.Counter[int] = collections.Counter()
        self._budget = Budget(_USER_BYTES, _ALL_BYTES)

    def listen(self) -> None:
        """OSError."""
        self._listener = listen_at(self._path, socket.SOCK_STREAM)

    def _admit(self, sock: socket.socket, _: object) -> Coroutine[Any, Any, None] | None:
        caller = caller_of(sock)
        if self._connections.total() >= MAX_CONNECTIONS or (
            caller.uid and self._connections[caller.uid] >= MAX_PER_USER
        ):
            self._complaints.note("too many commands", f"uid {caller.uid}", "closed")
            return None
        sock.setblocking(False)
        self._connections[caller.uid] += 1
        return self._connection(sock, caller)

    async def _connection(self, sock: socket.socket, caller: Caller) -> None:
        fds: list[int] = []
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request: Request = decode(await self._receive(sock, caller, fds), Request)
            client = Client(sock, fds[0] if fds else -1)
            answer = await _unless_gone(client, self._answer(caller, request, client))
            if answer is not None:
                data = frame(encode(answer), MAX_ANSWER)
                del answer
                await self._send(sock, caller, data)
        except ProtocolError as error:
            self._complaints.note("malformed request", f"uid {caller.uid}", error.line())
        except TimeoutError:
            self._complaints.note("slow command", f"uid {caller.uid}", "closed")
        except (EOFError, OSError):
            pass  # the command was interrupted
        finally:
            self._connections[caller.uid] -= 1
            if not self._connections[caller.uid]:
                del self._connections[caller.uid]
            sock.close()
            for fd in fds:
                os.close(fd)

    async def _receive(self, sock: socket.socket, caller: Caller, fds: list[int]) -> bytes:
        decoder = FrameDecoder(MAX_REQUEST)
        await _receive(sock, decoder, fds)
        size = decoder.wanted
        with self._budget.holding(caller.uid, size if size > _SMALL else 0) as allowed:
            if not allowed:
                raise ProtocolError(f"too much at once: {size} bytes more")
            return await _receive(sock, decoder, fds)

    async def _send(self, sock: socket.socket, caller: Caller, data: bytes) -> None:
        size = len(data) if len(data) > _SMALL else 0
        with self._budget.holding(caller.uid, size) as allowed:
            if not allowed:
                what = "answers that you do not read take too much of mosd's memory"
                refused = Failure(code=RefusedError.code, message=what, hint="try again later")
                data = frame(encode(refused), MAX_ANSWER)
                self._complaints.note("too much at once", f"uid {caller.uid}", "refused")
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await asyncio.get_running_loop().sock_sendall(sock, data)

    async def _answer(
        self, caller: Caller, request: Request, client: Client
    ) -> Answer | LaunchAnswer:
        if isinstance(request, Launch):
            try:
                return await self._handlers.launch(caller, request, client)
            except MosixError as error:
                return LaunchAnswer(TO_STDERR, LAUNCH_FAILED, 0, f"mosrun: {error.line()}\n")
        try:
            return await self._handlers.request(caller, request)
        except OSError as error:
            said = f"mosd of {self._node} cannot do that: {os.strerror(error.errno or 0).lower()}"
            return Failure(code=KernelError.code, message=said)
        except MosixError as error:
            return Failure(code=error.code, message=error.message, hint=error.hint)

    async def close(self) -> None:
        if self._listener is not None:
            self._path.unlink(missing_ok=True)
        await super().close()


async def _unless_gone(client: Client, work: Awaitable[msgspec.Struct]) -> msgspec.Struct | None:
    """The result of `work`, or None, and `work` cancelled, when the client goes first."""
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(client.until_gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _receive(sock: socket.socket, decoder: FrameDecoder, fds: list[int]) -> bytes:
    """First nothing, when the size of a frame is known; then the frame. Descriptors that ride
    along are appended to `fds`."""
    headed = decoder.sized
    while True:
        try:
            data, new, flags, _ = socket.recv_fds(sock, decoder.wanted, _MAX_FDS)
        except BlockingIOError:
            await _readable(sock)
            continue
        fds += new
        for fd in new:
            os.set_inheritable(fd, False)  # recv_fds of Python 3.11 drops MSG_CMSG_CLOEXEC
        if flags & socket.MSG_CTRUNC or len(fds) > _MAX_FDS:
            raise ProtocolError("too many descriptors")
        if not data:
            if decoder.begun:
                raise ProtocolError("the request ends early")
            raise EOFError
        complete = decoder.feed(data)
        if complete is not None:
            return complete
        if not headed and decoder.sized:
            return b""


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock.fileno())
