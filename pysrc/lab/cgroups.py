"""A lab's cgroups: limits of its nodes, and the list of its processes for `down`.

Under every mounted v1 hierarchy that a node needs, or under v2, lies `mosix-lab/LAB/NODE`;
`mosix-lab/LAB/lab` holds what belongs to no node. Every process of a lab is put here before it
does anything else, so killing what is in them kills the lab. Called by `cluster` and `enter`.
Never touches a cgroup outside `mosix-lab`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from mosix.errors import KernelError, MosixError
from mosix.node.jobgroup import OWN, mount_own

TOP = "mosix-lab"
_V1 = ("cpu", "cpuacct", "memory", "pids")
#: mosd keeps its jobs' membership here; a node needs it only where it exists
_V1_WELCOME = ("freezer",)
_V2_NEEDED = "+cpu +memory +pids"


class Limits(msgspec.Struct, frozen=True):
    memory_bytes: int = 4 << 30
    cpu_shares: int = 1024
    #: processors' worth of time; None: no quota
    cpus: float | None = None
    pids: int = 8192


class Usage(msgspec.Struct, frozen=True):
    memory_bytes: int
    memory_limit_bytes: int
    cpu_s: float
    processes: int


class Hierarchies(msgspec.Struct, frozen=True):
    """Where cgroups are mounted: v1 controllers by name, or one v2 tree with all of them."""

    v1: dict[str, Path]
    v2: Path | None
    #: v2 carries the controllers
    unified: bool
    #: that of the jobs, which is v1 and has none
    own: Path | None = None

    def roots(self) -> set[Path]:
        return {*self.v1.values(), *(root for root in (self.v2, self.own) if root)}

    def joinable(self, root: Path, lab: str, node: str) -> Path:
        """A v2 cgroup that hands controllers to children may hold no process itself."""
        group = root / TOP / lab / node
        return group / "leaf" if self.unified and root == self.v2 else group


def hierarchies(mounts: Path = Path("/proc/self/mounts")) -> Hierarchies:
    """KernelError if neither v1 nor v2 offers cpu, memory and pids here."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    own: Path | None = None
    for line in mounts.read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup":
            names = set(options.split(","))
            for controller in names & {*_V1, *_V1_WELCOME}:
                v1.setdefault(controller, Path(where))
            if OWN in names and own is None:
                own = Path(where)
        elif kind == "cgroup2" and v2 is None:
            v2 = Path(where)
    if v1.keys() >= set(_V1):
        return Hierarchies(v1, v2, unified=False, own=own)
    if v2 is not None:
        offered = set((v2 / "cgroup.controllers").read_text().split())
        if {"cpu", "memory", "pids"} <= offered:
            return Hierarchies({}, v2, unified=True, own=own)
    raise KernelError(
        "no cgroups with the controllers cpu, memory and pids are mounted",
        hint="mount -t cgroup2 none /sys/fs/cgroup",
    )


def create(lab: str, node: str, limits: Limits | None = None) -> list[Path]:
    """The cgroups of a node, made with its limits; what `join` takes."""
    mount_own()
    found = hierarchies()
    joinable: list[Path] = []
    for root in sorted(found.roots()):
        group = root / TOP / lab / node
        _make(group)
        if found.unified and root == found.v2:
            for parent in (root, root / TOP, root / TOP / lab):
                (parent / "cgroup.subtree_control").write_text(_V2_NEEDED)
        joinable.append(found.joinable(root, lab, node))
        joinable[-1].mkdir(exist_ok=True)
    if limits is not None:
        _limit(found, lab, node, limits)
    return joinable


def _make(group: Path) -> None:
    while True:
        try:
            group.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            # The end of another lab has taken `mosix-lab` away, which was empty, or is about to.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
        else:
            return


