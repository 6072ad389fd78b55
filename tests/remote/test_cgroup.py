"""Promises of the cgroup interface: the real kernel for version 1 and for what version 2 offers
here, a directory of the same shape for how version 2's controller files are read and written."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosix.errors import KernelError, RefusedError, UsageError
from mosix.remote.cgroup import PREFIX, Cgroup, Cgroups, Hierarchy, _subdivide

MIB = 1 << 20
ALL_V1 = {"memory", "pids", "cpu", "cpuacct", "freezer"}


def mine() -> Cgroups:
    if os.geteuid():
        pytest.skip("needs root")
    return Cgroups.detect()


@pytest.fixture
def node() -> Iterator[Cgroups]:
    """A cgroup as a lab node has it, in every hierarchy; must be empty again at the end."""
    given = [
        Hierarchy(h.version, h.controllers, h.top, h.given / f"test-node-{os.getpid()}")
        for h in mine().hierarchies
    ]
    for hierarchy in given:
        hierarchy.given.mkdir()
    try:
        yield Cgroups(given)
    finally:
        left = [str(d) for h in given for d in h.given.glob(PREFIX + "*") if d.is_dir()]
        for hierarchy in given:
            for directory in hierarchy.given.glob(PREFIX + "*"):
                if directory.is_dir():
                    asyncio.run(Cgroup("left", {directory: hierarchy}).remove(kill=True))
            hierarchy.given.rmdir()
        assert not left


def needs_v1(groups: Cgroups) -> None:
    have = {c for h in groups.hierarchies if h.version == 1 for c in h.controllers}
    if not have >= ALL_V1:
        pytest.skip(f"version 1 controllers missing: {ALL_V1 - have}")


def v2_of(groups: Cgroups) -> Cgroups:
    unified = [h for h in groups.hierarchies if h.version == 2]
    if not unified:
        pytest.skip("no cgroup2 mount")
    return Cgroups(unified)


def sleeper(group: Cgroup) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(["sleep", "1000"])
    group.add(child.pid)
    return child


PROGRAM = """
import sys
sys.stdin.read(1)
held = bytearray(int(sys.argv[1]))
held[::4096] = bytes([1]) * len(held[::4096])
print(len(held), flush=True)
sys.stdin.read()
"""


async def test_limits_are_set_where_the_kernel_reads_them(node: Cgroups) -> None:
    needs_v1(node)
    group = node.create("guest-1", memory_bytes=64 * MIB, pids=7, cpu_weight=10)
    where = {
        c: d
        for d in group.directories
        for h in node.hierarchies
        if d.parent == h.given
        for c in h.controllers
    }
    assert (where["memory"] / "memory.limit_in_bytes").read_text() == f"{64 * MIB}\n"
    assert (where["pids"] / "pids.max").read_text() == "7\n"
    assert (where["cpu"] / "cpu.shares").read_text() == "102\n"
    assert group.memory_limit() == 64 * MIB
    assert group.available() <= 64 * MIB
    await group.remove()


async def test_memory_and_cpu_time_of_a_process_are_accounted(node: Cgroups) -> None:
    needs_v1(node)
    group = node.create("guest-2", memory_bytes=256 * MIB, pids=16, cpu_weight=10)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(100 * MIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin and child.stdout
        group.add(child.pid)
        before = group.available()
        child.stdin.write(b"x")
        child.stdin.flush()
        child.stdout.readline()
        assert group.processes() == [child.pid]
        assert 100 * MIB <= group.memory_usage() <= 256 * MIB
        assert group.available() <= before - 99 * MIB
        assert group.cpu_time_ns() > 1_000_000
        child.stdin.close()
    await group.remove()


async def test_a_guest_over_its_limit_is_killed_alone(node: Cgroups) -> None:
    needs_v1(node)
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        pytest.skip("with swap it would be slow instead")
    group = node.create("guest-3", memory_bytes=32 * MIB, pids=16)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(400 * MIB)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin
        group.add(child.pid)
        child.stdin.write(b"x")
        child.stdin.close()
        assert child.wait() == -9
    await group.remove()


def test_the_tightest_limit_of_the_ancestors_counts(node: Cgroups) -> None:
    needs_v1(node)
    group = node.create("guest-4", memory_bytes=64 * MIB)
    memory = next(h for h in node.hierarchies if "memory" in h.controllers)
    (memory.given / "memory.limit_in_bytes").write_text(str(48 * MIB))
    assert group.memory_limit() == 48 * MIB
    assert node.own.memory_limit() == 48 * MIB
    assert group.available() <= 48 * MIB
    assert group._remove_now()


async def test_children_are_members_and_kill_gets_all(node: Cgroups) -> None:
    group = node.create("guest-2", pids=16)
    with subprocess.Popen(
        ["sh", "-c", "read x; sleep 1000 & sleep 1000 & echo ready; wait"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin and child.stdout
        group.add(child.pid)
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        assert len(group.processes()) == 3
        await asyncio.gather(group.remove(kill=True), asyncio.to_thread(child.wait))
    assert not group.processes()


async def test_remove_waits_for_the_last_process(node: Cgroups) -> None:
    group = node.create("guest-3", pids=16)
    child = sleeper(group)
    removal = asyncio.create_task(group.remove())
    await asyncio.sleep(0)
    assert not removal.done() and group.directories[0].exists()
    child.kill()
    child.wait()
    await removal
    assert not group.directories[0].exists()
    await group.remove()


async def test_remove_of_a_busy_cgroup_says_who_is_in_it(node: Cgroups) -> None:
    group = node.create("guest-4", pids=16)
    child = sleeper(group)
    with pytest.raises(RefusedError, match="guest-4 is not empty") as caught:
        await group.remove(timeout=0.01)
    assert str(child.pid) in caught.value.hint
    with pytest.raises(RefusedError, match="has processes"):
        node.create("guest-4", pids=16)
    child.kill()
    child.wait()
    await group.remove()


async def test_a_restarted_mosd_finds_what_it_made(node: Cgroups) -> None:
    node.create("guest-5", pids=16)
    assert node.existing() == ["guest-5"]
    child = sleeper(node.open("guest-5"))
    again = Cgroups(node.hierarchies).open("guest-5")
    assert again.processes() == [child.pid]
    await asyncio.gather(again.remove(kill=True), asyncio.to_thread(child.wait))
    with pytest.raises(RefusedError):
        node.open("guest-5")


@pytest.mark.parametrize("name", ["", "..", "a/b", "node", "x" * 65, "cgroup.procs"])
def test_names_that_could_be_paths_are_refused(node: Cgroups, name: str) -> None:
    with pytest.raises(UsageError):
        node.create(name, pids=16)


def test_a_vanished_process_cannot_be_added(node: Cgroups) -> None:
    group = node.create("guest-6", pids=16)
    with pytest.raises(KernelError, match="No such process"):
        group.add(2**22 - 1)
    assert group._remove_now()


async def test_version_2_membership_kill_and_cpu_time(node: Cgroups) -> None:
    unified = v2_of(node)
    (hierarchy,) = unified.hierarchies
    group = Cgroup("guest-7", {hierarchy.given / (PREFIX + "guest-7"): hierarchy})
    group.directories[0].mkdir()
    child = sleeper(group)
    assert group.processes() == [child.pid]
    assert group.cpu_time_ns() >= 0
    group.kill()
    assert child.wait() == -9
    await group.remove()


def test_version_2_without_the_controllers_is_named(node: Cgroups) -> None:
    unified = v2_of(node)
    if unified.hierarchies[0].controllers & {"memory"}:
        pytest.skip("this cgroup2 has the memory controller")
    with pytest.raises(KernelError, match="memory") as caught:
        unified.create("guest-7", memory_bytes=MIB)
    assert "Delegate" in caught.value.hint
    assert unified.existing() == []


@pytest.fixture
def with_hugetlb(node: Cgroups) -> Iterator[Hierarchy]:
    """The test node's cgroup, whose parent gives it a controller that limits nobody here."""
    (unified,) = v2_of(node).hierarchies
    control = unified.given.parent / "cgroup.subtree_control"
    if "hugetlb" not in (unified.given.parent / "cgroup.controllers").read_text().split():
        pytest.skip("no controller to spare in cgroup2")
    if "hugetlb" in control.read_text():
        pytest.skip("hugetlb is in use")
    control.write_text("+hugetlb")
    try:
        yield Hierarchy(2, frozenset({"hugetlb", "cpuacct"}), unified.top, unified.given)
    finally:
        (unified.given / "cgroup.subtree_control").write_text("-hugetlb")
        control.write_text("-hugetlb")


