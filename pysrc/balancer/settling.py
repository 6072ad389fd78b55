"""What makes a decision calm: how many really run here, who failed lately, when memory runs out.

Called by mosd (`mosix.node.decider`) before it asks `policy`. A measurement tells of the second
that is over; whoever came or went since is counted here, else a node would send away twice what it
has too much, and get it back. Pure: time comes as an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final

#: Measurements that are remembered: what was true in both is no blip.
WINDOWS: Final = 2
#: How far ahead memory is looked after, seconds; and the part of it that has to be free then.
AHEAD_S: Final = 3.0
LEAST_FREE: Final = 0.05
#: After a failed move a process is left alone so long, seconds, then twice that.
FIRST_PAUSE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 300.0
#: From so many MB on a move says how fast the link is; how much one counts against those before.
TELLING_MB: Final = 16.0
LEARNED: Final = 0.2


@dataclass(frozen=True)
class _Window:
    start: float
    end: float
    running: float

    def without(self, at: float) -> float:
        """The part of it that was over when something changed at `at`."""
        if self.end <= self.start:
            return float(at >= self.end)
        return min(max((at - self.start) / (self.end - self.start), 0.0), 1.0)


class Population:
    """How many processes run here, from windows of measuring and from who came and went."""

    def __init__(self) -> None:
        self._windows: deque[_Window] = deque(maxlen=WINDOWS)
        #: when, and by how many it changed
        self._changes: list[tuple[float, float]] = []

    def measured(self, start: float, end: float, running: float) -> None:
        """On average so many ran between `start` and `end`."""
        self._windows.append(_Window(start, end, max(running, 0.0)))
        oldest = self._windows[0].start
        self._changes = [change for change in self._changes if change[0] > oldest]

    def changed(self, at: float, by: float) -> None:
        """One that counts `by` came (positive) or went (negative) at that time."""
        self._changes.append((at, by))

    @property
    def known(self) -> bool:
        """Whether enough was measured to decide anything."""
        return len(self._windows) == WINDOWS

    def _now(self) -> list[float]:
        return [
            max(0.0, window.running + sum(by * window.without(at) for at, by in self._changes))
            for window in self._windows
        ]

    @property
    def steady(self) -> float:
        """So many have been running for some time: what a node has too much. 0: unknown."""
        return min(self._now(), default=0.0)

    @property
    def most(self) -> float:
        """So many may be running: what a newcomer has to share with."""
        return max(self._now(), default=0.0)


@dataclass
class Patience:
    """Who is left alone after a failure, for how long: twice as long each time."""

    first_s: float = FIRST_PAUSE_S
    longest_s: float = LONGEST_PAUSE_S
    #: until when, how long, why
    _held: dict[Hashable, tuple[float, float, str]] = field(default_factory=dict)

    def failed(self, who: Hashable, now: float, why: str = "") -> float:
        """It is left alone from now on; for how long, seconds."""
        before = self._held.get(who)
        pause = self.first_s if before is None else min(2 * before[1], self.longest_s)
        self._held[who] = (now + pause, pause, why)
        return pause

    def succeeded(self, who: Hashable) -> None:
        self._held.pop(who, None)

    def left_s(self, who: Hashable, now: float) -> float:
        """0: it need not wait."""
        held = self._held.get(who)
        return max(0.0, held[0] - now) if held else 0.0

    def waiting(self, now: float) -> list[Hashable]:
        """All that are left alone now."""
        return [who for who, held in self._held.items() if held[0] > now]

    def why(self, who: Hashable) -> str:
        """What failed last."""
        held = self._held.get(who)
        return held[2] if held else ""

    def keep(self, known: Iterable[Hashable]) -> None:
        """Forget all others: they ended."""
        wanted = set(known)
        self._held = {who: held for who, held in self._held.items() if who in wanted}


class Link:
    """What moving costs here, learned from moves: MB a second, and seconds besides."""

    def __init__(self, mb_s: float = 200.0, fixed_s: float = 0.05) -> None:
        self.mb_s = mb_s
        self.fixed_s = fixed_s

    def moved(self, still_s: float, mb: float) -> None:
        """A process of `mb` stood still for so long to be moved. A small one says what a move costs
        at least, a large one how fast the link is."""
        if mb < TELLING_MB:
            self.fixed_s += LEARNED * (still_s - self.fixed_s)
        elif still_s > self.fixed_s:
            self.mb_s += LEARNED * (mb / (still_s - self.fixed_s) - self.mb_s)


def shortage_mb(free_mb: float, memory_mb: float, falling_mb_s: float) -> float:
    """MB that should leave, so that `AHEAD_S` from now `LEAST_FREE` of the memory is still free
    if it goes on falling at that rate; 0 if all is well."""
    then = free_mb - AHEAD_S * max(falling_mb_s, 0.0)
    return max(0.0, LEAST_FREE * memory_mb - then)
