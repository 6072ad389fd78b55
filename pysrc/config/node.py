"""Everything mosd must know before it starts, except the secret: `load(paths)`.

Called by mosd and by commands that only read the map. Never writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mosix.config.features import load_features
from mosix.config.lines import FileError, Line, address, integer, lines, read_text
from mosix.config.nodemap import NodeMap, load_map
from mosix.config.paths import Paths
from mosix.errors import ConfigError

#: Between two mosds, TCP. MOSIX used TCP 249–254 and UDP 249–250; this one is its first.
#: All nodes of a cluster use the same; `peer NUMBER` in /etc/mosix/ports changes it.
DEFAULT_PEER_PORT = 249

#: Guests at once, unless /etc/mosix/maxguests says otherwise: each is owned by a process of ours.
DEFAULT_MAX_GUESTS = 256
#: For how long jobs and guests wait for a lost connection to be made again, seconds, unless
#: /etc/mosix/grace or `mosd --grace` says otherwise.
DEFAULT_GRACE_S = 60
_LONGEST_GRACE_S = 86400
#: More have no ids of their own (`mosix.node.idmaps.PAIRS`).
_MOST_GUESTS = 4096
#: MOSIX(7): 10,000 is a Pentium 4 of 3 GHz.
_MOST_SPEED = 10_000_000

_MOSIP_HINT = "write this node's address (a.b.c.d), as in mosix.map, into it"


@dataclass(frozen=True)
class NodeConfig:
    """One node's configuration. `ip`: its own address, as other nodes know it. `speed`: what the
    owner says, in the manual's units; None: it is measured. `features`: its topological ones.
    `port_option`, `grace_option`: what was given when it was loaded."""

    paths: Paths
    nodes: NodeMap
    ip: str
    peer_port: int = DEFAULT_PEER_PORT
    max_guests: int = DEFAULT_MAX_GUESTS
    grace_s: int = DEFAULT_GRACE_S
    speed: int | None = None
    features: tuple[str, ...] = ()
    port_option: int | None = None
    grace_option: int | None = None

    def alone(self) -> NodeConfig:
        """When this node has left the cluster (setpe -off)."""
        return replace(self, nodes=self.nodes.alone(self.ip))


def load(paths: Paths, peer_port: int | None = None, grace_s: int | None = None) -> NodeConfig:
    """Reads mosix.map, userview.map, mosip, ports, maxguests, grace, speed, features and
    myfeatures; what is given here goes before. ConfigError."""
    if not paths.config_dir.is_dir():
        raise ConfigError(
            f"{paths.config_dir}: no such directory", "make it, with mosix.map and secret"
        )
    nodes = load_map(paths)
    return NodeConfig(
        paths,
        nodes,
        own_ip(paths, nodes),
        peer_port or load_port(paths),
        load_max_guests(paths),
        load_grace(paths) if grace_s is None else grace_s,
        load_speed(paths),
        load_features(paths),
        peer_port,
        grace_s,
    )


def load_max_guests(paths: Paths) -> int:
    """ConfigError."""
    guests = _number(paths.max_guests, "the number of guests", 0, _MOST_GUESTS)
    return DEFAULT_MAX_GUESTS if guests is None else guests


def load_grace(paths: Paths) -> int:
    """Seconds. ConfigError."""
    grace_s = _number(paths.grace, "the grace, in seconds,", 0, _LONGEST_GRACE_S)
    return DEFAULT_GRACE_S if grace_s is None else grace_s


def load_speed(paths: Paths) -> int | None:
    """None: nobody says so. ConfigError."""
    return _number(paths.speed, "the speed", 1, _MOST_SPEED)


def own_ip(paths: Paths, nodes: NodeMap) -> str:
    """Which node of the map this one is. ConfigError."""
    if paths.own_ip.exists():
        said = list(lines(paths.own_ip, read_text(paths.own_ip, _MOSIP_HINT)))
        if len(said) != 1 or len(said[0].fields) != 1:
            raise FileError(paths.own_ip, 0, "must hold just one address", _MOSIP_HINT)
        ip = str(address(said[0], said[0].text))
        if ip not in nodes:
            raise said[0].error(f"{ip} is not in {paths.map}", "add this node to the map")
        _not_outsider(nodes, ip)
        return nodes.canonical(ip)
    own = [ip for ip in interface_ips() if ip in nodes]
    if not own:
        raise ConfigError(
            f"no address of this machine is in {paths.map}", f"add this node, or: {paths.own_ip}"
        )
    if len(set(map(nodes.canonical, own))) > 1:
        raise ConfigError(
            f"several addresses of this machine are in {paths.map}: {', '.join(own)}",
            f"write the right one into {paths.own_ip}",
        )
    _not_outsider(nodes, own[0])
    return nodes.canonical(own[0])


def _not_outsider(nodes: NodeMap, ip: str) -> None:
    found = nodes.range_of(ip)
    if found is not None and found.outsider:
        raise found.line.error("this node itself cannot be an outsider", "remove the flag o")


def interface_ips() -> list[str]:
    """IPv4 addresses of this machine."""
    # Half of the time that a command takes to start; only mosd gets here.
    from pyroute2 import IPRoute  # noqa: PLC0415

    with IPRoute() as route:
        found = [message.get_attr("IFA_LOCAL") for message in route.get_addr(family=2)]
    return [ip for ip in found if isinstance(ip, str)]


def load_port(paths: Paths) -> int:
    """ConfigError."""
    if not paths.ports.exists():
        return DEFAULT_PEER_PORT
    port = DEFAULT_PEER_PORT
    for line in lines(paths.ports, read_text(paths.ports, "peer NUMBER")):
        port = _port_line(line)
    return port


def _port_line(line: Line) -> int:
    if len(line.fields) != 2 or line.fields[0] != "peer":
        raise line.error(f"'{line.text}' is not a port", "the only one is: peer NUMBER")
    return integer(line, line.fields[1], "a port", 1, 65535)


def _number(path: Path, what: str, low: int, high: int) -> int | None:
    """The only thing that the file says; None when there is no such file."""
    if not path.exists():
        return None
    hint = f"write one number from {low} to {high} into it, or remove it"
    said = list(lines(path, read_text(path, hint)))
    if len(said) != 1:
        raise FileError(path, 0, "must hold just one number", hint)
    return integer(said[0], said[0].text, what, low, high)
