"""A cluster in simulated time: jobs arrive, share cores, move; a strategy says where.

Called by bench and tests. A job runs at speed · min(1, cores / running) of its node, a tenth of
that while the node's memory is exceeded; a move stops it for a fixed time and its memory over the
link, with its place at the target taken from the start. Nodes know each other's state only through
gossip (`Beliefs`). Deterministic for a seed; never sleeps, does no I/O.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from mosix.balancer.gossip import rules_for
from mosix.balancer.policy import Rules, View
from mosix.balancer.workload import Workload, least_makespan
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: How much slower a node is that pages.
THRASHING: Final = 10.0
MOVE_FIXED_S: Final = 0.05
LINK_MB_S: Final = 1000.0
#: Vectors of more nodes would be too old: their mean age is about nodes / window periods.
GROUP: Final = 500


@dataclass(frozen=True)
class Outcome:
    """`slowdown` of each job: response time over its time alone on the fastest core."""

    slowdown: Floats
    response: Floats
    makespan_ratio: float
    moves_per_job: float
    frozen_part: float
    #: seconds that nodes spent with more memory in use than they have
    over_memory_s: float

    @property
    def mean(self) -> float:
        return float(self.slowdown.mean())

    @property
    def p99(self) -> float:
        return float(np.percentile(self.slowdown, 99))


def outcome(
    load: Workload, done: Floats, moves: int = 0, frozen: float = 0, over: float = 0
) -> Outcome:
    """From when each job was done; the rest as in `Outcome`, `frozen` in seconds."""
    response = done - load.arrival
    return Outcome(
        slowdown=response * load.speed.max() / load.work,
        response=response,
        makespan_ratio=float(done.max()) / least_makespan(load),
        moves_per_job=moves / load.jobs,
        frozen_part=frozen / float(response.sum()),
        over_memory_s=over,
    )


class Cluster:
    """The true state: `running`, `coming` (moves under way) and `used_mb` by node."""

    def __init__(self, load: Workload, strategy: Strategy, *, tick_s: float = 1.0) -> None:
        n = load.nodes
        self.load, self.strategy, self.tick_s = load, strategy, tick_s
        self.now = 0.0
        self.running = np.zeros(n)
        self.coming = np.zeros(n)
        self.used_mb = np.zeros(n)
        self.jobs: list[dict[int, float]] = [{} for _ in range(n)]  # job: what served it must reach
        self.arrived_at = np.zeros(load.jobs)
        self.moves = 0
        self.done = np.full(load.jobs, np.nan)
        self._left = load.jobs
        self._frozen = self._over = 0.0
        # Of each node what a job there all the time would have got, and since when that grows.
        self._served = np.zeros(n)
        self._since = np.zeros(n)
        self._done_before = np.zeros(load.jobs)
        self._ends: list[list[tuple[float, int]]] = [[] for _ in range(n)]
        self._plan = [0] * n
        self._events: list[tuple[float, int, Callable[..., None], tuple[int, ...]]] = []
        self._order = 0
        strategy.begin(self)

    # ---- what a strategy may ask and do ----

    def wanted(self, node: int) -> float:
        """Processes that run or will soon."""
        return float(self.running[node] + self.coming[node])

    def free_mb(self, node: int) -> float:
        return float(self.load.memory_mb[node] - self.used_mb[node])

    def age(self, job: int, node: int) -> float:
        """CPU seconds used, of a job that runs there."""
        self._advance(node)
        return float(self.load.work[job] - (self.jobs[node][job] - self._served[node]))

    def ages(self, node: int) -> dict[int, float]:
        """Of all jobs there."""
        self._advance(node)
        served, work = self._served[node], self.load.work
        return {job: work[job] - (tag - served) for job, tag in self.jobs[node].items()}

    def slow(self, node: int) -> float:
        return THRASHING if self.used_mb[node] > self.load.memory_mb[node] else 1.0

    def move_s(self, job: int) -> float:
        return MOVE_FIXED_S + float(self.load.need_mb[job]) / LINK_MB_S

    def start(self, job: int, node: int) -> None:
        self._advance(node)
        self.used_mb[node] += self.load.need_mb[job]
        self._add(job, node)

    def move(self, job: int, source: int, target: int) -> None:
        self._remove(job, source)
        self._advance(target)
        self.used_mb[target] += self.load.need_mb[job]
        self.coming[target] += 1
        self._replan(target)
        self.moves += 1
        self._frozen += self.move_s(job)
        self._at(self.now + self.move_s(job), self._arrives, job, target)

    # ---- events ----

    def run(self) -> Outcome:
        load = self.load
        if self.strategy.ticks:
            phases = np.random.default_rng(7).random(load.nodes) * self.tick_s
            for node in range(load.nodes):
                self._at(float(phases[node]), self._tick, node)
        coming = 0
        while self._left:
            event = self._events[0][0] if self._events else np.inf
            if coming < load.jobs and load.arrival[coming] <= event:
                self.now = float(load.arrival[coming])
                self.strategy.arrival(coming)
                coming += 1
                continue
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
        return outcome(load, self.done, self.moves, self._frozen, self._over)

    def _at(self, when: float, action: Callable[..., None], *arguments: int) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, action, arguments))

    def _tick(self, node: int) -> None:
        self.strategy.tick(node)
        self._at(self.now + self.tick_s, self._tick, node)

    def _arrives(self, job: int, node: int) -> None:
        self.coming[node] -= 1
        self.arrived_at[job] = self.now
        self._advance(node)
        self._add(job, node)

    def _ends_one(self, node: int, plan: int) -> None:
        if plan != self._plan[node]:
            return
        self._advance(node)
        tag, job = heapq.heappop(self._ends[node])
        del self.jobs[node][job]
        self._served[node] = tag
        self.running[node] -= 1
        self.used_mb[node] -= self.load.need_mb[job]
        self.done[job] = self.now
        self._left -= 1
        self._replan(node)
        self.strategy.finished(job, node)

    def _rate(self, node: int) -> float:
        running = self.running[node]
        if not running:
            return 0.0
        share = min(1.0, self.load.cores[node] / running)
        return float(self.load.speed[node] * share / self.slow(node))

    def _advance(self, node: int) -> None:
        past = self.now - self._since[node]
        if past > 0:
            self._served[node] += past * self._rate(node)
            if self.used_mb[node] > self.load.memory_mb[node] + 1e-6:
                self._over += past
        self._since[node] = self.now

    def _add(self, job: int, node: int) -> None:
        tag = float(self._served[node] + self.load.work[job] - self._done_before[job])
        self.jobs[node][job] = tag
        heapq.heappush(self._ends[node], (tag, job))
        self.running[node] += 1
        self._replan(node)

    def _remove(self, job: int, node: int) -> None:
        self._advance(node)
        tag = self.jobs[node].pop(job)
        self._done_before[job] = self.load.work[job] - (tag - self._served[node])
        self.running[node] -= 1
        self.used_mb[node] -= self.load.need_mb[job]
        self._replan(node)

    def _replan(self, node: int) -> None:
        """The next end there, after anything changed."""
        self._plan[node] += 1
        ends, here = self._ends[node], self.jobs[node]
        while ends and here.get(ends[0][1]) != ends[0][0]:
            heapq.heappop(ends)
        if ends:
            wait = max(0.0, (ends[0][0] - self._served[node]) / self._rate(node))
            self._at(self.now + wait, self._ends_one, node, self._plan[node])


class Strategy(ABC):
    """Decides. Gets a new cluster by `begin` before anything else."""

    name = ""
    ticks = False
    cluster: Cluster

    def begin(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @abstractmethod
    def arrival(self, job: int) -> None:
        """Start it somewhere, now or later."""

    def tick(self, node: int) -> None:
        """Once per tick of each node, if `ticks`."""
        return

    def finished(self, job: int, node: int) -> None:
        """One ended there."""
        return


class Beliefs:
    """What each node believes of the others, by push gossip with a window, as `gossip` does it.

    Nodes gossip in groups of at most `GROUP`, neighbours by number. Row i is node i's view of its
    group, whose first node is `base(i)`; everything else here speaks of nodes of the cluster."""

    def __init__(self, cluster: Cluster, rules: Rules, seed: int) -> None:
        load, n = cluster.load, cluster.load.nodes
        self._cluster = cluster
        self._size = size = min(n, GROUP)
        self._random = np.random.default_rng(seed)
        self.born = np.zeros((n, size))
        self.running = np.zeros((n, size), np.float32)
        self.free_mb = np.zeros((n, size), np.float32)
        self.views: list[View] = []
        cores, memory = load.cores.astype(np.float32), load.memory_mb.astype(np.float32)
        pace = (1 / load.speed).astype(np.float32)
        for i in range(n):
            group = slice(self.base(i), min(n, self.base(i) + size))
            m = group.stop - group.start
            self.free_mb[i, :m] = memory[group]
            row = (self.running[i, :m], cores[group], pace[group], self.free_mb[i, :m])
            self.views.append(View(*row, memory[group], rules=rules))

    def base(self, node: int) -> int:
        return node - node % self._size

    def exchange(self, node: int) -> None:
        """`node` sends its window to a random other one."""
        self.learn(node, [node])
        base, m = self.base(node), len(self.views[node].running)
        if m == 1:
            return
        target = int(self._random.integers(0, m - 1))
        target += base + (target >= node - base)
        row = self.born[node, :m]
        window = rules_for(m).window
        if window < m:
            sent = np.argpartition(row, m - window)[m - window :]
            sent = sent[row[sent] > self.born[target, sent]]
        else:
            sent = np.flatnonzero(row > self.born[target, :m])
        for column in (self.born, self.running, self.free_mb):
            column[target, sent] = column[node, sent]

    def learn(self, node: int, about: Iterable[int]) -> None:
        """`node` asked them, who are of its group, and knows the truth."""
        cluster, base = self._cluster, self.base(node)
        for k in about:
            self.born[node, k - base] = cluster.now
            self.running[node, k - base] = cluster.wanted(k)
            self.free_mb[node, k - base] = cluster.free_mb(k)
