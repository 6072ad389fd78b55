"""Jobs whose home is this node: launching them, their deputies, moving their processes.

`Launcher.launch` is mosrun's work, `DeputyLink` the conversation with one deputy. A failure or a
disappearing mosrun leaves nothing: no deputy, no cgroup, no entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mosix import failpoints
from mosix.errors import (
    KernelError,
    MosixError,
    MoveFailedError,
    NodeDownError,
    NoSuchProcessError,
    PermissionDeniedError,
    ProtocolError,
    RefusedError,
    from_code,
)
from mosix.kernel.device import ORPHAN_NATIVE
from mosix.kernel.policies import HOME, HOME_HOOKS
from mosix.native.listener import is_listener, new_memory
from mosix.node import records
from mosix.node.jobgroup import JobGroup, Membership
from mosix.node.listeners import Held
from mosix.node.listening import Complaints
from mosix.node.owner import Owner
from mosix.node.peers import Dialer
from mosix.node.privileges import Credentials, credentials_of
from mosix.node.records import Identity, JobRecord
from mosix.node.registry import Job, Registry
from mosix.node.rights import Caller
from mosix.node.settings import Settings
from mosix.node.spawning import SpawnerClient, Worker, is_dying, until_ended
from mosix.node.syslog import SystemLog
from mosix.node.tier import KernelTier
from mosix.node.worker import WorkerLink
from mosix.wire.attributes import Changes, JobAttributes, changed
from mosix.wire.messages import NodeFeatures, Token
from mosix.wire.mosd_messages import (
    Automatic,
    ComeHome,
    Consider,
    Dial,
    Forsaken,
    Join,
    Joined,
    Launch,
    Move,
    Moved,
    Name,
    Named,
    ProcessState,
    Started,
    Unruly,
    WorkerToNode,
)

_log = logging.getLogger("mosd.jobs")

#: From the fork of a deputy to its Started. One that dies is noticed at once; a machine that has
#: very much to do only needs time.
START_TIMEOUT_S = 60.0
#: From the order to a process to join its cgroup by itself until mosd does it.
_JOIN_TIMEOUT_S = 10.0
#: Each has a deputy; root has no limit.
MAX_JOBS_PER_USER = 4096
_SWEEP_PAUSE_S = 1.0
#: A guest of which nobody has heard ends so much later than home's grace (mosix.remote.main).
_LEASE_S = 10.0
_DROP_PAUSE_S = 1.0
#: Guests that one deputy may want ended at once; the lease ends the others.
_MAX_FORSAKEN = 4096
#: Where a process is that lives without its deputy (`mosix.node.registry.Process`).
_NOT_AWAY = ("home", "moving")
#: For a stderr that is full.
_TELL_S = 5


@dataclass(frozen=True)
class LaunchOptions:
    """What mosrun's options say. `node`: IP to start on; None: home."""

    node: str | None = None
    fallback: bool = False
    changes: Changes = field(default_factory=dict)
    interface: bool = True


class NodeNames(Protocol):
    """Which node a word of the user's means (`mosix.node.services.Names`)."""

    async def resolve(self, name: str) -> str: ...

    def number_of(self, ip: str) -> int | None: ...

    def knows(self, ip: str) -> bool: ...

    def outsider(self, ip: str) -> bool: ...


#: Job, PID and where it is ("home" or an IP) → IP where it had better be; None: there.
WhereTo = Callable[[str, int, str], Awaitable[str | None]]


class Client(Protocol):
    """The mosrun that waits for its launch (`mosix.node.control.Client`)."""

    #: -1: it has none
    stderr: int

    async def prepare(self, directory: int, *, interface: bool) -> int: ...


class LastWords:
    """What a job's user is told on its stderr when the deputy, who would, has died."""

    def __init__(self, stderr: int, who: Credentials) -> None:
        self._fd = os.dup(stderr)
        self._who = who

    async def say(self, line: str) -> None:
        """Written by a process of the user: the descriptor is his, and may be anything."""
        command = ("timeout", str(_TELL_S), "printf", "%s\\n", f"mosix: {line}")
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._fd,
                stderr=asyncio.subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # else a terminal might stop it
                user=self._who.uids[0],
                group=self._who.gids[0],
                extra_groups=self._who.groups,
            )
            await process.wait()
        except OSError as error:
            _log.warning("cannot tell uid %d: %s", self._who.uids[0], error)

    def close(self) -> None:
        os.close(self._fd)


