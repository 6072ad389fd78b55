"""Moves that are not those of one process of this node: `migrate -j`, `migrate PID out`.

Called by `mosix.node.services`, which moves single processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mosix.errors import MosixError, NoSuchProcessError, UnknownNodeError
from mosix.node.guests import Host
from mosix.node.registry import Guest, Job, Registry
from mosix.node.requests import Migrate, Migrated, MigratedJob, MigratedProcess, MigrateJob
from mosix.node.rights import Caller, check_owner, check_root

Migrating = Callable[[Caller, Migrate], Awaitable[Migrated]]


class Groups:
    """Jobs as a whole, and guests as this node's owner sees them."""

    def __init__(self, registry: Registry, host: Host) -> None:
        self._registry = registry
        self._host = host

    async def migrate(self, caller: Caller, request: MigrateJob, migrate: Migrating) -> MigratedJob:
        """Of the job that was started here, or of its guests here. MosixError."""
        found = self._job_called(request.job)
        check_owner(caller.uid, found.uid, found.pid)
        if isinstance(found, Job):
            pids = [process.pid for process in self._registry.processes_of(found)]
        else:
            pids = [
                guest.outer_pid
                for guest in self._registry.guests.values()
                if guest.job == found.job and guest.outer_pid
            ]
        rows = await asyncio.gather(*(_one(caller, request, migrate, pid) for pid in pids))
        return MigratedJob(processes=[row for row in rows if request.wait or row.error])

    def _job_called(self, text: str) -> Job | Guest:
        """Of a job with several guests any one. NoSuchProcessError unless it is just one job."""
        jobs: dict[str, Job | Guest] = {g.job: g for g in self._registry.guests.values()}
        jobs.update(self._registry.jobs)
        found = [job for name, job in jobs.items() if text and name.startswith(text)]
        if len(found) != 1:
            what = f"{len(found)} jobs begin with {text}" if found else f"there is no job {text}"
            raise NoSuchProcessError(what, "mosps -l shows the jobs, and which is whose")
        return found[0]

    async def out(self, caller: Caller, request: Migrate) -> Migrated:
        """A guest leaves. MosixError."""
        check_root(caller.uid, "send guests away")
        guest = self._registry.guest_by_outer_pid(request.pid)
        link = next((link for link in self._host.remotes() if link.guest is guest), None)
        if link is None:
            raise NoSuchProcessError(
                f"process {request.pid} is no guest of this node", "mosps -V lists them"
            )
        await link.evict()
        if request.wait:
            await link.vacated.wait()
        return Migrated()


async def _one(
    caller: Caller, request: MigrateJob, migrate: Migrating, pid: int
) -> MigratedProcess:
    try:
        order = Migrate(pid=pid, target=request.target, wait=request.wait)
        moved = await migrate(caller, order)
    except UnknownNodeError:
        raise
    except MosixError as error:
        return MigratedProcess(pid=pid, error=error.line(), code=error.code)
    return MigratedProcess(pid=pid, freeze_ns=moved.freeze_ns, page_bytes=moved.page_bytes)
