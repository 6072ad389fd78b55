"""Sends guests home and brings own processes home, and waits until they are there.

Used by `mosix.node.administration` for mosctl and setpe. Everybody goes by his home's own orders:
a process that cannot be taken home now runs on where it is, is asked again every second, and is
named in the end. Nobody is ever killed here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from mosix.errors import MosixError
from mosix.node.deputies import DeputyLink, Launcher, check_moved
from mosix.node.guests import Host, RemoteLink
from mosix.node.registry import Guest, Process, Registry

#: How often somebody who has not left is asked again, seconds.
AGAIN_S = 1.0
#: More are only counted.
MAX_NAMED = 20


@dataclass
class Outcome:
    """How many guests and own processes are where they belong, after how many seconds, and who is
    not, in words."""

    guests: int = 0
    own: int = 0
    seconds: float = 0.0
    left: list[str] = field(default_factory=list)


class Evacuation:
    """Of one node. `deadline_s`: for how long somebody is waited for; None: until all are gone."""

    def __init__(self, launcher: Launcher, host: Host, registry: Registry) -> None:
        self._launcher = launcher
        self._host = host
        self._registry = registry

    async def run(
        self,
        *,
        guests: Callable[[Guest], bool] | None = None,
        own: Callable[[Process], bool] | None = None,
        deadline_s: float | None = None,
        settle: bool = True,
    ) -> Outcome:
        """`guests`, `own`: which of those of this moment; None: none. Both go at once. `settle`:
        also those at home stay there that would go back to where they were once ordered."""
        begin = time.monotonic()
        end = None if deadline_s is None else begin + deadline_s
        outcome = Outcome()
        parts: list[Coroutine[Any, Any, None]] = []
        if guests is not None:
            parts.append(self._guests_leave(guests, end, outcome))
        if own is not None:
            parts.append(self._own_come_home(own, end, outcome, settle=settle))
        await asyncio.gather(*parts)
        outcome.seconds = time.monotonic() - begin
        if len(outcome.left) > MAX_NAMED:
            more = len(outcome.left) - MAX_NAMED
            outcome.left[MAX_NAMED:] = [f"and {more} more"]
        return outcome

    # ---- guests ----

    async def _guests_leave(
        self, which: Callable[[Guest], bool], end: float | None, outcome: Outcome
    ) -> None:
        links = [link for link in await self._host.all_remotes() if which(link.guest)]
        left = links
        while left:
            for link in left:
                await link.evict()
            await _all_done([link.vacated.wait() for link in left], end, AGAIN_S)
            left = [link for link in left if not link.vacated.is_set()]
            if _over(end):
                break
        outcome.guests = len(links) - len(left)
        outcome.left += [_guest_text(link) for link in left]

    # ---- own processes ----

    async def _own_come_home(
        self,
        which: Callable[[Process], bool],
        end: float | None,
        outcome: Outcome,
        *,
        settle: bool,
    ) -> None:
        why: dict[int, str] = {}
        away = left = self._away(which)
        orders = [
            self._one_home(link, process.pid, why)
            for link in self._launcher.deputies.values()
            for process in link.job.processes.values()
            if which(process) and (process.where != "home" or (settle and process.nmigs))
        ]
        while orders:
            await _all_done(orders, end)
            left = self._away(which)
            if not left or _over(end):
                break
            await _all_done([asyncio.sleep(AGAIN_S)], end)
            orders = [self._one_home(link, pid, why) for pid, link in left.items()]
        outcome.own = len(away.keys() - left.keys())
        outcome.left += [f"process {pid}" + (f": {why[pid]}" if pid in why else "") for pid in left]

    def _away(self, which: Callable[[Process], bool]) -> dict[int, DeputyLink]:
        return {
            process.pid: link
            for link in self._launcher.deputies.values()
            for process in link.job.processes.values()
            if process.where != "home" and which(process)
        }

    async def _one_home(self, link: DeputyLink, pid: int, why: dict[int, str]) -> None:
        try:
            check_moved(await (await link.move(pid, None)))
            why.pop(pid, None)
        except MosixError as error:
            why[pid] = error.line()


def _over(end: float | None) -> bool:
    return end is not None and time.monotonic() >= end


async def _all_done(
    works: list[Coroutine[Any, Any, Any]], end: float | None, limit_s: float | None = None
) -> None:
    """Waits until all are done, but not behind `end`, nor longer than `limit_s`: then the rest is
    given up."""
    if end is not None:
        left = max(0.0, end - time.monotonic())
        limit_s = left if limit_s is None else min(limit_s, left)
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, timeout=limit_s)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _guest_text(link: RemoteLink) -> str:
    guest = link.guest
    here = f"guest {guest.outer_pid}" if guest.outer_pid else "a guest that is only coming"
    return f"{here} of node {guest.home} (process {guest.pid} there)"
