"""A deputy belongs to its job's user. What it says to another node is checked there: a bad body is
refused or harms nobody but itself, and the node goes on as before. So is what comes home."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_images import MUTATIONS
from mosd_nodes import Cluster, Node, echoes, echoing_job, eventually

HERE = Path(__file__).resolve().parent
#: Bodies that a kernel takes: they run, or die of what they are, in their own process.
HARMLESS = frozenset(
    {
        "attributes",
        "sigkill",
        "handlers",
        "xstate",
        "fs_base",
        "kernel_registers",
        "rseq",
        "epoch",
        "without_pages",
        "large_xstate",
    }
)


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[tuple[Node, Node]]:
    """Home, of which the user has the deputy in his hands, and a node like any other."""
    home, other = cluster.node(1, start=False), cluster.node(2, start=False)
    home.options = ["--deputy", "hostile_images:run", "--remote", "mosix.remote.main:run"]
    other.options = ["--deputy", "mosix.deputy.main:run", "--remote", "mosix.remote.main:run"]
    home.extra = {"PYTHONPATH": f"{home.environment['PYTHONPATH']}:{HERE}"}
    for node in (home, other):
        node.start()
    yield home, other


def rss_kb(node: Node) -> int:
    assert node.process is not None
    text = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def test_a_good_body_goes_and_comes(pair: tuple[Node, Node]) -> None:
    """So what follows fails for its own reason."""
    home, other = pair
    with echoing_job(home) as process:
        assert home.mosix("migrate", process.pid, 2, "--wait").status == 0
        assert echoes(process)
        assert len(other.rows()) == 1
        assert home.mosix("migrate", process.pid, "home", "--wait").status == 0
        assert echoes(process)


@pytest.mark.parametrize("part", range(4))
def test_a_bad_body_harms_nobody_but_itself(part: int, pair: tuple[Node, Node]) -> None:
    home, other = pair
    assert other.process is not None
    daemon, before = other.process.pid, rss_kb(other)
    for name in sorted(MUTATIONS)[part::4]:
        with echoing_job(home, HOSTILE=name) as process:
            done = home.mosix("migrate", process.pid, 2, "--wait")
            if done.status:
                assert done.status in (8, 10), (name, done)
                assert len(done.err.splitlines()) == 1, (name, done)
                assert echoes(process), name
            else:
                assert name in HARMLESS, name
        eventually(lambda: other.rows() == [], 30)
    with echoing_job(home) as process:
        assert home.mosix("migrate", process.pid, 2, "--wait").status == 0
        assert echoes(process)
    assert other.process.poll() is None
    assert other.process.pid == daemon
    assert rss_kb(other) < before + (16 << 10)
    assert "Traceback" not in other.log(), other.log()
    assert os.path.exists(f"/proc/{daemon}")


@pytest.mark.parametrize(
    "name", ["kernel_half", "everything", "runs_outside", "memory_over_the_vdso", "small_xstate"]
)
def test_a_bad_body_does_not_come_home(name: str, cluster: Cluster) -> None:
    """Its process goes on where it is, or ends with a line that says so; home is as before."""
    home, other = cluster.node(1, start=False), cluster.node(2, start=False)
    home.options = ["--deputy", "mosix.deputy.main:run"]
    other.options = ["--remote", f"hostile_images:remote_{name}"]
    other.extra = {"PYTHONPATH": f"{other.environment['PYTHONPATH']}:{HERE}"}
    for node in (home, other):
        node.start()
    with echoing_job(home) as process:
        assert home.mosix("migrate", process.pid, 2, "--wait").status == 0
        assert echoes(process)
        done = home.mosix("migrate", process.pid, "home", "--wait")
        assert done.status in (10, 13), done
        assert len(done.err.splitlines()) == 1
        if name == "small_xstate":  # known only when its memory is there and the guest is gone
            assert process.wait(30) == -signal.SIGKILL
            assert process.stderr is not None
            assert f"process {process.pid} ended" in process.stderr.read()
        else:
            assert home.row(process.pid)["where"] == other.ip
            assert echoes(process)
    eventually(lambda: home.rows() == [] and other.rows() == [], 30)
    assert home.mosrun("true").status == 0
