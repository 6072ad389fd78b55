"""Second part of the demonstration: nobody orders anything, and jobs spread by themselves.

Called by `mosix.lab.demo`. Two nodes of a lab, each with one CPU of this machine. Four equal jobs
start on node 1, once locked there (mosrun -L) and once free; each works for some seconds and then
says how much it did, how often it was moved and, by its own /proc/self/whereami, where it ends. So
it takes as long on a busy machine. While node 1 is full `bestnode` is asked, and `mosrun -b` obeys.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from mosix.errors import MosixError
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from rich.console import Console
from rich.live import Live
from rich.table import Table

_JOBS = 4
#: Seconds of work: without moves one is like the other; with moves the first few go by alone.
_LOCKED_S, _FREE_S = 10, 20
_LOOK_EVERY_S = 0.5
#: Until nodes know each other, and one that is full.
_KNOW_S = 60.0
_MORE_S = 120.0

#: What each job runs: it computes until its time is over.
_WORK = """
import hashlib, sys, time
from mosix import job
end, rounds, digest = time.monotonic() + float(sys.argv[1]), 0, b""
while time.monotonic() < end:
    for _ in range(1000):
        digest = hashlib.sha256(digest).digest()
    rounds += 1
print(rounds, job.whereami(), job.read("nmigs"))
"""
#: What bestnode's job runs: Python comes home to load its libraries, and goes back.
_WHERE = """
import time
from mosix import job
end = time.monotonic() + 10
while not job.whereami() and time.monotonic() < end:
    time.sleep(0.1)
print(job.whereami())
"""


class Said(msgspec.Struct, frozen=True):
    """By a job at its end. `rate`: of work, a second; `where`: 0 is home."""

    rate: float
    where: str
    moves: int


class Free:
    """Jobs that nobody orders about, and what is seen of them."""

    def __init__(self, home: NodeHandle, jobs: list[subprocess.Popen[str]]) -> None:
        self.home = home
        self.jobs = jobs
        self.rows: dict[int, dict[str, Any]] = {}
        self._began = time.monotonic()

    def look(self) -> list[str]:
        """What has changed since."""
        news = []
        for row in self.home.jobs():
            before = self.rows.get(row["pid"])
            self.rows[row["pid"]] = row
            if before is None or before["where"] != row["where"]:
                why = f": {row['why']}" if row["nmigs"] else ""
                news.append(f"{self.elapsed():4.1f} s  {row['pid']} at {place(row)}{why}")
        return news

    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def table(self) -> Table:
        table = Table(box=None, title=f"{self.elapsed():.0f} s", title_justify="left")
        for column in ("job", "where", "moves", "why"):
            table.add_column(column, no_wrap=column != "why")
        for pid, row in sorted(self.rows.items()):
            table.add_row(str(pid), place(row), str(row["nmigs"]), str(row["why"]))
        return table


def place(row: dict[str, Any]) -> str:
    """As the user calls it."""
    number = row["where_number"]
    return f"n{number}" if number is not None else str(row["where"])


def show(lab_name: str, console: Console) -> bool:
    """Whether jobs moved by themselves, and all did what they should."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        console.print("this machine has one CPU: there is nowhere to spread to", highlight=False)
        return True
    console.print("\nbringing up two nodes, one CPU each, that balance by themselves …")
    cluster = Cluster.up(f"{lab_name}-spread", 2, "--balance")
    try:
        for node, cpu in zip(cluster.nodes, cpus, strict=True):
            _pin(node, cpu)
        drive.wait_for("the nodes to know each other", lambda: _all_known(cluster), _KNOW_S)
        return _spread(cluster[1], cpus[0], console)
    except MosixError:
        for node in cluster.nodes:
            console.print(f"--- mosd of {node.name}:\n{node.log()[-3000:]}", highlight=False)
        raise
    finally:
        cluster.down()


