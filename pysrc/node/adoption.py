"""Workers of a mosd that died come back to this one, here; so does its spawner.

`Adoption` listens in the run directory. Anybody may connect; who it is says the kernel, and whoever
is not recorded is not listened to. What those say is checked as from any worker. One of another
build, which speaks otherwise, is named in the log and goes on without mosd.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from mosix.errors import ProtocolError
from mosix.node.listening import Complaints, Server, listen_at
from mosix.node.records import Identity
from mosix.node.rights import caller_of
from mosix.node.spawning import Worker
from mosix.wire.channel import Packets
from mosix.wire.mosd_messages import WORKER_VERSION, Returned, WorkerToNode

#: Nobody else can connect in the place of a recorded process: it may take its time.
_FIRST_WORD_S = 30.0


class Keeper(Protocol):
    """Who may know a worker: `mosix.node.deputies.Launcher`, `mosix.node.guests.Host`,
    `mosix.node.spawning.SpawnerClient`."""

    def expects(self, worker: Identity) -> bool: ...

    def take_back(self, worker: Worker, fds: list[int]) -> bool:
        """Takes it if it is one of its own, with the descriptors that came along, which become
        its to close."""
        ...


class Adoption(Server):
    """The socket."""

    def __init__(self, path: Path, keepers: Sequence[Keeper], complaints: Complaints) -> None:
        super().__init__(complaints)
        self._path = path
        self._keepers = keepers

    def listen(self) -> None:
        """OSError."""
        self._listener = listen_at(self._path, socket.SOCK_SEQPACKET)

    def _admit(self, sock: socket.socket, _: object) -> Coroutine[Any, Any, None]:
        return self._returned(sock)

    async def _returned(self, sock: socket.socket) -> None:
        packets: Packets[WorkerToNode] = Packets(sock, WorkerToNode)
        fds: list[int] = []
        pidfd = -1
        kind, who = "no worker", "somebody"
        try:
            caller = caller_of(sock)
            pid, who = caller.pid, f"uid {caller.uid}"
            # Before its word: a process that has sent it lives, and so has this PID.
            pidfd = os.pidfd_open(pid)
            keeper = self._keeper_of(Identity.of(pid))
            if keeper is None:
                raise ProtocolError(f"process {pid} is no worker that is waited for")
            kind, who = "no worker of this build", f"process {pid}"
            async with asyncio.timeout(_FIRST_WORD_S):
                fds = await self._first_word(packets)
            if keeper.take_back(Worker(pid, pidfd, sock), fds):
                return
        except (OSError, EOFError, TimeoutError, ProtocolError) as error:
            why = error.line() if isinstance(error, ProtocolError) else str(error) or "timeout"
            self._complaints.note(kind, who, why)
        for fd in (*fds, pidfd):
            if fd >= 0:
                os.close(fd)
        sock.close()

    def _keeper_of(self, identity: Identity | None) -> Keeper | None:
        if identity is None:
            return None
        return next((keeper for keeper in self._keepers if keeper.expects(identity)), None)

    async def _first_word(self, packets: Packets[WorkerToNode]) -> list[int]:
        """The descriptors that ride with it. ProtocolError: it is none of ours to be had."""
        message, fds = await packets.receive()
        if isinstance(message, Returned) and message.version == WORKER_VERSION:
            return fds
        for fd in fds:
            os.close(fd)
        version = message.version if isinstance(message, Returned) else "?"
        raise ProtocolError(
            f"it speaks version {version}, this mosd {WORKER_VERSION}: it goes on without mosd"
        )

    async def close(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
        await super().close()
