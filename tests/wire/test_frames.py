"""Frames: whole messages whatever the pieces, and never a byte of the next one."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosix.errors import ProtocolError
from mosix.wire.channel import Frames
from mosix.wire.frames import FrameDecoder, frame
from mosix.wire.messages import Ping, ToRemote


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1), st.integers(1, 50))
def test_frames_come_out_as_they_went_in(messages: list[bytes], piece: int) -> None:
    stream = b"".join(frame(message, 1000) for message in messages)
    decoder, found, at = FrameDecoder(1000), [], 0
    while at < len(stream):
        size = min(piece, decoder.wanted)
        complete = decoder.feed(stream[at : at + size])
        at += size
        if complete is not None:
            found.append(complete)
    assert found == messages
    assert not decoder.begun


@given(st.binary(min_size=4, max_size=4))
def test_no_size_outside_the_limit_is_accepted(header: bytes) -> None:
    size = int.from_bytes(header, "little")
    decoder = FrameDecoder(100)
    if 0 < size <= 100:
        assert decoder.feed(header) is None
        assert decoder.wanted == size
    else:
        with pytest.raises(ProtocolError):
            decoder.feed(header)


@pytest.mark.parametrize("data", [b"", b"x" * 101])
def test_nothing_is_sent_that_the_other_side_refuses(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        frame(data, 100)


async def test_a_socket_can_be_handed_on_behind_a_message() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        await Frames[ToRemote](ours, ToRemote).send(Ping(sent_ns=1))
        ours.send(b"for somebody else")
        frames: Frames[ToRemote] = Frames(theirs, ToRemote)
        async with asyncio.timeout(5):
            assert await frames.receive() == Ping(sent_ns=1)
        assert theirs.recv(100) == b"for somebody else"