def _spread(home: NodeHandle, cpu: int, console: Console) -> bool:
    with _running(home, cpu, ["-L"], _LOCKED_S) as jobs:
        console.print(f"{_JOBS} jobs on n1, locked there (mosrun -L), work for {_LOCKED_S} s")
        chose = _best(home, cpu, console)
        locked = _finish(jobs, _LOCKED_S)
    with _running(home, cpu, [], _FREE_S) as jobs:
        console.print(f"the same {_JOBS} jobs on n1, free to be moved by the system, {_FREE_S} s")
        free = Free(home, jobs)
        _watch(free, console)
        spread = _finish(jobs, _FREE_S)
    table = Table(title="what each job says of itself", title_justify="left")
    for column in ("", "work a second", "at (its whereami)", "moves"):
        table.add_column(column, justify="left" if not column else "right")
    for name, said in (("locked", locked), ("free", spread)):
        for one in said:
            where = "home" if one.where == "0" else f"n{one.where}"
            table.add_row(name, f"{one.rate:.1f}", where, str(one.moves))
    console.print(table)
    speedup = sum(one.rate for one in spread) / max(0.1, sum(one.rate for one in locked))
    moved = sum(one.moves for one in spread)
    made = "a move" if moved == 1 else f"{moved} moves"
    console.print(
        f"{speedup:.2f} times as much work a second, by {made} that nobody ordered", highlight=False
    )
    return chose and moved > 0 and not any(one.moves for one in locked)


def _best(home: NodeHandle, cpu: int, console: Console) -> bool:
    """bestnode, and a job that mosrun -b starts there."""

    def elsewhere() -> str | None:
        found = home.check(["bestnode", "-n"]).strip()
        return found if found != "1" else None

    chosen = drive.wait_for("bestnode to see that n1 is full", elsewhere, _KNOW_S)
    console.print(f"meanwhile `bestnode` on n1 says n{chosen}", highlight=False)
    command = [*_on(cpu), "mosrun", "-b", sys.executable, "-c", _WHERE]
    said = home.check(command, timeout_s=_MORE_S).strip()
    where = "home, n1" if said == "0" else f"n{said}"
    console.print(f"and a job of `mosrun -b` reads in its /proc/self/whereami: {where}")
    return bool(re.fullmatch(r"\d+", said))


def _watch(free: Free, console: Console) -> None:
    """Until all have ended: a table on a terminal, or else a line per change."""
    live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
    with live or contextlib.nullcontext():
        while any(job.poll() is None for job in free.jobs):
            news = free.look()
            if live is not None:
                live.update(free.table())
            for line in news if live is None else ():
                console.print(f"  {line}", highlight=False)
            time.sleep(_LOOK_EVERY_S)


@contextlib.contextmanager
def _running(
    home: NodeHandle, cpu: int, options: Sequence[str], seconds: int
) -> Iterator[list[subprocess.Popen[str]]]:
    command = [*_on(cpu), "mosrun", *options, sys.executable, "-c", _WORK, str(seconds)]
    pipe = subprocess.PIPE
    jobs = [home.popen(command, stdout=pipe, stdin=subprocess.DEVNULL) for _ in range(_JOBS)]
    try:
        yield jobs
    finally:
        for job in jobs:
            if job.poll() is None:
                drive.kill_command(job)
            job.communicate()


def _finish(jobs: list[subprocess.Popen[str]], seconds: int) -> list[Said]:
    found = []
    for job in jobs:
        out, _ = job.communicate(timeout=seconds + _MORE_S)
        if job.returncode or len(out.split()) != 3:
            raise MosixError(f"a job ended with {job.returncode} and said {out!r}")
        rounds, where, moves = out.split()
        found.append(Said(int(rounds) / seconds, where, int(moves)))
    return found


def _on(cpu: int) -> list[str]:
    # Who enters a node brings his own affinity along.
    return ["taskset", "-c", str(cpu)]


def _pin(node: NodeHandle, cpu: int) -> None:
    """All that runs in the node, and what it will start, keeps to one CPU; mosd counts that one."""
    for pid in node.processes():
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), {cpu})


def _all_known(cluster: Cluster) -> bool:
    def knows(node: NodeHandle) -> bool:
        status = json.loads(node.check(["mosctl", "status", "--json"]))
        known = {one["state"] for one in status["known"]}
        return status["load"] is not None and known == {"alive"}

    return all(map(knows, cluster.nodes))
