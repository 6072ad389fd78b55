"""What mosix.ko redirects, and what a guest's second wall lets through, are one and the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mosix.kernel import policies
from mosix.kernel.intercept import MAX_CONDITIONS, NATIVE, ByArguments
from mosix.native.listener import special_names
from mosix.syscalls import filter as syscall_filter
from mosix.syscalls.shapes import Class, Row
from mosix.syscalls.table import BY_NAME, TABLE

sys.path.append(str(Path(__file__).resolve().parents[1] / "syscalls"))
import bpf

_I386 = 0x40000003
_ARGUMENTS = [(0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1), (2**64 - 1,) * 6]


def _near(row: Row) -> list[tuple[int, ...]]:
    """Arguments with which each condition of the row holds, and with which it does not."""
    found = list(_ARGUMENTS)
    for rule in row.rules:
        args = [3] * 6
        for test in rule.tests:
            value = test.value if isinstance(test.value, int) else 77
            args[test.arg] = value
            found.append((*args[: test.arg], value, *args[test.arg + 1 :]))
            found.append((*args[: test.arg], value ^ 1, *args[test.arg + 1 :]))
            found.append((*args[: test.arg], value | 0xFF << 32, *args[test.arg + 1 :]))
    return found


def _decided(action: int | ByArguments, args: tuple[int, ...]) -> int:
    """As by_tests() of intercept.bpf.c."""
    if isinstance(action, int):
        return action
    for conditions, then in action.rules:
        if all(
            ((args[each.argument] & each.mask) == each.value) != each.differs for each in conditions
        ):
            return then
    return action.otherwise


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_what_the_portable_filter_notifies_of_is_redirected(row: Row) -> None:
    action = policies.guest_actions().get(row.nr, NATIVE)
    assert not isinstance(action, ByArguments) or action.size <= MAX_CONDITIONS
    for args in _near(row):
        notified = bpf.run(syscall_filter.program(), row.nr, args) == syscall_filter.RET_USER_NOTIF
        # What only the redirector can judge it is asked about.
        assert notified == (_decided(action, args) != NATIVE), args


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_the_wall_lets_through_what_the_module_takes_and_nothing_more(row: Row) -> None:
    hooked = frozenset(nr for group in policies.hooks() for nr in group.values())
    local = row.cls == Class.LOCAL and all(rule.then == Class.LOCAL for rule in row.rules)
    assert (row.nr in hooked) != local or local  # CPU clocks are hooked for home's sake
    for args in _ARGUMENTS:
        assert bpf.run(syscall_filter.wall(), row.nr, args) == syscall_filter.RET_ALLOW
        without = syscall_filter.wall(frozenset((row.nr,)))
        expected = syscall_filter.RET_ALLOW if local else syscall_filter.RET_TRACE
        assert bpf.run(without, row.nr, args) == expected


@pytest.mark.parametrize(
    ("nr", "arch"), [(500, 0xC000003E), (0x40000000, 0xC000003E), (1, _I386), (2**32 - 1, _I386)]
)
def test_the_wall_stops_what_is_in_no_table(nr: int, arch: int) -> None:
    assert bpf.run(syscall_filter.wall(), nr, (0,) * 6, arch) == syscall_filter.RET_TRACE


def test_no_function_is_hooked_twice() -> None:
    home, guest = policies.hooks()
    assert not set(home) & set(guest)
    assert set(policies.home_actions()) == set(home.values())
    assert set(guest.values()) | set(home.values()) >= set(policies.guest_actions())
    assert guest["newstat"] == BY_NAME["stat"].nr


def test_the_names_of_special_files_fit_into_the_programs_map() -> None:
    assert "migrate" in special_names()
    assert all(len(name) < 16 for name in special_names())
