"""Whose bodies can run where: the features of other nodes, asked for once by their digest.

A node tells a digest of its features with every load vector; who does not know it yet asks that
node. Used by `mosix.node.decider`. A node of which nothing is known is no target.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np
from mosix.balancer.eligibility import why_not
from mosix.balancer.vectors import VectorTable
from mosix.errors import MosixError
from mosix.wire.messages import NodeFeatures
from mosix.wire.mosd_messages import PeerStatus
from numpy.typing import NDArray

_log = logging.getLogger("mosd.decider")

#: More different machines than this are asked again.
_MOST = 4096


class Asks(Protocol):
    async def status(self, ip: str) -> PeerStatus:
        """Of that node. MosixError."""
        ...


def digest_of(features: NodeFeatures) -> int:
    """What stands for them in a load vector: 64 bits, never 0."""
    data = hashlib.blake2b(msgspec.msgpack.encode(features), digest_size=8).digest()
    return int.from_bytes(data, "little") or 1


class Book:
    """Features by digest."""

    def __init__(self, own: NodeFeatures, asks: Asks) -> None:
        self.own = digest_of(own)
        self._known = {self.own: own}
        self._asks = asks
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._verdicts: dict[tuple[int, int], bool] = {}

    def mask(self, home: int, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """For each of these digests, whether bodies of a home with digest `home` can run there."""
        kinds, which = np.unique(digests, return_inverse=True)
        verdicts = np.array([self._can(home, int(kind)) for kind in kinds], np.bool_)
        found: NDArray[np.bool_] = verdicts[which]
        return found

    def _can(self, home: int, target: int) -> bool:
        if home == target:
            return home != 0
        verdict = self._verdicts.get((home, target))
        if verdict is None:
            ours, theirs = self._known.get(home), self._known.get(target)
            if ours is None or theirs is None:
                return False
            verdict = self._verdicts[home, target] = why_not(ours, theirs) is None
        return verdict

    def learn(self, table: VectorTable, ip: Callable[[int], str]) -> None:
        """Asks nodes whose digest is new, each once at a time. `ip`: of a node, by its index."""
        new = {int(kind) for kind in np.unique(table.features)} - self._known.keys() - {0}
        for digest in new - self._asking.keys():
            for index in np.flatnonzero(table.features == digest):
                if table.alive()[index]:
                    task = asyncio.create_task(self._ask(digest, ip(int(index))))
                    self._asking[digest] = task
                    break

    async def _ask(self, digest: int, ip: str) -> None:
        try:
            features = (await self._asks.status(ip)).features
            if len(self._known) < _MOST:
                self._known[digest_of(features)] = features
        except (MosixError, OSError) as error:
            _log.info("features of %s: %s", ip, error)
        finally:
            del self._asking[digest]

    def close(self) -> None:
        for task in self._asking.values():
            task.cancel()
