"""What the simulator runs: nodes and jobs, generated or from a trace; and bounds no policy beats.

Called by `simulate`, its tests and bench. Times in seconds, work in standard CPU seconds, memory
in MB. Generated from a seed, so that every policy gets the same jobs. Writes nothing.
"""

from __future__ import annotations

import gzip
import heapq
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mosix.errors import MosixError
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Fields of Standard Workload Format 2.2, counted from 0: submit time, run time, site.
_SUBMIT, _RUN, _PARTITION = 1, 3, 15
_SWF_FIELDS = 18


@dataclass(frozen=True)
class Workload:
    """Nodes: `speed`, `cores`, `memory_mb`. Jobs, by arrival: `arrival`, `work`, `need_mb`,
    `home`."""

    speed: Floats
    cores: Floats
    memory_mb: Floats
    arrival: Floats
    work: Floats
    need_mb: Floats
    home: Integers

    @property
    def nodes(self) -> int:
        return len(self.speed)

    @property
    def jobs(self) -> int:
        return len(self.work)

    @property
    def capacity(self) -> float:
        return float((self.speed * self.cores).sum())

    def core_speeds(self) -> Floats:
        """Of every core, fastest first."""
        each = np.repeat(self.speed, np.maximum(1, self.cores.astype(np.int64)))
        return np.sort(each)[::-1]


def _random_nodes(
    n: int, random: np.random.Generator, equal_cores: int | None
) -> tuple[Floats, Floats, Floats]:
    if equal_cores is not None:
        cores = np.full(n, float(equal_cores))
        return np.ones(n), cores, cores * 2000.0
    speed = random.choice([0.5, 1.0, 1.5, 2.0], n)
    cores = random.choice([1.0, 2.0, 4.0], n)
    return speed, cores, cores * random.choice([1000.0, 2000.0, 4000.0], n)


def _homes(n: int, jobs: int, skew: float, random: np.random.Generator) -> Integers:
    """Zipf: a few nodes where most jobs are started; skew 0: all alike."""
    weight = 1 / np.arange(1, n + 1) ** skew
    order = random.permutation(n)
    chosen: Integers = random.choice(n, jobs, p=(weight / weight.sum())[order])
    return chosen


