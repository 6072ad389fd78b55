"""What mosd's listening sockets have in common: how connections are accepted and complained of.

Used by the control socket, the peer port and the socket for workers that come back. Who may
connect and what is said then is theirs.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import logging
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

_log = logging.getLogger("mosd.peers")

_PAUSE_S = 0.2
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Complaints:
    """Counts everything, logs each kind once per peer and minute, and of all peers together no
    more than `_MAX_LINES` in a minute: addresses may be invented. Memory is bounded."""

    _PERIOD_S = 60.0
    _MAX_PEERS = 1024
    _MAX_LINES = 300

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: collections.OrderedDict[tuple[str, str], float] = collections.OrderedDict()
        self.counters: collections.Counter[str] = collections.Counter()
        self._since = clock()
        self._lines = 0

    def note(self, kind: str, peer: str, message: str) -> None:
        self.counters[kind] += 1
        self.say(kind, peer, message)

    def say(self, kind: str, peer: str, message: str) -> None:
        """As `note`, for what is counted elsewhere."""
        now = self._clock()
        key = (kind, peer)
        last = self._last.get(key)
        if last is not None and now - last < self._PERIOD_S:
            return
        self._last[key] = now
        self._last.move_to_end(key)
        while len(self._last) > self._MAX_PEERS:
            self._last.popitem(last=False)
        if now - self._since >= self._PERIOD_S:
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines <= self._MAX_LINES:
            _log.warning("%s: %s: %s", peer, kind, message)
        elif self._lines == self._MAX_LINES + 1:
            _log.warning("so many complaints in a minute that the rest is only counted")


class Budget:
    """Bytes that connections hold in this process: of one user, and of all. Root's count, and
    are never refused."""

    def __init__(self, of_one: int, of_all: int) -> None:
        self._of_one = of_one
        self._of_all = of_all
        self._held: collections.Counter[int] = collections.Counter()

    @contextlib.contextmanager
    def holding(self, uid: int, size: int) -> Iterator[bool]:
        """Whether `size` more may be held inside the block. Who holds nothing may hold one thing
        of any size, as long as that of all lasts."""
        mine = self._held[uid]
        allowed = not uid or (
            (not mine or mine + size <= self._of_one) and self._held.total() + size <= self._of_all
        )
        if allowed:
            self._held[uid] += size
        try:
            yield allowed
        finally:
            if allowed:
                self._held[uid] -= size
            if not self._held[uid]:
                del self._held[uid]


def listen_at(path: Path, kind: int) -> socket.socket:
    """A unix socket that anybody may connect to. The caller holds the lock of the run directory,
    so what lies there is a dead one's. OSError."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    path.chmod(0o666)
    sock.listen(256)
    sock.setblocking(False)
    return sock


async def accepted(
    listener: socket.socket, complaints: Complaints
) -> AsyncIterator[tuple[socket.socket, Any]]:
    """Connections and where they come from, until cancelled; without descriptors it waits."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            yield await loop.sock_accept(listener)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                continue  # that connection was cut before it was accepted
            complaints.note("no descriptors", "this node", str(error))
            await asyncio.sleep(_PAUSE_S)


class Server(ABC):
    """A listening socket, and a task for each connection that is let in."""

    def __init__(self, complaints: Complaints) -> None:
        self._complaints = complaints
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    async def serve(self) -> None:
        """Accepts until cancelled. `listen` of the class comes first."""
        assert self._listener is not None
        async for sock, address in accepted(self._listener, self._complaints):
            # What it counts is true for the next one: accept does not yield while connections
            # wait, so no task has run yet.
            conversation = self._admit(sock, address)
            if conversation is None:
                sock.close()
                continue
            task = asyncio.create_task(conversation)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @abstractmethod
    def _admit(self, sock: socket.socket, address: Any) -> Coroutine[Any, Any, None] | None:
        """What is said on the connection, which closes it then; None: nothing, it is closed."""

    async def close(self) -> None:
        """No new connections; those under way are cut."""
        if self._listener is not None:
            self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
