"""A program is the same on every stock kernel: it moves between 6.1 and 6.12, and back.

Homes are both machines in turn, so bodies go to the older kernel and to the newer one.
"""

from __future__ import annotations

import pytest
from jobs import PROGRAMS, PYTHON, Job
from mosix.errors import MosixError
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built

_FAMILIES = (
    *("pipes", "signals", "timers", "memory", "at_files", "appending", "locks", "watching"),
    *("multiplexing", "special", "messages", "network", "clocks", "sleeping", "storm"),
    *("restarting", "identity", "children", "exec", "shared", "vectors", "proc"),
)


@pytest.fixture(params=[1, 2], ids=["home-6.1", "home-6.12"])
def home(request: pytest.FixtureRequest, lab: Cluster) -> NodeHandle:
    return lab[request.param]


def other(home: NodeHandle) -> str:
    """Number of the machine that is not `home`."""
    return str(3 - home.node.number)


def test_round_trips_change_nothing_in_what_is_computed(home: NodeHandle) -> None:
    command = [PYTHON, str(PROGRAMS / "checksum.py")]
    with Job(home, [*command, "until", "/node/stop"]) as job:
        for target in (other(home), "home", other(home)):
            job.move(target)
            job.line()
        home.check(["touch", "/node/stop"])
        status, output, complaints = job.finish()
    home.check(["rm", "/node/stop"])
    assert (status, complaints) == (0, "")
    rounds = output.rpartition("rounds ")[2].split()[0]
    plain = home.check([*command, "rounds", rounds], timeout_s=300)
    assert output == plain[-len(output) :]


@pytest.mark.full
def test_families_of_calls_do_the_same_wherever_the_body_is(home: NodeHandle) -> None:
    moves = 0
    for family in _FAMILIES:
        command = ["env", "HERE=/node", str(built(PROGRAMS / "families.c")), family, "1500"]
        plain = home.run(command)
        with Job(home, command) as job:
            moves += sent_about(job, other(home))
            moved = job.finish()
        assert moved == (plain.returncode, plain.stdout, plain.stderr), family
    assert moves > 0


def sent_about(job: Job, target: str) -> int:
    """Moved to `target` and home until it ends; how many moves there were."""
    moves = 0
    while job.process.poll() is None:
        try:
            job.home.migrate(job.pid, "home" if moves % 2 else target)
        except MosixError:  # it has ended, or does what cannot be interrupted: see tests/cluster
            continue
        moves += 1
    return moves
