"""Benchmarks of what it costs to be ready for failures, and how long one lasts.

See `harness`. `failpoints_off` builds mosix a second time, in build/no-failpoints, with the points
of its C loops left out.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from harness import Batches, Goal, Measured, benchmark, pairs, program, running
from mosix.lab.drive import Cluster

ROOT = Path(__file__).resolve().parents[1]
_CALLS = 5_000
_PAIRS = 60
#: of the batch in which a connection is lost, and how often
_BATCH_MS = 2_000
_LOSSES = 9


@benchmark("failpoints_off", "µs", goal=Goal(1.01), lab=False)
def failpoints_off() -> Measured:
    """A forwarded lseek with failpoints that are off against one without any in the C loops."""
    with ExitStack() as stack:
        with_them = stack.enter_context(_forwarding("with", None))
        without = stack.enter_context(_forwarding("without", _built_without()))
        value, baseline, ratio = pairs(with_them.batch, without.batch, _PAIRS)
    return Measured(value / 1e3, baseline / 1e3, ratio)


def _built_without() -> Path:
    """Where mosix can be imported from that has no failpoints in C."""
    where = ROOT / "build/no-failpoints"
    where.mkdir(parents=True, exist_ok=True)
    parts = ("pysrc", "kernel", "setup.py", "pyproject.toml", "README.md", "LICENSE")
    for part in parts:
        # With its times: what has not changed is not built again.
        subprocess.run(["cp", "-au", str(ROOT / part), str(where)], check=True)
    for built in (*where.glob("pysrc/native/bin/*.bin"), *where.glob("pysrc/native/_native*.so")):
        built.unlink()
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=where,
        env={**os.environ, "CPPFLAGS": "-DMX_NO_FAILPOINTS"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    package = where / "typed/mosix"
    package.parent.mkdir(exist_ok=True)
    if not package.is_symlink():
        package.symlink_to("../pysrc")
    return package.parent


@contextmanager
def _forwarding(name: str, package: Path | None) -> Iterator[Batches]:
    """A job that is away and makes calls, on two nodes of its own that run this mosix."""
    before = os.environ.get("PYTHONPATH")
    if package is not None:
        os.environ["PYTHONPATH"] = str(package)
    try:
        cluster = Cluster.up(f"bench-{os.getpid()}-{name}", 2)
    finally:
        if before is not None:
            os.environ["PYTHONPATH"] = before
        else:
            os.environ.pop("PYTHONPATH", None)
    try:
        command = ["mosrun", program("seek"), "/node/name", str(_CALLS)]
        with running(cluster[1], command) as job:
            _send_away(cluster, job)
            yield job
    finally:
        cluster.down()


def _send_away(cluster: Cluster, job: Batches) -> None:
    pid = job.is_a_job()
    job.batch()
    cluster[1].migrate(pid, "2")
    job.batch()  # warm


@benchmark("reconnect_ms", "ms")
def reconnect(cluster: Cluster) -> Measured:
    """From the loss of all connections of a guest until its next call has returned."""
    home, away = cluster[1], cluster[2]
    lasted = []
    with running(home, ["mosrun", program("longest"), "/node/name", str(_BATCH_MS)]) as job:
        _send_away(cluster, job)
        for _ in range(_LOSSES):
            assert job.process.stdin is not None
            job.process.stdin.write("\n")
            job.process.stdin.flush()
            home.check(["ss", "-K", "-t", "dst", away.ip])
            lasted.append(float(job.line()) / 1e6)
    return Measured(statistics.median(lasted))
