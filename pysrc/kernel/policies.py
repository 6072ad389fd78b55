"""What the eBPF program does with each system call: at home, and of a guest.

Made from `mosix.syscalls.table` for `mosix.kernel.keeper`, which puts it into the program's maps;
the guest's filter (`mosix.syscalls.filter.wall`) lets through what is hooked here. Only data.
"""

from __future__ import annotations

from functools import cache

from mosix.kernel.intercept import (
    NATIVE,
    OWN_PROC,
    OWN_PROC_AT,
    REDIRECT,
    ByArguments,
    Condition,
)
from mosix.syscalls.shapes import HOME_PID, MASK32, Class, Row
from mosix.syscalls.table import TABLE

#: Policies: a job at home, a guest.
HOME, GUEST = 1, 2

#: Sets of hooks: those that jobs at home need, and those that only guests need.
HOME_HOOKS, GUEST_HOOKS = 0, 1

_OPEN, _OPENAT = 2, 257
_CLOCK_GETTIME, _GETRUSAGE, _TIMES = 228, 98, 100
#: CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID; RUSAGE_SELF, RUSAGE_THREAD, RUSAGE_CHILDREN
_CPU_CLOCKS, _USAGE = (2, 3), (0, 1, -1)
_AT_HOME = frozenset((_OPEN, _OPENAT, _CLOCK_GETTIME, _GETRUSAGE, _TIMES))

#: read, mmap, openat: a kernel in which these are not found hides what it has.
EVERY_KERNELS = frozenset((0, 9, 257))

#: The kernel's function has another name than the call.
_FUNCTIONS = {
    "stat": "newstat",
    "fstat": "newfstat",
    "lstat": "newlstat",
    "uname": "newuname",
    "umount2": "umount",
    "sendfile": "sendfile64",
}


def _one_of(argument: int, values: tuple[int, ...]) -> ByArguments:
    rules = tuple(((Condition(argument, MASK32, each & MASK32),), REDIRECT) for each in values)
    return ByArguments(rules, NATIVE)


def home_actions() -> dict[int, int | ByArguments]:
    """The files /proc/self/{special}, and questions for CPU time: home's kernel does not know what
    was used on other nodes."""
    return {
        _OPEN: OWN_PROC,
        _OPENAT: OWN_PROC_AT,
        _CLOCK_GETTIME: _one_of(0, _CPU_CLOCKS),
        _GETRUSAGE: _one_of(0, _USAGE),
        _TIMES: REDIRECT,
    }


def _action(row: Row) -> int | ByArguments:
    """As the filter does: what it would notify of is redirected."""

    def action(cls: Class) -> int:
        return NATIVE if cls == Class.LOCAL else REDIRECT

    rules: list[tuple[tuple[Condition, ...], int]] = []
    for rule in row.rules:
        if any(test.value == HOME_PID for test in rule.tests):
            return REDIRECT  # only the redirector knows it
        conditions = tuple(
            Condition(test.arg, test.mask, int(test.value), test.differs) for test in rule.tests
        )
        rules.append((conditions, action(rule.then)))
    otherwise = action(row.cls)
    if all(then == otherwise for _, then in rules):
        return otherwise
    return ByArguments(tuple(rules), otherwise)


@cache
def guest_actions() -> dict[int, int | ByArguments]:
    """All that is not simply made where the body is."""
    found = {row.nr: _action(row) for row in TABLE}
    return {nr: action for nr, action in found.items() if action != NATIVE}


def hooks() -> tuple[dict[str, int], dict[str, int]]:
    """The kernel's functions to be hooked with the numbers of their calls, by set."""
    names = {row.nr: _FUNCTIONS.get(row.name, row.name) for row in TABLE}
    home = {names[nr]: nr for nr in _AT_HOME}
    guest = {names[nr]: nr for nr in guest_actions() if nr not in _AT_HOME}
    return home, guest
