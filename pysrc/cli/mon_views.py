"""What mon shows, as lines of text: nodes with a bar each, processes, moves.

Functions of a `Snapshot` and of what the user has chosen (`Choice`), so that the screen,
`mon --once` and the tests say the same. Called by `mon` and `mon_app`. Asks nobody, but for host
names, which `mon.Watcher` has asked for before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mosix.cli import columns
from mosix.cli.columns import printable
from mosix.cli.mosps import Names, from_of, reason_of, user_of, where_of
from mosix.node.requests import KnownNode, PastMove, ProcessRow

#: MOSIX(7): a core of this speed, a Pentium 4 of 3 GHz, is what a load of 1 keeps busy.
STANDARD_SPEED = 10_000
#: What the bars may show, by key.
KINDS = {
    "l": "load",
    "u": "utilisation",
    "m": "memory",
    "s": "speed",
    "g": "guests",
    "f": "frozen",
}
NAMINGS = ("number", "ip", "host")
_STATES = {"alive": "up", "suspect": "up?", "dead": "down", "left": "stopped", "unheard": "unknown"}
_UP = ("alive", "suspect")
_LEAST_BAR = 8
_COMMAND_WIDTH = 24
_NOTHING = "-"


@dataclass(frozen=True)
class Snapshot:
    """What mosd said at `at_s` (seconds since 1970). `moves`: oldest first. `problem`: why the
    rest is older than that."""

    at_s: float
    own: str = ""
    nodes: Sequence[KnownNode] = ()
    processes: Sequence[ProcessRow] = ()
    moves: Sequence[PastMove] = ()
    problem: str = ""


@dataclass(frozen=True)
class Choice:
    """What the user wants to see. `kind`: of `KINDS`. `down`: also nodes that are. `wide`: all
    columns, whatever the width. `standard`: the yardstick of load is a standard core, else one of
    this node. `bar`: what bars are made of."""

    kind: str = "load"
    naming: str = "number"
    down: bool = True
    wide: bool = False
    totals: bool = True
    standard: bool = True
    bar: str = "#"


@dataclass(frozen=True)
class Table:
    """`states`: for each line "up", "up?", "down" and so on, for its colour."""

    header: str
    lines: list[str]
    states: list[str] = field(default_factory=list)


def is_up(node: KnownNode) -> bool:
    return node.state in _UP


def load_of(node: KnownNode, yardstick: float) -> float:
    """Processes that run or want to, for each core of speed `yardstick`."""
    power = node.cores * node.speed / yardstick
    return node.running / power if power > 0 else 0.0


def utilisation_of(node: KnownNode) -> float:
    """0 to 1: the part of its cores that its processes can keep busy."""
    return min(1.0, node.running / node.cores) if node.cores > 0 else 0.0


def state_of(node: KnownNode) -> str:
    """For the column: up, down and so on, and what its owner has said."""
    return ",".join([_STATES.get(node.state, node.state), *node.owner])


def title(shot: Snapshot, choice: Choice) -> str:
    """The line above everything."""
    clock = time.strftime("%H:%M:%S", time.localtime(shot.at_s))
    if shot.problem:
        return f"{clock}  {printable(shot.problem)}"
    up = [node for node in shot.nodes if is_up(node)]
    return (
        f"{clock}  {len(up)} of {len(shot.nodes)} nodes up, "
        f"{sum(node.running for node in up):.1f} running on "
        f"{sum(node.cores for node in up):g} cores, "
        f"{sum(node.free_mb for node in up):.0f} of "
        f"{sum(node.memory_mb for node in up):.0f} MB free, "
        f"{sum(node.guests for node in up):.0f} guests"
    )


def nodes(shot: Snapshot, choice: Choice, width: int) -> Table:
    """A line for each node: those that are up first. Narrow terminals lose columns, never the
    name, the state and the bar."""
    yardstick = _yardstick(shot, choice)
    names = Names(choice.naming)
    shown = [node for node in shot.nodes if choice.down or is_up(node)]
    shown.sort(key=lambda node: not is_up(node))
    rows = [_node_row(node, shot.own, names, yardstick) for node in shown]
    kept = list(_node_row(_EXAMPLE, "", names, yardstick))
    room = width
    for name in (*_OPTIONAL, ""):
        sizes = (max([len(name), *(len(row[name]) for row in rows)]) + 2 for name in kept)
        room = width - sum(sizes)
        if not name or choice.wide or room >= _LEAST_BAR:
            break
        kept.remove(name)
    values = [_value(node, choice.kind, yardstick) if is_up(node) else 0.0 for node in shown]
    most = _scale(choice.kind, values)
    room = max(room, 0)
    bars = [choice.bar * round(value / most * room) for value in values]
    ruler = f"{choice.kind.upper()} 0-{_figure(choice.kind, most)}"
    cells = [[*(row[name] for name in kept), bar] for row, bar in zip(rows, bars, strict=True)]
    header, *lines = columns.lines([*kept, ruler], cells, _NUMBERS, width)
    return Table(header[:width], [line[:width] for line in lines], [_state(n) for n in shown])


def processes(shot: Snapshot, choice: Choice, width: int) -> Table:
    """A line for each process of a job started here, and for each guest."""
    names = Names(choice.naming)
    rows = [
        (
            str(row.pid),
            user_of(row.uid),
            where_of(row, names),
            from_of(row, names),
            str(row.nmigs),
            _cut(printable(row.command), None if choice.wide else _COMMAND_WIDTH),
            reason_of(row) or _NOTHING,
        )
        for row in shot.processes
    ]
    header = ("PID", "USER", "WHERE", "FROM", "NMIGS", "CMD", "WHY")
    first, *lines = columns.lines(header, rows, ("PID", "NMIGS"), width)
    states = ["down" if "does not answer" in row.why else "up" for row in shot.processes]
    return Table(first[:width], [line[:width] for line in lines], states)


def moves(shot: Snapshot, choice: Choice, width: int) -> Table:
    """The last moves, the newest first."""
    names = Names(choice.naming)
    numbers = {node.ip: node.number for node in shot.nodes}

    def place(where: str) -> str:
        return where if where == "home" else names.of(printable(where), numbers.get(where))

    rows = [
        (
            time.strftime("%H:%M:%S", time.localtime(move.at_s)),
            str(move.pid),
            place(move.origin),
            place(move.target),
            f"{move.freeze_ns / 1e6:.0f}",
            f"{move.page_bytes / 1e6:.1f}",
            printable(move.why) or _NOTHING,
        )
        for move in reversed(shot.moves)
    ]
    header = ("TIME", "PID", "FROM", "TO", "FROZEN ms", "MB", "WHY")
    first, *lines = columns.lines(header, rows, ("PID", "FROZEN ms", "MB"), width)
    return Table(first[:width], [line[:width] for line in lines], ["up"] * len(lines))


def text(shot: Snapshot, choice: Choice, width: int) -> str:
    """All of it, for `mon --once`."""
    parts = [[title(shot, choice)]] if choice.totals or shot.problem else []
    for name, table in (
        ("", nodes(shot, choice, width)),
        ("no jobs and no guests", processes(shot, choice, width)),
        ("no moves", moves(shot, choice, width)),
    ):
        if table.lines or not name:
            parts.append([table.header, *table.lines])
        else:
            parts.append([name])
    return "\n\n".join("\n".join(part) for part in parts)


# ---- nodes ----

_NUMBERS = ("LOAD", "UTIL", "CORES", "SPEED", "FREE", "MB", "GUESTS", "FROZEN")
#: Columns that are left out for want of room, these first.
_OPTIONAL = ("FROZEN", "SPEED", "MB", "CORES", "GUESTS", "FREE", "UTIL", "LOAD")
_EXAMPLE = KnownNode(
    ip="0.0.0.0",
    number=None,
    state="alive",
    age_s=0.0,
    running=0.0,
    cores=1.0,
    speed=1.0,
    memory_mb=0.0,
    free_mb=0.0,
    guests=0.0,
)


def _yardstick(shot: Snapshot, choice: Choice) -> float:
    if choice.standard:
        return STANDARD_SPEED
    own = (node.speed for node in shot.nodes if node.ip == shot.own and node.speed)
    return next(own, STANDARD_SPEED)


def _state(node: KnownNode) -> str:
    return _STATES.get(node.state, node.state)


def _node_row(node: KnownNode, own: str, names: Names, yardstick: float) -> dict[str, str]:
    name = names.of(node.ip, node.number) + ("*" if node.ip == own else "")
    figures: dict[str, Callable[[], str]] = {
        "LOAD": lambda: f"{load_of(node, yardstick):.2f}",
        "UTIL": lambda: f"{utilisation_of(node):.0%}",
        "CORES": lambda: f"{node.cores:g}",
        "SPEED": lambda: f"{node.speed:.0f}",
        "FREE": lambda: f"{node.free_mb:.0f}",
        "MB": lambda: f"{node.memory_mb:.0f}",
        "GUESTS": lambda: f"{node.guests:.0f}",
        "FROZEN": lambda: f"{node.frozen:.0f}",
    }
    up = is_up(node)
    shown = {key: figure() if up else _NOTHING for key, figure in figures.items()}
    return {"NODE": name, "STATE": state_of(node), **shown}


def _value(node: KnownNode, kind: str, yardstick: float) -> float:
    match kind:
        case "load":
            return load_of(node, yardstick)
        case "utilisation":
            return utilisation_of(node)
        case "memory":
            used = node.memory_mb - node.free_mb
            return used / node.memory_mb if node.memory_mb else 0.0
        case "speed":
            return node.speed
        case "guests":
            return node.guests
        case _:
            return node.frozen


def _scale(kind: str, values: Sequence[float]) -> float:
    """What a bar of full length means."""
    if kind in ("utilisation", "memory"):
        return 1.0
    return max([1.0, *values])


def _figure(kind: str, value: float) -> str:
    if kind in ("utilisation", "memory"):
        return f"{value:.0%}"
    return f"{value:.2f}" if kind == "load" else f"{value:.0f}"


def _cut(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else text[: width - 1] + "~"
