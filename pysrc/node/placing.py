"""Where a program had better start: mosrun -b, bestnode.

By what is believed of all nodes the best three are asked how they are, until the best is one that
was asked; it keeps a place. All that start at the same moment believe the same, so this node
counts every place that it was given at once. Called by `mosix.node.services`; moves nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Final

import numpy as np
from mosix.balancer.policy import MOST_CHOICES, PROCESS, View
from mosix.errors import MosixError
from mosix.node import bargain
from mosix.node.outlook import Outlook, put
from mosix.node.peers import Dialer
from mosix.wire.bargain import Agreed, NodeTruth, Reserve

#: How often the best is looked for, if it declines each time.
_ATTEMPTS: Final = 4


class Placer:
    """`place` finds a node."""

    def __init__(self, own_ip: str, dialer: Dialer, outlook: Outlook) -> None:
        self._own = own_ip
        self._dialer = dialer
        self._outlook = outlook

    async def place(
        self,
        need_mb: float,
        pid: int = 0,
        *,
        job_class: int = 0,
        among: Collection[str] | None = None,
    ) -> str | None:
        """IP of the node for one more process of this one with so many MB; None: it fits nowhere.
        `pid`: it keeps a place for that one, 0: none is kept. `among`: only these nodes."""
        outlook = self._outlook
        usable = outlook.usable(outlook.here, job_class)
        if among is not None:
            wanted = [k for k in map(outlook.index, among) if k >= 0]
            mask = np.zeros(len(usable), np.bool_)
            mask[wanted] = True
            usable &= mask
        view = outlook.view(usable)
        for _ in range(_ATTEMPTS):
            index = await self._choose(view, need_mb)
            if index is None:
                return None
            ip = outlook.ip(index)
            if ip == self._own:
                if pid:
                    outlook.population.changed(time.monotonic(), 1.0)
                return ip
            if not pid or await self._reserved(ip, pid, need_mb):
                return ip
            usable[index] = False
        return None

    async def _choose(self, view: View, need_mb: float) -> int | None:
        """`view` becomes truer."""
        outlook, rules = self._outlook, self._outlook.rules
        assert view.usable is not None
        process = np.zeros(1, PROCESS)
        process["need_mb"], process["home"] = need_mb, outlook.here
        asked = {outlook.here}
        for number in range(len(view.running)):
            ranked = [k for k in view.place(process, MOST_CHOICES) if view.usable[k]]
            if not ranked:
                return None
            known = next((k for k in ranked if k in asked), None)
            fits = known is not None and view.free_mb[known] >= need_mb
            if ranked[0] in asked or (number >= rules.probe_rounds and fits):
                return known if fits else None
            new = [k for k in ranked if k not in asked][: rules.probes]
            truths = await asyncio.gather(*map(self._probe, map(outlook.ip, new)))
            asked.update(new)
            for k, truth in zip(new, truths, strict=True):
                if truth is None or truth.takes:
                    view.usable[k] = False
                else:
                    put(view, k, truth)
        return None

    async def _probe(self, ip: str) -> NodeTruth | None:
        truth = await bargain.truth_of(self._dialer, ip)
        if truth is not None:
            self._outlook.learn(ip, truth)
        return truth

    async def _reserved(self, ip: str, pid: int, need_mb: float) -> bool:
        try:
            answer = await bargain.ask(self._dialer, ip, Reserve(pid=pid, need_mb=need_mb))
        except (MosixError, OSError):
            return False
        if isinstance(answer, Agreed):
            self._outlook.learn(ip, answer.truth)
            return answer.gain > 0
        return False
