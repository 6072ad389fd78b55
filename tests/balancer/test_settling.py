"""Decisions are calm: nobody is counted twice, failures are not repeated, memory lasts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosix.balancer.policy import PROCESS, Pair, Rules
from mosix.balancer.settling import (
    AHEAD_S,
    LEAST_FREE,
    Link,
    Patience,
    Population,
    shortage_mb,
)


def test_who_has_left_since_the_measurement_is_not_sent_away_again() -> None:
    population = Population()
    population.measured(0, 1, 4)
    population.measured(1, 2, 4)
    population.changed(2.1, -1)
    assert (population.steady, population.most) == (3, 3)
    # half of the next second it was still there
    population.changed(2.5, -1)
    population.measured(2, 3, 2.6)
    assert population.steady == pytest.approx(2.0)


def test_a_blip_is_nothing_to_send_away_but_something_to_reckon_with() -> None:
    population = Population()
    assert not population.known
    population.measured(0, 1, 0.2)
    population.measured(1, 2, 5)
    assert population.known
    assert population.steady == pytest.approx(0.2)
    assert population.most == 5
    population.measured(2, 3, 5)
    assert population.steady == 5
    population.measured(3, 4, 1)
    assert population.steady == 1


changes = st.lists(st.tuples(st.floats(0, 20), st.sampled_from((-1.0, 1.0))), max_size=12).map(
    sorted
)


@given(changes, st.integers(0, 10))
def test_processes_that_always_run_are_counted_exactly_whenever_they_come_and_go(
    events: list[tuple[float, float]], first: int
) -> None:
    """What the meter measures plus what is known of changes is how many there are now."""
    population, running, end = Population(), float(first), 0.0
    kept: list[tuple[float, float]] = []
    for at, by in events:
        if running + sum(b for _, b in kept) + by >= 0:
            kept.append((at, by))

    def there(time: float) -> float:
        return running + sum(by for at, by in kept if at <= time)

    told = 0
    while end < 22:
        start, end = end, end + 1.0
        pieces = sorted({start, end, *(at for at, _ in kept if start < at < end)})
        average = sum((b - a) * there((a + b) / 2) for a, b in itertools.pairwise(pieces))
        while told < len(kept) and kept[told][0] <= end:
            population.changed(*kept[told])
            told += 1
        population.measured(start, end, average / (end - start))
        assert population.steady == pytest.approx(there(end), abs=1e-6)
        assert population.most == pytest.approx(there(end), abs=1e-6)


def test_each_failure_is_waited_for_twice_as_long_until_one_succeeds() -> None:
    patience = Patience(first_s=5, longest_s=30)
    assert [patience.failed("a", 0, "why") for _ in range(5)] == [5, 10, 20, 30, 30]
    assert patience.left_s("a", 10) == 20
    assert patience.why("a") == "why"
    assert patience.left_s("a", 31) == patience.left_s("b", 0) == 0
    assert patience.waiting(10) == ["a"]
    patience.succeeded("a")
    assert patience.failed("a", 0) == 5
    patience.keep([])
    assert patience.failed("a", 0) == 5


@given(st.floats(0, 1e6), st.floats(1, 1e6), st.floats(-1e5, 1e5))
def test_memory_is_short_before_it_is_used_up(free: float, total: float, falling: float) -> None:
    short = shortage_mb(free, total, falling)
    then = free - AHEAD_S * max(falling, 0)
    assert (short > 0) == (then < LEAST_FREE * total)
    assert short <= LEAST_FREE * total + AHEAD_S * max(falling, 0)


def test_large_moves_tell_how_fast_the_link_is_and_small_ones_what_a_move_costs() -> None:
    link = Link(mb_s=200, fixed_s=0.05)
    for _ in range(100):
        link.moved(0.03, 1)
        link.moved(0.03 + 500 / 1000, 500)
    assert link.fixed_s == pytest.approx(0.03, rel=0.1)
    assert link.mb_s == pytest.approx(1000, rel=0.1)
    link.moved(0.001, 500)  # impossible: says nothing
    assert link.mb_s == pytest.approx(1000, rel=0.1)


node = st.tuples(
    st.integers(0, 40),
    st.sampled_from((1.0, 2.0, 4.0, 16.0)),
    st.sampled_from((0.5, 1.0, 2.0)),
    st.floats(0, 1000),
    st.just(1000.0),
)


weights = st.tuples(st.floats(0.1, 1e5), st.floats(0, 900), st.floats(0.01, 5), st.floats(0, 1e4))


@given(node, node, weights, st.sampled_from((-1, 0, 1)))
def test_with_true_numbers_nobody_is_sent_back_and_none_where_it_does_not_fit(
    here: tuple[float, ...],
    there: tuple[float, ...],
    weight: tuple[float, float, float, float],
    home: int,
) -> None:
    pair = Pair(Rules(), 8)
    process = np.zeros(1, PROCESS)
    for name, value in zip(("age_s", "need_mb", "move_s", "calls"), weight, strict=True):
        process[name] = value
    need = weight[1]
    process["home"] = home
    here = (here[0] + 1, *here[1:3], min(here[3], 1000 - need), here[4])
    if pair.gain(here, there, process) is None:
        return
    assert need <= there[3] + 1e-3
    after_here = (here[0] - 1, *here[1:3], here[3] + need, here[4])
    after_there = (there[0] + 1, *there[1:3], there[3] - need, there[4])
    process["home"] = {0: 1, 1: 0, -1: -1}[home]
    assert pair.gain(after_there, after_here, process) is None
