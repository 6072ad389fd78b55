"""The node decides by itself: who of those that run here leaves, and whom it takes.

Each node decides for what runs on it, since only it knows what that does; it tells home, which
orders the move as it would for `migrate`. Once a second, with each reading: *push*, the best three
moves are offered, and the first target that agrees by its own numbers keeps a place; *pull*, with
a core to spare the three most loaded are asked for somebody. `mosix.balancer` says what is gained,
this module only asks, orders and remembers. Never moves who is locked, just came, or failed lately.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from mosix.balancer.candidates import oldest_movable, processes
from mosix.balancer.policy import PROCESS, Pair, Rules, relief_of_memory
from mosix.balancer.settling import Link, Patience
from mosix.errors import MosixError
from mosix.node import bargain
from mosix.node.accounting import Accounting
from mosix.node.bargain import Parley
from mosix.node.census import HOME, Census, Key, Resident
from mosix.node.meter import NodeMeter
from mosix.node.outlook import Outlook, as_numbers
from mosix.node.owner import Owner
from mosix.node.peers import Dialer
from mosix.node.registry import Guest
from mosix.node.requests import Migrated
from mosix.wire.bargain import (
    Agreed,
    Answering,
    Consider,
    Considered,
    Explain,
    Explained,
    Found,
    NodeTruth,
    Offer,
    Pull,
    Reserve,
    Sending,
    Take,
    Truth,
    Weight,
)
from mosix.wire.mosd_messages import Automatic
from numpy.typing import NDArray

_log = logging.getLogger("mosd.decider")

#: Who wants less of a CPU than this (seconds a second) does not make a node loaded.
_RUNNER: Final = 0.5
#: Where memory runs out a process counts as if it had used so much CPU time, seconds.
_URGENT_AGE_S: Final = 60.0
#: A node that is slower than this one by less is as fast: so exact no measurement is.
_CLEARLY_SLOWER: Final = 1.1
#: A guest whose calls and bytes cost so many seconds a second may go home all the same.
_ASKS_HOME: Final = 0.05

#: A node that had nobody to give is asked again after so long, then after twice that, unless it has
#: more to do: that costs both of them more than a second of their work.
_FRUITLESS_S: Final = 1.5
_MOST_FRUITLESS_S: Final = 6.0
_MORE: Final = 0.5


class Orders(Protocol):
    """How moves are ordered (`mosix.node.services.Services`)."""

    async def order(self, resident: Resident, target: str, automatic: Automatic) -> Migrated:
        """Moves it and waits for that. MosixError."""
        ...


class NodeNumbers(NamedTuple):
    """Of the node that a process is to go to, for people."""

    running: float
    cores: float
    free_mb: float


@dataclass(frozen=True)
class Proposal:
    """`resident` had better be at `target`; `gain` in CPU seconds, `why` for people."""

    resident: Resident
    weight: Weight
    target: str
    gain: float
    why: str


class Decider:
    """`run` until cancelled. Answers other nodes as `mosix.node.bargain.Partner`."""

    def __init__(
        self,
        own_ip: str,
        *,
        dialer: Dialer,
        meter: NodeMeter,
        accounting: Accounting,
        outlook: Outlook,
        census: Census,
        owner: Owner,
        active: bool,
    ) -> None:
        """Not `active`: it answers questions, but nobody leaves or is asked for."""
        self.own_ip = own_ip
        self.active = active
        self._dialer = dialer
        self._meter = meter
        self._accounting = accounting
        self.outlook = outlook
        self.census = census
        self._owner = owner
        self._rules: Rules = outlook.rules
        self._patience = Patience()
        #: nodes that did not answer
        self._silent = Patience()
        #: nodes that had nobody to give, and what ran there and here then
        self._fruitless: dict[str, tuple[float, float]] = {}
        self._nobody = Patience(_FRUITLESS_S, _MOST_FRUITLESS_S)
        costs = outlook.tuned.others
        self._link = Link(costs.pages_mb_s, costs.move_ms / 1e3)
        #: those that are on their way from here, and what they count for
        self._leaving: dict[Key, float] = {}
        self._orders: Orders | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, orders: Orders) -> None:
        """Until cancelled."""
        self._orders = orders
        try:
            while True:
                reading = await self._meter.reading()
                self.outlook.measured(reading)
                for came in self.census.take(reading, self._accounting.uses):
                    self.outlook.promises.kept(came.key)
                    self.outlook.population.changed(came.since, 1.0)
                self._patience.keep(self.census.residents)
                self.outlook.book.learn(self.outlook.table, self.outlook.ip)
                if self.active and self.outlook.ready:
                    await self._push()
                    await self._pull()
        finally:
            self.outlook.book.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def gone(self, guest: Guest) -> None:
        """A guest has left or could not be made: between two readings, maybe, so that no census has
        seen it. Its place is free."""
        self.outlook.promises.kept((guest.home, guest.pid))

    # ---- who may ----

    def held(self, resident: Resident, now: float) -> str:
        """Why it stays, whatever could be gained; "" if it may move."""
        own = resident.guest is None
        if resident.attributes.lock:
            return "it is locked (mosrun -L)"
        if not self._owner.said.may_leave(own=own):
            return f"the node keeps {'its own' if own else 'its'} processes (mosctl)"
        if resident.key in self._leaving:
            return "it is about to move"
        left_s = self._patience.left_s(resident.key, now)
        if left_s:
            return f"left alone for {left_s:.0f} s: {self._patience.why(resident.key)}"
        if resident.since > -math.inf:
            move_s = self._link.fixed_s + resident.size_mb()[1] / self._link.mb_s
            stays_s = max(self._rules.residency_s, self._rules.residency_moves * move_s)
            if now - resident.since < stays_s:
                return f"it came {now - resident.since:.1f} s ago, and stays for {stays_s:.1f} s"
        return ""

    def _records(self, residents: list[Resident]) -> tuple[NDArray[np.void], NDArray[np.float64]]:
        """PROCESS records, and what each calls and sends home, in seconds a second."""
        statistics, index = self.census.statistics, self.outlook.index
        rows = statistics.rows([resident.key for resident in residents])
        rates, ages = statistics.rates(rows), statistics.ages(rows)
        if self.outlook.short_mb > 0:
            # What it would suffer here is no matter of how long it has run.
            ages = np.maximum(ages, _URGENT_AGE_S)
        sizes = [resident.size_mb() for resident in residents]
        held = np.array([size[0] for size in sizes])
        wanted = np.array([float(one.attributes.needmem) for one in residents])
        homes = np.array([index(one.home) for one in residents], np.int32)
        travelling = np.array([size[1] for size in sizes])
        records = processes(
            rates,
            ages,
            travelling,
            wanted,
            homes,
            link_mb_s=self._link.mb_s,
            bytes_mb_s=self.outlook.tuned.others.bytes_mb_s,
            move_fixed_s=self._link.fixed_s,
        )
        records["need_mb"] = np.maximum(held, wanted)
        cpu = np.maximum(rates[:, 0], 1e-3)
        call_s = self.outlook.tuned.others.call_us / 1e6
        abroad = (records["calls"] * call_s + records["transfer_s"]) * cpu
        return records, abroad

    def _movable(self, now: float) -> list[Resident]:
        """Those that may leave, the oldest, not more than are looked at."""
        short = self.outlook.short_mb > 0
        free = [
            one
            for one in self.census.residents.values()
            # What asks least comes first: most of those that are here do nothing.
            if (short or one.demand >= _RUNNER or one.guest is not None) and not self.held(one, now)
        ]
        if not free:
            return []
        if short:
            sizes = np.array([one.size_mb()[0] for one in free], np.float32)
            all_of_them = np.ones(len(free), np.bool_)
            return [free[relief_of_memory(self.outlook.short_mb, sizes, all_of_them)]]
        ages = self.census.statistics.ages(self.census.statistics.rows([one.key for one in free]))
        chosen = oldest_movable(
            ages,
            np.array([one.since for one in free]),
            np.zeros(len(free), np.float32),
            np.ones(len(free), np.bool_),
            now=now,
            rules=self._rules,
        )
        return [free[k] for k in chosen]

    # ---- push ----

    def proposals(self, residents: list[Resident], *, all_run: bool = False) -> list[Proposal]:
        """The best moves away from here, by what is believed of others, to different nodes.
        `all_run`: also of those that use little of a CPU now."""
        if not residents:
            return []
        outlook = self.outlook
        records, abroad = self._records(residents)
        found: list[Proposal] = []
        # Where a process may go is a matter of its home; one that hardly runs may only go there.
        groups: dict[tuple[str, bool, int], list[int]] = {}
        for k, one in enumerate(residents):
            runs = all_run or one.demand >= _RUNNER or outlook.short_mb > 0
            if runs or (one.guest is not None and abroad[k] >= _ASKS_HOME):
                groups.setdefault((one.home, runs, one.attributes.job_class), []).append(k)
        for (home, runs, job_class), members in groups.items():
            usable = outlook.usable(outlook.index(home), job_class)
            if not runs and outlook.index(home) < 0:
                continue
            if not runs:
                only = np.zeros(len(usable), np.bool_)
                only[outlook.index(home)] = True
                usable &= only
            for ip in self._silent.waiting(time.monotonic()):
                if outlook.index(str(ip)) >= 0:
                    usable[outlook.index(str(ip))] = False
            view = outlook.view(usable, leaver=True)
            choices = view.moves(
                outlook.here, records[members], slow=outlook.slow, count=self._rules.probes
            )
            for choice in choices:
                k = members[choice.process]
                target = outlook.ip(choice.node)
                there = NodeNumbers(
                    float(view.running[choice.node]),
                    float(view.cores[choice.node]),
                    float(view.free_mb[choice.node]),
                )
                found.append(
                    Proposal(
                        residents[k],
                        self._weight(residents[k], records[k]),
                        target,
                        choice.value,
                        self._reason(choice.value, there),
                    )
                )
        best: dict[str, Proposal] = {}
        for proposal in sorted(found, key=lambda proposal: -proposal.gain):
            best.setdefault(proposal.target, proposal)
        return list(best.values())[: self._rules.probes]

    def _weight(self, resident: Resident, record: np.void) -> Weight:
        return Weight(
            job=resident.job,
            pid=resident.key[1],
            home=resident.home,
            age_s=float(record["age_s"]),
            need_mb=float(record["need_mb"]),
            move_s=float(record["move_s"]),
            calls=min(float(record["calls"]), 1e9),
            transfer_s=min(float(record["transfer_s"]), 1e9),
        )

    def _reason(self, gain: float, there: NodeNumbers) -> str:
        """A move in numbers, for mosps."""
        truth = self.outlook.truth(leaver=True)
        memory = ""
        if self.outlook.short_mb > 0:
            memory = f"; MB free: {truth.free_mb:.0f} and {there.free_mb:.0f}"
        return (
            f"balanced: {truth.running:.1f} ran on {truth.cores:g} cores of {self.own_ip}, "
            f"{there.running:.1f} on {there.cores:g} here, gains {gain:.1f} s{memory}"
        )

    async def _push(self) -> None:
        for proposal in self.proposals(self._movable(time.monotonic())):
            offer = Offer(weight=proposal.weight, truth=self.outlook.truth(leaver=True))
            answer = await self._ask(proposal.target, offer)
            if isinstance(answer, Agreed):
                self.outlook.learn(proposal.target, answer.truth)
                # Somebody may have pulled it meanwhile.
                if answer.gain > 0 and not self.held(proposal.resident, time.monotonic()):
                    self._begin(proposal.resident, proposal.target, proposal.why)
                    return

    async def _ask(self, ip: str, question: Offer | Consider | Explain) -> Answering | None:
        """None: it does not answer, and is left alone for a while."""
        try:
            answer = await bargain.ask(self._dialer, ip, question)
        except (MosixError, OSError) as error:
            _log.info("node %s: %s", ip, error)
            self._silent.failed(ip, time.monotonic(), str(error))
            return None
        self._silent.succeeded(ip)
        return answer

    def _begin(self, resident: Resident, target: str, why: str) -> None:
        self._leaving[resident.key] = weight = min(1.0, resident.demand)
        self.outlook.leaving += weight
        self._later(self._carry_out(resident, target, why))

    async def _carry_out(self, resident: Resident, target: str, why: str) -> None:
        assert self._orders is not None
        source = HOME if resident.guest is None else self.own_ip
        try:
            moved = await self._orders.order(resident, target, Automatic(source=source, why=why))
        except MosixError as error:
            pause_s = self._patience.failed(resident.key, time.monotonic(), error.line())
            _log.info(
                "process %d of %s does not go to %s, tried again in %.0f s: %s",
                resident.key[1],
                resident.home,
                target,
                pause_s,
                error.line(),
            )
        else:
            self._patience.succeeded(resident.key)
            if moved.freeze_ns:
                self._link.moved(moved.freeze_ns / 1e9, moved.page_bytes / 1e6)
            self.outlook.population.changed(time.monotonic(), -self._leaving[resident.key])
            self.census.left(resident)
            _log.info("process %d of %s → %s: %s", resident.key[1], resident.home, target, why)
        finally:
            self.outlook.leaving -= self._leaving.pop(resident.key)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- pull ----

    async def _pull(self) -> None:
        """With a core to spare: the most that any of the three most loaded would gain."""
        truth = self.outlook.truth()
        if truth.takes or truth.running + 1 > truth.cores:
            return
        asked = self._most_loaded(truth)
        if not asked:
            return
        answers = await asyncio.gather(*(self._ask_for_one(ip, truth) for ip in asked))
        found = [answer for answer in answers if answer is not None]
        found.sort(key=lambda one: -one[1].gain)
        try:
            for parley, offer in found[:1]:
                weight, now = offer.weight, time.monotonic()
                key = (weight.home, weight.pid)
                self.outlook.promises.make(key, weight.need_mb, now)
                answer = await parley.ask(Take())
                if not isinstance(answer, Sending) or answer.error:
                    self.outlook.promises.kept(key)
        except (MosixError, OSError) as error:
            _log.info("node %s: %s", found[0][0].ip, error)
        finally:
            for parley, _ in found:
                parley.close()

    def _most_loaded(self, truth: NodeTruth) -> list[str]:
        outlook, now = self.outlook, time.monotonic()
        table = outlook.table
        busy = table.alive() & (table.column("running") + table.column("inbound") >= _RUNNER)
        busy[outlook.here] = False
        if not busy.any():
            return []
        view = outlook.view(busy)
        waiting = view.running > view.cores
        slower = view.pace > view.pace[outlook.here] * _CLEARLY_SLOWER
        worth = busy & (view.running >= _RUNNER) & (waiting | slower)
        crowd = np.where(worth, view.running / view.cores * view.pace, -1)
        waiting_for = [str(ip) for ip in self._silent.waiting(now)]
        for ip in map(str, self._nobody.waiting(now)):
            there, here = self._fruitless[ip]
            k = outlook.index(ip)
            more = k >= 0 and view.running[k] >= there + _MORE
            if not (more or truth.running <= here - _MORE):
                waiting_for.append(ip)
        for ip in waiting_for:
            if outlook.index(ip) >= 0:
                crowd[outlook.index(ip)] = -1
        order = np.argsort(-crowd)[: self._rules.probes]
        return [outlook.ip(int(k)) for k in order if crowd[k] > 0]

    async def _ask_for_one(self, ip: str, truth: NodeTruth) -> tuple[Parley, Found] | None:
        parley: Parley | None = None
        try:
            parley = await Parley.begin(self._dialer, ip)
            answer = await parley.ask(Pull(truth=truth))
        except (MosixError, OSError) as error:
            _log.info("node %s: %s", ip, error)
            self._silent.failed(ip, time.monotonic(), str(error))
            answer = None
        if isinstance(answer, Truth | Found):
            self._silent.succeeded(ip)
            self.outlook.learn(ip, answer.truth)
        if isinstance(answer, Found) and parley is not None:
            self._nobody.succeeded(ip)
            return parley, answer
        if isinstance(answer, Truth):
            self._nobody.failed(ip, time.monotonic())
            self._fruitless[ip] = answer.truth.running, truth.running
        if parley is not None:
            parley.close()
        return None

    # ---- what others ask (mosix.node.bargain.Partner) ----

    def truth(self) -> NodeTruth:
        return self.outlook.truth()

    def agree(self, sender: str, offer: Offer) -> Agreed:
        """The gain again, with this node's own numbers; a place is kept if there is any."""
        truth, weight = self.outlook.truth(), offer.weight
        back = weight.home == self.own_ip
        if truth.takes and not back:
            return Agreed(truth=truth, gain=0, reason=truth.takes)
        gain = self._gain(sender, offer.truth, self.own_ip, truth, weight, slow=offer.truth.slow)
        if gain <= 0:
            return Agreed(truth=truth, gain=0, reason="it would gain nothing here")
        key = (weight.home, weight.pid)
        self.outlook.promises.make(key, weight.need_mb, time.monotonic())
        return Agreed(truth=self.outlook.truth(), gain=min(gain, 1e9))

    def _gain(
        self,
        source: str,
        at_source: NodeTruth,
        target: str,
        at_target: NodeTruth,
        weight: Weight,
        *,
        slow: float,
    ) -> float:
        record = np.zeros(1, PROCESS)
        for name in ("age_s", "need_mb", "move_s", "calls", "transfer_s"):
            record[name] = getattr(weight, name)
        record["home"] = (
            [source, target].index(weight.home) if weight.home in (source, target) else -1
        )
        pair = Pair(self._rules, len(self.outlook.table))
        choice = pair.gain(as_numbers(at_source), as_numbers(at_target), record, slow=slow)
        return choice.value if choice else 0.0

    def reserve(self, sender: str, order: Reserve) -> Agreed:
        truth = self.outlook.truth()
        if truth.takes:
            return Agreed(truth=truth, gain=0, reason=truth.takes)
        if order.need_mb > truth.free_mb:
            return Agreed(truth=truth, gain=0, reason=f"only {truth.free_mb:.0f} MB are free")
        self.outlook.promises.make((sender, order.pid), order.need_mb, time.monotonic())
        return Agreed(truth=self.outlook.truth(), gain=1)

    def give(self, sender: str, pull: Pull) -> tuple[Weight, float] | None:
        if not self.active or not self.outlook.ready or self.outlook.index(sender) < 0:
            return None
        mine, best = self.outlook.truth(leaver=True), None
        residents = [
            one
            for one in self._movable(time.monotonic())
            if one.demand >= _RUNNER and self._can_run(one, sender)
        ]
        if not residents:
            return None
        records, _ = self._records(residents)
        for one, record in zip(residents, records, strict=True):
            weight = self._weight(one, record)
            gain = self._gain(self.own_ip, mine, sender, pull.truth, weight, slow=self.outlook.slow)
            if gain > 0 and (best is None or gain > best[1]):
                best = weight, gain
        return best

    def _can_run(self, resident: Resident, ip: str) -> bool:
        index = self.outlook.index(ip)
        home, job_class = self.outlook.index(resident.home), resident.attributes.job_class
        return bool(self.outlook.usable(home, job_class)[index])

    def send(self, target: str, pull: Pull, weight: Weight, gain: float) -> str:
        resident = self.census.residents.get((weight.home, weight.pid))
        if resident is None:
            return "it is not here any more"
        held = self.held(resident, time.monotonic())
        if held:
            return held
        there = NodeNumbers(pull.truth.running, pull.truth.cores, pull.truth.free_mb)
        self._begin(resident, target, self._reason(gain, there))
        return ""

    async def consider(self, sender: str, question: Consider) -> str | None:
        """Where the process had better be, which its home asks; a place is kept for it there."""
        return await self._better(self._resident((sender, question.pid), question.job))

    def explain(self, sender: str, question: Explain) -> str:
        return self.verdict(self._resident((sender, question.pid), question.job))

    def _resident(self, key: Key, job: str) -> Resident | None:
        resident = self.census.residents.get(key)
        return resident if resident is not None and resident.job == job else None

    # ---- about one process ----

    async def where_to(self, job: str, pid: int, where: str) -> str | None:
        """A program of this node's has asked where it had better be, which is at `where` now: IP
        of a node that keeps a place for it; None: there."""
        if where == HOME:
            return await self._better(self._resident((self.own_ip, pid), job))
        answer = await self._ask(where, Consider(job=job, pid=pid))
        return answer.target if isinstance(answer, Considered) else None

    async def why(self, job: str, pid: int, where: str) -> str:
        """Why the system leaves a process of this node where it is, in a line with numbers."""
        if where == HOME:
            return self.verdict(self._resident((self.own_ip, pid), job))
        answer = await self._ask(where, Explain(job=job, pid=pid))
        return answer.text if isinstance(answer, Explained) else ""

    def verdict(self, resident: Resident | None) -> str:
        """The same of one that runs here; "" of one about which nothing is known yet."""
        if resident is None or not self.outlook.ready:
            return ""
        if not self.active:
            return "this node moves nobody by itself (mosd --no-balance)"
        held = self.held(resident, time.monotonic())
        if held:
            return held
        if resident.guest is None and resident.demand < _RUNNER and not self.outlook.short_mb:
            return f"it uses {resident.demand:.2f} of a core, too little to be moved for"
        for proposal in self.proposals([resident]):
            return f"it had better be at {proposal.target}: {proposal.gain:.1f} s to gain"
        return self._nothing_to_gain(resident)

    def _nothing_to_gain(self, resident: Resident) -> str:
        outlook = self.outlook
        truth = outlook.truth(leaver=True)
        here = f"{truth.running:.1f} run on {truth.cores:.2f} cores"
        usable = outlook.usable(outlook.index(resident.home), resident.attributes.job_class)
        usable[outlook.here] = False
        if not usable.any():
            return f"no other node takes it: {here}"
        view = outlook.view(usable)
        records, _ = self._records([resident])
        best = view.place(records, 1)[0]
        if view.free_mb[best] < records["need_mb"][0]:
            return f"no other node has {records['need_mb'][0]:.0f} MB free: {here}"
        return (
            f"nothing to gain: {here} here, {view.running[best]:.1f} on "
            f"{view.cores[best]:.2f} at {outlook.ip(best)}"
        )

    async def _better(self, resident: Resident | None) -> str | None:
        """A node where it gains and that keeps a place for it; None: it is right here."""
        if resident is None or not self.outlook.ready:
            return None
        for proposal in self.proposals([resident], all_run=True):
            answer = await self._ask(
                proposal.target,
                Offer(weight=proposal.weight, truth=self.outlook.truth(leaver=True)),
            )
            if isinstance(answer, Agreed):
                self.outlook.learn(proposal.target, answer.truth)
                if answer.gain > 0:
                    return proposal.target
        return None
