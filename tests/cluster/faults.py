"""Who can be killed or stalled in a running cluster, and what a job must have done all the same.

`Ledger` is a job whose every effect is counted (programs/ledger.c). `victim` finds the processes
of mosix by what they are: all workers have the command line of their spawner.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs import PROGRAMS, Job
from mosix.lab import drive, state
from mosix.lab.cluster import CONTROL
from mosix.lab.drive import NodeHandle
from mosix.lab.programs import built
from mosix.node import requests
from mosix.node.spawning import is_dying
from mosix.wire.frames import FrameDecoder, frame
from mosix.wire.messages import decode, encode

STATUS = 7
#: What an order says whose mosd did.
MOSD_DIED = "mosd died"
#: What mosd says on the stderr of a job that was away.
DEPUTY_DIED = "mosix: process {pid} ended: the job's deputy at home, node {ip}, died"


def children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def spawners(node: NodeHandle) -> list[int]:
    """Host's PID of the node's spawner, the child of mosd, if it lives."""
    lines = node.processes()
    found = [child for daemon in mosd(node) for child in children(daemon)]
    return [pid for pid in found if "mosix.node.spawner" in lines.get(pid, "")]


def workers(node: NodeHandle) -> list[int]:
    """Deputies and remotes that run in `node`: they have the command line of their spawner,
    which may have died."""
    lines = node.processes()
    found = {pid for pid, line in lines.items() if "mosix.node.spawner" in line}
    return sorted(found - set(spawners(node)))


def mosd(node: NodeHandle) -> list[int]:
    """Host's PID of the node's mosd, if it lives. One that is dying does not: its connections
    end long before its process."""
    while inside := state.read_mosd(node.lab, node.name).pid:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = node.host_pid(inside)
            if not is_dying(pid):
                return [pid]
        time.sleep(0.01)  # PID 1 is about to take note of its death
    return []


def stubs(node: NodeHandle) -> list[int]:
    return [stub for remote in workers(node) for stub in children(remote)]


def guests(node: NodeHandle) -> list[int]:
    return [guest for stub in stubs(node) for guest in children(stub)]


VICTIMS: dict[str, Callable[[NodeHandle], list[int]]] = {
    "worker": workers,
    "stub": stubs,
    "guest": guests,
    "spawner": spawners,
    "mosd": mosd,
}


class Ledger:
    """A job that counts until it is told to stop."""

    def __init__(self, home: NodeHandle, name: str, **options: Any) -> None:
        self.home = home
        self.file = f"/node/ledger-{name}"
        self.flag = f"/node/stop-{name}"
        self.output = home.path(f"/node/out-{name}")
        for old in (home.path(self.file), home.path(self.flag), self.output):
            old.unlink(missing_ok=True)
        program = str(built(PROGRAMS / "ledger.c"))
        with self.output.open("wb") as output:
            self.job = Job(
                home, [program, self.file, self.flag, str(STATUS)], stdout=output, **options
            )

    def lines(self) -> int:
        return self.output.read_bytes().count(b"\n")

    def goes_on(self, lines: int = 20) -> None:
        """Waits until it has written more, or has ended."""
        before = self.lines()
        drive.wait_for(
            "the job to go on",
            lambda: self.job.process.poll() is not None or self.lines() > before + lines,
            60,
        )

    def end(self) -> str:
        """Waits until it is ended by somebody else, and checks all that it did."""
        self.job.process.wait(100)
        return self.finish()

    @property
    def deputy_died(self) -> str:
        return DEPUTY_DIED.format(pid=self.job.pid, ip=self.home.ip)

    def finish(self, signals: int = 0) -> str:
        """Ends it and checks all that it did. "done", or the line with which mosix ended it.
        `signals`: SIGUSR1 that it was sent."""
        self.home.path(self.flag).touch()
        _, complaint = self.job.process.communicate(timeout=60)
        status = self.job.process.returncode
        counted = check_counting(self.output.read_text())
        kept = check_counting(self.home.path(self.file).read_text())
        if status == STATUS + signals:
            assert complaint == ""
            last = f"{counted}\n" if counted else ""  # told to stop before its first number
            assert self.output.read_text()[-40:].endswith(f"{last}end\n")
            assert kept == counted
            return "done"
        assert status == -signal.SIGKILL, (status, complaint)
        assert kept - counted in (0, 1)
        assert len(complaint.splitlines()) <= 1, complaint
        return complaint.strip() or "killed"


def check_counting(text: str) -> int:
    """The last number of a whole count from 1; a half-written last line does not count."""
    lines = text.removesuffix("end\n").split("\n")[:-1]
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    return len(lines)


def order(job: Job, target: str) -> subprocess.Popen[str]:
    """A move, not waited for here."""
    command = ["migrate", "--wait", str(job.pid), target]
    return job.home.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Order:
    """A move ordered at once, without the time that a command takes to start."""

    def __init__(self, job: Job, target: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(120)
        self._sock.connect(str(job.home.path(CONTROL)))
        request = requests.Migrate(pid=job.pid, target=target, wait=True)
        self._sock.sendall(frame(encode(request), requests.MAX_REQUEST))

    def outcome(self) -> str:
        """ "", what mosd said against it, or that it died. TimeoutError: nothing came."""
        decoder = FrameDecoder(requests.MAX_ANSWER)
        with self._sock as sock:
            try:
                while data := sock.recv(decoder.wanted):
                    complete = decoder.feed(data)
                    if complete is not None:
                        answer = decode(complete, requests.Answer)
                        return answer.message if isinstance(answer, requests.Failure) else ""
            except ConnectionResetError:
                return MOSD_DIED
        return MOSD_DIED


def kill(pids: list[int], number: int = signal.SIGKILL) -> bool:
    """Whether any of them was still there."""
    hit = False
    for pid in pids:
        try:
            os.kill(pid, number)
            hit = True
        except ProcessLookupError:
            continue
    return hit


def received(node: NodeHandle) -> int:
    """Bytes that came over the node's network so far."""
    lines = Path(f"/proc/{node.node.init.pid}/net/dev").read_text().splitlines()
    (eth0,) = [line for line in lines if line.strip().startswith("eth0:")]
    return int(eth0.split(":")[1].split()[0])


@contextlib.contextmanager
def slow_sender(node: NodeHandle, mbit: int = 500) -> Iterator[None]:
    """A node that sends no faster than this: a body takes its seconds, whatever else this machine
    does meanwhile, and so there is time to do something to it on the way."""
    shape = ["tbf", "rate", f"{mbit}mbit", "burst", "1m", "latency", "100ms"]
    node.check(["tc", "qdisc", "add", "dev", "eth0", "root", *shape])
    try:
        yield
    finally:
        node.check(["tc", "qdisc", "del", "dev", "eth0", "root"])
