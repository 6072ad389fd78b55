"""The table packed for the C redirector: struct mx_table of native/redirect.h.

`packed()` is given to `mx_redirect_new`; `mosix.syscalls.table.REASONS` names its reason numbers.
The layout here and the structs there change together, with MX_ABI_VERSION.
"""

from __future__ import annotations

import struct
from functools import cache

from mosix.syscalls.shapes import Row, Shape, Test
from mosix.syscalls.table import PROC_REASON, REASONS, TABLE

MAGIC = 0x7473786D
ABI_VERSION = 5
CALLS = 512
NO_ARGS: tuple[Shape, ...] = ()

_HEADER = struct.Struct("<IIII")
_INDEX = struct.Struct("<HH")
_SHAPE = struct.Struct("<IHBB")
_TEST = struct.Struct("<QQBBBBHH")
_DESCRIPTOR = struct.Struct("<IHHBBBBBBBBHHI")
_DIFFERS, _HOME_PID, _AND = 1, 2, 4
_REASON = {reason: index for index, reason in enumerate(REASONS)}


def _pack_shapes(shapes: tuple[Shape, ...]) -> bytes:
    out = b"".join(_SHAPE.pack(s.size, s.unit, s.kind, s.length_arg) for s in shapes)
    return out.ljust(6 * _SHAPE.size, b"\0")


def _pack_tests(row: Row) -> list[bytes]:
    out = []
    for rule in row.rules:
        for test in rule.tests:
            more = test is not rule.tests[-1]
            reason = _REASON[rule.reason or row.reason]
            out.append(_pack_test(test, more, rule.then, reason))
    return out


def _pack_test(test: Test, more: bool, then: int, reason: int) -> bytes:
    flags = (_DIFFERS if test.differs else 0) | (_AND if more else 0)
    number = test.value
    if isinstance(number, str):
        flags |= _HOME_PID
        number = 0
    return _TEST.pack(test.mask, number, test.arg, flags, then, 0, reason, 0)


def _pack_row(
    row: Row, key: int, shapes: tuple[Shape, ...], first_test: int, n_tests: int
) -> bytes:
    return _DESCRIPTOR.pack(
        key,
        row.nr,
        first_test,
        n_tests,
        row.cls,
        row.special,
        row.key_arg,
        row.on_cancel,
        row.timeout,
        row.timeout_arg,
        len(shapes),
        _REASON[row.reason],
        _REASON[PROC_REASON],
        0,
    ) + _pack_shapes(shapes)


@cache
def packed(rows: tuple[Row, ...] = TABLE) -> bytes:
    """Header, index by number, descriptors (a row's own, then its variants), tests."""
    index = [(0, 0)] * CALLS
    descriptors: list[bytes] = []
    tests: list[bytes] = []
    for row in rows:
        row_tests = _pack_tests(row)
        first = len(descriptors)
        descriptors.append(_pack_row(row, 0, row.args, len(tests), len(row_tests)))
        for key, shapes in sorted(row.variants.items()):
            descriptors.append(_pack_row(row, key, shapes, len(tests), len(row_tests)))
        index[row.nr] = (first, len(descriptors) - first)
        tests += row_tests
    return b"".join(
        (
            _HEADER.pack(MAGIC, ABI_VERSION, len(descriptors), len(tests)),
            *(_INDEX.pack(*entry) for entry in index),
            *descriptors,
            *tests,
        )
    )
