"""Two virtual machines, with Debian's kernels 6.1 and 6.12, for the tests that need kernels which
the host has not. What a kernel complains of during a test fails that test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle

# what a job is to a test is told once
sys.path.append(str(Path(__file__).resolve().parents[1] / "cluster"))

from trips import in_each  # which needs what lies there


@pytest.fixture(scope="session")
def lab() -> Iterator[Cluster]:
    """n1 with kernel 6.1, n2 with 6.12."""
    name = f"t{os.getpid()}-vm"
    try:
        cluster = Cluster.up(name, 2, "--vm", "--kernel=6.1,6.12")
        in_each(cluster, _first_job)
        yield cluster
        for node in cluster.nodes:
            node.close()
    finally:
        drive.down(name)


def _first_job(node: NodeHandle) -> None:
    """Much is done for the first time, and slowly: after this, limits of time hold."""
    first = ["mosrun", "true"]
    drive.wait_for(
        f"a job in {node.name}", lambda: node.run(first, timeout_s=240).returncode == 0, 240
    )
    node.jobs()  # whom it asks from now on stays until it is closed


@pytest.fixture(autouse=True)
def kernels_are_content(request: pytest.FixtureRequest) -> Iterator[None]:
    """BUG, WARNING, Oops and their like on a machine's console fail the test they appear in."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab: Cluster = request.getfixturevalue("lab")
    before = [len(node.splats()) for node in lab.nodes]
    yield
    said = [
        f"{node.name}: {line}"
        for node, count in zip(lab.nodes, before, strict=True)
        for line in node.splats()[count:]
    ]
    if said:
        pytest.fail("\n".join(said))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Cluster):
        for node in lab.nodes:
            report.sections.append((f"mosd of {node.name}", node.log()[-4000:]))
    return report
