"""What parking.py and capturing.py hold against each other."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator


def equal(found: object, expected: object) -> None:
    assert found == expected, f"{found!r} instead of {expected!r}"


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        equal(error.errno, number)
    else:
        raise AssertionError(f"not refused with {errno.errorcode[number]}")
