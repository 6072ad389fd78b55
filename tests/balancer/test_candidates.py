"""Who may take guests, what a process costs, which places are promised."""

from __future__ import annotations

import numpy as np
import pytest
from mosix.balancer.candidates import (
    PROMISE_S,
    Promises,
    oldest_movable,
    processes,
    usable_nodes,
    view_of,
)
from mosix.balancer.policy import Rules
from mosix.balancer.statistics import COLUMN, STATISTICS
from mosix.balancer.vectors import COLUMN as FIELD
from mosix.balancer.vectors import ENTRY, Flags, Status, VectorTable, pack_loads

NOW = 1000.0


def table_of(n: int = 6) -> VectorTable:
    table = VectorTable(np.arange(1, n + 1, dtype=np.uint32))
    entries = np.zeros(n, ENTRY)
    entries["node"], entries["version"] = table.nodes, 1
    entries["loads"] = pack_loads(
        running=2, inbound=1, cores=4, speed=20_000, memory_mb=1000, free_mb=600, guest_limit=10
    )
    table.merge(entries, NOW - 1)
    return table


def test_only_nodes_that_would_take_a_guest_are_usable() -> None:
    table = table_of(8)
    table.flags[1] = Flags.BLOCK
    table.status[2] = Status.SUSPECT
    table.status[3] = Status.DEAD
    table.born[4] = NOW - 100
    table.column("guests")[5] = 9  # and one is on its way
    table.flags[6] = Flags.DRAIN
    compatible = np.ones(8, np.bool_)
    compatible[7] = False
    usable = usable_nodes(table, 0, NOW, compatible)
    assert usable.tolist() == [True] + [False] * 7
    table.flags[0] = Flags.BLOCK
    assert usable_nodes(table, 0, NOW, compatible)[0]


def test_a_view_counts_promised_places_and_leaves_the_table_alone() -> None:
    table = table_of(2)
    view = view_of(table, np.ones(2, np.bool_), Rules())
    assert view.running.tolist() == [3, 3]
    assert view.pace.tolist() == [0.5, 0.5]
    view.reserve(0, 100)
    assert table.column("running")[0] == 2
    assert table.loads[FIELD["free_mb"], 0] == 600


def test_calls_and_bytes_count_for_each_second_of_cpu() -> None:
    rates = np.zeros((2, len(STATISTICS)))
    rates[:, COLUMN["cpu"]] = (0.5, 0)
    rates[:, COLUMN["calls"]] = (100, 100)
    rates[:, COLUMN["read_bytes"]] = 1e6
    rates[:, COLUMN["written_bytes"]] = 3e6
    sizes, wanted = np.array([50.0, 50.0]), np.array([0.0, 80.0])
    found = processes(
        rates, np.array([7.0, 8.0]), sizes, wanted, np.array([3, -1], np.int32), link_mb_s=100
    )
    assert found["calls"].tolist() == pytest.approx([200, 100_000])
    assert found["transfer_s"][0] == pytest.approx(4 / 0.5 / 100)
    assert found["need_mb"].tolist() == [50, 80]
    assert found["age_s"].tolist() == [7, 8]
    assert found["home"].tolist() == [3, -1]


def test_who_just_arrived_or_may_not_move_is_not_considered() -> None:
    rules = Rules(residency_s=2, residency_moves=4, candidates=2)
    ages = np.array([5.0, 50, 500, 20, 30])
    arrived = np.array([-np.inf, NOW - 1, NOW - 3, -np.inf, NOW - 10])
    move = np.array([0.1, 0.1, 1.0, 0.1, 0.1], np.float32)
    everyone = np.ones(5, np.bool_)
    assert oldest_movable(ages, arrived, move, everyone, now=NOW, rules=rules).tolist() == [4, 3]
    everyone[4] = False
    assert oldest_movable(ages, arrived, move, everyone, now=NOW, rules=rules).tolist() == [3, 0]


def test_promises_stand_until_kept_or_stale() -> None:
    promises = Promises()
    promises.make("a", 100, NOW)
    promises.make("b", 50, NOW + 5)
    promises.make("b", 70, NOW + 6)
    assert promises.standing(NOW + 6) == (2, 170)
    promises.kept("a")
    promises.kept("never promised")
    assert promises.standing(NOW + 6) == (1, 70)
    assert promises.standing(NOW + 6 + PROMISE_S) == (0, 0)
