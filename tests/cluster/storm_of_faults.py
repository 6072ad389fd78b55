"""Random moves of several jobs at once, during which somebody or something of mosix fails.

`Storm` keeps one job of each kind; `strike` moves some of them and lets one fault happen meanwhile,
then sees that every job is right: it goes on, or ended as docs/architecture.md's table says. One
that ended is started anew. `footprint` is what jobs must not change in a node.
Used by test_random_moves.py.
"""

from __future__ import annotations

import collections
import hashlib
import os
import random
import re
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import faults
from descriptors import open_in
from faults import Ledger, Order
from jobs import PYTHON, Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built
from mosix.node import records
from mosix.node.records import GuestRecord, JobRecord

HOLD = Path(__file__).parents[2] / "bench/programs/hold.c"
PLACES = ("home", "2", "3")
#: A lost connection is found by the kernel after 30 s at the latest.
_DEADLINE_S = 100


class EndedError(Exception):
    """The job has ended."""


# ---- jobs ----


class Kind(Protocol):
    """A job that can be asked whether it is right."""

    job: Job

    def check(self) -> None:
        """EndedError."""
        ...

    def finish(self) -> str:
        """ "done", or the line with which mosix ended it ("killed": none)."""
        ...


class Asked:
    """A job that answers each line it is given, out of what it has in its memory."""

    def __init__(
        self,
        home: NodeHandle,
        command: list[str],
        question: Callable[[], str],
        answer: Callable[[str], str],
    ) -> None:
        self.job = Job(home, command)
        self._question = question
        self._answer = answer

    def check(self) -> None:
        question = self._question()
        expected = self._answer(question)
        try:
            self.job.write(f"{question}\n")
        except BrokenPipeError as error:
            raise EndedError from error
        said = self._line()
        assert said == expected, f"{self.job.process.args}: {said!r} instead of {expected!r}"

    def _line(self) -> str:
        assert self.job.process.stdout is not None
        ready, _, _ = select.select([self.job.process.stdout], [], [], _DEADLINE_S)
        assert ready, f"{self.job.process.args} does not answer: {self.job.row()}"
        said = self.job.line()
        if not said:
            self.job.process.wait(_DEADLINE_S)
            raise EndedError
        return said

    def finish(self) -> str:
        status, output, complaint = self.job.finish()
        if status == 0:
            assert (output, complaint) == ("", ""), (output, complaint)
            return "done"
        assert status == -signal.SIGKILL, (status, complaint)
        assert len(complaint.splitlines()) <= 1, complaint
        return complaint.strip() or "killed"


class Counting:
    """A ledger: each effect it has at home is counted."""

    def __init__(self, home: NodeHandle) -> None:
        self._ledger = Ledger(home, "storm")
        self.job = self._ledger.job

    def check(self) -> None:
        before = self._ledger.lines()
        drive.wait_for(
            "the ledger to go on",
            lambda: self.job.process.poll() is not None or self._ledger.lines() > before + 2,
            _DEADLINE_S,
        )
        if self.job.process.poll() is not None:
            raise EndedError

    def finish(self) -> str:
        return self._ledger.finish()


def _numbers() -> Callable[[], str]:
    given = iter(range(1, 1 << 30))
    return lambda: str(next(given))


def echoing(home: NodeHandle) -> Kind:
    return Asked(home, ["cat"], _numbers(), lambda line: line)


def forking(home: NodeHandle) -> Kind:
    """Comes home for each line, and goes back later."""
    script = "while read n; do expr $n + 1; done"
    return Asked(home, ["sh", "-c", script], _numbers(), lambda line: str(int(line) + 1))


def hashing(home: NodeHandle) -> Kind:
    """A big program with all that it was told so far in one number."""
    code = (
        "import hashlib, sys\n"
        "known = ''\n"
        "for line in sys.stdin:\n"
        "    known = hashlib.sha256((known + line.strip()).encode()).hexdigest()\n"
        "    print(known, flush=True)\n"
    )
    known = [""]

    def answer(line: str) -> str:
        known[0] = hashlib.sha256((known[0] + line).encode()).hexdigest()
        return known[0]

    return Asked(home, [PYTHON, "-c", code], _numbers(), answer)


