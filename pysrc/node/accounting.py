"""What the processes of own jobs do while they are at home, asked for every second.

`Accounting.run` is a task of mosd. eBPF counts where it can, from the moment that there is
something to count until a minute after; else /proc is read. `how` says which, and why (`mosctl
status`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from mosix.balancer.account import BpfCounter, ProcCounter, Totals, Use, why_not
from mosix.errors import KernelError

_log = logging.getLogger("mosd.accounting")

Choice = Literal["auto", "proc"]

#: Without a job at home the compiler's memory is given back after so many seconds.
_IDLE_S = 60.0


class Accounting:
    """`uses`: by PID, of the processes that were at home in the last second."""

    def __init__(
        self,
        at_home: Callable[[], set[int]],
        busy: Callable[[], set[int]],
        choice: Choice = "auto",
    ) -> None:
        """`busy`: those of them that have done anything lately; only these are looked up in
        /proc."""
        self._at_home = at_home
        self._busy = busy
        self._proc = ProcCounter()
        self._bpf: BpfCounter | None = None
        self._before: dict[int, Totals] = {}
        self._idle_since: float | None = None
        self._why_proc = why_not() if choice == "auto" else "as ordered"
        self.uses: dict[int, Use] = {}

    @property
    def how(self) -> str:
        """ "eBPF" or "/proc", and why."""
        if self._why_proc:
            return f"/proc: {self._why_proc}"
        if self._bpf is None:
            return "eBPF, when a job is at home"
        failures = self._bpf.failures
        return f"eBPF, {failures} map operations failed" if failures else "eBPF"

    async def run(self, second: Callable[[], Awaitable[object]]) -> None:
        """Until cancelled. `second`: the end of the next one, that of the meter's reading: who is
        awake anyway costs nobody a start."""
        try:
            while True:
                await second()
                await self._ask(self._at_home())
        finally:
            if self._bpf is not None:
                await self._bpf.close()

    async def _ask(self, pids: set[int]) -> None:
        now = await self._totals(pids)
        before, self._before = self._before, now
        self.uses = {pid: now[pid].since(before[pid]) for pid in now.keys() & before.keys()}

    async def _totals(self, pids: set[int]) -> dict[int, Totals]:
        now = time.monotonic()
        self._idle_since = None if pids else self._idle_since or now
        if self._why_proc:
            return await self._proc.totals(self._busy())
        try:
            if self._bpf is None:
                if not pids:
                    return {}
                self._bpf = await BpfCounter.start()
            if self._idle_since is not None and now - self._idle_since >= _IDLE_S:
                await self._bpf.close()
                self._bpf = None
                return {}
            return await self._bpf.totals(pids)
        except KernelError as error:
            _log.warning("no accounting with eBPF: %s", error.line())
            self._why_proc = error.message
            if self._bpf is not None:
                await self._bpf.close()
                self._bpf = None
            return await self._proc.totals(self._busy())
