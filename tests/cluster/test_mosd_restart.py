"""mosd is killed and started again: jobs and guests go on, and the new one has them all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import faults
import msgspec
import pytest
from faults import Ledger
from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.node import records
from mosix.wire.mosd_messages import WORKER_VERSION
from test_faults import restore
from test_grace import cut

LATER = Path(__file__).parents[1] / "node/mosd_of_version_9.py"


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


def test_death_of_a_deputy_is_told_by_the_next_mosd(lab: Cluster) -> None:
    """Where it was told on, and to the guest, which ends long before its lease."""
    ledger = Ledger(lab[1], "told")
    try:
        ledger.job.move("2")
        faults.kill([*faults.spawners(lab[1]), *faults.mosd(lab[1])])
        lab[1].mosd("start")
        knows(lab, ledger, lab[2].ip)
        guests = faults.guests(lab[2])
        (deputy,) = faults.workers(lab[1])
        faults.kill([deputy])
        assert ledger.end() == ledger.deputy_died
        drive.wait_for("the guest's end", lambda: not set(guests) & set(faults.guests(lab[2])), 30)
    finally:
        ledger.job.end()
        restore(lab)


# ---- upgrades ----


def test_records_of_another_build_are_left_for_it(lab: Cluster) -> None:
    """This one says so, and lets the job go on; the other one takes it over."""
    ledger = Ledger(lab[1], "records")
    try:
        ledger.job.move("2")
        for number, kind in ((1, "jobs"), (2, "guests")):
            lab[number].mosd("kill")
            _change_version(lab[number], kind, 1)
            lab[number].mosd("start")
            said = f"of version {records.VERSION + 1}, this mosd writes {records.VERSION}"
            drive.wait_for("a line in the log", lambda n=number, s=said: s in lab[n].log())
        ledger.goes_on()
        assert lab[1].job(ledger.job.pid) is None
        for number, kind in ((1, "jobs"), (2, "guests")):
            lab[number].mosd("kill")
            _change_version(lab[number], kind, -1)
            lab[number].mosd("start")
        knows(lab, ledger, lab[2].ip)
        ledger.job.move("home")
        assert ledger.finish() == "done"
    finally:
        ledger.job.end()
        restore(lab)


def _change_version(node: NodeHandle, kind: str, by: int) -> None:
    (file,) = node.path(f"/run/mosix/{kind}").iterdir()
    record = msgspec.msgpack.decode(file.read_bytes())
    record["version"] += by
    file.write_bytes(msgspec.msgpack.encode(record))


def test_workers_of_another_build_go_on_without_mosd(lab: Cluster) -> None:
    """Two deputies and a spawner are named in its log with both versions, and are those of the
    next mosd of theirs."""
    away, home = Ledger(lab[1], "away"), Ledger(lab[1], "home")
    kill = ["sh", "-c", "kill -9 $(cat /run/mosix/mosd.pid)"]
    try:
        away.job.move("2")
        lab[1].mosd("kill")
        lab[1].check([sys.executable, str(LATER), "--detach", "--accounting", "proc"])
        log = lab[1].path("/run/mosix/mosd.log")
        drive.wait_for(
            "three lines in the log",
            lambda: log.read_text().count(f"speaks version {WORKER_VERSION}, this mosd 9") == 3,
        )
        away.goes_on()
        home.goes_on()
        lab[1].check(kill)
        lab[1].mosd("start")
        knows(lab, away, lab[2].ip)
        knows(lab, home, "home")
        assert [ledger.finish() for ledger in (away, home)] == ["done", "done"]
    finally:
        if not faults.mosd(lab[1]):
            lab[1].run(kill)
        away.job.end()
        home.job.end()
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
