"""A network of gossiping nodes in simulated time: for the tests and for the figures of bench.

Every node ticks once a period at its own phase; datagrams take a moment, may be lost, and pass
only between nodes of the same side of a partition. Deterministic for a seed. Never sleeps.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from mosix.balancer.gossip import (
    Datagram,
    Gossip,
    Rules,
    expected_oldest_periods,
)
from mosix.balancer.vectors import Status, pack_loads

SECRET = b"secret of a simulation"
_FIRST = 10 << 24 | 1
_WALL_MS = 1_700_000_000_000


class Network:
    """`n` nodes with indices 0…n-1. `loss`: part of the datagrams that vanish. `delay_s`: mean."""

    def __init__(
        self, n: int, rules: Rules, *, seed: int = 1, loss: float = 0.0, delay_s: float = 0.0005
    ) -> None:
        self.rules = rules
        self.loss, self.delay_s = loss, delay_s
        self.now = 0.0
        self.random = random.Random(seed)
        self.addresses = [_FIRST + k for k in range(n)]
        #: local monotonic clock minus the network's time; wall clocks likewise
        self.skew_s = [self.random.uniform(0, 1e6) for _ in range(n)]
        self.wall_skew_ms = [0] * n
        self.side = [0] * n
        self.datagrams = 0
        self.bytes = 0
        #: sees every datagram that is sent; what it returns is sent in its place
        self.wire: Callable[[int, Datagram], Iterable[Datagram]] = lambda _, datagram: [datagram]
        self.nodes: list[Gossip | None] = [None] * n
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._life = [0] * n
        for index in range(n):
            self.start(index)

    def start(self, index: int) -> None:
        """(Re)start a node: it knows nothing."""
        self._life[index] += 1
        node = Gossip(
            self.addresses[index],
            self.addresses,
            SECRET,
            self.rules,
            wall_ms=int(_WALL_MS + self.now * 1e3) + self.wall_skew_ms[index],
            seed=self.random.getrandbits(32),
        )
        node.set_own(pack_loads(running=index, cores=1, memory_mb=1024), self.local(index))
        self.nodes[index] = node
        phase = self.random.random() * self.rules.period_s
        self.at(self.now + phase, self._ticker(index, self._life[index]))

    def stop(self, index: int) -> None:
        """As with kill -9 or a cut cable."""
        self._life[index] += 1
        self.nodes[index] = None

    def node(self, index: int) -> Gossip:
        node = self.nodes[index]
        assert node is not None
        return node

    def running(self) -> list[int]:
        return [index for index, node in enumerate(self.nodes) if node is not None]

    def local(self, index: int) -> float:
        return self.now + self.skew_s[index]

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))

    def run(self, periods: float) -> None:
        end = self.now + periods * self.rules.period_s
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.now = end

    def send(self, source: int, datagrams: Iterable[Datagram]) -> None:
        for original in datagrams:
            for datagram in self.wire(source, original):
                self.datagrams += 1
                self.bytes += len(datagram.data)
                if self.loss and self.random.random() < self.loss:
                    continue
                delay = self.random.expovariate(1 / self.delay_s) if self.delay_s else 0.0
                self.at(self.now + delay, self._delivery(source, datagram))

    def deliver(self, source: int, datagram: Datagram) -> None:
        """Right now, if it can pass."""
        target = datagram.to - _FIRST
        node = self.nodes[target]
        if node is not None and self.side[source] == self.side[target]:
            answers = node.receive(self.local(target), self.addresses[source], datagram.data)
            self.send(target, answers)

    def believes(self, index: int, about: int) -> Status:
        return Status(int(self.node(index).table.status[about]))

    def ages(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Row: who knows; column: whom. In periods, of nodes that run, own ages 0."""
        rows = self.running()
        found = np.array([self.node(k).table.ages(self.local(k))[rows] for k in rows])
        np.fill_diagonal(found, 0)
        return found / self.rules.period_s

    def _ticker(self, index: int, life: int) -> Callable[[], None]:
        def tick() -> None:
            node = self.nodes[index]
            if self._life[index] == life and node is not None:
                self.send(index, node.tick(self.local(index)))
                self.at(self.now + self.rules.period_s, tick)

        return tick

    def _delivery(self, source: int, datagram: Datagram) -> Callable[[], None]:
        return lambda: self.deliver(source, datagram)


def measure_ages(
    n: int, rules: Rules, *, seed: int = 1, loss: float = 0.0, samples: int = 40
) -> tuple[float, float]:
    """Mean age of the entries of all vectors, and mean over vectors of the oldest, in periods,
    once the cluster is in its steady state. Everything as it is, on the wire too."""
    network = Network(n, replace(rules, probing=False), seed=seed, loss=loss)
    network.run(_warm_periods(n, rules.window))
    means, oldest = [], []
    for _ in range(samples):
        network.run(1 + network.random.random())
        ages = network.ages()
        means.append(ages.sum() / (n * (n - 1)))
        oldest.append(ages.max(axis=1).mean())
    return float(np.mean(means)), float(np.mean(oldest))


def measure_spreading(
    n: int, window: int, *, seed: int = 1, samples: int = 40
) -> tuple[float, float]:
    """As `measure_ages` in push mode, without sealing and splitting into datagrams, so that
    thousands of nodes can be simulated: windows and merging are those of the real nodes."""
    chance = random.Random(seed)
    addresses = [_FIRST + k for k in range(n)]
    rules = Rules(window, probing=False)
    nodes = [Gossip(a, addresses, SECRET, rules, wall_ms=_WALL_MS, seed=1) for a in addresses]
    for node in nodes:
        for k in range(n):  # all are known; how old the news are is forgotten soon
            node.table.version[k], node.table.born[k] = 1, 0.0
    phases = sorted((chance.random(), k) for k in range(n))
    warm = round(_warm_periods(n, window))
    means, oldest = [], []
    for period in range(warm + samples):
        sample = chance.random() if period >= warm else 2.0
        for phase, k in [*phases, (1.0, -1)]:
            now = period + phase
            if phase > sample:
                ages = np.array([period + sample - node.table.born for node in nodes])
                np.fill_diagonal(ages, 0)
                means.append(ages.sum() / (n * (n - 1)))
                oldest.append(ages.max(axis=1).mean())
                sample = 2.0
            if k >= 0:
                nodes[k].renew(now)
                target = chance.randrange(n - 1)
                target += target >= k
                nodes[target].table.merge(nodes[k].table.entries(nodes[k].window(), now), now)
    return float(np.mean(means)), float(np.mean(oldest))


def _warm_periods(n: int, window: int) -> float:
    return min(5 * expected_oldest_periods(n, window) + 2 * float(np.log2(n)), 400.0)
