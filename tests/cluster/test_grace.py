"""A program that is away does not feel that a connection was lost and made again; it ends, with a
line that names the node, when that takes longer than the grace.

Connections are reset with `ss -K`: the kernel's own end of them. With the cable out the other
side hears nothing of it, as when a router between the two died.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import pytest
from faults import Ledger
from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from test_faults import ledger, restore  # noqa: F401 - a fixture

SIDES = pytest.mark.parametrize("side", [1, 2], ids=["home", "guest"])


def reset(node: NodeHandle, other: NodeHandle) -> None:
    """Every connection between the two, at `node`'s end."""
    assert "ESTAB" in node.check(["ss", "-K", "-t", "dst", other.ip])


def cut(lab: Cluster, side: int) -> None:
    reset(lab[side], lab[3 - side])


def unplugged_cut(lab: Cluster, side: int) -> None:
    """The other side is not told."""
    lab[2].link(up=False)
    try:
        cut(lab, side)
    finally:
        lab[2].link(up=True)


@SIDES
@pytest.mark.parametrize("how", [cut, unplugged_cut], ids=["reset", "half-open"])
def test_writes_and_sleeps_are_made_once(
    side: int,
    how: Callable[[Cluster, int], None],
    lab: Cluster,
    ledger: Ledger,  # noqa: F811
) -> None:
    ledger.job.move("2")
    for _ in range(2):
        ledger.goes_on()
        how(lab, side)
    ledger.goes_on()
    ledger.job.move("3")
    ledger.goes_on()
    ledger.job.move("home")
    assert ledger.finish() == "done"


@SIDES
def test_reads_lose_and_double_nothing(side: int, lab: Cluster, start: Callable[..., Job]) -> None:
    data = os.urandom(8 << 20)
    job = start(["sha256sum"])
    job.move("2")

    def feed() -> None:
        assert job.process.stdin is not None
        for at in range(0, len(data), 1 << 20):
            os.write(job.process.stdin.fileno(), data[at : at + (1 << 20)])

    feeding = threading.Thread(target=feed)
    feeding.start()
    while feeding.is_alive():
        cut(lab, side)
        feeding.join(0.1)
    assert job.finish() == (0, f"{hashlib.sha256(data).hexdigest()}  -\n", "")


@pytest.mark.parametrize("point", ["agent.half_reply", "agent.executed", "redirect.half_sent"])
def test_large_calls_are_made_once(point: str, lab: Cluster, start: Callable[..., Job]) -> None:
    """Their replies do not fit into the memory that the agent has for all others."""
    data = os.urandom(24 << 20)
    lab[1].path("/node/large").write_bytes(data)
    job = start(["sh", "-c", "read go; exec dd if=/node/large of=/node/copy bs=8M status=none"])
    job.move("2")
    node = lab[1 if point.startswith("agent.") else 2]
    try:
        for hit in (1, 3):
            node.arm(f"{point}=cut@{hit}")
            if hit == 1:
                job.write("\n")
        assert job.finish() == (0, "", "")
    finally:
        node.arm("")
    assert lab[1].path("/node/copy").read_bytes() == data


@SIDES
def test_call_that_waits_is_answered_after_it(
    side: int, lab: Cluster, start: Callable[..., Job]
) -> None:
    """The read has begun before, and the line comes while there is no connection."""
    job = start(["cat"])
    job.move("2")
    for text in ("one", "two"):
        lab[2].link(up=False)
        try:
            cut(lab, side)
            job.write(f"{text}\n")
        finally:
            lab[2].link(up=True)
        assert job.line() == text
    job.write("three\n")
    assert job.line() == "three"
    job.move("home")
    assert job.finish() == (0, "", "")


@SIDES
def test_signal_of_the_meantime_comes_once(
    side: int,
    lab: Cluster,
    ledger: Ledger,  # noqa: F811
) -> None:
    ledger.job.move("2")
    ledger.goes_on()
    lab[2].link(up=False)
    try:
        cut(lab, side)
        ledger.job.kill(signal.SIGUSR1)
    finally:
        lab[2].link(up=True)
    ledger.goes_on()
    assert ledger.finish(signals=1) == "done"


def test_cable_out_for_a_while_is_a_pause(
    lab: Cluster,
    ledger: Ledger,  # noqa: F811
) -> None:
    ledger.job.move("2")
    ledger.goes_on()
    lab[2].link(up=False)
    before = ledger.lines()
    lab[1].run(["sleep", "3"])  # the pause itself
    assert ledger.lines() - before < 20
    lab[2].link(up=True)
    ledger.goes_on()
    assert ledger.finish() == "done"


def test_mosps_says_that_it_waits_and_no_move_begins(
    lab: Cluster,
    ledger: Ledger,  # noqa: F811
) -> None:
    ledger.job.move("2")
    lab[2].link(up=False)
    try:
        cut(lab, 1)
        why = drive.wait_for(
            "the wait", lambda: "waits" in (why := ledger.job.row()["why"]) and why
        )
        assert lab[2].ip in why and "60 s" in why
        assert "waits for it up to 60 s" in lab[1].check(["mosps", str(ledger.job.pid)])
        assert ledger.job.where() == lab[2].ip
        said = faults.Order(ledger.job, "home").outcome()
        assert lab[2].ip in said
        assert "lost" in said
    finally:
        lab[2].link(up=True)
    ledger.goes_on()
    assert "waits" not in ledger.job.row()["why"]
    ledger.job.move("home")
    assert ledger.finish() == "done"


def test_killed_while_there_is_no_connection(
    lab: Cluster,
    ledger: Ledger,  # noqa: F811
) -> None:
    ledger.job.move("2")
    lab[2].link(up=False)
    try:
        cut(lab, 1)
        ledger.job.kill(signal.SIGKILL)
        assert ledger.job.process.wait(60) == -signal.SIGKILL
    finally:
        lab[2].link(up=True)


# ---- the grace is over ----


@pytest.fixture(scope="module")
def impatient() -> Iterator[Cluster]:
    """Two nodes that wait for two seconds."""
    name = f"t{os.getpid()}-grace"
    os.environ["MOSIX_GRACE"] = "2"
    cluster = None
    try:
        cluster = Cluster.up(name, 2)
        for node in cluster.nodes:
            assert node.jobs() == []
        yield cluster
    finally:
        del os.environ["MOSIX_GRACE"]
        if cluster is not None:
            cluster.down()
        drive.down(name)


@pytest.mark.parametrize("waits", [False, pytest.param(True, marks=pytest.mark.full)])
def test_after_the_grace_the_job_ends_and_names_the_node(waits: bool, impatient: Cluster) -> None:
    """The guest, which hears of nobody, is killed 10 s later; or sooner, when home can say so."""
    ledger = Ledger(impatient[1], "grace")  # noqa: F811
    try:
        ledger.job.move("2")
        ledger.goes_on()
        (guest,) = faults.guests(impatient[2])
        impatient[2].link(up=False)
        try:
            for side in (1, 2):
                reset(impatient[side], impatient[3 - side])
            assert ledger.job.process.wait(60) == -signal.SIGKILL
            if waits:
                drive.wait_for("end of the lease", lambda: not Path(f"/proc/{guest}").exists(), 30)
        finally:
            impatient[2].link(up=True)
        drive.wait_for("the guest's end", lambda: not Path(f"/proc/{guest}").exists())
        where = f"the connection to node {impatient[2].ip} was lost for 2 s"
        assert ledger.finish() == f"mosix: process {ledger.job.pid} ended: {where}"
    finally:
        ledger.job.end()
