"""Calls that wait with a temporary signal mask are served away, and end as natively."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from jobs import PROGRAMS, Job
from mosix.lab.drive import wait_for
from mosix.lab.programs import built

CALLS = ("ppoll", "pselect", "epoll_pwait", "epoll_pwait2", "sigsuspend")


def until_asleep(pid: int) -> None:
    """In a system call that waits with SIGUSR1 let through."""

    def waits() -> bool:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":\t") for line in lines if ":\t" in line)
        return fields["State"][0] == "S" and not int(fields["SigBlk"], 16) >> 9 & 1

    wait_for("the process to wait", waits)


def play(process: subprocess.Popen[str], pid: int, asleep: Callable[[], None]) -> list[str]:
    """What the program says, given data and then a signal in each of its calls."""
    assert process.stdin is not None and process.stdout is not None
    said = []
    for call in CALLS:
        for stimulus in ("data", "signal")[call == "sigsuspend" :]:
            assert process.stdout.readline() == f"{call}\n"
            until_asleep(pid)
            asleep()
            until_asleep(pid)
            if stimulus == "data":
                process.stdin.write("x")
                process.stdin.flush()
            else:
                os.kill(pid, signal.SIGUSR1)
            said.append(process.stdout.readline())
    assert process.wait(60) == 0
    return said


def test_they_wait_away_and_a_signal_ends_them_as_natively(start: Callable[..., Job]) -> None:
    program = str(built(PROGRAMS / "masked.c"))
    pipe = subprocess.PIPE
    with subprocess.Popen([program], stdin=pipe, stdout=pipe, text=True) as plain:
        native = play(plain, plain.pid, lambda: None)
    job = start([program])
    nodes = itertools.cycle("23")
    moves: list[str] = []

    def move() -> None:
        """For a signal it comes home; for data it does not, and goes on from there."""
        moves.append(job.where())
        job.move(next(nodes))

    assert play(job.process, job.outer, move) == native
    assert [where == "home" for where in moves] == [True] + [False, True] * 4
