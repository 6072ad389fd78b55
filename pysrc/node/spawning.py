"""mosd's side of the spawner: starts it, asks it for workers, starts it again when it died."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from mosix import failpoints
from mosix.config import NodeConfig
from mosix.errors import KernelError, ProtocolError
from mosix.node import records
from mosix.node.listeners import Held, Holder
from mosix.node.privileges import Capabilities
from mosix.node.records import Identity, SpawnerRecord
from mosix.node.spawner import (
    AllHeld,
    Bequest,
    Died,
    Hold,
    Report,
    Spawn,
    Spawned,
    Taken,
    WorkerKind,
)
from mosix.wire.channel import Packets

_log = logging.getLogger("mosd.spawner")

#: A fork takes milliseconds; a machine that has very much to do only needs time.
SPAWN_TIMEOUT_S = 60.0
_RESTART_PAUSE_S = 0.5
#: of the kernel's flags of a process
_PF_EXITING = 4
_NO_PROCESS = "pids.max of mosd's cgroup, or its RLIMIT_NPROC, is used up"
_PASSED_ENVIRONMENT = ("PATH", "PYTHONPATH", "MOSIX_CONFIG_DIR", "MOSIX_RUN_DIR")


@dataclass(frozen=True)
class Programs:
    """What the workers run, as `module:function`."""

    deputy: str = "mosix.deputy.main:run"
    remote: str = "mosix.remote.main:run"


@dataclass
class Worker:
    """One forked deputy or remote, as mosd holds it."""

    pid: int
    pidfd: int
    sock: socket.socket

    def kill(self) -> None:
        """SIGKILL, if it still lives."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def close(self) -> None:
        """Forget it: its socket closes, which ends it."""
        self.sock.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


async def until_ended(pidfd: int) -> None:
    """Returns when that process has ended, whether or not somebody has reaped it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)


def is_dying(pid: int) -> bool:
    """Whether it has been killed, or ends; a process that is gone has."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return True
    flags, pending = int(fields[6]), int(fields[28])
    return bool(flags & _PF_EXITING or pending >> (signal.SIGKILL - 1) & 1)


class _SpawnerDiedError(KernelError):
    """Before it answered."""


