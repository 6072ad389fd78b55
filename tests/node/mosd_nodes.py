"""Real mosds on 127.0.0.2, 127.0.0.3 …, each with its own directories, and fake workers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from descriptors import open_in
from mosix.node.records import JobRecord, read_all

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MOSRUN = ROOT / "pysrc" / "native" / "bin" / "mosrun"
SECRET = "a secret of this test, long enough"
NOBODY = 65534


def free_port() -> int:
    """Below those that the kernel gives to connections, which come from these addresses too."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("", port))
            return port


def eventually(what: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """For states that nobody announces: processes and cgroups that are about to vanish."""
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@dataclass
class Node:
    """One mosd, its files and commands run against it."""

    ip: str
    port: int
    directory: Path
    map_text: str
    secret: str = SECRET
    options: list[str] = field(default_factory=list)
    accounting: str = "proc"
    program: list[str] = field(default_factory=lambda: ["-m", "mosix.cli.mosd"])
    process: subprocess.Popen[bytes] | None = None
    #: more environment
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def control(self) -> Path:
        return self.run_dir / "control"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}/build/typed:{HERE}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "MOSIX_CONFIG_DIR": str(self.directory),
            "MOSIX_RUN_DIR": str(self.run_dir),
            "LC_ALL": "C.UTF-8",
            **self.extra,
        }

    def write_files(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.directory.chmod(0o755)
        (self.directory / "mosix.map").write_text(self.map_text)
        (self.directory / "mosip").write_text(f"{self.ip}\n")
        (self.directory / "ports").write_text(f"peer {self.port}\n")
        secret = self.directory / "secret"
        secret.write_text(f"{self.secret}\n")
        secret.chmod(0o600)

    def command(self) -> list[str]:
        workers = ["--deputy", "fake_workers:deputy", "--remote", "fake_workers:remote"]
        # eBPF, begun while a test looks at processes and descriptors, would disturb it.
        workers += ["--no-balance", "--accounting", self.accounting]
        return [sys.executable, *self.program, *workers, *self.options]

    def start(self) -> None:
        """Returns when mosd says READY."""
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
            (self.directory / "log").open("ab") as log,
        ):
            notify.bind(str(path))
            notify.settimeout(60)
            self.process = subprocess.Popen(
                self.command(),
                env={**self.environment, "NOTIFY_SOCKET": str(path)},
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
            try:
                assert notify.recv(100) == b"READY=1"
            except TimeoutError:
                pytest.fail(f"mosd does not start: {self.log()}")

    def start_failing(self, *options: str) -> tuple[int, str]:
        done = subprocess.run(
            [*self.command(), *options],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(40)
        self.process = None
        return status

    def processes(self) -> list[int]:
        """mosd, spawner and workers of this node: all that have its run directory."""
        needle = f"MOSIX_RUN_DIR={self.run_dir}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environ = (entry / "environ").read_bytes()
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if needle in environ and b"mosix." in command:
                    found.append(int(entry.name))
        return found

    def run(self, *command: str | Path, uid: int = 0, **more: object) -> Done:
        done = subprocess.run(
            [str(word) for word in command],
            env={**self.environment, **more.pop("env", {})},  # type: ignore[dict-item]
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
            **more,  # type: ignore[call-overload]
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def descriptors(self) -> int:
        """How many mosd has open that count (`descriptors`)."""
        assert self.process is not None
        return len(open_in(self.process.pid))

    def mosix(self, name: str, *arguments: object, uid: int = 0) -> Done:
        return self.run(sys.executable, "-m", f"mosix.cli.{name}", *map(str, arguments), uid=uid)

    def mosrun(self, *arguments: object, **more: object) -> Done:
        return self.run(MOSRUN, *map(str, arguments), **more)  # type: ignore[arg-type]

    def job(self, *arguments: object, uid: int = 0) -> subprocess.Popen[str]:
        """A job that prints a line when it runs (`cat` echoing), and ends with its stdin."""
        process = subprocess.Popen(
            [str(MOSRUN), *map(str, arguments), "cat"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=uid,
            group=uid,
            extra_groups=[],
            cwd="/",
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("here\n")
        process.stdin.flush()
        assert process.stdout.readline() == "here\n"
        return process

    def rows(self) -> list[dict[str, object]]:
        done = self.mosix("mosps", "--json")
        assert done.status == 0, done
        rows: list[dict[str, object]] = json.loads(done.out)
        return rows

    def row(self, pid: int) -> dict[str, object]:
        return next(row for row in self.rows() if row["pid"] == pid)


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


def end(job: subprocess.Popen[str]) -> int:
    assert job.stdin is not None
    assert job.stdout is not None
    job.stdin.close()
    job.stdout.close()
    return job.wait(60)


class Cluster:
    """Makes nodes; everything they started must be gone at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.nodes: list[Node] = []

    def node(self, number: int, *, start: bool = True, **more: object) -> Node:
        more.setdefault("map_text", "1 127.0.0.2 3\n")
        node = Node(
            ip=f"127.0.0.{number + 1}",
            port=self.port,
            directory=self.directory / f"n{number}",
            **more,  # type: ignore[arg-type]
        )
        node.write_files()
        self.nodes.append(node)
        if start:
            node.start()
        return node

    def close(self) -> None:
        groups = [
            Path(record.group)
            for node in self.nodes
            if (node.run_dir / "jobs").is_dir()
            for record in read_all(node.run_dir / "jobs", JobRecord)
        ]
        for node in self.nodes:
            if node.process is not None:
                node.stop()
        for node in self.nodes:
            eventually(lambda node=node: node.processes() == [])  # type: ignore[misc]
        for group in groups:
            eventually(lambda group=group: not group.exists())  # type: ignore[misc]


@contextlib.contextmanager
def echoing_job(node: Node, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """cat, as a job of nobody's."""
    process = subprocess.Popen(
        [str(MOSRUN), "cat"],
        env={**node.environment, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
    )
    try:
        assert echoes(process)
        yield process
    finally:
        process.kill()
        process.communicate()


def echoes(process: subprocess.Popen[str]) -> bool:
    """Whether it goes on, wherever it is."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("here\n")
    process.stdin.flush()
    return process.stdout.readline() == "here\n"
