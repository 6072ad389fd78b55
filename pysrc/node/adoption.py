"""Workers of a mosd that died come back to this one, here.

`Adoption` listens in the run directory. Anybody may connect; who it is says the kernel, and only a
recorded deputy or remote is taken. What it then says is checked as from any worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from mosix.errors import ProtocolError
from mosix.node.spawning import Worker
from mosix.wire.channel import Packets
from mosix.wire.messages import Returned, WorkerToNode

_log = logging.getLogger("mosd.adoption")

_FIRST_WORD_S = 5.0
_MAX_SILENT = 4096
_UCRED = struct.Struct("3i")

#: Takes the worker if it is one of its own, with the descriptors that came along, which become its
#: to close.
Take = Callable[[Worker, list[int]], bool]


class Adoption:
    """The socket. `takers`: who may know a worker."""

    def __init__(self, path: Path, takers: tuple[Take, ...]) -> None:
        self._path = path
        self._takers = takers
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    @classmethod
    def listening(cls, path: Path, takers: tuple[Take, ...]) -> Adoption:
        """OSError."""
        adoption = cls(path, takers)
        adoption._listen()
        return adoption

    def _listen(self) -> None:
        """The caller holds the lock of the run directory, so what lies there is a dead one's."""
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.bind(str(self._path))
        self._path.chmod(0o666)
        sock.listen(256)
        sock.setblocking(False)
        self._listener = sock

    async def serve(self) -> None:
        """Accepts until cancelled."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(_FIRST_WORD_S)  # no descriptors: they try again
                continue
            if len(self._tasks) >= _MAX_SILENT:
                sock.close()
                continue
            task = asyncio.create_task(self._returned(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _returned(self, sock: socket.socket) -> None:
        packets: Packets[WorkerToNode] = Packets(sock, WorkerToNode)
        fds: list[int] = []
        pidfd = -1
        try:
            pid, _, _ = _UCRED.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            )
            # Before its word: a process that has sent it lives, and so has this PID.
            pidfd = os.pidfd_open(pid)
            async with asyncio.timeout(_FIRST_WORD_S):
                message, fds = await packets.receive()
            worker = Worker(pid, pidfd, sock)
            if isinstance(message, Returned) and any(take(worker, fds) for take in self._takers):
                return
        except (OSError, EOFError, TimeoutError, ProtocolError) as error:
            _log.debug("somebody did not come back: %s", error)
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
