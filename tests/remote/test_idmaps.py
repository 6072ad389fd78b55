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
R, G = FIRST + 60, FIRST + 61


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


def unshare_user() -> None:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0


def map_itself() -> None:
    Path("/proc/self/setgroups").write_text("deny")
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/self/{name}").write_text(f"{R} {R} 1")


@contextmanager
def process(*steps: Callable[[], object]) -> Iterator[int]:
    """A child that has done `steps` and waits."""
    reading, writing = os.pipe()
    held, holding = os.pipe()
    child = os.fork()
    if not child:
        os.close(holding)
        for step in steps:
            step()
        os.write(writing, b"x")
        os.read(held, 1)
        os._exit(0)
    os.close(writing)
    os.close(held)
    try:
        assert os.read(reading, 1) == b"x"
        yield child
    finally:
        os.close(reading)
        os.close(holding)
        os.waitpid(child, 0)


def write(pid: int, remote_pid: int | None = None, owner: int = R) -> None:
    write_id_maps(
        pid, inside_uid=1000, inside_gid=100, outer_id=G, owner_uid=owner, remote_pid=remote_pid
    )


def maps(pid: int) -> list[list[str]]:
    return [Path(f"/proc/{pid}/{name}").read_text().split() for name in ("uid_map", "gid_map")]


def test_an_unmapped_child_of_the_remote_is_mapped_once() -> None:
    with process(lambda: become(R), unshare_user) as carrier:
        write(carrier, os.getpid())
        assert maps(carrier) == [["1000", str(G), "1"], ["100", str(G), "1"]]
        with pytest.raises(PermissionDeniedError, match="has a uid_map already"):
            write(carrier, os.getpid())


def test_a_process_of_another_uid_is_not_mapped() -> None:
    with process(lambda: become(R + 2), unshare_user) as other:
        with pytest.raises(PermissionDeniedError, match=f"does not belong to uid {R}"):
            write(other)
        assert maps(other) == [[], []]
    with pytest.raises(PermissionDeniedError, match="does not belong"):
        write(1)


def test_a_child_of_somebody_else_is_not_mapped() -> None:
    with process(lambda: become(R), unshare_user) as carrier:
        with pytest.raises(PermissionDeniedError, match="not a child of the remote 1"):
            write(carrier, remote_pid=1)
        assert maps(carrier) == [[], []]


def test_a_process_without_its_own_user_namespace_is_not_mapped() -> None:
    with (
        process(lambda: become(R)) as plain,
        pytest.raises(PermissionDeniedError, match="no user namespace of its own"),
    ):
        write(plain)


def test_a_nested_user_namespace_is_not_mapped() -> None:
    with (
        process(lambda: become(R), unshare_user, map_itself, unshare_user) as nested,
        pytest.raises(PermissionDeniedError, match="nested"),
    ):
        write(nested)


def test_a_vanished_process_is_named() -> None:
    with pytest.raises(PermissionDeniedError, match="no process"):
        write(2**22 - 1)


def test_pairs_are_distinct_and_reused_as_late_as_possible() -> None:
    pool = IdPool(FIRST, pairs=4)
    first = pool.allocate()
    assert first == IdPair(FIRST, FIRST + 1)
    pool.release(first)
    others = [pool.allocate() for _ in range(4)]
    assert len({number for pair in others for number in pair}) == 8
    assert others[-1] == first
    with pytest.raises(RefusedError, match="no reserved ids left"):
        pool.allocate()
    pool.release(others[1])
    assert pool.allocate() == others[1]


def test_ids_of_living_processes_and_adopted_guests_are_left_out() -> None:
    pool = IdPool(FIRST, pairs=4)
    pool.adopt(IdPair(FIRST + 2, FIRST + 3))
    with process(lambda: become(FIRST + 1)):
        assert pool.allocate() == IdPair(FIRST + 4, FIRST + 5)


def test_ids_that_a_login_or_a_group_has_are_known() -> None:
    assert _known((FIRST, 0))
    assert not _known((FIRST, FIRST + 1))


@pytest.mark.parametrize(
    ("first", "pairs"), [(1000, 10), (2**32 - 10, 5), (FIRST, 0)], ids=("login", "end", "none")
)
def test_a_range_with_ordinary_ids_is_refused(first: int, pairs: int) -> None:
    with pytest.raises(ConfigError, match="reserved ids"):
        IdPool(first, pairs)
