"""mosd is told to stop: nobody is lost, and it does not take for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from jobs import PROGRAMS, Job
from mosix.lab import cluster, drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built


def echo(job: Job, text: str) -> None:
    """The job is alive and is served: it answers on its standard output."""
    job.write(f"{text}\n")
    assert job.line() == text


def mosd_ended(node: NodeHandle) -> str:
    """How, as `mosix-lab status` says."""
    rows = cluster.status(drive.Cluster(node.lab).lab)
    return next(row.mosd for row in rows if row.name == node.name)


def test_own_jobs_come_home_and_guests_are_sent_to_theirs(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    flag = "/node/stopped"
    waiting, at_home = start(["cat"]), start(["cat"])
    computing = start([str(built(PROGRAMS / "checksum.c")), "until", flag])
    waiting.move("2")
    computing.move("3")
    with Job(lab[2], ["cat"]) as visitor:
        visitor.move("1")
        lab[1].mosd("stop")
        try:
            assert mosd_ended(lab[1]) == "exited 0"
            assert [row["pid"] for row in lab[2].jobs()] == [visitor.pid]
            assert visitor.where() == "home"
            assert lab[3].jobs() == []
            echo(visitor, "at its home")
            echo(waiting, "at home")
            echo(at_home, "as before")
            computing.line()
        finally:
            lab[1].mosd("start")
        assert visitor.finish() == (0, "", "")
    lab[1].check(["touch", flag])
    assert waiting.finish() == at_home.finish() == (0, "", "")
    status, output, complaints = computing.finish()
    assert (status, complaints) == (0, "")
    rounds = output.rpartition("rounds ")[2].split()[0]
    plain = lab[1].check([str(built(PROGRAMS / "checksum.c")), "rounds", rounds], timeout_s=60)
    assert output == plain[-len(output) :]


@pytest.fixture
def impatient(lab: Cluster) -> Iterator[NodeHandle]:
    """n1, with a mosd that waits for one second."""
    lab[1].mosd("stop")
    lab[1].check(["mosd", "--detach", "--stop-timeout", "1"])
    try:
        yield lab[1]
    finally:
        lab[1].run(["sh", "-c", "kill $(cat /run/mosix/mosd.pid) 2>/dev/null"])
        lab[1].mosd("start")


def test_a_silent_node_holds_it_only_until_the_deadline(
    impatient: NodeHandle, lab: Cluster, start: Callable[..., Job]
) -> None:
    job, other = start(["cat"]), start(["cat"])
    job.move("2")
    other.move("3")
    guest = lab[2].jobs()[0]["pid"]
    status = lab[2].check(["cat", f"/proc/{guest}/status"])
    remote = next(line.split()[1] for line in status.splitlines() if line.startswith("TracerPid"))
    lab[2].check(["/bin/kill", "-STOP", remote])
    try:
        pid = impatient.path("/run/mosix/mosd.pid").read_text().strip()
        impatient.check(["/bin/kill", pid])
        drive.wait_for("mosd ends", lambda: not impatient.path(f"/proc/{pid}").exists())
        log = impatient.path("/run/mosix/mosd.log").read_text()
        assert "not everybody was home after 1 s" in log
        assert lab[3].jobs() == []  # whoever could come is home
        echo(other, "at home")
    finally:
        lab[2].check(["/bin/kill", "-CONT", remote])
    echo(job, "late")  # and who could not is not lost
    assert job.finish() == other.finish() == (0, "", "")
