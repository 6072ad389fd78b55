"""mosix.map and userview.map: which nodes there are, and their numbers.

MOSIX(7): a data line of mosix.map is `IP|host count [flags]`, numbers come from userview.map
(`number IP|host count`). A line of mosix.map may also be `number IP|host count [flags]`: then one
file is enough for a small cluster. Used by mosd (who may connect, what a name means) and `mosctl
whois`. Never asks another node.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from mosix.config.lines import (
    LAST_ADDRESS,
    FileError,
    Line,
    address,
    integer,
    lines,
    read_text,
)
from mosix.config.paths import Paths
from mosix.errors import UnknownNodeError

MAX_MAP_LINES = 256
MAX_NUMBER = 65535
_MAX_NODES = 1 << 24
_FLAGS = {"p", "o", "po", "op", "proximate", "outsider"}
_MAP_HINT = "one line for each range of nodes: IP COUNT [FLAGS], or NUMBER IP COUNT [FLAGS]"
_USERVIEW_HINT = "one line for each range of nodes: NUMBER IP COUNT"


@dataclass(frozen=True)
class Range:
    """`count` nodes with consecutive addresses. `number`: of the first one, if it has any."""

    first: int
    count: int
    flags: str
    line: Line

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    @property
    def proximate(self) -> bool:
        """The network to it is fast: nothing is compressed on the way."""
        return "p" in self.flags

    @property
    def outsider(self) -> bool:
        """Processes of class 0 do not go there."""
        return "o" in self.flags.replace("proximate", "")


@dataclass(frozen=True)
class Numbers:
    """`count` consecutive node numbers for consecutive addresses."""

    number: int
    first: int
    count: int
    line: Line


@dataclass(frozen=True)
class NodeMap:
    """The nodes of the cluster. Immutable: a changed file makes a new one. `off`: this node has
    left it (setpe -off)."""

    ranges: tuple[Range, ...] = ()
    numbers: tuple[Numbers, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    off: bool = False

    def __contains__(self, ip: str) -> bool:
        value = self._value(ip)
        return value is not None and any(r.first <= value <= r.last for r in self.ranges)

    def __len__(self) -> int:
        return sum(r.count for r in self.ranges)

    def range_of(self, ip: str) -> Range | None:
        """The line that names this node."""
        value = self._value(ip)
        if value is None:
            return None
        return next((r for r in self.ranges if r.first <= value <= r.last), None)

    def outsider(self, ip: str) -> bool:
        """Whether processes of class 0 may not go to node `ip`."""
        found = self.range_of(ip)
        return found is not None and found.outsider

    def alone(self, ip: str) -> NodeMap:
        """The map without any other node than `ip`, which has left the cluster."""
        found = self.range_of(ip)
        assert found is not None
        own = replace(found, first=int(ipaddress.IPv4Address(self.canonical(ip))), count=1)
        return replace(self, ranges=(own,), off=True)

    def canonical(self, ip: str) -> str:
        """The node's main address where `ip` is an alias of it."""
        return self.aliases.get(ip, ip)

    def number_of(self, ip: str) -> int | None:
        """By any of the node's addresses: userview.map may number an alias."""
        main = self.canonical(ip)
        others = (alias for alias, to in self.aliases.items() if to == main)
        for one in (main, *others):
            value = self._literal(one)
            for n in self.numbers:
                if value is not None and n.first <= value < n.first + n.count:
                    return n.number + value - n.first
        return None

    def numbered(self) -> int:
        """How many numbers are given."""
        return sum(n.count for n in self.numbers)

    def nowhere(self) -> Iterator[tuple[int, str, Line]]:
        """For each line that numbers an address outside of the map the first such number, its
        address and the line. The manual allows it, for nodes of other clusters."""
        covered = [(r.first, r.last) for r in self.ranges]
        covered += [(value, value) for value in map(self._literal, self.aliases) if value]
        covered.sort()
        for n in self.numbers:
            at, end = n.first, n.first + n.count
            for first, last in covered:
                if first <= at <= last:
                    at = last + 1
            if at < end:
                yield n.number + at - n.first, str(ipaddress.IPv4Address(at)), n.line

    def _value(self, ip: str) -> int | None:
        return self._literal(self.canonical(ip))

    @staticmethod
    def _literal(ip: str) -> int | None:
        """None when `ip`, which may come from anywhere, is no address."""
        try:
            return int(ipaddress.IPv4Address(ip))
        except ValueError:
            return None

    def ip_of(self, number: int) -> str | None:
        for n in self.numbers:
            if n.number <= number < n.number + n.count:
                return str(ipaddress.IPv4Address(n.first + number - n.number))
        return None

    def ips(self, limit: int = 65536) -> list[str]:
        """Addresses of at most `limit` nodes, in the order of the file."""
        found: list[str] = []
        for r in self.ranges:
            room = limit - len(found)
            found += [str(ipaddress.IPv4Address(r.first + i)) for i in range(min(r.count, room))]
        return found

    def resolve(self, text: str) -> str:
        """IP of the node that a user calls `text` (number, IP or host name).

        May ask the name service. UnknownNodeError when there is no such node."""
        ip = self.resolve_number_or_ip(text)
        if ip is not None:
            return ip
        try:
            return self.check_member(socket.gethostbyname(text), text)
        except (OSError, UnicodeError) as error:
            raise UnknownNodeError(
                f"node '{text}' is not known", "give a number, IP or host name of mosix.map"
            ) from error

    def resolve_number_or_ip(self, text: str) -> str | None:
        """As `resolve`, but None for a host name: never asks the name service."""
        if text.isascii() and text.isdigit():
            ip = self.ip_of(int(text)) if len(text) < 10 else None
            if ip is None:
                hint = "mosix.map gives no node numbers"
                if self.numbers:
                    hint = f"{self.numbers[0].line.path} gives the numbers"
                raise UnknownNodeError(f"there is no node number {text}", hint)
            return self.check_member(ip, f"number {text}")
        try:
            return self.check_member(str(ipaddress.IPv4Address(text)), text)
        except ValueError:
            if text.replace(".", "").isdigit():
                raise UnknownNodeError(f"'{text}' is not an IPv4 address") from None
            return None

    def check_member(self, ip: str, called: str) -> str:
        """`ip` (or what it is an alias of); UnknownNodeError unless it is in the map."""
        if ip not in self:
            if self.off:
                raise UnknownNodeError("this node is off, alone", "setpe brings it back")
            shown = ip if called == ip else f"'{called}' ({ip})"
            raise UnknownNodeError(
                f"node {shown} is not in mosix.map", "the nodes are listed in mosix.map"
            )
        return self.canonical(ip)


