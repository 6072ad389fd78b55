"""A machine with cgroups of version 2 keeps its memory, and guests their lives."""

from __future__ import annotations

from pathlib import Path

from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster
from mosix.lab.programs import built

GROW = Path(__file__).resolve().parents[1] / "security" / "programs" / "grow.c"
FILL = "/dev/shm/fill"
LEFT_MB = 200


def test_a_guest_that_outgrows_its_limit_goes_home_and_computes_on(lab: Cluster) -> None:
    home, lender = lab[1], lab[2]
    orders = ("20", "260", "1")
    with Job(home, [str(built(GROW))]) as job:
        assert job.line() == "ready"
        for order in orders:
            job.write(f"{order}\n")
        expected = [job.line() for _ in orders][-1]
    free = int(lender.check(["awk", "/MemAvailable/ {print int($2 / 1024)}", "/proc/meminfo"]))
    lender.check(["dd", "if=/dev/zero", f"of={FILL}", "bs=1M", f"count={free - LEFT_MB}"])
    try:
        with Job(home, [str(built(GROW))]) as job:
            assert job.line() == "ready"
            job.write("20\n")
            job.line()
            job.move("2")
            daemon = lender.check(["cat", "/run/mosix/mosd.pid"])
            for order in orders[1:]:
                job.write(f"{order}\n")
            assert [job.line() for _ in orders[1:]][-1] == expected
            drive.wait_for("it is at home", lambda: job.where() == "home", 60)
            assert "MiB for it" in lender.log() or "needs its memory" in lender.log()
            assert lender.check(["cat", "/run/mosix/mosd.pid"]) == daemon
            assert job.finish() == (0, "", "")
    finally:
        lender.check(["rm", "-f", FILL])
