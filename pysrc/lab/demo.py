"""The demonstration: programs work while they are sent round, then others spread by themselves.

Called by scripts/demo. On node 1, with files that exist only there: `xz -9` over a tar of a real
tree, then a CPython program that indexes the same tar; each is also run plainly at the same
time, and the outputs are compared byte for byte. Shows live where each program is. Then come
`demo_spread` and `demo_kernel`. Exit status 0 only if every move succeeded, nothing differs, and
jobs did spread.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from mosix.errors import MosixError
from mosix.lab import demo_kernel, demo_spread, drive
from mosix.lab.drive import Cluster, NodeHandle
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

#: trees that a Debian system with this project's packages has, taken until there is enough
_TREES = ("/usr/lib/python3.11", "/usr/lib/python3", "/usr/include", "/usr/share/doc", "/usr/share")
_ENOUGH_BYTES = 52_000_000
_TAR = "/node/tree.tar"
_LOOK_EVERY_S = 1.0


class Route(msgspec.Struct, frozen=True):
    """When to move: part of the input that has been read, and where to ("home" or a number)."""

    at: float
    target: str


class Program(msgspec.Struct, frozen=True):
    title: str
    command: list[str]
    output: str
    route: tuple[Route, ...]


class Move(msgspec.Struct, frozen=True):
    """A row of the last table."""

    program: str
    origin: str
    target: str
    freeze_ms: float
    megabytes: float
    #: by this process since its previous move
    calls: int


class Follower:
    """One program on its way: what is shown of it and what is remembered."""

    def __init__(self, home: NodeHandle, program: Program, process: subprocess.Popen[Any]) -> None:
        self.home = home
        self.program = program
        self.process = process
        self.outer, self.pid = home.pids_of(process)
        self.total = home.path(_TAR).stat().st_size
        self.row: dict[str, Any] = {}
        self.read = 0
        self.moves: list[Move] = []
        self.todo = list(program.route)
        self.moving: subprocess.Popen[str] | None = None
        self._where = "home"
        self._calls = 0
        self._next_look = 0.0

    def step(self) -> None:
        """Look where it is and how far; order what is due. MosixError if a move failed."""
        self.read = max(self.read, self._position())
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            self.row = self.home.job(self.pid) or self.row
        if self.moving is not None:
            if self.moving.poll() is not None:
                self._arrived()
        elif self.todo and self.row and self.read >= self.todo[0].at * self.total:
            order = ["migrate", "--wait", "--json", str(self.pid), self.todo[0].target]
            pipe = subprocess.PIPE
            self.moving = self.home.popen(order, stdout=pipe, stderr=pipe)

    def _position(self) -> int:
        """How far the input is read: the file is open at home wherever the program runs."""
        try:
            for fd in os.listdir(f"/proc/{self.outer}/fd"):
                if os.readlink(f"/proc/{self.outer}/fd/{fd}").endswith(_TAR):
                    info = Path(f"/proc/{self.outer}/fdinfo/{fd}").read_text()
                    return int(info.split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return self.read
        return 0

    def _arrived(self) -> None:
        assert self.moving is not None
        out, err = self.moving.communicate()
        route = self.todo.pop(0)
        if self.moving.returncode:
            raise MosixError(f"{self.program.title}: {err.strip()}")
        self.moving = None
        moved = json.loads(out)
        self.row = self.home.job(self.pid) or self.row
        calls = int(self.row.get("stats", {}).get("calls", 0))
        self.moves.append(
            Move(
                self.program.title,
                self._where,
                name(route.target),
                moved["freeze_ns"] / 1e6,
                moved["page_bytes"] / 1e6,
                calls - self._calls,
            )
        )
        self._where, self._calls = name(route.target), calls

    def where(self) -> str:
        if self.process.poll() is not None:
            return "ended"
        if self.moving is not None:
            return f"{self._where} → {name(self.todo[0].target)}"
        return self._where

    def abandon(self) -> None:
        """End what still runs (something failed)."""
        for process in (self.moving, self.process):
            if process is not None and process.poll() is None:
                drive.kill_command(process)
                process.wait()


def name(target: str) -> str:
    return f"n{target}" if target.isdecimal() else target


class Show:
    """Where the programs are, now: a table on a terminal, or else a line per change."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, refresh_per_second=8) if console.is_terminal else None
        self._said = ""

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        if self.live is None:
            yield
        else:
            with self.live:
                yield

    def update(self, follower: Follower) -> None:
        done = follower.read / follower.total
        if self.live is None:
            if self._said != follower.where():
                self._said = follower.where()
                where = f"{follower.program.title}: {self._said}"
                self.console.print(f"  {where}, {done:.0%} of the input read", highlight=False)
            return
        table = Table(box=None)
        for column in ("program", "pid", "where", "moves", "calls forwarded", "input read"):
            table.add_column(column)
        table.add_row(
            follower.program.title,
            str(follower.pid),
            follower.where(),
            str(len(follower.moves)),
            str(follower.row.get("stats", {}).get("calls", 0)),
            ProgressBar(total=1.0, completed=done, width=30),
        )
        self.live.update(table)


