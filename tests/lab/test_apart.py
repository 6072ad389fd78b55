"""What a test leaves is found, and what others leave is not taken for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import apart
import pytest
from mosix.lab import cgroups
from mosix.node.jobgroup import PREFIX, JobGroup, Membership

JOB = "fedcba9876543210"


def test_an_empty_cgroup_of_a_job_is_found_if_it_is_ours() -> None:
    group = JobGroup.beside(Membership.detect(), JOB, os.getpid())
    group.make(0)
    others = group.path.parent.parent / f"{PREFIX}{JOB}"  # as beside another worker
    others.mkdir()
    try:
        assert apart.empty_cgroups() == {str(group.path)}
        with subprocess.Popen(["sleep", "1000"]) as process:
            group.add(process.pid)
            assert apart.empty_cgroups() == set()
            process.kill()
        assert apart.empty_cgroups() == {str(group.path)}
    finally:
        others.rmdir()
        group.remove()


@pytest.mark.parametrize("ours", [True, False])
def test_an_empty_cgroup_of_a_job_in_a_lab_is_found_if_the_lab_is_ours(ours: bool) -> None:
    lab = f"t{os.getpid() if ours else 1}-apart"
    node, *_ = (group for group in cgroups.create(lab, "n1") if "/mosix/cgroup/" in str(group))
    group = node / f"{PREFIX}{JOB}"
    group.mkdir()
    try:
        assert apart.empty_cgroups() == ({str(group)} if ours else set())
        assert (lab in apart.labs()) == ours
    finally:
        cgroups.remove(lab)


def test_mounts_of_this_process_are_its_own(tmp_path: Path) -> None:
    mine = Path("/proc/self/mounts")
    before = mine.read_text()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path], check=True)
    try:
        assert str(tmp_path) in mine.read_text()
        assert str(tmp_path) not in Path(f"/proc/{os.getppid()}/mounts").read_text()
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert mine.read_text() == before
