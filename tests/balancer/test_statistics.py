"""Decaying statistics: rates are true at every age, forgetting is as fast as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosix.balancer.statistics import COLUMN, SLOW_DECAY, STATISTICS, Statistics

ONE = np.ones((1, len(STATISTICS)))


@given(st.integers(0, 10_000), st.lists(st.floats(0.1, 20), min_size=1, max_size=30))
def test_a_constant_rate_is_exact_from_the_first_second_on(
    decayrate: int, windows: list[float]
) -> None:
    statistics = Statistics()
    row = np.array([statistics.add(1, decayrate=decayrate)])
    for window in windows:
        statistics.advance(window, row, 3 * window * ONE)
        assert statistics.rates(row)[0] == pytest.approx([3] * len(STATISTICS))


def test_decayrate_0_knows_only_the_newest_window_and_10000_never_forgets() -> None:
    statistics = Statistics()
    rows = np.array([statistics.add(rate, decayrate=rate) for rate in (0, 10_000)])
    for amount in (9.0, 9.0, 3.0):
        statistics.advance(1.0, rows, np.repeat(amount * ONE, 2, axis=0))
    assert statistics.rates(rows)[:, 0].tolist() == [3.0, 7.0]


def test_half_is_forgotten_after_27_seconds_by_default() -> None:
    statistics = Statistics()
    row = np.array([statistics.add(1)])
    for second in range(1000):
        statistics.advance(1.0, row, ONE * (1 if second < 973 else 0))
    assert statistics.rates(row)[0, 0] == pytest.approx(0.5, abs=0.01)
    assert pytest.approx(0.5 ** (1 / 27.4), abs=1e-4) == SLOW_DECAY / 1e4


def test_the_past_decays_with_time_not_with_the_number_of_measurements() -> None:
    coarse, fine = Statistics(), Statistics()
    row = np.array([coarse.add(1, decayrate=5000)])
    fine.add(1, decayrate=5000)
    coarse.advance(1.0, row, 4 * ONE)
    fine.advance(1.0, row, 4 * ONE)
    coarse.advance(2.0, row, 0 * ONE)
    for _ in range(2):
        fine.advance(1.0, row, 0 * ONE)
    assert coarse.rates(row)[0, 0] == pytest.approx(1 / 2.25)
    assert fine.rates(row)[0, 0] == pytest.approx(1 / 1.75)


def test_clear_forgets_what_was_done_but_not_the_age() -> None:
    statistics = Statistics()
    row = np.array([statistics.add("job", age_s=5)])
    statistics.advance(1.0, row, ONE)
    statistics.clear("job")
    assert statistics.rates(row).sum() == 0
    assert statistics.ages(row).tolist() == [6.0]


def test_cpujob_leaves_calls_and_io_out_and_can_be_taken_back() -> None:
    statistics = Statistics()
    row = np.array([statistics.add(1, cpujob=True)])
    statistics.advance(1.0, row, ONE)
    rates = dict(zip(STATISTICS, statistics.rates(row)[0].tolist(), strict=True))
    assert rates["calls"] == rates["read_bytes"] == rates["written_bytes"] == 0
    assert rates["cpu"] == rates["dirty_mb"] == 1
    statistics.set_cpujob(1, False)
    assert statistics.rates(row)[0, COLUMN["calls"]] == 1


def test_counters_that_ran_backwards_count_as_nothing() -> None:
    statistics = Statistics()
    row = np.array([statistics.add(1)])
    statistics.advance(1.0, row, -5 * ONE)
    statistics.advance(1.0, row, np.nan * ONE)
    statistics.advance(0.0, row, 5 * ONE)
    assert statistics.rates(row).sum() == 0


def test_many_processes_come_and_go_without_mixing() -> None:
    statistics = Statistics()
    rows = {name: statistics.add(name) for name in range(100)}
    assert len(set(rows.values())) == 100
    amounts = np.arange(100)[:, None] * np.ones(len(STATISTICS))
    statistics.advance(1.0, statistics.rows(list(range(100))), amounts)
    for name in range(0, 100, 2):
        statistics.remove(name)
    new = [statistics.add(("new", k)) for k in range(70)]
    assert statistics.rates(np.array(new)).sum() == 0
    odd = statistics.rows(list(range(1, 100, 2)))
    assert statistics.rates(odd)[:, 0].tolist() == list(range(1, 100, 2))
    assert len(statistics) == 120


@pytest.mark.parametrize("decayrate", [-1, 10_001])
def test_an_impossible_decayrate_is_refused(decayrate: int) -> None:
    statistics = Statistics()
    with pytest.raises(ValueError, match="decayrate"):
        statistics.add(1, decayrate=decayrate)
    statistics.add(1)
    with pytest.raises(ValueError, match="decayrate"):
        statistics.set_decayrate(1, decayrate)
    with pytest.raises(ValueError, match="already"):
        statistics.add(1)