class SpawnerClient:
    """`start` before the secret is read; `keep_running` as a task; `spawn` at any time."""

    def __init__(
        self, programs: Programs, died: Callable[[int, int], None], config: NodeConfig
    ) -> None:
        self._programs = programs
        self._died = died
        self._paths = config.paths
        self._node = f"node {config.ip}"
        #: of mosds that died: they hold listeners until this one does
        self._predecessors = self._recorded()
        self._tasks: set[asyncio.Task[None]] = set()
        self._requests = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Worker]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._packets: Packets[Report] | None = None
        self._holder = Holder()
        self.restarts = 0
        self._restarted = asyncio.Condition()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """A fresh process by exec: nothing of this one's memory is in it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {k: v for k in _PASSED_ENVIRONMENT if (v := os.environ.get(k))}
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",  # never import from the directory mosd was started in
                    "-m",
                    "mosix.node.spawner",
                    self._programs.deputy,
                    self._programs.remote,
                    str(self._paths.workers),
                ],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**environment, "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
            )
        self._packets = Packets(ours, Report)
        self._record()

    async def keep_running(self) -> None:
        """Receives reports; starts the spawner again when it dies. Ends by cancellation."""
        asyncio.get_running_loop().add_reader(self._holder, self._let_go)
        while True:
            await self._receive_reports()
            self._reap()
            failpoints.spent("spawner.")
            _log.error("the spawner died, starting it again")
            await asyncio.sleep(_RESTART_PAUSE_S)
            self.start()
            for held in self._holder.all():
                await self._hold(held)
            async with self._restarted:
                self.restarts += 1
                self._restarted.notify_all()

    async def _receive_reports(self) -> None:
        packets = self._packets
        assert packets is not None
        while True:
            try:
                report, fds = await packets.receive()
            except (EOFError, ConnectionResetError):
                return
            if isinstance(report, Died):
                self._died(report.pid, report.status)
                continue
            self._spawned(report, fds)

    def _spawned(self, report: Spawned, fds: list[int]) -> None:
        future = self._pending.pop(report.request, None)
        if report.error or len(fds) != 2:
            if future and not future.done():
                said = f"no process for it on {self._node}: {report.error}"
                future.set_exception(KernelError(said, _NO_PROCESS))
            return
        worker = Worker(report.pid, fds[1], socket.socket(fileno=fds[0]))
        if future is None or future.done():
            worker.kill()
            worker.close()
        else:
            future.set_result(worker)

    async def spawn(
        self,
        kind: WorkerKind,
        uid: int,
        gid: int,
        groups: tuple[int, ...] = (),
        capabilities: Capabilities | None = None,
    ) -> Worker:
        """A new worker with these identities. KernelError when there is none in time. A spawner
        that dies meanwhile is waited for to be started again: its children died with it, or
        will when they find nobody at their socket."""
        try:
            async with asyncio.timeout(SPAWN_TIMEOUT_S):
                while True:
                    restarts = self.restarts
                    try:
                        return await self._spawn(
                            kind, uid, gid, groups, capabilities or Capabilities()
                        )
                    except _SpawnerDiedError:
                        await self._until_restarted(restarts)
        except TimeoutError as error:
            raise KernelError(
                f"the spawner of {self._node} does not answer", "see mosd's log"
            ) from error

    async def hold(self, held: Held) -> None:
        """Takes over a job's listener. When it returns the spawner has a copy, or its successor
        will: should mosd end now, the job goes on."""
        if self._holder.keep(held):
            await self._hold(held)

    async def _hold(self, held: Held) -> None:
        assert self._packets is not None
        with contextlib.suppress(OSError):  # it has died: its successor gets them all
            await self._packets.send(Hold(uid=held.uid, gid=held.gid), held.descriptors)

    # ---- what the spawner of a mosd that died has held ----

    def _recorded(self) -> set[Identity]:
        record = records.read(self._paths.spawner, SpawnerRecord)
        return {spawner for spawner in record.spawners if spawner.alive()} if record else set()

    def _record(self) -> None:
        own = Identity.of(self._process.pid) if self._process else None
        spawners = (*self._predecessors, *([own] if own else []))
        path = self._paths.spawner
        records.write(path.parent, path.name, SpawnerRecord(spawners=spawners))

    def expects(self, worker: Identity) -> bool:
        return worker in self._predecessors

    def take_back(self, worker: Worker, fds: list[int]) -> bool:
        """Such a spawner has found this mosd."""
        identity = Identity.of(worker.pid)
        if identity is None or identity not in self._predecessors or fds:
            return False
        task = asyncio.create_task(self._inherit(worker, identity))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _inherit(self, worker: Worker, identity: Identity) -> None:
        packets: Packets[Bequest] = Packets(worker.sock, Bequest)
        try:
            while True:
                message, fds = await packets.receive()
                if isinstance(message, AllHeld):
                    break
                await self.hold(Held(message.uid, message.gid, *fds))
            await packets.send(Taken())
            self._predecessors.discard(identity)
            self._record()
        except (EOFError, OSError, ProtocolError) as error:
            _log.warning("spawner %d could not hand over: %s", worker.pid, error)
        finally:
            worker.close()

    def _let_go(self) -> None:
        for held in self._holder.finished():
            held.close()

    async def _until_restarted(self, restarts: int) -> None:
        async with self._restarted:
            await self._restarted.wait_for(lambda: self.restarts > restarts)

    async def _spawn(
        self,
        kind: WorkerKind,
        uid: int,
        gid: int,
        groups: tuple[int, ...],
        capabilities: Capabilities,
    ) -> Worker:
        request = next(self._requests)
        future: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._pending[request] = future
        order = Spawn(
            request=request,
            kind=kind,
            uid=uid,
            gid=gid,
            groups=groups,
            capabilities=capabilities,
            failpoints=failpoints.armed(),
        )
        assert self._packets is not None
        taken = False
        try:
            await self._packets.send(order)
            worker = await future
            taken = True
            return worker
        except OSError as error:
            raise _SpawnerDiedError("the spawner died", "try again") from error
        finally:
            # A worker that comes after this is killed by `_spawned`.
            self._pending.pop(request, None)
            if not taken:
                _discard(future)

    def _reap(self) -> None:
        if self._packets:
            self._packets.close()
        if self._process:
            self._process.kill()
            self._process.wait()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(_SpawnerDiedError("the spawner died", "try again"))
        self._pending.clear()

    def stop(self) -> None:
        """The spawner goes on alone as long as there are jobs whose listeners it holds."""
        self._let_go()
        if not len(self._holder):
            self._reap()
        elif self._packets:
            self._packets.close()


def _discard(future: asyncio.Future[Worker]) -> None:
    if future.done() and not future.cancelled() and future.exception() is None:
        worker = future.result()
        worker.kill()
        worker.close()