def generate(
    nodes: int,
    jobs: int,
    load: float,
    *,
    seed: int,
    memory: float = 0.05,
    skew: float = 0.5,
    alpha: float = 1.05,
    longest_s: float = 1e4,
    equal_cores: int | None = None,
) -> Workload:
    """Poisson arrivals at `load` of the capacity; work bounded Pareto in 1…`longest_s`; memory
    lognormal, together about `memory` of all nodes'. `equal_cores`: all nodes alike."""
    random = np.random.default_rng(seed)
    speed, cores, total = _random_nodes(nodes, random, equal_cores)
    low, high = 1.0, longest_s**alpha
    u = random.random(jobs)
    work = (-(u * high - u * low - high) / (high * low)) ** (-1 / alpha)
    gap = work.mean() / (load * float((speed * cores).sum()))
    need = random.lognormal(math.log(60), 1.2, jobs)
    at_once = load * cores.sum() * 1.3
    need = need * memory * total.sum() / (at_once * need.mean())
    need = np.clip(need, 2, 0.4 * np.sort(total)[-max(1, nodes // 4)])
    arrival = np.cumsum(random.exponential(gap, jobs))
    return Workload(speed, cores, total, arrival, work, need, _homes(nodes, jobs, skew, random))


def read_trace(
    path: Path, nodes: int, load: float, *, jobs: int, start: int, seed: int
) -> Workload:
    """`jobs` jobs of a trace in Standard Workload Format (.swf, .swf.gz) from its job `start` on:
    run times, arrivals (stretched so that `nodes` random nodes are loaded to `load`), homes by
    site. The trace has no memory: that is drawn. MosixError if there are too few."""
    fields: list[tuple[float, float, int]] = []
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as file:
        for line in file:
            columns = line.split()
            if len(columns) != _SWF_FIELDS or columns[0].startswith(";"):
                continue
            if float(columns[_RUN]) >= 1:
                site = int(columns[_PARTITION])
                fields.append((float(columns[_SUBMIT]), float(columns[_RUN]), site))
            if len(fields) >= start + jobs:
                break
    if len(fields) < start + jobs:
        raise MosixError(f"{path}: {len(fields)} usable jobs, wanted {start + jobs}")
    arrival, work, sites = (np.array(column) for column in zip(*fields[start:], strict=True))
    like = generate(nodes, jobs, load, seed=seed)
    arrival = arrival - arrival[0]
    stretch = work.sum() / (load * like.capacity) / max(arrival[-1], 1.0)
    spread = np.random.default_rng(seed).permutation(nodes)
    return Workload(
        like.speed,
        like.cores,
        like.memory_mb,
        arrival * stretch,
        work,
        like.need_mb,
        spread[sites.astype(np.int64) % nodes],
    )


# ---- bounds ----


def least_makespan(load: Workload) -> float:
    """No schedule ends earlier: exact for a batch (Q|pmtn|Cmax), a bound with arrivals."""
    if load.arrival.max() == 0:
        speeds, work = load.core_speeds(), np.sort(load.work)[::-1]
        k = min(len(speeds), len(work))
        longest = (np.cumsum(work)[:k] / np.cumsum(speeds)[:k]).max()
        return float(max(longest, work.sum() / speeds.sum()))
    last_first = np.argsort(-load.arrival)
    after = load.arrival[last_first] + np.cumsum(load.work[last_first]) / load.capacity
    alone = load.arrival + load.work / load.speed.max()
    return float(max(after.max(), alone.max()))


def ideal_sharing(load: Workload) -> Floats:
    """When each job ends if moving were free and at once and all shared the fastest cores
    equally: the honest reference for policies that do not know how long jobs run."""
    speeds = load.core_speeds()
    together = np.concatenate([[0.0], np.cumsum(speeds)])
    done = np.empty(load.jobs)
    served = now = 0.0  # what each running job got since the beginning
    running: list[tuple[float, int]] = []
    coming = 0
    while coming < load.jobs or running:
        k = len(running)
        rate = together[min(k, len(speeds))] / k if k else 0.0
        ends = now + (running[0][0] - served) / rate if k else math.inf
        arrives = load.arrival[coming] if coming < load.jobs else math.inf
        if arrives <= ends:
            served += (arrives - now) * rate
            now = arrives
            heapq.heappush(running, (served + load.work[coming], coming))
            coming += 1
        else:
            served, now = running[0][0], ends
            done[heapq.heappop(running)[1]] = now
    return done


def shortest_first(load: Workload) -> Floats:
    """When each job ends if the shortest remaining ones always had the fastest cores, moving for
    free: a clairvoyant's bound for the mean."""
    speeds = load.core_speeds()
    left, names = np.empty(0), np.empty(0, np.int64)
    done = np.empty(load.jobs)
    now, coming = 0.0, 0
    while coming < load.jobs or len(left):
        k = min(len(left), len(speeds))
        arrives = load.arrival[coming] if coming < load.jobs else math.inf
        times = left[:k] / speeds[:k]
        first = int(times.argmin()) if k else -1
        ends = now + times[first] if k else math.inf
        until = min(arrives, ends)
        left[:k] -= speeds[:k] * (until - now)
        now = until
        if ends <= arrives:
            done[names[first]] = now
            left, names = np.delete(left, first), np.delete(names, first)
        else:
            at = int(left.searchsorted(load.work[coming]))
            left, names = np.insert(left, at, load.work[coming]), np.insert(names, at, coming)
            coming += 1
        order = np.argsort(left, kind="stable")
        left, names = left[order], names[order]
    return done
