"""The strategies ours is measured against, in the simulator.

Those of `SEEING` know the true state of all nodes at every moment, which no real one can; those
of `BELIEVING` know what the same gossip brings them, as ours does; the rest needs to know nothing.
Called by `compare` and bench.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from mosix.balancer.policy import Rules
from mosix.balancer.simulate import THRASHING, Beliefs, Cluster, Strategy
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class StaysHome(Strategy):
    """No balancing at all."""

    name = "none"

    def arrival(self, job: int) -> None:
        self.cluster.start(job, int(self.cluster.load.home[job]))


class _Random(Strategy):
    def __init__(self, seed: int = 1) -> None:
        self.random = np.random.default_rng(seed)


class AtRandom(_Random):
    name = "random"

    def arrival(self, job: int) -> None:
        self.cluster.start(job, int(self.random.integers(self.cluster.load.nodes)))


class RoundRobin(Strategy):
    """PVM."""

    name = "round robin"

    def arrival(self, job: int) -> None:
        self.cluster.start(job, job % self.cluster.load.nodes)


class PowerOfTwo(_Random):
    """Asks two random nodes and takes the less loaded one."""

    name = "power of two"

    def arrival(self, job: int) -> None:
        cluster = self.cluster
        two = self.random.integers(0, cluster.load.nodes, 2)
        crowd = (cluster.running[two] + 1) / (cluster.load.cores[two] * cluster.load.speed[two])
        used = cluster.used_mb[two] / cluster.load.memory_mb[two]
        cluster.start(job, int(two[np.lexsort((used, crowd))[0]]))


# ---- scores over nodes; the least is chosen ----


class _Nodes(NamedTuple):
    """Some nodes, and what is known of them."""

    cores: Floats
    speed: Floats
    memory_mb: Floats
    running: Floats
    free_mb: Floats


def _crowd(nodes: _Nodes, need_mb: float) -> Floats:
    """Least loaded: processes per standard core."""
    return (nodes.running + 1) / (nodes.cores * nodes.speed)


def _delay(nodes: _Nodes, need_mb: float) -> Floats:
    """Least delay for itself, with the memory seen."""
    crowd = np.maximum(1.0, (nodes.running + 1) / nodes.cores) / nodes.speed
    full = nodes.free_mb < need_mb
    return crowd * np.where(full, THRASHING, 1.0) + 1e-6 * (nodes.running + 1) / nodes.cores


def _load_with_room(nodes: _Nodes, need_mb: float) -> Floats:
    """Least loaded of those that have the memory."""
    return _crowd(nodes, need_mb) + np.where(nodes.free_mb < need_mb, 1e6, 0)


class _Exponential:
    """E-PVM: the sum of n^utilisation; L doubles when it is passed."""

    def __init__(self) -> None:
        self.most = 2.0

    def __call__(self, nodes: _Nodes, need_mb: float) -> Floats:
        running, memory = nodes.running, nodes.memory_mb
        n, power = float(max(len(running), 2)), nodes.cores * nodes.speed
        used = memory - nodes.free_mb
        before = np.minimum(used / memory, 3.0)
        after = np.minimum((used + need_mb) / memory, 3.0)
        crowd = power * self.most
        found: Floats = n ** ((running + 1) / crowd) - n ** (running / crowd)
        found += n**after - n**before
        chosen = int(found.argmin())
        while (running[chosen] + 1) / power[chosen] > self.most:
            self.most *= 2
        return found


Score = Callable[[_Nodes, float], Floats]


class Seeing(Strategy):
    """Placement by a score over the true state."""

    def __init__(self, name: str, score: Score) -> None:
        self.name, self.score = name, score

    def arrival(self, job: int) -> None:
        cluster, load = self.cluster, self.cluster.load
        free = load.memory_mb - cluster.used_mb
        nodes = _Nodes(load.cores, load.speed, load.memory_mb, cluster.running, free)
        cluster.start(job, int(self.score(nodes, float(load.need_mb[job])).argmin()))


class Believing(Strategy):
    """Placement by a score over what gossip brought to the job's home of its group."""

    ticks = True

    def __init__(self, name: str, score: Score, seed: int = 1) -> None:
        self.name, self.score, self.seed = name, score, seed

    def begin(self, cluster: Cluster) -> None:
        super().begin(cluster)
        self.beliefs = Beliefs(cluster, Rules(), self.seed)

    def arrival(self, job: int) -> None:
        cluster, home = self.cluster, int(self.cluster.load.home[job])
        need = float(cluster.load.need_mb[job])
        self.beliefs.learn(home, (home,))
        nodes = self.nodes(home)
        chosen = int(self.score(nodes, need).argmin())
        cluster.start(job, self.beliefs.base(home) + chosen)
        self.beliefs.views[home].reserve(chosen, need)

    def nodes(self, node: int) -> _Nodes:
        """Those of the group of `node`, as it believes they are."""
        load, view, base = self.cluster.load, self.beliefs.views[node], self.beliefs.base(node)
        group = slice(base, base + len(view.running))
        return _Nodes(
            load.cores[group],
            load.speed[group],
            load.memory_mb[group],
            view.running.astype(np.float64),
            view.free_mb.astype(np.float64),
        )

    def tick(self, node: int) -> None:
        self.beliefs.exchange(node)