async def test_version_2_moves_what_lives_in_the_given_cgroup_to_a_leaf(
    with_hugetlb: Hierarchy,
) -> None:
    given = with_hugetlb.given
    child = subprocess.Popen(["sleep", "1000"])
    (given / "cgroup.procs").write_text(str(child.pid))
    _subdivide(with_hugetlb)
    _subdivide(with_hugetlb)
    assert (given / "cgroup.subtree_control").read_text() == "hugetlb\n"
    path = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()[-1].removeprefix("0::")
    assert path.endswith("/mosixd.node")
    # A mosd that is started again from there subdivides the same cgroup.
    unified = f"9 1 0:1 / {with_hugetlb.top} rw - cgroup2 cgroup2 rw\n"
    assert Cgroups.parse(unified, f"0::{path}\n").own.directories == (given,)
    (given / "mosixd.guest").mkdir()
    assert list((given / "mosixd.guest").glob("hugetlb.*.max"))
    (given / "mosixd.guest").rmdir()
    child.kill()
    child.wait()
    (given / "mosixd.node").rmdir()


# ---- version 2's controller files, in a directory of the same shape ----

MOUNTINFO_V2 = "31 23 0:28 / {mount} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def shaped(tmp_path: Path) -> Path:
    """system.slice/mosd.service below the mount, with the files of the kernel."""
    for directory, limit, current, cache in (
        (tmp_path / "system.slice", 300 * MIB, 200 * MIB, 20 * MIB),
        (tmp_path / "system.slice/mosd.service", None, 150 * MIB, 10 * MIB),
    ):
        directory.mkdir()
        (directory / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
        (directory / "cgroup.subtree_control").write_text("memory pids cpu\n")
        (directory / "cgroup.procs").write_text("12\n0\n13\n")
        (directory / "memory.max").write_text(f"{limit or 'max'}\n")
        (directory / "memory.current").write_text(f"{current}\n")
        (directory / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")
        (directory / "cpu.stat").write_text("usage_usec 1234\nuser_usec 1000\n")
    return tmp_path


def test_version_2_files_are_read(shaped: Path) -> None:
    groups = Cgroups.parse(
        MOUNTINFO_V2.format(mount=shaped), "0::/system.slice/mosd.service/mosixd.node\n"
    )
    own = groups.own
    assert own.directories == (shaped / "system.slice/mosd.service",)
    assert own.processes() == [12, 13]
    assert own.memory_usage() == 150 * MIB
    assert own.memory_limit() == 300 * MIB
    assert own.available() == 120 * MIB
    assert own.cpu_time_ns() == 1_234_000


def test_version_2_limits_are_written_to_its_files(shaped: Path) -> None:
    groups = Cgroups.parse(MOUNTINFO_V2.format(mount=shaped), "0::/system.slice/mosd.service\n")
    (hierarchy,) = groups.hierarchies
    group = Cgroup("guest", {hierarchy.given / "mosixd.guest": hierarchy})
    directory = group.directories[0]
    directory.mkdir()
    (directory / "memory.max").write_text("")
    groups._set(group, "memory", "memory.limit_in_bytes", "memory.max", 5 * MIB)
    assert (directory / "memory.max").read_text() == str(5 * MIB)


def test_hybrid_takes_each_controller_from_where_it_is(tmp_path: Path) -> None:
    for name in ("memory", "cpu", "freezer", "unified"):
        (tmp_path / name / "n1").mkdir(parents=True)
    (tmp_path / "unified/n1/cgroup.controllers").write_text("memory pids\n")
    mounts = "".join(
        f"3{i} 31 0:3{i} /lab {tmp_path}/{name} rw - cgroup cgroup rw,{options}\n"
        for i, (name, options) in enumerate(
            (("memory", "memory"), ("cpu", "cpu,cpuacct"), ("freezer", "freezer"))
        )
    )
    mounts += f"41 31 0:38 /lab {tmp_path}/unified rw - cgroup2 cgroup2 rw\n"
    mounts += "42 31 0:39 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
    groups = Cgroups.parse(
        mounts, "5:memory:/lab/n1\n4:cpu,cpuacct:/lab/n1\n3:freezer:/lab/n1\n0::/lab/n1\n"
    )
    have = {h.given.parent.name: (h.version, set(h.controllers)) for h in groups.hierarchies}
    assert have == {
        "memory": (1, {"memory"}),
        "cpu": (1, {"cpu", "cpuacct"}),
        "freezer": (1, {"freezer"}),
        "unified": (2, {"pids", "cpuacct", "freezer"}),
    }


def test_a_cgroup_outside_its_mount_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="no cgroup hierarchy"):
        Cgroups.parse(f"41 31 0:38 /lab {tmp_path} rw - cgroup2 cgroup2 rw\n", "0::/other\n")
