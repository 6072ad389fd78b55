"""What mosd lets a command say while it works for it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest
from mosix.node.control import Client
from mosix.node.requests import PREPARE, LaunchAnswer
from mosix.wire.messages import decode


@pytest.fixture
def mosrun() -> Iterator[tuple[socket.socket, Client]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, Client(theirs, -1)


async def _begin_to_prepare(mosrun: socket.socket, client: Client) -> asyncio.Task[int]:
    """`client` is asked to join; the order has arrived with its descriptor."""
    directory = os.open("/", os.O_PATH | os.O_DIRECTORY)
    preparing = asyncio.create_task(client.prepare(directory, interface=False))
    await asyncio.sleep(0)
    os.close(directory)
    data, (passed,), _, _ = socket.recv_fds(mosrun, 1 << 16, 1)
    assert decode(data[4:], LaunchAnswer).what == PREPARE
    assert os.path.samestat(os.stat(passed), os.stat("/"))
    os.close(passed)
    return preparing


async def test_one_byte_says_that_it_has_tried_to_join(
    mosrun: tuple[socket.socket, Client],
) -> None:
    command, client = mosrun
    watching = asyncio.create_task(client.until_gone())
    preparing = await _begin_to_prepare(command, client)
    assert not preparing.done()
    command.send(b"x")
    assert await preparing == -1
    assert not watching.done()
    command.send(b"x")  # nobody has asked for this
    await watching


async def test_the_listener_of_its_filter_comes_with_the_byte(
    mosrun: tuple[socket.socket, Client],
) -> None:
    command, client = mosrun
    watching = asyncio.create_task(client.until_gone())
    preparing = asyncio.create_task(client.prepare(-1, interface=True))
    await asyncio.sleep(0)
    data, none, _, _ = socket.recv_fds(command, 1 << 16, 1)
    assert (decode(data[4:], LaunchAnswer), none) == (LaunchAnswer(PREPARE, 1), [])
    null = os.open(os.devnull, os.O_RDONLY)
    socket.send_fds(command, [b"x"], [null])
    listener = await preparing
    assert os.path.samestat(os.fstat(listener), os.fstat(null))
    assert not os.get_inheritable(listener)
    for fd in (listener, null):
        os.close(fd)
    command.close()
    await watching


async def test_it_may_say_so_when_nobody_waits_any_more(
    mosrun: tuple[socket.socket, Client],
) -> None:
    command, client = mosrun
    watching = asyncio.create_task(client.until_gone())
    preparing = await _begin_to_prepare(command, client)
    preparing.cancel()
    await asyncio.gather(preparing, return_exceptions=True)
    command.send(b"x")
    for _ in range(5):  # rounds of the loop, each of which looks at the socket
        await asyncio.sleep(0)
    assert not watching.done()
    command.close()
    await watching


async def test_what_nobody_asked_for_ends_the_request(
    mosrun: tuple[socket.socket, Client],
) -> None:
    command, client = mosrun
    command.send(b"x")
    await client.until_gone()
