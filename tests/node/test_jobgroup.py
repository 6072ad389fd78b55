"""A job's cgroup: who belongs to it, in one hierarchy only, under whatever limits were there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosix.errors import KernelError
from mosix.node.jobgroup import MANY_NEW, JobGroup, Members, Membership

JOB = "0123456789abcdef"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


def test_a_job_is_a_member_in_one_hierarchy_beside_its_parent(
    child: subprocess.Popen[bytes],
) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    before = Path(f"/proc/{child.pid}/cgroup").read_text()
    membership = Membership.detect()
    group = JobGroup.beside(membership, JOB, child.pid)
    assert not group.path.exists()
    group.make(65534)
    try:
        assert group.path.parent == membership.group_of(os.getpid())
        group.add(child.pid)
        after = Path(f"/proc/{child.pid}/cgroup").read_text()
        assert len(set(after.splitlines()) - set(before.splitlines())) == 1
        assert membership.job_of(child.pid) == JOB
        assert membership.job_of(os.getpid()) is None
        assert group.pids() == [child.pid]
        assert group.holds(child.pid) and not group.holds(os.getpid())
        assert not group.remove()
    finally:
        child.kill()
        child.wait()
        assert group.remove()
    assert group.pids() == []


def test_our_own_is_preferred_then_version_2_then_pids_then_freezer() -> None:
    own = "40 31 0:37 / /c/mosix rw - cgroup mosix rw,name=mosix\n"
    v2 = "41 31 0:38 / /c/unified rw - cgroup2 cgroup2 rw\n"
    pids = "42 31 0:39 /lab /c/pids rw - cgroup cgroup rw,pids\n"
    freezer = "43 31 0:40 / /c/freezer rw - cgroup cgroup rw,freezer\n"
    other = "44 31 0:41 / /c/memory rw - cgroup cgroup rw,memory\n"
    for text, where in (
        (freezer + pids + v2 + own, "/c/mosix"),
        (freezer + pids + v2, "/c/unified"),
        (freezer + pids + other, "/c/pids"),
        (other + freezer, "/c/freezer"),
    ):
        assert Membership.detect(text).mount.top == Path(where)
    with pytest.raises(KernelError, match="no cgroup hierarchy"):
        Membership.detect(other)


def test_a_cgroup_outside_of_the_mount_is_named() -> None:
    elsewhere = Membership.detect("42 31 0:39 /lab /c/pids rw - cgroup cgroup rw,pids\n")
    assert elsewhere.mount.path_in("5:pids:/lab/n1\n") == "/lab/n1"
    assert elsewhere.mount.directory("/lab/n1") == Path("/c/pids/n1")
    assert elsewhere.mount.directory("/labour") is None


def test_members_are_known_without_reading_every_job_each_time() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    membership = Membership.detect()
    group = JobGroup.beside(membership, JOB, os.getpid())
    group.make(65534)
    members, processes = Members(membership), []
    try:
        members.look({os.getpid()}, [JOB])
        assert members.of(JOB, group) == []
        for _ in range(2):
            process = subprocess.Popen(["sleep", "1000"])
            processes.append(process)
            group.add(process.pid)
            # the first joins a job that was empty, the second is new
            members.look({os.getpid(), *(one.pid for one in processes)}, [JOB])
            assert sorted(members.of(JOB, group)) == sorted(one.pid for one in processes)
        processes[0].kill()
        processes[0].wait()
        members.look({os.getpid(), processes[1].pid}, [JOB])
        assert members.of(JOB, group) == [processes[1].pid]
        many = set(range(10**6, 10**6 + MANY_NEW + 1)) | {os.getpid(), processes[1].pid}
        members.look(many, [JOB])
        assert members.of(JOB, group) == [processes[1].pid]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        assert group.remove()