def make_tar(home: NodeHandle) -> int:
    """A tar of real trees on `home` alone; its size in bytes, at least 50 MB."""
    trees: list[str] = []
    size = 0
    for tree in _TREES:
        if size >= _ENOUGH_BYTES:
            break
        if Path(tree).is_dir():
            trees.append(tree.lstrip("/"))
            size += sum(path.lstat().st_size for path in Path(tree).rglob("*") if path.is_file())
    if size < _ENOUGH_BYTES:
        raise MosixError(f"{', '.join(_TREES)} hold only {size / 1e6:.0f} MB")
    # Nothing is written to the tar any more once it is large enough.
    command = 'tar -C / --sort=name -c "$@" 2>/dev/null | head -c 52000000 >/node/tree.tar'
    home.check(["sh", "-c", command, "sh", *trees], timeout_s=120)
    return home.path(_TAR).stat().st_size


def start(home: NodeHandle, command: list[str], output: str) -> subprocess.Popen[Any]:
    with home.path(output).open("wb") as file:
        return home.popen(command, stdout=file, stdin=subprocess.DEVNULL)


def show(home: NodeHandle, program: Program, console: Console) -> tuple[list[Move], bool]:
    """Run a program plainly and sent round; its moves, and whether the outputs are the same."""
    plain = start(home, program.command, f"{program.output}.plain")
    process = start(home, ["mosrun", *program.command], program.output)
    follower = Follower(home, program, process)
    view = Show(console)
    try:
        with view.shown():
            while process.poll() is None:
                follower.step()
                view.update(follower)
                time.sleep(0.1)
            view.update(follower)
        if follower.moving is not None or follower.todo:
            raise MosixError(
                f"{program.title} ended before its last move",
                "try again when this machine has less other work",
            )
        plain.wait()
    finally:
        follower.abandon()
        if plain.poll() is None:
            drive.kill_command(plain)
            plain.wait()
    same = filecmp.cmp(
        home.path(f"{program.output}.plain"), home.path(program.output), shallow=False
    )
    same = same and (process.returncode, plain.returncode) == (0, 0)
    size = home.path(program.output).stat().st_size
    word = "identical to a plain run's" if same else "DIFFERENT from a plain run's"
    console.print(
        f"{program.title}: exit status {process.returncode}, {size} bytes, {word}", highlight=False
    )
    return follower.moves, same


def report(moves: list[Move], console: Console) -> None:
    table = Table(title="moves", title_justify="left")
    for column in ("program", "from", "to", "freeze ms", "MB moved", "calls before"):
        table.add_column(column, justify="left" if column in ("program", "from", "to") else "right")
    for move in moves:
        figures = (f"{move.freeze_ms:.1f}", f"{move.megabytes:.1f}", str(move.calls))
        table.add_row(move.program, move.origin, move.target, *figures)
    console.print(table)


def programs(index: Path) -> list[Program]:
    round_trip = (Route(0.10, "2"), Route(0.28, "3"), Route(0.46, "home"))
    # Its work grows with the square of what it has read.
    later = (Route(0.25, "2"), Route(0.45, "3"), Route(0.65, "home"))
    return [
        Program("xz -9", ["xz", "-9", "-T1", "-k", "-c", _TAR], "/node/moved.xz", round_trip),
        Program(
            "CPython",
            ["/usr/bin/python3", str(index), _TAR],
            "/node/moved.index",
            later,
        ),
    ]


@click.command("demo")
@click.option("--name", "lab_name", default=f"demo-{os.getpid()}", help="Name of the lab.")
@click.argument("index", type=click.Path(exists=True, path_type=Path))
def main(lab_name: str, index: Path) -> None:
    """Programs move while they work (called by scripts/demo)."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    drive.end_in_order()
    try:
        ok = run(lab_name, index.resolve(), console)
        ok = demo_spread.show(lab_name, console) and ok
        ok = demo_kernel.show(lab_name, console) and ok
    except MosixError as error:
        click.echo(f"demo: {error.line()}", err=True)
        sys.exit(error.code)
    sys.exit(0 if ok else 1)


def run(lab_name: str, index: Path, console: Console) -> bool:
    console.print("bringing up three nodes …")
    cluster = Cluster.up(lab_name, 3)
    try:
        demo_kernel.tiers(lab_name, console)
        home = cluster[1]
        size = make_tar(home)
        console.print(f"n1 has {_TAR} ({size / 1e6:.0f} MB), no other node has", highlight=False)
        moves: list[Move] = []
        same = True
        for program in programs(index):
            made, equal = show(home, program, console)
            moves += made
            same = same and equal
        report(moves, console)
        console.print("outputs identical" if same else "outputs DIFFER", highlight=False)
        return same
    except MosixError:
        for node in cluster.nodes:
            console.print(f"--- mosd of {node.name}:\n{node.log()[-3000:]}", highlight=False)
        raise
    finally:
        cluster.down()


if __name__ == "__main__":
    main()
