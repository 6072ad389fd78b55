"""Drive a lab from Python: start it, run commands in its nodes, order and follow moves.

Used by the tests, `scripts/demo` and `bench/run`; everything goes through the commands a user
has (`mosix-lab`, `migrate`, `mosps`), so what is seen here is what a user sees.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mosix.errors import MosixError, from_code
from mosix.lab import cgroups, state, vm

T = TypeVar("T")
LAB = [sys.executable, "-m", "mosix.cli.lab"]
_POLL_S = 0.01


def wait_for(what: str, look: Callable[[], T | None], deadline_s: float = 60.0) -> T:
    """What `look` returns once it is neither None nor False; MosixError names `what` if never.

    For states of other processes that tell nobody when they change.
    """
    end = time.monotonic() + deadline_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > end:
            raise MosixError(f"not within {deadline_s:.0f} s: {what}")
        time.sleep(_POLL_S)


class NodeHandle:
    """One node of a running lab."""

    def __init__(self, lab: str, node: state.Node) -> None:
        self.lab = lab
        self.node = node
        self.name = node.name
        self.ip = node.ip
        self._orders: subprocess.Popen[Any] | None = None

    def path(self, inside: str) -> Path:
        """A path of the node's, as this process reaches it."""
        return Path(f"/proc/{self.node.init.pid}/root{inside}")

    def argv(
        self,
        command: Sequence[str],
        *,
        user: str | None = None,
        cwd: str = "/node",
        setsid: bool = False,
    ) -> list[str]:
        options = [f"--name={self.lab}", f"--cwd={cwd}"]
        options += [f"--user={user}"] if user else []
        options += ["--setsid"] if setsid else []
        return [*LAB, "run", *options, self.name, *command]

    def popen(
        self,
        command: Sequence[str],
        *,
        user: str | None = None,
        cwd: str = "/node",
        setsid: bool = False,
        **popen: Any,
    ) -> subprocess.Popen[Any]:
        """The command in the node; its exit status and signals are the process's."""
        return subprocess.Popen(
            self.argv(command, user=user, cwd=cwd, setsid=setsid), **{"text": True, **popen}
        )

    def run(
        self,
        command: Sequence[str],
        *,
        user: str | None = None,
        cwd: str = "/node",
        timeout_s: float = 60.0,
        **popen: Any,
    ) -> subprocess.CompletedProcess[str]:
        """The command's result; output captured unless told otherwise. Never raises for a status.

        After `timeout_s` the command itself is killed, not only what stands in for it.
        """
        piped = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if "input" in popen:
            piped["stdin"] = subprocess.PIPE
        given = popen.pop("input", None)
        with self.popen(command, user=user, cwd=cwd, **{**piped, **popen}) as process:
            try:
                out, err = process.communicate(given, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                kill_command(process)
                process.communicate()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def check(self, command: Sequence[str], **options: Any) -> str:
        """Standard output of a command that must succeed."""
        done = self.run(command, **options)
        if done.returncode:
            raise MosixError(
                f"{' '.join(command)} on {self.name}: status {done.returncode}: {done.stderr}"
            )
        return done.stdout

    def jobs(self) -> list[dict[str, Any]]:
        """As `mosps --json`: one record per process of a job, and per guest."""
        return list(self.ask("jobs"))

    def job(self, pid: int) -> dict[str, Any] | None:
        return next((row for row in self.jobs() if row["pid"] == pid), None)

    def where(self, pid: int) -> str:
        """Where the job's process `pid` is: "home", an IP, "moving", or "gone"."""
        row = self.job(pid)
        return "gone" if row is None else str(row["where"])

    def migrate(self, pid: int, target: str) -> dict[str, Any]:
        """As `migrate --wait --json` by root: freeze_ns, page_bytes. Raises the MosixError that
        the command's exit code stands for."""
        return dict(self.ask("migrate", pid, target))

    def arm(self, failpoints: str) -> None:
        """What the points named do from now on in the node's mosd and its workers
        (`mosix.failpoints`); "": nothing."""
        self.ask("failpoints", failpoints)

    def ask(self, *question: Any) -> Any:
        """Put a question to the node's mosd (see `mosix.lab.orders`)."""
        if self._orders is None:
            command = [sys.executable, "-m", "mosix.lab.orders"]
            pipe = subprocess.PIPE
            self._orders = self.popen(command, stdin=pipe, stdout=pipe)
        assert self._orders.stdin is not None
        assert self._orders.stdout is not None
        self._orders.stdin.write(json.dumps(question) + "\n")
        self._orders.stdin.flush()
        line = self._orders.stdout.readline()
        if not line:
            raise MosixError(f"cannot ask {self.name} any more: status {self._orders.wait()}")
        said = json.loads(line)
        if "code" in said:
            raise from_code(said["code"], said["message"], said["hint"])
        return said["result"]

    def close(self) -> None:
        """End what answers `ask`."""
        if self._orders is not None:
            self._orders.communicate()
            self._orders = None

    def mosd(self, order: str, *options: str) -> None:
        """start (with these options), stop or kill, and wait until it is done."""
        more = [f"--option={option}" for option in options]
        _command("mosd", f"--name={self.lab}", *more, self.name, order)

    def link(self, up: bool) -> None:
        """Plug the network cable in or out."""
        _command("link", f"--name={self.lab}", self.name, "up" if up else "down")

    @contextlib.contextmanager
    def memory_left(self, mebibytes: int) -> Iterator[None]:
        """A while in which the node may use only so much more memory than it does now."""
        usage = cgroups.usage(self.lab, self.name)
        found = cgroups.hierarchies()
        if found.unified:
            assert found.v2 is not None
            file = found.v2 / cgroups.TOP / self.lab / self.name / "memory.max"
        else:
            group = found.v1["memory"] / cgroups.TOP / self.lab / self.name
            file = group / "memory.limit_in_bytes"
        file.write_text(str(usage.memory_bytes + (mebibytes << 20)))
        try:
            yield
        finally:
            file.write_text(str(usage.memory_limit_bytes))

    def processes(self) -> dict[int, str]:
        """Host PIDs of all that runs in the node, with their command lines."""
        found: dict[int, str] = {}
        for pid in cgroups.processes(f"{self.lab}/{self.name}"):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                comm = Path(f"/proc/{pid}/comm").read_text().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[pid] = line.replace(b"\0", b" ").decode(errors="replace").strip() or f"[{comm}]"
        return found

    def host_pid(self, pid: int) -> int:
        """The host's PID of the node's process `pid`; ProcessLookupError if there is none."""
        for outer in self.processes():
            if _pids(outer)[1:2] == [pid]:  # a guest has a third one, its home's
                return outer
        raise ProcessLookupError(pid)

    def pids_of(self, process: subprocess.Popen[Any]) -> tuple[int, int]:
        """PIDs of the command behind a `popen` (with mosrun in front: of the job): the host's and
        the node's; in a virtual machine the host has none, and both are the machine's. MosixError
        if it ends before it was seen."""

        def look() -> tuple[int, int] | None:
            ended = process.poll() is not None
            told = state.directory(self.lab) / self.name / "running" / str(process.pid)
            if self.node.machine is not None and told.exists() and (pid := told.read_text()):
                return int(pid), int(pid)
            for outer in _children(process.pid):
                pids = _pids(outer)
                if len(pids) == 2:
                    return pids[0], pids[1]
            if ended:
                raise MosixError(f"{process.args!r} ended with {process.returncode}")
            return None

        return wait_for(f"{process.args!r} begins", look)

    def pid_of(self, process: subprocess.Popen[Any]) -> int:
        """The node's PID of the command behind a `popen`."""
        return self.pids_of(process)[1]

    def log(self) -> str:
        """What the node's mosd said."""
        path = state.directory(self.lab) / self.name / "mosd.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def splats(self) -> list[str]:
        """What a virtual machine's kernel complained of on its console."""
        path = state.directory(self.lab) / self.name
        return vm.Watch(path, self.node.init).splats()


class Cluster:
    """A running lab."""

    def __init__(self, name: str) -> None:
        self.lab = state.load_running(name)
        self.name = name
        self.nodes = [NodeHandle(name, node) for node in self.lab.nodes]

    @classmethod
    def up(cls, name: str, nodes: int, *options: str) -> Cluster:
        """Bring a lab up; MosixError with the command's own line if it cannot be."""
        _command("up", f"--name={name}", f"--nodes={nodes}", *options)
        return cls(name)

    def down(self) -> None:
        for node in self.nodes:
            node.close()
        down(self.name)

    def __getitem__(self, number: int) -> NodeHandle:
        """Node `number`, from 1."""
        return self.nodes[number - 1]


def end_in_order() -> None:
    """Make SIGTERM and SIGHUP end this program through its `finally` clauses: labs go down."""

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def down(name: str) -> None:
    _command("down", f"--name={name}")


def kill_command(process: subprocess.Popen[Any]) -> None:
    """SIGKILL the command behind a `mosix-lab run`, whose end then ends `process` as well."""
    pids = _children(process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    if not pids:
        process.kill()


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def _pids(pid: int) -> list[int]:
    """PIDs of a process in each of its namespaces, the host's first; empty if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    line = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return [int(word) for word in line.split()[1:]]


def _command(*arguments: str) -> str:
    done = subprocess.run(
        [*LAB, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        line = done.stderr.strip().removeprefix("mosix-lab: ")
        raise from_code(max(done.returncode, 1), line or f"mosix-lab ended with {done.returncode}")
    return done.stdout
