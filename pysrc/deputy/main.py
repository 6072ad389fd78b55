"""A deputy: the process at home that owns one job. Forked by the spawner as the job's user.

It alone says where the job's processes are (`mosix.deputy.process`) and moves them
(`mosix.deputy.moves`); mosd asks for moves, dials other nodes and is told every change. It ends
with the job. It must never hold a secret: it belongs to the user.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - asyncio imports it with the first transfer
import contextlib
import logging
import os
import select
import socket
from collections.abc import Coroutine

from mosix import failpoints
from mosix.deputy import moves
from mosix.deputy.link import RemoteLink
from mosix.deputy.process import LAUNCH_RETURN, JobProcess, Place
from mosix.deputy.reconnect import reconnect
from mosix.deputy.rest import members, pidfd_of_any, rest
from mosix.errors import (
    LAUNCH_FAILED,
    MosixError,
    NoSuchProcessError,
    ProtocolError,
)
from mosix.native.blob import load_blob
from mosix.native.cpu import cpu_features
from mosix.native.tracee import Stop, Tracee
from mosix.native.watch import Watch
from mosix.wire.adoption import returned, try_to_return
from mosix.wire.channel import Packets
from mosix.wire.dialer import Dialer
from mosix.wire.messages import (
    Arm,
    Armed,
    ComeHome,
    Dialed,
    Forsaken,
    Launch,
    Move,
    Moved,
    NodeFeatures,
    NodeToWorker,
    ProcessState,
    Started,
    Token,
    WorkerToNode,
    decode,
)

log = logging.getLogger("mosix.deputy")

_PTRACE_EVENT_EXEC = 4
_PTRACE_O_TRACEEXEC = 1 << _PTRACE_EVENT_EXEC
_NR_EXIT_GROUP = 231

#: A line for the user: what is less than a page goes into a pipe that has room at all.
_MAX_LINE = 1000
_STDERR_PATIENCE_S = 5


def warm_up() -> None:
    """Computes once, in the spawner, what a launch or a move would otherwise have to wait for."""
    load_blob()
    cpu_features()
    with contextlib.suppress(ProtocolError):
        decode(b"", NodeToWorker)


def run(sock: socket.socket) -> None:
    """Entry of the forked process; `sock` leads to mosd. Returns when the job is over."""
    node: Packets[NodeToWorker] = Packets(sock, NodeToWorker)
    select.select([sock], [], [])
    launch, fds = node.receive_now()
    if not isinstance(launch, Launch) or len(fds) != 2:
        raise ProtocolError("the first message to a deputy must be Launch")
    pidfd, stderr = fds
    if launch.node is None:
        failpoints.hit("deputy.launch")
        node.send_now(Started())
        sock, pidfd = rest(
            sock, pidfd, launch.cgroup, lambda: try_to_return(launch.adoption, [stderr])
        )
        node = Packets(sock, NodeToWorker)
    if pidfd >= 0:
        asyncio.run(Deputy(node, launch, stderr).main(pidfd))


class Deputy:
    """The job, its processes and the way to mosd (`mosix.deputy.process.Home`)."""

    def __init__(self, node: Packets[NodeToWorker], launch: Launch, stderr: int) -> None:
        self._node = node
        self.launch = launch
        self._processes: dict[int, JobProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox: asyncio.Queue[WorkerToNode] = asyncio.Queue()
        self._dialer = Dialer(self._outbox.put_nowait)
        self.watch = Watch()
        self._stderr = stderr

    @property
    def here(self) -> str:
        return self.launch.home

    @property
    def features(self) -> NodeFeatures:
        return self.launch.features

    @property
    def grace_s(self) -> int:
        return self.launch.grace_s

    async def reconnect(self, process: JobProcess, link: RemoteLink) -> None:
        await reconnect(process, link)

    def forsake(self, process: JobProcess, link: RemoteLink) -> None:
        self._outbox.put_nowait(Forsaken(ip=link.ip, pid=process.pid, token=link.token))

    async def main(self, pidfd: int) -> None:
        """`pidfd`: of a process of the job. Returns when all have ended."""
        self.watch.start()
        if self.launch.node is not None:
            await self._stop_at_exec(self.launch.pid, self.launch.node)
            failpoints.hit("deputy.launch")
            await self._node.send(Started())
        workers = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        try:
            await self._until_job_ends(pidfd)
        finally:
            for process in self._processes.values():
                process.end()
            while self._tasks:
                await asyncio.gather(*self._tasks, return_exceptions=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._outbox.join(), 5)
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            self._node.close()

    async def _stop_at_exec(self, pid: int, node: str) -> None:
        root = self._process(pid)
        root.order(node, LAUNCH_RETURN)
        # No other move before this one: until then the process is traced, and not a program.
        await root.moves.acquire()
        tracee = Tracee.seize(pid, _PTRACE_O_TRACEEXEC)
        self.watch.add(tracee, lambda stop: self._before_exec(root, tracee, stop))

    # ---- mosd ----

    async def _read(self) -> None:
        while True:
            # While mosd is gone jobs go on, and what is away stays away.
            with contextlib.suppress(EOFError, OSError):
                await self._listen()
            self._dialer.fail_all()
            self._node.close()
            self._node = Packets(await returned(self.launch.adoption, [self._stderr]), NodeToWorker)
            self._dialer.back()
            for process in self._processes.values():
                if process.place is not Place.ENDED:
                    process.report()

    async def _listen(self) -> None:
        while True:
            message, fds = await self._node.receive()
            if isinstance(message, Dialed):
                self._dialer.answered(message, fds)
            elif isinstance(message, Move):
                self._spawn(self._move(message))
            elif isinstance(message, ComeHome):
                self._spawn(self._all_home(message))
            elif isinstance(message, Arm):
                failpoints.arm(message.spec)
                for process in self._processes.values():
                    process.arm_agent()
                self._outbox.put_nowait(Armed())
            else:
                log.warning("mosd sent %s to a deputy", type(message).__name__)

    async def _write(self) -> None:
        while True:
            message = await self._outbox.get()
            with contextlib.suppress(OSError):  # mosd is gone; its successor asks again
                await self._node.send(message)
            self._outbox.task_done()

    def report(self, state: ProcessState) -> None:
        self._outbox.put_nowait(state)

    async def dial(
        self, ip: str, purposes: tuple[str, ...], pid: int, epoch: int, token: Token | None
    ) -> tuple[Token, list[socket.socket]]:
        return await self._dialer.dial(ip, purposes, pid, epoch, token)

    # ---- orders ----

    async def _move(self, order: Move) -> None:
        # Whatever happens, whoever waits for it is answered.
        moved = Moved(
            request=order.request,
            pid=order.pid,
            error="the deputy has met an error of its own",
            hint="see mosd's log",
        )
        try:
            process = self._member(order.pid)
            async with process.moves:
                moves_before = process.nmigs
                try:
                    await self._carry_out(process, order.target)
                except MosixError as error:
                    process.say_why_not(error)
                    raise
            moved = Moved(request=order.request, pid=order.pid)
            if process.nmigs != moves_before:  # else it was there already
                moved = Moved(
                    request=order.request,
                    pid=order.pid,
                    freeze_ns=process.freeze_ns,
                    page_bytes=process.page_bytes,
                )
        except MosixError as error:
            moved = Moved(
                request=order.request,
                pid=order.pid,
                error=error.message[:2000] or "failed",
                code=error.code,
                hint=error.hint[:2000],
            )
        finally:
            self._outbox.put_nowait(moved)

    async def _carry_out(self, process: JobProcess, target: str | None) -> None:
        if process.place is Place.ENDED:
            raise NoSuchProcessError(f"process {process.pid} has ended")
        if target is None or target == self.here:
            process.order(None)
            if process.place is Place.AWAY:
                await moves.come_home(process)
        else:
            process.order(target)
            if process.place is Place.HOME:
                await moves.leave(process, target)
            elif process.link is not None and process.link.ip != target:
                await moves.move_on(process, target)
        process.why = "ordered"
        process.report()

    async def _all_home(self, order: ComeHome) -> None:
        errors = []
        for process in list(self._processes.values()):
            process.order(None)
            try:
                async with process.moves:
                    if process.place is Place.AWAY:
                        await moves.come_home(process)
            except MosixError as error:
                errors.append(error.line())
        self._outbox.put_nowait(Moved(request=order.request, pid=0, error="; ".join(errors)[:2000]))

    async def come_home(self, process: JobProcess) -> None:
        await moves.come_home(process)

    async def leave(self, process: JobProcess, ip: str) -> None:
        await moves.leave(process, ip)

    # ---- the job ----

    def _process(self, pid: int) -> JobProcess:
        process = self._processes.get(pid)
        if process is None or process.place is Place.ENDED:
            process = self._processes[pid] = JobProcess(self, pid)
        return process

    def _member(self, pid: int) -> JobProcess:
        if pid not in members(self.launch.cgroup):
            raise NoSuchProcessError(f"process {pid} is not part of this job, or has ended")
        return self._process(pid)

    async def _until_job_ends(self, pidfd: int) -> None:
        """Waits for the launching process, then for whatever it left behind."""
        while pidfd >= 0:
            await _ended(pidfd)
            os.close(pidfd)
            pidfd = pidfd_of_any(self.launch.cgroup)

    def _before_exec(self, root: JobProcess, tracee: Tracee, stop: Stop) -> None:
        """Launch with -{node}: the program leaves at its first instruction."""
        if stop.ended:
            root.end()
            root.moves.release()
        elif stop.kind == "event" and stop.event == _PTRACE_EVENT_EXEC:
            self.watch.remove(tracee)
            self._spawn(self._leave_at_exec(root, tracee))
        elif stop.kind == "group":
            tracee.listen()
        else:
            tracee.cont(stop.signal if stop.kind == "signal" else 0)

    async def _leave_at_exec(self, root: JobProcess, tracee: Tracee) -> None:
        node = self.launch.node
        assert node is not None
        try:
            failpoints.hit("deputy.exec")
            await moves.leave(root, node, seized=tracee)
        except (MosixError, OSError) as failure:
            error = failure if isinstance(failure, MosixError) else moves.ran_short(root, failure)
            with contextlib.suppress(MosixError):
                if self.launch.fallback:
                    root.why = f"home: {error.line()}"
                    root.report()
                    tracee.detach()
                else:
                    self.tell_user(error.line(), "mosrun")
                    tracee.inject(_NR_EXIT_GROUP, LAUNCH_FAILED)
        finally:
            root.moves.release()

    def tell_user(self, text: str, who: str = "mosix") -> None:
        """One line on the job's stderr, unless that is full for too long: the deputy must end."""
        line = f"{who}: {MosixError(text).line()}"[:_MAX_LINE] + "\n"
        self._spawn(self._write_stderr(line.encode(errors="replace")))

    async def _write_stderr(self, line: bytes) -> None:
        def write() -> None:
            # The description is the user's: it cannot be made non-blocking.
            room = select.poll()
            room.register(self._stderr, select.POLLOUT)
            if room.poll(_STDERR_PATIENCE_S * 1000):
                os.write(self._stderr, line)

        with contextlib.suppress(OSError):
            await asyncio.to_thread(write)

    def _spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("deputy of job %s", self.launch.job, exc_info=error)


async def _ended(pidfd: int) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pidfd, lambda: None if done.done() else done.set_result(None))
    try:
        await done
    finally:
        loop.remove_reader(pidfd)
