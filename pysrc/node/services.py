"""What mosd does for a request: of a command on the control socket, of another mosd.

Rights are checked here, with the caller's identity as the kernel (commands) or a peer's proof
(other nodes) gives it. Called by `control.py` and `peers.py`; does no I/O on their sockets
except for the answer to a peer.
"""

from __future__ import annotations

import asyncio
import collections
import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Protocol

import msgspec
from mosix import failpoints
from mosix.config import NodeConfig
from mosix.errors import (
    KernelError,
    MosixError,
    NodeDownError,
    NoSuchProcessError,
    PermissionDeniedError,
    ProtocolError,
    RefusedError,
    UnknownNodeError,
    from_code,
)
from mosix.node import bargain, measuring
from mosix.node.accounting import Accounting
from mosix.node.administration import Administration
from mosix.node.census import Resident
from mosix.node.decider import Decider
from mosix.node.deputies import Client, DeputyLink, Launcher, LaunchOptions, check_moved
from mosix.node.gossip import GossipService
from mosix.node.groups import Groups
from mosix.node.guests import Host
from mosix.node.listening import Complaints
from mosix.node.meter import NodeMeter
from mosix.node.peers import PURPOSES, Dialer, refuse
from mosix.node.placing import Placer
from mosix.node.registry import Guest, Job, Process, Registry
from mosix.node.requests import (
    EXECUTE,
    EXECUTE_AS,
    TO_STDERR,
    TO_STDOUT,
    Answer,
    Armed,
    BestNode,
    Evacuate,
    Failpoints,
    Launch,
    LaunchAnswer,
    LinkMeasured,
    LocalStatus,
    Measure,
    Migrate,
    Migrated,
    MigrateJob,
    Moves,
    NodeDetails,
    NodeList,
    NodeName,
    Nodes,
    NodeStatus,
    Processes,
    ProcessList,
    ProcessRow,
    Request,
    Say,
    Setpe,
    Status,
    Whois,
)
from mosix.node.rights import Caller, check_owner
from mosix.node.settings import Settings
from mosix.node.tier import KernelTier
from mosix.wire.attributes import Changes
from mosix.wire.channel import Frames
from mosix.wire.messages import NodeFeatures, NodeLoad
from mosix.wire.mosd_messages import (
    Automatic,
    PeerAccept,
    PeerHello,
    PeerMove,
    PeerMoved,
    PeerStatus,
)

HOME = "home"
OUT = "out"
_MOVING = "moving"
_AWAY = "away"
_NAME_TIMEOUT_S = 5.0
_LOOKUPS = 4
_FORWARD_TIMEOUT_S = 600.0


class ParsedLaunch(Protocol):
    """What the parser of mosrun's options gives (`mosix.cli.mosrun.Parsed`)."""

    @property
    def text(self) -> str | None: ...
    @property
    def status(self) -> int: ...
    @property
    def program(self) -> int: ...
    @property
    def node(self) -> str | None: ...
    @property
    def best(self) -> bool: ...
    @property
    def fallback(self) -> bool: ...
    @property
    def changes(self) -> Changes: ...
    @property
    def interface(self) -> bool: ...
    @property
    def own_name(self) -> bool: ...


ParseLaunch = Callable[[Sequence[bytes], int], ParsedLaunch]


class Names:
    """Numbers, addresses and names of nodes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # A user may ask for names whose servers never answer: nothing else waits for those.
        self._lookups = ThreadPoolExecutor(_LOOKUPS, "names")

    @property
    def config(self) -> NodeConfig:
        return self._settings.config

    def outsider(self, ip: str) -> bool:
        """Whether processes of class 0 may not go to node `ip`."""
        return self.config.nodes.outsider(ip)

    @property
    def own(self) -> str:
        return self.config.ip

    def number_of(self, ip: str) -> int | None:
        return self.config.nodes.number_of(ip)

    async def resolve(self, text: str) -> str:
        """IP of what a user calls a node; never blocks mosd. UnknownNodeError."""
        ip = self.config.nodes.resolve_number_or_ip(text)
        if ip is not None:
            return ip
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_NAME_TIMEOUT_S):
                found = await loop.run_in_executor(
                    self._lookups,
                    socket.getaddrinfo,
                    text,
                    None,
                    socket.AF_INET,
                    socket.SOCK_STREAM,
                )
        except (OSError, UnicodeError, TimeoutError) as error:
            raise UnknownNodeError(
                f"node '{text}' is not known", "give a number, IP or host name of mosix.map"
            ) from error
        return self.config.nodes.check_member(str(found[0][4][0]), text)

    async def host_of(self, ip: str) -> str:
        """Host name, or "" when there is none."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_NAME_TIMEOUT_S):
                host, _ = await loop.run_in_executor(
                    self._lookups, socket.getnameinfo, (ip, 0), socket.NI_NAMEREQD
                )
        except (OSError, TimeoutError):
            return ""
        return host


