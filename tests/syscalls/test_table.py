"""The system call table: every call has a row, and what is generated from it agrees with it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import bpf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mosix.native._native import ffi, lib
from mosix.syscalls import shapes
from mosix.syscalls.descriptors import packed
from mosix.syscalls.filter import RET_ALLOW, RET_USER_NOTIF, program
from mosix.syscalls.shapes import NO_ARG, Class, Kind, Row, Special
from mosix.syscalls.table import BY_NAME, BY_NR, REASONS, TABLE

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
PROGRAM = program()
ALLOWED, NOTIFIED = RET_ALLOW, RET_USER_NOTIF
U64 = st.integers(0, 2**64 - 1)
# numbers that conditions look at, among random ones
WORDS = st.one_of(U64, st.integers(0, 70), st.sampled_from([0x22, 0x21, 0x32, 0x4022, 2**32, 15]))


def rows() -> list[object]:
    return [pytest.param(row, id=row.name) for row in TABLE]


def test_numbers_and_names_are_unique() -> None:
    assert len(BY_NR) == len(BY_NAME) == len(TABLE)


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers here to compare with")
def test_every_call_of_the_kernel_headers_has_its_row() -> None:
    known = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text()))
    assert {name: BY_NAME[name].nr for name in known} == {n: int(v) for n, v in known.items()}


@pytest.mark.parametrize("row", rows())
def test_a_row_can_be_marshalled(row: Row) -> None:
    for args in (row.args, *row.variants.values()):
        assert len(args) <= 6
        for shape in args:
            if shape.kind == Kind.OUT_LENGTH_AT:
                assert args[shape.length_arg].kind == Kind.INOUT
                assert args[shape.length_arg].size == 4
            elif shape.length_arg != NO_ARG:
                assert args[shape.length_arg].kind == Kind.VALUE, "a length that is a pointer"
        counted = [shape for shape in args if shape.kind == Kind.OUT_RESULT]
        assert len(counted) <= 1
        assert all(shape.unit for shape in counted)
    assert bool(row.variants) == (row.key_arg != NO_ARG)
    if row.timeout:
        kind = row.args[row.timeout_arg].kind
        special = row.special in (Special.SELECT, Special.PSELECT, Special.RECVMMSG)
        assert special or (kind == Kind.VALUE) == (row.timeout == shapes.Timeout.MILLISECONDS)
    if row.special == Special.TRANSFER:
        assert row.args[1].length_arg == 2
    if row.cls == Class.AT_HOME or any(rule.then == Class.AT_HOME for rule in row.rules):
        assert row.reason in REASONS


def test_the_structs_here_are_those_of_the_c_side() -> None:
    table = packed()
    redirect = lib.mx_redirect_new(-1, -1, 1, 1, table, len(table))
    assert redirect != ffi.NULL
    lib.mx_redirect_free(redirect)
    for wrong in (table[:-1], table + b"\0", b"\1" + table[1:], b""):
        assert lib.mx_redirect_new(-1, -1, 1, 1, wrong, len(wrong)) == ffi.NULL


def test_descriptors_are_found_by_number_and_key() -> None:
    table = packed()
    magic, _, count, _ = struct.unpack_from("<IIII", table)
    assert magic == 0x7473786D
    size = 24 + 6 * 8
    start = 16 + 512 * 4
    for nr in range(512):
        first, n = struct.unpack_from("<HH", table, 16 + 4 * nr)
        if nr not in BY_NR:
            assert n == 0
            continue
        row = BY_NR[nr]
        assert n == 1 + len(row.variants) and first + n <= count
        heads = [struct.unpack_from("<IH", table, start + (first + i) * size) for i in range(n)]
        assert [key for key, _ in heads[1:]] == sorted(row.variants)
        assert {number for _, number in heads} == {nr}


def expected(nr: int, args: tuple[int, ...]) -> int:
    row = BY_NR.get(nr)
    if row is None:
        return NOTIFIED
    # what depends on the PID at home cannot be judged by the filter, and is never local
    return ALLOWED if row.decide(args, -1)[0] == Class.LOCAL else NOTIFIED


@settings(max_examples=1500, deadline=None)
@given(nr=st.integers(0, 480), args=st.tuples(*[WORDS] * 6))
def test_the_filter_allows_exactly_what_is_local(nr: int, args: tuple[int, ...]) -> None:
    assert bpf.run(PROGRAM, nr, args) == expected(nr, args)


@settings(max_examples=1500, deadline=None)
@given(row=st.sampled_from([row for row in TABLE if row.rules]), args=st.tuples(*[WORDS] * 6))
def test_the_filter_judges_arguments_as_the_rows_do(row: Row, args: tuple[int, ...]) -> None:
    assert bpf.run(PROGRAM, row.nr, args) == expected(row.nr, args)


@given(nr=st.integers(0, 2**32 - 1), arch=st.integers(0, 2**32 - 1), args=st.tuples(*[U64] * 6))
def test_other_entries_are_notified(nr: int, arch: int, args: tuple[int, ...]) -> None:
    if arch != 0xC000003E:
        assert bpf.run(PROGRAM, nr, args, arch) == NOTIFIED
    assert bpf.run(PROGRAM, nr | 0x40000000, args) == NOTIFIED


def test_the_filter_is_short() -> None:
    """A hot call passes few instructions: the search is binary."""
    assert len(PROGRAM) // 8 < 400


@pytest.mark.parametrize(
    ("name", "args", "cls"),
    [
        ("mmap", (0, 4096, 3, 0x22, 2**32 - 1, 0), Class.LOCAL),
        ("mmap", (0, 4096, 3, 0x20022, 2**64 - 1, 0), Class.LOCAL),
        ("mmap", (0, 4096, 3, 0x21, 2**32 - 1, 0), Class.AT_HOME),
        ("mmap", (0, 4096, 1, 0x02, 3, 0), Class.AT_HOME),
        ("mmap", (0, 4096, 3, 0x40022, 0, 0), Class.AT_HOME),
        ("mremap", (4096, 4096, 8192, 1, 0, 0), Class.LOCAL),
        ("mremap", (4096, 0, 8192, 1, 0, 0), Class.AT_HOME),
        ("prctl", (15, 1, 0, 0, 0, 0), Class.BOTH),
        ("prctl", (16, 1, 0, 0, 0, 0), Class.LOCAL),
        ("setitimer", (0, 1, 0, 0, 0, 0), Class.HOME),
        ("setitimer", (1, 1, 0, 0, 0, 0), Class.LOCAL),
        ("rt_sigprocmask", (0, 0, 1, 8, 0, 0), Class.LOCAL),
        ("rt_sigprocmask", (0, 1, 0, 8, 0, 0), Class.BOTH),
        ("ppoll", (1, 1, 0, 1, 8, 0), Class.HOME),
        ("clock_gettime", (1, 1, 0, 0, 0, 0), Class.LOCAL),
        ("clock_gettime", (2, 1, 0, 0, 0, 0), Class.HERE),
        ("clock_gettime", (0, 1, 0, 0, 0, 0), Class.HERE),
        ("clock_gettime", (5, 1, 0, 0, 0, 0), Class.HERE),
        ("gettimeofday", (1, 0, 0, 0, 0, 0), Class.HERE),
        ("gettimeofday", (1, 1, 0, 0, 0, 0), Class.HOME),
        ("time", (0, 0, 0, 0, 0, 0), Class.HERE),
        ("clock_nanosleep", (0, 1, 1, 1, 0, 0), Class.WAIT),
        ("clock_nanosleep", (1, 0, 1, 1, 0, 0), Class.WAIT),
        ("clock_nanosleep", (2, 0, 1, 1, 0, 0), Class.AT_HOME),
        ("prlimit64", (0, 7, 0, 1, 0, 0), Class.HOME),
        ("prlimit64", (0, 7, 1, 0, 0, 0), Class.BOTH),
        ("prlimit64", (77, 7, 1, 0, 0, 0), Class.BOTH),
        ("prlimit64", (78, 7, 1, 0, 0, 0), Class.HOME),
        ("execve", (1, 1, 1, 0, 0, 0), Class.AT_HOME),
        ("futex", (1, 0, 0, 0, 0, 0), Class.LOCAL),
        ("futex", (1, 0x89, 0, 1, 0, 0), Class.LOCAL),
        ("futex", (1, 0x189, 0, 0, 0, 0), Class.LOCAL),
        ("futex", (1, 0x189, 0, 1, 0, 0), Class.AT_HOME),
        ("futex_wait", (1, 0, 0, 2, 1, 0), Class.AT_HOME),
        ("futex_wait", (1, 0, 0, 2, 1, 1), Class.LOCAL),
        ("getrusage", (0, 1, 0, 0, 0, 0), Class.HERE),
        ("getrusage", (2**32 - 1, 1, 0, 0, 0, 0), Class.HOME),
    ],
)
def test_a_call_runs_where_it_should(name: str, args: tuple[int, ...], cls: Class) -> None:
    assert BY_NAME[name].decide(args, 77)[0] == cls
