"""One deputy or remote as mosd sees it: its messages, its dialling, its end.

`deputies.py` and `guests.py` build on `WorkerLink`. What a worker asks for is checked here against
what mosd knows of it: the job, uid and gid of a connection are never taken from the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Coroutine, Sequence
from typing import Any

from mosix.errors import KernelError, MosixError, ProtocolError
from mosix.node.peers import Dialer
from mosix.node.spawning import Worker
from mosix.wire.channel import Packets
from mosix.wire.messages import NodeFeatures, Token
from mosix.wire.mosd_messages import (
    Arm,
    Armed,
    Dial,
    Dialed,
    NodeToWorker,
    PeerAccept,
    WorkerToNode,
)

_log = logging.getLogger("mosd.worker")

#: One worker's dials at once; a job with more moves at once waits.
_MAX_DIALS = 16
#: What one worker has asked for and that is not answered; who asks for more is not heard meanwhile.
_MAX_PENDING = 512
_WORKER_PURPOSES = ("guest", "call", "bulk", "home", "control")


class WorkerLink:
    """Base of both kinds. `run` is the life of the link."""

    name = "worker"

    def __init__(self, worker: Worker, dialer: Dialer, features: NodeFeatures) -> None:
        self.worker = worker
        self._packets: Packets[WorkerToNode] = Packets(worker.sock, WorkerToNode)
        self._dialer = dialer
        self._features = features
        self._dials = asyncio.Semaphore(_MAX_DIALS)
        self._tasks: set[asyncio.Task[None]] = set()
        self.gone = asyncio.Event()
        self._armed = asyncio.Event()

    async def arm(self, spec: str) -> None:
        """Tests only; returns when the worker has done it or is gone."""
        self._armed.clear()
        with contextlib.suppress(OSError):
            await self.send(Arm(spec=spec))
        waiting = [asyncio.create_task(event.wait()) for event in (self._armed, self.gone)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    async def send(self, message: NodeToWorker, fds: Sequence[int] = ()) -> None:
        """OSError when the worker is gone."""
        await self._packets.send(message, fds)

    async def run(self) -> None:
        """Until the worker closes, dies or says something it may not."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self.worker.pidfd, self._died)
        try:
            while True:
                message, fds = await self._packets.receive()
                for fd in fds:
                    os.close(fd)  # no worker's message carries any
                if isinstance(message, Armed):
                    self._armed.set()
                    continue
                await self.handle(message)
                while len(self._tasks) >= _MAX_PENDING:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        except (EOFError, OSError):
            pass
        except ProtocolError as error:
            _log.error("%s %d: %s; killed", self.name, self.worker.pid, error.line())
            self.worker.kill()
        finally:
            loop.remove_reader(self.worker.pidfd)
            for task in list(self._tasks):
                task.cancel()
            self.worker.close()
            self.gone.set()

    def _died(self) -> None:
        """Its socket alone would not say so while a child of it holds a copy. What it sent
        before is still received."""
        asyncio.get_running_loop().remove_reader(self.worker.pidfd)
        with contextlib.suppress(OSError):  # closed already
            self.worker.sock.shutdown(socket.SHUT_RDWR)

    async def handle(self, message: WorkerToNode) -> None:
        raise NotImplementedError

    def guest_made(self, pid: int, ip: str, token: Token) -> None:
        """A guest for process `pid` is at `ip` from now on, as far as mosd has to do with it."""

    def check_dial(self, order: Dial) -> None:
        """MosixError unless this worker may ask for that."""

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs beside the reception; cancelled when the worker is gone."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def dial(self, order: Dial, identity: dict[str, Any]) -> None:
        """Answers `order` with connected sockets or with why not. `identity`: of the job."""
        sockets: list[socket.socket] = []
        async with self._dials:
            try:
                self.check_dial(order)
                token = await self._dial_all(order, identity, sockets)
                answer = Dialed(request=order.request, token=token)
            except MosixError as error:
                answer = Dialed(
                    request=order.request,
                    error=error.message[:2000] or "failed",
                    code=error.code,
                    hint=error.hint[:2000],
                )
                _close_all(sockets)
            except OSError as error:
                why = os.strerror(error.errno or 0).lower()
                short = KernelError(f"no connection to node {order.ip}: {why}")
                answer = Dialed(request=order.request, error=short.message, code=short.code)
                _close_all(sockets)
            except asyncio.CancelledError:
                _close_all(sockets)
                raise
        with contextlib.suppress(OSError):  # the worker died meanwhile: `run` notices
            await self.send(answer, [sock.fileno() for sock in sockets])
        _close_all(sockets)

    async def _dial_all(
        self, order: Dial, identity: dict[str, Any], sockets: list[socket.socket]
    ) -> Token | None:
        purposes = order.purposes
        if (
            not purposes
            or len(set(purposes)) != len(purposes)
            or set(purposes) - {*_WORKER_PURPOSES}
        ):
            raise ProtocolError(f"purposes {purposes}")
        token = order.token
        if "guest" not in purposes and token is None:
            raise ProtocolError(f"{', '.join(purposes)} without a token")
        made: dict[str, socket.socket] = {}
        try:
            # The guest connection gives the token that the others carry.
            for purpose in sorted(purposes, key=_WORKER_PURPOSES.index):
                fields = {**identity, "pid": order.pid, "epoch": order.epoch}
                if purpose == "guest":
                    fields["features"] = self._features
                else:
                    fields["token"] = token
                sock, answer = await self._dialer.dial(order.ip, purpose, **fields)
                made[purpose] = sock
                if purpose == "guest":
                    if not isinstance(answer, PeerAccept) or answer.token is None:
                        raise ProtocolError(f"node {order.ip} gives no token")
                    token = answer.token
                    self.guest_made(order.pid, order.ip, token)
        except BaseException:
            _close_all(list(made.values()))
            raise
        sockets += [made[purpose] for purpose in purposes]
        return token


def _close_all(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
    sockets.clear()