class FifoPacking(Strategy):
    """A queue for the whole cluster: a job starts when a core is free, on the fastest. `skip`:
    one that does not fit lets others pass."""

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.name = "FIFO packing, skipping" if skip else "FIFO packing"

    def begin(self, cluster: Cluster) -> None:
        super().begin(cluster)
        self.queue: list[int] = []

    def arrival(self, job: int) -> None:
        self.queue.append(job)
        if self.skip or len(self.queue) == 1:
            self._start_some()

    def finished(self, job: int, node: int) -> None:
        self._start_some()

    def _start_some(self) -> None:
        cluster, load = self.cluster, self.cluster.load
        waiting: list[int] = []
        for place, job in enumerate(self.queue):
            free = load.memory_mb - cluster.used_mb
            room = (cluster.running < load.cores) & (free >= load.need_mb[job])
            if room.any():
                cluster.start(job, int(np.where(room, load.speed, -1).argmax()))
            elif self.skip:
                waiting.append(job)
            else:
                waiting = self.queue[place:]
                break
        self.queue = waiting


class WorkStealing(_Random):
    """Jobs start at home; a node with a free core takes the oldest job of the most loaded of
    four random nodes."""

    name = "work stealing"
    ticks = True

    def arrival(self, job: int) -> None:
        self.cluster.start(job, int(self.cluster.load.home[job]))

    def tick(self, node: int) -> None:
        self._steal(node)

    def finished(self, job: int, node: int) -> None:
        self._steal(node)

    def _steal(self, node: int) -> None:
        cluster, load = self.cluster, self.cluster.load
        if cluster.wanted(node) >= load.cores[node]:
            return
        some = self.random.permutation(load.nodes)[:4]
        some = some[cluster.running[some] > load.cores[some]]
        if not len(some):
            return
        source = int(some[(cluster.running[some] / load.cores[some] / load.speed[some]).argmax()])
        room = cluster.free_mb(node)
        fitting = [(age, j) for j, age in cluster.ages(source).items() if load.need_mb[j] <= room]
        if fitting:
            cluster.move(max(fitting)[1], source, node)


class MosixClassic(Believing):
    """Sender-initiated: to the least loaded node known, if with 1.3 times the process it still
    has less load; the second oldest process; memory first when it is short. `best`: jobs start on
    the node that looks best (mosrun -b), else at home."""

    def __init__(self, best: bool, seed: int = 1) -> None:
        name = "MOSIX classic, -b" if best else "MOSIX classic"
        super().__init__(name, _load_with_room, seed)
        self.best = best

    def arrival(self, job: int) -> None:
        if self.best:
            super().arrival(job)
        else:
            self.cluster.start(job, int(self.cluster.load.home[job]))

    def tick(self, node: int) -> None:
        super().tick(node)
        cluster, load = self.cluster, self.cluster.load
        jobs = cluster.ages(node)
        movable = [j for j in jobs if cluster.now - cluster.arrived_at[j] > 2]
        if not movable:
            return
        nodes, own = self.nodes(node), node - self.beliefs.base(node)
        one = 1 / (nodes.cores * nodes.speed)
        burden = nodes.running * one
        there = np.where(nodes.free_mb > 0, burden + 1.3 * one, 1e9)
        there[own] = 1e9
        target, short = int(there.argmin()), cluster.slow(node) > 1
        if not (there[target] < burden[own] or short):
            return
        movable.sort(key=lambda j: -jobs[j])
        job = movable[min(1, len(movable) - 1)]
        if short:
            job = max(movable, key=lambda j: load.need_mb[j])
        need = float(load.need_mb[job])
        if nodes.free_mb[target] >= need and (short or jobs[job] > 0.5):
            cluster.move(job, node, self.beliefs.base(node) + target)
            self.beliefs.views[node].reserve(target, need)


#: Each call makes a new one: strategies have state.
SEEING: dict[str, Callable[[], Strategy]] = {
    "least loaded": lambda: Seeing("least loaded", _crowd),
    "least delay": lambda: Seeing("least delay", _delay),
    "E-PVM": lambda: Seeing("E-PVM", _Exponential()),
    "power of two": PowerOfTwo,
    "FIFO packing": FifoPacking,
    "FIFO packing, skipping": lambda: FifoPacking(skip=True),
    "work stealing": WorkStealing,
}
#: Placement only.
BELIEVING: dict[str, Callable[[], Strategy]] = {
    "least loaded, gossip": lambda: Believing("least loaded, gossip", _crowd),
    "least delay, gossip": lambda: Believing("least delay, gossip", _delay),
    "E-PVM, gossip": lambda: Believing("E-PVM, gossip", _Exponential()),
}
OTHERS: dict[str, Callable[[], Strategy]] = {
    "none": StaysHome,
    "random": AtRandom,
    "round robin": RoundRobin,
    "MOSIX classic": lambda: MosixClassic(best=False),
    "MOSIX classic, -b": lambda: MosixClassic(best=True),
}
