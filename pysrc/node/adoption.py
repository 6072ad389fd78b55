"""Workers of a mosd that died come back to this one, here.

`Adoption` listens in the run directory. Anybody may connect; who it is says the kernel, and whoever
is no recorded deputy or remote is not listened to. What those say is checked as from any worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Protocol

from mosix.errors import ProtocolError
from mosix.node.listening import Complaints, accepted, listen_at
from mosix.node.records import Identity
from mosix.node.spawning import Worker
from mosix.wire.channel import Packets
from mosix.wire.messages import Returned, WorkerToNode

_FIRST_WORD_S = 5.0
_UCRED = struct.Struct("3i")


class Keeper(Protocol):
    """Who may know a worker: `mosix.node.deputies.Launcher`, `mosix.node.guests.Host`."""

    def expects(self, worker: Identity) -> bool: ...

    def take_back(self, worker: Worker, fds: list[int]) -> bool:
        """Takes it if it is one of its own, with the descriptors that came along, which become
        its to close."""
        ...


class Adoption:
    """The socket."""

    def __init__(self, path: Path, keepers: tuple[Keeper, ...], complaints: Complaints) -> None:
        self._path = path
        self._keepers = keepers
        self._complaints = complaints
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    def listen(self) -> None:
        """OSError."""
        self._listener = listen_at(self._path, socket.SOCK_SEQPACKET)

    async def serve(self) -> None:
        """Accepts until cancelled."""
        assert self._listener is not None
        async for sock, _ in accepted(self._listener, self._complaints):
            task = asyncio.create_task(self._returned(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _returned(self, sock: socket.socket) -> None:
        packets: Packets[WorkerToNode] = Packets(sock, WorkerToNode)
        fds: list[int] = []
        pidfd = -1
        uid = -1
        try:
            pid, uid, _ = _UCRED.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            )
            # Before its word: a process that has sent it lives, and so has this PID.
            pidfd = os.pidfd_open(pid)
            identity = Identity.of(pid)
            if identity is None or not any(k.expects(identity) for k in self._keepers):
                raise ProtocolError(f"process {pid} is no worker that is waited for")
            async with asyncio.timeout(_FIRST_WORD_S):
                message, fds = await packets.receive()
            worker = Worker(pid, pidfd, sock)
            if isinstance(message, Returned) and any(
                keeper.take_back(worker, fds) for keeper in self._keepers
            ):
                return
        except (OSError, EOFError, TimeoutError, ProtocolError) as error:
            why = error.line() if isinstance(error, ProtocolError) else str(error) or "timeout"
            self._complaints.note("no worker", f"uid {uid}", why)
        for fd in (*fds, pidfd):
            if fd >= 0:
                os.close(fd)
        sock.close()

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(OSError):
                self._path.unlink()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
