"""Guests: processes of other nodes that run here, and their remotes.

`Host.accept` is asked when a proved peer wants to send one; reserved ids and a cgroup with limits
come first, then the remote is forked and gets the connection. The uid of the job is what the
peer's mosd proved, never what an image says. When the remote is gone everything of the guest is
killed, and only then are its ids given to somebody else.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import secrets
import socket
import time
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosix import failpoints
from mosix.balancer.eligibility import why_not
from mosix.errors import (
    KernelError,
    MosixError,
    NodeDownError,
    ProtocolError,
    RefusedError,
)
from mosix.kernel.device import ORPHAN_KILL
from mosix.kernel.policies import GUEST, GUEST_HOOKS, HOME_HOOKS
from mosix.node import records
from mosix.node.idmaps import IdPair, IdPool, write_id_maps
from mosix.node.lender import Loan, Shortage
from mosix.node.listening import Complaints
from mosix.node.owner import Owner
from mosix.node.peers import Dialer
from mosix.node.records import GuestRecord, Identity
from mosix.node.registry import Guest, Registry
from mosix.node.settings import Settings
from mosix.node.spawning import SpawnerClient, Worker, until_ended
from mosix.node.tier import KernelTier, TaskOwner
from mosix.node.worker import WorkerLink
from mosix.remote.cgroup import GUEST_CPU_WEIGHT, Cgroup, Cgroups
from mosix.wire.channel import Frames
from mosix.wire.messages import NodeFeatures
from mosix.wire.mosd_messages import (
    GUEST_GONE,
    Attach,
    Dial,
    GuestState,
    Halting,
    Intercept,
    Intercepted,
    Leave,
    MapIds,
    Mapped,
    PeerAccept,
    PeerAnswer,
    PeerHello,
    Welcome,
    WorkerToNode,
)

_log = logging.getLogger("mosd.guests")

#: Threads and helpers of one guest.
GUEST_PIDS = 512
#: A node with less than this to lend takes no guest, bytes.
MIN_MEMORY = 32 << 20
TOKEN_BYTES = 16
#: Guests of one home that it has not told to run: whoever takes the place of others uses it.
MAX_EMPTY = 64
#: A guest that grows on is asked so much later again, s.
_LEAVE_PAUSE_S = 5.0
#: How long remotes of a mosd that died are waited for, and between two looks, seconds.
RETURN_S = 5.0
_RETURN_PAUSE_S = 0.05
#: Followed by whose it is: mosds with other run directories may share our cgroup.
_GROUP_PREFIX = "guest-"


@dataclass(frozen=True)
class Module:
    """What a guest has at the kernel module: who serves it."""

    tier: KernelTier
    owner: int


@dataclass(frozen=True)
class Room:
    """What was reserved for one guest."""

    ids: IdPair
    group: Cgroup
    memory_limit: int


class RemoteLink(WorkerLink):
    """A guest's remote."""

    name = "remote"

    def __init__(
        self,
        worker: Worker,
        dialer: Dialer,
        features: NodeFeatures,
        guest: Guest,
        *,
        here: str,
        gid: int,
        room: Room,
        registry: Registry,
        mapped: bool,
        module: Module | None,
    ) -> None:
        super().__init__(worker, dialer, features)
        self._here = here
        self.guest = guest
        self._module = module
        self.room = room
        self._gid = gid
        self._registry = registry
        self._mapped = mapped
        self._ask_again = 0.0
        self._loan = Loan(room.group, room.memory_limit, self._outgrows)
        #: nothing is left of it here
        self.vacated = asyncio.Event()

    async def run(self) -> None:
        try:
            self._loan.watch()
        except (OSError, KernelError) as error:
            _log.error("guest %d is not watched for its memory: %s", self.guest.pid, error)
        try:
            await super().run()
        finally:
            self._loan.close()

    async def evict(self) -> None:
        """Asks home to take it away; it does not come back by itself."""
        with contextlib.suppress(OSError):  # it is going already
            await self.send(Leave(evicted=True))

    # ---- memory ----

    def memory_used(self) -> int:
        """Bytes."""
        return self._loan.used()

    def _outgrows(self) -> None:
        # Some kernels say so many times a second.
        now = asyncio.get_running_loop().time()
        if now < self._ask_again:
            return
        self._ask_again = now + _LEAVE_PAUSE_S
        self.send_home(
            f"node {self._here} has no more than {self.room.memory_limit >> 20} MiB for it"
        )

    def send_home(self, reason: str) -> None:
        """Asks for it; nothing is waited for."""
        _log.info("guest %d of %s goes home: %s", self.guest.pid, self.guest.home, reason)
        self.later(self._say_leave(reason))

    async def _say_leave(self, reason: str) -> None:
        with contextlib.suppress(OSError):  # it is going already
            await self.send(Leave(reason=reason))

    # ---- what the remote says ----

    async def handle(self, message: WorkerToNode) -> None:
        guest = self.guest
        match message:
            case MapIds():
                await self.send(Mapped(error=self._map(message.carrier)))
            case Intercept():
                self.later(self._intercept(message.pid))
            case GuestState():
                # The cgroup decides which processes are this guest's; one may be gone already.
                if message.outer_pid in self.room.group.processes():
                    self._registry.update_guest(guest, message)
            case Halting():
                self._loan.let_it_go()
            case Dial():
                # Only the image goes on from here; control and calls belong to home.
                if message.purposes != ("bulk",):
                    raise ProtocolError(f"a remote dials for {message.purposes}")
                self.later(
                    self.dial(message, {"uid": guest.uid, "gid": self._gid, "job": guest.job})
                )
            case _:
                raise ProtocolError(f"a remote sent {type(message).__name__}")

    async def _intercept(self, pid: int) -> None:
        error = ""
        try:
            if self._module is None:  # a mosd that has died made it
                raise KernelError("mosd there was started again meanwhile")
            if pid not in self.room.group.processes():
                raise ProtocolError(f"process {pid} is not of this guest")
            await self._module.tier.add(pid, GUEST, self._module.owner, ORPHAN_KILL)
        except MosixError as why:
            error = why.line()[:2000]
        with contextlib.suppress(OSError):  # the remote died meanwhile
            await self.send(Intercepted(error=error))

    def _map(self, carrier: int) -> str:
        """Root's share: two writes and the cgroup. Returns why not."""
        if self._mapped:
            return "the ids of this guest are mapped already"
        try:
            write_id_maps(
                carrier,
                inside_uid=self.guest.uid,
                inside_gid=self._gid,
                outer_id=self.room.ids.outer,
                owner_uid=self.room.ids.owner,
                remote_pid=self.worker.pid,
            )
            self.room.group.add(carrier)
        except MosixError as error:
            return error.line()[:2000]
        except OSError as error:
            return f"the id maps of {carrier} cannot be written: {error}"[:2000]
        self._mapped = True
        return ""


