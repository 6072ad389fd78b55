"""What this node believes of all, ready to decide on: itself as it is, others as they said last.

Filled by `mosix.node.decider` with each reading; `gossip` brings the others. What a node was heard
to say when it was asked counts until gossip has something newer, else the same stale vector
would send everybody the same way again. Decides nothing and talks to nobody.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np
from mosix.balancer.candidates import Promises, usable_nodes, view_of
from mosix.balancer.policy import STANDARD_SPEED, Floats, Rules, View
from mosix.balancer.settling import Population, shortage_mb
from mosix.balancer.vectors import VectorTable
from mosix.node.compatible import Book
from mosix.node.gossip import GossipService
from mosix.node.meter import Reading
from mosix.node.owner import Owner
from mosix.node.registry import Registry
from mosix.node.settings import Settings
from mosix.node.tuned import Tuned
from mosix.wire.bargain import NodeTruth
from numpy.typing import NDArray

#: How many times slower a node counts that has, or soon has, no memory.
SLOW: Final = 10.0
DEFAULT: Final = Rules()
_MB: Final = 1e6


class Outlook:
    """`here` is this node's index in `table`."""

    def __init__(
        self,
        gossip: GossipService,
        registry: Registry,
        owner: Owner,
        book: Book,
        tuned: Tuned,
        *,
        settings: Settings,
        rules: Rules = DEFAULT,
    ) -> None:
        self._gossip = gossip
        self._registry = registry
        self._owner = owner
        self._settings = settings
        self.book = book
        self.tuned = tuned
        self.rules = rules
        self.population = Population()
        self.promises = Promises()
        #: weight of those that are on their way from here
        self.leaving = 0.0
        #: MB that are wanted more than are free, now or soon
        self.short_mb = 0.0
        self._reading: Reading | None = None
        self._learned: dict[str, tuple[float, NodeTruth]] = {}

    # ---- this node ----

    def measured(self, reading: Reading) -> None:
        load, before = reading.load, self._reading
        falling = 0.0
        if before is not None:
            seconds = max(reading.ended - before.ended, 1e-3)
            falling = (before.load.free - load.free) / _MB / seconds
        self.short_mb = shortage_mb(load.free / _MB, load.memory / _MB, falling)
        self._reading = reading
        self.population.measured(reading.began, reading.ended, load.running)

    @property
    def ready(self) -> bool:
        """Whether enough is known of this node to decide anything."""
        return self._reading is not None and self.population.known

    @property
    def slow(self) -> float:
        return SLOW if self.short_mb > 0 else 1.0

    def truth(self, *, leaver: bool = False) -> NodeTruth:
        """This node as others are told: the most that may be running, with who was promised a
        place. `leaver`: as it weighs a departure, by what has been running for some time, and that
        one at least."""
        reading = self._reading
        if reading is None:  # nobody is invited to a node that does not know itself
            return NodeTruth(
                running=1e5, cores=1, speed=100, free_mb=0, memory_mb=0, takes="not measured yet"
            )
        load = reading.load
        coming, coming_mb = self.promises.standing(time.monotonic())
        running = self.population.steady if leaver else self.population.most
        running += coming - self.leaving
        return NodeTruth(
            running=max(1.0 if leaver else 0.0, running),
            cores=min(max(load.cores, 0.01), 8192),
            speed=min(max(load.speed, 100), 1e7),
            free_mb=max(0.0, load.free / _MB - coming_mb),
            memory_mb=load.memory / _MB,
            slow=self.slow,
            takes=self._takes(coming),
        )

    def _takes(self, coming: int) -> str:
        if not self._owner.said.takes_guests:
            return "its owner takes no guests now"
        if self.short_mb > 0:
            return "it is short of memory"
        guests = len(self._registry.guests)
        if guests + coming >= self._settings.config.max_guests:
            return f"it has {guests} guests already, {coming} are coming, and takes no more"
        return ""

    # ---- the others ----

    @property
    def table(self) -> VectorTable:
        return self._gossip.table

    def ip(self, index: int) -> str:
        return self._gossip.ip(index)

    @property
    def here(self) -> int:
        return self._gossip.here

    def index(self, ip: str) -> int:
        """-1: it is none of those that are gossiped with."""
        return self._gossip.index(ip)

    def learn(self, ip: str, truth: NodeTruth) -> None:
        """It has just said so."""
        self._learned[ip] = (time.monotonic(), truth)

    def usable(self, home: int, job_class: int) -> NDArray[np.bool_]:
        """Where a process of this class may run whose home has this index, by what is known; its
        home always, if that is alive."""
        table, now = self.table, time.monotonic()
        digests = table.features.copy()
        digests[self.here] = self.book.own
        compatible = self.book.mask(int(digests[home]) if home >= 0 else 0, digests)
        usable = usable_nodes(table, self.here, now, compatible)
        alive = table.alive()
        usable &= alive
        if not job_class:
            usable[self._outsiders()] = False
        usable[self.here] = True
        if home >= 0:
            usable[home] = alive[home] or home == self.here
        for ip, (at, truth) in self._learned.items():
            k = self.index(ip)
            if k >= 0 and truth.takes and k != home and at >= table.born[k]:
                usable[k] = False
        return usable

    def _outsiders(self) -> list[int]:
        """Where processes of class 0 do not go."""
        nodes = self._settings.config.nodes
        if not any(r.outsider for r in nodes.ranges):
            return []
        return [k for k in range(len(self.table)) if nodes.outsider(self.ip(k))]

    def view(self, usable: NDArray[np.bool_], *, leaver: bool = False) -> View:
        """To decide on: of its own arrays."""
        table = self.table
        view = view_of(table, usable, self.rules, self.tuned.call_s(table.nodes))
        for ip, (at, truth) in list(self._learned.items()):
            k = self.index(ip)
            if k < 0 or at < table.born[k]:
                del self._learned[ip]
                continue
            put(view, k, truth)
        put(view, self.here, self.truth(leaver=leaver))
        return view

    def pace(self) -> Floats:
        pace: Floats = (STANDARD_SPEED / self.table.column("speed")).astype(np.float32)
        return pace


def put(view: View, index: int, truth: NodeTruth) -> None:
    """That node is like this."""
    view.running[index] = truth.running
    view.cores[index] = truth.cores
    view.pace[index] = STANDARD_SPEED / truth.speed
    view.free_mb[index] = truth.free_mb


def as_numbers(truth: NodeTruth) -> tuple[float, ...]:
    """As `Pair.gain` wants it."""
    return (
        truth.running,
        truth.cores,
        STANDARD_SPEED / truth.speed,
        truth.free_mb,
        max(truth.memory_mb, 1.0),
    )
