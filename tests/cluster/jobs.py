"""A job as the tests of the cluster see it, and the programs they run."""

from __future__ import annotations

import select
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built

PROGRAMS = Path(__file__).resolve().parent / "programs"
PYTHON = "/usr/bin/python3"


class Job:
    """A program under mosrun in a node, with its standard descriptors in our hands."""

    def __init__(
        self,
        home: NodeHandle,
        command: list[str],
        *,
        options: tuple[str, ...] = (),
        user: str | None = None,
        stdout: Any = subprocess.PIPE,
    ) -> None:
        self.home = home
        self.user = user
        self.process: subprocess.Popen[str] = home.popen(
            ["mosrun", *options, *command],
            user=user,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        try:
            self.outer, self.pid = home.pids_of(self.process)
            drive.wait_for(f"a job {self.pid}", self._row_or_end)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        drive.kill_command(self.process)
        self.process.communicate()

    def _row_or_end(self) -> dict[str, Any] | None:
        if self.process.poll() is not None:
            assert self.process.stderr is not None
            pytest.fail(
                f"mosrun ended with {self.process.returncode}: {self.process.stderr.read()}"
            )
        return self.home.job(self.pid)

    def row(self) -> dict[str, Any]:
        row = self.home.job(self.pid) or self._row_or_end()
        assert row is not None, f"mosps does not show process {self.pid}, which lives"
        return row

    def where(self) -> str:
        return str(self.row()["where"])

    def move(self, target: str) -> dict[str, Any]:
        """Move, and see that it is where it was sent."""
        moved = self.home.migrate(self.pid, target)
        assert self.where() == (target if target == "home" else self.ip(target))
        return moved

    def ip(self, number: str) -> str:
        return f"{self.home.ip.rpartition('.')[0]}.{number}"

    def wait_until_at(self, where: str) -> None:
        drive.wait_for(f"{self.pid} at {where}", lambda: self.where() == where)

    def write(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line of output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def has_output(self) -> bool:
        """Whether it has printed something that was not read yet."""
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def stdout_bytes(self) -> bytes:
        """All of the output that is still to come."""
        assert self.process.stdout is not None
        return Path(f"/proc/self/fd/{self.process.stdout.fileno()}").read_bytes()

    def finish(self) -> tuple[int, str, str]:
        """Close standard input and wait: status, output, complaints."""
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, out, err

    def kill(self, number: int) -> None:
        """As kill(1) typed in a shell of the home node."""
        self.home.check(["/bin/kill", f"-{int(number)}", str(self.pid)])

    def state(self) -> str:
        """State letter of the process at home (of its ghost, when it is away)."""
        stat = Path(f"/proc/{self.outer}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]


def act(*arguments: str, static: bool = False) -> list[str]:
    """Command line of programs/act.c."""
    return [str(built(PROGRAMS / "act.c", *(["-static"] if static else []))), *arguments]


def visit_all(cluster: Cluster) -> None:
    """A job goes to every node and back: whatever a daemon opens when it is used for the first time
    is there from now on."""
    with Job(cluster[1], ["cat"]) as job:
        for target in ("2", "3", "home"):
            job.move(target)
