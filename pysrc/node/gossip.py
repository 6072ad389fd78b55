"""The UDP side of gossip: this node's load goes out each second, the others' comes in.

`Mosd` starts and ends it; `mosctl status` shows what it knows. What is said to whom is decided in
`mosix.balancer.gossip`. Must never wait for another node: a datagram that cannot be sent is lost.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Callable, Iterable

import numpy as np
from mosix.balancer.gossip import Datagram, Gossip, rules_for
from mosix.balancer.gossip_wire import MAX_DATAGRAM
from mosix.balancer.vectors import Flags, Floats, Status, VectorTable, pack_loads
from mosix.config import NodeConfig
from mosix.node.listening import Complaints
from mosix.node.registry import Registry
from mosix.node.requests import KnownNode
from mosix.wire.messages import NodeLoad

_log = logging.getLogger("mosd.gossip")

PERIOD_S = 1.0
#: Vectors of more nodes would be too old: a larger map gossips in groups of neighbours.
GROUP = 1024
_AT_ONCE = 64
#: Of a node in the map that has said nothing yet.
UNHEARD = "unheard"
#: What an owner has said, in the words of mosctl.
_OWNERS = {
    Flags.BLOCK: "block",
    Flags.STAY: "stay",
    Flags.LOCAL_STAY: "lstay",
    Flags.NO_BRING: "nobring",
    Flags.DRAIN: "drain",
}
_SHOWN = (
    "running",
    "cores",
    "speed",
    "memory_mb",
    "free_mb",
    "guests",
    "frozen",
    "dilation",
    "psi_memory",
    "psi_io",
)
_UNPROVED = "unproved"  # what first contacts are; says nothing


def group_of(ips: Iterable[str], own: str) -> list[int]:
    """Addresses of the nodes that `own` gossips with, itself included."""
    addresses = sorted({_number(ip) for ip in ips} | {_number(own)})
    start = addresses.index(_number(own)) // GROUP * GROUP
    return addresses[start : start + GROUP]


def _number(ip: str) -> int:
    return int(ipaddress.IPv4Address(ip))


def _said(table: VectorTable) -> dict[int, int]:
    """Which state each node is in, of which anything was heard."""
    heard = np.flatnonzero(table.version)
    return dict(zip(table.nodes[heard].tolist(), table.status[heard].tolist(), strict=True))


def own_row(
    config: NodeConfig,
    load: NodeLoad | None,
    registry: Registry,
    promised: tuple[int, float] = (0, 0.0),
) -> Floats | None:
    """What this node says of itself; None as long as nothing is measured. `promised`: places, and
    their MB."""
    if load is None:
        return None
    return pack_loads(
        running=load.exported,
        guests=len(registry.guests),
        cores=load.cores,
        speed=load.speed,
        memory_mb=load.memory / 1e6,
        free_mb=load.free / 1e6 - promised[1],
        inbound=promised[0],
        psi_memory=load.psi_memory,
        psi_io=load.psi_io,
        dilation=load.dilation,
        guest_limit=config.max_guests,
        priority=0,
        frozen=sum(guest.frozen for guest in registry.guests.values()),
    )


class GossipService:
    """`open`, `run` until cancelled, `leave`, `close`."""

    def __init__(
        self,
        config: NodeConfig,
        secret: bytes,
        own: Callable[[], Floats | None],
        flags: Callable[[], Flags],
        complaints: Complaints,
        *,
        features: int,
        logs: Callable[[], bool] = lambda: True,
    ) -> None:
        """`own`: what this node says of itself; `features`: digest of this node's
        (`mosix.node.compatible.digest_of`); `logs`: whether changes of the map are logged."""
        self._complaints = complaints
        nodes = group_of(config.nodes.ips(), config.ip)
        self._ip, self._port = config.ip, config.peer_port
        self._number_of = config.nodes.number_of
        self._own = own
        self._flags = flags
        self._logs = logs
        self._states: dict[int, int] = {}
        self._features = features
        self._gossip = Gossip(
            _number(config.ip),
            nodes,
            secret,
            rules_for(len(nodes), PERIOD_S),
            wall_ms=int(time.time() * 1e3),
        )
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """OSError when the address or port cannot be had."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind((self._ip, self._port))
        except OSError:
            sock.close()
            raise
        self._socket = sock

    async def run(self) -> None:
        assert self._socket is not None
        asyncio.get_running_loop().add_reader(self._socket, self._receive)
        while True:
            if self._socket is not None:
                row = self._own()
                if row is not None:
                    self._gossip.set_own(
                        row, time.monotonic(), flags=self._flags(), features=self._features
                    )
                self._send(self._gossip.tick(time.monotonic()))
                self._log_changes()
            await asyncio.sleep(PERIOD_S)

    def set_config(self, config: NodeConfig, secret: bytes) -> None:
        """The files were read again. Nodes that are not in the map any more are told goodbye if
        nobody but us is left."""
        nodes = group_of(config.nodes.ips(), config.ip)
        if len(nodes) == 1:
            self.say_goodbye()
        self._number_of = config.nodes.number_of
        self._gossip.set_secret(secret)
        self._gossip.set_nodes(nodes, rules_for(len(nodes), PERIOD_S))
        self._gossip.renew(time.monotonic())
        self._states = {ip: state for ip, state in self._states.items() if ip in nodes}

    def say_goodbye(self) -> None:
        """So that nobody has to wait for suspicion."""
        if self._socket is not None:
            self._send(self._gossip.leave(time.monotonic()))

    def leave(self) -> None:
        """Goodbye, and nothing after it."""
        if self._socket is not None:
            self.say_goodbye()
            asyncio.get_running_loop().remove_reader(self._socket)
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _log_changes(self) -> None:
        now = _said(self._gossip.table)
        before, self._states = self._states, now
        if now == before or not self._logs():
            return
        for node, state in now.items():
            ip, then = str(ipaddress.IPv4Address(node)), before.get(node)
            if state != then and ip != self._ip:
                was = "" if then is None else f", was {Status(then).name.lower()}"
                _log.info("node %s is %s%s", ip, Status(state).name.lower(), was)

    @property
    def table(self) -> VectorTable:
        """What all nodes have told, this one's own row included."""
        return self._gossip.table

    @property
    def here(self) -> int:
        return self.index(self._ip)

    def index(self, ip: str) -> int:
        """In the table; -1: not in it."""
        try:
            return self.table.index(_number(ip))
        except (KeyError, ValueError):
            return -1

    def ip(self, index: int) -> str:
        return str(ipaddress.IPv4Address(int(self.table.nodes[index])))

    def known(self) -> list[KnownNode]:
        """The other nodes of which anything was heard."""
        return [node for node in self.nodes() if node.ip != self._ip and node.state != UNHEARD]

    def nodes(self) -> list[KnownNode]:
        """All nodes that gossip with this one, itself included, by address."""
        table, now = self._gossip.table, time.monotonic()
        return [self._node(index, now) for index in range(len(table))]

    def down(self, ip: str) -> str:
        """Why node `ip` need not be asked: it is known to be down; "" as long as it may answer."""
        table = self._gossip.table
        try:
            index = table.index(_number(ip))
        except KeyError:
            return ""
        status = Status(int(table.status[index]))
        if not table.version[index] or status not in (Status.DEAD, Status.LEFT):
            return ""
        if status == Status.LEFT:
            return "its mosd was stopped"
        return f"nothing was heard of it for {time.monotonic() - float(table.born[index]):.0f} s"

    def _node(self, index: int, now: float) -> KnownNode:
        table = self._gossip.table
        ip = str(ipaddress.IPv4Address(int(table.nodes[index])))
        heard = bool(table.version[index])
        flags = Flags(int(table.flags[index]))
        return KnownNode(
            ip=ip,
            number=self._number_of(ip),
            state=Status(int(table.status[index])).name.lower() if heard else UNHEARD,
            age_s=round(now - float(table.born[index]), 3) if heard else 0.0,
            owner=[word for flag, word in _OWNERS.items() if flag in flags],
            **{name: round(float(table.column(name)[index]), 2) if heard else 0 for name in _SHOWN},
        )

    def refused(self) -> dict[str, int]:
        """Datagrams that were turned away, by reason."""
        counts = self._gossip.counts.refused
        return {f"gossip {why}": n for why, n in counts.items() if why != _UNPROVED}

    def _receive(self) -> None:
        for _ in range(_AT_ONCE):
            if self._socket is None:
                return
            try:
                data, (host, port) = self._socket.recvfrom(MAX_DATAGRAM + 1)
            except BlockingIOError:
                return
            except OSError as error:
                # What an earlier datagram met with (ICMP); nothing is to be done about it.
                _log.debug("receiving: %s", error)
                continue
            if port != self._port:
                self._complaints.note("gossip port", host, f"a datagram from port {port}")
                continue
            before = sum(self.refused().values())
            answers = self._gossip.receive(time.monotonic(), _number(host), data)
            if sum(self.refused().values()) > before:
                self._complaints.say("gossip", host, "a datagram that is no peer's was turned away")
            self._send(answers)

    def _send(self, datagrams: Iterable[Datagram]) -> None:
        for datagram in datagrams:
            if self._socket is None:
                return
            address = (str(ipaddress.IPv4Address(datagram.to)), self._port)
            try:
                self._socket.sendto(datagram.data, address)
            except OSError as error:
                _log.debug("to %s: %s", address[0], error)
