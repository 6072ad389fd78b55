"""Decisions: the formulas as written down, no ping-pong, and what outweighs what."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mosix.balancer.policy import (
    PROCESS,
    Pair,
    Rules,
    View,
    move_seconds,
    relief_of_memory,
)

RULES = Rules(move_factor=1.0)


def view(
    running: list[float],
    cores: list[float] | None = None,
    speed: list[float] | None = None,
    *,
    free: list[float] | None = None,
    rules: Rules = RULES,
    usable: list[bool] | None = None,
    call_s: list[float] | None = None,
) -> View:
    n = len(running)

    def column(values: list[float] | None, default: float) -> np.ndarray:
        return np.array([default] * n if values is None else values, np.float32)

    return View(
        column(running, 0),
        column(cores, 1),
        1 / column(speed, 1),
        column(free, 1000),
        column(None, 1000),
        rules=rules,
        usable=None if usable is None else np.array(usable),
        call_s=None if call_s is None else np.array(call_s, np.float32),
    )


def process(
    *,
    age: float = 10,
    need: float = 10,
    move: float = 0.1,
    calls: float = 0,
    transfer: float = 0,
    home: int = -1,
) -> np.ndarray:
    return np.array([(age, need, move, calls, transfer, home)], PROCESS)


# ---- placement ----


def test_a_process_starts_where_it_runs_fastest() -> None:
    assert view([0, 0, 0], speed=[1, 3, 2]).place(process(), 3) == [1, 2, 0]
    assert view([2, 2, 2], cores=[1, 2, 4]).place(process(), 1) == [2]
    # half of a core of twice the speed is as good as a core, and there is an emptier one
    assert view([1, 0, 0], speed=[2, 1, 1.5]).place(process(), 3)[0] == 2


def test_a_process_does_not_start_where_it_does_not_fit_if_there_is_room_elsewhere() -> None:
    crowded = view([0, 9, 9], free=[5, 20, 9])
    assert crowded.place(process(need=10), 3) == [1, 0, 2]


def test_unusable_nodes_are_never_chosen() -> None:
    nodes = view([0, 5, 0], usable=[False, True, False])
    assert nodes.place(process(), 3) == [1]
    nodes = view([9, 0, 0], usable=[True, False, False])
    assert nodes.moves(0, process()) == []


def test_a_promised_place_counts_at_once() -> None:
    nodes = view([0, 0])
    first = nodes.place(process(), 1)[0]
    nodes.reserve(first, 10)
    assert nodes.place(process(), 1)[0] != first


def test_a_process_that_calls_home_all_the_time_starts_at_home() -> None:
    nodes = view([1, 0], cores=[1, 1])
    assert nodes.place(process(home=0), 1) == [1]
    assert nodes.place(process(home=0, calls=20_000), 1) == [0]
    assert nodes.place(process(home=0, transfer=1.5), 1) == [0]


# ---- moves ----


def test_the_gain_of_a_move_is_what_the_formula_says() -> None:
    rules = Rules(move_factor=2.0, memory_weight=0.0)
    nodes = view([3, 0], rules=rules)
    (choice,) = nodes.moves(0, process(age=10, move=0.5))
    # itself: 3 -> 1; two others: 3 -> 2 each; a fifth of 3 to be gained; for 10 s; less twice
    # half a second
    assert choice.value == pytest.approx(10 * (2 + 2 - 0.6) - 1)


def test_a_move_that_gains_little_is_not_made() -> None:
    one = process(age=1e6)
    assert view([1, 0], speed=[1, 1.2]).moves(0, one) == []
    assert view([1, 0], speed=[1, 1.3]).moves(0, one)


def test_a_move_must_pay_for_the_standstill() -> None:
    assert view([2, 0]).moves(0, process(age=0.01, move=1.0)) == []
    assert view([2, 0]).moves(0, process(age=10, move=1.0))


def test_a_single_process_leaves_a_slow_node_for_a_fast_idle_one() -> None:
    assert view([1, 0], speed=[1, 2]).moves(0, process(age=10))[0].node == 1
    assert view([1, 0], speed=[2, 1]).moves(0, process(age=10)) == []


def test_the_oldest_process_is_worth_most() -> None:
    three = np.concatenate([process(age=5), process(age=50), process(age=20)])
    assert view([3, 0]).moves(0, three)[0].process == 1


def test_a_process_heavy_in_calls_goes_home_even_if_home_is_busier() -> None:
    nodes = view([2, 1], cores=[1, 1])
    assert nodes.moves(1, process(age=10, home=0)) == []
    (choice,) = nodes.moves(1, process(age=10, home=0, calls=100_000))
    assert choice.node == 0
    assert nodes.moves(0, process(age=10, home=0, calls=100_000)) == []


def test_a_slow_link_keeps_those_at_home_who_need_it() -> None:
    near, far = view([2, 0], call_s=[0, 1e-5]), view([2, 0], call_s=[0, 1e-1])
    talker = process(age=10, home=0, calls=1000)
    assert near.moves(0, talker)
    assert far.moves(0, talker) == []


def test_no_process_moves_where_it_does_not_fit() -> None:
    assert view([9, 0], free=[1000, 50]).moves(0, process(need=51, age=100)) == []
    assert view([9, 0], free=[1000, 50]).moves(0, process(need=50, age=100))


def test_a_full_node_is_relieved_though_its_processor_is_not() -> None:
    nodes = view([1, 1], cores=[4, 4], free=[0, 900])
    assert nodes.moves(0, process(need=300, age=30))[0].node == 1
    assert view([1, 1], cores=[4, 4], free=[600, 900]).moves(0, process(need=10, age=10)) == []


def test_paging_outweighs_everything() -> None:
    nodes = view([1, 3], free=[0, 500], cores=[1, 1])
    assert nodes.moves(0, process(need=100, age=10)) == []
    assert nodes.moves(0, process(need=100, age=10), slow=10.0)[0].node == 1


def test_moves_come_best_first_and_of_different_nodes() -> None:
    many = np.concatenate([process(age=a) for a in (1, 5, 9)])
    found = view([5, 0, 1, 0, 2], speed=[1, 1, 1, 2, 1]).moves(0, many, count=3)
    assert [choice.node for choice in found] == [3, 1, 2]
    assert [choice.value for choice in found] == sorted((c.value for c in found), reverse=True)


columns = st.integers(2, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 9), min_size=n, max_size=n),
        st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=n, max_size=n),
        st.lists(st.floats(0, 1000, width=32), min_size=n, max_size=n),
    )
)
some = st.lists(
    st.tuples(
        st.floats(0, 1e4, width=32),
        st.floats(1, 500, width=32),
        st.floats(0, 1, width=32),
        st.floats(0, 1e4, width=32),
        st.floats(0, 1, width=32),
        st.integers(-1, 1),
    ),
    min_size=1,
    max_size=6,
)


def expected_gain(nodes: View, here: int, there: int, one: np.void) -> float:
    """The formula of policy.py, slowly."""

    def delay(i: int, k: float) -> float:
        return max(1.0, k / nodes.cores[i]) * nodes.pace[i]

    def memory(i: int, free: float) -> float:
        return float(max(8, len(nodes.running)) ** (-free / nodes.memory_mb[i]))

    def abroad(i: int) -> float:
        return 0.0 if i == one["home"] else one["calls"] * RULES.call_s + one["transfer_s"]

    k, j, m = nodes.running[here], nodes.running[there], one["need_mb"]
    free_here, free_there = nodes.free_mb[here], nodes.free_mb[there]
    relief = delay(here, k) + (k - 1) * (delay(here, k) - delay(here, k - 1))
    relief += memory(here, free_here) - memory(here, free_here + m) + abroad(here)
    harm = delay(there, j + 1) + j * (delay(there, j + 1) - delay(there, j))
    harm += memory(there, free_there - m) - memory(there, free_there) + abroad(there)
    harm += RULES.margin * delay(here, k)
    return float(one["age_s"] * (relief - harm) - RULES.move_factor * one["move_s"])


@given(columns, some)
@settings(max_examples=150, deadline=None)
def test_the_fast_loops_compute_the_formula(
    parts: tuple[list[float], ...], listed: list[tuple[float, ...]]
) -> None:
    nodes = view(*parts[:3], free=parts[3])
    nodes.running[0] += 1
    records = np.array(listed, PROCESS)
    found = nodes.moves(0, records, count=16)
    scale = 1e-3 * float(records["age_s"].max() + 1) * 50
    for choice in found:
        one = records[choice.process]
        assert choice.value == pytest.approx(expected_gain(nodes, 0, choice.node, one), abs=scale)
        assert one["need_mb"] <= nodes.free_mb[choice.node]
    best = max(
        (
            expected_gain(nodes, 0, i, one)
            for i in range(1, len(nodes.running))
            for one in records
            if one["need_mb"] <= nodes.free_mb[i]
        ),
        default=0.0,
    )
    assert (found[0].value if found else 0.0) == pytest.approx(max(0.0, best), abs=scale)


@given(columns, some)
@settings(max_examples=100, deadline=None)
def test_nothing_moves_back_and_forth(
    parts: tuple[list[float], ...], listed: list[tuple[float, ...]]
) -> None:
    """All nodes move what gains most, again and again, on true numbers: it ends, and no process
    ever goes straight back."""
    nodes = view(*parts[:3], free=parts[3])
    records = np.array(listed, PROCESS)
    where = [k % len(nodes.running) for k in range(len(records))]
    for k in where:
        nodes.running[k] += 1
    came_from = [-1] * len(records)
    for _ in range(200):
        moved = False
        for here in range(len(nodes.running)):
            mine = [p for p, node in enumerate(where) if node == here]
            if not mine:
                continue
            found = nodes.moves(here, np.ascontiguousarray(records[mine]), count=1)
            if not found:
                continue
            moved, p, there = True, mine[found[0].process], found[0].node
            assert there != came_from[p] or len(mine) > 1 or nodes.running[here] > 1
            need = float(records["need_mb"][p])
            where[p], came_from[p] = there, here
            nodes.running[here] -= 1
            nodes.free_mb[here] += need
            nodes.reserve(there, need)
            back = nodes.moves(there, records[p : p + 1], count=16)
            assert here not in [choice.node for choice in back]
        if not moved:
            return
    pytest.fail("it never ends")


@given(columns, some)
@settings(max_examples=100, deadline=None)
def test_the_handshake_computes_the_same_gain_as_the_view(
    parts: tuple[list[float], ...], listed: list[tuple[float, ...]]
) -> None:
    running, cores, speed, free = (column[:2] for column in parts)
    nodes = view(running, cores, speed, free=free)
    nodes.running[0] += 1
    records = np.array(listed, PROCESS)
    ends = [
        (nodes.running[i], nodes.cores[i], nodes.pace[i], nodes.free_mb[i], 1000) for i in (0, 1)
    ]
    found = nodes.moves(0, records, count=1)
    assert Pair(RULES, 2).gain(*ends, records) == (found[0] if found else None)


# ---- the rest ----


def test_copying_while_it_runs_shortens_the_standstill_unless_pages_are_dirtied_too_fast() -> None:
    assert move_seconds(1000, 0, 1000) == pytest.approx(0.05)
    assert move_seconds(1000, 1000, 1000) == pytest.approx(1.05)
    assert move_seconds(1000, 500, 1000) == pytest.approx(0.05 + 1 / 16)
    assert move_seconds(1000, 0, 1000, rounds=0) == pytest.approx(1.05)


def test_the_smallest_sufficient_process_relieves_memory() -> None:
    sizes = np.array([10, 500, 80, 200], np.float32)
    everyone = np.ones(4, np.bool_)
    assert relief_of_memory(60, sizes, everyone) == 2
    assert relief_of_memory(600, sizes, everyone) == 1
    assert relief_of_memory(60, sizes, np.array([True, False, False, True])) == 3
    assert relief_of_memory(60, sizes, ~everyone) == -1


def test_columns_that_c_could_not_read_are_refused() -> None:
    good = np.ones(4, np.float32)
    wide = np.ones(8, np.float32)[::2]
    with pytest.raises(ValueError, match="contiguous"):
        View(wide, good, good, good, good, rules=RULES)