class Services:
    """Everything that can be asked of a node."""

    def __init__(
        self,
        names: Names,
        launcher: Launcher,
        host: Host,
        registry: Registry,
        dialer: Dialer,
        *,
        features: NodeFeatures,
        complaints: Complaints,
        parse_launch: ParseLaunch,
        meter: NodeMeter,
        accounting: Accounting,
        gossip: GossipService,
        tier: KernelTier | None,
        administration: Administration,
        settings: Settings,
        decider: Decider,
        placer: Placer,
    ) -> None:
        self._administration = administration
        self._settings = settings
        self._groups = Groups(registry, host)
        self._gossip = gossip
        self._tier = tier
        self._decider = decider
        self._placer = placer
        self._names = names
        self._launcher = launcher
        self._host = host
        self._registry = registry
        self._dialer = dialer
        self._features = features
        self._complaints = complaints
        self._parse_launch = parse_launch
        self._meter = meter
        self._accounting = accounting
        self._since = time.time()
        self.stopping = False

    # ---- mosrun ----

    async def launch(self, caller: Caller, request: Launch, client: Client) -> LaunchAnswer:
        """Parses mosrun's options and makes the job."""
        parsed = self._parse_launch(request.argv, min(max(request.columns, 40), 200))
        if parsed.text is not None:
            where = TO_STDERR if parsed.status else TO_STDOUT
            return LaunchAnswer(where, parsed.status, 0, parsed.text)
        if self.stopping:
            raise RefusedError("mosd is stopping", "start it again: mosd")
        node = await self._start_node(caller, parsed)
        fallback = parsed.fallback or parsed.best
        options = LaunchOptions(node, fallback, parsed.changes, parsed.interface)
        link = await self._launcher.launch(caller, options, client)
        command = request.argv[parsed.program :]
        self._launcher.system_log.launched(link.job, caller.pid, command, node)
        what = EXECUTE_AS if parsed.own_name else EXECUTE
        return LaunchAnswer(what, parsed.program, link.worker.pid)

    async def _start_node(self, caller: Caller, parsed: ParsedLaunch) -> str | None:
        if parsed.best:
            need, job_class = (parsed.changes.get(name, 0) for name in ("needmem", "job_class"))
            best = await self._placer.place(need, caller.pid, job_class=job_class)
            return None if best == self._names.own else best
        if parsed.node is None:
            return None
        ip = await self._names.resolve(parsed.node)
        return None if ip == self._names.own else ip

    # ---- the other commands ----

    async def request(self, caller: Caller, request: Request) -> Answer:  # noqa: PLR0911
        match request:
            case Migrate():
                return await self._migrate(caller, request)
            case MigrateJob():
                return await self._groups.migrate(caller, request, self._migrate)
            case Say() | Evacuate() | Setpe():
                return await self._administration.request(caller, request)
            case Whois():
                return await self._whois(request)
            case Status():
                return await self._status(request)
            case Measure():
                return await self._measure(caller, request.node)
            case Processes():
                found = self._processes(request)
                return await self._explained(found) if request.why else found
            case BestNode():
                return await self._best_node(request)
            case Failpoints():
                return await self._arm(caller, request.spec)
            case LocalStatus():
                return await self._details()
            case Launch():
                raise ProtocolError("a launch is no ordinary request")
            case _:
                return self._known(request)

    def _known(self, request: Nodes | Moves) -> Answer:
        """What need not be asked or awaited."""
        match request:
            case Nodes():
                return NodeList(own=self._names.own, nodes=self._gossip.nodes())
            case Moves():
                return self._registry.history.since(request.since, request.began_ns)

    async def _arm(self, caller: Caller, spec: str) -> Armed:
        if caller.uid or not failpoints.allowed():
            raise PermissionDeniedError(
                "failpoints are for tests", f"start mosd with {failpoints.ENVIRONMENT}"
            )
        failpoints.arm(spec)
        links = [*self._launcher.deputies.values(), *self._host.remotes()]
        await asyncio.gather(*(link.arm(spec) for link in links))
        return Armed()

    async def _migrate(self, caller: Caller, request: Migrate) -> Migrated:
        if request.target == OUT:
            return await self._groups.out(caller, request)
        target = None if request.target == HOME else await self._names.resolve(request.target)
        link = self._launcher.deputy_of(request.pid)
        if link is not None:
            check_owner(caller.uid, link.job.uid, request.pid)
            return await self.move(link, request.pid, target, request.wait)
        guest = self._registry.guest_by_outer_pid(request.pid)
        if guest is not None:
            check_owner(caller.uid, guest.uid, request.pid)
            return await self._ask_home(caller, guest, target, request.wait)
        if _has_ended(request.pid):
            raise NoSuchProcessError(f"process {request.pid} has ended", "see mosps")
        if self._launcher.membership.job_of(request.pid):
            raise NoSuchProcessError(
                f"process {request.pid} belongs to a job that this mosd does not know",
                "mosd was started again since; the job goes on",
            )
        if request.pid > 0 and Path(f"/proc/{request.pid}").exists():
            raise NoSuchProcessError(
                f"process {request.pid} is not part of a job", "start programs with mosrun"
            )
        raise NoSuchProcessError(f"there is no process {request.pid}", "mosps lists those of jobs")

    def check_node(self, ip: str) -> None:
        """UnknownNodeError unless a peer's `ip` is in our map too."""
        self._names.config.nodes.check_member(ip, ip)

    async def move(
        self,
        link: DeputyLink,
        pid: int,
        target: str | None,
        wait: bool,
        automatic: Automatic | None = None,
    ) -> Migrated:
        """Orders the move; with `wait` its outcome."""
        if target == self._names.own:
            target = None
        if self.stopping and target is not None:
            raise RefusedError("mosd is stopping", "start it again: mosd")
        failpoints.hit("mosd.move")
        outcome = await link.move(pid, target, automatic)
        if not wait:
            return Migrated()
        moved = check_moved(await outcome)
        return Migrated(freeze_ns=moved.freeze_ns, page_bytes=moved.page_bytes)

    async def order(self, resident: Resident, target: str, automatic: Automatic) -> Migrated:
        """What the decider wants, waited for. MosixError."""
        if resident.guest is not None:
            who = Caller(0, resident.uid, 0)
            return await self._ask_home(who, resident.guest, target, True, automatic)
        link = self._launcher.deputies.get(resident.job)
        if link is None:
            raise NoSuchProcessError("the job has ended")
        return await self.move(link, resident.key[1], target, True, automatic)

    async def _ask_home(
        self,
        caller: Caller,
        guest: Guest,
        target: str | None,
        wait: bool,
        automatic: Automatic | None = None,
    ) -> Migrated:
        """`guest` runs here: its home decides."""
        sock, _ = await self._dialer.dial(
            guest.home, "move", uid=caller.uid, gid=caller.gid, job=guest.job, pid=guest.pid
        )
        with sock:
            try:
                order = PeerMove(target=target, wait=wait, automatic=automatic)
                await Frames[PeerMoved](sock, PeerMoved).send(order)
                async with asyncio.timeout(_FORWARD_TIMEOUT_S):
                    moved = await Frames[PeerMoved](sock, PeerMoved).receive()
            except (OSError, EOFError, TimeoutError) as error:
                raise NodeDownError(f"its home {guest.home} does not answer") from error
        check_moved_there(moved)
        return Migrated(freeze_ns=moved.freeze_ns, page_bytes=moved.page_bytes)

    async def _whois(self, request: Whois) -> NodeName:
        ip = await self._names.resolve(request.node) if request.node else self._names.own
        return await self._named(ip)

    async def _status(self, request: Status) -> NodeStatus:
        ip = await self._names.resolve(request.node) if request.node else self._names.own
        if ip == self._names.own:
            return await self._own_status()
        return self._shown(ip, await self._dialer.status(ip, patient=request.wait))

    async def _measure(self, caller: Caller, node: str) -> LinkMeasured:
        if caller.uid:
            raise PermissionDeniedError("only root may load the link", "sudo tune")
        sock, _ = await self._dialer.dial(await self._names.resolve(node), "measure")
        with sock:
            turn_ns, mb_s = await measuring.measure(sock)
        return LinkMeasured(turn_ns=turn_ns, mb_s=mb_s)

    async def _details(self) -> NodeDetails:
        config = self._names.config
        where = collections.Counter(
            process.where if process.where in (HOME, _MOVING) else _AWAY
            for job in self._registry.jobs.values()
            for process in self._registry.processes_of(job)
        )
        return NodeDetails(
            status=await self._own_status(),
            mosd_pid=os.getpid(),
            since=self._since,
            stopping=self.stopping,
            config_dir=str(config.paths.config_dir),
            port=config.peer_port,
            nodes=len(config.nodes),
            numbered=config.nodes.numbered(),
            cpu_features=len(self._features.cpu_features),
            xsave_size=self._features.xsave_size,
            page_size=self._features.page_size,
            processes={place: where[place] for place in (HOME, _AWAY, _MOVING)},
            guests=dict(collections.Counter(g.home for g in self._registry.guests.values())),
        )

    async def _own_status(self) -> NodeStatus:
        counters = dict(self._complaints.counters) | self._gossip.refused()
        status = self._shown(self._names.own, self.peer_status())
        return msgspec.structs.replace(
            status,
            counters=counters,
            decided=await self._decided(),
            known=self._gossip.known(),
            problem=self._settings.problem,
        )

    async def _decided(self) -> dict[str, int]:
        """What the eBPF program has decided and the module done, in the kernel tier."""
        if self._tier is None:
            return {}
        try:
            return await self._tier.counts()
        except KernelError:
            return {}  # its keeper is gone: jobs and guests that come now say so

    def _shown(self, ip: str, status: PeerStatus) -> NodeStatus:
        return NodeStatus(
            ip=ip,
            number=self._names.number_of(ip),
            version=status.version,
            kernel=status.features.kernel,
            tier=status.features.tier,
            cpus=status.features.cpus,
            memory_free=status.memory_free,
            jobs=status.jobs,
            guests=status.guests,
            date_bound_ns=status.date_bound_ns,
            load=status.load,
            owner=list(status.owner),
            topology=list(status.topology),
        )

    def peer_status(self) -> PeerStatus:
        return PeerStatus(
            features=self._features,
            guests=len(self._registry.guests),
            jobs=len(self._registry.jobs),
            memory_free=self._host.memory_free(),
            version=metadata.version("mosix"),
            date_bound_ns=self._registry.date_bound_ns(),
            load=self._load(),
            owner=tuple(self._administration.words()),
            topology=self._settings.config.features,
        )

    def _load(self) -> NodeLoad | None:
        load = self._meter.load
        return load and msgspec.structs.replace(load, accounting=self._accounting.how[:2000])

    def _processes(self, request: Processes) -> ProcessList:
        rows = [
            self._process_row(job, process)
            for job in self._registry.jobs.values()
            for process in self._registry.processes_of(job)
            if request.pid in (0, process.pid)
        ]
        rows += [
            self._guest_row(guest)
            for guest in self._registry.guests.values()
            if guest.outer_pid and request.pid in (0, guest.outer_pid)
        ]
        if request.pid and not rows:
            raise NoSuchProcessError(
                f"process {request.pid} is not part of a job", "without a PID all are listed"
            )
        return ProcessList(rows=sorted(rows, key=lambda row: row.pid))

    async def _explained(self, found: ProcessList) -> ProcessList:
        """With what the balancer says of each process."""

        async def why(row: ProcessRow) -> str:
            if row.where == _MOVING:
                return ""
            if row.origin_pid:
                key = (row.home, row.origin_pid)
                return self._decider.verdict(self._decider.census.residents.get(key))
            return await self._decider.why(row.job, row.pid, row.where)

        texts = await asyncio.gather(*map(why, found.rows))
        return ProcessList(
            rows=[
                msgspec.structs.replace(row, balance=text)
                for row, text in zip(found.rows, texts, strict=True)
            ]
        )

    async def _best_node(self, request: BestNode) -> NodeName:
        ip = await self._placer.place(request.need_mb)
        if ip is None:
            raise RefusedError(
                f"no node that can be used has {request.need_mb} MB free",
                "bestnode -w waits for one",
            )
        return await self._named(ip)

    async def _named(self, ip: str) -> NodeName:
        return NodeName(ip=ip, number=self._names.number_of(ip), host=await self._names.host_of(ip))

    def _process_row(self, job: Job, process: Process) -> ProcessRow:
        away = process.where not in (HOME, _MOVING)
        why = process.why
        if away and (down := self._gossip.down(process.where)):
            why = f"mosd there does not answer: {down}" + (f" ({why})" if why else "")
        return ProcessRow(
            pid=process.pid,
            uid=job.uid,
            where=process.where,
            where_number=self._names.number_of(process.where) if away else None,
            home=self._names.own,
            home_number=self._names.number_of(self._names.own),
            nmigs=process.nmigs,
            why=why,
            job=job.id,
            job_class=process.attributes.job_class,
            command=_command(process.pid),
            stats={**process.stats, **self._use(process.pid)},
        )

    def _use(self, pid: int) -> dict[str, int]:
        """What a process at home does, per second."""
        use = self._accounting.uses.get(pid)
        if use is None:
            return {}
        return {
            "cpu_ms_per_s": round(1000 * use.cpu),
            "calls_per_s": round(use.calls),
            "read_per_s": round(use.read_bytes),
            "written_per_s": round(use.written_bytes),
        }

    def _guest_row(self, guest: Guest) -> ProcessRow:
        why = "guest, frozen" if guest.frozen else "guest"
        if down := self._gossip.down(guest.home):
            why += f"; mosd of its home does not answer: {down}"
        return ProcessRow(
            pid=guest.outer_pid,
            uid=guest.uid,
            where="here",
            home=guest.home,
            home_number=self._names.number_of(guest.home),
            nmigs=guest.epoch,
            why=why,
            job=guest.job,
            origin_pid=guest.pid,
            command=_command(guest.outer_pid),
        )


