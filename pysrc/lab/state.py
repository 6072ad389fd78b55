"""What is known of a lab between commands: /run/mosix-lab/NAME/lab.json and processes' identities.

The truth about a lab is its cgroups (`mosix.lab.cgroups`): every process of it is in one of them
before it does anything. This file only says which process is which node, so that losing it, or a
lab half built when `up` was killed, never leaves anything behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from mosix.errors import MosixError, UsageError

RUN = Path("/run/mosix-lab")
MAX_NODES = 200
DEFAULT_NAME = "lab"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


class Process(msgspec.Struct, frozen=True):
    """A process that cannot be mistaken for a later one of the same PID."""

    pid: int
    #: field 22 of /proc/PID/stat: clock ticks since boot
    started: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """ProcessLookupError if there is none."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError as error:
            raise ProcessLookupError(pid) from error
        return cls(pid, int(stat.rpartition(")")[2].split()[19]))

    def open(self) -> int:
        """A pidfd of exactly this process; ProcessLookupError if it is gone."""
        fd = os.pidfd_open(self.pid)
        try:
            if not self.alive():
                raise ProcessLookupError(self.pid)
        except OSError:
            os.close(fd)
            raise
        return fd

    def alive(self) -> bool:
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        fields = stat.rpartition(")")[2].split()
        return int(fields[19]) == self.started and fields[0] not in "ZX"


class Machine(msgspec.Struct, frozen=True):
    """What a node that is a virtual machine has besides."""

    #: release of its kernel
    kernel: str
    #: its address on the network that only commands use
    control: str


class Node(msgspec.Struct, frozen=True):
    number: int
    ip: str
    #: PID 1 of the node, as the host sees it; of a virtual machine: QEMU
    init: Process
    #: seconds that CLOCK_MONOTONIC and CLOCK_BOOTTIME are ahead of the host's
    monotonic_s: int
    boottime_s: int
    machine: Machine | None = None

    @property
    def name(self) -> str:
        return f"n{self.number}"


class Mosd(msgspec.Struct, frozen=True):
    """What a node's init says of its mosd (RUN/NAME/nN/mosd.json)."""

    #: PID inside the node; 0: none
    pid: int
    #: wait status of the last one that ended
    status: int | None = None
    #: how many have been started
    starts: int = 0


class Lab(msgspec.Struct):
    name: str
    subnet: int
    #: command line of mosd in every node; empty: none is started
    mosd: list[str]
    switch: Process | None = None
    nodes: list[Node] = []
    complete: bool = False

    @property
    def directory(self) -> Path:
        return directory(self.name)

    def node(self, name: str) -> Node:
        """By name (n2) or number (2)."""
        for node in self.nodes:
            if name in (node.name, str(node.number)):
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise UsageError(f"lab {self.name} has no node {name!r}", hint=f"it has {known}")

    def save(self) -> None:
        write_json(self.directory / "lab.json", self)


def directory(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a lab", hint="letters a-z, digits and -, at most 31"
        )
    return RUN / name


def write_json(path: Path, value: msgspec.Struct | list[str]) -> None:
    """Readers see the old or the new content, never a part."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(value)))
    new.replace(path)


def load(name: str) -> Lab | None:
    """None if there is no such lab, or nothing but the beginnings of one."""
    try:
        data = (directory(name) / "lab.json").read_bytes()
    except FileNotFoundError:
        return None
    return msgspec.json.decode(data, type=Lab)


def load_running(name: str) -> Lab:
    lab = load(name)
    if lab is None or not lab.complete:
        named = "" if name == DEFAULT_NAME else f" --name {name}"
        raise MosixError(f"lab {name!r} is not up", hint=f"mosix-lab up{named} --nodes 3")
    return lab


def labs() -> list[str]:
    """Names of all labs that have a directory, whole or not."""
    if not RUN.is_dir():
        return []
    return sorted(entry.name for entry in RUN.iterdir() if entry.is_dir())


def read_mosd(lab: str, node: str) -> Mosd:
    try:
        data = (directory(lab) / node / "mosd.json").read_bytes()
    except FileNotFoundError:
        return Mosd(0)
    return msgspec.json.decode(data, type=Mosd)


@contextlib.contextmanager
def locked(name: str) -> Iterator[Path]:
    """The lab's directory, locked against other `up` and `down`; the lock dies with us."""
    path = directory(name)
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # a `down` took it, or RUN, away just then
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # `down` removes the directory while it holds the lock: then this one is nobody's.
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                yield path
                return
        finally:
            os.close(fd)
