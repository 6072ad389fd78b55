"""A program is the same on every stock kernel: it moves between 6.1 and 6.12, and back.

Homes are both machines in turn, so bodies go to the older kernel and to the newer one.
"""

from __future__ import annotations

import pytest
from jobs import PROGRAMS, Job
from mosix.errors import MosixError
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built
from trips import FAMILIES, other, round_trip


@pytest.fixture(params=[1, 2], ids=["home-6.1", "home-6.12"])
def home(request: pytest.FixtureRequest, lab: Cluster) -> NodeHandle:
    return lab[request.param]


def test_round_trips_change_nothing_in_what_is_computed(home: NodeHandle) -> None:
    round_trip(home)


@pytest.mark.full
def test_families_of_calls_do_the_same_wherever_the_body_is(home: NodeHandle) -> None:
    moves = 0
    for family in FAMILIES:
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
