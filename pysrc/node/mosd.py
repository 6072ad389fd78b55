"""mosd, the daemon of a node: puts its parts together, starts and stops them in the right order.

Start: configuration · spawner · secret · run directory · control socket · peer port · ready.
Stop (SIGTERM, SIGINT): own jobs come home, guests are sent to theirs, at most `stop_s` seconds;
jobs at home go on. Called by `mosix.cli.mosd`; must run as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from mosix.config import NodeConfig, load_secret
from mosix.errors import ConfigError, KernelError, MosixError
from mosix.node.accounting import Accounting, Choice
from mosix.node.administration import Administration
from mosix.node.adoption import Adoption
from mosix.node.census import Census
from mosix.node.compatible import Book, digest_of
from mosix.node.control import ControlServer, Handlers
from mosix.node.decider import Decider
from mosix.node.deputies import Launcher
from mosix.node.evacuation import Evacuation
from mosix.node.features import probe
from mosix.node.gossip import GossipService, own_row
from mosix.node.guests import Host
from mosix.node.jobgroup import Members, mount_own
from mosix.node.listening import Complaints
from mosix.node.meter import NodeMeter
from mosix.node.outlook import Outlook
from mosix.node.owner import Owner
from mosix.node.peers import Dialer, PeerServer
from mosix.node.placing import Placer
from mosix.node.privileges import forbid_dumps
from mosix.node.registry import Registry
from mosix.node.services import Names, PeerService, Services
from mosix.node.settings import Settings
from mosix.node.shown import Shown
from mosix.node.spawning import Programs, SpawnerClient
from mosix.node.syslog import DEVICE, SystemLog
from mosix.node.tier import Choice as TierChoice
from mosix.node.tier import chosen as chosen_tier
from mosix.node.tuned import Tuned
from mosix.remote.confine import HELPER

_log = logging.getLogger("mosd")

#: How long a stop may take, seconds, unless `mosd --stop-timeout` says otherwise.
STOP_S = 30.0


class Mosd:
    """One node. `run` is its whole life."""

    def __init__(
        self,
        config: NodeConfig,
        programs: Programs,
        parse_launch: Callable[[Sequence[bytes], int], Any],
        ready: Callable[[], None] = lambda: None,
        *,
        stop_s: float = STOP_S,
        foreign_vdso: bool = False,
        date_ahead_ns: int = 0,
        accounting: Choice = "auto",
        tier: TierChoice = "auto",
        syslog: str = DEVICE,
        balance: bool = True,
    ) -> None:
        self._config = config
        self._programs = programs
        self._parse_launch = parse_launch
        self._ready = ready
        self._foreign_vdso = foreign_vdso
        self._date_ahead_ns = date_ahead_ns
        self._stop_s = stop_s
        self._accounting = accounting
        self._tier = tier
        self._syslog = syslog
        self._balance = balance
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:  # noqa: PLR0915 - the list of mosd's parts
        """Until SIGTERM or SIGINT. ConfigError, KernelError, MosixError (another one runs
        here): before anything was started for good."""
        paths = self._config.paths
        stop = _event_of(signal.SIGTERM, signal.SIGINT)
        again = _event_of(signal.SIGHUP)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(_locked_run_dir(self._config))
            _check_helper()
            spawner = SpawnerClient(self._programs, _worker_died, self._config)
            spawner.start()
            stack.callback(spawner.stop)
            forbid_dumps()
            secret = load_secret(paths)
            module = await stack.enter_async_context(chosen_tier(self._tier, paths.keeper))
            tier = "kernel" if module else "portable"
            features = probe(tier=tier, foreign_vdso=self._foreign_vdso)
            _mount_own()
            registry = Registry()
            owner = Owner(paths.owner)
            complaints = Complaints()
            settings = Settings(self._config, secret, off=owner.said.off)
            dialer = Dialer(settings)
            names = Names(settings)
            launcher = Launcher(
                spawner,
                dialer,
                registry,
                features,
                own_ip=self._config.ip,
                directory=paths.jobs,
                adoption=paths.workers,
                settings=settings,
                names=names,
                system_log=SystemLog(paths.log_mosrun, self._syslog),
                complaints=complaints,
                owner=owner,
                date_ahead_ns=self._date_ahead_ns,
                tier=module,
            )
            host = Host(
                spawner,
                dialer,
                registry,
                features,
                own_ip=self._config.ip,
                directory=paths.guests,
                adoption=paths.workers,
                settings=settings,
                complaints=complaints,
                tier=module,
                owner=owner,
            )
            meter = NodeMeter(
                settings,
                host.own_group,
                lambda: (os.getpid(), spawner.pid or 0, *launcher.workers(), *host.workers()),
            )
            census = Census(registry, Members(launcher.membership), self._config.ip)
            accounting = Accounting(census.at_home, census.busy_at_home, self._accounting)
            gossip = GossipService(
                settings.config,
                secret,
                lambda: own_row(
                    settings.config,
                    meter.load,
                    registry,
                    outlook.promises.standing(time.monotonic()),
                ),
                lambda: owner.said.flags,
                complaints,
                features=digest_of(features),
                logs=lambda: owner.said.logmap,
            )
            stack.callback(gossip.close)
            dialer.down = gossip.down
            administration = Administration(
                settings,
                owner,
                Evacuation(launcher, host, registry),
                gossip=gossip,
                dialer=dialer,
                names=names,
                end=stop.set,
            )
            outlook = Outlook(
                gossip,
                registry,
                owner,
                Book(features, dialer),
                Tuned(paths, lambda: settings.config.nodes),
                settings=settings,
            )
            decider = Decider(
                self._config.ip,
                dialer=dialer,
                meter=meter,
                accounting=accounting,
                outlook=outlook,
                census=census,
                owner=owner,
                active=self._balance,
            )
            launcher.where_to = decider.where_to
            host.gone = decider.gone
            services = Services(
                names,
                launcher,
                host,
                registry,
                dialer,
                features=features,
                complaints=complaints,
                parse_launch=self._parse_launch,
                meter=meter,
                accounting=accounting,
                gossip=gossip,
                administration=administration,
                settings=settings,
                decider=decider,
                tier=module,
                placer=Placer(self._config.ip, dialer, outlook),
            )
            control = ControlServer(
                paths.control,
                Handlers(services.launch, services.request),
                complaints,
                f"node {self._config.ip}",
            )
            peers = PeerServer(
                settings,
                PeerService(services, launcher, host, decider, administration).handle,
                complaints,
            )
            try:
                peers.listen()
                gossip.open()
            except OSError as error:
                raise ConfigError(
                    f"cannot listen on {self._config.ip}, port {self._config.peer_port}: "
                    f"{error.strerror}",
                    "mosip must be an address of this machine; is another mosd running?",
                ) from error
            launcher.recover()
            host.recover()
            adoption = Adoption(paths.workers, (launcher, host, spawner), complaints)
            adoption.listen()
            control.listen()
            self._start(
                spawner.keep_running(),
                adoption.serve(),
                control.serve(),
                peers.serve(),
                meter.run(),
                accounting.run(meter.reading),
                gossip.run(),
                administration.run(),
                _reread_when(again, administration),
                decider.run(services),
                host.shortage.run(),
                *([Shown(registry, module.device()).run()] if module else ()),
                *watchdog(),
            )
            _say_hello(settings.config)
            notify("READY=1")
            self._ready()
            await self._until(stop)
            notify("STOPPING=1")
            decider.active = False
            await self._stop(services, launcher, host)
            gossip.leave()
            for part in (control, adoption, peers, host, launcher):
                await part.close()
            await self._end_tasks()

    def _start(self, *parts: Coroutine[Any, Any, None]) -> None:
        self._tasks += [asyncio.create_task(part) for part in parts]

    async def _until(self, stop: asyncio.Event) -> None:
        """Until a stop is asked for; a part that ends by itself is a bug and is raised."""
        waiting = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait(
                {waiting, *self._tasks}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
        finally:
            waiting.cancel()

    async def _stop(self, services: Services, launcher: Launcher, host: Host) -> None:
        services.stopping = True
        _log.info("stopping: own jobs come home, guests go to theirs")
        try:
            async with asyncio.timeout(self._stop_s):
                await asyncio.gather(launcher.all_home(), host.all_leave())
        except TimeoutError:
            _log.error("not everybody was home after %.0f s", self._stop_s)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _say_hello(config: NodeConfig) -> None:
    nodes = len(config.nodes)
    _log.info("node %s, port %d, %d nodes in the map", config.ip, config.peer_port, nodes)
    for number, ip, line in config.nodes.nowhere():
        why = f"{ip} is not in mosix.map: number {number} is no node"
        _log.warning("%s", line.error(why).line())


def _event_of(*numbers: signal.Signals) -> asyncio.Event:
    event = asyncio.Event()
    for number in numbers:
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


async def _reread_when(again: asyncio.Event, administration: Administration) -> None:
    """What setpe does, for SIGHUP. A wrong file is logged by who reads it."""
    while True:
        await again.wait()
        again.clear()
        with contextlib.suppress(ConfigError):
            moved = (await administration.reread(off=False)).moved
            if moved.left:
                _log.error("could not go home yet: %s", "; ".join(moved.left))


def _worker_died(pid: int, status: int) -> None:
    if status:
        code = os.waitstatus_to_exitcode(status)
        what = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        _log.warning("worker %d %s", pid, what)


def _mount_own() -> None:
    why_not = mount_own()
    if why_not:
        _log.warning("jobs begin slower, in a cgroup of another hierarchy: %s", why_not)


def _check_helper() -> None:
    """Guests' reserved ids execute the helper: ConfigError when they may not get at it."""
    for part in (HELPER, *HELPER.parents):
        try:
            reachable = part.stat().st_mode & stat.S_IXOTH
        except OSError as error:
            raise KernelError(f"{part}: {error.strerror}", "install mosix again") from error
        if not reachable:
            raise ConfigError(
                f"{HELPER} cannot be executed by guests: {part} is closed to other users",
                "install mosix where everybody can read it",
            )


