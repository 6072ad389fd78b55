"""/etc/mosix/mostune: what networked operations cost from this node, in units of their own.

MOSIX(7) leaves the constants to a program: `tune` measures and writes them, mosd reads them for
the decisions (`mosix.node.tuned`). A line is `NODE CALL_US BYTES_MB_S MOVE_MS PAGES_MB_S`; the
first that names a node holds for it, `*` names all. Never asks anybody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mosix.config.lines import Line, lines, read_text
from mosix.config.paths import Paths
from mosix.errors import MosixError

HINT: Final = "a line is NODE CALL_US BYTES_MB_S MOVE_MS PAGES_MB_S; `tune --write` makes the file"
EVERY: Final = "*"
#: The fields behind NODE: name, least and most.
FIELDS: Final = (
    ("CALL_US", 1.0, 1e6),
    ("BYTES_MB_S", 0.01, 1e6),
    ("MOVE_MS", 0.1, 1e5),
    ("PAGES_MB_S", 0.01, 1e6),
)


@dataclass(frozen=True)
class Costs:
    """Of a process of this node that is at another: `call_us`, a call that is redirected home;
    `bytes_mb_s`, what it reads and writes there; of moving it: `move_ms`, how long it stands still
    at least, and `pages_mb_s` of its memory. MB are 10**6 bytes."""

    call_us: float = 100.0
    bytes_mb_s: float = 200.0
    move_ms: float = 50.0
    pages_mb_s: float = 200.0


BUILT_IN: Final = Costs()


@dataclass(frozen=True)
class Tuning:
    """`lines`: IP or `EVERY`, and the costs; the first that fits holds."""

    lines: tuple[tuple[str, Costs], ...] = ()

    def of(self, ip: str) -> Costs:
        found = (costs for name, costs in self.lines if name in (ip, EVERY))
        return next(found, BUILT_IN)

    @property
    def others(self) -> Costs:
        """Of nodes that no line names."""
        return self.of("")


def load_tuning(paths: Paths, resolve: Callable[[str], str | None]) -> Tuning:
    """The built-in constants where there is no such file. `resolve`: IP of a number or an IP, as
    of the map (`NodeMap.resolve_number_or_ip`). ConfigError."""
    if not paths.tuning.exists():
        return Tuning()
    return parse_tuning(read_text(paths.tuning, HINT), paths.tuning, resolve)


def parse_tuning(text: str, path: Path, resolve: Callable[[str], str | None]) -> Tuning:
    """ConfigError names file and line."""
    return Tuning(tuple(_line(line, resolve) for line in lines(path, text)))


def _line(line: Line, resolve: Callable[[str], str | None]) -> tuple[str, Costs]:
    name, *fields = line.fields
    if len(fields) != len(FIELDS):
        raise line.error(f"{len(fields) + 1} fields", HINT)
    values = (_value(line, *row) for row in zip(fields, *zip(*FIELDS, strict=True), strict=True))
    if name != EVERY:
        try:
            ip = resolve(name)
        except MosixError as error:
            raise line.error(error.message, error.hint) from error
        if ip is None:
            raise line.error(f"'{name}' is not a number or an IP", f"'{EVERY}' means all nodes")
        name = ip
    return name, Costs(*values)


def _value(line: Line, text: str, what: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise line.error(f"{what} must be a number from {low:g} to {high:g}, not '{text}'", HINT)
    return value


def written(ip: str, costs: Costs) -> str:
    """A line of the file, without its end."""
    values = (costs.call_us, costs.bytes_mb_s, costs.move_ms, costs.pages_mb_s)
    return " ".join([ip, *(f"{value:.1f}" for value in values)])
