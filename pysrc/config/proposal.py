"""What the files under /etc/mosix would be when somebody wishes something: `propose`.

Called by mosconf with what it was told and found out; `mosix.config.install` writes the result.
Files for which nobody wishes anything stay as they are. Reads files; never writes one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from mosix.config.install import Content
from mosix.config.node import interface_ips
from mosix.config.nodemap import NodeMap, parse_map
from mosix.config.paths import Paths
from mosix.errors import ConfigError

_SECRET_BYTES = 32
_MADE = "# Made by mosconf; the same on all nodes.\n"


@dataclass(frozen=True)
class Wishes:
    """None: as it is. `nodes`, `aliases`: lines of mosix.map; `secret`: "" for a new one;
    `numbers`: nodes without a number get one; `log`: whether there is .log_mosrun."""

    nodes: tuple[str, ...] | None = None
    aliases: tuple[str, ...] | None = None
    ip: str | None = None
    secret: str | None = None
    numbers: bool = False
    port: int | None = None
    max_guests: int | None = None
    speed: int | None = None
    features: str | None = None
    log: bool | None = None


def propose(paths: Paths, wishes: Wishes) -> dict[str, Content]:
    """Files that are to be changed, by name. ConfigError: the map has a mistake."""
    files: dict[str, Content] = {}
    text = _map_text(paths, wishes)
    if text is not None:
        files[paths.map.name] = Content(text)
    elif paths.map.exists():
        text = paths.map.read_text(encoding="utf-8")
    else:
        raise ConfigError(f"{paths.map}: there is none", "which nodes are there?")
    userview = ""
    if paths.userview.exists():
        userview = paths.userview.read_text(encoding="utf-8")
    nodes = parse_map(text, paths.map, userview, paths.userview)
    if wishes.numbers:
        more = _numbers_for(nodes)
        if more:
            files[paths.userview.name] = Content((userview or _MADE) + more)
    files.update(_own_ip(paths, nodes, wishes.ip))
    if wishes.secret is not None:
        secret = wishes.secret or secrets.token_urlsafe(_SECRET_BYTES)
        files[paths.secret.name] = Content(f"{secret}\n", 0o600)
    for path, value in (
        (paths.ports, None if wishes.port is None else f"peer {wishes.port}"),
        (paths.max_guests, wishes.max_guests),
        (paths.speed, wishes.speed),
        (paths.own_features, wishes.features),
    ):
        if value is not None:
            files[path.name] = Content(f"{value}\n")
    if wishes.log is not None:
        files[paths.log_mosrun.name] = Content("" if wishes.log else None)
    return {name: content for name, content in files.items() if _is_new(paths, name, content)}


def own_candidates(nodes: NodeMap) -> list[str]:
    """Addresses of this machine that are in the map, one for each node."""
    found: dict[str, str] = {}
    for ip in interface_ips():
        if ip in nodes:
            found.setdefault(nodes.canonical(ip), ip)
    return list(found)


def split_lines(paths: Paths) -> tuple[list[str], list[str]]:
    """Data lines and alias lines of the map that is there, without comments."""
    if not paths.map.exists():
        return [], []
    text = paths.map.read_text(encoding="utf-8", errors="replace")
    said = [line.strip() for line in text.splitlines()]
    said = [line for line in said if line and not line.startswith("#")]
    return [line for line in said if "=" not in line], [line for line in said if "=" in line]


def _map_text(paths: Paths, wishes: Wishes) -> str | None:
    """None: the file need not be changed."""
    old_nodes, old_aliases = split_lines(paths)
    nodes = list(old_nodes if wishes.nodes is None else wishes.nodes)
    aliases = list(old_aliases if wishes.aliases is None else wishes.aliases)
    if (nodes, aliases) == (old_nodes, old_aliases):
        return None
    return _MADE + "".join(f"{line}\n" for line in [*nodes, *aliases])


def _numbers_for(nodes: NodeMap) -> str:
    """Lines for userview.map: ranges of which no node has a number, behind the highest."""
    following = 1 + max((n.number + n.count - 1 for n in nodes.numbers), default=0)
    text = ""
    for r in nodes.ranges:
        if any(n.first <= r.last and r.first < n.first + n.count for n in nodes.numbers):
            continue
        field = r.line.fields[0]
        text += f"{following} {field} {r.count}\n"
        following += r.count
    return text


def _own_ip(paths: Paths, nodes: NodeMap, wish: str | None) -> dict[str, Content]:
    """mosip, where it is needed. ConfigError: nobody can know which of several nodes this is."""
    if wish is not None:
        return {paths.own_ip.name: Content(f"{wish}\n")}
    there = paths.own_ip.exists()
    if there and paths.own_ip.read_text(encoding="utf-8", errors="replace").strip() in nodes:
        return {}
    candidates = own_candidates(nodes)
    if not candidates:
        raise ConfigError(
            "none of these nodes is this machine", f"its addresses: {', '.join(interface_ips())}"
        )
    if len(candidates) > 1:
        raise ConfigError(
            f"several of these nodes are this machine: {', '.join(candidates)}",
            "say which address is this node's: --ip",
        )
    return {paths.own_ip.name: Content(None)} if there else {}


def _is_new(paths: Paths, name: str, content: Content) -> bool:
    path: Path = paths.config_dir / name
    if content.text is None or not path.exists():
        return content.text is not None or path.exists()
    status = path.stat()
    return status.st_mode & 0o777 != content.mode or path.read_bytes() != content.text.encode()