def holding(home: NodeHandle) -> Kind:
    """6 MiB of memory, of which each answer is the checksum."""
    words = (6 << 20) // 8
    total = 0
    for word in range(words):
        total ^= (word * 0x9E3779B97F4A7C15 & (1 << 64) - 1) | 1
    command = [str(built(HOLD)), "6"]
    held = Asked(home, command, lambda: "", lambda _: f"{total >> 12:.1f}")
    assert held.job.line() == "ready"
    return held


KINDS: dict[str, Callable[[NodeHandle], Kind]] = {
    "counting": Counting,
    "echoing": echoing,
    "forking": forking,
    "hashing": hashing,
    "holding": holding,
}

# ---- faults ----

#: What strikes, and whether the job it strikes may end by it.
FAULTS = {
    "nothing": False,
    "deputy": True,
    "remote": True,
    "stub": True,
    "guest": True,
    "ghost": True,
    "spawner": False,
    "mosd": False,
    "mosd and spawner": False,
    "mosds": False,
    "reset": False,
    "half-open": False,
    "cable": False,
    "stall": False,
}


def _host_pids(node: NodeHandle, inside: list[int]) -> list[int]:
    """Those of them that still are."""
    found = []
    for pid in inside:
        try:
            found.append(node.host_pid(pid))
        except ProcessLookupError:
            continue
    return found


def deputies(home: NodeHandle, job: Job) -> list[int]:
    """Host's PID of the deputy of `job`, as mosd has recorded it."""
    kept = _records(home, "jobs", JobRecord)
    return _host_pids(home, [r.deputy.pid for r in kept if r.pid == job.pid and r.deputy])


def remotes(node: NodeHandle, job: Job) -> list[int]:
    kept = _records(node, "guests", GuestRecord)
    return _host_pids(node, [record.remote.pid for record in kept if record.pid == job.pid])


def _children(pids: list[int]) -> list[int]:
    return [child for pid in pids for child in faults.children(pid)]


def _records(node: NodeHandle, name: str, kind: type[records.R]) -> list[records.R]:
    files = [f for f in node.path(f"/run/mosix/{name}").iterdir() if f.name[0] != "."]
    return [record for f in files if (record := records.read(f, kind)) is not None]


