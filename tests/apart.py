"""What a test process has to itself on a machine that others use too: its mounts, and cgroups.

tests/conftest.py enters it once in each process of a run (pytest, or a worker of xdist). All that
its tests leave behind is then in one place, and nothing that another run or another's lab leaves.
What is made here is named after the PID, so that a later run finds what a killed one has left.
Never touches what is not named so.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mosix.lab import cgroups, kernel
from mosix.node.jobgroup import OWN, mount_own
from mosix.node.jobgroup import PREFIX as JOB_PREFIX
from mosix.remote.cgroup import PREFIX as GUEST_PREFIX
from mosix.remote.cgroup import Mount

_PREFIX = "mosix-test-"
_GROUPS = (JOB_PREFIX, f"{GUEST_PREFIX}guest-")
#: Hierarchies of version 1 that mosd makes cgroups in. In version 2 a cgroup with processes cannot
#: hand its controllers to another one inside of it, so there a test process stays where it is.
_DIVIDED = frozenset((OWN, "cpu", "cpuacct", "memory", "pids", "freezer"))


def enter() -> None:
    """Of this process and its children, from now on."""
    if os.geteuid() != 0:  # who may leave nothing of the kind
        return
    mount_own()  # which is the machine's, so before
    with contextlib.suppress(OSError):  # root of a container may not: then it has no labs either
        for group in _own_groups():
            _remove_abandoned(group)
            mine = group / f"{_PREFIX}{os.getpid()}"
            mine.mkdir(exist_ok=True)
            (mine / "cgroup.procs").write_text("0")
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)


def leave() -> None:
    """The cgroups go, unless something still lives in them."""
    for group in _own_groups():
        if group.name == f"{_PREFIX}{os.getpid()}":
            (group.parent / "cgroup.procs").write_text("0")
            _remove(group)


def cgroups_of_mosix() -> set[str]:
    """Of the jobs and guests of this process's mosds, and of its labs."""
    return {
        path
        for top in _own_tops()
        for path, _, _ in os.walk(top)
        if os.path.basename(path).startswith(_GROUPS)
    }


def empty_cgroups() -> set[str]:
    """Those of jobs and guests that are over."""
    return {path for path in cgroups_of_mosix() if _is_empty(path)}


def labs() -> set[str]:
    """Names of this process's labs of which there is something."""
    tops = [Path("/run/mosix-lab"), *(root / cgroups.TOP for root in cgroups.hierarchies().roots())]
    return {path.name for top in tops for path in top.glob(f"t{os.getpid()}-*")}


def _own_tops() -> Iterator[Path]:
    yield from _own_groups(_DIVIDED | {""})
    for root in cgroups.hierarchies().roots():
        yield from (root / cgroups.TOP).glob(f"t{os.getpid()}-*")


def _own_groups(names: frozenset[str] = _DIVIDED) -> Iterator[Path]:
    """The directory of this process's cgroup in each hierarchy."""
    where = Path("/proc/self/cgroup").read_text()
    found: dict[str, Path] = {}
    for mount in Mount.parse(Path("/proc/self/mountinfo").read_text()):
        path = mount.path_in(where) if mount.names & names else None
        directory = mount.directory(path) if path is not None else None
        if directory is not None:
            found.setdefault(",".join(sorted(mount.names & names)), directory)
    return iter(found.values())


def _is_empty(path: str) -> bool:
    with contextlib.suppress(OSError):  # it has gone meanwhile
        return not Path(path, "cgroup.procs").read_text()
    return False


def _remove_abandoned(group: Path) -> None:
    for path in group.glob(f"{_PREFIX}*"):
        owner = re.fullmatch(rf"{_PREFIX}(\d+)", path.name)
        if owner and not os.path.exists(f"/proc/{owner[1]}"):
            _remove(path)


def _remove(top: Path) -> None:
    for path, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)
