"""mon in a cluster: every node, every process with its reason, and every move."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import sys
from collections.abc import Callable
from typing import Any

import pytest
from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster

MON = [sys.executable, "-m", "mosix.cli.mon"]


def seen(lab: Cluster, number: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab[number].check([*MON, "--once", "--json"]))
    return found


def states(lab: Cluster) -> dict[int, str]:
    return {node["number"]: node["state"] for node in seen(lab)["nodes"]}


def test_mon_shows_moves_as_they_happen_with_their_reasons(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(["cat"])
    before = [move["number"] for move in seen(lab)["moves"]]
    job.move("2")
    job.move("3")
    job.move("home")
    shown = seen(lab)
    mine = [m for m in shown["moves"] if m["pid"] == job.pid and m["number"] not in before]
    assert [(m["origin"], m["target"], m["why"]) for m in mine] == [
        ("home", lab[2].ip, "ordered"),
        (lab[2].ip, lab[3].ip, "ordered"),
        (lab[3].ip, "home", "ordered"),
    ]
    assert all(m["freeze_ns"] > 0 and m["page_bytes"] > 0 for m in mine)
    (row,) = (row for row in shown["processes"] if row["pid"] == job.pid)
    assert (row["where"], row["nmigs"], row["why"]) == ("home", 3, "ordered")
    text = lab[1].check([*MON, "--once"])
    assert "3 of 3 nodes up" in text
    assert f"{job.pid}" in text


def line_of(lab: Cluster, number: int) -> list[str]:
    lines = lab[1].check([*MON, "--once"]).splitlines()
    (line,) = (line for line in lines if line.startswith(f"{number} "))
    return line.split()


def test_a_node_that_was_stopped_is_shown_as_such_and_nobody_waits_for_it(lab: Cluster) -> None:
    lab[3].mosd("stop")
    try:
        drive.wait_for("n3 stopped", lambda: states(lab)[3] == "left", 60)
        assert line_of(lab, 3)[1] == "stopped"
        assert lab[1].run(["mosctl", "status", "3"]).returncode == 7
        assert lab[1].run(["mosctl", "status", "--wait", "3"]).returncode == 7
        assert lab[1].check(["mosctl", "rstatus", "3"]) == "1\n"
    finally:
        lab[3].mosd("start")


@pytest.mark.full
def test_a_node_that_died_is_shown_as_such_by_every_command(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    drive.wait_for("all up", lambda: set(states(lab).values()) == {"alive"}, 60)
    away = start(["cat"])
    away.move("2")
    lab[2].mosd("kill")
    try:
        drive.wait_for("n2 down", lambda: states(lab)[2] == "dead", 60)
        assert line_of(lab, 2)[1] == "down"
        assert "mosd there does not answer" in lab[1].check(["mosps", "--why", str(away.pid)])
        assert lab[1].run(["mosctl", "status", "2"]).returncode == 7
    finally:
        lab[2].mosd("start")
    drive.wait_for("n2 up again", lambda: states(lab)[2] == "alive", 60)


def test_on_a_terminal_it_draws_and_ends_with_q(lab: Cluster) -> None:
    """The terminal is no more than a pseudo terminal that answers nothing."""
    master, slave = pty.openpty()
    command = ["env", "TERM=vt100", "LANG=C", "LINES=24", "COLUMNS=80", *MON]
    process = lab[1].popen(command, stdin=slave, stdout=slave, stderr=slave, setsid=True)
    os.close(slave)
    drawn = b""
    try:

        def until(text: bytes) -> bool:
            nonlocal drawn
            if select.select([master], [], [], 0)[0]:
                with contextlib.suppress(OSError):  # it has ended
                    drawn += os.read(master, 1 << 16)
            return text in drawn

        drive.wait_for("the nodes", lambda: until(b"NODE"), 60)
        os.write(master, b"m")
        drive.wait_for("bars of memory", lambda: until(b"MEMORY"), 60)
        os.write(master, b"q")

        def ended() -> bool:
            until(b"")
            return process.poll() is not None

        drive.wait_for("its end", ended, 60)
        assert process.returncode == 0, drawn[-2000:]
    finally:
        if process.poll() is None:
            drive.kill_command(process)
        process.communicate()
        os.close(master)
