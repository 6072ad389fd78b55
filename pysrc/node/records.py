"""What a mosd must know of its workers when it was killed and it, or another build, is started.

One file for each deputy and each remote in the run directory, which only root may read: a guest's
token is in it; one for the spawners. Written by `deputies.py`, `guests.py` and `spawning.py`, read
once at start. Who comes back (`mosix.wire.adoption`) is the recorded one if PID and start time are
the same. A record that this build does not understand is left as it lies, for one that does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from mosix.wire.attributes import JobAttributes

_log = logging.getLogger("mosd.records")

#: Of all records; to be counted up when one of them changes. A mosd takes over only its own kind.
VERSION = 1
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

    version: int = VERSION
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

    version: int = VERSION
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


class SpawnerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Spawners that may hold listeners of jobs: the last one's, and of mosds before that."""

    version: int = VERSION
    spawners: tuple[Identity, ...]


class _Version(msgspec.Struct):
    """What every record begins with, of whichever version."""

    version: int = 0


R = TypeVar("R", JobRecord, GuestRecord, SpawnerRecord)


def write(directory: Path, name: str, record: JobRecord | GuestRecord | SpawnerRecord) -> None:
    """Whole or not at all. OSError."""
    new = directory / f".{name}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(msgspec.msgpack.encode(record))
    new.rename(directory / name)


def remove(directory: Path, name: str) -> None:
    (directory / name).unlink(missing_ok=True)


def read(file: Path, kind: type[R]) -> R | None:
    """None when there is no such file; with a line in the log when it is of another build."""
    try:
        data = file.read_bytes()
        version = msgspec.msgpack.decode(data, type=_Version).version
        if version == VERSION:
            return msgspec.msgpack.decode(data, type=kind)
        said = f"it is of version {version}, this mosd writes {VERSION}"
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, OSError) as error:
        said = str(error)
    _log.warning("%s: not taken over, and left as it is: %s", file, said)
    return None


def read_all(directory: Path, kind: type[R]) -> Iterator[R]:
    """Every record that this build understands."""
    for file in sorted(directory.iterdir()):
        if file.name.startswith("."):
            file.unlink()  # begun by a mosd that was killed then
        elif (record := read(file, kind)) is not None:
            yield record
