"""The link to another node is measured, whatever the other side does."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from mosix.config.nodemap import parse_map
from mosix.config.paths import Paths
from mosix.config.tuning import BUILT_IN
from mosix.errors import ConfigError, NodeDownError
from mosix.node.measuring import measure, serve
from mosix.node.tuned import Tuned

NODES = parse_map("1 10.0.0.1 9\n")


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


async def test_a_link_has_a_latency_and_a_speed() -> None:
    ours, theirs = pair()
    with theirs:
        serving = asyncio.create_task(serve(theirs))
        with ours:
            turn_ns, mb_s = await measure(ours)
        await serving
    assert turn_ns > 0
    assert mb_s > 1


async def test_a_peer_that_leaves_is_down() -> None:
    ours, theirs = pair()
    theirs.close()
    with ours, pytest.raises(NodeDownError):
        await measure(ours)


@pytest.mark.parametrize("said", [b"\xff\xff\xff\xff", b"\x01"])
async def test_who_asks_for_too_much_is_left(said: bytes) -> None:
    ours, theirs = pair()
    with ours, theirs:
        ours.send(said)
        ours.shutdown(socket.SHUT_WR)
        try:
            await serve(theirs)
        except EOFError:
            assert said == b"\x01"


def test_a_changed_file_is_taken_up_and_a_bad_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mostune"
    tuned = Tuned(Paths(tmp_path), lambda: NODES)
    assert tuned.others == BUILT_IN
    file.write_text("10.0.0.2 500 1 1 1\n* 70 1 1 1\n")
    tuned.look()
    nodes = np.array([(10 << 24) + 1, (10 << 24) + 2], np.uint32)
    assert tuned.call_s(nodes) == pytest.approx([70e-6, 500e-6])
    file.write_text("nonsense\n")
    os.utime(file, ns=(1, 1))
    tuned.look()
    assert tuned.others.call_us == 70
    assert "line 1" in caplog.text
    with pytest.raises(ConfigError):
        Tuned(Paths(tmp_path), lambda: NODES)
    file.unlink()
    tuned.look()
    assert tuned.others == BUILT_IN
