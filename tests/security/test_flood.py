"""A node, or a user's deputy, that says too much: whoever hears it has bounded memory, even when
his own mosd stands still, and the job goes on or ends with a line that says why."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from mosd_nodes import Cluster, Node, echoes, echoing_job, eventually
from mosix.node.records import GuestRecord, JobRecord, read_all

HERE = Path(__file__).resolve().parent
#: What is no growth, kB. Of as many messages kept it would be 5 MiB and more.
_NOISE_KB = 3 << 10
_SAID = "everything was said"


def nodes(cluster: Cluster, *, deputy: str = "", remote: str = "") -> tuple[Node, Node]:
    """Home and another node, with the workers of `mosix` but for those that are named."""
    home, other = cluster.node(1, start=False), cluster.node(2, start=False)
    for node in (home, other):
        node.extra = {"PYTHONPATH": f"{node.environment['PYTHONPATH']}:{HERE}"}
    home.options = ["--deputy", f"hostile_workers:{deputy}" if deputy else "mosix.deputy.main:run"]
    home.options += ["--remote", "mosix.remote.main:run"]
    other.options = ["--deputy", "mosix.deputy.main:run"]
    other.options += [
        "--remote",
        f"hostile_workers:{remote}" if remote else "mosix.remote.main:run",
    ]
    for node in (home, other):
        node.start()
    return home, other


@contextlib.contextmanager
def standing_still(node: Node) -> Iterator[None]:
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.process.send_signal(signal.SIGCONT)


def says(node: Node) -> None:
    """Its hostile worker begins."""
    (node.directory / "say").touch()


def rss_kb(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def deputy_of(home: Node) -> int:
    (record,) = read_all(home.run_dir / "jobs", JobRecord)
    assert record.deputy is not None
    return record.deputy.pid


def unruly(home: Node) -> int:
    counted: dict[str, int] = json.loads(home.mosix("mosctl", "status", "--json").out)["counters"]
    return counted.get("unruly remote", 0)


def test_a_node_that_asks_without_end_fills_no_deputy(cluster: Cluster) -> None:
    home, other = nodes(cluster, remote="asking_remote")
    with echoing_job(home) as process:
        assert home.mosix("migrate", process.pid, 2, "--wait").status == 0
        deputy = deputy_of(home)
        before = rss_kb(deputy)
        with standing_still(home):
            says(other)
            eventually(lambda: _SAID in other.log())
            assert rss_kb(deputy) < before + _NOISE_KB
        assert echoes(process)
        eventually(lambda: unruly(home) == 1)
        assert home.log().count("unruly remote: its guest asks") == 1
        assert home.mosix("migrate", process.pid, "home", "--wait").status == 0
        assert echoes(process)


def test_a_node_that_says_what_nobody_understands_loses_the_job_and_is_named(
    cluster: Cluster,
) -> None:
    home, other = nodes(cluster, remote="babbling_remote")
    with echoing_job(home) as process:
        assert home.mosix("migrate", process.pid, 2, "--wait").status == 0
        says(other)
        assert process.wait(60) == -signal.SIGKILL
        assert process.stderr is not None
        (said,) = process.stderr.read().splitlines()
        assert said.startswith(
            f"mosix: process {process.pid} ended: node {other.ip} broke the rules of the "
            "connection: malformed message"
        )
    assert unruly(home) == 1
    assert f"{other.ip}: unruly remote: malformed message" in home.log()
    eventually(lambda: other.rows() == [] and home.rows() == [])


def test_a_deputy_that_changes_its_mind_without_end_fills_no_remote(cluster: Cluster) -> None:
    home, other = nodes(cluster, deputy="changing_deputy")
    with echoing_job(home) as process:
        assert home.mosix("migrate", process.pid, 2, "--wait").status == 0
        (record,) = read_all(other.run_dir / "guests", GuestRecord)
        before = rss_kb(record.remote.pid)
        with standing_still(other):
            says(home)
            eventually(lambda: _SAID in home.log())
            assert rss_kb(record.remote.pid) < before + _NOISE_KB
        assert echoes(process)
        assert home.mosix("migrate", process.pid, "home", "--wait").status == 0


def test_a_deputy_that_orders_without_end_loses_its_guest_only(cluster: Cluster) -> None:
    home, other = nodes(cluster, deputy="freezing_deputy")
    assert other.process is not None
    daemon = other.process.pid
    with echoing_job(home) as process:
        assert home.mosix("migrate", process.pid, 2, "--wait").status == 0
        says(home)
        assert process.wait(90) == -signal.SIGKILL
    assert "more orders than anybody can carry out" in other.log()
    eventually(lambda: other.rows() == [] and home.rows() == [])
    assert os.path.exists(f"/proc/{daemon}")
    assert other.mosrun("true").status == 0
