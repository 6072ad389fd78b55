"""The same on a kernel without what newer ones have: every fallback is taken by real programs.

Killable-only listeners (Linux 5.19), clone3, synchronous wake-ups (6.6) and PAGEMAP_SCAN (6.7)
are refused to deputies, remotes and guests by a filter (old_kernel.py).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import PROGRAMS, Job, act
from mosix.lab import drive
from mosix.lab.drive import Cluster
from mosix.lab.programs import built
from test_ignored_signals import Scene, play
from test_moves import checksum, plainly, rounds_of, states, through_every_state, wander

_UP = """
import sys
from mosix.lab import cgroups, cluster
mosd = [*cluster.default_mosd(), "--deputy", "old_kernel:deputy", "--remote", "old_kernel:remote"]
cluster.up(sys.argv[1], 3, cgroups.Limits(), mosd)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Cluster]:
    """Three nodes with an old kernel."""
    name = f"t{os.getpid()}-old"
    path = f"{os.environ.get('PYTHONPATH', '')}:{Path(__file__).parent}".lstrip(":")
    cluster = None
    try:
        command = [sys.executable, "-c", _UP, name]
        subprocess.run(command, check=True, timeout=120, env={**os.environ, "PYTHONPATH": path})
        cluster = Cluster(name)
        for node in cluster.nodes:
            assert node.jobs() == []
        with Job(cluster[1], ["cat"]) as job:
            for target in ("2", "3", "home"):
                job.move(target)
        yield cluster
    finally:
        if cluster is not None:
            cluster.down()
        drive.down(name)


def test_guests_are_refused_what_is_new(lab: Cluster, start: Callable[..., Job]) -> None:
    """The filter is there, so that the other tests are about something."""
    job = start(["cat"])
    job.move("2")
    (guest,) = [row for row in lab[2].jobs() if row["origin_pid"] == job.pid]
    status = Path(f"/proc/{lab[2].host_pid(guest['pid'])}/status").read_text()
    assert "Seccomp_filters:\t2\n" in status


def test_random_moves_change_nothing(lab: Cluster, start: Callable[..., Job]) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    flag, result = "/node/stop-old", lab[1].path("/node/random-old")
    with result.open("w") as output:
        job = start([*checksum("python"), "until", flag], stdout=output)
    assert len(wander(lab, job, 20, seed)) == 20
    lab[1].check(["touch", flag])
    assert job.finish()[::2] == (0, "")
    text = result.read_text()
    assert text == plainly(lab[1], [*checksum("python"), "rounds", rounds_of(text)])


def test_blocked_stopped_computing_and_asleep(start: Callable[..., Job]) -> None:
    through_every_state(start(states("static")))


def test_a_large_write_is_whole(start: Callable[..., Job]) -> None:
    code = "import os; n = os.write(1, bytes(range(256)) * 16384); os.write(2, b'%d' % n)"
    job = start(["/usr/bin/python3", "-c", code])
    for target in ("2", "3", "home"):
        job.move(target)
    assert job.stdout_bytes() == bytes(range(256)) * 16384
    assert job.process.stderr is not None
    assert job.process.stderr.read() == str(4 << 20)


def test_signals_come_all_once_and_in_order(lab: Cluster, start: Callable[..., Job]) -> None:
    count, seed = 300, random.randrange(1 << 31)
    print(f"seed {seed}")
    job = start([str(built(PROGRAMS / "storm.c")), str(count)])
    assert job.line() == "ready"
    script = [sys.executable, str(PROGRAMS / "storm.py"), str(job.pid), str(count), str(seed)]
    done = lab[1].run(script, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert job.finish() == (0, f"{count} queued, 0 wrong, 0 errors, all came\n", "")


def test_ignored_signals_are_not_felt(start: Callable[..., Job]) -> None:
    job = start([str(built(PROGRAMS / "ignored.c"))], options=("-2",))
    play(Scene(job.process, job.outer))
    assert job.process.wait(60) == 0


def test_what_needs_home_comes_home(start: Callable[..., Job]) -> None:
    """Without clone3 the C library forks with clone, which is just as foreign to a guest."""
    job = start(act("fork"))
    assert job.line() == "ready"
    job.move("2")
    job.write("\n")
    assert job.finish() == (0, "child exited 5\n", "")
