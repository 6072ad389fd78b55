"""A lab comes up, is left by nothing but `down`, and `down` leaves nothing, ever."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import apart
import pytest
from jobs import Job
from mosix.errors import MosixError, UsageError
from mosix.lab import cgroups, drive, state
from mosix.lab.drive import LAB, Cluster


@pytest.fixture
def name() -> Iterator[str]:
    """A lab's name; whatever is left of the lab goes away."""
    name = f"t{os.getpid()}-updown"
    yield name
    drive.down(name)


def up(name: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*LAB, "up", f"--name={name}", "--no-mosd", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def traces(name: str) -> list[str]:
    """All that a lab could have left on this machine."""
    left = [
        f"cgroup {root / cgroups.TOP / name}"
        for root in cgroups.hierarchies().roots()
        if (root / cgroups.TOP / name).exists()
    ]
    left += [f"process {pid}" for pid in cgroups.processes(name)]
    left += ["directory"] if state.directory(name).exists() else []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"lab-switch-{name}".encode() in command:
            left.append(f"switch {process.name}")
    left += ["mount" for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]
    return left


def test_down_after_up_leaves_nothing(name: str) -> None:
    lab = Cluster.up(name, 2, "--no-mosd")
    inits = [node.node.init for node in lab.nodes]
    assert all(init.alive() for init in inits)
    lab.down()
    assert not any(init.alive() for init in inits)
    assert traces(name) == []


def test_down_without_a_lab_says_so_and_succeeds(name: str) -> None:
    done = subprocess.run(
        [*LAB, "down", f"--name={name}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"there is no lab '{name}'\n")


def test_second_up_of_the_same_name_is_refused(name: str) -> None:
    Cluster.up(name, 1, "--no-mosd")
    with pytest.raises(MosixError, match="is up already"):
        Cluster.up(name, 1, "--no-mosd")
    assert Cluster(name)[1].check(["hostname"]) == "n1\n"


def test_failed_up_says_why_and_leaves_nothing(name: str) -> None:
    script = (
        "import sys\n"
        "from mosix.lab import cgroups, cluster\n"
        "cluster.up(sys.argv[1], 1, cgroups.Limits(), ['/bin/false'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, name], capture_output=True, text=True, check=False
    )
    assert "MosixError: mosd of n1 ended at once" in done.stderr
    assert traces(name) == []


def test_killed_up_leaves_nothing_after_down(name: str) -> None:
    """SIGKILL at 12 moments spread over the whole of `up`."""
    begun = time.monotonic()
    assert up(name).wait() == 0
    takes_s = time.monotonic() - begun
    drive.down(name)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for _ in range(12):
        process = up(name)
        try:
            process.wait(moments.uniform(0.2, 1.0) * takes_s)  # the moment of death, no rendezvous
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        drive.down(name)
        assert traces(name) == []


def test_up_after_a_killed_up_works_without_down(name: str) -> None:
    process = up(name)
    drive.wait_for("a first node", (state.directory(name) / "n1").exists)
    process.kill()
    process.communicate()
    assert Cluster.up(name, 2, "--no-mosd")[2].check(["hostname"]) == "n2\n"


def test_down_ends_an_up_that_is_under_way(name: str) -> None:
    process = up(name, "--nodes=40")
    drive.wait_for("a first node", (state.directory(name) / "n1").exists)
    drive.down(name)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert traces(name) == []


def test_down_kills_what_ignores_every_signal_and_what_forks(name: str) -> None:
    lab = Cluster.up(name, 1, "--no-mosd")
    stubborn = "trap '' TERM HUP INT; echo ready; while :; do (sleep 0.01); done"
    with lab[1].popen(["setsid", "sh", "-c", stubborn], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        lab.down()
    assert traces(name) == []


def test_down_leaves_no_cgroup_of_jobs_and_guests(name: str) -> None:
    lab = Cluster.up(name, 2)
    with Job(lab[1], ["cat"]) as job:
        job.move("2")
        lab[1].mosd("kill")
        homes = {path for path in apart.cgroups_of_mosix() if f"/{name}/n1/" in path}
        hosts = {path for path in apart.cgroups_of_mosix() if f"/{name}/n2/" in path}
        assert homes and hosts
        lab.down()
    assert not any(map(os.path.exists, homes | hosts))
    assert traces(name) == []


def test_down_kills_what_is_frozen(name: str) -> None:
    roots = cgroups.hierarchies().v1
    if "freezer" not in roots:
        pytest.skip("no freezer hierarchy (cgroup v1) here")
    lab = Cluster.up(name, 1, "--no-mosd")
    with lab[1].popen(["sleep", "infinity"]):
        drive.wait_for("sleep", lambda: "sleep infinity" in lab[1].processes().values())
        group = roots["freezer"] / cgroups.TOP / name / "n1"
        (group / "freezer.state").write_text("FROZEN")
        lab.down()
    assert traces(name) == []


def test_two_labs_side_by_side_do_not_see_each_other(name: str) -> None:
    other = f"{name}-2"
    try:
        first, second = (Cluster.up(each, 2, "--no-mosd") for each in (name, other))
        assert first[1].ip != second[1].ip
        assert first[1].check(["cat", "/etc/mosix/secret"]) != second[1].check(
            ["cat", "/etc/mosix/secret"]
        )
        second.down()
        assert first[2].check(["cat", "/node/name"]) == "n2\n"
    finally:
        drive.down(other)


def test_dead_init_takes_its_node_along_and_status_tells(name: str) -> None:
    lab = Cluster.up(name, 2, "--no-mosd")
    with lab[1].popen(["sleep", "infinity"]) as process:
        drive.wait_for("sleep", lambda: "sleep infinity" in lab[1].processes().values() or None)
        os.kill(lab[1].node.init.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    # which is killed by its init, the last of the node to end
    drive.wait_for("the end of init", lambda: not lab[1].node.init.alive())
    status = subprocess.run(
        [*LAB, "status", f"--name={name}"], capture_output=True, text=True, check=False
    )
    assert status.returncode == 0
    assert "dead" in status.stdout
    with pytest.raises(MosixError, match="n1 is dead"):
        lab[1].check(["true"])


def test_wrong_names_and_numbers_are_named(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a lab"):
        drive.down("../etc")
    with pytest.raises(UsageError, match="200 nodes"):
        Cluster.up(name, 1000, "--no-mosd")
    with pytest.raises(MosixError, match="is not up"):
        Cluster(name)