class DeputyLink(WorkerLink):
    """A job's deputy."""

    name = "deputy"

    def __init__(
        self,
        worker: Worker,
        dialer: Dialer,
        features: NodeFeatures,
        *,
        job: Job,
        registry: Registry,
        names: NodeNames,
        last_words: LastWords,
        where_to: WhereTo,
        home: str,
        forsake: Callable[[DeputyLink, int, str, Token], None],
        system_log: SystemLog,
        complaints: Complaints,
        owner: Owner,
    ) -> None:
        super().__init__(worker, dialer, features)
        self._forsake = forsake
        self._system_log = system_log
        self._complaints = complaints
        self._owner = owner
        self._where_to = where_to
        #: how users are told where the deputy is
        self.place = f"at home, node {home},"
        self.job = job
        self.last_words = last_words
        self._names = names
        self._registry = registry
        self._requests = itertools.count(1)
        self._moves: dict[int, asyncio.Future[Moved]] = {}
        self._joins: dict[int, asyncio.Future[Joined]] = {}
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: guests that a node is being told of, that they are not wanted
        self.forsaking = 0
        #: by PID of those that have not ended: where their last two guests were made
        self._guests: dict[int, list[tuple[str, Token]]] = {}

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            lost = MoveFailedError(f"the job's deputy {self.place} ended", "see mosd's log")
            for future in self._moves.values():
                _lose(future, lost)
            for joining in self._joins.values():
                _lose(joining, lost)
            _lose(self.started, lost)

    async def handle(self, message: WorkerToNode) -> None:
        match message:
            case Started():
                if not self.started.done():
                    self.started.set_result(None)
            case Moved():
                future = self._moves.pop(message.request, None)
                if future is not None and not future.done():
                    future.set_result(message)
            case Forsaken():
                self._forsake(self, message.pid, message.ip, message.token)
            case Unruly():
                self._complaints.note("unruly remote", message.ip, message.what)
            case Joined():
                joining = self._joins.pop(message.request, None)
                if joining is not None and not joining.done():
                    joining.set_result(message)
            case Name() | Consider():
                self.later(self._tell(message))
            case ProcessState():
                self._state(message)
            case Dial():
                identity = {"uid": self.job.uid, "gid": self.job.gid, "job": self.job.id}
                self.later(self.dial(message, identity))
            case _:
                raise ProtocolError(f"a deputy sent {type(message).__name__}")

    def _state(self, state: ProcessState) -> None:
        known = self.job.processes.get(state.pid)
        self._registry.update(self.job, state)
        if state.ended:
            self._guests.pop(state.pid, None)
            return
        if state.token is not None:
            self.guest_made(state.pid, state.where, state.token)
        # Unknown is also one that was away when mosd was started again.
        moved = state.where not in _NOT_AWAY if known is None else state.nmigs > known.nmigs
        if moved and state.where != "moving":
            self._system_log.moved(self.job, state.pid, state.where)
        if self.is_misplaced(state.where, state.attributes):
            self.later(self._send_home(state.pid))

    def is_misplaced(self, where: str, attributes: JobAttributes) -> bool:
        """Whether a process may not be where it is: its class, or the map, has changed."""
        if where in _NOT_AWAY:
            return False
        outside = not attributes.job_class and self._names.outsider(where)
        return outside or not self._names.knows(where)

    async def _send_home(self, pid: int) -> None:
        try:
            check_moved(await (await self.move(pid, None)))
        except MosixError as error:
            _log.warning("process %d may not stay where it is, but: %s", pid, error.line())

    def check_dial(self, order: Dial) -> None:
        """RefusedError when the owner of this node wants its processes at home, and for a process
        of class 0 and an outsider."""
        if "guest" not in order.purposes:
            return
        if self._owner.said.keeps_own:
            raise RefusedError("this node is drained: its processes stay at home", "mosctl nodrain")
        if not order.job_class and self._names.outsider(order.ip):
            raise RefusedError(
                f"node {order.ip} is an outsider, and this process is of class 0",
                "mosrun -G1 lets a job go there",
            )

    def guest_made(self, pid: int, ip: str, token: Token) -> None:
        made = self._guests.setdefault(pid, [])
        if (ip, token) not in made:
            self._guests[pid] = [*made, (ip, token)][-2:]

    def forsake_guests(self) -> None:
        """The deputy died: its guests are told, which would wait for it for a while."""
        for pid, guests in self._guests.items():
            for ip, token in guests:
                self._forsake(self, pid, ip, token)

    async def join(self, pid: int, options: LaunchOptions) -> None:
        """A nested mosrun: process `pid` of the job goes on as `options` say. MosixError."""
        request = next(self._requests)
        future: asyncio.Future[Joined] = asyncio.get_running_loop().create_future()
        self._joins[request] = future
        order = Join(
            request=request,
            pid=pid,
            node=options.node,
            fallback=options.fallback,
            changes=options.changes,
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self.send(order)
                joined = await future
        except (TimeoutError, OSError) as error:
            raise KernelError("the job's deputy does not answer", "see mosd's log") from error
        finally:
            self._joins.pop(request, None)
        if joined.error:
            raise from_code(joined.code, joined.error, joined.hint)

    async def _tell(self, asked: Name | Consider) -> None:
        """Tells the deputy which node a number or an IP is, or which is best for a process."""
        named = Named(request=asked.request)
        if isinstance(asked, Consider):
            ip = await self._where_to(self.job.id, asked.pid, asked.where)
            named = Named(request=asked.request, ip=ip)
        else:
            with contextlib.suppress(MosixError):
                ip = await self._names.resolve(asked.node)
                number = self._names.number_of(ip)
                named = Named(request=asked.request, ip=ip, number=number)
        with contextlib.suppress(OSError):
            await self.send(named)

    async def move(
        self, pid: int, target: str | None, automatic: Automatic | None = None
    ) -> asyncio.Future[Moved]:
        """Orders a move; the future is its outcome (`check_moved`). NoSuchProcessError."""
        request = next(self._requests)
        order = Move(request=request, pid=pid, target=target, automatic=automatic)
        return await self._order(request, order)

    async def come_home(self) -> asyncio.Future[Moved]:
        """Orders all of the job's processes home."""
        request = next(self._requests)
        return await self._order(request, ComeHome(request=request))

    async def _order(self, request: int, order: Move | ComeHome) -> asyncio.Future[Moved]:
        future: asyncio.Future[Moved] = asyncio.get_running_loop().create_future()
        await asyncio.shield(self.started)
        if self.gone.is_set():
            raise NoSuchProcessError("the job has ended")
        self._moves[request] = future
        try:
            await self.send(order)
        except OSError as error:
            del self._moves[request]
            raise NoSuchProcessError("the job has ended") from error
        return future


def _lose(future: asyncio.Future[Any], lost: MosixError) -> None:
    if not future.done():
        future.set_exception(lost)
        future.exception()  # nobody may be waiting


def check_moved(moved: Moved) -> Moved:
    """Raises the error that the deputy reports, of its class."""
    if moved.error:
        raise from_code(moved.code, moved.error, moved.hint)
    return moved


async def _nowhere(job: str, pid: int, where: str) -> str | None:
    return None


class Launcher:
    """Makes jobs and keeps their deputies."""

    def __init__(
        self,
        spawner: SpawnerClient,
        dialer: Dialer,
        registry: Registry,
        features: NodeFeatures,
        *,
        own_ip: str,
        directory: Path,
        names: NodeNames,
        adoption: Path,
        settings: Settings,
        system_log: SystemLog,
        complaints: Complaints,
        owner: Owner,
        date_ahead_ns: int = 0,
        tier: KernelTier | None = None,
    ) -> None:
        self._tier = tier
        self._spawner = spawner
        self.system_log = system_log
        self._complaints = complaints
        self._owner = owner
        self._dialer = dialer
        self._registry = registry
        self._features = features
        self.membership = Membership.detect()
        self._own_ip = own_ip
        self._records = directory
        self._adoption = str(adoption)
        self._settings = settings
        #: of a mosd that died: jobs by their deputies, which have not come back yet
        self._expected: dict[Identity, JobRecord] = {}
        self._names = names
        self._date_ahead_ns = date_ahead_ns
        self.deputies: dict[str, DeputyLink] = {}
        #: answers a program that asks where it had better be (`mosix.node.decider`)
        self.where_to: WhereTo = _nowhere
        self._tasks: set[asyncio.Task[None]] = set()
        self._leftovers: dict[str, JobGroup] = {}
        self._sweeping: asyncio.Task[None] | None = None

    async def launch(self, caller: Caller, options: LaunchOptions, client: Client) -> DeputyLink:
        """A job whose first process is `caller`, ready for its exec; in a job of the same user
        the process stays a part of that. The caller must wait for the answer: that keeps its PID
        true."""
        around = self.deputy_of(caller.pid)
        if around is not None and around.job.uid == caller.uid:
            pidfd, _ = _identify(caller)
            os.close(pidfd)
            await around.join(caller.pid, options)
            return around
        mine = sum(job.uid == caller.uid for job in self._registry.jobs.values())
        if caller.uid and mine >= MAX_JOBS_PER_USER:
            raise RefusedError(f"uid {caller.uid} has {mine} jobs already", "wait for some to end")
        with contextlib.ExitStack() as descriptors:
            pidfd, who = _identify(caller)
            descriptors.callback(os.close, pidfd)
            if client.stderr < 0:
                stderr = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                descriptors.callback(os.close, stderr)
            else:
                stderr = client.stderr
            return await self._launch(caller, who, options, client, [pidfd, stderr])

    async def _launch(
        self,
        caller: Caller,
        who: Credentials,
        options: LaunchOptions,
        client: Client,
        descriptors: list[int],
    ) -> DeputyLink:
        job_id = secrets.token_hex(8)
        attributes = changed(JobAttributes(), options.changes)
        group = JobGroup.beside(self.membership, job_id, caller.pid)
        job = Job(job_id, caller.pid, caller.uid, who.gids[0], group, attributes)
        link: DeputyLink | None = None
        preparing: asyncio.Task[tuple[bool, int]] | None = None
        held: list[int] = []
        try:
            self._record(job)  # before: if we are killed now the next mosd knows of the cgroup
            group.make(caller.uid)
            held = await self._module_file(job, interface=options.interface)
            filtered = options.interface and not held
            preparing = asyncio.create_task(self._prepare(job, client, filtered=filtered))
            failpoints.hit("mosd.launch")
            worker = await self._spawner.spawn(
                "deputy", caller.uid, job.gid, who.groups, who.capabilities
            )
            link = self._adopt(worker, job, LastWords(descriptors[1], who))
            self._record(job, Identity.of(worker.pid))
            joined, listener = await preparing
            preparing = None
            held += await self._hold(job, worker, listener)
            if not joined:
                await asyncio.to_thread(group.add, caller.pid)
            message = Launch(
                job=job_id,
                pid=caller.pid,
                uid=caller.uid,
                gid=job.gid,
                node=options.node,
                interface=options.interface,
                fallback=options.fallback,
                attributes=attributes,
                date_ahead_ns=self._date_ahead_ns,
                cgroup=str(group.path),
                home=self._own_ip,
                features=self._features,
                grace_s=self._settings.config.grace_s,
                adoption=self._adoption,
            )
            async with asyncio.timeout(START_TIMEOUT_S):
                await link.send(message, [*descriptors, *held])
                await asyncio.shield(link.started)
                failpoints.hit("mosd.launched")
        except BaseException as error:
            if link is None:
                self._discard(job)
            else:
                link.worker.kill()
            if isinstance(error, TimeoutError | OSError | MoveFailedError):
                said = f"the job's deputy does not start on node {self._own_ip}"
                raise KernelError(said, "see mosd's log") from error
            raise
        finally:
            if preparing is not None:
                await _forget(preparing)
            for fd in held:
                os.close(fd)
        return link

    async def _module_file(self, job: Job, *, interface: bool) -> list[int]:
        """The file of the kernel module by which processes of the job are captured and, with the
        `interface`, what they say to mosix is handed over; empty: that needs a filter."""
        if self._tier is None:
            return []
        try:
            if not interface:
                return [self._tier.device().fd]
            owner = self._tier.owner(HOME_HOOKS)
            try:
                await self._tier.add(job.pid, HOME, owner.number, ORPHAN_NATIVE)
            except KernelError:
                owner.close()
                raise
        except KernelError as error:
            _log.error("job of process %d does without the module: %s", job.pid, error.line())
            return []
        return [owner.fd]

    async def _prepare(self, job: Job, client: Client, *, filtered: bool) -> tuple[bool, int]:
        """Whether the launching process has made itself a member, where it can, and the listener
        of its filter (-1: it has none)."""
        directory = -1
        if job.group.membership.own:
            directory = os.open(job.group.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        elif not filtered:
            return False, -1
        try:
            if filtered:  # it cannot begin without: if it is stopped we wait
                listener = await client.prepare(directory, interface=True)
            else:
                listener = -1
                with contextlib.suppress(TimeoutError):  # it is stopped, it may be: we do it
                    async with asyncio.timeout(_JOIN_TIMEOUT_S):
                        await client.prepare(directory, interface=False)
        finally:
            if directory >= 0:
                os.close(directory)
        if listener >= 0 and not is_listener(listener):
            os.close(listener)
            raise PermissionDeniedError("mosrun sent something else than a listener")
        return directory >= 0 and job.group.holds(job.pid), listener

    async def _hold(self, job: Job, worker: Worker, listener: int) -> list[int]:
        """The listener (< 0: there is none) is held for the case that the deputy dies; returns
        what the deputy gets, to be closed by the caller."""
        if listener < 0:
            return []
        held = Held(job.uid, job.gid, listener, new_memory(), os.dup(worker.pidfd))
        ours = [os.dup(held.listener), os.dup(held.memory)]
        await self._spawner.hold(held)
        return ours

    def deputy_of(self, pid: int) -> DeputyLink | None:
        """By cgroup, which only mosd writes; never by what a deputy says about a PID."""
        job = self.membership.job_of(pid)
        link = self.deputies.get(job) if job else None
        return link if link is not None and link.job.group.holds(pid) else None

    def _adopt(self, worker: Worker, job: Job, last_words: LastWords) -> DeputyLink:
        link = DeputyLink(
            worker,
            self._dialer,
            self._features,
            job=job,
            registry=self._registry,
            names=self._names,
            last_words=last_words,
            where_to=self.where_to,
            home=self._own_ip,
            forsake=self._forsake,
            system_log=self.system_log,
            complaints=self._complaints,
            owner=self._owner,
        )
        self._registry.jobs[job.id] = job
        self.deputies[job.id] = link
        self._later(self._live(link))
        return link

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, link: DeputyLink) -> None:
        pidfd = os.dup(link.worker.pidfd)
        try:
            await link.run()
            link.forsake_guests()
            # Only then its kernel has killed the ghosts.
            await until_ended(pidfd)
            left = [pid for pid in link.job.group.pids() if not is_dying(pid)]
            # A body may have come home that it had not told of.
            away = [p.pid for p in link.job.processes.values() if p.where not in _NOT_AWAY]
            lost = [pid for pid in away if pid not in left]
            if left or lost:
                _log.error(
                    "the deputy of job %s (process %d) died: %d processes at home go on, "
                    "what was away is lost",
                    link.job.id,
                    link.job.pid,
                    len(left),
                )
            if lost:
                whose = f"process {lost[0]}" if len(lost) == 1 else f"{len(lost)} processes"
                await link.last_words.say(f"{whose} ended: the job's deputy {link.place} died")
        finally:
            os.close(pidfd)
            link.last_words.close()
            self.deputies.pop(link.job.id, None)
            self._registry.jobs.pop(link.job.id, None)
            self._discard(link.job)

    def _forsake(self, link: DeputyLink, pid: int, ip: str, token: Token) -> None:
        if link.forsaking < _MAX_FORSAKEN:
            link.forsaking += 1
            self._later(self._drop(link, pid, ip, token))

    async def _drop(self, link: DeputyLink, pid: int, ip: str, token: Token) -> None:
        try:
            await self._tell_to_drop(link.job, pid, ip, token)
        finally:
            link.forsaking -= 1

    async def _tell_to_drop(self, job: Job, pid: int, ip: str, token: Token) -> None:
        """Tells node `ip` that a guest there is not wanted, as long as it may be there."""
        end = time.monotonic() + self._settings.config.grace_s + _LEASE_S
        while time.monotonic() < end:
            try:
                sock, _ = await self._dialer.dial(
                    ip, "drop", uid=job.uid, gid=job.gid, job=job.id, pid=pid, token=token
                )
                sock.close()
                return
            except NodeDownError:
                await asyncio.sleep(_DROP_PAUSE_S)
            except (MosixError, OSError):
                return  # it is not there

    # ---- cgroups that outlive their job's deputy, or mosd ----

    def _record(self, job: Job, deputy: Identity | None = None) -> None:
        record = JobRecord(
            id=job.id,
            pid=job.pid,
            uid=job.uid,
            gid=job.gid,
            group=str(job.group.path),
            attributes=job.attributes,
            started=job.started,
            deputy=deputy,
        )
        records.write(self._records, job.id, record)

    def expects(self, worker: Identity) -> bool:
        return worker in self._expected

    def take_back(self, worker: Worker, fds: list[int]) -> bool:
        """A deputy of a mosd that died has come back, if it is one. `fds` are those of `Returned`:
        the job's stderr, and what it is served by."""
        identity = Identity.of(worker.pid)
        record = self._expected.get(identity) if identity else None
        if record is None or identity is None or len(fds) not in (1, 3):
            return False
        if len(fds) == 3 and not is_listener(fds[1]):
            return False
        try:
            last_words = LastWords(fds[0], credentials_of(worker.pid))
        except OSError:
            return False
        os.close(fds[0])
        if len(fds) == 3:
            held = Held(record.uid, record.gid, fds[1], fds[2], os.dup(worker.pidfd))
            self._later(self._spawner.hold(held))
        del self._expected[identity]
        self._leftovers.pop(record.id, None)
        group = JobGroup(Path(record.group), self.membership)
        job = Job(record.id, record.pid, record.uid, record.gid, group, record.attributes)
        job.started = record.started
        self._adopt(worker, job, last_words).started.set_result(None)
        return True

    def _discard(self, job: Job) -> None:
        if job.group.remove():
            records.remove(self._records, job.id)
            return
        self._leftovers[job.id] = job.group
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        """A process that is being killed leaves its cgroup a moment later; one that goes on
        without its deputy, much later."""
        pause = 0.01
        while self._leftovers:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _SWEEP_PAUSE_S)
            self._remove_empty()

    def _remove_empty(self) -> None:
        for job_id, group in list(self._leftovers.items()):
            if group.remove():
                del self._leftovers[job_id]
                records.remove(self._records, job_id)

    def recover(self) -> None:
        """At start: what a former mosd left behind. Its deputies come back; a job without one is
        removed when it is empty."""
        for record in records.read_all(self._records, JobRecord):
            path = Path(record.group)
            if not path.name.startswith("mosix-job-") or not path.is_dir():
                records.remove(self._records, record.id)
                continue
            self._leftovers[record.id] = JobGroup(path, self.membership)
            if record.deputy is not None and record.deputy.alive():
                self._expected[record.deputy] = record
        if self._leftovers:
            self._sweeping = asyncio.create_task(self._sweep())

    def workers(self) -> list[int]:
        """PIDs of the deputies."""
        return [link.worker.pid for link in self.deputies.values()]

    async def all_home(self) -> None:
        """Orders every process home and waits until all are; errors are logged."""
        await asyncio.gather(*(self._bring_home(link) for link in list(self.deputies.values())))

    async def _bring_home(self, link: DeputyLink) -> None:
        try:
            check_moved(await (await link.come_home()))
        except MosixError as error:
            _log.error("job of process %d does not come home: %s", link.job.pid, error.line())

    async def close(self) -> None:
        """Lets go of all deputies; jobs at home go on. Their cgroups stay recorded for the
        next mosd."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        self._remove_empty()


async def _forget(preparing: asyncio.Task[tuple[bool, int]]) -> None:
    """After a failure: the listener of a process that will execute nothing."""
    preparing.cancel()
    (outcome,) = await asyncio.gather(preparing, return_exceptions=True)
    if not isinstance(outcome, BaseException) and outcome[1] >= 0:
        os.close(outcome[1])


def _identify(caller: Caller) -> tuple[int, Credentials]:
    """A pidfd of the calling process, and who it is. It waits for our answer, so it can only
    be another process if it was killed: then its identity does not matter any more, since the
    connection is closed and nothing is executed."""
    if caller.pid == 0:
        raise PermissionDeniedError(
            "mosrun runs in a PID namespace that mosd cannot see", "run mosd there"
        )
    try:
        pidfd = os.pidfd_open(caller.pid)
    except OSError as error:
        raise NoSuchProcessError("mosrun is gone") from error
    try:
        who = credentials_of(caller.pid)
        if set(who.uids) != {caller.uid}:
            raise PermissionDeniedError("mosrun must not be a set-user-ID program")
    except OSError as error:
        os.close(pidfd)
        raise NoSuchProcessError("mosrun is gone") from error
    except MosixError:
        os.close(pidfd)
        raise
    return pidfd, who