def _limit(found: Hierarchies, lab: str, node: str, limits: Limits) -> None:
    period_us = 100_000
    quota_us = int(limits.cpus * period_us) if limits.cpus else None
    if found.v2 is not None and found.unified:
        group = found.v2 / TOP / lab / node
        (group / "memory.max").write_text(str(limits.memory_bytes))
        (group / "pids.max").write_text(str(limits.pids))
        # The kernel's own conversion of shares (2..262144) to weight (1..10000).
        weight = 1 + (limits.cpu_shares - 2) * 9999 // 262142
        (group / "cpu.weight").write_text(str(weight))
        if quota_us is not None:
            (group / "cpu.max").write_text(f"{quota_us} {period_us}")
        return
    where = {name: root / TOP / lab / node for name, root in found.v1.items()}
    (where["memory"] / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
    (where["pids"] / "pids.max").write_text(str(limits.pids))
    (where["cpu"] / "cpu.shares").write_text(str(limits.cpu_shares))
    if quota_us is not None:
        try:
            (where["cpu"] / "cpu.cfs_quota_us").write_text(str(quota_us))
        except FileNotFoundError as error:
            raise KernelError(
                "this kernel has no CPU quota (CONFIG_CFS_BANDWIDTH)", hint="leave out --cpus"
            ) from error


def groups(lab: str, node: str) -> list[Path]:
    """What `join` takes, of a node that `create` made."""
    found = hierarchies()
    return [found.joinable(root, lab, node) for root in sorted(found.roots())]


def join(joinable: list[Path]) -> None:
    """Move the calling process, which has one thread, into a node's cgroups."""
    for group in joinable:
        # A thread that moves itself (v1) need not wait for an RCU grace period.
        own = group / "tasks"
        (own if own.exists() else group / "cgroup.procs").write_text("0")


def leave() -> None:
    """Move the calling process out of a lab's cgroups, which can then be removed."""
    join(sorted(hierarchies().roots()))


def usage(lab: str, node: str) -> Usage:
    found = hierarchies()
    if found.v2 is not None and found.unified:
        group = found.v2 / TOP / lab / node
        stat = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
        return Usage(
            int((group / "memory.current").read_text()),
            int((group / "memory.max").read_text()),
            int(stat["usage_usec"]) / 1e6,
            int((group / "pids.current").read_text()),
        )
    where = {name: root / TOP / lab / node for name, root in found.v1.items()}
    return Usage(
        int((where["memory"] / "memory.usage_in_bytes").read_text()),
        int((where["memory"] / "memory.limit_in_bytes").read_text()),
        int((where["cpuacct"] / "cpuacct.usage").read_text()) / 1e9,
        int((where["pids"] / "pids.current").read_text()),
    )


def existing() -> set[str]:
    """Names of the labs that have cgroups."""
    names: set[str] = set()
    for root in hierarchies().roots():
        with contextlib.suppress(FileNotFoundError):
            names |= {entry.name for entry in (root / TOP).iterdir() if entry.is_dir()}
    return names


def _trees(lab: str) -> Iterator[Path]:
    """Every cgroup of a lab, children before their parents."""
    for root in hierarchies().roots():
        for path, _, _ in os.walk(root / TOP / lab, topdown=False):
            yield Path(path)


def processes(lab: str) -> set[int]:
    """PIDs of everything that runs in a lab."""
    found: set[int] = set()
    for group in _trees(lab):
        with contextlib.suppress(FileNotFoundError, OSError):
            found |= {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
    return found


def _is_in(pid: int, lab: str) -> bool:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    prefix = f"/{TOP}/{lab}/"
    return any(f"{line.split(':', 2)[2]}/".startswith(prefix) for line in lines)


def _thaw(lab: str) -> None:
    """What is frozen (v1) does not even die."""
    for group in _trees(lab):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            (group / "freezer.state").write_text("THAWED")


def kill_all(lab: str, deadline_s: float = 20.0) -> int:
    """SIGKILL everything in a lab and wait until it is gone; how many there were."""
    end = time.monotonic() + deadline_s
    killed: set[int] = set()
    while pids := processes(lab) - {os.getpid()}:
        _thaw(lab)
        waiting: list[int] = []
        for pid in pids:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            waiting.append(fd)
            # Looked at again through the pidfd's process: the PID may have been given anew.
            if _is_in(pid, lab):
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll = select.poll()
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        poll.poll(100)
        for fd in waiting:
            os.close(fd)
        if time.monotonic() > end:
            left = " ".join(map(str, sorted(processes(lab))))
            raise MosixError(f"lab {lab}: processes {left} do not die")
    return len(killed)


def remove(lab: str, deadline_s: float = 20.0) -> None:
    """Remove a lab's cgroups, whose processes are dead (the kernel lets go of them late)."""
    end = time.monotonic() + deadline_s
    for group in _trees(lab):
        while True:
            try:
                group.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if time.monotonic() > end:
                    raise MosixError(f"cannot remove {group}: {error.strerror}") from error
                time.sleep(0.01)
            else:
                break
    for root in hierarchies().roots():
        # Another lab may have its cgroups in here.
        with contextlib.suppress(OSError):
            (root / TOP).rmdir()
