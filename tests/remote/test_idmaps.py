"""Promises of root's share of a guest: reserved ids and id maps."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mosix.errors import ConfigError, PermissionDeniedError, RefusedError
from mosix.node.idmaps import IdPair, IdPool, _known, write_id_maps

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FIRST = 0x72000000 + os.getpid() % 4096 * 64
NEWUSER = 0x10000000


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


def unshare_user() -> None:
    assert ctypes.CDLL(None).unshare(NEWUSER) == 0


@contextmanager
def process(*steps: Callable[[], object]) -> Iterator[int]:
    """A child that has done `steps` and waits."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for step in steps:
            step()
        os.write(writing, b"x")
        os.pause() if hasattr(os, "pause") else os.read(reading, 1)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    try:
        yield child
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
