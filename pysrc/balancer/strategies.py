"""Strategies for the simulator: the project's own, and those it is measured against.

`Balanced` calls the functions of `policy` that mosd calls. The rivals are in the two groups that
matter: those that see the true state of all nodes at every moment (which no real one can), and
those that see what gossip brings. Called by `simulate` through `Strategy`.
"""

from __future__ import annotations

import numpy as np
from mosix.balancer.policy import MOST_CHOICES, PROCESS, Pair, Rules
from mosix.balancer.simulate import Beliefs, Cluster, Strategy
from numpy.typing import NDArray


class Balanced(Strategy):
    """Ours: probed placement, push and pull by opportunity cost, handshake with reservation."""

    name = "balanced"
    ticks = True
    moving = True

    def __init__(self, rules: Rules | None = None, seed: int = 1) -> None:
        self.rules = rules or Rules()
        self.seed = seed

    def begin(self, cluster: Cluster) -> None:
        super().begin(cluster)
        load = cluster.load
        n = load.nodes
        self.beliefs = Beliefs(cluster, self.rules, self.seed)
        self._pair = Pair(self.rules, n)
        self._one = np.zeros(1, PROCESS)
        self._few = np.zeros(self.rules.candidates, PROCESS)
        self._few["home"] = self._one["home"] = -1
        self.probes = 0

    def arrival(self, job: int) -> None:
        node = self.choose(job)
        self.cluster.start(job, node)
        home = int(self.cluster.load.home[job])
        self.beliefs.learn(home, (node, home))

    def choose(self, job: int) -> int:
        """Asks the best few how they are, until the best is one that was asked; and on, where
        none of those has the memory."""
        home = int(self.cluster.load.home[job])
        base, view = self.beliefs.base(home), self.beliefs.views[home]
        self._one["need_mb"] = self.cluster.load.need_mb[job]
        asked = {home}
        self.beliefs.learn(home, asked)
        need = float(self._one["need_mb"][0])
        for number in range(len(view.running)):
            ranked = [base + k for k in view.place(self._one, MOST_CHOICES)]
            known = next((k for k in ranked if k in asked), home)
            fits = view.free_mb[known - base] >= need
            if ranked[0] in asked or (number >= self.rules.probe_rounds and fits):
                return known
            new = [k for k in ranked if k not in asked][: self.rules.probes]
            self.probes += len(new)
            self.beliefs.learn(home, new)
            asked.update(new)
        return home

    def tick(self, node: int) -> None:
        self.beliefs.exchange(node)
        if self.moving:
            self.push(node)
            self.pull(node)

    def finished(self, job: int, node: int) -> None:
        if self.moving:
            self.pull(node)

    # ---- moves ----

    def _candidates(self, node: int) -> tuple[list[int], NDArray[np.void]]:
        """Jobs of that node that may move, oldest first, and their records."""
        cluster, rules = self.cluster, self.rules
        here = [
            (age, job)
            for job, age in cluster.ages(node).items()
            if cluster.now - cluster.arrived_at[job]
            >= max(rules.residency_s, rules.residency_moves * cluster.move_s(job))
            or cluster.arrived_at[job] == 0
        ]
        here.sort(reverse=True)
        few = here[: rules.candidates]
        records = self._few[: len(few)]
        jobs = [job for _, job in few]
        records["age_s"] = [age for age, _ in few]
        records["need_mb"] = cluster.load.need_mb[jobs]
        records["move_s"] = [cluster.move_s(job) for job in jobs]
        return jobs, records

    def push(self, node: int) -> None:
        cluster = self.cluster
        if not cluster.running[node]:
            return
        jobs, records = self._candidates(node)
        if not jobs:
            return
        base, view = self.beliefs.base(node), self.beliefs.views[node]
        slow = cluster.slow(node)
        for choice in view.moves(node - base, records, slow=slow, count=self.rules.probes):
            one, target = records[choice.process : choice.process + 1], base + choice.node
            accepted = self._gain(node, target, one, slow)
            self.beliefs.learn(node, (target,))
            if accepted is not None:
                self._move(jobs[choice.process], node, target)
                return

    def pull(self, node: int) -> None:
        """A node with a core to spare asks those it believes most loaded."""
        cluster = self.cluster
        if cluster.wanted(node) >= cluster.load.cores[node]:
            return
        base, view = self.beliefs.base(node), self.beliefs.views[node]
        own = node - base
        crowd = view.running / view.cores * view.pace
        crowd[own] = -1
        few = min(self.rules.probes, len(crowd) - 1)
        asked = np.argpartition(crowd, len(crowd) - few)[len(crowd) - few :].tolist()
        # The answers are worth as much as the jobs: they are the newest news there are.
        self.beliefs.learn(node, [base + k for k in asked])
        best: tuple[float, int, int] | None = None
        for k in asked:
            waiting = view.running[k] > view.cores[k]
            if not view.running[k] or not (waiting or view.pace[k] > view.pace[own]):
                continue  # nobody waits there and it is as fast: nothing to gain
            source = base + k
            jobs, records = self._candidates(source)
            if not jobs:
                continue
            choice = self._gain(source, node, records, cluster.slow(source))
            if choice is not None and (best is None or choice[0] > best[0]):
                best = (choice[0], jobs[choice[1]], source)
        if best is not None:
            self._move(best[1], best[2], node)

    def _gain(
        self, source: int, target: int, records: NDArray[np.void], slow: float
    ) -> tuple[float, int] | None:
        """The handshake: both ends' true numbers."""
        choice = self._pair.gain(self._state(source), self._state(target), records, slow=slow)
        return None if choice is None else (choice.value, choice.process)

    def _state(self, node: int) -> tuple[float, ...]:
        cluster, load = self.cluster, self.cluster.load
        return (
            cluster.wanted(node),
            load.cores[node],
            1 / load.speed[node],
            cluster.free_mb(node),
            load.memory_mb[node],
        )

    def _move(self, job: int, source: int, target: int) -> None:
        self.cluster.move(job, source, target)
        self.beliefs.learn(source, (source, target))
        self.beliefs.learn(target, (source, target))


class PlacedOnly(Balanced):
    """Ours without moves."""

    name = "balanced, placement only"
    moving = False
