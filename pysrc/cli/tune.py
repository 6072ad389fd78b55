"""tune: measure what networked operations cost from this node, and write /etc/mosix/mostune.

A job of its own is sent to each node and back, small and large; mosd measures the bare link. The
file is read by mosd for its decisions (`mosix.config.tuning`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
from mosix.cli import columns, tune_probe
from mosix.cli.command import Command, run_dir_option, version_option
from mosix.config.paths import Paths
from mosix.config.tuning import Costs, written
from mosix.errors import MosixError, PermissionDeniedError, RefusedError
from mosix.node import requests
from mosix.node.client import ask

_ROUNDS = 3
_CALLS = 500
_BYTES_MB = 8
_GROW_MB = 64
_PATIENCE_S = 120.0
_HEADER = ("NODE", "LATENCY us", "LINK MB/s", "CALL us", "BYTES MB/s", "MOVE ms", "PAGES MB/s")
_COMMENT = """\
# What networked operations cost from this node; made by tune(1), first line that fits holds.
# NODE CALL_US BYTES_MB_S MOVE_MS PAGES_MB_S
"""


class Measured(msgspec.Struct, frozen=True):
    """Of one node. `latency_us`: there and back; `link_mb_s`: bare TCP."""

    ip: str
    number: int | None
    latency_us: float
    link_mb_s: float
    costs: Costs


class Moved(NamedTuple):
    """How long it stood still, and what travelled."""

    still_s: float
    mb: float


class Probe:
    """The job that is sent round."""

    def __init__(self, paths: Paths) -> None:
        mosrun = shutil.which("mosrun")
        if mosrun is None:
            raise MosixError("mosrun is not on the PATH", "add the directory of mosix's commands")
        command = [mosrun, "-L", sys.executable, "-P", "-m", tune_probe.__name__]
        self._paths = paths
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(self, order: str, amount: int) -> float:
        """Seconds that it took where the job is. MosixError when the job has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{order} {amount}\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise MosixError(f"the job that measures ended with {self._process.wait()}")
        return float(line)

    def go(self, target: str) -> Moved:
        """Moves it. MosixError."""
        order = requests.Migrate(pid=self._process.pid, target=target, wait=True)
        moved = ask(self._paths, order, requests.Migrated, _PATIENCE_S)
        if not moved.freeze_ns:
            raise MosixError(f"the job that measures does not move to {target}")
        return Moved(moved.freeze_ns / 1e9, moved.page_bytes / 1e6)

    def close(self) -> None:
        """Ends the job."""
        self._process.kill()
        self._process.communicate()


@click.command("tune", cls=Command)
@click.argument("nodes", metavar="[NODE|IP|HOST]...", nargs=-1)
@click.option("--write", is_flag=True, help="Write the file, keeping lines of other nodes.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option(
    "--config",
    "config_dir",
    metavar="DIR",
    help="Where mostune is [default: $MOSIX_CONFIG_DIR or /etc/mosix].",
)
@run_dir_option
@version_option
def main(
    *,
    nodes: tuple[str, ...],
    write: bool,
    as_json: bool,
    config_dir: str | None,
    run_dir: str | None,
) -> None:
    """Measure what it costs a process of this node to be at each of these others, or at all that
    are up. Only root may. Other work on the nodes makes the figures worse.

    \b
    LATENCY  there and back, of bare TCP; LINK: its speed
    CALL     a system call that is redirected home
    BYTES    what reads and writes at home bring
    MOVE     how long a small process stands still to be moved
    PAGES    memory of a process that is moved

    With --write mosd takes them into its decisions within half a minute."""
    if os.geteuid() != 0:
        raise PermissionDeniedError("only root may measure", "sudo tune")
    paths = Paths.choose(config_dir, run_dir)
    found = measure(paths, nodes)
    if write:
        _write(paths.tuning, [(one.ip, one.costs) for one in found])
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
    else:
        columns.show(_HEADER, [_row(one) for one in found], _HEADER[1:])


def measure(paths: Paths, nodes: Sequence[str]) -> list[Measured]:
    """One after the other. MosixError."""
    wanted = [ask(paths, requests.Whois(node=node), requests.NodeName) for node in nodes]
    targets = [(name.ip, name.number) for name in wanted] or list(_all_up(paths))
    if not targets:
        raise RefusedError("no other node is up", "mon --once shows the nodes")
    links = [
        ask(paths, requests.Measure(node=ip), requests.LinkMeasured, _PATIENCE_S)
        for ip, _ in targets
    ]
    probe = Probe(paths)
    try:
        probe.do("calls", 1)
        small = [_small(probe, ip) for ip, _ in targets]
        probe.do("grow", _GROW_MB)
        large = [_best(probe, ip) for ip, _ in targets]
    finally:
        probe.close()
    return [
        Measured(
            ip=ip,
            number=number,
            latency_us=link.turn_ns / 1e3,
            link_mb_s=link.mb_s,
            costs=_costs(*one, big),
        )
        for (ip, number), link, one, big in zip(targets, links, small, large, strict=True)
    ]


def _all_up(paths: Paths) -> Iterator[tuple[str, int | None]]:
    known = ask(paths, requests.Nodes(), requests.NodeList)
    for node in known.nodes:
        if node.state == "alive" and node.ip != known.own:
            yield node.ip, node.number


def _small(probe: Probe, ip: str) -> tuple[float, float, Moved]:
    """Of a small process there: seconds of a call, MB/s of its bytes, its move."""
    move = _best(probe, ip, home=False)
    call_s = min(probe.do("calls", _CALLS) for _ in range(_ROUNDS)) / _CALLS
    byte_s = min(probe.do("bytes", _BYTES_MB) for _ in range(_ROUNDS))
    probe.go("home")
    return call_s, _BYTES_MB / byte_s, move


def _best(probe: Probe, ip: str, *, home: bool = True) -> Moved:
    """The quickest of some moves there. `home`: it comes back after the last, too."""
    found = []
    for number in range(_ROUNDS):
        found.append(probe.go(ip))
        if home or number < _ROUNDS - 1:
            probe.go("home")
    return min(found)


def _costs(call_s: float, bytes_mb_s: float, small: Moved, large: Moved) -> Costs:
    """Two moves of different size give what both have in common, and what a MB takes."""
    mb_s = (large.mb - small.mb) / max(large.still_s - small.still_s, 1e-6)
    fixed_s = max(small.still_s - small.mb / mb_s, 1e-4)
    return Costs(call_s * 1e6, bytes_mb_s, fixed_s * 1e3, mb_s)


def _row(one: Measured) -> tuple[str, ...]:
    costs = one.costs
    name = one.ip if one.number is None else f"{one.number} {one.ip}"
    values = (one.latency_us, one.link_mb_s, costs.call_us, costs.bytes_mb_s)
    return name, *(f"{value:.1f}" for value in (*values, costs.move_ms, costs.pages_mb_s))


def _write(path: Path, found: list[tuple[str, Costs]]) -> None:
    """Replaced at once: mosd reads it whenever it likes. MosixError."""
    try:
        old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        ours = [ip for ip, _ in found]
        kept = [line for line in old if line.split()[:1] and line.split()[0] not in ours]
        kept = [line for line in kept if f"{line}\n" not in _COMMENT.splitlines(keepends=True)]
        lines = [*(written(ip, costs) for ip, costs in found), *kept]
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(_COMMENT + "\n".join(lines) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise MosixError(f"{path}: {error.strerror}", "can files be written there?") from error


if __name__ == "__main__":
    main()
