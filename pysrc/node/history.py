"""The last moves of this node's jobs, as they happened: a bounded ring, and who is told at once.

`Registry` adds what deputies report; commands ask for what came after the last one that they know
(`mon`), and whoever is to be told of every move, as the system's log is, gives `tell` a function.
Only memory; a new mosd begins with none.
"""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Callable

from mosix.node.requests import MoveList, PastMove
from mosix.wire.mosd_messages import ProcessState

#: Moves that are kept.
MOST_MOVES = 1000

Told = Callable[[PastMove], None]


class History:
    """Moves have numbers from 1 on, without gaps."""

    def __init__(self) -> None:
        self._moves: collections.deque[PastMove] = collections.deque(maxlen=MOST_MOVES)
        self._told: list[Told] = []
        self._began_ns = time.time_ns()

    def tell(self, told: Told) -> None:
        """`told` gets every move from now on, in mosd's thread: it must neither wait nor raise."""
        self._told.append(told)

    def add(self, uid: int, job: str, state: ProcessState) -> None:
        """`state` tells that a process has moved, and where from (`ProcessState.origin`)."""
        move = PastMove(
            number=self._last + 1,
            at_s=time.time(),
            pid=state.pid,
            uid=uid,
            job=job,
            origin=state.origin,
            target=state.where,
            why=state.why,
            nmigs=state.nmigs,
            freeze_ns=state.stats.get("freeze_ns", 0),
            page_bytes=state.stats.get("page_bytes", 0),
        )
        self._moves.append(move)
        for told in self._told:
            told(move)

    def since(self, number: int, began_ns: int) -> MoveList:
        """Those after `number`, as far as they are kept; all of them for who had the number from
        another mosd, which began at another time, or has none."""
        after = number if began_ns == self._began_ns else 0
        newer = itertools.takewhile(lambda move: move.number > after, reversed(self._moves))
        return MoveList(moves=list(newer)[::-1], last=self._last, began_ns=self._began_ns)

    @property
    def _last(self) -> int:
        return self._moves[-1].number if self._moves else 0