class Host:
    """Takes guests and lets them go."""

    def __init__(
        self,
        spawner: SpawnerClient,
        dialer: Dialer,
        registry: Registry,
        features: NodeFeatures,
        *,
        own_ip: str,
        directory: Path,
        adoption: Path,
        settings: Settings,
        complaints: Complaints,
        tier: KernelTier | None,
        owner: Owner,
    ) -> None:
        self._tier = tier
        self._spawner = spawner
        self._owner = owner
        self._dialer = dialer
        self._registry = registry
        self._features = features
        self._own_ip = own_ip
        self._records = directory
        self._group_prefix = group_prefix(directory)
        self._adoption = str(adoption)
        #: of a mosd that died: guests by their remotes, which have not come back yet
        self._expected: dict[Identity, GuestRecord] = {}
        self._settings = settings
        self._coming = 0
        self._coming_from: collections.Counter[str] = collections.Counter()
        self._complaints = complaints
        self._cgroups = Cgroups.detect()
        #: the cgroup that this node was given
        self.own_group = self._cgroups.own
        self.own_group.keep_files_open()
        self.shortage = Shortage(self.own_group, self._begun, own_ip, lambda: bool(self._remotes))
        self._ids = IdPool()
        self._remotes: dict[bytes, RemoteLink] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        #: told of each guest that is not here any more, whether its body ever came or not
        self.gone: Callable[[Guest], None] = lambda _: None

    def recover(self) -> None:
        """At start: guests of a mosd that died. Their remotes come back; what is left of others is
        removed. The cgroups of another mosd stay: it may only be making a guest in an empty one."""
        for record in records.read_all(self._records, GuestRecord):
            self._ids.adopt(IdPair(record.owner, record.outer))
            self._expected[record.remote] = record
            self._later(self._expect(record))
        for name in self._cgroups.existing():
            group = self._cgroups.open(name)
            if name.startswith(self._group_prefix) and not group.processes():
                self._later(group.remove())

    async def _expect(self, record: GuestRecord) -> None:
        """Removes what is left of a guest whose remote ends before it has come back."""
        await _ended(record.remote)
        if self._expected.pop(record.remote, None) is None:
            return
        records.remove(self._records, record.token.hex())
        with contextlib.suppress(RefusedError):  # its cgroup is gone
            group = self._cgroups.open(record.group)
            room = Room(IdPair(record.owner, record.outer), group, record.memory_limit)
            await self._vacate(room)

    def expects(self, worker: Identity) -> bool:
        return worker in self._expected

    def take_back(self, worker: Worker, fds: list[int]) -> bool:
        """A remote of a mosd that died has come back, if it is one."""
        identity = Identity.of(worker.pid)
        record = self._expected.get(identity) if identity else None
        if record is None or identity is None or fds:
            return False
        try:
            group = self._cgroups.open(record.group)
        except RefusedError:
            return False
        del self._expected[identity]
        room = Room(IdPair(record.owner, record.outer), group, record.memory_limit)
        guest = Guest(record.token, record.job, record.pid, record.uid, record.home, record.epoch)
        self._enter(worker, guest, record.gid, room, mapped=True)
        return True

    def _enter(
        self,
        worker: Worker,
        guest: Guest,
        gid: int,
        room: Room,
        *,
        mapped: bool,
        module: Module | None = None,
    ) -> RemoteLink:
        link = RemoteLink(
            worker,
            self._dialer,
            self._features,
            guest,
            here=self._own_ip,
            gid=gid,
            room=room,
            registry=self._registry,
            mapped=mapped,
            module=module,
        )
        self._registry.guests[guest.token] = guest
        self._remotes[guest.token] = link
        self.shortage.lent()
        self._later(self._live(link))
        return link

    def _record(self, guest: Guest, gid: int, room: Room, remote: Identity | None) -> None:
        if remote is None:
            return  # it has died already
        record = GuestRecord(
            token=guest.token,
            job=guest.job,
            pid=guest.pid,
            uid=guest.uid,
            gid=gid,
            home=guest.home,
            epoch=guest.epoch,
            group=room.group.name,
            owner=room.ids.owner,
            outer=room.ids.outer,
            memory_limit=room.memory_limit,
            remote=remote,
        )
        records.write(self._records, guest.token.hex(), record)

    def _begun(self) -> list[RemoteLink]:
        return [link for link in self._remotes.values() if link.guest.begun]

    def remotes(self) -> list[RemoteLink]:
        return list(self._remotes.values())

    async def all_remotes(self) -> list[RemoteLink]:
        """The same, when those of a mosd that died have come back, if they do so in time."""
        end = time.monotonic() + RETURN_S
        while self._expected and time.monotonic() < end:
            await asyncio.sleep(_RETURN_PAUSE_S)
        return self.remotes()

    def memory_free(self) -> int:
        """Bytes this node can lend."""
        return self._cgroups.own.available()

    async def accept(self, hello: PeerHello, sock: socket.socket) -> None:
        """A new guest. RefusedError, KernelError: nothing is left of it."""
        if self.closed:
            raise RefusedError("mosd is stopping there")
        if not self._settings.config.nodes.range_of(hello.sender):
            raise RefusedError(f"{hello.sender} is not in its mosix.map any more")
        if not self._owner.said.takes_guests:
            raise RefusedError("its owner takes no guests now", "choose another node")
        if hello.job is None or hello.pid is None or hello.features is None:
            raise ProtocolError("a guest without job, pid or features")
        reason = why_not(hello.features, self._features)
        if reason:
            raise RefusedError(reason, "choose another node")
        here = len(self._remotes) + self._coming
        if here >= self._settings.config.max_guests:
            raise RefusedError(
                f"it has {here} guests already and takes no more", "choose another node"
            )
        empty = sum(
            link.guest.home == hello.sender and not link.guest.begun
            for link in self._remotes.values()
        )
        if empty + self._coming_from[hello.sender] >= MAX_EMPTY:
            self._complaints.note("too many empty guests", hello.sender, f"{empty} at once")
            raise RefusedError(
                f"{empty} guests of {hello.sender} are there already that do not run yet",
                "try again later",
            )
        with contextlib.ExitStack() as stack:
            await self._make(hello, sock, stack)

    async def _make(
        self, hello: PeerHello, sock: socket.socket, stack: contextlib.ExitStack
    ) -> None:
        """`stack`: closes what is only ours until the remote has it."""
        assert hello.job is not None
        assert hello.pid is not None
        token = secrets.token_bytes(TOKEN_BYTES)
        room = self._reserve(token)
        self._coming += 1
        self._coming_from[hello.sender] += 1
        served: TaskOwner | None = None
        try:
            failpoints.hit("mosd.guest", sock)
            if self._tier is not None:
                served = self._tier.owner(HOME_HOOKS, GUEST_HOOKS)
                stack.callback(served.close)
            worker = await self._spawner.spawn("remote", room.ids.owner, room.ids.owner)
        except BaseException:
            self._later(self._vacate(room))
            raise
        finally:
            self._coming -= 1
            self._coming_from[hello.sender] -= 1
            if not self._coming_from[hello.sender]:
                del self._coming_from[hello.sender]
        guest = Guest(token, hello.job, hello.pid, hello.uid, hello.sender, hello.epoch)
        module = Module(self._tier, served.number) if self._tier and served else None
        link = self._enter(worker, guest, hello.gid, room, mapped=False, module=module)
        if not self._owner.said.takes_guests:  # said meanwhile
            link.worker.kill()
            raise RefusedError("its owner takes no guests now", "choose another node")
        try:
            self._record(guest, hello.gid, room, Identity.of(worker.pid))
            failpoints.hit("mosd.welcome", sock)
            await Frames[PeerAnswer](sock, PeerAnswer).send(
                PeerAccept(token=token, features=self._features)
            )
            fds = [sock.fileno(), *((served.fd,) if served else ())]
            await link.send(self._welcome(hello, room), fds)
        except BaseException:
            link.worker.kill()
            raise

    def _welcome(self, hello: PeerHello, room: Room) -> Welcome:
        assert hello.job is not None
        assert hello.pid is not None
        return Welcome(
            job=hello.job,
            uid=hello.uid,
            gid=hello.gid,
            pid=hello.pid,
            epoch=hello.epoch,
            home=hello.sender,
            here=self._own_ip,
            cgroup=str(room.group.memory_directory()[1]),
            outer_uid=room.ids.outer,
            features=self._features,
            memory_limit=room.memory_limit,
            adoption=self._adoption,
            unhooked=self._tier.unhooked if self._tier else None,
        )

    async def attach(self, hello: PeerHello, sock: socket.socket) -> None:
        """A further connection for a guest that is here, named by its token.

        A bulk connection may come from another node than home: the body moves on."""
        link = self._named(hello)
        failpoints.hit("mosd.attach", sock)
        await Frames[PeerAnswer](sock, PeerAnswer).send(PeerAccept())
        try:
            await link.send(Attach(purpose=hello.purpose), [sock.fileno()])
        except OSError as error:
            raise EOFError("the remote ended") from error

    def drop(self, hello: PeerHello) -> None:
        """Home says that its deputy is dead: nobody wants the guest any more."""
        self._named(hello).worker.kill()

    def _named(self, hello: PeerHello) -> RemoteLink:
        """The guest that a peer's token names. RefusedError."""
        link = self._remotes.get(hello.token or b"")
        if link is None or link.gone.is_set():
            if any(record.token == hello.token for record in self._expected.values()):
                raise NodeDownError("its remote has not come back to mosd there yet", "try again")
            raise RefusedError(GUEST_GONE)
        guest = link.guest
        if (hello.job, hello.uid, hello.pid) != (guest.job, guest.uid, guest.pid) or (
            hello.purpose != "bulk" and hello.sender != guest.home
        ):
            self._complaints.note("wrong token", hello.sender, f"for guest {guest.pid}")
            raise RefusedError(GUEST_GONE)
        return link

    def _reserve(self, token: bytes) -> Room:
        free = self.memory_free()
        limit = free - free // 10
        if limit < MIN_MEMORY:
            raise RefusedError(
                f"out of memory: {free / 1e6:.0f} MB are free there", "choose another node"
            )
        ids = self._ids.allocate()
        try:
            group = self._cgroups.create(
                f"{self._group_prefix}{token.hex()[:16]}",
                memory_bytes=limit & ~0xFFF,
                pids=GUEST_PIDS,
                cpu_weight=GUEST_CPU_WEIGHT,
            )
        except MosixError:
            self._ids.release(ids)
            raise
        return Room(ids, group, limit)

    async def _live(self, link: RemoteLink) -> None:
        try:
            await link.run()
        finally:
            self._registry.guests.pop(link.guest.token, None)
            self._remotes.pop(link.guest.token, None)
            self.gone(link.guest)
            records.remove(self._records, link.guest.token.hex())
            try:
                await self._vacate(link.room)
            finally:
                link.vacated.set()

    async def _vacate(self, room: Room) -> None:
        try:
            await room.group.remove(kill=True)
        except (RefusedError, KernelError) as error:
            # Its ids stay taken: whoever is left must not get a neighbour.
            _log.error("a guest's cgroup stays: %s", error.line())
            return
        self._ids.release(room.ids)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def workers(self) -> list[int]:
        """PIDs of the remotes."""
        return [link.worker.pid for link in self._remotes.values()]

    async def all_leave(self) -> None:
        """Asks every guest's home to take it, and waits until they are gone."""
        self.closed = True
        for link in list(self._remotes.values()):
            try:
                await link.send(Leave())
            except OSError:
                continue  # it is going already
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Whoever is still here is killed: nobody would serve its remote's requests."""
        self.closed = True
        for link in list(self._remotes.values()):
            link.worker.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def group_prefix(directory: Path) -> str:
    """What the names of the cgroups of a mosd's guests begin with, whose records are in
    `directory`: the same when it is started again, and another mosd's are not."""
    return f"{_GROUP_PREFIX}{zlib.crc32(os.fsencode(directory)):08x}-"


async def _ended(process: Identity) -> None:
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if process.alive():
            await until_ended(pidfd)
    finally:
        os.close(pidfd)
