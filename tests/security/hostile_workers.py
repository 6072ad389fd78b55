"""Deputies and remotes that are not what mosd takes them for; named on its command line."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from mosix.deputy import main as deputy
from mosix.deputy.link import RemoteLink
from mosix.native.listener import Listener
from mosix.remote import main as remote
from mosix.wire.attributes import JobAttributes
from mosix.wire.channel import Packets
from mosix.wire.lasting import Lasting
from mosix.wire.messages import Ask, Attributes, Freeze, Tagged, encode
from mosix.wire.mosd_messages import (
    Dial,
    Forsaken,
    Launch,
    MapIds,
    Name,
    NodeToWorker,
    ProcessState,
    Started,
    Welcome,
    WorkerToNode,
)

_served: list[Listener] = []


def _sent(sock: socket.socket, message: WorkerToNode) -> None:
    while True:
        try:
            sock.send(encode(message))
            return
        except BlockingIOError:
            select.select((), (sock,), ())


def _until_over(sock: socket.socket, pidfd: int) -> None:
    """Hears everything and does nothing, until mosd or the job is gone."""
    while True:
        ready, _, _ = select.select((sock, pidfd), (), ())
        if pidfd in ready:
            return
        try:
            if not sock.recv(1 << 18):
                return
        except BlockingIOError:
            continue


def _nonsense(pid: int) -> Iterator[WorkerToNode]:
    """As a user's own deputy could say it: dials to nodes that do not answer, guests to be
    dropped, names, and processes that are others'."""
    for n in itertools.count():
        yield Dial(request=n, ip="127.0.0.9", purposes=("call",), pid=pid, epoch=1, token=bytes(16))
        yield Forsaken(ip="127.0.0.9", pid=1 + n % 4_000_000, token=bytes(16))
        yield Name(request=n, node="127.0.0.9")
        yield ProcessState(pid=1 + n % 30_000, where="home", nmigs=0, why="x" * 1900, epoch=0)


def _begun(sock: socket.socket) -> tuple[Launch, int]:
    """Order and the job's pidfd."""
    node: Packets[NodeToWorker] = Packets(sock, NodeToWorker)
    select.select([sock], [], [])
    launch, fds = node.receive_now()
    assert isinstance(launch, Launch)
    pidfd, _, *listening = fds
    if listening:  # else the job would stand still in its first open
        _served.append(Listener(*listening))
    _sent(sock, Started())
    return launch, pidfd


def flooding_deputy(sock: socket.socket) -> None:
    """Thousands of messages, then nothing: says so when mosd has heard all of them."""
    launch, pidfd = _begun(sock)

    def flood() -> None:
        for message in itertools.islice(_nonsense(launch.pid), 8000):
            _sent(sock, message)
        _sent(sock, ProcessState(pid=launch.pid, where="home", nmigs=7, why="said", epoch=0))

    threading.Thread(target=flood, daemon=True).start()
    _until_over(sock, pidfd)


def deputy_of_others(sock: socket.socket) -> None:
    """Wants a process mapped, which only a remote may."""
    launch, pidfd = _begun(sock)
    _sent(sock, MapIds(carrier=launch.pid))
    _until_over(sock, pidfd)


def remote_of_others(sock: socket.socket) -> None:
    """Wants to make guests, where only the image may go on."""
    node: Packets[NodeToWorker] = Packets(sock, NodeToWorker)
    select.select([sock], [], [])
    welcome, fds = node.receive_now()
    assert isinstance(welcome, Welcome)
    _sent(sock, Dial(request=1, ip=welcome.home, purposes=("guest",), pid=welcome.pid, epoch=1))
    _until_over(sock, fds[0])


# ---- real ones, that say too much as soon as the guest runs ----

#: What mosd and the other side cannot have read at once.
FLOOD = 20_000
_BUSY = 500
#: From now on a worker of this node is hostile.
SAY = Path(os.environ.get("MOSIX_RUN_DIR", "")).parent / "say"
log = logging.getLogger("mosix.hostile")


async def _say_all(lasting: Lasting[object] | None, messages: Iterator[msgspec.Struct]) -> None:
    """When `SAY` is there, as fast as the other side takes note; mosd's log says when it has heard
    everything."""
    assert lasting is not None
    while not SAY.exists():
        await asyncio.sleep(0.01)
    for message in messages:
        lasting.say(message)
        while len(lasting._kept) > _BUSY:
            await asyncio.sleep(0)
    while len(lasting._kept) > 16:  # nobody says that he has heard fewer
        await asyncio.sleep(0.01)
    log.warning("everything was said")


def _remote(messages: Callable[[], Iterator[msgspec.Struct]]) -> Callable[[socket.socket], None]:
    class Saying(remote.Remote):
        async def _count(self) -> None:
            await _say_all(self._control, messages())
            await super()._count()

    def run(sock: socket.socket) -> None:
        asyncio.run(Saying(sock).main())

    return run


def _deputy(messages: Callable[[], Iterator[msgspec.Struct]]) -> Callable[[socket.socket], None]:
    class Saying(RemoteLink):
        def adopt(self) -> None:
            super().adopt()
            self._tasks.append(asyncio.create_task(_say_all(self._lasting, messages())))

    def run(sock: socket.socket) -> None:
        deputy.moves.RemoteLink = Saying
        deputy.run(sock)

    return run


class Babble(Tagged, frozen=True):
    """No message that anybody knows."""


def _questions() -> Iterator[msgspec.Struct]:
    """Each of them changes something, of which home's mosd is told."""
    for n in range(FLOOD):
        yield Ask(name="lock", flags=os.O_WRONLY | os.O_CREAT, value=n & 1)


asking_remote = _remote(_questions)
babbling_remote = _remote(lambda: iter([Babble()]))
changing_deputy = _deputy(
    lambda: (Attributes(attributes=JobAttributes(lock=n & 1)) for n in range(FLOOD))
)
freezing_deputy = _deputy(lambda: iter([Freeze(epoch=77)] * 1000))
