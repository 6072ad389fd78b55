"""What a node has to do and what it has left, measured once a second.

Called by mosd (`mosix.node.meter`), which says what to measure: all processes that its /proc shows
(in a lab node or a container only those of that node), the memory and CPU quota of the cgroup it
was given. Everything is the difference of two readings over a window of its own; averages that the
kernel keeps (load average, PSI avg10) lag behind and are not used. Must never change anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np
from mosix.native._native import ffi, lib
from mosix.native.kept import KeptFiles
from mosix.wire.messages import NodeLoad

#: With less CPU time than this in a second (s), what processes had to wait says nothing.
_IDLE: Final = 0.02
#: A slice of a second's CPU that may be spent on measuring it.
_SHARE: Final = 0.003
#: Nanoseconds that a 3 GHz Pentium 4 (Prescott) needs for a round of mx_spin: 19 cycles, by the
#: latencies published for it (multiply 10, load 4, five others 1 each). No such machine was asked.
PENTIUM_NS: Final = 19 / 3
STANDARD_SPEED: Final = 10_000
_ROUNDS: Final = 500_000
_BEST_OF: Final = 5
#: As C fills it (native/proctimes.h), and for how many threads there is room at first.
_TIMES: Final = np.dtype(
    [("ran", np.uint64), ("waited", np.uint64), ("thread", np.int32)], align=True
)
assert _TIMES.itemsize == ffi.sizeof("struct mx_times")
_FIRST_ROOM: Final = 1024
#: Of the memory that is free a tenth is nobody's: what is lent to a guest leaves it too.
_LENT: Final = 0.9


class Group(Protocol):
    """The cgroup that is measured (`mosix.remote.cgroup.Cgroup`)."""

    def available(self) -> int: ...
    def memory_limit(self) -> int | None: ...
    def cpu_quota(self) -> float | None: ...
    def pressure(self, resource: str) -> Path | None: ...


def speed_of(spin: Callable[[int], int]) -> int:
    """Of one core, in the manual's units: 10,000 is a 3 GHz Pentium 4.

    `spin`: CPU nanoseconds of that many rounds of work. The best of five counts, since whoever
    shares the core only makes it slower. On a CPU with cores of different kinds that of the core
    which it happens to run on: write the speed into /etc/mosix/speed there."""
    best = min(spin(_ROUNDS) for _ in range(_BEST_OF)) / _ROUNDS
    return max(1, round(STANDARD_SPEED * PENTIUM_NS / best))


class Times(NamedTuple):
    """Of one thread, in ns since it began: `ran` on a CPU, `waited` for one although runnable."""

    ran: int
    waited: int


def thread_times(proc: Path = Path("/proc"), own: Iterable[int] = ()) -> dict[int, Times]:
    """By thread id, of all threads that `proc` shows, but not of processes in `own`. OSError."""
    skip = np.array(sorted(own), np.int32)
    path = os.fsencode(proc)
    room = _FIRST_ROOM
    while True:
        read = np.zeros(room, _TIMES)
        found = lib.mx_proc_times(
            path,
            ffi.from_buffer("int32_t[]", skip),
            len(skip),
            ffi.from_buffer("struct mx_times[]", read),
            room,
        )
        if found < 0:
            raise OSError(-found, os.strerror(-found), str(proc))
        if found <= room:
            break
        room = found + found // 8
    read = read[:found]
    times = map(Times, read["ran"].tolist(), read["waited"].tolist())
    return dict(zip(read["thread"].tolist(), times, strict=True))


@dataclass
class Window:
    """The sums of what threads did between two readings, in seconds."""

    ran: float = 0.0
    waited: float = 0.0
    #: by thread id, of those that ran at all
    busy: dict[int, float] = field(default_factory=dict)

    @classmethod
    def between(cls, before: dict[int, Times], after: dict[int, Times]) -> Window:
        """Threads that are in both readings. One that was born or died meanwhile is left out."""
        window = cls()
        for thread, now in after.items():
            then = before.get(thread)
            if then is None or then == now or now.ran < then.ran:
                continue
            ran = (now.ran - then.ran) / 1e9
            window.ran += ran
            window.waited += max(0, now.waited - then.waited) / 1e9
            if ran:
                window.busy[thread] = ran
        return window

    @property
    def dilation(self) -> float:
        """Wall time of a runnable process for a second of CPU; 1 where nobody computes."""
        return (self.ran + self.waited) / self.ran if self.ran >= _IDLE else 1.0


class Exported:
    """The load as other nodes are told it: it rises at once and falls slowly, so that a node does
    not attract everybody in a quiet second."""

    def __init__(self) -> None:
        self.value = 0.0

    def next(self, load: float) -> float:
        self.value = load if load >= self.value else (7 * self.value + load) / 8
        return self.value


def effective_cores(quota: float | None, stolen: float, allowed: int | None = None) -> float:
    """Cores that may really be used. `quota`: of the cgroup; `stolen`: the part of their time that
    the host of a virtual machine gave to others; `allowed`: by affinity, of the caller."""
    allowed = len(os.sched_getaffinity(0)) if allowed is None else allowed
    cores = allowed if quota is None else min(quota, allowed)
    return max(0.01, cores * (1 - min(max(stolen, 0.0), 0.99)))


class Meter:
    """Readings of one node; `sample` once a second, in any one thread."""

    def __init__(
        self,
        group: Group,
        *,
        speed: int,
        machine: bool = False,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`machine`: what stands still anywhere counts, not only in the cgroup."""
        self._group = group
        #: the manual's units; may be changed
        self.speed = speed
        self._machine = machine
        self._proc = proc
        self._clock = clock
        self._exported = Exported()
        self._memory = self._total_memory()
        self.window = Window()
        #: CPU time of the last reading, in s
        self.cost = 0.0
        #: when the last window began, and when it ended
        self.began = self._clock()
        self._since, self._before = self.began, thread_times(proc)
        self._files = KeptFiles()
        self._pressure = {resource: self._pressure_of(resource) for resource in ("memory", "io")}
        self._stalls = {resource: self._stalled(resource) for resource in self._pressure}
        self._steal = self._stolen()

    @property
    def pause(self) -> float:
        """Seconds until the next sample: more than one where there are thousands of threads."""
        return max(1.0, self.cost / _SHARE)

    @property
    def ended(self) -> float:
        return self._since

    @property
    def times(self) -> dict[int, Times]:
        """By thread id, at the end of the last window."""
        return self._before

    def sample(self, own: Iterable[int] = ()) -> NodeLoad:
        """What happened since the last one. `own`: processes whose work is the measurer's and not
        the node's load."""
        begin = time.thread_time()
        now, after = self._clock(), thread_times(self._proc, own)
        seconds = max(now - self._since, 1e-6)
        self.window = Window.between(self._before, after)
        self.began, self._since, self._before = self._since, now, after
        stalls = {resource: self._stalled(resource) for resource in self._stalls}
        stalled = {
            resource: min(1.0, max(0, stalls[resource] - self._stalls[resource]) / 1e6 / seconds)
            for resource in stalls
        }
        steal = self._stolen()
        stolen = _part(self._steal, steal)
        self._stalls, self._steal = stalls, steal
        running = (self.window.ran + self.window.waited) / seconds
        load = NodeLoad(
            running=running,
            exported=self._exported.next(running),
            dilation=self.window.dilation,
            cores=effective_cores(self._group.cpu_quota(), stolen),
            speed=self.speed,
            memory=self._memory,
            free=int(self._group.available() * _LENT),
            psi_memory=stalled["memory"],
            psi_io=stalled["io"],
        )
        self.cost = time.thread_time() - begin
        return load

    def _stalled(self, resource: str) -> int:
        """Microseconds for which some task stood still for `resource`; 0 where PSI is off."""
        try:
            some = self._files.read(self._pressure[resource]).partition("\n")[0]
        except OSError:
            return 0
        total = some.rpartition("total=")[2]
        return int(total) if total.isdigit() else 0

    def _pressure_of(self, resource: str) -> str:
        path = None if self._machine else self._group.pressure(resource)
        return str(path or self._proc / "pressure" / resource)

    def _stolen(self) -> tuple[int, int]:
        """Ticks that the host gave to others, and all ticks, of all CPUs (proc_stat(5))."""
        line = self._files.read(f"{self._proc}/stat").partition("\n")[0]
        ticks = [int(field) for field in line.split()[1:9]]
        return ticks[7], sum(ticks)

    def _total_memory(self) -> int:
        text = (self._proc / "meminfo").read_text(encoding="ascii")
        total = int(text.partition("MemTotal:")[2].split()[0]) * 1024
        limit = self._group.memory_limit()
        return total if limit is None else min(total, limit)


def _part(before: tuple[int, int], after: tuple[int, int]) -> float:
    total = after[1] - before[1]
    return (after[0] - before[0]) / total if total > 0 else 0.0
