"""Signals that a process ignores do not exist for it, also where its ghost is traced.

A traced process is stopped for ignored signals, and each such stop ends an epoll_wait or a timed
receive with EINTR and shortens a write.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable

import pytest
from jobs import PROGRAMS, Job
from mosix.lab.drive import Cluster
from mosix.lab.programs import built

UNWANTED = (signal.SIGWINCH, signal.SIGURG, signal.SIGUSR1)
WAITS = {
    "epoll_wait": "0 ",
    "epoll_pwait": "0 ",
    "recv": "-1 Resource temporarily unavailable",
    "sigtimedwait": "-1 Resource temporarily unavailable",
    "ppoll": "0 ",
    "pselect": "0 ",
    "nanosleep": "0 ",
}


class Scene:
    """The program, whose standard error is what it says."""

    def __init__(self, process: subprocess.Popen[str], pid: int) -> None:
        self.process = process
        self.pid = pid

    def line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline().rstrip("\n")

    def disturb(self, times: int) -> None:
        for _ in range(times):
            for number in UNWANTED:
                os.kill(self.pid, number)

    def answer(self) -> str:
        """What it says next, disturbed until then."""
        assert self.process.stderr is not None
        said: list[str] = []
        os.set_blocking(self.process.stderr.fileno(), False)
        while not said:
            self.disturb(1)
            if text := self.process.stderr.readline():
                said.append(text)
        os.set_blocking(self.process.stderr.fileno(), True)
        return said[0].rstrip("\n")


def play(scene: Scene) -> None:
    stdin, stdout = scene.process.stdin, scene.process.stdout
    assert stdin is not None and stdout is not None
    for name, result in WAITS.items():
        assert scene.line() == name
        assert (name, scene.answer()) == (name, result)
    assert scene.line() == "read"
    scene.disturb(50)
    stdin.write("x")
    stdin.flush()
    assert [scene.line() for _ in range(3)] == ["1 ", "sigpending", "0 "]
    assert [scene.line() for _ in range(2)] == ["handled", "0 "]
    stdin.write("x")
    stdin.flush()
    assert [scene.line() for _ in range(2)] == ["1 ", "write"]
    scene.disturb(200)
    assert len(stdout.buffer.read(1 << 20)) == 1 << 20
    assert scene.line() == f"{1 << 20} "


@pytest.mark.parametrize("where", ["plain", "home", "2"])
def test_ignored_signals_are_not_felt(where: str, lab: Cluster, start: Callable[..., Job]) -> None:
    program = str(built(PROGRAMS / "ignored.c"))
    if where == "plain":  # so that this says what a kernel does, and not what we think
        pipe = subprocess.PIPE
        with subprocess.Popen([program], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as plain:
            play(Scene(plain, plain.pid))
        assert plain.returncode == 0
        return
    job = start([program], options=() if where == "home" else (f"-{where}",))
    play(Scene(job.process, job.outer))
    assert job.process.wait(60) == 0
