"""From what was told and measured to the columns of a decision: who may take guests, what a
process costs, and which places are promised.

Called by mosd before it asks `policy`, and by the target of a move. Pure: every function gets the
time and the numbers it needs; nothing is asked of a machine.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from mosix.balancer.policy import PROCESS, STANDARD_SPEED, Floats, Rules, View, move_seconds
from mosix.balancer.statistics import COLUMN
from mosix.balancer.vectors import Flags, Status, VectorTable
from numpy.typing import NDArray

#: News older than this are no ground for sending anybody anywhere, seconds.
OLDEST_NEWS_S: Final = 60.0
#: A promise of a place that nobody came for, seconds.
PROMISE_S: Final = 30.0
_TAKES_NONE: Final = Flags.BLOCK | Flags.DRAIN


def usable_nodes(
    table: VectorTable, own: int, now: float, compatible: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Nodes (by index) that take guests from here: alive, fresh news, not blocked, below their
    limit of guests, and `compatible`: their features allow it (`eligibility.why_not`, by digest
    of features). This node itself is always usable."""
    usable: NDArray[np.bool_] = compatible & (table.status == Status.ALIVE) & (table.version > 0)
    usable &= table.ages(now) < OLDEST_NEWS_S
    usable &= (table.flags & np.uint32(_TAKES_NONE)) == 0
    expected = table.column("guests") + table.column("inbound")
    usable &= expected < table.column("guest_limit")
    usable[own] = True
    return usable


def view_of(
    table: VectorTable,
    usable: NDArray[np.bool_],
    rules: Rules,
    call_s: Floats | None = None,
) -> View:
    """A view to decide on, of its own arrays: places promised in it do not change the table.
    `call_s`: measured round trip of a call from here to each node."""
    running = table.column("running") + table.column("inbound")
    pace = (STANDARD_SPEED / table.column("speed")).astype(np.float32)
    return View(
        running,
        table.column("cores").copy(),
        pace,
        table.column("free_mb").copy(),
        table.column("memory_mb").copy(),
        rules=rules,
        usable=usable,
        call_s=call_s,
    )


def processes(
    rates: NDArray[np.float64],
    ages_s: NDArray[np.float64],
    sizes_mb: NDArray[np.float64],
    wanted_mb: NDArray[np.float64],
    homes: NDArray[np.int32],
    *,
    link_mb_s: float,
    bytes_mb_s: float | None = None,
    move_fixed_s: float = 0.05,
    rounds: int = 0,
) -> NDArray[np.void]:
    """PROCESS records. `rates`: of Statistics.rates, per second of wall time; `wanted_mb`: memory
    that its user asked for (needmem, mosrun -m). `homes`: index of each home, -1 for none.
    `link_mb_s`: of memory that moves; `bytes_mb_s`: of what is read and written, if not the same.
    `rounds`: of copying while it runs; 0: it stands still for all of its memory.

    Calls and bytes count per CPU second, since that is what a decision weighs: one that hardly
    computes and asks home all the time has a large price abroad, and goes home."""
    records = np.zeros(len(rates), PROCESS)
    cpu = np.maximum(rates[:, COLUMN["cpu"]], 1e-3)
    moved_mb = (rates[:, COLUMN["read_bytes"]] + rates[:, COLUMN["written_bytes"]]) / 1e6
    records["age_s"] = ages_s
    records["need_mb"] = np.maximum(sizes_mb, wanted_mb)
    records["move_s"] = move_seconds(
        sizes_mb, rates[:, COLUMN["dirty_mb"]], link_mb_s, fixed_s=move_fixed_s, rounds=rounds
    )
    records["calls"] = rates[:, COLUMN["calls"]] / cpu
    records["transfer_s"] = moved_mb / cpu / (bytes_mb_s or link_mb_s)
    records["home"] = homes
    return records


def oldest_movable(
    ages_s: NDArray[np.float64],
    arrived_at: NDArray[np.float64],
    move_s: Floats,
    movable: NDArray[np.bool_],
    *,
    now: float,
    rules: Rules,
) -> NDArray[np.intp]:
    """The processes to be considered, oldest first: may move, and have been here long enough.
    `arrived_at`: -inf for one that started here."""
    stayed = now - arrived_at
    least = np.maximum(rules.residency_s, rules.residency_moves * move_s)
    found = np.flatnonzero(movable & (stayed >= least))
    order = np.argsort(-ages_s[found], kind="stable")[: rules.candidates]
    chosen: NDArray[np.intp] = found[order]
    return chosen


@dataclass
class Promises:
    """Places that this node promised to processes on their way: they count as running and their
    memory as used until they arrive or the promise ends, so that two senders never get the
    same place."""

    _held: dict[Hashable, tuple[float, float]] = field(default_factory=dict)

    def make(self, who: Hashable, need_mb: float, now: float) -> None:
        """Again for the same one: the promise is renewed."""
        self._held[who] = (need_mb, now + PROMISE_S)

    def kept(self, who: Hashable) -> None:
        """It arrived, or will not come. One that was not promised anything is no error."""
        self._held.pop(who, None)

    def standing(self, now: float) -> tuple[int, float]:
        """How many are on their way, and their MB."""
        self._held = {who: held for who, held in self._held.items() if held[1] > now}
        return len(self._held), sum(need for need, _ in self._held.values())
