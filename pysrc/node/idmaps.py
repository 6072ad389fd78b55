"""Root's share of a guest: reserved ids, and the id maps of its user namespace.

Called by mosd when it accepts a guest (`IdPool.allocate`), when its remote asks (`MapIds` →
`write_id_maps`), and when the guest is gone (`IdPool.release`). Why two reserved ids per guest:
who has the uid of a namespace's owner (R, the remote) may trace what is inside, who has its
outer uid (G) may kill it; a person's login id must be neither. `write_id_maps` must never touch
a process that is not an unmapped child of that very remote.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from mosix.errors import ConfigError, PermissionDeniedError, RefusedError

#: First id handed out by default: far above the ranges of shadow-utils, systemd and containers.
FIRST_ID: Final = 0x70000000
#: How many pairs by default.
PAIRS: Final = 4096

_NS_GET_PARENT: Final = 0xB702  # _IO(0xb7, 2) of linux/nsfs.h
_NS_GET_OWNER_UID: Final = 0xB704
_UID_LINE: Final = re.compile(r"^Uid:\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)$", re.M)
_PARENT_LINE: Final = re.compile(r"^PPid:\s+(\d+)$", re.M)


class IdPair(NamedTuple):
    """Ids of one guest, each used as uid and gid."""

    owner: int  # R: the remote
    outer: int  # G: stub and guest


class IdPool:
    """Hands out pairs from a reserved range; an id that a login or a process has is left out."""

    def __init__(self, first: int = FIRST_ID, pairs: int = PAIRS) -> None:
        """Raises ConfigError when the range holds ordinary ids or does not fit."""
        if first < 0x10000 or first + 2 * pairs >= 2**32 - 1 or pairs < 1:
            raise ConfigError(
                f"the range of reserved ids {first}+{2 * pairs} is not allowed",
                f"it must lie between 65536 and {2**32 - 2}",
            )
        self._first = first
        self._pairs = pairs
        self._next = 0
        self._taken: set[IdPair] = set()

    def allocate(self) -> IdPair:
        """A pair that nobody has. Raises RefusedError when all are taken."""
        alive = _ids_alive(self._first, self._first + 2 * self._pairs)
        for step in range(self._pairs):
            owner = self._first + 2 * ((self._next + step) % self._pairs)
            pair = IdPair(owner, owner + 1)
            if pair not in self._taken and not alive.intersection(pair) and not _known(pair):
                # Next time further on: ids are reused as late as possible.
                self._next = (self._next + step + 1) % self._pairs
                self._taken.add(pair)
                return pair
        raise RefusedError(
            "this node has no reserved ids left for another guest",
            f"{len(self._taken)} of {self._pairs} pairs are in use",
        )

    def adopt(self, pair: IdPair) -> None:
        """Count a pair as taken that a guest from before a restart of mosd has."""
        self._taken.add(pair)

    def release(self, pair: IdPair) -> None:
        """The guest and its remote are gone."""
        self._taken.discard(pair)


def write_id_maps(
    carrier_pid: int,
    *,
    inside_uid: int,
    inside_gid: int,
    outer_id: int,
    owner_uid: int,
    remote_pid: int | None = None,
) -> None:
    """Map `inside_uid` and `inside_gid` to `outer_id` in the carrier's user namespace.

    `owner_uid`: R, `remote_pid`: the remote that asks, if known. setgroups stays allowed in the
    namespace: the carrier empties its list of groups, then it and the guest lose CAP_SETGID.
    Raises PermissionDeniedError when the carrier is not what it should be.
    """
    try:
        # Everything below goes through this descriptor: a number that is given away again
        # between the checks and the writes gives ESRCH.
        directory = os.open(f"/proc/{carrier_pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise PermissionDeniedError(f"there is no process {carrier_pid} to map") from error
    try:
        _check_carrier(directory, carrier_pid, owner_uid, remote_pid)
        for name, inside in (("uid_map", inside_uid), ("gid_map", inside_gid)):
            with _opened(directory, name, os.O_RDONLY) as fd:
                if os.read(fd, 1):
                    raise PermissionDeniedError(f"process {carrier_pid} has a {name} already")
            with _opened(directory, name, os.O_WRONLY) as fd:
                os.write(fd, f"{inside} {outer_id} 1\n".encode("ascii"))
    except ProcessLookupError as error:
        raise PermissionDeniedError(f"process {carrier_pid} is gone") from error
    finally:
        os.close(directory)


def _check_carrier(directory: int, pid: int, owner_uid: int, remote_pid: int | None) -> None:
    fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    with open(fd, encoding="utf-8", errors="replace") as file:
        status = file.read()
    uids = _UID_LINE.search(status)
    parent = _PARENT_LINE.search(status)
    if uids is None or set(uids.groups()) != {str(owner_uid)}:
        raise PermissionDeniedError(f"process {pid} does not belong to uid {owner_uid}")
    if remote_pid is not None and (parent is None or int(parent[1]) != remote_pid):
        raise PermissionDeniedError(f"process {pid} is not a child of the remote {remote_pid}")
    namespace = os.open("ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        own = os.stat("/proc/self/ns/user")
        if os.fstat(namespace).st_ino == own.st_ino:
            raise PermissionDeniedError(f"process {pid} has no user namespace of its own")
        above = fcntl.ioctl(namespace, _NS_GET_PARENT)
        try:
            if os.fstat(above).st_ino != own.st_ino:
                raise PermissionDeniedError(f"the user namespace of {pid} is a nested one")
        finally:
            os.close(above)
        (owner,) = struct.unpack("I", fcntl.ioctl(namespace, _NS_GET_OWNER_UID, bytes(4)))
        if owner != owner_uid:
            raise PermissionDeniedError(f"the user namespace of {pid} belongs to uid {owner}")
    finally:
        os.close(namespace)


@contextmanager
def _opened(directory: int, name: str, flags: int) -> Iterator[int]:
    fd = os.open(name, flags | os.O_CLOEXEC, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _known(ids: Iterable[int]) -> bool:
    """Whether a login or group database names one of `ids`."""
    for number in ids:
        for lookup in (pwd.getpwuid, grp.getgrgid):
            try:
                lookup(number)
            except KeyError:
                continue
            return True
    return False


def _ids_alive(first: int, end: int) -> set[int]:
    """Ids in the range that some process still has: guests of a mosd that died."""
    alive: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as file:
                uids = _UID_LINE.search(file.read())
        except (FileNotFoundError, ProcessLookupError):
            continue
        if uids is not None:
            alive.update(int(uid) for uid in uids.groups() if first <= int(uid) < end)
    return alive
