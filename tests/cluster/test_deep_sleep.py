"""A process that sleeps where nothing wakes it keeps no other process of its job."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import PYTHON, Job
from mosix.lab import cgroups, drive
from mosix.lab.drive import Cluster

#: Two processes that echo what they are told through a pipe; ends when both are told to.
PAIR = (
    "import subprocess, sys, json\n"
    "both = [subprocess.Popen(['cat'], stdin=-1, stdout=-1) for _ in range(2)]\n"
    "print(json.dumps([one.pid for one in both]), flush=True)\n"
    "for line in sys.stdin:\n"
    "    one = both[int(line)]\n"
    "    one.stdin.write(b'again\\n')\n"
    "    one.stdin.flush()\n"
    "    print(one.stdout.readline().decode(), end='', flush=True)\n"
    "for one in both:\n"
    "    one.stdin.close()\n"
    "print([one.wait() for one in both])\n"
)


@contextlib.contextmanager
def frozen(lab: Cluster, pid: int) -> Iterator[int]:
    """Process `pid` of n1 in the freezer (version 1): it sleeps as on a dead file server.
    Gives its PID outside of the lab."""
    freezer = cgroups.hierarchies().v1.get("freezer")
    if freezer is None:
        pytest.skip("no freezer of cgroup version 1")
    parent = freezer / cgroups.TOP / lab.name / "n1"
    group = parent / "deep-sleep"
    group.mkdir()
    outer = next(
        int(one)
        for directory in (parent, *parent.rglob("*"))
        if (directory / "cgroup.procs").exists()
        for one in (directory / "cgroup.procs").read_text().split()
        if f"\nNSpid:\t{one}\t{pid}\n" in Path(f"/proc/{one}/status").read_text()
    )
    (group / "cgroup.procs").write_text(str(outer))
    try:
        (group / "freezer.state").write_text("FROZEN")
        drive.wait_for("frozen", lambda: (group / "freezer.state").read_text() == "FROZEN\n")
        yield outer
    finally:
        (group / "freezer.state").write_text("THAWED")
        (parent / "cgroup.procs").write_text(str(outer))
        group.rmdir()


def _where(lab: Cluster, pid: int) -> str | None:
    row = lab[1].job(pid)
    return str(row["where"]) if row else None


def _is_traced(pid: int) -> bool:
    return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("place", ["home", "away"])
def test_it_moves_when_it_wakes_and_others_at_once(
    place: str, lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start([PYTHON, "-c", PAIR])
    asleep, awake = json.loads(job.line())
    home = lab[1]
    if place == "away":
        for pid in (asleep, awake):
            home.migrate(pid, "2")
    here, there = _where(lab, asleep), lab[2].ip if place == "home" else "home"
    target = "2" if place == "home" else "home"
    with frozen(lab, asleep) as outer:
        home.check(["migrate", str(asleep), target])
        drive.wait_for("traced", lambda: _is_traced(outer))
        for goal in (target, "3", target):
            home.migrate(awake, goal)
            job.write("1\n")
            assert job.line() == "again"
        assert (_where(lab, asleep), _where(lab, awake)) == (here, there)
    drive.wait_for("moved", lambda: _where(lab, asleep) == there)
    for number in ("0\n", "1\n"):
        job.write(number)
        assert job.line() == "again"
    assert job.finish() == (0, "[0, 0]\n", "")
