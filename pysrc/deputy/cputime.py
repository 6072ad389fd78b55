"""CPU time of a process whose body was away: home's kernel has counted only what was used here.

Owned by `mosix.deputy.process`. Keeps the difference for the next move, has the job's listener
tell it to the program, and holds RLIMIT_CPU to what was used on all nodes, as the kernel would:
SIGXCPU at the soft limit and every second of CPU time after it, SIGKILL at the hard one. It never
changes the limit, which the program can read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal

from mosix.image import capture
from mosix.native.listener import Listener

#: The longest and shortest time between two looks, in seconds.
_SELDOM, _OFTEN = 60.0, 0.02


class CpuTime:
    """Of process `pid`. User and system times are pairs, in ns. Without a listener the program
    is told only what it used here."""

    def __init__(self, pid: int, listener: Listener | None) -> None:
        self._pid = pid
        self._listener = listener
        #: used on all nodes minus what home's kernel says
        self._away_ns = (0, 0)
        self._watching: asyncio.Task[None] | None = None

    @property
    def away_s(self) -> float:
        """What a body that is at home used on other nodes, as far as it is known."""
        return max(0, sum(self._away_ns)) / 1e9

    def everywhere(self, here_ns: tuple[int, int]) -> tuple[int, int]:
        """What was used on all nodes by the stopped body, to which `here_ns` was told by whoever
        answers here: the kernel, but for a body that came home, whose listener knows better."""
        told = self._listener.cpu_time(self._pid) if self._listener else None
        if told is not None:
            return told
        user, system = (max(a + b, 0) for a, b in zip(here_ns, self._away_ns, strict=True))
        return user, system

    def came_home(self, used_ns: tuple[int, int]) -> None:
        """The body, which has used `used_ns` on all nodes, runs here from now on."""
        here = capture.cpu_time(self._pid)
        self._away_ns = used_ns[0] - here[0], used_ns[1] - here[1]
        self.stop()
        if self._listener is not None:
            self._listener.came_home(self._pid, used_ns)
        if sum(self._away_ns) > 0:
            self._watching = asyncio.create_task(self._hold_limit())

    def used_away(self, used_ns: tuple[int, int]) -> None:
        """The body, which is away, has used `used_ns` on all nodes: what its parent will be told if
        it is killed there. Of an exit the agent tells more exactly."""
        if self._listener is not None:
            self._listener.came_home(self._pid, used_ns)

    def stop(self) -> None:
        """The body is not here, or has ended."""
        if self._listener is not None:
            self._listener.not_here(self._pid)
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _hold_limit(self) -> None:
        told_s = 0
        # The process may end, or become somebody else's, at any time.
        with contextlib.suppress(ProcessLookupError, PermissionError, FileNotFoundError):
            while True:
                soft, hard = resource.prlimit(self._pid, resource.RLIMIT_CPU)
                if (soft, hard) == (resource.RLIM_INFINITY,) * 2:
                    return
                used_ns = capture.cpu_clock(self._pid) + sum(self._away_ns)
                used_s = used_ns // 10**9
                if hard != resource.RLIM_INFINITY and used_s >= hard:
                    os.kill(self._pid, signal.SIGKILL)
                    return
                if soft != resource.RLIM_INFINITY and used_s >= max(soft, told_s + 1):
                    os.kill(self._pid, signal.SIGXCPU)
                    told_s = used_s
                next_s = min(
                    max(limit, told_s + 1)
                    for limit in (soft, hard)
                    if limit != resource.RLIM_INFINITY
                )
                left_s = next_s - used_ns / 1e9
                # at the earliest then, if all its threads run
                threads = len(os.listdir(f"/proc/{self._pid}/task"))
                await asyncio.sleep(min(max(left_s / threads, _OFTEN), _SELDOM))
