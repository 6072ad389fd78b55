"""Real programs for the tests of tracing, capture and eligibility: built once, started, watched."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import select
import signal
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
_STATE = struct.Struct("<5q")


def build(source: Path | str, *flags: str) -> str:
    """The program made from a C file or from C text; made once and kept for later runs."""
    text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
    key = hashlib.sha256("\0".join((text, *flags)).encode()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"mosix-test-programs-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    target = directory / key
    if not target.exists():
        fresh = directory / f"{key}.{os.getpid()}"
        subprocess.run(
            ["gcc", "-O1", "-D_GNU_SOURCE", "-x", "c", "-", "-o", fresh, *flags],
            input=text,
            text=True,
            check=True,
        )
        fresh.rename(target)
    return str(target)


class SelfCheck:
    """A running self_check program and what it counts."""

    def __init__(self, process: subprocess.Popen[bytes], memory: mmap.mmap) -> None:
        self.process = process
        self.pid = process.pid
        self._memory = memory

    def _state(self) -> tuple[int, ...]:
        return _STATE.unpack_from(self._memory)

    @property
    def laps(self) -> int:
        return self._state()[0]

    @property
    def errors(self) -> int:
        return self._state()[1]

    @property
    def longest_ns(self) -> int:
        return self._state()[4]

    def wait_laps(self, more: int = 3) -> None:
        """Until it has gone on for `more` laps; AssertionError if it dies instead."""
        goal = self.laps + more
        watch(self.process, lambda: self.laps >= goal)


def watch(process: subprocess.Popen[bytes], done: Callable[[], bool], seconds: float = 8) -> None:
    """Until `done()`; AssertionError when the process ends or nothing happens for too long."""
    fd = os.pidfd_open(process.pid)
    try:
        for _ in range(int(seconds * 1000)):
            if done():
                return
            ended, _, _ = select.select([fd], [], [], 0.001)
            assert not ended, f"the program ended: {process.poll()}"
        raise AssertionError("the program does not go on")
    finally:
        os.close(fd)


@contextlib.contextmanager
def self_check(kind: str, *flags: str) -> Iterator[SelfCheck]:
    program = build(HERE / "self_check.c", "-O2", *flags)
    with tempfile.TemporaryFile() as file:
        file.truncate(4096)
        with mmap.mmap(file.fileno(), 4096) as memory:
            process = subprocess.Popen(
                [program, kind, f"/proc/self/fd/{file.fileno()}"], pass_fds=[file.fileno()]
            )
            try:
                watch(process, lambda: struct.unpack_from("<4q", memory)[3] == 1)
                yield SelfCheck(process, memory)
            finally:
                finish(process)


@contextlib.contextmanager
def running(
    command: list[str], ready: bytes = b"ready\n", **options: object
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that has said `ready` on its standard output."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
    try:
        assert process.stdout is not None
        if ready:
            said = process.stdout.readline()
            assert said == ready, said
        yield process
    finally:
        finish(process)
        process.stdout.close()


def finish(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap it. Not Popen.kill: that looks with waitpid first, takes the stop of a
    process that we trace for its end, and does nothing."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        os.kill(process.pid, signal.SIGKILL)
        while os.WIFSTOPPED(os.waitpid(process.pid, 0)[1]):
            pass
    process.returncode = process.returncode or -signal.SIGKILL


def state_of(pid: int) -> str:
    """One letter: R, S, T, t, Z…"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
