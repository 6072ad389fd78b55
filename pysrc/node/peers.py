"""Connections between mosds: listening, dialling, the handshake, its limits.

`PeerServer` gives every connection whose peer proved the secret to a handler; `Dialer` makes
such connections. Hostile peers cost a bounded number of descriptors and one log line a minute.
Never hands out a socket that is not proved, and never waits without a deadline.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from mosix import failpoints
from mosix.config import NodeConfig
from mosix.errors import MosixError, NodeDownError, ProtocolError, RefusedError, from_code
from mosix.node.listening import Complaints, Server
from mosix.node.settings import Settings
from mosix.wire.channel import Frames
from mosix.wire.handshake import (
    DEADLINE_S,
    MAX_HALF_OPEN,
    MAX_HALF_OPEN_TOTAL,
    Initiator,
    Responder,
)
from mosix.wire.messages import PROTOCOL_VERSION
from mosix.wire.mosd_messages import (
    PeerAccept,
    PeerAnswer,
    PeerHello,
    PeerRefuse,
    PeerStatus,
)

_log = logging.getLogger("mosd.peers")

CONNECT_TIMEOUT_S = 5.0
#: For a node that gossip calls down to accept and prove itself: it may have come back just now, or
#: UDP alone may be filtered.
DOWN_TIMEOUT_S = 1.0
#: From the proof to the answer; for a guest the other mosd makes a remote meanwhile, for which it
#: has a minute itself.
ANSWER_TIMEOUT_S = 20.0
GUEST_TIMEOUT_S = 80.0
_LINGER_S = 1.0
#: Connections at once of one peer that has proved the secret, until a worker has them or they end.
MAX_PROVED = 1024

PURPOSES = frozenset(
    {
        "guest",
        "call",
        "bulk",
        "home",
        "control",
        "drop",
        "status",
        "move",
        "balance",
        "evacuate",
        "measure",
    }
)
#: A peer that acknowledges nothing for so long is dead, milliseconds.
_USER_TIMEOUT_MS = 30_000

Handler = Callable[[PeerHello, socket.socket], Awaitable[None]]


async def drive(sock: socket.socket, side: Initiator | Responder, first: bytes = b"") -> None:
    """Runs a handshake on a non-blocking socket; reads not one byte more than it needs.
    Raises `side.error`, TimeoutError, OSError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE_S):
        if first:
            await loop.sock_sendall(sock, first)
        while side.wanted:
            data = await loop.sock_recv(sock, side.wanted)
            if not data:
                side.eof()
                break
            answer = side.feed(data)
            if answer:
                await loop.sock_sendall(sock, answer)
    if side.error is not None:
        raise side.error