def load_map(paths: Paths) -> NodeMap:
    """Reads mosix.map and, if it exists, userview.map. ConfigError."""
    nodes, errors = read_map(paths)
    if errors:
        raise errors[0]
    return nodes


def read_map(paths: Paths) -> tuple[NodeMap, list[FileError]]:
    """The same, with every complaint and without the lines that they are about."""
    errors: list[FileError] = []
    text = userview = ""
    with _kept(errors):
        text = read_text(paths.map, _MAP_HINT)
    with _kept(errors):
        if paths.userview.exists():
            userview = read_text(paths.userview, _USERVIEW_HINT)
    if errors:
        return NodeMap(), errors
    return _read(text, paths.map, userview, paths.userview)


def parse_map(
    text: str,
    path: Path = Path("mosix.map"),
    userview: str = "",
    userview_path: Path = Path("userview.map"),
) -> NodeMap:
    """The map in the files' texts. ConfigError names file and line."""
    nodes, errors = _read(text, path, userview, userview_path)
    if errors:
        raise errors[0]
    return nodes


@contextlib.contextmanager
def _kept(errors: list[FileError]) -> Iterator[None]:
    try:
        yield
    except FileError as error:
        errors.append(error)


def _read(
    text: str, path: Path, userview: str, userview_path: Path
) -> tuple[NodeMap, list[FileError]]:
    errors: list[FileError] = []
    ranges: list[Range] = []
    numbers: list[Numbers] = []
    aliases: list[_Alias] = []
    for count, line in enumerate(lines(path, text), start=1):
        if count > MAX_MAP_LINES:
            errors.append(
                line.error(f"more than {MAX_MAP_LINES} lines", "join consecutive addresses")
            )
            break
        with _kept(errors):
            if "=" in line.text:
                aliases.append(_alias(line))
                continue
            new = _range(line)
            _no_overlap(new, ranges)
            ranges.append(new)
            if _is_numbered(line):
                numbers.append(_numbers(line, line.fields[:3]))
    if not ranges and not errors:
        errors.append(FileError(path, 0, "names no node", _MAP_HINT))
    for line in lines(userview_path, userview):
        with _kept(errors):
            numbers.append(_numbers(line, line.fields))
    for index, one in enumerate(numbers):
        with _kept(errors):
            _no_clash(one, numbers[:index])
    plain = NodeMap(tuple(ranges), tuple(numbers))
    known: dict[str, str] = {}
    for alias in aliases:
        with _kept(errors):
            _check_alias(alias, plain, known)
            known[alias.left] = alias.right
    errors.sort(key=lambda error: (error.path != path, error.number))
    return NodeMap(plain.ranges, plain.numbers, known), errors


