"""What mosd knows: jobs of this node, where their processes are, guests of other nodes.

Filled from what deputies and remotes report, asked by the control socket. Only memory, but for a
look at a cgroup when a process is new. What a deputy reports about its job is bounded here, since
the deputy belongs to the job's user.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mosix.node.history import History
from mosix.node.jobgroup import JobGroup
from mosix.wire.attributes import JobAttributes
from mosix.wire.mosd_messages import GuestState, ProcessState

#: Processes of one job that a deputy may report; more are still members of the cgroup.
MAX_REPORTED = 32768


@dataclass
class Process:
    """A process of a job. `where`: "home", "moving" or the IP of a node."""

    pid: int
    where: str = "home"
    nmigs: int = 0
    why: str = ""
    epoch: int = 0
    stats: dict[str, int] = field(default_factory=dict)
    attributes: JobAttributes = field(default_factory=JobAttributes)
    #: since when it is there (monotonic seconds); -inf: it began there
    since: float = -math.inf


@dataclass
class Job:
    """A job whose home is this node. `pid`: the process that called mosrun."""

    id: str
    pid: int
    uid: int
    gid: int
    group: JobGroup
    #: of its first process when it began
    attributes: JobAttributes = field(default_factory=JobAttributes)
    started: float = field(default_factory=time.time)
    processes: dict[int, Process] = field(default_factory=dict)


@dataclass
class Guest:
    """A process of another node that runs here, or is about to. `outer_pid` 0: not yet."""

    token: bytes
    job: str
    pid: int
    uid: int
    home: str
    epoch: int
    outer_pid: int = 0
    frozen: bool = False
    #: home has its body run here
    begun: bool = False
    #: how far its date may be from home's; None: not known, or not wanted
    date_bound_ns: int | None = None
    #: since when it runs here (monotonic seconds); inf: it does not yet
    since: float = math.inf
    #: CPU seconds that it had used before, calls and bytes that went home since
    cpu_before_s: float = 0.0
    calls: int = 0
    call_bytes: int = 0
    attributes: JobAttributes = field(default_factory=JobAttributes)


class Registry:
    """Jobs by id, guests by token."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.guests: dict[bytes, Guest] = {}
        self.history = History()
        #: told of what may interest others of a process
        self.changed: Callable[[], object] = lambda: None

    def update(self, job: Job, state: ProcessState) -> None:
        """What the deputy of `job` says about one process."""
        self.changed()
        if state.ended:
            job.processes.pop(state.pid, None)
            return
        # A deputy cannot put somebody else's process, or one that is none, into its job.
        if state.pid not in job.processes and (
            len(job.processes) >= MAX_REPORTED or not job.group.holds(state.pid)
        ):
            return
        if state.origin:
            self.history.add(job.uid, job.id, state)
        before = job.processes.get(state.pid)
        since = -math.inf if before is None else before.since
        if state.where != (before.where if before else "home"):
            since = time.monotonic()
        job.processes[state.pid] = Process(
            state.pid,
            state.where,
            state.nmigs,
            state.why,
            state.epoch,
            dict(state.stats),
            state.attributes,
            since,
        )

    def update_guest(self, guest: Guest, state: GuestState) -> None:
        self.changed()
        guest.outer_pid = state.outer_pid
        guest.frozen = state.frozen
        guest.begun = guest.begun or state.runs
        guest.date_bound_ns = state.date_bound_ns
        if state.runs:
            guest.since = min(guest.since, time.monotonic())
        guest.cpu_before_s = state.cpu_before_ns / 1e9
        guest.calls, guest.call_bytes = state.calls, state.call_bytes
        guest.attributes = state.attributes

    def date_bound_ns(self) -> int | None:
        """How far the date of any guest may be from that of its home; None: no guest has one."""
        return max((g.date_bound_ns for g in self.guests.values() if g.date_bound_ns), default=None)

    def guest_by_outer_pid(self, pid: int) -> Guest | None:
        return next((g for g in self.guests.values() if g.outer_pid == pid), None)

    def processes_of(self, job: Job) -> Iterator[Process]:
        """Reported ones and those only the cgroup knows: these are at home."""
        for pid in sorted({*job.processes, *job.group.pids()}):
            yield job.processes.get(pid) or Process(pid, attributes=job.attributes)
