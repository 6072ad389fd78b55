"""Where a process should run: placement and moves as pure functions over columns of load vectors.

Called by mosd and the simulator with the same arrays: one function, one truth. Nothing is asked
and nothing is done here; the caller probes, reserves and moves. The loops are in native/decide.c.

**Delay.** A node with `cores` of `pace` (wall seconds for a standard CPU second) and k running
processes gives each a delay D(k) = max(1, k / cores) · pace. A process away from home also pays
for each forwarded call a round trip and for its bytes their time on the link, per CPU second.

**Opportunity cost** (Amir et al. 2000): what a process takes from others. CPU: k · (D(k+1) − D(k))
at the target, regained likewise where it leaves. Memory: n^(used/total − 1) for n nodes, so it is
all but free on an empty node and dear on a nearly full one.

**Age** (Harchol-Balter, Downey 1997): a process that has used a seconds of CPU uses a more, in the
median. A move gains a · (cost here − cost there), less what it stops the process for and less a
part of its own delay (`margin`). Costs here and there are of the whole cluster, so every accepted
move lowers one sum (with true numbers): a process cannot be sent back and forth without something
else having changed.

**Stale vectors.** All nodes see the same node idle and herd to it, whatever the cost function.
So no choice is made without the truth from the best few (`probes`), the promised place counts at
once (`reserve`), and the target computes the gain again with its own numbers (`gain_between`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from mosix.native._native import ffi, lib
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: speed in the manual's units of a core that does a standard CPU second in a second
STANDARD_SPEED: Final = 10_000.0
MOST_CHOICES: Final = 16

#: One process that may be moved or started; see native/decide.h. C reads it as it is.
PROCESS: Final = np.dtype(
    [
        ("age_s", np.float32),
        ("need_mb", np.float32),
        ("move_s", np.float32),
        ("calls", np.float32),
        ("transfer_s", np.float32),
        ("home", np.int32),
    ]
)
assert PROCESS.itemsize == ffi.sizeof("struct mx_process")


@dataclass(frozen=True)
class Rules:
    """Weights and limits. Seconds unless said otherwise."""

    #: nodes asked for their true state before a decision, at once; and how often at most
    probes: int = 3
    probe_rounds: int = 4
    social: float = 0.0
    memory_weight: float = 1.0
    #: a second of standing still counts as so many of gain
    move_factor: float = 6.0
    least_age_s: float = 0.0
    #: part of its delay that a move must gain: what is less is not worth it, or not even true
    margin: float = 0.2
    #: a process that arrived stays at least this long, and so many times its move
    residency_s: float = 1.0
    residency_moves: float = 4.0
    #: processes considered for a move at once: those with the most CPU time
    candidates: int = 8
    call_s: float = 100e-6


class Choice(NamedTuple):
    """`value`: of a placement the delay, of a move the seconds gained."""

    node: int
    process: int
    value: float


class View:
    """What one node believes of all, as columns (float32, contiguous). The arrays are used where
    they are, so they may change between decisions; `memory_mb` may not."""

    def __init__(
        self,
        running: Floats,
        cores: Floats,
        pace: Floats,
        free_mb: Floats,
        memory_mb: Floats,
        *,
        rules: Rules,
        usable: NDArray[np.bool_] | None = None,
        call_s: Floats | None = None,
        base: int | None = None,
    ) -> None:
        """`base` of the cost of memory: the number of nodes, if these are not all (at least 8:
        powers of two hardly grow)."""
        n = len(running)
        self.rules = rules
        self.running, self.cores, self.pace = running, cores, pace
        self.free_mb, self.memory_mb, self.usable = free_mb, memory_mb, usable
        self._base = np.log2(max(n if base is None else base, 8))
        self.steep = (self._base / np.maximum(memory_mb, 1.0)).astype(np.float32)
        held = [running, cores, pace, free_mb, self.steep]
        columns = [_pointer("float", column, n) for column in held]
        calls = ffi.NULL if call_s is None else _pointer("float", call_s, n)
        mask = ffi.NULL if usable is None else _pointer("uint8_t", usable.view(np.uint8), n)
        self._held = (columns, calls, mask)  # C reads them, Python must not free them
        self._nodes = ffi.new("struct mx_nodes *", [n, *columns, calls, mask])
        self._rules = ffi.new(
            "struct mx_rules *",
            [
                rules.social,
                rules.memory_weight,
                rules.call_s,
                rules.move_factor,
                rules.least_age_s,
                rules.margin,
            ],
        )
        self._out = ffi.new("struct mx_choice[]", MOST_CHOICES)

    def reserve(self, node: int, need_mb: float) -> None:
        """A place was promised: it counts from now on."""
        self.running[node] += 1
        self.free_mb[node] -= need_mb

    def place(self, process: NDArray[np.void], count: int) -> list[int]:
        """The at most `count` best nodes for one PROCESS record (an array of one), best first.
        Where it does not fit comes last."""
        pointer = ffi.from_buffer("struct mx_process[]", process)
        out = self._out
        found = lib.mx_place(self._nodes, pointer, self._rules, out, count)
        return [out[k].node for k in range(found)]

    def moves(
        self, here: int, processes: NDArray[np.void], *, slow: float = 1.0, count: int = 3
    ) -> list[Choice]:
        """The best moves of PROCESS records away from `here` that gain something, to different
        nodes. `slow`: how many times slower `here` is than its load says, for want of memory."""
        pointer = ffi.from_buffer("struct mx_process[]", processes)
        found = lib.mx_moves(
            self._nodes, here, slow, pointer, len(processes), self._rules, self._out, count
        )
        return self._choices(found)

    def _choices(self, found: int) -> list[Choice]:
        out = self._out
        return [Choice(out[k].node, out[k].process, out[k].value) for k in range(found)]


def _pointer(kind: str, array: NDArray[Any], n: int) -> Any:
    if len(array) != n or not array.flags.c_contiguous or array.dtype.itemsize != ffi.sizeof(kind):
        raise ValueError("columns must be contiguous and of one length and type")
    return ffi.from_buffer(f"{kind}[]", array)


class Pair(View):
    """A view of two nodes, source 0 and target 1, each with its true numbers: the handshake."""

    def __init__(self, rules: Rules, nodes: int) -> None:
        columns = [np.ones(2, np.float32) for _ in range(5)]
        super().__init__(*columns, rules=rules, base=nodes)

    def gain(
        self,
        source: Sequence[float],
        target: Sequence[float],
        processes: NDArray[np.void],
        *,
        slow: float = 1.0,
    ) -> Choice | None:
        """The best move of one of `processes` (home: 0, 1 or -1) from `source` to `target`, each
        given as running, cores, pace, free_mb, memory_mb; None if none gains anything."""
        columns = (self.running, self.cores, self.pace, self.free_mb, self.memory_mb)
        for column, ours, theirs in zip(columns, source, target, strict=True):
            column[0], column[1] = ours, theirs
        np.divide(self._base, self.memory_mb, out=self.steep)
        found = self.moves(0, processes, slow=slow, count=1)
        return found[0] if found else None


def move_seconds(
    size_mb: npt.ArrayLike,
    dirty_mb_s: npt.ArrayLike,
    link_mb_s: float,
    *,
    fixed_s: float = 0.05,
    target_s: float = 0.1,
    rounds: int = 8,
) -> Floats:
    """How long a move stops a process: all of it if its pages are sent once it is stopped
    (`rounds` 0), else what is left after copying while it runs, until that would take
    `target_s` or dirtying keeps up (geometric series: each round leaves dirty/link of the last)."""
    size, dirty = np.asarray(size_mb, np.float64), np.asarray(dirty_mb_s, np.float64)
    ratio = np.clip(dirty / link_mb_s, 0, None)
    left_s = size / link_mb_s
    for _ in range(rounds):
        again = (left_s > target_s) & (ratio < 0.8)
        left_s = np.where(again, left_s * ratio, left_s)
    found: Floats = (fixed_s + left_s).astype(np.float32)
    return found


def relief_of_memory(short_mb: float, sizes_mb: Floats, movable: NDArray[np.bool_]) -> int:
    """Memory ushering (Barak, Braverman 1998): which process ends the shortage at least cost:
    the smallest that suffices, else the largest; -1 if none may move."""
    if not movable.any():
        return -1
    enough = movable & (sizes_mb >= short_mb)
    if enough.any():
        return int(np.where(enough, sizes_mb, np.inf).argmin())
    return int(np.where(movable, sizes_mb, -np.inf).argmax())
