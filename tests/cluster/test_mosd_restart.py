"""mosd is killed and started again: jobs and guests go on, and the new one has them all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from faults import Ledger
from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster
from test_faults import restore
from test_grace import cut


def knows(lab: Cluster, ledger: Ledger, where: str) -> None:
    """Waits until the new mosd of home has heard of it; at once when it has."""

    def row() -> bool:
        found = lab[1].job(ledger.job.pid)
        return found is not None and found["where"] == where

    drive.wait_for(f"{ledger.job.pid} at {where} again", row)


def restart(lab: Cluster, *numbers: int) -> None:
    for number in numbers:
        lab[number].mosd("kill")
    for number in numbers:
        lab[number].mosd("start")


@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2)], ids=["home", "guest", "both"])
def test_jobs_and_guests_are_those_of_the_next_mosd(numbers: tuple[int, ...], lab: Cluster) -> None:
    away, home = Ledger(lab[1], "away"), Ledger(lab[1], "home")
    try:
        away.goes_on()
        away.job.move("2")
        before = {key: away.job.row()[key] for key in ("uid", "job", "nmigs", "where")}
        restart(lab, *numbers)
        knows(lab, away, lab[2].ip)
        knows(lab, home, "home")
        guest = drive.wait_for(
            "the guest", lambda: [row for row in lab[2].jobs() if row["where"] == "here"] or None
        )
        assert (guest[0]["origin_pid"], guest[0]["home"]) == (away.job.pid, lab[1].ip)
        assert {key: away.job.row()[key] for key in before} == before
        away.goes_on()
        away.job.move("3")
        home.job.move("2")
        for ledger in (away, home):
            ledger.goes_on()
            assert ledger.finish() == "done"
    finally:
        away.job.end()
        home.job.end()
        restore(lab)


def test_connection_is_made_again_by_the_next_mosds(lab: Cluster) -> None:
    """It is lost while there is none on either side."""
    ledger = Ledger(lab[1], "between")
    try:
        ledger.job.move("2")
        ledger.goes_on()
        for number in (1, 2):
            lab[number].mosd("kill")
        cut(lab, 1)
        for number in (1, 2):
            lab[number].mosd("start")
        ledger.goes_on()
        assert ledger.finish() == "done"
    finally:
        ledger.job.end()
        restore(lab)


def test_stop_of_the_next_mosd_brings_them_home(lab: Cluster, start: Callable[..., Job]) -> None:
    job = start(["cat"])
    job.move("2")
    restart(lab, 1)
    drive.wait_for("the job", lambda: lab[1].job(job.pid))
    lab[1].mosd("stop")
    try:
        assert lab[2].jobs() == []
        job.write("at home\n")
        assert job.line() == "at home"
        assert job.finish() == (0, "", "")
    finally:
        restore(lab)


def test_guest_that_died_meanwhile_leaves_nothing(lab: Cluster) -> None:
    """Of remote and deputy, that is: their records and cgroups go with the next start."""
    ledger = Ledger(lab[1], "meanwhile")
    try:
        ledger.job.move("2")
        for number in (1, 2):
            lab[number].mosd("kill")
        ledger.job.end()
        for number in (1, 2):
            lab[number].mosd("start")
            for kind in ("jobs", "guests"):
                records = lab[number].path(f"/run/mosix/{kind}")
                drive.wait_for(f"no {kind}", lambda records=records: not list(records.iterdir()))
    finally:
        restore(lab)
