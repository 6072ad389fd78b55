"""A guest that is prepared and never run does not stay, whatever its deputy says or leaves out."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator

import pytest
from mosix.node.features import probe
from mosix.remote import main
from mosix.wire.channel import Frames, Packets
from mosix.wire.messages import Needs, Ping, Pong, Prepare, Refused, ToDeputy
from mosix.wire.mosd_messages import Welcome, WorkerToNode

SOON = 0.05


@contextlib.asynccontextmanager
async def remote() -> AsyncIterator[Frames[ToDeputy]]:
    """The deputy's connection to a remote, which has ended by itself at the end."""
    node, its_node = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deputy, its_deputy = socket.socketpair()
    running = asyncio.create_task(main.Remote(its_node).main())
    welcome = Welcome(
        job="0" * 16,
        uid=1,
        gid=1,
        pid=7,
        epoch=0,
        home="10.0.0.1",
        here="10.0.0.2",
        cgroup="",
        outer_uid=2,
        adoption="",
        features=probe(),
        memory_limit=1 << 30,
    )
    with node, its_deputy, deputy:
        await Packets[WorkerToNode](node, WorkerToNode).send(welcome, [its_deputy.fileno()])
        its_deputy.close()
        try:
            yield Frames(deputy, ToDeputy)
            await running
        finally:
            running.cancel()
            asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)


async def until_gone(deputy: Frames[ToDeputy]) -> None:
    """Meanwhile it is kept busy: it ends all the same."""
    with pytest.raises((EOFError, ConnectionError)):
        while True:
            await deputy.send(Ping(sent_ns=1))
            assert isinstance(await deputy.receive(), Pong)


async def test_it_ends_when_it_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main._UNUSED, "asked for", SOON)
    async with remote() as deputy:
        await until_gone(deputy)


async def test_it_ends_when_no_body_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main._UNUSED, "filled", SOON)
    async with remote() as deputy:
        await deputy.send(
            Prepare(
                pid=7,
                comm="x",
                epoch=1,
                needs=Needs(memory=1 << 45),
                pinged_ns=1,
                monotonic_ns=1,
                boottime_ns=1,
                date_ns=1,
                grace_s=60,
                features=probe(),
            )
        )
        assert isinstance(await deputy.receive(), Refused)
        await until_gone(deputy)
