"""What the owner of a node says happens at once, and costs nobody his job."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from jobs import PROGRAMS, Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built
from mosix.node.evacuation import AGAIN_S


def echo(job: Job) -> None:
    job.write("here\n")
    assert job.line() == "here"


@contextmanager
def said(node: NodeHandle, word: str, undo: str) -> Iterator[None]:
    node.check(["mosctl", word])
    try:
        yield
    finally:
        node.check(["mosctl", undo])


def setpe(node: NodeHandle, *options: str) -> str:
    return node.check([sys.executable, "-m", "mosix.cli.setpe", *options])


@contextmanager
def changed(node: NodeHandle, name: str, text: str) -> Iterator[str]:
    """setpe with another file in /etc/mosix, and in the end with the old one; what it said."""
    file = node.path(f"/etc/mosix/{name}")
    before = file.read_text() if file.exists() else None
    file.write_text(text)
    try:
        yield setpe(node)
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_text(before)
        setpe(node)


def test_an_owner_gets_his_machine_back_and_nobody_loses_anything(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    flag = "/node/back"
    waiting, computing = start(["cat"]), start([str(built(PROGRAMS / "checksum.c")), "until", flag])
    for job in (waiting, computing):
        job.move("2")
    with Job(lab[3], ["cat"]) as other, said(lab[2], "block", "noblock"):
        assert lab[3].run(["migrate", "--wait", str(other.pid), "2"]).returncode == 8
        done = json.loads(lab[2].check(["mosctl", "expel", "--json"]))
        assert (done["guests"], done["left"]) == (2, [])
        assert lab[2].jobs() == []
        assert [job.where() for job in (waiting, computing)] == ["home", "home"]
        assert "is wanted by its owner" in waiting.row()["why"]
        refused = lab[1].run(["migrate", "--wait", str(waiting.pid), "2"])
        assert refused.returncode == 8
        assert "its owner takes no guests now" in refused.stderr
        echo(waiting)
    lab[1].check(["touch", flag])
    status, output, complaints = computing.finish()
    assert (status, complaints) == (0, "")
    rounds = output.rpartition("rounds ")[2].split()[0]
    plain = lab[1].check([str(built(PROGRAMS / "checksum.c")), "rounds", rounds], timeout_s=60)
    assert output == plain[-len(output) :]


def test_one_guest_is_sent_out_by_root_alone(lab: Cluster, start: Callable[..., Job]) -> None:
    job, stays = start(["cat"], user="nobody"), start(["cat"])
    job.move("2")
    stays.move("2")
    guest = next(str(row["pid"]) for row in lab[2].jobs() if row["origin_pid"] == job.pid)
    for user, pid, code in (("nobody", guest, 4), ("root", "1", 5), ("root", str(2**22 - 1), 5)):
        assert lab[2].run(["migrate", pid, "out"], user=user).returncode == code
    assert lab[1].run(["migrate", str(job.pid), "out"]).returncode == 5  # no guest of its home
    assert lab[2].check(["migrate", "--wait", guest, "out"]) == "it has left\n"
    assert (job.where(), stays.where()) == ("home", lab[2].ip)
    echo(job)


@pytest.mark.parametrize("fault", ["deputy.freeze=ENOMEM", "deputy.frozen=ENOMEM"])
def test_a_guest_that_cannot_go_at_once_runs_on_and_is_asked_again(
    fault: str, lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(["cat"])
    job.move("2")
    lab[1].arm(fault)
    try:
        done = json.loads(lab[2].check(["mosctl", "expel", "--json"]))
    finally:
        lab[1].arm("")
    assert (done["guests"], done["left"]) == (1, [])
    # The first attempt failed and harmed nobody.
    assert done["seconds"] >= AGAIN_S
    assert job.where() == "home"
    echo(job)


def test_bring_brings_home_whoever_is_away(lab: Cluster, start: Callable[..., Job]) -> None:
    jobs = [start(["cat"]) for _ in range(3)]
    jobs[0].move("2")
    jobs[1].move("3")
    with Job(lab[2], ["cat"]) as guest:
        lab[2].migrate(guest.pid, "1")
        assert "0 guests left, 2 own processes came home" in lab[1].check(["mosctl", "bring"])
        assert [job.where() for job in jobs] == ["home"] * 3
        assert guest.where() == lab[1].ip
        for job in (*jobs, guest):
            echo(job)


def test_a_drained_node_is_empty_and_names_who_could_not_leave(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(["cat"])
    job.move("2")
    with Job(lab[2], ["cat"]) as own:
        lab[2].migrate(own.pid, "3")
        lab[1].link(up=False)
        try:
            done = lab[3].run(["mosctl", "drain", "2", "--deadline", "1"])
            assert done.returncode == 10, done
            assert "0 guests left, 1 own process came home" in done.stdout
            (guest,) = (row for row in lab[2].jobs() if row["where"] == "here")
            assert f"guest {guest['pid']} of node {lab[1].ip}" in done.stderr
            echo(own)
            assert own.where() == "home"
        finally:
            lab[1].link(up=True)
        # It is asked again and again: nobody has to.
        drive.wait_for("it has left", lambda: job.where() == "home", 40)
        echo(job)
        assert "0 guests left" in lab[2].check(["mosctl", "drain"])
        assert lab[1].run(["migrate", "--wait", str(job.pid), "2"]).returncode == 8
        refused = lab[2].run(["migrate", "--wait", str(own.pid), "1"])
        assert refused.returncode == 8
        assert "drained" in refused.stderr
        lab[1].check(["mosctl", "nodrain", "2"])
        job.move("2")
        lab[2].migrate(own.pid, "3")


def test_a_node_that_leaves_the_map_keeps_nobody_and_loses_nobody(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    gone, stays = start(["cat"]), start(["cat"])
    gone.move("3")
    stays.move("2")
    text = "".join(f"{lab[number].ip} 1\n" for number in (1, 2))
    with Job(lab[3], ["cat"]) as guest:
        lab[3].migrate(guest.pid, "1")
        with changed(lab[1], "mosix.map", text) as told:
            assert "2 nodes in the map: 0 added, 1 removed" in told
            assert "1 guest left, 1 own process came home" in told
            assert (gone.where(), stays.where(), guest.where()) == ("home", lab[2].ip, "home")
            for job in (gone, stays, guest):
                echo(job)
            unknown = lab[1].run(["migrate", "--wait", str(gone.pid), "3"])
            assert unknown.returncode == 6
            refused = lab[3].run(["migrate", "--wait", str(guest.pid), "1"])
            assert refused.returncode == 8
            assert "is not in its mosix.map" in refused.stderr
            with changed(lab[1], "speed", "1\n"):
                pass  # another setpe brings nobody back
        gone.move("3")
        lab[3].migrate(guest.pid, "1")


def test_a_node_that_is_off_is_alone_and_comes_back(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(["cat"])
    job.move("2")
    with Job(lab[2], ["cat"]) as guest:
        lab[2].migrate(guest.pid, "1")
        try:
            assert "off: this node is alone" in setpe(lab[1], "-off")
            assert (job.where(), guest.where()) == ("home", "home")
            assert lab[1].run(["migrate", str(job.pid), "2"]).returncode == 6
            assert lab[2].run(["migrate", "--wait", str(guest.pid), "1"]).returncode == 8
            assert lab[1].check(["mosrun", "echo", "alone"]) == "alone\n"
        finally:
            setpe(lab[1])
        job.move("2")
        lab[2].migrate(guest.pid, "1")
        echo(job)
        echo(guest)


def test_processes_of_class_0_do_not_go_to_outsiders(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    text = "".join(f"{lab[n].ip} 1 {'o' if n == 3 else ''}\n" for n in (1, 2, 3))
    local, other = start(["cat"]), start(["cat"], options=("-G1",))
    local.move("3")
    other.move("3")
    with changed(lab[1], "mosix.map", text) as told:
        # It may not stay where it is, locked or not.
        assert "0 guests left, 1 own process came home" in told
        assert (local.where(), other.where()) == ("home", lab[3].ip)
        refused = lab[1].run(["migrate", "--wait", str(local.pid), "3"])
        assert refused.returncode == 8
        assert "is an outsider, and this process is of class 0" in refused.stderr
        assert lab[1].run(["mosrun", "-3", "true"]).returncode == 125
        local.move("2")
        asks = start(["python3", "-c", _BECOMES_LOCAL], options=("-G2",))
        asks.move("3")
        asks.write("now\n")
        assert asks.line() == "class 0"
        asks.wait_until_at("home")
        assert lab[1].run(["mosrun", "-3", "-G1", "true"]).returncode == 0
        for job in (local, other):
            echo(job)
    local.move("3")


_BECOMES_LOCAL = """
import sys
from mosix import job
sys.stdin.readline()
job.write("glob", 0)
print("class", job.read("glob"), flush=True)
sys.stdin.readline()
"""


def test_guests_leave_the_processor_to_the_owner(lab: Cluster, start: Callable[..., Job]) -> None:
    """On one processor, of the time that both get the guest has a small part."""
    job = start([str(built(PROGRAMS / "checksum.c")), "until", "/node/enough"])
    job.move("2")
    guest = lab[2].host_pid(lab[2].jobs()[0]["pid"])
    with lab[2].popen(["sh", "-c", "while :; do :; done"]) as owner:
        try:
            outer, _ = lab[2].pids_of(owner)
            cpu = min(os.sched_getaffinity(0))
            for pid in (guest, outer):
                os.sched_setaffinity(pid, {cpu})
            before = [_cpu_time(pid) for pid in (guest, outer)]
            drive.wait_for(
                "the owner has had a second", lambda: _cpu_time(outer) > before[1] + 1, 60
            )
            shares = [
                _cpu_time(pid) - then for pid, then in zip((guest, outer), before, strict=True)
            ]
            assert shares[0] < shares[1] / 4
        finally:
            drive.kill_command(owner)
    lab[1].check(["touch", "/node/enough"])
    assert job.finish()[0] == 0


def _cpu_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_config_check_needs_no_mosd_and_no_root(user: str, lab: Cluster) -> None:
    done = lab[3].run(["mosctl", "config", "check"], user=user)
    assert done.returncode == 0, done
    assert "/etc/mosix: right: mosix.map, " in done.stdout
    file = lab[3].path("/etc/mosix/speed")
    file.write_text("fast\n")
    try:
        done = lab[3].run(["mosctl", "config", "check"], user=user)
        assert done.returncode == 11
        assert "/etc/mosix/speed:1: the speed must be a number, not 'fast'" in done.stdout
        assert done.stderr.startswith("mosctl: a mistake in /etc/mosix")
    finally:
        file.unlink()


def test_mosconf_changes_a_running_node_only_as_a_whole(lab: Cluster) -> None:
    mosconf = [sys.executable, "-m", "mosix.cli.mosconf", "--yes"]

    def guests_allowed() -> str:
        refused = lab[1].run(["migrate", "--wait", str(job.pid), "3"])
        return refused.stderr.partition("refuses: ")[2]

    with Job(lab[1], ["cat"]) as job:
        try:
            wrong = lab[3].run([*mosconf, "--max-guests", "0", "--node", "10.1.1.1", "--setpe"])
            assert wrong.returncode == 11, wrong
            assert not lab[3].path("/etc/mosix/maxguests").exists()
            told = lab[3].check([*mosconf, "--max-guests", "0"])
            assert "setpe has it take them" in told
            assert "mosd has taken them" in lab[3].check([*mosconf, "--speed", "1234", "--setpe"])
            assert guests_allowed().startswith("it has 0 guests already and takes no more")
        finally:
            for name in ("maxguests", "speed"):
                lab[3].path(f"/etc/mosix/{name}").unlink(missing_ok=True)
            setpe(lab[3])
        job.move("3")
