"""A node that lends memory keeps its own: guests go home in time, and before anything of the node
is killed a guest is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from faults import guests, mosd, spawners, workers
from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built
from mosix.node.lender import Shortage, reserve_of

GROW = Path(__file__).resolve().parent / "programs" / "grow.c"


def growing(start: Callable[..., Job]) -> Job:
    job = start([str(built(GROW))])
    assert job.line() == "ready"
    return job


def holding(job: Job, *orders: str) -> str:
    for order in orders:
        job.write(f"{order}\n")
    return [job.line() for _ in orders][-1]


def daemons(node: NodeHandle) -> list[int]:
    return sorted([*mosd(node), *spawners(node)])


@pytest.mark.parametrize("order", ["400", "r400"])
def test_a_guest_that_outgrows_its_limit_goes_home_and_computes_on(
    order: str, lab: Cluster, start: Callable[..., Job]
) -> None:
    """By touching memory, or by system calls that fill it."""
    at_home = holding(growing(start), "20", order, "1")
    job = growing(start)
    before = daemons(lab[2])
    with lab[2].memory_left(250):
        holding(job, "20")
        job.move("2")
        assert holding(job, order, "1") == at_home
        drive.wait_for("it is at home", lambda: job.where() == "home")
        assert "MiB for it" in lab[2].log() or "needs its memory" in lab[2].log()
        assert job.row()["nmigs"] >= 2
    assert daemons(lab[2]) == before
    assert job.finish() == (0, "", "")


def test_a_guest_goes_home_when_its_node_needs_the_memory(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    """Its owner's program gets what it asks for."""
    job = growing(start)
    holding(job, "150")
    job.move("2")
    before = daemons(lab[2])
    with lab[2].memory_left(200):
        owner = lab[2].popen([str(built(GROW))], stdin=-1, stdout=-1)
        try:
            assert owner.stdin is not None and owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
            for _ in range(19):
                owner.stdin.write("10\n")
                owner.stdin.flush()
                assert owner.stdout.readline()
            drive.wait_for("it is at home", lambda: job.where() == "home")
            assert "needs its memory" in job.row()["why"]
            assert "needs its memory" in lab[2].log()
        finally:
            owner.stdin.close()
            owner.wait()
            owner.stdout.close()
        assert owner.returncode == 0
    assert daemons(lab[2]) == before
    job.move("3")
    job.move("home")
    other = growing(start)
    assert holding(job, "1") == holding(other, "150", "1")


def test_who_is_killed_when_memory_is_gone_is_a_guest(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    """The kernel's order: guest, its remote, and then only those of the node."""
    job = start(["cat"])
    job.move("2")
    (guest,) = guests(lab[2])
    (remote,) = workers(lab[2])
    scores = {
        pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in lab[2].processes()
    }
    assert scores.pop(guest) == 1000
    stub = int(Path(f"/proc/{guest}/stat").read_text().rpartition(")")[2].split()[1])
    assert scores.pop(stub) == 1000
    assert scores.pop(remote) == 900
    assert max(scores.values()) < 900


def test_a_node_takes_back_from_the_largest_first_and_one_at_a_time() -> None:
    class Guest:
        def __init__(self, used: int) -> None:
            self.used = used
            self.sent = 0

        def memory_used(self) -> int:
            return self.used

        def send_home(self, reason: str) -> None:
            assert reason == "node n needs its memory"
            self.sent += 1

    class Node:
        free = 1 << 30

        def available(self) -> int:
            return self.free

        def memory_total(self) -> int:
            return 4 << 30

    node, here = Node(), [Guest(1), Guest(3), Guest(2)]
    small, large, middle = here
    shortage = Shortage(node, lambda: here, "n")

    def sent() -> list[int]:
        return [small.sent, large.sent, middle.sent]

    shortage.look(0.0)
    assert sent() == [0, 0, 0]
    node.free = shortage.floor() - 1
    shortage.look(1.0)
    shortage.look(1.5)
    assert sent() == [0, 1, 0]
    here.remove(large)
    shortage.look(2.0)
    shortage.look(2.5)
    assert sent() == [0, 1, 1]
    shortage.look(8.0)  # the one in the middle does not come away: then the next, then again
    assert sent() == [1, 1, 1]
    shortage.look(99.0)
    assert sent() == [1, 1, 2]
    node.free = shortage.floor()
    shortage.look(200.0)
    assert sent() == [1, 1, 2]


@pytest.mark.parametrize(
    ("limit", "reserve"), [(29 << 20, 2 << 20), (160 << 20, 10 << 20), (1 << 40, 64 << 20)]
)
def test_what_is_kept_back_of_a_limit_is_bounded(limit: int, reserve: int) -> None:
    assert reserve_of(limit) == reserve
