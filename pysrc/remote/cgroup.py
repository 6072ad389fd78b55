"""Control groups, version 1 or 2 behind one interface: where they are, and limits for guests.

Called by mosd (root): it subdivides and measures the cgroup it was given, in each hierarchy; a
remote reads it. Nothing here ever leaves that cgroup upwards or changes one that mosd did not
make. The cgroup of a job at home, which only says who belongs to it, is `mosix.node.jobgroup`'s.

* A guest's cgroup is made in every hierarchy that has one of memory, pids, cpu, cpuacct.
* Version 2 forbids processes beside subdivisions with controllers, so the first limited cgroup
  moves what lives directly in mosd's own cgroup into a leaf of its own.

Sizes in bytes, times in nanoseconds; the CPU weight is version 2's (1 to 10000, usually 100).
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mosix.errors import KernelError, MosixError, RefusedError, UsageError
from mosix.native.kept import KeptFiles

#: Every directory made here begins so: a restarted mosd finds them, and its own leaf.
PREFIX: Final = "mosixd."
#: where mosd itself is then (also in systemd/mosd.service)
LEAF: Final = PREFIX + "node"

#: CPU weight of guests: the owner of a machine comes first.
GUEST_CPU_WEIGHT: Final = 10

_LIMITING: Final = ("memory", "pids", "cpu", "cpuacct")
_USED: Final = frozenset((*_LIMITING, "freezer"))
_CORE_V2: Final = frozenset(("cpuacct", "freezer"))  # cpu.stat, cgroup.freeze: always there
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_UNLIMITED: Final = 1 << 62  # version 1 writes the largest page-aligned number
_REMOVE_TIMEOUT: Final = 10.0
#: There is no such file, or its cgroup went while it was read.
_MISSING: Final = (errno.ENOENT, errno.ENODEV)


@dataclass(frozen=True)
class Mount:
    """Where a hierarchy is mounted. `names`: its controllers and options; "" for version 2."""

    version: int
    names: frozenset[str]
    root: str
    top: Path

    @staticmethod
    def parse(mountinfo: str) -> list[Mount]:
        """All of them, from the text of /proc/PID/mountinfo (proc_pid_mountinfo(5))."""
        found = []
        for line in mountinfo.splitlines():
            fields, _, tail = line.partition(" - ")
            kind, _, options = tail.split(" ", 2)
            if kind in ("cgroup", "cgroup2"):
                parts = fields.split(" ")
                version = 1 if kind == "cgroup" else 2
                names = frozenset(options.split(",") if version == 1 else ("",))
                found.append(Mount(version, names, _unescape(parts[3]), Path(_unescape(parts[4]))))
        return found

    def directory(self, path: str) -> Path | None:
        """Where the cgroup that the kernel calls `path` is; None if it is outside of the mount."""
        relative = os.path.relpath(path, self.root)
        return None if relative.startswith("..") else self.top / relative

    def path_in(self, cgroup: str) -> str | None:
        """What the text of /proc/PID/cgroup calls this hierarchy's cgroup of that process."""
        for line in cgroup.splitlines():
            _, names, path = line.split(":", 2)
            if self.names.intersection(names.split(",")):
                return path
        return None


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy. `given`: directory of the cgroup to subdivide, `top`: where it is
    mounted, so the highest ancestor that can be seen."""

    version: int
    controllers: frozenset[str]
    top: Path
    given: Path

    def levels(self, directory: Path) -> Iterator[Path]:
        """`directory` and its visible ancestors, from below."""
        while True:
            yield directory
            if directory in (self.top, directory.parent):
                return
            directory = directory.parent


def _text(path: str) -> str:
    return Path(path).read_text("utf-8")


class Cgroup:
    """A cgroup: the same name in one or more hierarchies."""

    def __init__(self, name: str, parts: dict[Path, Hierarchy]) -> None:
        self.name = name
        self._parts = parts
        self._text_of: Callable[[str], str] = _text
        self._ways_up: dict[str, list[Path]] = {}

    def keep_files_open(self) -> None:
        """For who asks every second."""
        self._text_of = KeptFiles().read

    @property
    def directories(self) -> tuple[Path, ...]:
        return tuple(self._parts)

    def add(self, pid: int) -> None:
        """Move a process (all of its threads) in; its children follow when they are born.

        Raises KernelError when it is gone or the kernel refuses.
        """
        for directory in self._parts:
            _write(directory / "cgroup.procs", str(pid))

    def processes(self) -> list[int]:
        """PIDs in it, as this PID namespace sees them; empty when the cgroup is gone."""
        return processes(next(iter(self._parts)))

    def memory_usage(self) -> int:
        """Memory charged to it, page cache included; for version 2's root what is in use."""
        hierarchy, directory = self._with("memory")
        if hierarchy.version == 2 and not (directory / "memory.current").exists():
            return self._meminfo("MemTotal") - self._meminfo("MemAvailable")
        return self._usage(hierarchy, directory)

    def memory_directory(self) -> tuple[int, Path]:
        """Version of the hierarchy that limits memory, and where this is in it. KernelError."""
        hierarchy, directory = self._with("memory")
        return hierarchy.version, directory

    def memory_total(self) -> int:
        """What there is for it when it is alone: the tightest limit, or the machine's memory."""
        try:
            limit = self.memory_limit()
        except KernelError:
            limit = None
        machine = self._meminfo("MemTotal")
        return machine if limit is None else min(limit, machine)

    def memory_limit(self) -> int | None:
        """The tightest limit of it and its visible ancestors; None without one."""
        hierarchy, _ = self._with("memory")
        limits = [self._limit(hierarchy, level) for level in self._levels("memory")]
        return min((limit for limit in limits if limit is not None), default=None)

    def available(self) -> int:
        """What a process in it could still take without swapping or being killed.

        The least of MemAvailable and, for it and each visible ancestor, limit less usage plus
        the page cache that is given up first (inactive file pages).
        """
        least = self._meminfo("MemAvailable")
        try:
            hierarchy, _ = self._with("memory")
        except KernelError:
            return least
        for level in self._levels("memory"):
            limit = self._limit(hierarchy, level)
            if limit is not None:
                key = "total_inactive_file" if hierarchy.version == 1 else "inactive_file"
                cache = self._number(f"{level}/memory.stat", key)
                least = min(least, limit - self._usage(hierarchy, level) + cache)
        return max(least, 0)

    def cpu_quota(self) -> float | None:
        """Cores' worth of time that it and its visible ancestors may use; None without a limit."""
        try:
            hierarchy, _ = self._with("cpu")
        except KernelError:
            return None
        quotas = [self._quota(hierarchy, level) for level in self._levels("cpu")]
        return min((quota for quota in quotas if quota is not None), default=None)

    def pressure(self, resource: str) -> Path | None:
        """Its PSI file of "memory" or "io"; None where it is not told apart from the machine."""
        for directory, hierarchy in self._parts.items():
            path = directory / f"{resource}.pressure"
            if hierarchy.version == 2 and path.exists():
                return path
        return None

    def cpu_time_ns(self) -> int:
        """User and system time of all that ever ran in it."""
        hierarchy, directory = self._with("cpuacct")
        if hierarchy.version == 1:
            return int(self._read(f"{directory}/cpuacct.usage"))
        return self._number(f"{directory}/cpu.stat", "usage_usec") * 1000

    def kill(self) -> None:
        """SIGKILL to everything in it."""
        for directory, hierarchy in self._parts.items():
            if hierarchy.version == 2 and (directory / "cgroup.kill").exists():
                _write(directory / "cgroup.kill", "1")
                return
        for directory in self._parts:
            if (directory / "freezer.state").exists():
                _write(directory / "freezer.state", "THAWED")  # the frozen do not die
        # A process that has SIGKILL forks no more, so this ends.
        killed: set[int] = set()
        while fresh := set(self.processes()) - killed:
            for pid in fresh:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            killed |= fresh

    async def remove(self, *, kill: bool = False, timeout: float = _REMOVE_TIMEOUT) -> None:
        """Wait until it is empty, then remove it everywhere; again is allowed.

        With `kill` whatever is or comes in is killed. Raises RefusedError after `timeout`
        seconds: somebody is still in it.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._remove_now():
                    if kill:
                        self.kill()
                    await self._one_leaves()
        except TimeoutError as error:
            raise RefusedError(
                f"cgroup {self.name} is not empty", f"processes {self.processes()}"
            ) from error

    def _remove_now(self) -> bool:
        for directory in self._parts:
            try:
                directory.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise KernelError(f"cannot remove {directory}: {error.strerror}") from error
                return False
        return True

    async def _one_leaves(self) -> None:
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[None] = loop.create_future()
        for pid in self.processes():
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            loop.add_reader(pidfd, _finish, gone)
            try:
                await gone
            finally:
                loop.remove_reader(pidfd)
                os.close(pidfd)
            return
        # Nobody to wait for, yet busy: the kernel is just taking the last one out. There is
        # no event for that in version 1.
        await asyncio.sleep(0.001)

    def _with(self, controller: str) -> tuple[Hierarchy, Path]:
        for directory, hierarchy in self._parts.items():
            if controller in hierarchy.controllers:
                return hierarchy, directory
        raise KernelError(f"cgroup {self.name} does not account {controller}")

    # ---- what is read, every second where it is the node's own ----

    def _levels(self, controller: str) -> list[Path]:
        found = self._ways_up.get(controller)
        if found is None:
            hierarchy, directory = self._with(controller)
            found = self._ways_up[controller] = list(hierarchy.levels(directory))
        return found

    def _limit(self, hierarchy: Hierarchy, directory: Path) -> int | None:
        name = "memory.limit_in_bytes" if hierarchy.version == 1 else "memory.max"
        text = self._read_or_empty(f"{directory}/{name}").strip()  # version 2's root has none
        if text in ("", "max") or int(text) >= _UNLIMITED:
            return None
        return int(text)

    def _quota(self, hierarchy: Hierarchy, directory: Path) -> float | None:
        if hierarchy.version == 1:
            quota = self._read_or_empty(f"{directory}/cpu.cfs_quota_us").strip()
            if not quota or int(quota) < 0:
                return None
            period = self._read_or_empty(f"{directory}/cpu.cfs_period_us").strip()
            if not period:
                return None
        else:
            text = self._read_or_empty(f"{directory}/cpu.max").strip()
            quota, _, period = text.partition(" ")
            if quota in ("", "max"):
                return None
        return int(quota) / int(period)

    def _usage(self, hierarchy: Hierarchy, directory: Path) -> int:
        name = "memory.usage_in_bytes" if hierarchy.version == 1 else "memory.current"
        return int(self._read(f"{directory}/{name}"))

    def _number(self, path: str, key: str) -> int:
        """Of a flat-keyed file, a name and a number in each line; 0 where it is not in it."""
        _, found, rest = ("\n" + self._read(path)).partition(f"\n{key} ")
        return int(rest.partition("\n")[0]) if found else 0

    def _meminfo(self, key: str) -> int:
        _, found, rest = self._read("/proc/meminfo").partition(f"{key}:")
        if not found:
            raise KernelError(f"/proc/meminfo has no {key}")
        return int(rest.split(maxsplit=1)[0]) * 1024

    def _read(self, path: str) -> str:
        try:
            return self._text_of(path)
        except OSError as error:
            raise KernelError(f"cannot read {path}: {error.strerror}") from error

    def _read_or_empty(self, path: str) -> str:
        try:
            return self._text_of(path)
        except OSError as error:
            if error.errno in _MISSING:
                return ""
            raise KernelError(f"cannot read {path}: {error.strerror}") from error


class Cgroups:
    """The cgroup this process was given, in every hierarchy that matters."""

    def __init__(self, hierarchies: list[Hierarchy]) -> None:
        self.hierarchies = hierarchies
        #: that cgroup itself, to measure the node
        self.own = Cgroup("of this node", {h.given: h for h in hierarchies})

    @classmethod
    def detect(cls) -> Cgroups:
        """Of the calling process. Raises KernelError where no cgroups are mounted."""
        return cls.parse(
            Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"),
            Path("/proc/self/cgroup").read_text("utf-8", "surrogateescape"),
        )

    @classmethod
    def parse(cls, mountinfo: str, cgroup: str) -> Cgroups:
        """From the texts of /proc/PID/mountinfo and /proc/PID/cgroup of one process."""
        found: list[Hierarchy] = []
        seen: set[str] = set()
        for mount in Mount.parse(mountinfo):
            mounted = mount.names & (_USED if mount.version == 1 else {""})
            path = mount.path_in(cgroup)
            # One mount of each is enough.
            if path is None or not mounted or mounted & seen:
                continue
            given = _below(mount, path)
            if given is None:
                continue
            seen |= mounted
            if mount.version == 2:
                offered = _read_or_empty(given / "cgroup.controllers").split()
                mounted = _USED.intersection(offered) | _CORE_V2
            found.append(Hierarchy(mount.version, mounted, mount.top, given))
        if not found:
            raise KernelError("no cgroup hierarchy is mounted here", "mount one on /sys/fs/cgroup")
        # A controller belongs to one hierarchy: to version 1 if it is mounted there.
        result = [
            h if h.version == 1 else Hierarchy(2, h.controllers - (seen - _CORE_V2), h.top, h.given)
            for h in found
        ]
        return cls(sorted(result, key=lambda h: (h.version, sorted(h.controllers))))

    def create(
        self,
        name: str,
        *,
        memory_bytes: int | None = None,
        pids: int | None = None,
        cpu_weight: int | None = None,
    ) -> Cgroup:
        """A new cgroup below the given one, with at least one limit.

        `name`: letters, digits, - and _. An empty one of that name that was left is replaced.
        Raises RefusedError (it exists and is in use), KernelError (a controller is missing).
        """
        limits = {"memory": memory_bytes, "pids": pids, "cpu": cpu_weight}
        wanted = [controller for controller, value in limits.items() if value is not None]
        group = self._at(name, self._limiting(wanted))
        if not group._remove_now():
            raise RefusedError(f"cgroup {name} exists and has processes")
        try:
            for directory in group.directories:
                directory.mkdir()
            if memory_bytes is not None:
                self._set(group, "memory", "memory.limit_in_bytes", "memory.max", memory_bytes)
            if pids is not None:
                self._set(group, "pids", "pids.max", "pids.max", pids)
            if cpu_weight is not None:
                hierarchy, directory = group._with("cpu")
                if hierarchy.version == 1:
                    # cpu.shares: 1024 is version 2's 100; never below 2.
                    _write(directory / "cpu.shares", str(max(2, cpu_weight * 1024 // 100)))
                else:
                    _write(directory / "cpu.weight", str(cpu_weight))
        except (OSError, MosixError) as error:
            group._remove_now()
            if isinstance(error, MosixError):
                raise
            raise KernelError(
                f"cannot make cgroup {name}: {error.strerror}", f"at {error.filename}"
            ) from error
        return group

    def open(self, name: str) -> Cgroup:
        """One that exists, wherever it exists. Raises RefusedError when it does not."""
        present = [h for h in self.hierarchies if (h.given / (PREFIX + name)).is_dir()]
        if not present:
            raise RefusedError(f"there is no cgroup {name}")
        return self._at(name, present)

    def existing(self) -> list[str]:
        """Names of the cgroups made here, also by a mosd before this one."""
        names = {
            entry.name.removeprefix(PREFIX)
            for hierarchy in self.hierarchies
            for entry in hierarchy.given.glob(PREFIX + "*")
            if entry.is_dir() and entry.name != LEAF
        }
        return sorted(names)

    @staticmethod
    def _at(name: str, hierarchies: list[Hierarchy]) -> Cgroup:
        if not _NAME.match(name) or PREFIX + name == LEAF:
            raise UsageError(f"not a name for a cgroup: {name!r}")
        return Cgroup(name, {h.given / (PREFIX + name): h for h in hierarchies})

    def _limiting(self, wanted: list[str]) -> list[Hierarchy]:
        chosen = [h for h in self.hierarchies if h.controllers.intersection(_LIMITING)]
        missing = set(wanted).difference(*(h.controllers for h in chosen))
        if missing:
            raise KernelError(
                f"no cgroup controller {', '.join(sorted(missing))} for mosd's cgroup",
                "a systemd unit needs Delegate=yes; in a container they must be passed on",
            )
        for hierarchy in chosen:
            if hierarchy.version == 2:
                _subdivide(hierarchy)
        # A unified hierarchy beside version 1's controllers has nothing to offer but cpu.stat.
        return [h for h in chosen if h.version == 1 or h.controllers - _CORE_V2]

    @staticmethod
    def _set(group: Cgroup, controller: str, v1: str, v2: str, value: int) -> None:
        hierarchy, directory = group._with(controller)
        _write(directory / (v1 if hierarchy.version == 1 else v2), str(value))


def _subdivide(hierarchy: Hierarchy) -> None:
    """Let the children of the given cgroup (version 2) have the controllers it has."""
    control = hierarchy.given / "cgroup.subtree_control"
    missing = hierarchy.controllers - _CORE_V2 - set(_read(control).split())
    if not missing:
        return
    # Only the root of all has no events and may keep processes.
    if (hierarchy.given / "cgroup.events").exists() and processes(hierarchy.given):
        leaf = hierarchy.given / LEAF
        leaf.mkdir(exist_ok=True)
        while inner := processes(hierarchy.given):
            for pid in inner:
                try:
                    _write(leaf / "cgroup.procs", str(pid))
                except KernelError:
                    if Path(f"/proc/{pid}").exists():
                        raise
    _write(control, " ".join(f"+{controller}" for controller in sorted(missing)))


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _below(mount: Mount, path: str) -> Path | None:
    """Where the cgroup `path` is that was given; None if it is outside of the mount.

    Directories of our own at its end are left out: a mosd that was started again, or a remote,
    sits inside what was subdivided.
    """
    directory = mount.directory(path)
    while directory not in (None, mount.top) and directory.name.startswith(PREFIX):
        directory = directory.parent
    return directory


def processes(directory: Path) -> list[int]:
    """PIDs in one cgroup, as this PID namespace sees them; empty when it is gone."""
    # 0: in another PID namespace, not ours to name.
    return [pid for pid in map(int, _read_or_empty(directory / "cgroup.procs").split()) if pid]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise KernelError(f"cannot read {path}: {error.strerror}") from error


def _read_or_empty(path: Path) -> str:
    """ "" when the file is not there, or its cgroup went while it was read."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        if error.errno in _MISSING:
            return ""
        raise KernelError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, text: str) -> None:
    try:
        # One write(2), no truncation, no creation: a cgroup file is not an ordinary one.
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(f"cannot write {text!r} to {path}: {error.strerror}") from error


def _finish(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