class PeerService:
    """What a proved peer may ask."""

    def __init__(
        self,
        services: Services,
        launcher: Launcher,
        host: Host,
        decider: Decider,
        administration: Administration,
    ) -> None:
        self._administration = administration
        self._services = services
        self._decider = decider
        self._launcher = launcher
        self._host = host

    async def handle(self, hello: PeerHello, sock: socket.socket) -> None:
        """The socket is closed by the caller; a worker that got it has its own descriptor."""
        frames: Frames[PeerMove] = Frames(sock, PeerMove)
        try:
            match hello.purpose:
                case "guest":
                    await self._host.accept(hello, sock)
                case "call" | "bulk" | "home" | "control":
                    await self._host.attach(hello, sock)
                case "drop":
                    self._host.drop(hello)
                    await frames.send(PeerAccept())
                case "status":
                    await frames.send(self._services.peer_status())
                case "measure":
                    await frames.send(PeerAccept())
                    await measuring.serve(sock)
                case "move":
                    await self._move(hello, frames)
                case "evacuate":
                    await self._administration.serve(hello, sock)
                case "balance":
                    await bargain.serve(self._decider, hello, sock)
                case _:
                    raise RefusedError(
                        f"purpose '{hello.purpose}' is not one of {', '.join(sorted(PURPOSES))}"
                    )
        except ProtocolError:
            raise
        except OSError as error:
            await refuse(frames, KernelError(os.strerror(error.errno or 0).lower()))
        except MosixError as error:
            await refuse(frames, error)

    async def _move(self, hello: PeerHello, frames: Frames[PeerMove]) -> None:
        if hello.pid is None:
            raise ProtocolError("a move without a process")
        link = self._launcher.deputy_of(hello.pid)
        if link is None or link.job.id != hello.job:
            raise NoSuchProcessError(f"process {hello.pid} is not part of that job any more")
        check_owner(hello.uid, link.job.uid, hello.pid)
        await frames.send(PeerAccept())
        async with asyncio.timeout(_NAME_TIMEOUT_S):
            order = await frames.receive()
        try:
            if order.target is not None:
                self._services.check_node(order.target)
            if order.automatic is not None and order.automatic.source != hello.sender:
                raise RefusedError("a node decides only for what runs there")
            moved = await self._services.move(
                link, hello.pid, order.target, order.wait, order.automatic
            )
        except MosixError as error:
            await frames.send(
                PeerMoved(error=error.message[:2000], code=error.code, hint=error.hint[:2000])
            )
            return
        await frames.send(PeerMoved(freeze_ns=moved.freeze_ns, page_bytes=moved.page_bytes))


def check_moved_there(moved: PeerMoved) -> None:
    """Raises the error that home reports."""
    if moved.error:
        raise from_code(moved.code, moved.error, moved.hint)


def _has_ended(pid: int) -> bool:
    """Its parent has not taken note of it yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])


def _command(pid: int) -> str:
    """Arguments of a process, or its name, or "" when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read(4096)
        if data:
            return (
                os.fsdecode(data.rstrip(b"\0").replace(b"\0", b" "))
                .encode("utf-8", "replace")
                .decode()
            )
        with open(f"/proc/{pid}/comm", "rb") as file:
            return "[" + file.read(64).decode("utf-8", "replace").strip() + "]"
    except OSError:
        return ""
