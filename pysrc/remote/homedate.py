"""What the date is at home: an estimate with a bound, from questions and answers over the link.

Owned by `mosix.remote.main`, which asks every `INTERVAL_S` seconds and sets the guest's clock. Only
arithmetic: it reads no clock. As in NTP, home's answer was true at some moment between question
and answer; in the middle of both the estimate is off by half of the round trip at most. Between
answers it gets worse, as two clocks run differently.
Home's date is expressed as this node's CLOCK_MONOTONIC plus an offset, so that it does not matter
what date this node has, or when somebody sets it. All times in nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from mosix.errors import ProtocolError

#: Seconds between two questions.
INTERVAL_S = 4.0
#: A kernel that follows a time server lets its clock run up to 500 ppm faster or slower.
_DRIFT = 500e-6
_LAST_DATE = 1 << 62


@dataclass(frozen=True, slots=True)
class Estimate:
    """At `at_ns` (CLOCK_MONOTONIC) home's date was that plus `offset_ns`, give or take
    `error_ns`."""

    offset_ns: int
    error_ns: int
    at_ns: int

    def bound_ns(self, now_ns: int) -> int:
        """How far off it may be at `now_ns`. The answer may be as old as the question."""
        return self.error_ns + int((now_ns - self.at_ns + 2 * self.error_ns) * _DRIFT) + 1


class HomeDate:
    """The best estimate so far."""

    def __init__(self) -> None:
        self.best: Estimate | None = None

    def answered(self, asked_ns: int, date_ns: int, now_ns: int) -> Estimate:
        """Home answered `date_ns` to a question of `asked_ns`; which estimate holds now.

        One that is better than the new one is kept, unless they contradict each other: then
        home's clock has been set. ProtocolError: no such question can have been asked."""
        if not 0 <= asked_ns <= now_ns or date_ns >= _LAST_DATE:
            raise ProtocolError("an impossible answer about the date at home")
        new = Estimate(date_ns - (asked_ns + now_ns) // 2, (now_ns - asked_ns + 1) // 2, now_ns)
        old = self.best
        if old is not None:
            apart = abs(new.offset_ns - old.offset_ns)
            agree = apart <= new.error_ns + old.bound_ns(now_ns)
            if agree and old.bound_ns(now_ns) < new.error_ns:
                return old
        self.best = new
        return new
