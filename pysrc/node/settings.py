"""The configuration that is in force: `Settings`, which every part of mosd looks at when it needs.

`Settings.reread` is what setpe and SIGHUP ask for. Files with a mistake change nothing: mosd goes
on with the last ones that were right, and `problem` says so until they are. A node that is no more
in the map may go on talking about what is under way (`parting`), so that its guests get home, but
begins nothing new. Never moves anybody: that is `mosix.node.administration`'s.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from mosix.config import NodeConfig, NodeMap, load, load_secret
from mosix.errors import ConfigError, RefusedError

_log = logging.getLogger("mosd.config")


@dataclass(frozen=True)
class Reread:
    """What was found. `before`: the map until now."""

    before: NodeMap
    after: NodeMap

    def removed(self, ip: str) -> bool:
        """Whether node `ip` belongs to the cluster no more."""
        return ip in self.before and ip not in self.after

    def counts(self) -> tuple[int, int]:
        """Nodes that were added and removed."""
        old, new = _spans(self.before), _spans(self.after)
        return _outside(new, old), _outside(old, new)


class Settings:
    """`config` and `secret`: those in force. `problem`: why the files are not; "": they are."""

    def __init__(self, config: NodeConfig, secret: bytes, *, off: bool = False) -> None:
        self._files = config
        self.secret = secret
        self.off = off
        self.problem = ""
        self._parting: NodeMap | None = None
        self._lock = asyncio.Lock()

    @property
    def config(self) -> NodeConfig:
        return self._files.alone() if self.off else self._files

    def is_peer(self, ip: str) -> bool:
        """Whether something may be said to node `ip`, and listened to."""
        return ip in self.config.nodes or (self._parting is not None and ip in self._parting)

    def check_peer(self, ip: str, purpose: str) -> None:
        """UnknownNodeError unless node `ip` may be asked for `purpose`; RefusedError: it is us."""
        if purpose == "guest" or not self.is_peer(ip):
            self.config.nodes.check_member(ip, ip)
        if self.config.nodes.canonical(ip) == self.config.ip:
            raise RefusedError("this is the node itself", "a process at home needs no connection")

    async def reread(self, *, off: bool) -> Reread:
        """Takes what the files say now. `off`: this node leaves the cluster. ConfigError: a file is
        wrong, or says what a running mosd cannot change; then everything is as before."""
        async with self._lock:
            before = self.config.nodes
            try:
                # Host names are looked up, which may take long.
                files, secret = await asyncio.to_thread(self._read)
            except ConfigError as error:
                self.problem = error.line()
                _log.error("the last good configuration stays in force: %s", error.line())
                raise
            self.problem = ""
            self._files, self.secret, self.off = files, secret, off
            self._parting = before
            found = Reread(before, self.config.nodes)
            _log.info("read again: %d nodes%s", len(self.config.nodes), ", off" if off else "")
            return found

    def parted(self) -> None:
        """Whoever had to go home from or to a removed node is there."""
        self._parting = None

    def _read(self) -> tuple[NodeConfig, bytes]:
        old = self._files
        files = load(old.paths, old.port_option, old.grace_option)
        secret = load_secret(old.paths)
        for what, now, then in (
            ("own address", files.ip, old.ip),
            ("port", files.peer_port, old.peer_port),
        ):
            if now != then:
                raise ConfigError(
                    f"this node's {what} is {now} now, and mosd runs with {then}",
                    "stop mosd and start it again",
                )
        return files, secret


def _spans(nodes: NodeMap) -> list[tuple[int, int]]:
    return sorted((r.first, r.last) for r in nodes.ranges)


def _outside(spans: list[tuple[int, int]], others: list[tuple[int, int]]) -> int:
    """How many addresses of `spans` are in none of `others`; each list does not overlap itself."""
    total = sum(last - first + 1 for first, last in spans)
    for first, last in spans:
        for low, high in others:
            total -= max(0, min(last, high) - max(first, low) + 1)
    return total
