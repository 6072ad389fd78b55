"""What a remote says is never lost, whenever it comes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from mosix.deputy.link import RemoteLink, Unasked
from mosix.errors import NodeDownError
from mosix.wire.frames import frame
from mosix.wire.messages import AskDate, Cancel, Failed, NeedHome, Running, ToDeputy, encode


class Owner:
    """A link, the remote's end of it, and what was told."""

    def __init__(self) -> None:
        ours, self.remote = socket.socketpair()
        self.told: list[Unasked] = []
        self.link = RemoteLink("10.0.0.2", bytes(16), ours, self.on_unasked, self.on_down)

    def on_unasked(self, link: RemoteLink, message: Unasked) -> None:
        assert link is self.link
        self.told.append(message)

    def on_down(self, link: RemoteLink) -> None:
        raise AssertionError("no guest runs there, so nothing is to be connected again")

    def say(self, *messages: ToDeputy) -> None:
        """All at once, as they come when the deputy had to wait for a processor."""
        self.remote.sendall(b"".join(frame(encode(message), 1 << 16) for message in messages))


@pytest.fixture
async def owner() -> AsyncIterator[Owner]:
    owner = Owner()
    yield owner
    await owner.link.close()
    owner.remote.close()


async def test_what_a_guest_says_before_it_is_known_to_run_is_told_afterwards(
    owner: Owner,
) -> None:
    home, cancel = NeedHome(reason="waits", nr=130), Cancel(id=1)
    owner.say(home, Running(epoch=3), cancel)
    assert await owner.link.expect(Running, 3) == Running(epoch=3)
    assert owner.told == []
    owner.link.adopt()
    owner.say(Cancel(id=2), Running(epoch=4))
    await owner.link.expect(Running, 4)
    assert owner.told == [home, cancel, Cancel(id=2)]


async def test_an_answer_of_another_epoch_is_none(owner: Owner) -> None:
    owner.say(Running(epoch=1), Running(epoch=2))
    assert await owner.link.expect(Running, 2) == Running(epoch=2)


async def test_a_remote_that_floods_is_given_up(owner: Owner) -> None:
    owner.say(*[Cancel(id=number) for number in range(100)])
    with pytest.raises(NodeDownError):
        await asyncio.wait_for(owner.link.expect(Running, 1), 5)
    assert owner.link.lost


async def test_a_remote_that_asks_and_does_not_hear_is_given_up(owner: Owner) -> None:
    """Its node could fill home's memory with the answers."""
    asking = frame(encode(AskDate(asked_ns=1)), 1 << 16) * 1000

    def ask() -> None:
        with contextlib.suppress(OSError):
            while True:
                owner.remote.sendall(asking)

    asked = asyncio.create_task(asyncio.to_thread(ask))
    with pytest.raises(NodeDownError, match=r"10\.0\.0\.2 broke the rules .* does not hear"):
        await asyncio.wait_for(owner.link.expect(Running, 1, timeout=None), 60)
    assert owner.link.lost
    await owner.link.close()
    owner.remote.shutdown(socket.SHUT_RDWR)
    await asked


async def test_what_nobody_asked_for_is_forgotten(owner: Owner) -> None:
    """It was about moves that were given up, or means no good."""
    owner.say(*[Failed(epoch=77, reason="so") for _ in range(1000)], Running(epoch=2))
    owner.say(Running(epoch=1))
    assert await owner.link.expect(Running, 1) == Running(epoch=1)
    assert await owner.link.expect(Running, 2) == Running(epoch=2)
    assert len(owner.link._arrived) < 20


async def test_others_have_their_turn_while_a_remote_floods(owner: Owner) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    owner.link.adopt()
    taking = asyncio.create_task(take_turns())
    owner.say(*[Cancel(id=number) for number in range(2000)], Running(epoch=1))
    await owner.link.expect(Running, 1)
    assert len(owner.told) == 2000
    assert turns > 50
    taking.cancel()
