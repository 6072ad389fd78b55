"""The cgroup that holds a job at home: membership only, no limits.

It lies in a hierarchy of our own (v1, named, without controllers), where the process that called
mosrun joins by itself: a thread that moves itself costs microseconds, while the kernel lets an RCU
grace period pass (5 to 20 ms) before anybody moves another process. Where that cannot be mounted,
in another one: cgroup v2, else v1 `pids` or `freezer`, inside the cgroup of the process that called
mosrun, so that the job stays under whatever limits and session it was started in.
mosd makes and removes it (root); the deputy and mosd read it.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mosix.errors import KernelError

PREFIX = "mosix-job-"
#: Our own hierarchy, as mount(8) and /proc/PID/cgroup call it, and where it is mounted.
OWN = "name=mosix"
OWN_MOUNT = Path("/run/mosix/cgroup")
_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{16}})")


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup tree. `controller`: "" for v2."""

    mount: Path
    root: str
    controller: str

    @property
    def own(self) -> bool:
        """Nothing but jobs is in it, and processes may join by themselves."""
        return self.controller == OWN

    def group_of(self, pid: int) -> Path:
        """Directory of the cgroup of `pid`. OSError when there is no such process."""
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if self.controller in controllers.split(","):
                return self._directory(path)
        raise KernelError(f"process {pid} is in no cgroup of {self.mount}")

    def _directory(self, path: str) -> Path:
        below = path.removeprefix(self.root.rstrip("/")) if self.root != "/" else path
        if ".." in below.split("/"):
            raise KernelError(
                f"cgroup {path} is outside of {self.mount}", "run mosd in the same cgroup namespace"
            )
        return Path(f"{self.mount}/{below.strip('/')}".rstrip("/"))

    def job_of(self, pid: int) -> str | None:
        """Id of the innermost job that `pid` is a member of."""
        try:
            names = _NAME.findall(str(self.group_of(pid)))
        except (OSError, KernelError):
            return None
        return names[-1] if names else None


def mount_own(where: Path = OWN_MOUNT) -> None:
    """Mounts our own hierarchy, unless it is already or the kernel or our rights do not allow it.
    It is one for the whole machine and stays mounted, like all cgroups."""
    options = f"none,{OWN},nosuid,nodev,noexec"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if not where.is_mount():
            where.mkdir(mode=0o755, parents=True, exist_ok=True)
            subprocess.run(
                ["mount", "-t", "cgroup", "-o", options, "mosix", str(where)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
            )


def find_hierarchy(mountinfo: str | None = None) -> Hierarchy:
    """The one to use here. KernelError when no cgroup is mounted."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    found: dict[str, Hierarchy] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), after.split(" ", 2)
        root, mount = fields[3], Path(fields[4])
        if kind == "cgroup2":
            found.setdefault("", Hierarchy(mount, root, ""))
        elif kind == "cgroup":
            for controller in {OWN, "pids", "freezer"} & set(options.split(",")):
                found.setdefault(controller, Hierarchy(mount, root, controller))
    for controller in (OWN, "", "pids", "freezer"):
        if controller in found:
            return found[controller]
    raise KernelError("no cgroup hierarchy is mounted", "mount cgroup2 on /sys/fs/cgroup")


@dataclass(frozen=True)
class JobGroup:
    """One job's cgroup."""

    path: Path
    hierarchy: Hierarchy

    @classmethod
    def create(cls, hierarchy: Hierarchy, job: str, beside: int, uid: int) -> JobGroup:
        """Made inside the cgroup of process `beside`, which is not moved yet. In our own
        hierarchy `uid` may put processes of his into it. KernelError."""
        try:
            path = hierarchy.group_of(beside) / f"{PREFIX}{job}"
            path.mkdir(mode=0o755)
            if hierarchy.own:
                os.chown(path / "tasks", uid, -1)
        except OSError as error:
            raise KernelError(f"no cgroup for the job: {error}") from error
        return cls(path, hierarchy)

    def add(self, pid: int) -> None:
        """Moves `pid` here; its children follow. KernelError."""
        try:
            (self.path / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise KernelError(f"{self.path}: {error.strerror}") from error

    def holds(self, pid: int) -> bool:
        """Whether `pid` is a member; a cgroup elsewhere of the same name does not count."""
        try:
            group = self.hierarchy.group_of(pid)
        except (OSError, KernelError):
            return False
        return group == self.path or self.path in group.parents

    def pids(self) -> list[int]:
        """The members; empty when the group is gone."""
        found: list[int] = []
        for directory, _, _ in os.walk(self.path):
            try:
                text = (Path(directory) / "cgroup.procs").read_text()
            except OSError:
                continue
            found += [int(pid) for pid in text.split() if pid != "0"]
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
