"""Version 2 of cgroups, as a service manager gives it to mosd (`Delegate=yes`): what a guest may
have is set, it goes home before it has more, and the node's own processes are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built
from mosix.node.guests import GUEST_PIDS
from mosix.remote.cgroup import GUEST_CPU_WEIGHT

GROW = Path(__file__).resolve().parents[1] / "security" / "programs" / "grow.c"
_TOP = "/sys/fs/cgroup"
_SERVICE = f"{_TOP}/mosd.service"
_OWN = f"{_SERVICE}/mosixd.node"
#: More than mosd, its spawner and a remote have, less than a guest wants.
_ROOM_MIB = 300
_LONG_S = 120.0


def read(node: NodeHandle, path: str) -> str:
    return node.check(["cat", path]).strip()


def members(node: NodeHandle, group: str) -> list[str]:
    """Names of the processes in a cgroup."""
    script = 'for pid in $(cat "$0"); do tr "\\0" " " </proc/$pid/cmdline; echo; done'
    return node.check(["sh", "-c", script, f"{group}/cgroup.procs"]).splitlines()


@pytest.fixture(params=[1, 2], ids=["guest-at-6.1", "guest-at-6.12"])
def lender(request: pytest.FixtureRequest, lab: Cluster) -> Iterator[NodeHandle]:
    """A machine whose mosd is in a cgroup that is its own, with little memory."""
    node = lab[request.param]
    node.close()
    node.mosd("stop")
    script = (
        f"echo +cpu +memory +pids >{_TOP}/cgroup.subtree_control; mkdir {_SERVICE}; "
        f"echo {_ROOM_MIB << 20} >{_SERVICE}/memory.max; echo $$ >{_SERVICE}/cgroup.procs; "
        f"exec {sys.executable} -m mosix.cli.mosd --accounting proc --no-balance"
    )
    mosd = node.popen(["sh", "-c", script])
    try:
        status = ["mosctl", "localstatus"]
        drive.wait_for("mosd in its cgroup", lambda: node.run(status).returncode == 0, _LONG_S)
        yield node
    finally:
        drive.kill_command(mosd)
        mosd.wait()
        node.check(["sh", "-c", f"rmdir {_SERVICE}/mosixd.* {_SERVICE}"])
        node.mosd("start")


def test_a_guest_has_limits_and_goes_home_before_it_has_more(
    lender: NodeHandle, lab: Cluster
) -> None:
    """By touching memory, or by system calls that fill it."""
    number = lender.node.number
    home = lab[3 - number]
    program = [str(built(GROW))]
    with Job(home, program) as job:
        assert job.line() == "ready"
        job.move(str(number))
        (guest,) = lender.check(["sh", "-c", f"echo {_SERVICE}/mosixd.guest-*"]).split()
        limit = int(read(lender, f"{guest}/memory.max"))
        assert 32 << 20 <= limit < _ROOM_MIB << 20
        assert 0 < int(read(lender, f"{guest}/memory.high")) < limit
        assert int(read(lender, f"{guest}/pids.max")) == GUEST_PIDS
        assert int(read(lender, f"{guest}/cpu.weight")) == GUEST_CPU_WEIGHT
        assert int(read(lender, f"{_OWN}/cpu.weight")) == 100
        own = members(lender, _OWN)
        assert any("mosix.cli.mosd" in line for line in own)
        assert members(lender, _SERVICE) == []
        assert "grow" in "".join(members(lender, guest))
        assert "grow" not in "".join(own)

        orders = ("20", f"{'r' * (number - 1)}{limit >> 20}", "1")
        said = []
        for order in orders:
            job.write(f"{order}\n")
            said.append(job.line())
        drive.wait_for("it is at home", lambda: job.where() == "home", _LONG_S)
        assert "MiB for it" in job.row()["why"] or "needs its memory" in job.row()["why"]
        assert job.finish() == (0, "", "")
    plain = home.run(program, input="\n".join((*orders, "")))
    assert plain.stdout.splitlines() == ["ready", *said]
    left = members(lender, _OWN)
    assert [
        line for line in own if "mosix.cli.mosd" in line or "mosix.node.spawner" in line
    ] == left
