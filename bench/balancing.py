"""Benchmarks of the balancer: gossip and policy in simulated time, and what a decision costs.

See `harness`. They need no lab. `bench/simulate` prints the same simulations in full, with every
rival, every interval, and every loss.
"""

from __future__ import annotations

import functools
import os
import time

import numpy as np
from harness import Goal, Measured, benchmark
from mosix.balancer.compare import PLACING, SCENARIOS, Figure, compare
from mosix.balancer.gossip import expected_mean_periods, expected_oldest_periods
from mosix.balancer.gossip_network import measure_spreading
from mosix.balancer.policy import PROCESS, Rules, View

SEEDS = range(10)
_OURS = "balanced"
_benchmark = functools.partial(benchmark, lab=False)
#: Nodes and windows up to a quarter of them, where the formula holds.
_GOSSIP = ((16, 4), (64, 16), (256, 64), (1024, 256))
_GRADED = tuple(name for name, scenario in SCENARIOS.items() if scenario.goal is not None)


# ---- gossip ----


@functools.cache
def _spreading() -> list[tuple[float, float, float, float]]:
    """Mean and oldest age, and what the formula says of both, for each size."""
    found = []
    for n, window in _GOSSIP:
        mean, oldest = measure_spreading(n, window, samples=200 if n < 256 else 40)
        expected = expected_mean_periods(n, window), expected_oldest_periods(n, window)
        found.append((mean, oldest, *expected))
    return found


@_benchmark("gossip_mean_age", "periods", goal=Goal(1.04))
def gossip_mean_age() -> Measured:
    """Mean age of load vectors of 16 to 1024 nodes, against the published formula; the worst."""
    mean, _, expected, _ = max(_spreading(), key=lambda row: row[0] / row[2])
    return Measured(mean, expected)


@_benchmark("gossip_max_age", "periods", goal=Goal(1.09))
def gossip_max_age() -> Measured:
    """Mean age of the oldest entry of a vector, against the formula; the worst."""
    _, oldest, _, expected = max(_spreading(), key=lambda row: row[1] / row[3])
    return Measured(oldest, expected)


# ---- policy ----


@functools.cache
def _figures(scenario: str) -> dict[str, Figure]:
    """Ours and every placement on the same gossip."""
    figures = compare(
        SCENARIOS[scenario],
        SEEDS,
        (_OURS, *PLACING),
        clairvoyant=False,
        workers=os.cpu_count() or 1,
    )
    return {figure.strategy: figure for figure in figures}


def _against_ideal(scenario: str) -> Measured:
    figures = _figures(scenario)
    ours, ideal = figures[_OURS], figures["ideal sharing"]
    return Measured(ours.mean_slowdown, ideal.mean_slowdown, ours.ratio)


@_benchmark("sim_n16", "× alone", goal=Goal(SCENARIOS["n16"].goal))
def sim_n16() -> Measured:
    """Mean slowdown on 16 unequal nodes, load 0.7, against ideal sharing (10 seeds)."""
    return _against_ideal("n16")


@_benchmark("sim_n100", "× alone", goal=Goal(SCENARIOS["n100"].goal))
def sim_n100() -> Measured:
    """The same on 100 nodes, load 0.8."""
    return _against_ideal("n100")


@_benchmark("sim_rho9", "× alone", goal=Goal(SCENARIOS["rho9"].goal))
def sim_rho9() -> Measured:
    """The same on 16 nodes, load 0.9."""
    return _against_ideal("rho9")


@_benchmark("sim_memtight", "× alone", goal=Goal(SCENARIOS["memtight"].goal))
def sim_memtight() -> Measured:
    """The same with jobs that fill 30% of the memory."""
    return _against_ideal("memtight")


@_benchmark("sim_p99", "× alone", goal=Goal(1.0))
def sim_p99() -> Measured:
    """The slowdown that 1% of the jobs exceed, against 2.0 (2.5 at load 0.9); the worst."""
    rows = [(_figures(name)[_OURS].p99, SCENARIOS[name].p99 or 0.0) for name in _GRADED]
    return Measured(*max(rows, key=lambda row: row[0] / row[1]))


@_benchmark("sim_moves", "moves per job", goal=Goal(0.7, of="value"))
def sim_moves() -> Measured:
    """Moves per job, the most of all scenarios."""
    return Measured(max(_figures(name)[_OURS].moves_per_job for name in _GRADED))


@_benchmark("sim_over_memory", "s", goal=Goal(0.0, of="value"))
def sim_over_memory() -> Measured:
    """Seconds for which any node had more memory in use than it has, all scenarios."""
    return Measured(sum(_figures(name)[_OURS].over_memory_s for name in _GRADED))


@_benchmark("sim_placing", "× alone", goal=Goal(1.02))
def sim_placing() -> Measured:
    """Ours against the best placement-only strategy on the same gossip; the worst scenario."""
    rows = []
    for name in _GRADED:
        figures = _figures(name)
        best = min((figures[placing] for placing in PLACING), key=lambda figure: figure.ratio)
        ours = figures[_OURS]
        rows.append(Measured(ours.mean_slowdown, best.mean_slowdown, ours.ratio / best.ratio))
    return max(rows, key=lambda row: row.paired_ratio or 0.0)


# ---- decisions ----


def _decision_us(n: int) -> float:
    """Best of many batches: other work on the machine only ever adds."""
    random = np.random.default_rng(1)
    cores = random.choice([1.0, 2.0, 4.0, 8.0], n).astype(np.float32)
    view = View(
        random.integers(0, 12, n).astype(np.float32),
        cores,
        (1 / random.choice([0.5, 1.0, 2.0], n)).astype(np.float32),
        (cores * 1000 * random.random(n)).astype(np.float32),
        cores * 2000,
        rules=Rules(),
    )
    process = np.zeros(1, PROCESS)
    process["need_mb"], process["home"] = 100, 3
    count, best = max(10, 100_000 // n), float("inf")
    for _ in range(100):
        start = time.perf_counter()
        for _ in range(count):
            view.place(process, 3)
        best = min(best, (time.perf_counter() - start) / count)
    return best * 1e6


@_benchmark("decide_64", "µs", goal=Goal(5.0, of="value"))
def decide_64() -> Measured:
    """The best three of 64 nodes for a process."""
    return Measured(_decision_us(64))


@_benchmark("decide_1k", "µs", goal=Goal(10.0, of="value"))
def decide_1k() -> Measured:
    """The same of 1000 nodes."""
    return Measured(_decision_us(1000))


@_benchmark("decide_10k", "µs", goal=Goal(30.0, of="value"))
def decide_10k() -> Measured:
    """The same of 10,000 nodes."""
    return Measured(_decision_us(10_000))
