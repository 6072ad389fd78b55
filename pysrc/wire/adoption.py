"""How a worker gets back to its mosd: the one that started it has died, another runs.

mosd listens at a socket in its run directory, which only root can have put there; it knows its
workers by the PID that the kernel tells, against what its predecessor has recorded
(`mosix.node.records`). A worker tries until it is over. Used by deputies, remotes and the spawner;
nothing here may cost anything while mosd lives.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

from mosix.wire.channel import Packets
from mosix.wire.mosd_messages import WORKER_VERSION, NodeToWorker, Returned

#: How often a worker tries, in seconds.
PAUSE_S = 1.0


def try_to_return(path: str, fds: Sequence[int] = ()) -> socket.socket | None:
    """A socket to the mosd that listens at `path`, on which it was told (`fds` ride along), or
    None: there is none. Never blocks."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    packets: Packets[NodeToWorker] = Packets(sock, NodeToWorker)
    try:
        sock.connect(path)
        packets.send_now(Returned(version=WORKER_VERSION), fds)
    except OSError:
        sock.close()
        return None
    return sock


async def returned(path: str, fds: Sequence[int] = ()) -> socket.socket:
    """The same, as soon as there is one."""
    while True:
        await asyncio.sleep(PAUSE_S)
        sock = try_to_return(path, fds)
        if sock is not None:
            return sock


def path_in(run_dir: str | os.PathLike[str]) -> str:
    """Where mosd listens."""
    return os.path.join(run_dir, "workers")
