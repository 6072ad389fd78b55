"""Benchmarks of what the owner of a node gets: his machine back, and his processor meanwhile.

See `harness`. n2 is the owner's, the guests are n1's.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path

from harness import Batches, Goal, Measured, benchmark, pairs, program, running
from mosix.errors import MosixError
from mosix.lab import drive
from mosix.lab.drive import Cluster

_PORT = 7002
_GUESTS, _GUEST_MIB = 4, 128
#: What an owner is promised beyond the time that the guests' memory needs.
_SLACK_S = 1.0


@benchmark("expel", "ms", goal=Goal(1.0))
def expel(cluster: Cluster) -> Measured:
    """`mosctl block; mosctl expel` with four guests of 128 MiB, as typed, against the promise: the
    time of their bytes over one raw TCP connection, and a second."""
    home, owner = cluster[1], cluster[2]
    raw, size = program("raw"), str(_GUESTS * _GUEST_MIB)
    hold = ["mosrun", "-L", program("hold"), str(_GUEST_MIB)]
    with ExitStack() as stack:
        jobs = [stack.enter_context(running(home, hold)) for _ in range(_GUESTS)]
        sender = stack.enter_context(running(owner, [raw, "send", str(_PORT), size]))
        receive = [raw, "receive", owner.ip, str(_PORT), size]
        sums: list[float] = []
        pids = [_ready(job, sums) for job in jobs]
        sender.line()
        floor = stack.enter_context(running(home, receive))

        def promised() -> float:
            return floor.batch() + _SLACK_S * 1e9

        def back() -> float:
            owner.check(["mosctl", "noblock"])
            for pid in pids:
                home.migrate(pid, "2")
            if len(owner.jobs()) != _GUESTS:
                raise MosixError("the guests are not there")
            begin = time.monotonic_ns()
            owner.check(["sh", "-c", "mosctl block; mosctl expel"])
            taken = time.monotonic_ns() - begin
            if owner.jobs():
                raise MosixError("a guest is still there")
            return float(taken)

        try:
            value, baseline, ratio = pairs(back, promised, 5)
        finally:
            owner.check(["mosctl", "noblock"])
        if [job.batch() for job in jobs] != sums:
            raise MosixError("memory differs after the moves")
    return Measured(value / 1e6, baseline / 1e6, ratio)


def _ready(job: Batches, sums: list[float]) -> int:
    job.line()
    pid = job.is_a_job()
    sums.append(job.batch())
    return pid


@benchmark("owner_cpu", "%", goal=Goal(85, "≥", of="value"))
def owner_cpu(cluster: Cluster) -> Measured:
    """Of a processor that the owner's program shares with one guest: what the owner's gets."""
    home, owner = cluster[1], cluster[2]
    forever = str(10**9)
    with (
        running(home, ["mosrun", "-L", program("spin"), forever]) as job,
        running(owner, [program("spin"), forever]) as mine,
    ):
        pid = job.is_a_job()
        home.migrate(pid, "2")
        ours = owner.pids_of(mine.process)[0]
        theirs = owner.host_pid(owner.jobs()[0]["pid"])
        for one in (ours, theirs):
            os.sched_setaffinity(one, {min(os.sched_getaffinity(0))})
        mine.begin()
        job.begin()
        before = [_cpu_s(one) for one in (ours, theirs)]
        drive.wait_for("two seconds", lambda: _cpu_s(ours) - before[0] > 2, 120)
        used = [_cpu_s(one) - then for one, then in zip((ours, theirs), before, strict=True)]
    return Measured(100 * used[0] / sum(used))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
