"""A deputy: the process at home that owns one job. Forked by the spawner as the job's user.

It alone says where the job's processes are (`mosix.deputy.process`) and moves them
(`mosix.deputy.moves`); mosd asks for moves, dials other nodes and is told every change. It ends
with the job. It must never hold a secret: it belongs to the user.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - asyncio imports it with the first transfer
import contextlib
import errno
import itertools
import logging
import os
import select
import socket
from collections.abc import Callable, Coroutine

from mosix import failpoints
from mosix.deputy import moves
from mosix.deputy.interface import (
    LOCALTIME,
    MIGRATE,
    READ,
    birth,
    go_home_for,
    migrate,
    process_of,
    value_of,
)
from mosix.deputy.link import RemoteLink
from mosix.deputy.process import LAUNCH_RETURN, JobProcess, Place
from mosix.deputy.reconnect import reconnect
from mosix.deputy.rest import members, pidfd_of_any, rest
from mosix.errors import (
    LAUNCH_FAILED,
    CannotMoveError,
    MosixError,
    NoSuchProcessError,
    ProtocolError,
    RefusedError,
)
from mosix.image import eligibility
from mosix.image.capture import ProcFiles
from mosix.native.blob import load_blob
from mosix.native.cpu import cpu_features
from mosix.native.listener import Asked, Listener
from mosix.native.stops import Stop
from mosix.native.tracee import Tracee
from mosix.native.watch import Watch
from mosix.wire.adoption import returned, try_to_return
from mosix.wire.attributes import changed
from mosix.wire.channel import Packets
from mosix.wire.dialer import Dialer
from mosix.wire.messages import Ask, NodeFeatures, Token, Told, decode
from mosix.wire.mosd_messages import (
    Arm,
    Armed,
    Automatic,
    ComeHome,
    Consider,
    Dialed,
    Forsaken,
    Join,
    Joined,
    Launch,
    Move,
    Moved,
    Name,
    Named,
    NodeToWorker,
    ProcessState,
    Started,
    Unruly,
    WorkerToNode,
)

log = logging.getLogger("mosix.deputy")

_PTRACE_EVENT_EXEC = 4
_PTRACE_O_TRACEEXEC = 1 << _PTRACE_EVENT_EXEC
_NR_EXIT_GROUP = 231

#: A line for the user: what is less than a page goes into a pipe that has room at all.
_MAX_LINE = 1000
_STDERR_PATIENCE_S = 5
#: Messages that wait for mosd: when there are more, guests wait for it, too.
_MAX_UNSENT = 256
#: Between two complaints of one node, seconds.
_COMPLAIN_EVERY_S = 60


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
    if not isinstance(launch, Launch) or len(fds) not in (2, 3, 4):
        raise ProtocolError("the first message to a deputy must be Launch")
    pidfd, stderr, *listening = fds
    #: alone it is a file of /dev/mosix
    files = ProcFiles(module=listening[0] if len(listening) == 1 else -1)
    listener = Listener(*listening) if listening and launch.interface else None
    # What mosd must have of it, should another one run one day.
    belongings = (stderr, *(listening if files.module < 0 else ()))
    filters = eligibility.filters_of(launch.pid)
    if launch.node is None:
        failpoints.hit("deputy.launch")
        node.send_now(Started())
        others = (listener.event,) if listener else ()
        sock, pidfd = rest(
            sock, others, pidfd, launch.cgroup, lambda: try_to_return(launch.adoption, belongings)
        )
        node = Packets(sock, NodeToWorker)
    if pidfd >= 0:
        deputy = Deputy(node, launch, belongings, listener, filters=filters, files=files)
        asyncio.run(deputy.main(pidfd))


class Deputy:
    """The job, its processes and the way to mosd (`mosix.deputy.process.Home`)."""

    def __init__(
        self,
        node: Packets[NodeToWorker],
        launch: Launch,
        belongings: tuple[int, ...],
        listener: Listener | None,
        *,
        filters: int,
        files: ProcFiles,
    ) -> None:
        self._node = node
        self.launch = launch
        self._processes: dict[int, JobProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox: asyncio.Queue[WorkerToNode] = asyncio.Queue()
        self._dialer = Dialer(self._outbox.put_nowait)
        self.watch = Watch()
        self._belongings = belongings
        self._stderr = belongings[0]
        self.listener = listener
        self._names: dict[int, asyncio.Future[Named]] = {}
        self._name_numbers = itertools.count(1)
        self._mosd_gone = False
        self._complained: dict[str, float] = {}
        self.filters = filters
        self.files = files

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

    def later(self, work: Coroutine[object, object, None]) -> None:
        self._spawn(work)

    def forsake(self, process: JobProcess, link: RemoteLink) -> None:
        self._outbox.put_nowait(Forsaken(ip=link.ip, pid=process.pid, token=link.token))

    @property
    def interface(self) -> bool:
        return self.listener is not None

    @property
    def date_ahead_ns(self) -> int:
        return self.launch.date_ahead_ns

    async def main(self, pidfd: int) -> None:
        """`pidfd`: of a process of the job. Returns when all have ended."""
        self.watch.start()
        if self.listener is not None:
            self.listener.listen(self._asked)
        if self.launch.node is not None:
            await self._stop_at_exec(
                self._process(self.launch.pid), self.launch.node, fallback=self.launch.fallback
            )
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

    async def _stop_at_exec(self, process: JobProcess, node: str, *, fallback: bool) -> None:
        """A mosrun is about to execute its program, which leaves then for `node`."""
        process.order(node, LAUNCH_RETURN)
        # No other move before this one: until then the process is traced, and not a program.
        await process.moves.acquire()
        try:
            tracee = Tracee.seize(process.pid, _PTRACE_O_TRACEEXEC)
        except MosixError:
            process.moves.release()
            raise
        self.watch.add(
            tracee, lambda stop: self._before_exec(process, tracee, stop, node, fallback=fallback)
        )

    # ---- mosd ----

    async def _read(self) -> None:
        while True:
            # While mosd is gone jobs go on, and what is away stays away.
            with contextlib.suppress(EOFError, OSError):
                await self._listen()
            self._dialer.fail_all()
            self._mosd_gone = True
            for number in list(self._names):
                self._named(Named(request=number))
            self._node.close()
            sock = await returned(self.launch.adoption, self._belongings)
            self._node = Packets(sock, NodeToWorker)
            self._dialer.back()
            self._mosd_gone = False
            for process in self._processes.values():
                if process.place is not Place.ENDED:
                    process.report()

    def _named(self, message: Named) -> None:
        future = self._names.pop(message.request, None)
        if future is not None and not future.done():
            future.set_result(message)

    async def _listen(self) -> None:
        while True:
            message, fds = await self._node.receive()
            if isinstance(message, Dialed):
                self._dialer.answered(message, fds)
            elif isinstance(message, Move):
                self._spawn(self._move(message))
            elif isinstance(message, Join):
                self._spawn(self._join(message))
            elif isinstance(message, Named):
                self._named(message)
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
        process = self._processes.get(pid)
        attributes = process.attributes if process is not None else self.launch.attributes
        return await self._dialer.dial(
            ip, purposes, pid, epoch, token, job_class=attributes.job_class
        )

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
                if order.automatic is None:
                    try:
                        await self.send_to(process, order.target)
                    except MosixError as error:
                        process.say_why_not(error)
                        raise
                else:
                    await self._balance(process, order.target, order.automatic)
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

    async def _balance(self, process: JobProcess, target: str | None, order: Automatic) -> None:
        """The system's order, with the lock held: void if it is not as the system believes. A
        failure leaves everything as it was, also where the process goes back to."""
        if process.attributes.lock:
            raise CannotMoveError(f"process {process.pid} is locked", "mosrun -l unlocks it")
        if self._where(process) != order.source:
            raise RefusedError(f"process {process.pid} is not at {order.source} any more")
        ordered = process.ordered
        try:
            await self.send_to(process, target, order.why)
        except MosixError:
            if process.ordered == target:
                process.ordered = ordered
            raise

    async def send_to(self, process: JobProcess, target: str | None, why: str = "ordered") -> None:
        """With its lock held; remembered, so that it goes back there. None: home."""
        if process.place is Place.ENDED:
            raise NoSuchProcessError(f"process {process.pid} has ended")
        before, process.why = process.why, why
        try:
            await self._send_to(process, target)
        except MosixError:
            if process.why == why:
                process.why = before
            raise
        process.report()

    async def _send_to(self, process: JobProcess, target: str | None) -> None:
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
        """Its record, made when it is first needed out of that of its parent."""
        known = self._processes.get(pid)
        if known is not None and known.place in (Place.AWAY, Place.MOVING):
            return known
        parent, started = birth(pid)
        if known is not None and known.place is not Place.ENDED:
            if known.started == started or not started:
                return known
            known.end()  # somebody else has its number now
        attributes, nmigs = self.launch.attributes, 0
        if pid != self.launch.pid and parent in members(self.launch.cgroup):
            ancestor = self._process(parent)
            attributes, nmigs = ancestor.attributes, ancestor.nmigs
        process = JobProcess(self, pid, attributes, nmigs=nmigs, started=started)
        self._processes[pid] = process
        return process

    def settle(self) -> None:
        for pid in members(self.launch.cgroup):
            self._process(pid)

    # ---- nested mosrun ----

    async def _join(self, order: Join) -> None:
        joined = Joined(request=order.request)
        try:
            process = self._member(order.pid)
            self.settle()
            process.attributes = changed(process.attributes, order.changes)
            if order.node is not None and process.place is Place.HOME:
                await self._stop_at_exec(process, order.node, fallback=order.fallback)
            process.report()
        except MosixError as error:
            joined = Joined(
                request=order.request,
                error=error.message[:2000],
                code=error.code,
                hint=error.hint[:2000],
            )
        self._outbox.put_nowait(joined)

    # ---- what the programs say: /proc/self/{special} ----

    def _asked(self, asked: Asked) -> None:
        """From a process at home."""
        assert self.listener is not None
        pid = process_of(asked.tid)
        if pid in members(self.launch.cgroup):
            self._spawn(self._answer_at_home(self._process(pid), asked))
        else:  # a job of another user inside this one
            self.listener.let(asked)

    async def _answer_at_home(self, process: JobProcess, asked: Asked) -> None:
        assert self.listener is not None
        result = await self._value(process, asked.name, asked.flags, asked.value, again=True)
        if result is None:
            result = -errno.EAGAIN
        if self.listener.answer(asked, result):
            process.failed_migrate = 0

    async def answer(self, process: JobProcess, ask: Ask) -> None:
        link = process.link
        result = await self._value(process, ask.name, ask.flags, ask.value, again=ask.again)
        if link is not None and link is process.link and result is not None:
            link.post(Told(result=result))
        if self._outbox.qsize() > _MAX_UNSENT:
            await self._outbox.join()

    def complain(self, ip: str, what: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._complained.get(ip, -_COMPLAIN_EVERY_S) >= _COMPLAIN_EVERY_S:
            self._complained[ip] = now
            self._outbox.put_nowait(Unruly(ip=ip, what=what[:2000]))

    async def _value(
        self, process: JobProcess, name: str, flags: int, value: int, *, again: bool
    ) -> int | None:
        process.asks += 1
        if name == MIGRATE:
            return await migrate(self, process, flags, value, again=again)
        if name == LOCALTIME and flags != READ and process.place is not Place.HOME:
            return await go_home_for(self, process, value, again=again)
        return await value_of(self, process, name, flags, value)

    def ask_again(self, pid: int, stopping: bool) -> None:
        """While a stop of `pid` is waited for, what it asks waits until it has been stopped."""
        if self.listener is not None:
            self.listener.restart(pid if stopping else 0)

    async def node_of(self, name: str) -> tuple[str | None, int | None]:
        named = await self._ask_mosd(lambda number: Name(request=number, node=name))
        return named.ip, named.number

    async def consider(self, process: JobProcess) -> str | None:
        where, pid = self._where(process), process.pid
        named = await self._ask_mosd(lambda number: Consider(request=number, pid=pid, where=where))
        return named.ip

    async def _ask_mosd(self, question: Callable[[int], Name | Consider]) -> Named:
        """Nothing is named while it is gone."""
        number = next(self._name_numbers)
        if self._mosd_gone:
            return Named(request=number)
        self._names[number] = asyncio.get_running_loop().create_future()
        self._outbox.put_nowait(question(number))
        return await self._names[number]

    @staticmethod
    def _where(process: JobProcess) -> str:
        away = process.place is Place.AWAY and process.link is not None
        return process.link.ip if away and process.link else process.place.value

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

    def _before_exec(
        self, root: JobProcess, tracee: Tracee, stop: Stop, node: str, *, fallback: bool
    ) -> None:
        """Launch with -{node}: the program leaves at its first instruction."""
        if stop.ended:
            root.end()
            root.moves.release()
        elif stop.kind == "event" and stop.event == _PTRACE_EVENT_EXEC:
            self.watch.remove(tracee)
            self._spawn(self._leave_at_exec(root, tracee, node, fallback=fallback))
        elif stop.kind == "group":
            tracee.listen()
        else:
            tracee.cont(stop.signal if stop.kind == "signal" else 0)

    async def _leave_at_exec(
        self, root: JobProcess, tracee: Tracee, node: str, *, fallback: bool
    ) -> None:
        try:
            failpoints.hit("deputy.exec")
            root.why = "launched there"
            await moves.leave(root, node, seized=tracee)
        except (MosixError, OSError) as failure:
            error = failure if isinstance(failure, MosixError) else moves.ran_short(root, failure)
            with contextlib.suppress(MosixError):
                if fallback:
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
