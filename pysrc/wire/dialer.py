"""How a deputy or a remote gets connections to other nodes: it asks its mosd, which dials,
proves the secret and passes the sockets. Used by both kinds of worker; the secret never comes here.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from collections.abc import Callable

from mosix.errors import NotRunningError, from_code
from mosix.wire.messages import Token
from mosix.wire.mosd_messages import Dial, Dialed

#: A peer from which, or to which, no byte moves for so long is taken for lost (seconds).
STALL = 30

#: Longest wait for mosd's answer: its own limits for three connections and some more (seconds).
DIAL = 240


def make_blocking(sock: socket.socket) -> None:
    """For C code that reads and writes `sock`: a stalled peer gives EAGAIN after `STALL`."""
    sock.setblocking(True)
    limit = struct.pack("ll", STALL, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


class Dialer:
    """Requests to mosd and their answers. `ask` sends one `Dial`, later."""

    def __init__(self, ask: Callable[[Dial], None]) -> None:
        self._ask = ask
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[tuple[Dialed, list[int]]]] = {}
        self._gone = False

    async def dial(
        self,
        ip: str,
        purposes: tuple[str, ...],
        pid: int,
        epoch: int,
        token: Token | None,
        *,
        job_class: int = 0,
        limit_s: float = DIAL,
    ) -> tuple[Token, list[socket.socket]]:
        """Authenticated connections to node `ip`, one per purpose (guest, call, bulk, home,
        control), and the guest's token. Guest and control sockets are for asyncio, bulk and home
        are blocking with a limit, call is blocking without one: a redirected read may wait for
        ever.

        UnknownNodeError, NodeDownError, RefusedError as mosd says; NotRunningError."""
        if self._gone:
            raise NotRunningError("mosd does not run any more", "start mosd again")
        request = next(self._numbers)
        future: asyncio.Future[tuple[Dialed, list[int]]] = (
            asyncio.get_running_loop().create_future()
        )
        self._open[request] = future
        try:
            self._ask(
                Dial(
                    request=request,
                    ip=ip,
                    purposes=purposes,
                    pid=pid,
                    epoch=epoch,
                    token=token,
                    job_class=job_class,
                )
            )
            answer, fds = await asyncio.wait_for(future, limit_s)
        except TimeoutError as error:
            raise NotRunningError("mosd does not answer", "see its log") from error
        finally:
            del self._open[request]
        sockets = [socket.socket(fileno=fd) for fd in fds]
        if answer.error or answer.token is None or len(sockets) != len(purposes):
            for sock in sockets:
                sock.close()
            raise from_code(answer.code, answer.error or "mosd sent no sockets", answer.hint)
        for sock, purpose in zip(sockets, purposes, strict=True):
            if purpose in ("bulk", "home"):
                make_blocking(sock)
            elif purpose == "call":
                sock.setblocking(True)
        return answer.token, sockets

    def answered(self, message: Dialed, fds: list[int]) -> None:
        future = self._open.get(message.request)
        if future is None or future.done():
            for fd in fds:
                os.close(fd)
        else:
            future.set_result((message, fds))

    def back(self) -> None:
        """There is a mosd again."""
        self._gone = False

    def fail_all(self) -> None:
        """mosd is gone."""
        self._gone = True
        for future in self._open.values():
            if not future.done():
                future.set_exception(
                    NotRunningError("mosd does not run any more", "start mosd again")
                )
