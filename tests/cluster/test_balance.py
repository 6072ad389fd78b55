"""Nobody types `migrate`: load, memory and I/O decide where a job runs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster

#: Decisions take seconds, on a machine with much other work many of them.
PATIENCE_S = 120.0
SPIN = ["sh", "-c", "while :; do :; done"]


@pytest.fixture(scope="module")
def balanced() -> Iterator[Cluster]:
    """Two nodes that decide by themselves."""
    name = f"t{os.getpid()}-balanced"
    cluster = None
    try:
        cluster = Cluster.up(name, 2, "--balance", "--memory-mb=768")
        for node in cluster.nodes:  # what answers is there from now on
            assert node.jobs() == []
        yield cluster
    finally:
        if cluster is not None:
            cluster.down()
        drive.down(name)


@pytest.fixture
def begin(balanced: Cluster) -> Iterator[Callable[..., Job]]:
    """Starts jobs on n1 and ends them after the test; nobody else is to be there."""
    drive.wait_for("idle nodes", lambda: not (balanced[1].jobs() or balanced[2].jobs()))
    jobs: list[Job] = []

    def start(command: list[str], *options: str) -> Job:
        jobs.append(Job(balanced[1], command, options=options))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def places(cluster: Cluster) -> Counter[str]:
    return Counter(row["where"] for row in cluster[1].jobs())


def wait_for_places(cluster: Cluster, home: int, away: int) -> None:
    wanted = {"home": home, cluster[2].ip: away}
    drive.wait_for(f"{wanted}", lambda: places(cluster) == wanted, PATIENCE_S)


def cpu_s(cluster: Cluster) -> float:
    """That all jobs have used so far, wherever they are."""
    ticks = 0
    for node in cluster.nodes:
        for pid, command in node.processes().items():
            if command.startswith(SPIN[0]):
                try:
                    stat = Path(f"/proc/{pid}/stat").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                ticks += sum(map(int, stat.rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def work_on(cluster: Cluster, seconds: float) -> None:
    """Until the jobs have used so much more: the balancer has had its time to err."""
    end = cpu_s(cluster) + seconds
    drive.wait_for(f"{seconds} s of CPU", lambda: cpu_s(cluster) >= end, PATIENCE_S)


def test_equal_jobs_of_one_node_spread_over_two_and_stay(
    balanced: Cluster, begin: Callable[..., Job]
) -> None:
    for _ in range(4):
        begin(SPIN)
    wait_for_places(balanced, home=2, away=2)
    moves = sum(row["nmigs"] for row in balanced[1].jobs())
    assert moves == 2
    work_on(balanced, 8)
    # another one may be wanted by what else runs here; none goes to and fro
    assert sum(row["nmigs"] for row in balanced[1].jobs()) <= moves + 1
    away = next(row for row in balanced[1].jobs() if row["where"] == balanced[2].ip)
    why = balanced[1].check(["mosps", "--why", str(away["pid"])])
    assert "balanced: " in why
    assert "gains" in why


def test_a_locked_job_stays_when_others_leave(balanced: Cluster, begin: Callable[..., Job]) -> None:
    locked = begin(SPIN, "-L")
    for _ in range(3):
        begin(SPIN)
    wait_for_places(balanced, home=2, away=2)
    assert locked.where() == "home"
    assert locked.row()["nmigs"] == 0


def test_a_job_that_asks_for_much_io_goes_home_and_stays(
    balanced: Cluster, begin: Callable[..., Job]
) -> None:
    job = begin(["dd", "if=/dev/zero", "of=/dev/null", "bs=1"], "-2")
    job.wait_until_at(balanced[2].ip)
    drive.wait_for("it goes home", lambda: job.row()["why"].startswith("balanced"), PATIENCE_S)
    assert job.where() == "home"
    moves = job.row()["nmigs"]
    spin = begin(SPIN, "-L")
    work_on(balanced, 5)
    assert spin.where() == job.where() == "home"
    assert job.row()["nmigs"] == moves
