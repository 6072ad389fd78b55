"""Who comes back to mosd as a worker of the one before."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mosix.node import adoption
from mosix.node.adoption import Adoption
from mosix.node.listening import Complaints
from mosix.node.records import Identity
from mosix.node.spawning import Worker
from mosix.wire.messages import encode
from mosix.wire.mosd_messages import WORKER_VERSION, Returned


class Keeper:
    """Waits for `expected`, and takes it."""

    def __init__(self, expected: Identity | None) -> None:
        self.expected = expected
        self.taken: asyncio.Queue[Worker] = asyncio.Queue()

    def expects(self, worker: Identity) -> bool:
        return worker == self.expected

    def take_back(self, worker: Worker, fds: list[int]) -> bool:
        assert not fds
        self.taken.put_nowait(worker)
        return True


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "_FIRST_WORD_S", 1e6)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[tuple[Path, Keeper]]:
    keeper = Keeper(None)
    served = Adoption(tmp_path / "workers", (keeper,), Complaints())
    served.listen()
    serving = asyncio.create_task(served.serve())
    yield tmp_path / "workers", keeper
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await served.close()


async def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, str(path))
    return sock


async def test_who_is_not_waited_for_cannot_keep_a_connection(
    workers: tuple[Path, Keeper],
) -> None:
    """However long a worker may take for its first word: connections are descriptors of mosd."""
    with await connected(workers[0]) as sock:
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1), 20) == b""


async def test_who_is_waited_for_is_taken_when_it_has_said_so(
    workers: tuple[Path, Keeper],
) -> None:
    path, keeper = workers
    keeper.expected = Identity.of(os.getpid())
    with await connected(path) as sock:
        await asyncio.get_running_loop().sock_sendall(
            sock, encode(Returned(version=WORKER_VERSION))
        )
        worker = await keeper.taken.get()
        assert worker.pid == os.getpid()
        os.close(worker.pidfd)
        worker.sock.close()
