"""A program at its resource limits finds the same ones away as at home."""

from __future__ import annotations

import subprocess

import pytest
from jobs import PROGRAMS
from mosix.lab import drive
from mosix.lab.drive import Cluster
from mosix.lab.programs import built


def limited(limit: str, *words: str) -> list[str]:
    """Command line of programs/limits.c, or of mosrun with it, under a limit."""
    return ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", *words]


def program(*modes: str) -> list[str]:
    return [str(built(PROGRAMS / "limits.c")), *modes]


@pytest.mark.parametrize("user", [None, "games"])
@pytest.mark.parametrize(
    ("limit", "mode"),
    [
        ("-n 12", "descriptors"),
        ("-n 1024", "descriptors"),
        ("-v 100000", "memory"),
        ("-d 50000", "memory"),
        ("-s 512", "stack"),
    ],
)
def test_limits_are_the_same_away(limit: str, mode: str, user: str | None, lab: Cluster) -> None:
    """All descriptors are the program's own, though the agent has some, too."""
    plain = lab[1].run(limited(limit, *program(mode)), user=user)
    away = lab[1].run(limited(limit, "mosrun", "-2", *program(mode)), user=user)
    assert (away.returncode, away.stdout, away.stderr) == (plain.returncode, plain.stdout, "")


@pytest.mark.parametrize(
    ("limit", "mode"), [("-v 100000", "memory"), ("-d 50000", "memory"), ("-s 512", "stack")]
)
def test_program_at_its_limit_still_moves(limit: str, mode: str, lab: Cluster) -> None:
    process = lab[1].popen(
        limited(limit, "mosrun", "-2", *program(mode, "wait", mode)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        pid = lab[1].pid_of(process)
        for target in ("home", "3", "2", "home"):
            lab[1].migrate(pid, target)
        output, complaint = process.communicate("\n", timeout=60)
    finally:
        drive.kill_command(process)
        process.communicate()
    second = "mapped 0, then Cannot allocate memory\n" if mode == "memory" else first
    assert (process.returncode, output, complaint) == (0, f"{second}end\n", "")


def test_program_without_a_free_descriptor_comes_home(lab: Cluster) -> None:
    """Away, it opens all that it may; at home, where it must be, there is no number for us."""
    code = (
        "import os, sys\n"
        "found = []\n"
        "try:\n"
        "    while True: found.append(os.dup(0))\n"
        "except OSError as error: os.write(1, b'%d %d\\n' % (len(found), error.errno))\n"
        "pid = os.fork()\n"
        "if not pid: os._exit(5)\n"
        "os.write(1, b'%d\\n' % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    command = ["/usr/bin/python3", "-c", code]
    plain = lab[1].check(limited("-n 40", *command))
    assert lab[1].check(limited("-n 40", "mosrun", "-2", *command)) == plain
