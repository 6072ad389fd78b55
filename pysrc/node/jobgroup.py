"""The cgroup that holds a job at home: membership only, no limits.

It lies in a hierarchy of our own (v1, named, without controllers), where the process that called
mosrun joins by itself: a thread that moves itself costs microseconds, while the kernel lets an RCU
grace period pass (5 to 20 ms) before anybody moves another process. Where that cannot be mounted,
in another one: cgroup v2, else v1 `pids` or `freezer` (`mosix.remote.cgroup` knows where they are),
inside the cgroup of the process that called mosrun, so that the job stays under whatever limits and
session it was started in. mosd makes and removes it (root); the deputy and mosd read it.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from pathlib import Path

from mosix.errors import KernelError
from mosix.remote.cgroup import Mount, processes

PREFIX = "mosix-job-"
#: Our own hierarchy, as mount(8) and /proc/PID/cgroup call it, and where it is mounted.
OWN = "name=mosix"
OWN_MOUNT = Path("/run/mosix/cgroup")
#: With more processes than this that have come, all jobs are read again.
MANY_NEW = 32
_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{16}})")


@dataclass(frozen=True)
class Membership:
    """The mounted hierarchy whose cgroups say which processes belong to a job."""

    mount: Mount

    @classmethod
    def detect(cls, mountinfo: str | None = None) -> Membership:
        """The one to use here. KernelError when no cgroup is mounted."""
        text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
        mounts = Mount.parse(text)
        for name in (OWN, "", "pids", "freezer"):
            for mount in mounts:
                if name in mount.names:
                    # A hierarchy mounted with others is still known by this one.
                    return cls(replace(mount, names=frozenset({name})))
        raise KernelError("no cgroup hierarchy is mounted", "mount cgroup2 on /sys/fs/cgroup")

    @property
    def own(self) -> bool:
        """Nothing but jobs is in it, and processes may join by themselves."""
        return OWN in self.mount.names

    def group_of(self, pid: int) -> Path:
        """Directory of the cgroup of `pid`. OSError when there is no such process."""
        path = self.mount.path_in(Path(f"/proc/{pid}/cgroup").read_text())
        if path is None:
            raise KernelError(f"process {pid} is in no cgroup of {self.mount.top}")
        directory = self.mount.directory(path)
        if directory is None:
            raise KernelError(
                f"cgroup {path} is outside of {self.mount.top}",
                "run mosd in the same cgroup namespace",
            )
        return directory

    def job_of(self, pid: int) -> str | None:
        """Id of the innermost job that `pid` is a member of."""
        try:
            names = _NAME.findall(str(self.group_of(pid)))
        except (OSError, KernelError):
            return None
        return names[-1] if names else None


def mount_own(where: Path = OWN_MOUNT) -> str:
    """Mounts our own hierarchy, unless it is already; returns why that cannot be, or "".
    It is one for the whole machine and stays mounted, like all cgroups."""
    options = f"none,{OWN},nosuid,nodev,noexec"
    try:
        if where.is_mount():
            return ""
        where.mkdir(mode=0o755, parents=True, exist_ok=True)
        subprocess.run(
            ["mount", "-t", "cgroup", "-o", options, "mosix", str(where)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
    except OSError as error:
        return f"{where}: {error.strerror}"
    except subprocess.CalledProcessError as error:
        return " ".join(error.stderr.decode("utf-8", "replace").split()) or "mount failed"
    return ""


class Members:
    """PIDs of jobs as they were when it was looked last, without asking the kernel for each job
    every second: a job is read again when a process has come that belongs to it."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._seen: set[int] = set()
        self._of: dict[str, list[int]] = {}

    def look(self, processes: Set[int], jobs: Iterable[str]) -> None:
        """`processes`: all that there are now; more (threads) do no harm. `jobs`: ids."""
        new = processes - self._seen
        changed = set(jobs) if len(new) > MANY_NEW else set(map(self._membership.job_of, new))
        gone = self._seen - processes
        self._of = {
            job: [pid for pid in pids if pid not in gone] if gone else pids
            for job, pids in self._of.items()
            if job not in changed
        }
        self._seen = set(processes)

    def of(self, job: str, group: JobGroup) -> list[int]:
        found = self._of.get(job)
        if not found:  # also of one whose first process has not joined yet
            found = self._of[job] = group.pids()
        return found


@dataclass(frozen=True)
class JobGroup:
    """One job's cgroup."""

    path: Path
    membership: Membership

    @classmethod
    def beside(cls, membership: Membership, job: str, pid: int) -> JobGroup:
        """To be made inside the cgroup of process `pid`, which is not moved yet. KernelError."""
        try:
            return cls(membership.group_of(pid) / f"{PREFIX}{job}", membership)
        except OSError as error:
            raise KernelError(f"no cgroup for the job: {error}") from error

    def make(self, uid: int) -> None:
        """In our own hierarchy `uid` may put processes of his into it. KernelError."""
        try:
            self.path.mkdir(mode=0o755)
            if self.membership.own:
                os.chown(self.path / "tasks", uid, -1)
        except OSError as error:
            raise KernelError(f"no cgroup for the job: {error}") from error

    def add(self, pid: int) -> None:
        """Moves `pid` here; its children follow. KernelError."""
        try:
            (self.path / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise KernelError(f"{self.path}: {error.strerror}") from error

    def holds(self, pid: int) -> bool:
        """Whether `pid` is a member; a cgroup elsewhere of the same name does not count."""
        try:
            group = self.membership.group_of(pid)
        except (OSError, KernelError):
            return False
        return group == self.path or self.path in group.parents

    def pids(self) -> list[int]:
        """The members; empty when the group is gone."""
        try:
            alone = os.stat(self.path).st_nlink == 2
        except OSError:
            return []
        if alone:  # no groups inside, as in most jobs
            return processes(self.path)
        found: list[int] = []
        for directory, _, _ in os.walk(self.path):
            found += processes(Path(directory))
        return found

    def remove(self) -> bool:
        """False while somebody is still in it."""
        for directory, _, _ in os.walk(self.path, topdown=False):
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True
