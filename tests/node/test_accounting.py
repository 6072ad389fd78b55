"""mosctl status says how the work of jobs at home is counted, and mosps shows what was counted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from mosd_nodes import MOSRUN, Cluster, Node, eventually
from mosix.balancer import account

_WORK = "import os\nzero = os.open('/dev/zero', 0)\nwhile True: os.read(zero, 1000)"


def how(node: Node) -> str:
    done = node.mosix("mosctl", "status", "--json")
    load = json.loads(done.out)["load"]
    return str(load["accounting"]) if load else ""


def read_per_s(node: Node, pid: int) -> int:
    """Bytes that the job's process `pid` is known to read."""
    found = [row["stats"] for row in node.rows() if row["pid"] == pid]
    return found[0].get("read_per_s", 0) if found else 0  # type: ignore[attr-defined]


def counted(node: Node, expected: str) -> None:
    """A working job's calls and bytes are seen, with the accounting that is `expected`."""
    with subprocess.Popen(
        [str(MOSRUN), "/usr/bin/python3", "-c", _WORK], env=node.environment, cwd="/"
    ) as job:
        try:
            eventually(lambda: read_per_s(node, job.pid) > 1000, 30)
            assert how(node) == expected
            assert f"counted by {expected}" in node.mosix("mosctl", "status").out
        finally:
            job.kill()


def test_ebpf_counts_where_it_can(cluster: Cluster) -> None:
    if account.why_not():
        pytest.skip(account.why_not())
    node = cluster.node(1, accounting="auto")
    eventually(lambda: how(node) == "eBPF, when a job is at home")
    counted(node, "eBPF")


def test_proc_counts_where_ebpf_is_not_wanted(cluster: Cluster) -> None:
    counted(cluster.node(1), "/proc: as ordered")


def test_proc_counts_where_ebpf_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()  # headers without a header
    node = cluster.node(1, accounting="auto", extra={"BCC_KERNEL_SOURCE": str(tmp_path)})
    with subprocess.Popen([str(MOSRUN), "sleep", "1000"], env=node.environment, cwd="/") as job:
        eventually(lambda: how(node).startswith("/proc: the kernel or bcc refuses: "), 30)
        job.kill()
    assert "no accounting with eBPF" in node.log()
