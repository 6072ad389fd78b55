"""Which cgroup hierarchy holds the jobs of a node."""

from __future__ import annotations

from pathlib import Path

import pytest
from mosix.errors import KernelError
from mosix.node.jobgroup import find_hierarchy

_OWN = "40 1 0:40 / /run/mosix/cgroup rw - cgroup mosix rw,name=mosix\n"
_V2 = "30 1 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
_FREEZER = "31 1 0:31 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
_PIDS = "32 1 0:32 /box /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"


@pytest.mark.parametrize(
    ("mounts", "mount", "own"),
    [
        (_V2 + _FREEZER + _OWN, "/run/mosix/cgroup", True),
        (_FREEZER + _PIDS + _V2, "/sys/fs/cgroup/unified", False),
        (_FREEZER + _PIDS, "/sys/fs/cgroup/pids", False),
        (_FREEZER, "/sys/fs/cgroup/freezer", False),
    ],
)
def test_our_own_is_taken_else_the_newest(mounts: str, mount: str, own: bool) -> None:
    found = find_hierarchy(mounts)
    assert (found.mount, found.own) == (Path(mount), own)


def test_without_any_it_says_what_to_do() -> None:
    with pytest.raises(KernelError) as caught:
        find_hierarchy("20 1 0:20 / / rw - ext4 /dev/vda rw\n")
    assert "mount cgroup2" in caught.value.hint
