"""What a mosd must know of its workers when it was killed and started again.

One file for each deputy and each remote in the run directory, which only root may read: a guest's
token is in it. Written by `deputies.py` and `guests.py`, read once at start. A worker that comes
back (`mosix.wire.adoption`) is the recorded one if PID and start time are the same.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from mosix.wire.attributes import JobAttributes

_START_TIME = 19  # field 22 of /proc/PID/stat, counted behind the command


class Identity(msgspec.Struct, frozen=True):
    """A process, not merely a number. `start`: clock ticks after boot."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """None when there is no such process."""
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                text = file.read()
        except OSError:
            return None
        return cls(pid, int(text.rpartition(")")[2].split()[_START_TIME]))

    def alive(self) -> bool:
        return Identity.of(self.pid) == self


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job of this node. `deputy` None: it has none yet."""

    id: str
    pid: int
    uid: int
    gid: int
    group: str
    attributes: JobAttributes
    started: float
    deputy: Identity | None = None


class GuestRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A guest here."""

    token: bytes
    job: str
    pid: int
    uid: int
    gid: int
    home: str
    epoch: int
    group: str
    owner: int
    outer: int
    memory_limit: int
    remote: Identity


R = TypeVar("R", JobRecord, GuestRecord)


def write(directory: Path, name: str, record: JobRecord | GuestRecord) -> None:
    """Whole or not at all. OSError."""
    new = directory / f".{name}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(msgspec.msgpack.encode(record))
    new.rename(directory / name)


def remove(directory: Path, name: str) -> None:
    (directory / name).unlink(missing_ok=True)


def read_all(directory: Path, kind: type[R]) -> Iterator[R]:
    """Every record; what is none is removed."""
    for file in sorted(directory.iterdir()):
        try:
            yield msgspec.msgpack.decode(file.read_bytes(), type=kind)
        except (msgspec.MsgspecError, OSError):
            with contextlib.suppress(OSError):
                file.unlink()
