"""What everyone may read in /proc/mosix/PID of the processes of jobs and guests: mosd tells it.

One `Shown` runs in a mosd of the kernel tier. It compares what mosd knows with what was told, soon
after each change, and once a second, because of children of which only their cgroup tells. The
module itself forgets whoever has ended. Nothing else of a job may be told here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from mosix.kernel.device import FREEZER_GUEST, Device, Told
from mosix.node.registry import Guest, Process, Registry

_log = logging.getLogger("mosd.shown")

_EVERY_S = 1.0
#: Changes come in groups: what a move says within so many seconds is told at once.
_SOON_S = 0.05
_HERE = "0"


class Shown:
    """Tells `device` about the processes in `registry`."""

    def __init__(self, registry: Registry, device: Device) -> None:
        self._registry = registry
        self._device = device
        self._changed = asyncio.Event()
        self._told: dict[int, Told] = {}
        registry.changed = self._changed.set

    async def run(self) -> None:
        """As long as mosd."""
        try:
            while True:
                try:
                    async with asyncio.timeout(_EVERY_S):
                        await self._changed.wait()
                    await asyncio.sleep(_SOON_S)
                except TimeoutError:
                    pass  # it is time to look anyway
                self._changed.clear()
                self._tell()
        finally:
            self._device.close()

    def _tell(self) -> None:
        wanted = {told.pid: told for told in self._all()}
        for pid in self._told.keys() - wanted.keys():
            self._device.forget(pid)
        # Also what is as before: its number may be that of another process by now.
        self._told = {pid: told for pid, told in wanted.items() if self._tell_one(told)}

    def _tell_one(self, told: Told) -> bool:
        try:
            return self._device.tell(told)
        except OSError as error:
            if told.pid not in self._told:
                _log.error("process %d is not in /proc/mosix: %s", told.pid, error.strerror)
            return True

    def _all(self) -> Iterator[Told]:
        for job in self._registry.jobs.values():
            for process in self._registry.processes_of(job):
                yield self._of_process(process)
        for guest in self._registry.guests.values():
            if guest.begun and guest.outer_pid:
                yield _of_guest(guest)

    def _of_process(self, process: Process) -> Told:
        where = _HERE if process.where == "home" else process.where
        if process.where == "moving":
            before = self._told.get(process.pid)
            where = before.where if before else _HERE
        job_class = process.attributes.job_class
        return Told(process.pid, job_class, 0, 0, home=_HERE, where=where)


def _of_guest(guest: Guest) -> Told:
    job_class = guest.attributes.job_class
    return Told(guest.outer_pid, job_class, guest.pid, FREEZER_GUEST, home=guest.home, where=_HERE)