def _is_numbered(line: Line) -> bool:
    fields = line.fields
    return len(fields) in (3, 4) and fields[0].isdigit() and fields[2].isdigit()


def _range(line: Line) -> Range:
    fields = line.fields
    if _is_numbered(line):
        fields = fields[1:]
    if not 2 <= len(fields) <= 3:
        raise line.error(f"{len(line.fields)} fields", _MAP_HINT)
    first = int(address(line, fields[0]))
    count = integer(line, fields[1], "the number of nodes", 1, _MAX_NODES)
    if first + count - 1 > int(LAST_ADDRESS):
        raise line.error(f"the range ends behind {LAST_ADDRESS}")
    flags = fields[2] if len(fields) == 3 else ""
    if flags and flags not in _FLAGS:
        raise line.error(f"unknown flag '{flags}'", "flags are p (proximate) and o (outsider)")
    return Range(first, count, flags, line)


def _numbers(line: Line, fields: list[str]) -> Numbers:
    if len(fields) != 3:
        raise line.error(f"{len(fields)} fields", _USERVIEW_HINT)
    number = integer(line, fields[0], "a node number", 1, MAX_NUMBER)
    first = int(address(line, fields[1]))
    count = integer(line, fields[2], "the number of nodes", 1, MAX_NUMBER)
    if number + count - 1 > MAX_NUMBER:
        raise line.error(f"the last node's number is larger than {MAX_NUMBER}")
    return Numbers(number, first, count, line)


@dataclass(frozen=True)
class _Alias:
    line: Line
    left: str
    right: str


def _alias(line: Line) -> _Alias:
    left, _, right = (part.strip() for part in line.text.partition("="))
    if not left.replace(".", "").isdigit() and ":" not in left:
        raise line.error(f"'{left}' is not an address", "an alias is: a.b.c.d=IP, or a.b.c.d=HOST")
    return _Alias(line, str(address(line, left)), str(address(line, right)))


def _check_alias(alias: _Alias, nodes: NodeMap, known: dict[str, str]) -> None:
    if alias.right not in nodes:
        raise alias.line.error(
            f"{alias.right} is not in the data lines", "an alias names a node of this file"
        )
    own = nodes.range_of(alias.left)
    if own is not None:
        raise alias.line.error(
            f"{alias.left} is a node itself, line {own.line.number}",
            "only one address of a node is in the data lines",
        )
    if alias.left in known:
        raise alias.line.error(f"{alias.left} is an alias already", "name each address once")


def _no_overlap(new: Range, earlier: list[Range]) -> None:
    for old in earlier:
        if new.first <= old.last and old.first <= new.last:
            raise new.line.error(f"overlaps line {old.line.number}", "name each node once")


def _no_clash(new: Numbers, earlier: list[Numbers]) -> None:
    for old in earlier:
        if new.number < old.number + old.count and old.number < new.number + new.count:
            raise new.line.error(f"node numbers overlap those of {old.line.path}, "
                                 f"line {old.line.number}")  # fmt: skip
        if new.first < old.first + old.count and old.first < new.first + new.count:
            raise new.line.error(f"a node has two numbers: see {old.line.path}, "
                                 f"line {old.line.number}")  # fmt: skip
