"""A guest lives at home in all it can see, and the foreign node is closed to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import PROGRAMS, PYTHON, Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle

LISTEN = (
    "import socket\n"
    "with socket.create_server(('127.0.0.1', 7777)) as server:\n"
    "    print('ready', flush=True); server.accept()\n"
)


def guest_of(node: NodeHandle, job: Job) -> dict[str, object]:
    (row,) = [row for row in node.jobs() if row["origin_pid"] == job.pid]
    return dict(row)


def test_everything_it_sees_is_homes(lab: Cluster, start: Callable[..., Job]) -> None:
    """It cannot open, list, connect to or signal what the foreign node has."""
    away = lab[2]
    away.check(["sh", "-c", "echo secret > /node/only-on-n2; echo x > /tmp/only-on-n2"])
    listener = away.popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        job = start([PYTHON, str(PROGRAMS / "look.py")])
        assert job.line() == "ready"
        foreign = away.pid_of(listener)
        question = json.dumps([["/node/only-on-n2", "/tmp/only-on-n2"], [foreign, 999_999], 7777])

        def look() -> dict[str, object]:
            job.write(question + "\n")
            return dict(json.loads(job.line()))

        at_home = look()
        assert at_home["exists"] == [False, False]
        assert at_home["reachable"] is False
        for target in ("2", "3", "home"):
            job.move(target)
            assert look() == at_home
    finally:
        drive.kill_command(listener)
        listener.communicate()


def test_namesake_of_the_owner_can_do_nothing_to_it(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(["cat"], user="games")
    lab[1].check(["migrate", "--wait", str(job.pid), "2"], user="games")
    guest = guest_of(lab[2], job)
    done = lab[2].check([PYTHON, str(PROGRAMS / "spy.py"), str(guest["pid"])], user="games")
    assert json.loads(done) == []
    job.write("untouched\n")
    assert job.line() == "untouched"


@pytest.mark.parametrize("user", [None, "games"])
def test_guest_has_no_privilege_and_no_network(
    user: str | None, lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(["cat"], user=user)
    job.move("2")
    outer = lab[2].host_pid(int(str(guest_of(lab[2], job)["pid"])))
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{outer}/status").read_text().splitlines()
    )
    host_uids = set(status["Uid"].split())
    assert host_uids.isdisjoint({"0", "5"})
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert os.listdir(f"/proc/{outer}/root/") == []
    own, nodes = (os.readlink(f"/proc/{pid}/ns/net") for pid in (outer, lab[2].node.init.pid))
    assert own != nodes
    interfaces = Path(f"/proc/{outer}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


def test_stranger_may_not_move_a_job(lab: Cluster, start: Callable[..., Job]) -> None:
    job = start(["cat"], user="games")
    done = lab[1].run(["migrate", "--wait", str(job.pid), "2"], user="nobody")
    assert done.returncode == 4
    assert len(done.stderr.splitlines()) == 1
    assert job.where() == "home"
    lab[1].check(["migrate", "--wait", str(job.pid), "2"], user="games")
    lab[1].migrate(job.pid, "home")  # root may
    assert job.finish() == (0, "", "")


def test_guest_dies_with_its_ghost(lab: Cluster, start: Callable[..., Job]) -> None:
    job = start(["cat"])
    job.move("2")
    job.kill(9)
    assert job.process.wait(60) == -9
    drive.wait_for("no guests", lambda: lab[2].jobs() == [])


def test_job_ends_when_its_guest_is_killed_there(lab: Cluster, start: Callable[..., Job]) -> None:
    """The foreign node's root kills the guest: the job ends, and nothing hangs."""
    job = start(["cat"])
    job.move("2")
    lab[2].check(["/bin/kill", "-9", str(guest_of(lab[2], job)["pid"])])
    assert job.process.wait(60) == -9