class PeerServer(Server):
    """The peer port of this node, on its own address only."""

    def __init__(self, settings: Settings, handler: Handler, complaints: Complaints) -> None:
        super().__init__(complaints)
        self._settings = settings
        self._handler = handler
        self._half_open: collections.Counter[str] = collections.Counter()
        self._proved: collections.Counter[str] = collections.Counter()

    def listen(self) -> None:
        """OSError when the address or port cannot be had."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            config = self._settings.config
            sock.bind((config.ip, config.peer_port))
            sock.listen(256)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        self._listener = sock

    def _admit(
        self, sock: socket.socket, address: tuple[str, int]
    ) -> Coroutine[Any, Any, None] | None:
        ip, _ = address
        if self._half_open[ip] >= MAX_HALF_OPEN or self._half_open.total() >= MAX_HALF_OPEN_TOTAL:
            self._complaints.note("too many unproved connections", ip, "closed")
            return None
        self._half_open[ip] += 1
        return self._connection(sock, ip)

    async def _connection(self, sock: socket.socket, ip: str) -> None:
        try:
            hello = await self._prove(sock, ip)
            if hello is not None:
                await self._handle(hello, sock, ip)
        except (OSError, EOFError, TimeoutError) as error:
            self._complaints.note("broken connection", ip, str(error) or "timeout")
        except ProtocolError as error:
            self._complaints.note("malformed", ip, error.line())
        finally:
            sock.close()

    async def _handle(self, hello: PeerHello, sock: socket.socket, ip: str) -> None:
        if self._proved[ip] >= MAX_PROVED:
            self._complaints.note("too many connections", ip, hello.purpose)
            await refuse(
                Frames(sock, PeerAnswer),
                RefusedError(f"{ip} has {MAX_PROVED} connections already", "try again later"),
            )
            return
        self._proved[ip] += 1
        try:
            await self._handler(hello, sock)
        finally:
            self._proved[ip] -= 1
            if not self._proved[ip]:
                del self._proved[ip]

    async def _prove(self, sock: socket.socket, ip: str) -> PeerHello | None:
        refuse = None
        settings = self._settings
        if not settings.is_peer(ip):
            refuse = RefusedError(
                f"{ip} is not in its mosix.map", "add this node to mosix.map there"
            )
            if settings.off:
                refuse = RefusedError("it is off: it belongs to no cluster", "setpe there")
        side = Responder(settings.secret, settings.config.ip, ip, refuse=refuse)
        try:
            tune(sock)
            await drive(sock, side)
        except RefusedError as error:
            self._complaints.note("refused", ip, error.line())
            await _linger(sock)
            return None
        except ProtocolError as error:
            self._complaints.note("malformed", ip, error.line())
            return None
        except (TimeoutError, OSError) as error:
            self._complaints.note("unproved", ip, str(error) or "no proof in time")
            return None
        finally:
            self._half_open[ip] -= 1
            if not self._half_open[ip]:
                del self._half_open[ip]
        return side.hello


class Dialer:
    """Proved connections to other nodes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: why a node is taken to be down; "": it is not
        self.down: Callable[[str], str] = lambda ip: ""

    @property
    def _config(self) -> NodeConfig:
        return self._settings.config

    async def status(self, ip: str, *, patient: bool = False) -> PeerStatus:
        """Of that node. As `dial`."""
        sock, status = await self.dial(ip, "status", patient=patient)
        sock.close()
        if not isinstance(status, PeerStatus):
            raise ProtocolError(f"node {ip} answers a status request with something else")
        return status

    async def dial(
        self, ip: str, purpose: str, *, patient: bool = False, **identity: Any
    ) -> tuple[socket.socket, PeerAccept | PeerStatus]:
        """A connection whose purpose the other node accepted. `identity`: fields of PeerHello;
        `patient`: also with a node that is known to be down.

        UnknownNodeError, NodeDownError, RefusedError or whatever class the node answers."""
        self._settings.check_peer(ip, purpose)
        hello = PeerHello(
            version=PROTOCOL_VERSION,
            sender=self._config.ip,
            receiver=ip,
            purpose=purpose,
            **identity,
        )
        down = "" if patient else self.down(ip)
        sock = await self._connect(ip, down)
        try:
            side = Initiator(self._settings.secret, hello)
            try:
                async with asyncio.timeout(DOWN_TIMEOUT_S if down else None):
                    await drive(sock, side, side.start())
                async with asyncio.timeout(
                    GUEST_TIMEOUT_S if purpose == "guest" else ANSWER_TIMEOUT_S
                ):
                    answer: PeerAccept | PeerRefuse | PeerStatus = await Frames[Any](
                        sock, PeerAnswer
                    ).receive()
            except TimeoutError as error:
                so = f", and {down}" if down else ""
                raise NodeDownError(f"node {ip} connects but does not answer{so}") from error
            except (OSError, EOFError) as error:
                raise NodeDownError(
                    f"node {ip} closed the connection", "see the log of mosd there"
                ) from error
            if isinstance(answer, PeerRefuse):
                raise from_code(answer.code, f"node {ip} refuses: {answer.reason}", answer.hint)
            failpoints.hit("mosd.dialed", sock)
        except BaseException:
            sock.close()
            raise
        return sock, answer

    async def _connect(self, ip: str, down: str) -> socket.socket:
        patience_s = DOWN_TIMEOUT_S if down else CONNECT_TIMEOUT_S
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            # The other side takes the address of the connection for our name.
            sock.bind((self._config.ip, 0))
            tune(sock)
            failpoints.hit("mosd.dial", sock)
            async with asyncio.timeout(patience_s):
                await asyncio.get_running_loop().sock_connect(sock, (ip, self._config.peer_port))
        except TimeoutError as error:
            sock.close()
            raise NodeDownError(
                f"node {ip} does not answer within {patience_s:.0f} s"
                + (f", and {down}" if down else ""),
                "is it up?",
            ) from error
        except OSError as error:
            sock.close()
            raise NodeDownError(
                f"node {ip} does not answer: {os.strerror(error.errno or 0)}",
                f"does mosd run there, on port {self._config.peer_port}?",
            ) from error
        except BaseException:
            sock.close()
            raise
        return sock


def tune(sock: socket.socket) -> None:
    """As every connection between nodes is: non-blocking, no delay; a peer that is not there any
    more is noticed within 30 s, whether we wait for it (keepalive) or it for us."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # A peer that has forgotten the connection is noticed with the first of these.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


async def _linger(sock: socket.socket) -> None:
    """Lets the peer read why it was refused: a close with unread input would reset first."""
    loop = asyncio.get_running_loop()
    try:
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_LINGER_S):
            for _ in range(64):
                if not await loop.sock_recv(sock, 4096):
                    return
    except (OSError, TimeoutError):
        return


async def refuse(frames: Frames[Any], error: MosixError) -> None:
    """Answers a proved connection with `error`."""
    await frames.send(
        PeerRefuse(reason=error.message[:1500], hint=error.hint[:500], code=error.code)
    )
    await _linger(frames.sock)
