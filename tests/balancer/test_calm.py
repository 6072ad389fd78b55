"""A cluster of equal jobs comes to rest, whatever each node knows of the others, and how late.

The loop of `mosix.node.decider` in simulated time: measured windows, stale news, moves that take
their time, promises that are kept when the newcomer is seen; on the same functions.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from mosix.balancer.candidates import Promises
from mosix.balancer.policy import PROCESS, Pair, Rules
from mosix.balancer.settling import Population

MOVE_S = 0.4
SECONDS = 60
#: Of each job, always: else what gains too little to move for would be worth it much later.
AGE_S = 30.0


@dataclass
class SimulatedNode:
    cores: float
    jobs: int
    phase: float
    population: Population = field(default_factory=Population)
    promises: Promises = field(default_factory=Promises)
    leaving: int = 0
    measured_at: float = 0.0
    #: when the number of jobs here changed, and to what
    history: list[tuple[float, int]] = field(default_factory=list)
    #: when newcomers began to run that nobody has noticed yet
    came: list[tuple[float, int]] = field(default_factory=list)

    def put(self, now: float, by: int) -> None:
        self.jobs += by
        self.history.append((now, self.jobs))

    def average(self, start: float, end: float) -> float:
        total, at, jobs = 0.0, start, 0
        for when, count in self.history:
            if when <= start:
                jobs = count
                continue
            if when >= end:
                break
            total += jobs * (when - at)
            at, jobs = when, count
        return (total + jobs * (end - at)) / (end - start)

    def measure(self, now: float) -> None:
        self.population.measured(self.measured_at, now, self.average(self.measured_at, now))
        self.measured_at = now
        for since, who in self.came:
            self.promises.kept(who)
            self.population.changed(since, 1.0)
        self.came.clear()

    def state(self, now: float, *, leaver: bool = False) -> tuple[float, ...]:
        running = self.population.steady if leaver else self.population.most
        running += self.promises.standing(now)[0] - self.leaving
        return (max(running, 1.0 if leaver else 0.0), self.cores, 1.0, 1000.0, 1000.0)


class Simulation:
    """Each second every node measures, and offers one job to the node of which it believes best."""

    def __init__(self, shape: list[tuple[float, int]], seed: int) -> None:
        self.random = random.Random(seed)
        self.nodes = [SimulatedNode(cores, 0, self.random.random()) for cores, _ in shape]
        for node, (_, jobs) in zip(self.nodes, shape, strict=True):
            node.put(0.0, jobs)
        self.pair = Pair(Rules(), len(shape))
        self.moves: list[float] = []
        self.coming: list[tuple[float, SimulatedNode, SimulatedNode, int]] = []
        self.beliefs = [[node.jobs for node in self.nodes] for _ in self.nodes]

    def run(self) -> None:
        events = sorted(
            (second + node.phase, index)
            for second in range(1, SECONDS)
            for index, node in enumerate(self.nodes)
        )
        for now, index in events:
            self.arrive(now)
            node = self.nodes[index]
            node.measure(now)
            for other, far in enumerate(self.nodes):  # gossip: some news, late
                if self.random.random() < 0.5:
                    self.beliefs[index][other] = round(far.population.most)
            if node.population.known:
                self.push(now, index)
        self.arrive(SECONDS + MOVE_S)

    def state_of(self, index: int, running: float) -> tuple[float, ...]:
        return (float(running), self.nodes[index].cores, 1.0, 1000.0, 1000.0)

    def arrive(self, now: float) -> None:
        for move in [move for move in self.coming if move[0] <= now]:
            self.coming.remove(move)
            at, source, target, who = move
            source.leaving -= 1
            source.put(at, -1)
            source.population.changed(at, -1.0)
            target.put(at, 1)
            target.came.append((at, who))

    def push(self, now: float, index: int) -> None:
        node = self.nodes[index]
        if node.jobs - node.leaving <= 0:
            return
        job = np.zeros(1, PROCESS)
        job["age_s"], job["move_s"], job["home"] = AGE_S, MOVE_S, -1
        mine, believed = node.state(now, leaver=True), self.beliefs[index]
        gains = {
            k: choice.value
            for k in range(len(self.nodes))
            if k != index
            and (choice := self.pair.gain(mine, self.state_of(k, believed[k]), job)) is not None
        }
        if not gains:
            return
        target = max(gains, key=lambda k: gains[k])
        truth = self.nodes[target].state(now)
        believed[target] = round(truth[0])
        if self.pair.gain(mine, truth, job) is None:
            return
        who = len(self.moves)
        self.nodes[target].promises.make(who, 0.0, now)
        node.leaving += 1
        self.moves.append(now)
        self.coming.append((now + MOVE_S, node, self.nodes[target], who))


shapes = st.lists(
    st.tuples(st.sampled_from((1.0, 2.0, 4.0)), st.integers(0, 12)), min_size=2, max_size=5
)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 1000))
def test_equal_jobs_come_to_rest_where_none_would_be_better_off(
    shape: list[tuple[float, int]], seed: int
) -> None:
    simulation = Simulation(shape, seed)
    simulation.run()
    nodes, jobs = simulation.nodes, sum(jobs for _, jobs in shape)
    assert sum(node.jobs for node in nodes) == jobs
    # nobody goes to and fro: few move twice, and none when all have found a place
    assert len(simulation.moves) <= 2 * jobs
    assert not simulation.moves or simulation.moves[-1] < SECONDS * 3 / 4
    job = np.zeros(1, PROCESS)
    job["age_s"], job["move_s"], job["home"] = AGE_S, MOVE_S, -1
    for source, target in itertools.permutations(range(len(nodes)), 2):
        if nodes[source].jobs:
            here, there = (simulation.state_of(k, nodes[k].jobs) for k in (source, target))
            assert simulation.pair.gain(here, there, job) is None
