"""Who could move from here, and what each of them does: own processes at home, guests.

Taken once a second by `mosix.node.decider` out of what is measured anyway: the meter's reading,
the accounting of processes at home, what remotes say of their guests. Memory is read only of
those that are looked at closely. Must never decide anything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from mosix.balancer.account import Use
from mosix.balancer.measure import Times
from mosix.balancer.statistics import COLUMN, STATISTICS, Statistics
from mosix.node.jobgroup import Members
from mosix.node.meter import Reading
from mosix.node.registry import Guest, Registry
from mosix.wire.attributes import JobAttributes

Key = tuple[str, int]

HOME: Final = "home"
_PAGE_MB: Final = os.sysconf("SC_PAGESIZE") / 1e6
_NS: Final = 1e-9


@dataclass
class Resident:
    """One process that runs here. `key`: the IP of its home and its PID there; `pid`: here."""

    key: Key
    pid: int
    job: str
    uid: int
    #: None: its home is here
    guest: Guest | None = None
    attributes: JobAttributes = field(default_factory=JobAttributes)
    #: since when it is here, monotonic seconds; -inf: it began here
    since: float = -math.inf
    times: Times | None = None
    #: CPU seconds that it used before, elsewhere
    before_s: float = 0.0
    #: of a guest: calls and bytes that went home
    went_home: tuple[int, int] = (0, 0)
    #: of the last second it ran or wanted to for so long, seconds
    demand: float = 0.0

    @property
    def home(self) -> str:
        return self.key[0]

    def size_mb(self) -> tuple[float, float]:
        """What it holds, and what would travel: all but what it shares with files. (0, 0): it
        has ended."""
        try:
            fd = os.open(f"/proc/{self.pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0.0, 0.0
        try:
            _, resident, shared, *_ = os.read(fd, 256).split()
        except (OSError, ValueError):
            return 0.0, 0.0
        finally:
            os.close(fd)
        return int(resident) * _PAGE_MB, max(0, int(resident) - int(shared)) * _PAGE_MB


class Census:
    """`residents` by key; `statistics` has a row for each of them."""

    def __init__(self, registry: Registry, members: Members, own_ip: str) -> None:
        self._registry = registry
        self._members = members
        self._own = own_ip
        self.residents: dict[Key, Resident] = {}
        self.statistics = Statistics()
        self._ended = 0.0

    def take(self, reading: Reading, uses: dict[int, Use]) -> list[Resident]:
        """What they did in the reading's window; who came in it from elsewhere. `uses`: of
        processes at home, by PID."""
        seconds = reading.ended - (self._ended or reading.began)
        self._ended = reading.ended
        self._members.look(reading.times.keys(), self._registry.jobs)
        found = self._here()
        for key in self.residents.keys() - found.keys():
            del self.residents[key]
            self.statistics.remove(key)
        rows: list[Hashable] = []
        amounts, new_ones = [], []
        for key, resident in found.items():
            times = reading.times.get(resident.pid)
            before = self.residents.get(key)
            if resident is not before:
                if before is not None:
                    self.statistics.remove(key)
                resident.times = times
                new_ones.append(resident)
                continue
            did = self._did(resident, times, uses.get(resident.pid), seconds)
            if did is not None:
                rows.append(key)
                amounts.append(did)
        width = len(STATISTICS)
        self.statistics.advance(
            seconds, self.statistics.rows(rows), np.array(amounts).reshape(-1, width)
        )
        # Of this second nothing is known of them.
        for new in new_ones:
            self._add(new)
        return [new for new in new_ones if new.since > -math.inf]

    def left(self, resident: Resident) -> None:
        """It has gone, and is not to be offered again until the next reading says so too."""
        if self.residents.get(resident.key) is resident:
            del self.residents[resident.key]
            self.statistics.remove(resident.key)

    def at_home(self) -> set[int]:
        """PIDs of the processes of own jobs that are here."""
        return {one.pid for one in self.residents.values() if one.guest is None}

    def busy_at_home(self) -> set[int]:
        """Those of them that have done anything in the last second."""
        return {one.pid for one in self.residents.values() if one.guest is None and one.demand}

    def _here(self) -> dict[Key, Resident]:
        """All that run here: who was known already is renewed, others are new."""
        found: dict[Key, Resident] = {}
        for job in self._registry.jobs.values():
            for pid in self._members.of(job.id, job.group):
                process = job.processes.get(pid)
                if process is not None and process.where != HOME:
                    continue
                key = (self._own, pid)
                attributes = job.attributes if process is None else process.attributes
                since = -math.inf if process is None else process.since
                known = self.residents.get(key)
                if known is not None:
                    self._renew(known, attributes, since)
                    found[key] = known
                    continue
                away_ms = 0 if process is None else process.stats.get("cpu_away_ms", 0)
                found[key] = Resident(
                    key,
                    pid,
                    job.id,
                    job.uid,
                    attributes=attributes,
                    since=since,
                    before_s=away_ms / 1e3,
                )
        for guest in self._registry.guests.values():
            if not guest.outer_pid or guest.since == math.inf or guest.frozen:
                continue
            key = (guest.home, guest.pid)
            known = self.residents.get(key)
            if known is not None and known.pid == guest.outer_pid:
                known.guest = guest
                self._renew(known, guest.attributes, guest.since)
                found[key] = known
                continue
            found[key] = Resident(
                key,
                guest.outer_pid,
                guest.job,
                guest.uid,
                guest=guest,
                attributes=guest.attributes,
                since=guest.since,
                before_s=guest.cpu_before_s,
                went_home=(guest.calls, guest.call_bytes),
            )
        return found

    def _add(self, new: Resident) -> None:
        here_s = 0.0 if new.times is None else new.times.ran * _NS
        self.statistics.add(
            new.key,
            decayrate=new.attributes.decayrate,
            cpujob=bool(new.attributes.cpujob),
            age_s=here_s + new.before_s,
        )
        self.residents[new.key] = new

    def _renew(self, resident: Resident, attributes: JobAttributes, since: float) -> None:
        resident.since = since
        before = resident.attributes
        if attributes is before:
            return
        if attributes != before:
            self.statistics.set_decayrate(resident.key, attributes.decayrate)
            self.statistics.set_cpujob(resident.key, bool(attributes.cpujob))
        if attributes.cleared != before.cleared:
            self.statistics.clear(resident.key)
        resident.attributes = attributes

    def _did(
        self, resident: Resident, times: Times | None, use: Use | None, seconds: float
    ) -> list[float] | None:
        """Amounts since the last time, None: nothing."""
        before, resident.times = resident.times, times
        if before is None or times is None or times == before or times.ran < before.ran:
            resident.demand = 0.0
            return None
        ran = (times.ran - before.ran) * _NS
        waited = max(0, times.waited - before.waited) * _NS
        resident.demand = (ran + waited) / max(seconds, 1e-6)
        amounts = [0.0] * len(STATISTICS)
        amounts[COLUMN["cpu"]] = ran
        guest = resident.guest
        if guest is not None:
            now = guest.calls, guest.call_bytes
            amounts[COLUMN["calls"]] = now[0] - resident.went_home[0]
            amounts[COLUMN["written_bytes"]] = now[1] - resident.went_home[1]
            resident.went_home = now
        elif use is not None:
            amounts[COLUMN["calls"]] = use.calls * seconds
            amounts[COLUMN["read_bytes"]] = use.read_bytes * seconds
            amounts[COLUMN["written_bytes"]] = use.written_bytes * seconds
        return amounts
