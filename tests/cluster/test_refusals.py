"""Whatever goes wrong with a move: the job goes on where it was, and the command says why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import faults
import pytest
from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built

HOLD = Path(__file__).parents[2] / "bench/programs/hold.c"


def refused(job: Job, target: str, code: int) -> str:
    """The move fails with this exit code and one line, and the job works on where it was."""
    where = job.where()
    done = job.home.run(["migrate", "--wait", str(job.pid), target])
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert job.where() == where
    job.write("on I go\n")
    assert job.line() == "on I go"
    return done.stderr


def test_unknown_node(start: Callable[..., Job]) -> None:
    job = start(["cat"])
    for target in ("9", "10.99.0.1", "nowhere"):
        assert target in refused(job, target, 6)


def test_unknown_process(lab: Cluster) -> None:
    done = lab[1].run(["migrate", "--wait", "999999", "2"])
    assert done.returncode == 5
    assert "999999" in done.stderr


@pytest.mark.parametrize("at", ["home", "2"])
def test_node_whose_mosd_is_down(at: str, lab: Cluster, start: Callable[..., Job]) -> None:
    job = start(["cat"])
    job.home.migrate(job.pid, at)
    lab[3].mosd("kill")
    try:
        refused(job, "3", 7)
    finally:
        lab[3].mosd("start")
    job.move("3")


@pytest.mark.full
def test_node_that_is_unplugged(lab: Cluster, start: Callable[..., Job]) -> None:
    """Nothing answers at all, not even with a refusal."""
    job = start(["cat"])
    lab[3].link(up=False)
    try:
        refused(job, "3", 7)
    finally:
        lab[3].link(up=True)


@contextmanager
def configured(node: NodeHandle, name: str, text: str) -> Iterator[None]:
    """The node's mosd with another file in /etc/mosix, for a while."""
    file = node.path(f"/etc/mosix/{name}")
    before = file.read_text()
    node.mosd("stop")
    file.write_text(text)
    node.mosd("start")
    try:
        yield
    finally:
        node.mosd("stop")
        file.write_text(before)
        node.mosd("start")


@pytest.mark.parametrize("at", ["home", "2"])
def test_wrong_secret(at: str, lab: Cluster, start: Callable[..., Job]) -> None:
    job = start(["cat"])
    job.home.migrate(job.pid, at)
    with configured(lab[3], "secret", "another secret of some length\n"):
        assert "secret" in refused(job, "3", 8)


def test_home_that_is_not_in_the_map_of_the_target(lab: Cluster, start: Callable[..., Job]) -> None:
    job = start(["cat"])
    with configured(lab[3], "mosix.map", f"{lab[2].ip} 2\n"):
        refused(job, "3", 8)


@pytest.mark.parametrize("at", ["home", "2"])
def test_target_short_of_memory(at: str, lab: Cluster, start: Callable[..., Job]) -> None:
    """300 MiB and ten per cent do not fit into what is left."""
    job = start([str(built(HOLD)), "300"])
    job.line()
    job.write("\n")
    expected = job.line()
    job.home.migrate(job.pid, at)
    with lab[3].memory_left(200):
        done = job.home.run(["migrate", "--wait", str(job.pid), "3"])
        assert done.returncode == 8, done.stderr
        assert "memory" in done.stderr
        job.write("\n")
        assert job.line() == expected
    job.move("3")


@pytest.mark.parametrize("at", ["home", "2"])
def test_connection_cut_in_the_middle_of_the_pages(
    at: str, lab: Cluster, start: Callable[..., Job]
) -> None:
    """Everything of mosix on the target dies while 600 MiB are on their way."""
    job = start([str(built(HOLD)), "600"])
    job.line()
    job.write("\n")
    expected = job.line()
    job.home.migrate(job.pid, at)
    where = job.where()
    before = faults.received(lab[3])
    with faults.slow_sender(lab[1] if at == "home" else lab[2]):
        order = job.home.popen(["migrate", "--wait", str(job.pid), "3"], stderr=-1)
        drive.wait_for("some pages", lambda: faults.received(lab[3]) > before + (100 << 20))
        lab[3].mosd("kill")
        lab[3].run(["pkill", "-9", "-f", "mosix"])
        _, complaint = order.communicate(timeout=60)
    lab[3].mosd("start")
    assert order.returncode in (7, 10), complaint
    assert job.where() == where
    job.write("\n")
    assert job.line() == expected
    job.move("3")


@pytest.mark.full
def test_link_cut_in_the_middle_of_the_pages(lab: Cluster, start: Callable[..., Job]) -> None:
    """No reset tells anybody: the move fails by its deadline."""
    job = start([str(built(HOLD)), "600"])
    job.line()
    before = faults.received(lab[3])
    with faults.slow_sender(lab[1]):
        order = job.home.popen(["migrate", "--wait", str(job.pid), "3"], stderr=-1)
        try:
            drive.wait_for("some pages", lambda: faults.received(lab[3]) > before + (100 << 20))
            lab[3].link(up=False)
            _, complaint = order.communicate(timeout=120)
        finally:
            lab[3].link(up=True)
    assert order.returncode in (7, 10), complaint
    assert job.where() == "home"
    job.write("\n")
    assert job.line()


def test_full_disk_at_home_is_the_programs_own_error(lab: Cluster) -> None:
    """A program away that fills home's disk gets ENOSPC as natively, with as much written."""
    lab[1].check(["sh", "-c", "mkdir -p /node/small; mount -t tmpfs -o size=1m none /node/small"])
    try:
        command = ["dd", "if=/dev/zero", "of=/node/small/a", "bs=64k", "status=none"]
        plain = lab[1].run(command)
        size = lab[1].path("/node/small/a").stat().st_size
        lab[1].path("/node/small/a").unlink()
        sent = lab[1].run(["mosrun", "-2", *command])
        assert (sent.returncode, sent.stderr) == (plain.returncode, plain.stderr)
        assert lab[1].path("/node/small/a").stat().st_size == size
    finally:
        lab[1].check(["umount", "/node/small"])


def test_jobs_come_home_when_their_mosd_stops(lab: Cluster, start: Callable[..., Job]) -> None:
    job = start(["cat"])
    job.move("2")
    lab[1].mosd("stop")
    try:
        assert lab[2].jobs() == []
        job.write("at home\n")
        assert job.line() == "at home"
    finally:
        lab[1].mosd("start")
    assert job.finish() == (0, "", "")


def test_guests_are_sent_home_when_their_node_stops(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(["cat"])
    job.move("2")
    lab[2].mosd("stop")
    try:
        assert job.where() == "home"
        job.write("back\n")
        assert job.line() == "back"
    finally:
        lab[2].mosd("start")
