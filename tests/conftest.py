"""What every test has: `--full`, and a check that it left nothing behind.

Left behind means: a process below pytest's (orphans come to it), an open descriptor, a mount (also
that of a named network namespace), a cgroup, a lab. A test that leaves one fails with its name.
Only what this process and its children have made counts (`apart`), nothing of other workers, runs
and labs.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import apart
import pytest
from mosix.lab import drive, state
from mosix.node.jobgroup import OWN_MOUNT

_PR_SET_CHILD_SUBREAPER = 36
#: processes and cgroups end a moment after the thing that ended them
_GRACE_S = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also the long runs (marked full)")


def pytest_configure(config: pytest.Config) -> None:
    # Orphans of a test come to this process instead of init, so that they are seen.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # Terminated, pytest would leave its fixtures as they are, and a lab with them.
    signal.signal(signal.SIGTERM, _terminated)
    _take_down_abandoned(config)
    apart.enter()


def pytest_unconfigure(config: pytest.Config) -> None:
    _take_down_abandoned(config)  # xdist gives its workers little time to end when it is terminated
    apart.leave()


def _terminated(number: int, _: object) -> None:
    pytest.exit("terminated", 128 + number)


def _take_down_abandoned(config: pytest.Config) -> None:
    """Labs of test runs that were killed go down; their names carry the PID of their run."""
    if os.geteuid() != 0 or hasattr(config, "workerinput"):
        return
    for name in state.labs():
        owner = re.fullmatch(r"t(\d+)-.*", name)
        if owner and not os.path.exists(f"/proc/{owner[1]}"):
            drive.down(name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="long; runs with scripts/test --full")
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(skip)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this run has time for long counts."""
    return bool(request.config.getoption("--full"))


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= {int(child) for child in task.read_text().split()}
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _stat(pid: int) -> tuple[str, str] | None:
    """Command line and state letter, or None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    comm = text[text.index("(") : text.rindex(")") + 1]
    return line or comm, text.rpartition(")")[2].split()[0]


def _processes() -> Counter[str]:
    """Descendants that run, by command line: a daemon that was started again is no leak."""
    found: Counter[str] = Counter()
    todo = [os.getpid()]
    while todo:
        try:
            children = _children(todo.pop())
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            stat = _stat(child)
            if stat is not None and stat[1] not in "ZX":
                found[stat[0]] += 1
                todo.append(child)
    return found


def _descriptors() -> dict[str, str]:
    found: dict[str, str] = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def _mounts() -> set[str]:
    """But not those that the kernel makes when somebody looks (tracefs), nor the machine's cgroup
    hierarchy of jobs, which the first mosd or lab mounts for good."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    kept = ("/sys/kernel/", str(OWN_MOUNT))
    return {line for line in lines if not line.split()[4].startswith(kept)}


def _state() -> dict[str, Counter[str]]:
    return {
        "processes": _processes(),
        "descriptors": Counter(f"{fd} {link}" for fd, link in _descriptors().items()),
        "mounts": Counter(_mounts()),
        "labs": Counter(apart.labs()),
        "cgroups": Counter(apart.empty_cgroups()),
    }


def _leaks(before: dict[str, Counter[str]]) -> list[str]:
    now = _state()
    return [
        f"{what}: {', '.join(sorted(now[what] - before[what]))}"
        for what in before
        if now[what] - before[what]
    ]


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves something behind.

    Fixtures that live longer than a test (a session's lab) are set up first, so that what is
    theirs counts as there before.
    """
    for name in ("lab", "balanced", "mixed", "pair", "parking"):
        if name in request.fixturenames:
            request.getfixturevalue(name)
    before = _state()
    yield
    end = time.monotonic() + _GRACE_S
    while (leaks := _leaks(before)) and time.monotonic() < end:
        time.sleep(0.02)
    _reap_orphans()
    if leaks:
        pytest.fail("left behind: " + "; ".join(leaks))


def _reap_orphans() -> None:
    for pid in _children(os.getpid()):
        stat = _stat(pid)
        if stat is not None and stat[1] == "Z":
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
