"""Whoever serves a job's opens may die at any time: nothing hangs, and nothing fails."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import faults
import pytest
from jobs import PROGRAMS, Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built


def opens() -> list[str]:
    return [str(built(PROGRAMS / "opens.c")), "/node/name"]


def goes_on(job: Job) -> None:
    """All its processes open files."""
    job.write("\n")
    assert job.line() == "ok"


@pytest.fixture
def home(lab: Cluster) -> Iterator[NodeHandle]:
    """n1, whose daemons run again afterwards."""
    yield lab[1]
    if not faults.mosd(lab[1]):
        lab[1].mosd("start")
    # A spawner that was killed takes a moment to be there again.
    drive.wait_for("launches", lambda: lab[1].run(["mosrun", "true"]).returncode == 0, 60)


ORDERS = [
    ("deputy",),
    ("mosd",),
    ("spawner",),
    *itertools.permutations(("deputy", "mosd")),
    *itertools.permutations(("deputy", "spawner")),
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_opens_go_on_when_their_servers_die(
    order: tuple[str, ...], home: NodeHandle, start: Callable[..., Job]
) -> None:
    job = start(opens())
    goes_on(job)
    (deputy,) = faults.workers(home)
    victims = {"deputy": [deputy], "mosd": faults.mosd(home), "spawner": faults.spawners(home)}
    for who in order:
        assert faults.kill(victims[who])
        goes_on(job)
    assert job.finish() == (0, "", "")
    drive.wait_for("nobody to serve it any more", lambda: not faults.workers(home))


def test_opens_go_on_when_all_their_servers_but_one_die_at_once(
    home: NodeHandle, start: Callable[..., Job]
) -> None:
    job = start(opens())
    goes_on(job)
    (deputy,) = faults.workers(home)
    faults.kill([deputy, *faults.mosd(home)])
    goes_on(job)
    assert job.finish() == (0, "", "")


def test_the_survivor_may_die_too(home: NodeHandle, start: Callable[..., Job]) -> None:
    job = start(opens())
    goes_on(job)
    for _ in range(3):
        drive.wait_for("a server", lambda: bool(faults.workers(home)))
        faults.kill(faults.workers(home))
        goes_on(job)
    assert job.finish() == (0, "", "")


@pytest.mark.parametrize(
    "order", [("mosd",), ("spawner", "mosd"), ("deputy", "mosd")], ids="-".join
)
def test_opens_go_on_when_their_servers_die_under_the_next_mosd(
    order: tuple[str, ...], home: NodeHandle, start: Callable[..., Job]
) -> None:
    """It got the listener from the spawner of the one before, which is not needed any more, or
    from the deputy."""
    job = start(opens())
    goes_on(job)
    (deputy,) = faults.workers(home)
    victims = {"deputy": [deputy], "mosd": faults.mosd(home), "spawner": faults.spawners(home)}
    for who in order:
        faults.kill(victims[who])
        goes_on(job)
    home.mosd("start")
    drive.wait_for("the listener", lambda: any(map(holds_listener, faults.spawners(home))))
    drive.wait_for("one server", lambda: len(faults.workers(home)) == 1)
    for _ in range(2):
        faults.kill(faults.workers(home))
        goes_on(job)
    assert job.finish() == (0, "", "")
    drive.wait_for("nobody to serve it any more", lambda: not faults.workers(home))


def holds_listener(pid: int) -> bool:
    try:
        return any("seccomp" in os.readlink(fd.path) for fd in os.scandir(f"/proc/{pid}/fd"))
    except FileNotFoundError:
        return False


def test_a_question_whose_deputy_died_is_a_file_that_does_not_exist(
    home: NodeHandle, start: Callable[..., Job]
) -> None:
    job = start([str(built(PROGRAMS / "asks.c"))])
    job.write("r lock\n")
    assert job.line() == "0"
    faults.kill(faults.workers(home))
    job.write("r lock\no /node/name\n")
    assert [job.line(), job.line()] == ["-1 ENOENT", "n1"]
    assert job.finish() == (0, "", "")
