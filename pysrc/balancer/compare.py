"""Strategies side by side on the same jobs: scenarios, seeds, ratios to the ideal, confidence.

Called by bench (full) and tests (reduced). The figure of a strategy in a scenario is the geometric
mean over seeds of its mean slowdown divided by that of ideal sharing on the same jobs, with a 95%
bootstrap interval. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from mosix.balancer.rivals import BELIEVING, OTHERS, SEEING
from mosix.balancer.simulate import Cluster, Outcome, Strategy, outcome
from mosix.balancer.strategies import Balanced, PlacedOnly
from mosix.balancer.workload import Workload, generate, ideal_sharing, read_trace, shortest_first
from numpy.typing import NDArray

_RESAMPLES = 2000
_TRACE_TICK_S = 10.0

OURS: dict[str, Callable[[], Strategy]] = {
    Balanced.name: Balanced,
    PlacedOnly.name: PlacedOnly,
}
STRATEGIES: dict[str, Callable[[], Strategy]] = {**OURS, **BELIEVING, **SEEING, **OTHERS}
#: Scenario, seed, strategy, mean slowdown over that of ideal sharing, outcome.
Tell = Callable[[str, int, str, float, Outcome], None]
#: The placement-only strategies that know what ours knows.
PLACING = (PlacedOnly.name, *BELIEVING)


@dataclass(frozen=True)
class Scenario:
    """`goal`: for the ratio to ideal sharing; `p99`: for the slowdown."""

    name: str
    nodes: int
    jobs: int
    load: float
    memory: float = 0.05
    skew: float = 0.5
    equal_cores: int | None = None
    longest_s: float = 1e4
    goal: float | None = None
    p99: float | None = None

    def workload(self, seed: int, trace: Path | None = None) -> Workload:
        """With `trace`: another stretch of the trace for each seed, at its own pace."""
        if trace is not None:
            start = seed * self.jobs
            return read_trace(trace, self.nodes, self.load, jobs=self.jobs, start=start, seed=seed)
        return generate(
            self.nodes,
            self.jobs,
            self.load,
            seed=seed,
            memory=self.memory,
            skew=self.skew,
            equal_cores=self.equal_cores,
            longest_s=self.longest_s,
        )


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("n16", 16, 2500, 0.7, goal=1.10, p99=2.0),
        Scenario("n100", 100, 4000, 0.8, goal=1.10, p99=2.0),
        Scenario("rho9", 16, 2500, 0.9, goal=1.20, p99=2.5),
        Scenario("memtight", 16, 2500, 0.7, memory=0.3, goal=1.12, p99=2.0),
        Scenario("n2", 2, 1500, 0.7, skew=2.0, equal_cores=2),
        Scenario("n10000", 10_000, 200_000, 0.8, longest_s=100.0),
    )
}


@dataclass(frozen=True)
class Figure:
    """One strategy in one scenario. `low`…`high`: 95% interval of `ratio`. `ratios`: by seed."""

    strategy: str
    mean_slowdown: float
    ratio: float
    low: float
    high: float
    p99: float
    moves_per_job: float
    makespan_ratio: float
    frozen_part: float
    over_memory_s: float
    ratios: tuple[float, ...]


def bootstrap(ratios: Sequence[float], seed: int = 1) -> tuple[float, float, float]:
    """Geometric mean and its 95% interval."""
    logs = np.log(ratios)
    random = np.random.default_rng(seed)
    means = random.choice(logs, (_RESAMPLES, len(logs))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def compare(
    scenario: Scenario,
    seeds: Iterable[int],
    strategies: Iterable[str] = tuple(STRATEGIES),
    *,
    trace: Path | None = None,
    clairvoyant: bool = True,
    workers: int = 1,
    tell: Tell | None = None,
) -> list[Figure]:
    """Every strategy on the same jobs of every seed, seeds spread over `workers` processes.
    `tell`, which these must be able to import, is told each outcome. KeyError for an unknown
    strategy."""
    one = partial(
        _one_seed, scenario, tuple(strategies), trace=trace, clairvoyant=clairvoyant, tell=tell
    )
    found: dict[str, list[tuple[float, Outcome]]] = {}
    with ExitStack() as stack:
        if workers > 1:
            results = stack.enter_context(ProcessPoolExecutor(workers)).map(one, seeds)
        else:
            results = map(one, seeds)
        for outcomes in results:
            for name, result in outcomes.items():
                ratio = result.mean / outcomes["ideal sharing"].mean
                found.setdefault(name, []).append((ratio, result))
    return [_figure(name, results) for name, results in found.items()]


def _one_seed(
    scenario: Scenario,
    names: Sequence[str],
    seed: int,
    *,
    trace: Path | None,
    clairvoyant: bool,
    tell: Tell | None,
) -> dict[str, Outcome]:
    load = scenario.workload(seed, trace)
    # The jobs of a trace run for hours: ten seconds are soon enough, and can be simulated.
    tick_s = _TRACE_TICK_S if trace is not None else 1.0
    found = {"ideal sharing": outcome(load, ideal_sharing(load))}
    if clairvoyant:
        found["ideal, clairvoyant"] = outcome(load, shortest_first(load))
    for name in names:
        found[name] = Cluster(load, STRATEGIES[name](), tick_s=tick_s).run()
        if tell is not None:
            ratio = found[name].mean / found["ideal sharing"].mean
            tell(scenario.name, seed, name, ratio, found[name])
    return found


def _figure(name: str, results: list[tuple[float, Outcome]]) -> Figure:
    ratios = [ratio for ratio, _ in results]
    ratio, low, high = bootstrap(ratios)

    def mean(values: Iterable[float]) -> float:
        column: NDArray[np.float64] = np.fromiter(values, np.float64)
        return float(column.mean())

    outcomes = [result for _, result in results]
    return Figure(
        name,
        mean(one.mean for one in outcomes),
        ratio,
        low,
        high,
        mean(one.p99 for one in outcomes),
        mean(one.moves_per_job for one in outcomes),
        mean(one.makespan_ratio for one in outcomes),
        mean(one.frozen_part for one in outcomes),
        sum(one.over_memory_s for one in outcomes),
        tuple(ratios),
    )
