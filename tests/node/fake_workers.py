"""A deputy and a remote that only speak: what mosd cannot tell from the real ones.

The deputy "moves" a process by dialling guest, call and bulk at the target and exchanging one
Ping on the control connection. The remote's "guest" is a child in a user namespace of its own,
mapped by mosd. What they do depends on nothing but their orders.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket

from mosix.errors import MosixError
from mosix.native.listener import Listener
from mosix.wire.channel import Frames, Packets
from mosix.wire.messages import Drop, Ping, Pong, ToDeputy, ToRemote
from mosix.wire.mosd_messages import (
    Attach,
    ComeHome,
    Dial,
    Dialed,
    GuestState,
    Launch,
    Leave,
    MapIds,
    Mapped,
    Move,
    Moved,
    NodeToWorker,
    ProcessState,
    Started,
    Welcome,
)

PURPOSES = ("guest", "call", "bulk")


def deputy(sock: socket.socket) -> None:
    asyncio.run(_Deputy(sock).main())


def remote(sock: socket.socket) -> None:
    asyncio.run(_Remote(sock).main())


def broken(sock: socket.socket) -> None:
    """Dies at once, with a traceback in mosd's log."""
    raise MosixError("this deputy is broken")


def silent(sock: socket.socket) -> None:
    """Never says that it is ready."""
    while sock.recv(1 << 16):
        pass


class _Deputy:
    def __init__(self, sock: socket.socket) -> None:
        self.node: Packets[NodeToWorker] = Packets(sock, NodeToWorker)
        self.controls: dict[int, Frames[ToDeputy]] = {}
        self.epochs: dict[int, int] = {}
        self.request = 0

    async def main(self) -> None:
        launch, fds = await self.node.receive()
        assert isinstance(launch, Launch)
        pidfd, stderr, *listening = fds
        os.fstat(stderr)
        if listening:
            self.listener = Listener(*listening)
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        await self.node.send(Started())
        await self.tell(launch.pid, "home", f"node={launch.node} lock={launch.attributes.lock}")
        obeying = asyncio.create_task(self.obey())
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait({obeying, waiting}, return_when=asyncio.FIRST_COMPLETED)
        await self.home_all()

    async def tell(self, pid: int, where: str, why: str) -> None:
        epoch = self.epochs.get(pid, 0)
        await self.node.send(ProcessState(pid=pid, where=where, nmigs=epoch, why=why, epoch=epoch))

    async def obey(self) -> None:
        with contextlib.suppress(EOFError):
            while True:
                order, _ = await self.node.receive()
                if isinstance(order, Move):
                    await self.move(order)
                elif isinstance(order, ComeHome):
                    await self.home_all()
                    await self.node.send(Moved(request=order.request, pid=0))

    async def move(self, order: Move) -> None:
        if order.target is None:
            await self.home(order.pid)
            await self.node.send(Moved(request=order.request, pid=order.pid))
            return
        self.request += 1
        epoch = self.epochs.get(order.pid, 0) + 1
        await self.node.send(
            Dial(
                request=self.request,
                ip=order.target,
                purposes=PURPOSES,
                pid=order.pid,
                epoch=epoch,
            )
        )
        answer, fds = await self.node.receive()
        assert isinstance(answer, Dialed)
        if answer.error:
            await self.tell(order.pid, "home", answer.error)
            await self.node.send(
                Moved(
                    request=order.request,
                    pid=order.pid,
                    error=answer.error,
                    code=answer.code,
                    hint=answer.hint,
                )
            )
            return
        assert len(fds) == len(PURPOSES)
        sockets = [socket.socket(fileno=fd) for fd in fds]
        control: Frames[ToDeputy] = Frames(sockets[0], ToDeputy)
        try:
            for name, sock in zip(PURPOSES[1:], sockets[1:], strict=True):
                with sock:
                    sock.setblocking(True)
                    # The remote got the right ones.
                    if sock.recv(4) != name.encode():
                        raise EOFError
            await control.send(Ping(sent_ns=7))
            assert await control.receive() == Pong(sent_ns=7)
        except (EOFError, OSError):
            await self.tell(order.pid, "home", "the remote is gone")
            await self.node.send(
                Moved(request=order.request, pid=order.pid, error="the remote is gone", code=10)
            )
            return
        self.controls[order.pid] = control
        self.epochs[order.pid] = epoch
        await self.tell(order.pid, order.target, "ordered")
        await self.node.send(
            Moved(request=order.request, pid=order.pid, freeze_ns=1_500_000, page_bytes=2 << 20)
        )

    async def home(self, pid: int) -> None:
        control = self.controls.pop(pid, None)
        if control is not None:
            await control.send(Drop())
            control.close()
            self.epochs[pid] += 1
            await self.tell(pid, "home", "ordered")

    async def home_all(self) -> None:
        for pid in list(self.controls):
            with contextlib.suppress(OSError):
                await self.home(pid)


def _make_guest() -> int:
    """A child that sleeps in a new user namespace; it dies with its cgroup, and with us: it holds
    copies of our sockets, and whoever waits at their other end must learn that we are gone."""
    remote = os.getpid()
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x10000000) == 0  # CLONE_NEWUSER
        libc.prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG, which new credentials clear
        assert os.getppid() == remote
        os.write(tell, b"x")
        while True:
            signal.pause()
    assert os.read(ready, 1) == b"x"
    return pid


class _Remote:
    def __init__(self, sock: socket.socket) -> None:
        self.node: Packets[NodeToWorker] = Packets(sock, NodeToWorker)

    async def main(self) -> None:
        welcome, fds = await self.node.receive()
        assert isinstance(welcome, Welcome)
        control: Frames[ToRemote] = Frames(socket.socket(fileno=fds[0]), ToRemote)
        guest = _make_guest()
        for error in ("", "the ids of this guest are mapped already"):
            await self.node.send(MapIds(carrier=guest))
            assert await self.other_than_attach() == Mapped(error=error)
        with open(f"/proc/{guest}/uid_map") as file:
            assert file.read().split() == [str(welcome.uid), str(welcome.outer_uid), "1"]
        await self.node.send(GuestState(outer_pid=guest, pid=welcome.pid))
        parts = {asyncio.create_task(self.obey()), asyncio.create_task(self.serve(control))}
        await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)

    async def other_than_attach(self) -> NodeToWorker:
        """The next message that is not an Attach: these come whenever they like."""
        while True:
            message, fds = await self.node.receive()
            if not isinstance(message, Attach):
                return message
            with socket.socket(fileno=fds[0]) as sock:
                sock.send(message.purpose.encode())

    async def obey(self) -> None:
        with contextlib.suppress(EOFError):
            while not isinstance(await self.other_than_attach(), Leave):
                pass

    async def serve(self, control: Frames[ToRemote]) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = await control.receive()
                if isinstance(message, Ping):
                    await control.send(Pong(sent_ns=message.sent_ns))
                elif isinstance(message, Drop):
                    return
