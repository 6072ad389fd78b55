"""Benchmarks of a live cluster that balances itself, and what that costs its daemons.

Each in a lab of its own, since in those of other benchmarks nobody moves by himself. See `harness`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Goal, Measured, benchmark, program, running
from mosix.balancer.gossip import expected_mean_periods, rules_for
from mosix.errors import MosixError
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle

#: Set by bench/run --quick: fewer pairs, of shorter jobs.
QUICK = "MOSIX_BENCH_QUICK"
_JOBS = 8
_MILLIONS = 200
_IDLE_JOBS = 100
_WATCHED_S = 30.0
_GOSSIPERS = 8


@contextmanager
def _balanced(nodes: int) -> Iterator[Cluster]:
    cluster = Cluster.up(f"bench-{os.getpid()}-balanced", nodes, "--balance")
    try:
        yield cluster
    finally:
        cluster.down()


def _pin(node: NodeHandle, cpu: int) -> None:
    """All that runs in the node, and what it will start, keeps to one CPU; mosd counts that one."""
    for pid in node.processes():
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {cpu})


def _millions(node: NodeHandle, seconds: float) -> int:
    """Steps of `work` for so much CPU time, in millions."""
    with running(node, [program("spin"), str(_MILLIONS)]) as spin:
        nanoseconds = min(spin.batch() for _ in range(3))
    return round(seconds * 1e9 / nanoseconds * _MILLIONS)


def _makespan(orders: list[tuple[NodeHandle, list[str]]]) -> float:
    """Seconds until all of these commands, started together, have ended."""
    begin = time.monotonic()
    processes = [node.popen(command, stdout=subprocess.DEVNULL) for node, command in orders]
    try:
        for process in processes:
            if process.wait():
                raise MosixError(f"{process.args!r} ended with {process.returncode}")
    finally:
        for process in processes:
            if process.poll() is None:
                drive.kill_command(process)
                process.wait()
    return time.monotonic() - begin


@benchmark("live_spread", "s", goal=Goal(1.10), lab=False)
def live_spread() -> Measured:
    """8 equal jobs of 30 s started on node 1 of 2, a CPU each / 4 started on each; 5 pairs."""
    seconds, pairs = (8, 1) if os.environ.get(QUICK) else (30, 5)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        raise MosixError("live_spread needs two CPUs")
    with _balanced(2) as cluster:
        for node, cpu in zip(cluster.nodes, cpus, strict=True):
            _pin(node, cpu)
        work = [program("work"), str(_millions(cluster[1], seconds))]
        # Who enters a node brings his own affinity along.
        one, two = (
            (node, ["taskset", "-c", str(cpu), "mosrun", *work])
            for node, cpu in zip(cluster.nodes, cpus, strict=True)
        )
        spread, static = [one] * _JOBS, [one, two] * (_JOBS // 2)
        rows = []
        for number in range(pairs):
            times = {}
            for which in ((spread, static), (static, spread))[number % 2]:
                times[which is spread] = _makespan(which)
            rows.append((times[True], times[False]))
    return Measured(
        statistics.median(value for value, _ in rows),
        statistics.median(baseline for _, baseline in rows),
        statistics.median(value / baseline for value, baseline in rows),
    )


def _ran_s(node: NodeHandle) -> float:
    """CPU time that mosd of the node has used."""
    ran = 0
    for pid, command in node.processes().items():
        if " -m mosix.cli.mosd" in command:
            for thread in os.listdir(f"/proc/{pid}/task"):
                ran += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    return ran / 1e9


@benchmark("mosd_cpu", "% of a core", goal=Goal(0.5, of="value"), lab=False)
def mosd_cpu() -> Measured:
    """What mosd uses with 100 jobs at home, of which 2 compute."""
    with _balanced(2) as cluster:
        home = cluster[1]
        script = f"for i in $(seq {_IDLE_JOBS - 2}); do mosrun cat <&3 & done; "
        script += 'for i in 1 2; do mosrun -L sh -c "while :; do :; done" & done; wait'
        command = home.argv(["sh", "-c", f"exec 3<&0; {script}"])
        with subprocess.Popen(command, stdin=subprocess.PIPE) as shell:
            try:
                drive.wait_for("the jobs", lambda: len(home.jobs()) >= _IDLE_JOBS, 120)
                time.sleep(5)  # what begins with them is over
                begin, before = time.monotonic(), _ran_s(home)
                time.sleep(_WATCHED_S)
                used = (_ran_s(home) - before) / (time.monotonic() - begin)
            finally:
                home.run(["pkill", "-x", "cat"])
                home.run(["pkill", "-f", "while :; do :; done"])
                shell.communicate()
    return Measured(100 * used)


@benchmark("gossip_live_age", "s", lab=False)
def gossip_live_age() -> Measured:
    """Mean age of what 8 live nodes know of each other, 20 looks / the formula's, one a second."""
    ages = []
    with _balanced(_GOSSIPERS) as cluster:
        drive.wait_for("all to know all", lambda: all(map(_knows_all, cluster.nodes)), 60)
        for _ in range(20):
            time.sleep(1)
            ages += [known["age_s"] for node in cluster.nodes for known in _known(node)]
    window = min(rules_for(_GOSSIPERS).window, _GOSSIPERS - 1)
    return Measured(statistics.mean(ages), expected_mean_periods(_GOSSIPERS, window))


def _known(node: NodeHandle) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads(node.check(["mosctl", "status", "--json"]))["known"]
    return found


def _knows_all(node: NodeHandle) -> bool:
    return len(_known(node)) == _GOSSIPERS - 1
