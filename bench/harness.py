"""What a benchmark is, and what every one of them needs: a lab, fair pairs, a table.

A benchmark measures a thing and its baseline in one run, interleaved, since this or that machine
may be fast or slow, alone or not; what counts is the ratio. `bench/run` calls them by name.
Registered by the decorator `benchmark`; must never print.
"""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from mosix.errors import MosixError
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built

PROGRAMS = Path(__file__).resolve().parent / "programs"


@dataclass(frozen=True)
class Goal:
    """What the ratio, or where that says nothing the value itself, must come up to."""

    limit: float
    sign: Literal["≤", "≥"] = "≤"
    of: Literal["ratio", "value"] = "ratio"

    def __str__(self) -> str:
        return f"{self.sign} {self.limit}"

    def met(self, measured: float) -> bool:
        return measured <= self.limit if self.sign == "≤" else measured >= self.limit


@dataclass(frozen=True)
class Measured:
    """`value` and `baseline`, if there is one, in the benchmark's unit."""

    value: float
    baseline: float | None = None
    #: median of the ratios of pairs, where that is what counts; else value / baseline
    paired_ratio: float | None = None


@dataclass(frozen=True)
class Benchmark:
    name: str
    unit: str
    #: None: reported
    goal: Goal | None
    #: gets a cluster if it wants a `lab`, else nothing
    measure: Callable[..., Measured]
    lab: bool = True


@dataclass(frozen=True)
class Result:
    """A row of the table, and a record of --json."""

    name: str
    value: float
    unit: str
    baseline: float | None
    ratio: float | None
    goal: Goal | None

    def met(self) -> bool:
        if self.goal is None:
            return True
        measured = self.value if self.goal.of == "value" else self.ratio
        return measured is not None and self.goal.met(measured)


REGISTRY: dict[str, Benchmark] = {}


_Measure = TypeVar("_Measure", bound=Callable[..., Measured])


def benchmark(
    name: str, unit: str, goal: Goal | None = None, *, lab: bool = True
) -> Callable[[_Measure], _Measure]:
    """Register a function as benchmark `name`."""

    def register(measure: _Measure) -> _Measure:
        REGISTRY[name] = Benchmark(name, unit, goal, measure, lab)
        return measure

    return register


def evaluate(bench: Benchmark, lab: Callable[[], Cluster]) -> Result:
    """`lab` is called only if it is needed."""
    measured = bench.measure(lab()) if bench.lab else bench.measure()
    ratio = measured.paired_ratio
    if ratio is None and measured.baseline:
        ratio = measured.value / measured.baseline
    return Result(bench.name, measured.value, bench.unit, measured.baseline, ratio, bench.goal)


def program(name: str, *flags: str) -> str:
    """Path of the compiled bench/programs/NAME.c."""
    return str(built(PROGRAMS / f"{name}.c", *flags))


class Batches:
    """A running program of bench/programs: one number for each batch asked for."""

    def __init__(self, node: NodeHandle, process: subprocess.Popen[str]) -> None:
        self.node = node
        self.process = process

    def line(self) -> str:
        """The next line it prints; MosixError if it ends instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise MosixError(f"{self.process.args!r} ended with {self.process.wait()}")
        return line.strip()

    def begin(self) -> None:
        """Of a batch whose number nobody waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def batch(self) -> float:
        self.begin()
        return float(self.line())

    def pid(self) -> int:
        """Its PID in its node."""
        return self.node.pid_of(self.process)

    def is_a_job(self) -> int:
        """Its PID, once mosrun has made it a job."""
        pid = self.pid()
        drive.wait_for(f"job {pid}", lambda: self.node.job(pid))
        return pid


@contextmanager
def running(node: NodeHandle, command: Sequence[str]) -> Iterator[Batches]:
    """A program of bench/programs in `node`, ended afterwards."""
    pipe = subprocess.PIPE
    process: subprocess.Popen[Any] = node.popen(command, stdin=pipe, stdout=pipe)
    try:
        yield Batches(node, process)
    finally:
        drive.kill_command(process)
        process.communicate()


def pairs(
    first: Callable[[], float], second: Callable[[], float], count: int
) -> tuple[float, float, float]:
    """Medians of `count` interleaved measurements of both, and the median of their ratios.

    The order within a pair alternates, so that neither is always the one that comes after."""
    values: list[tuple[float, float]] = []
    for number in range(count):
        if number % 2:
            baseline = second()
            values.append((first(), baseline))
        else:
            value = first()
            values.append((value, second()))
    return (
        statistics.median(value for value, _ in values),
        statistics.median(baseline for _, baseline in values),
        statistics.median(value / baseline for value, baseline in values),
    )


@contextmanager
def pair_of_nodes() -> Iterator[Cluster]:
    """A lab of two nodes for the benchmarks."""
    cluster = Cluster.up(f"bench-{os.getpid()}", 2)
    try:
        yield cluster
    finally:
        cluster.down()
