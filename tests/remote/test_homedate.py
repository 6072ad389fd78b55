"""The date that a guest reads is home's, within the bound that is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosix.errors import ProtocolError
from mosix.remote.homedate import HomeDate

MS = 1_000_000
TRUE_OFFSET = 1_700_000_000 * 1000 * MS
DELAYS = st.tuples(st.integers(0, 50 * MS), st.integers(0, 50 * MS))


@given(st.lists(st.tuples(st.integers(1, 10_000 * MS), DELAYS), min_size=1, max_size=30))
def test_home_is_never_farther_off_than_the_bound(
    questions: list[tuple[int, tuple[int, int]]],
) -> None:
    """Whatever the network does, and although home's clock runs 400 ppm too fast."""
    date, now = HomeDate(), 0

    def home(at: int) -> int:
        return TRUE_OFFSET + at + at * 4 // 10_000

    for pause, (there, back) in questions:
        asked = now + pause
        now = asked + there + back
        found = date.answered(asked, home(asked + there), now)
        assert found is date.best
        for later in (now, now + 4000 * MS):
            assert abs(later + found.offset_ns - home(later)) <= found.bound_ns(later) + 1


def test_a_better_estimate_is_kept_until_it_is_too_old() -> None:
    date = HomeDate()
    good = date.answered(0, TRUE_OFFSET, MS)
    assert date.answered(10 * MS, TRUE_OFFSET + 20 * MS, 50 * MS) is good
    later = 100_000 * MS
    assert date.answered(later, TRUE_OFFSET + later, later + 40 * MS) is not good


def test_a_clock_that_was_set_is_followed_at_once() -> None:
    date = HomeDate()
    date.answered(0, TRUE_OFFSET, MS)
    found = date.answered(10 * MS, TRUE_OFFSET - 3_600_000 * MS, 110 * MS)
    assert abs(found.offset_ns - (TRUE_OFFSET - 3_600_000 * MS)) < 200 * MS


@pytest.mark.parametrize(("asked", "told", "now"), [(5, 1, 4), (-1, 1, 4), (1, 1 << 62, 4)])
def test_impossible_answers_are_refused(asked: int, told: int, now: int) -> None:
    with pytest.raises(ProtocolError):
        HomeDate().answered(asked, told, now)