class Storm:
    """`moves` were ordered so far, of which `failed` did not succeed; `ended` jobs."""

    def __init__(self, lab: Cluster, choose: random.Random) -> None:
        self.lab = lab
        self.moves = self.failed = self.ended = 0
        self._choose = choose
        self.jobs: dict[str, Kind] = {}
        for name in KINDS:
            self._start(name)

    def _start(self, name: str) -> None:
        self.jobs[name] = KINDS[name](self.lab[1])

    def end(self) -> None:
        for kind in self.jobs.values():
            kind.job.end()

    # ---- one round ----

    def strike(self) -> str:
        """Moves some jobs while something fails, and checks all of them; tells what it did before
        it does it, by AssertionError.__notes__."""
        choose = self._choose
        names = choose.sample(list(KINDS), choose.randint(1, 3))
        targets = [choose.choice(PLACES) for _ in names]
        fault = choose.choice(list(FAULTS))
        told = f"{', '.join(map('{} to {}'.format, names, targets))}; {fault}"
        try:
            victim = self.jobs[names[0]].job
            places = {"home", self._place_of(victim), targets[0]}
            orders = [
                Order(self.jobs[name].job, target)
                for name, target in zip(names, targets, strict=True)
            ]
            time.sleep(choose.uniform(0, 0.1))  # the moment, not a wait for something
            self._fail(fault, victim, sorted(places & set(PLACES)))
            outcomes = [order.outcome() for order in orders]
            self.moves += len(orders)
            self.failed += sum(bool(outcome) for outcome in outcomes)
            told += f"; {outcomes}"
            self._repair(None if fault != "deputy" else victim)
            for name in KINDS:
                self._see(name, may_end=FAULTS[fault] and name == names[0], fault=fault)
        except (AssertionError, Exception) as error:
            error.add_note(told)
            raise
        return told

    def _place_of(self, job: Job) -> str:
        where = self.lab[1].where(job.pid)
        return where if where == "home" else where.rpartition(".")[2]

    def _see(self, name: str, *, may_end: bool, fault: str) -> None:
        kind = self.jobs[name]
        try:
            kind.check()
        except EndedError:
            said = kind.finish()
            assert may_end, f"{name} ended: {said}"
            if fault in ("remote", "stub", "guest"):
                assert any(node.ip in said for node in self.lab.nodes), said
            elif fault == "ghost":
                assert said == "killed", said
            self.ended += 1
            self._start(name)
            return
        # A job at home goes on without its deputy, unknown to mosd, and cannot be moved any more.
        if (may_end and fault == "deputy") or self._choose.random() < 0.03:
            assert kind.finish() == "done", name
            self._start(name)

    def _fail(self, fault: str, job: Job, places: list[str]) -> None:
        lab, choose = self.lab, self._choose
        node = lab[choose.choice([1 if place == "home" else int(place) for place in places])]
        away = lab[choose.choice([int(place) for place in places if place != "home"] or [2])]
        match fault:
            case "reset" | "half-open":
                near, far = choose.sample([lab[1], away], 2)
                if fault == "half-open":  # the far side is not told
                    far.link(up=False)
                near.run(["ss", "-K", "-t", "dst", far.ip])
                if fault == "half-open":
                    far.link(up=True)
            case "cable":
                node.link(up=False)
                time.sleep(choose.uniform(0, 1))  # it is out for so long
                node.link(up=True)
            case "stall":
                mosix = [*faults.mosd(node), *faults.spawners(node), *faults.workers(node)]
                still = choose.sample(mosix, min(2, len(mosix)))
                faults.kill(still, signal.SIGSTOP)
                time.sleep(choose.uniform(0, 1))  # they stand still for so long
                faults.kill(still, signal.SIGCONT)
            case _:
                faults.kill(self._killed(fault, job, node, away))

    def _killed(self, fault: str, job: Job, node: NodeHandle, away: NodeHandle) -> list[int]:
        found = {
            "deputy": lambda: deputies(self.lab[1], job),
            "remote": lambda: remotes(away, job),
            "stub": lambda: _children(remotes(away, job)),
            "guest": lambda: _children(_children(remotes(away, job))),
            "ghost": lambda: [job.outer],
            "spawner": lambda: faults.spawners(node),
            "mosd": lambda: faults.mosd(node),
            "mosd and spawner": lambda: [*faults.spawners(node), *faults.mosd(node)],
            "mosds": lambda: [pid for each in self.lab.nodes for pid in faults.mosd(each)],
            "nothing": list,
        }
        return list(found[fault]())

    def _repair(self, unknown: Job | None) -> None:
        """Every daemon runs again, has its spawner, and home's knows its jobs but `unknown`."""
        for node in self.lab.nodes:
            if not faults.mosd(node):
                node.mosd("start")
        for node in self.lab.nodes:
            drive.wait_for(f"spawner of {node.name}", lambda n=node: bool(faults.spawners(n)), 60)
        for job in (kind.job for kind in self.jobs.values() if kind.job is not unknown):
            pid, process = job.pid, job.process
            drive.wait_for(
                f"job {pid}",
                lambda pid=pid, process=process: (
                    process.poll() is not None or self.lab[1].job(pid) is not None
                ),
                60,
            )


# ---- what must be as before ----


def footprint(node: NodeHandle) -> dict[str, collections.Counter[str]]:
    """What there is of a node without jobs: processes, mounts, namespaces, descriptors, records."""
    found: dict[str, collections.Counter[str]] = {
        name: collections.Counter()
        for name in ("processes", "mounts", "namespaces", "descriptors", "records")
    }
    for line in node.path("/proc/1/mountinfo").read_text().splitlines():
        found["mounts"][" ".join(line.split()[3:5])] += 1
    for pid, line in node.processes().items():
        found["processes"][line] += 1
        who = next((part for part in ("mosd", "spawner") if part in line), "")
        try:
            for entry in os.scandir(f"/proc/{pid}/ns"):
                found["namespaces"][os.readlink(entry.path)] = 1
            for link in open_in(pid) if who else ():
                kind = re.sub(r"\d+", "N", link)
                found["descriptors"][f"{who}: {kind}"] += 1
        except (FileNotFoundError, ProcessLookupError):
            continue
    for name in ("jobs", "guests"):
        for file in node.path(f"/run/mosix/{name}").iterdir():
            found["records"][f"{name}/{file.name}"] += 1
    return found


def grown(
    before: dict[str, collections.Counter[str]], now: dict[str, collections.Counter[str]]
) -> list[str]:
    return [f"{what}: {dict(more)}" for what in now if (more := now[what] - before[what])]
