"""Benchmarks of jobs at home: what mosrun itself costs, in time and in memory.

See `harness`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from harness import Goal, Measured, benchmark, pairs, program, running
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle

_LAUNCHES = 50
_IDLE_JOBS = 100
_OPENS = 10_000


@benchmark("launch", "ms", goal=Goal(10, of="value"))
def launch(cluster: Cluster) -> Measured:
    """Median of 50 `mosrun true`, from start to end, less the median of 50 `true`."""
    home, starter = cluster[1], program("launch")
    with running(home, [starter, "mosrun", "true"]) as job, running(home, [starter, "true"]) as own:
        for warm in (job, own):
            warm.batch()
        value, baseline, _ = pairs(job.batch, own.batch, _LAUNCHES)
    return Measured((value - baseline) / 1e6)


@benchmark("deputy_pss", "MB", goal=Goal(4, of="value"))
def deputy_pss(cluster: Cluster) -> Measured:
    """What 100 idle jobs at home add to the PSS of the node's other processes, per job."""
    home = cluster[1]
    drive.wait_for("the jobs of others end", lambda: not home.jobs())
    before = sum(map(_pss, home.processes()))
    script = f"for i in $(seq {_IDLE_JOBS}); do mosrun cat <&3 & done; wait"
    with subprocess.Popen(
        home.argv(["sh", "-c", f"exec 3<&0; {script}"]), stdin=subprocess.PIPE
    ) as shell:
        try:
            drive.wait_for("100 idle jobs", lambda: len(_idle(home)) == _IDLE_JOBS, 120)
            theirs = {*_idle(home), home.pids_of(shell)[0]}
            after = sum(_pss(pid) for pid in home.processes() if pid not in theirs)
        finally:
            shell.communicate()
    return Measured((after - before) / _IDLE_JOBS)


@benchmark("open_home", "µs", goal=None)
def open_home(cluster: Cluster) -> Measured:
    """Opening a file with flags that a job's filter notifies, at home against natively."""
    return _opens(cluster, "plain")


@benchmark("open_home_cloexec", "µs", goal=Goal(1.1))
def open_home_cloexec(cluster: Cluster) -> Measured:
    """The same with O_CLOEXEC, which the filter lets pass."""
    return _opens(cluster, "cloexec")


@benchmark("cpu_clock_home", "µs", goal=None)
def cpu_clock_home(cluster: Cluster) -> Measured:
    """Reading the CPU clock of a process that was never away, at home against natively."""
    return _against_native(cluster, [program("cpuclock"), str(_OPENS)])


def _opens(cluster: Cluster, flags: str) -> Measured:
    return _against_native(cluster, [program("opens"), "/node/name", flags, str(_OPENS)])


def _against_native(cluster: Cluster, command: list[str]) -> Measured:
    home = cluster[1]
    with running(home, ["mosrun", *command]) as job, running(home, command) as native:
        job.is_a_job()
        for warm in (job, native):
            warm.batch()
        value, baseline, ratio = pairs(job.batch, native.batch, 30)
    return Measured(value / 1e3, baseline / 1e3, ratio)


def _idle(node: NodeHandle) -> list[int]:
    """Host PIDs of the processes that are jobs, and programs already."""
    return [
        pid
        for pid, command in node.processes().items()
        if command == "cat" and "/mosix-job-" in Path(f"/proc/{pid}/cgroup").read_text()
    ]


def _pss(pid: int) -> float:
    """MB of memory of process `pid`, what it shares counted in shares."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss: +(\d+) kB$", rollup, re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0