@contextlib.contextmanager
def _locked_run_dir(config: NodeConfig) -> Iterator[None]:
    """Makes the run directory and holds its lock. ConfigError; MosixError: another has it."""
    paths = config.paths
    try:
        paths.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        for directory in (paths.jobs, paths.guests):
            directory.mkdir(mode=0o700, exist_ok=True)
        status = paths.run_dir.stat()
        if status.st_uid != 0 or status.st_mode & 0o022:
            raise ConfigError(
                f"{paths.run_dir}: must belong to root and be writable by nobody else",
                f"chown root {paths.run_dir}; chmod 755 {paths.run_dir}",
            )
        fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise ConfigError(f"{paths.run_dir}: {error.strerror}", "mosd runs as root") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(fd, 32).decode("ascii", "replace").strip()
            raise MosixError(
                f"another mosd runs here already: process {pid or '?'}", "stop it first"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def watchdog() -> list[Coroutine[Any, Any, None]]:
    """What tells a service manager that wants to be told so (sd_watchdog_enabled(3)) that mosd is
    well: its loop goes round, and no part of it has ended (that would end mosd)."""
    said = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return []
    return [_ping(int(said) / 2e6)] if said.isdecimal() and int(said) else []


async def _ping(pause_s: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(pause_s)


def notify(state: str) -> None:
    """sd_notify(3), when a service manager asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError as error:
            _log.debug("the service manager does not listen: %s", error)
