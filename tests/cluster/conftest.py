"""A cluster of three nodes for the tests of promises to users, and what they do with it.

`lab` lives as long as the test run. Each test must leave every node as it was: the same
processes (checked for all tests, see tests/conftest.py), cgroups, and descriptors of mosd.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from descriptors import open_in
from jobs import Job, visit_all
from mosix import failpoints
from mosix.lab import cgroups, drive
from mosix.lab.drive import Cluster

_GRACE_S = 30.0


@pytest.fixture(scope="session")
def lab() -> Iterator[Cluster]:
    """Three nodes; n1 is home in all tests."""
    yield from a_lab("lab")


def a_lab(kind: str) -> Iterator[Cluster]:
    name = f"t{os.getpid()}-{kind}"
    cluster = None
    os.environ[failpoints.ENVIRONMENT] = ""  # they may be armed, and are not
    try:
        cluster = Cluster.up(name, 3)
        for node in cluster.nodes:
            assert node.jobs() == []
        visit_all(cluster)
        yield cluster
    finally:
        os.environ.pop(failpoints.ENVIRONMENT, None)  # a worker may have had two such labs
        if cluster is not None:
            cluster.down()
        drive.down(name)


@pytest.fixture
def start(lab: Cluster) -> Iterator[Callable[..., Job]]:
    """Starts jobs on n1 and ends them after the test."""
    jobs: list[Job] = []

    def begin(command: list[str], **options: Any) -> Job:
        job = Job(lab[1], command, **options)
        jobs.append(job)
        return job

    yield begin
    for job in jobs:
        job.end()


def _cgroups(lab: Cluster) -> set[str]:
    found: set[str] = set()
    for root in cgroups.hierarchies().roots():
        for path, _, _ in os.walk(root / cgroups.TOP / lab.name):
            found.add(path)
    return found


def _daemon_descriptors(lab: Cluster) -> dict[str, int]:
    """Open descriptors of each node's mosd and spawner."""
    found: dict[str, int] = {}
    for node in lab.nodes:
        for pid, line in node.processes().items():
            if "mosd" in line:
                try:
                    found[f"{node.name} {pid} {line}"] = len(open_in(pid))
                except (FileNotFoundError, ProcessLookupError):
                    continue
    return found


@pytest.fixture(autouse=True)
def nodes_as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a cgroup or an open descriptor of a daemon in a node."""
    if "lab" not in request.fixturenames:
        yield
        return
    lab: Cluster = request.getfixturevalue("lab")
    groups, descriptors = _cgroups(lab), _daemon_descriptors(lab)
    yield

    def left() -> list[str]:
        now = _daemon_descriptors(lab)
        more = [
            f"{count - descriptors[name]} descriptors of {name}"
            for name, count in now.items()
            if count > descriptors.get(name, count)
        ]
        return more + sorted(_cgroups(lab) - groups)

    end = time.monotonic() + _GRACE_S
    while (leaks := left()) and time.monotonic() < end:
        time.sleep(0.02)
    if leaks:
        pytest.fail("left behind in the lab: " + ", ".join(leaks))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    funcargs = getattr(item, "funcargs", {})
    if report.failed and isinstance(funcargs.get("lab"), Cluster):
        for node in funcargs["lab"].nodes:
            report.sections.append((f"mosd of {node.name}", node.log()[-4000:]))
    return report
