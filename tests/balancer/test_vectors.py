"""Load vectors: what enters is clamped, and merging gives the same whatever the order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mosix.balancer.vectors import (
    ENTRY,
    FIELDS,
    MAX_VERSION,
    NAMES,
    Status,
    VectorTable,
    checked_loads,
    decode_entries,
    pack_loads,
)

NODES = np.arange(1, 6, dtype=np.uint32)
NOW = 1000.0

floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
rows = st.lists(floats, min_size=len(FIELDS), max_size=len(FIELDS))


@st.composite
def one_entry(draw: st.DrawFn) -> np.ndarray:
    """Few versions, so that equal ones with other contents meet."""
    entry = np.zeros(1, ENTRY)
    entry["node"] = draw(st.integers(1, 6))
    entry["version"] = draw(st.integers(1, 4))
    entry["age_ms"] = draw(st.integers(0, 5000))
    entry["status"] = draw(st.sampled_from(Status))
    entry["flags"] = draw(st.integers(0, 3))
    entry["features"] = draw(st.integers(0, 2))
    entry["loads"] = checked_loads(np.array(draw(rows), np.float32))
    return entry


datagrams = st.lists(one_entry(), min_size=0, max_size=5).map(
    lambda entries: np.concatenate([np.zeros(0, ENTRY), *entries])
)


def state(table: VectorTable) -> tuple[bytes, ...]:
    columns = (table.version, table.status, table.born, table.flags, table.features, table.loads)
    return tuple(column.tobytes() for column in columns)


def merged(*parts: np.ndarray) -> tuple[bytes, ...]:
    table = VectorTable(NODES)
    for part in parts:
        table.merge(part, NOW)
    return state(table)


@given(datagrams, datagrams, datagrams)
@settings(max_examples=150, deadline=None)
def test_merge_is_commutative_associative_and_idempotent(
    a: np.ndarray, b: np.ndarray, c: np.ndarray
) -> None:
    assert merged(a, b, c) == merged(c, b, a) == merged(b, np.concatenate([c, a]))
    assert merged(a, a, b, a, b) == merged(a, b)


@given(rows)
@settings(deadline=None)
def test_no_value_outside_its_range_enters(row: list[float]) -> None:
    entry = np.zeros(1, ENTRY)
    entry["node"], entry["version"] = 1, 1
    entry["loads"] = row
    loads = decode_entries(entry.tobytes())["loads"][0]
    for field, value in zip(FIELDS, loads, strict=True):
        assert field.low <= np.float32(value) <= np.float32(field.high), field.name
    assert loads[NAMES.index("free_mb")] <= loads[NAMES.index("memory_mb")]
    assert (checked_loads(loads) == loads).all()


def test_nonsense_makes_a_node_uninviting_rather_than_attractive() -> None:
    row = pack_loads(running=math.nan, cores=math.nan, speed=math.nan, free_mb=math.nan)
    values = dict(zip(NAMES, row.tolist(), strict=True))
    assert values["running"] == 1e5
    assert values["free_mb"] == 0
    assert values["cores"] < 0.1
    assert values["speed"] == 100


@pytest.mark.parametrize(
    ("name", "value"), [("version", 0), ("version", MAX_VERSION), ("status", 4), ("status", 255)]
)
def test_entries_with_an_impossible_version_or_status_are_left_out(name: str, value: int) -> None:
    entries = np.zeros(2, ENTRY)
    entries["node"], entries["version"] = (1, 2), 1
    entries[name][0] = value
    assert decode_entries(entries.tobytes())["node"].tolist() == [2]


def test_unknown_nodes_are_ignored() -> None:
    entries = np.zeros(3, ENTRY)
    entries["node"], entries["version"] = (0, 3, 4_000_000_000), 1
    table = VectorTable(NODES)
    assert table.merge(entries, NOW).tolist() == [2]
    with pytest.raises(KeyError):
        table.index(77)


def test_ages_are_relative_to_the_receivers_own_clock() -> None:
    ours, theirs = VectorTable(NODES), VectorTable(NODES)
    entry = np.zeros(1, ENTRY)
    entry["node"], entry["version"] = 2, 9
    ours.merge(entry, 5.0)
    theirs.merge(decode_entries(ours.entries(np.array([1]), 7.5).tobytes()), 1e6)
    assert theirs.ages(1e6 + 1)[1] == pytest.approx(3.5)


def test_a_newer_version_refutes_every_claim() -> None:
    entry = np.zeros(1, ENTRY)
    entry["node"] = 1
    table = VectorTable(NODES)
    for version, status, alive in ((1, 0, True), (1, 2, False), (1, 1, False), (2, 0, True)):
        entry["version"], entry["status"] = version, status
        table.merge(entry, NOW)
        assert bool(table.alive()[0]) is alive
