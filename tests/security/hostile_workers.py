"""Deputies and remotes that are not what mosd takes them for; named on its command line."""

from __future__ import annotations

import itertools
import select
import socket
import threading
from collections.abc import Iterator

from mosix.native.listener import Listener
from mosix.wire.channel import Packets
from mosix.wire.messages import encode
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
