"""What a node has not is said before a body is stopped for it, with what to do."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from mosix.remote.room import Room, look, why_not
from mosix.wire.messages import Needs

MEBI = 1 << 20
STACK, CPU = resource.RLIMIT_STACK, resource.RLIMIT_CPU


def needs(**changes: Any) -> Needs:
    usual: dict[str, Any] = {
        "memory": 100 * MEBI,
        "mappings": 100,
        "promised": 200 * MEBI,
        "largest": 150 * MEBI,
        "rlimits": {STACK: 8 * MEBI, CPU: -1},
    }
    return Needs(**(usual | changes))


def room(**changes: Any) -> Room:
    usual: dict[str, Any] = {
        "memory": 1 << 30,
        "mappings": 65530,
        "promise": 1 << 30,
        "largest": 1 << 30,
        "rlimits": {STACK: -1, CPU: -1},
    }
    return Room(**(usual | changes))


@pytest.mark.parametrize(
    ("wanted", "there", "reason", "hint"),
    [
        ({}, {}, "", ""),
        ({}, {"promise": None, "largest": None, "rlimits": {}}, "", ""),
        ({"memory": 1000 * MEBI}, {}, "it needs 1049 MB and 10%, 1074 MB are free", "another"),
        ({"promised": 1000 * MEBI}, {}, "1049 MB and 10% would have to be promised", "overcommit"),
        ({"promised": 1000 * MEBI}, {"promise": None}, "", ""),
        ({}, {"promise": -5 * MEBI}, "promised, 0 MB can be", "overcommit"),
        ({"largest": 1025 * MEBI}, {}, "one of its mappings has 1075 MB", "overcommit"),
        ({"largest": 1025 * MEBI}, {"largest": None}, "", ""),
        ({"mappings": 65500}, {}, "65500 mappings, and no more than 65530", "vm.max_map_count"),
        ({}, {"rlimits": {STACK: MEBI}}, "limit of stack is 8388608", "LimitSTACK=infinity"),
        ({}, {"rlimits": {STACK: 8 * MEBI}}, "", ""),
        ({}, {"rlimits": {CPU: 3600}}, "limit of CPU time is none, mosd's there 3600", "LimitCPU"),
        ({"rlimits": {99: 5}}, {}, "", ""),
    ],
)
def test_what_is_missing_is_named(
    wanted: dict[str, Any], there: dict[str, Any], reason: str, hint: str
) -> None:
    answer = why_not(needs(**wanted), room(**there))
    assert reason in answer[0] and hint in answer[1], answer
    assert bool(answer[0]) == bool(reason)


@pytest.mark.parametrize(
    ("mode", "promise", "largest"), [(0, None, 6144), (1, None, None), (2, 3072, None)]
)
def test_each_way_of_promising_memory_is_read(
    mode: int, promise: int | None, largest: int | None, tmp_path: Path
) -> None:
    (tmp_path / "sys/vm").mkdir(parents=True)
    (tmp_path / "sys/vm/overcommit_memory").write_text(f"{mode}\n")
    (tmp_path / "sys/vm/max_map_count").write_text("1048576\n")
    (tmp_path / "meminfo").write_text(
        "MemTotal:  4194304 kB\nSwapTotal: 2097152 kB\n"
        "CommitLimit: 4194304 kB\nCommitted_AS: 1048576 kB\nHugePages_Total: 0\n"
    )
    found = look(5, tmp_path)
    assert (found.memory, found.mappings) == (5, 1048576)
    assert found.promise == (None if promise is None else promise * MEBI)
    assert found.largest == (None if largest is None else largest * MEBI)


def test_this_node_has_room_for_a_small_body() -> None:
    assert why_not(needs(rlimits={}), look(1 << 30)) == ("", "")
