"""At home a job is a process like any other, wherever its body is."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import Job, act
from mosix.lab import drive
from mosix.lab.drive import Cluster
from mosix.lab.terminal import terminal

SHELL = ["bash", "--norc", "--noprofile", "-i"]


@pytest.mark.parametrize("where", ["home", "2"])
@pytest.mark.parametrize("status", [0, 7, 255])
def test_exit_status(where: str, status: int, start: Callable[..., Job]) -> None:
    job = start(act("wait"))
    job.line()
    job.home.migrate(job.pid, where)
    job.write(f"exit {status}\n")
    assert job.finish() == (status, "", "")


@pytest.mark.parametrize("where", ["home", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1, signal.SIGALRM])
def test_killed_by_a_signal_from_outside(
    where: str, number: int, start: Callable[..., Job]
) -> None:
    job = start(act("wait"))
    job.line()
    job.home.migrate(job.pid, where)
    job.kill(number)
    assert job.process.wait(60) == -number


@pytest.mark.parametrize(
    ("what", "number"),
    [("raise 15", signal.SIGTERM), ("fault 1", signal.SIGSEGV), ("abort 0", signal.SIGABRT)],
)
def test_dies_away_as_it_would_at_home(what: str, number: int, start: Callable[..., Job]) -> None:
    job = start(act("wait"))
    job.line()
    job.move("2")
    job.write(f"{what}\n")
    assert job.finish()[0] == -number


def test_parent_waits_for_it(lab: Cluster) -> None:
    """A shell's `wait` and `$?` tell the status of a child that is away."""
    command = " ".join(act("wait"))
    script = f"echo exit 9 | mosrun -2 {command} & wait $!; echo status $?"
    assert lab[1].check(["bash", "-c", script]).splitlines() == ["ready", "status 9"]


def test_pgrep_finds_it_and_pkill_reaches_it(lab: Cluster, start: Callable[..., Job]) -> None:
    job = start(act("sleep", "4242"))
    job.line()
    job.move("2")
    assert lab[1].check(["pgrep", "-f", "sleep 4242"]).split() == [str(job.pid)]
    lab[1].check(["pkill", "-f", "sleep 4242"])
    assert job.process.wait(60) == -signal.SIGTERM


def test_handler_runs_away_and_the_call_is_interrupted(start: Callable[..., Job]) -> None:
    job = start(act("handle"))
    job.line()
    for count, target in enumerate(("home", "2", "3", "home"), 1):
        job.home.migrate(job.pid, target)
        job.kill(signal.SIGUSR1)
        assert job.line() == f"Interrupted system call, {count} signals"
    assert job.finish() == (0, "end, 4 signals\n", "")


def test_queued_signals_come_all_in_order_with_their_values(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(act("signals", "8"))
    job.line()
    for value in range(8):
        if value in (2, 5):
            job.home.migrate(job.pid, str(value // 2 + 1))
        lab[1].check(["/usr/bin/kill", "-s", "RTMIN", "-q", str(value), str(job.pid)])
    assert job.finish() == (0, "0 1 2 3 4 5 6 7\n", "")


def test_not_traced_at_home_before_and_after(start: Callable[..., Job]) -> None:
    job = start(["cat"])

    def tracer() -> str:
        status = Path(f"/proc/{job.outer}/status").read_text()
        return next(line for line in status.splitlines() if "TracerPid" in line).split()[1]

    assert tracer() == "0"
    job.move("2")
    assert tracer() != "0"
    job.move("home")
    assert tracer() == "0"


def test_control_c_ends_it_and_the_shell_knows(lab: Cluster) -> None:
    with terminal(lab[1].argv(SHELL, setsid=True)) as screen:
        screen.prompt()
        screen.type("mosrun -2 cat\n")
        away(lab, "cat")
        screen.type("over there\n")
        screen.expect("over there\r\nover there")
        screen.type("\x03")
        screen.expect("ready:")
        screen.type("echo status $?\n")
        screen.expect("status 130")
        screen.type("exit\n")
        assert screen.wait() == 0


def test_control_z_and_fg_while_away(lab: Cluster) -> None:
    with terminal(lab[1].argv(SHELL, setsid=True)) as screen:
        screen.prompt()
        screen.type("mosrun -2 cat\n")
        pid = away(lab, "cat")
        screen.type("\x1a")
        screen.expect("Stopped")
        screen.expect("ready:")
        lab[1].migrate(pid, "3")
        screen.type("jobs\n")
        screen.expect("Stopped")
        screen.expect("ready:")
        screen.type("fg\n")
        screen.expect("mosrun -2 cat\r\n")  # the shell has given it the terminal
        screen.type("again\n")
        screen.expect("again\r\nagain")
        screen.type("\x04")
        screen.expect("ready:")
        screen.type("echo status $?\n")
        screen.expect("status 0")
        screen.type("exit\n")
        assert screen.wait() == 0


def test_blocked_in_a_read_of_the_terminal(lab: Cluster) -> None:
    with terminal(lab[1].argv(["mosrun", "cat"], setsid=True)) as screen:
        drive.wait_for("the job", lambda: lab[1].jobs() or None)
        (row,) = lab[1].jobs()
        for target in ("2", "3", "home"):
            lab[1].migrate(row["pid"], target)
            screen.type(f"at {target}\n")
            screen.expect(f"at {target}\r\nat {target}")
        screen.type("\x04")
        assert screen.wait() == 0


def away(lab: Cluster, command: str) -> int:
    """PID of the only job of n1, once it is on n2."""

    def look() -> int | None:
        for row in lab[1].jobs():
            if row["where"] == lab[2].ip and row["command"].startswith(command):
                return int(row["pid"])
        return None

    return drive.wait_for(f"{command} on n2", look)
