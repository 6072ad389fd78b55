"""Last part of the demonstration: the kernel tier, in two virtual machines with stock kernels.

Called by `mosix.lab.demo`. A job on the machine with kernel 6.1 is sent to the one with 6.12 and
works there: intercept.bpf.c decides about each of its calls, mosix.ko parks those that belong to
home, and the Python deputy's ghost makes them at home. Shows what each of them has counted. Where
there can be no virtual machines, or not these kernels, it says why and is left out.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

from mosix.errors import MosixError
from mosix.lab import cluster, drive
from mosix.lab.drive import Cluster, NodeHandle
from rich.console import Console
from rich.table import Table

_KERNELS = "6.1,6.12"
#: Until an emulated machine has a job, and until the job has said that it works (seconds).
_LONG_S = 240.0
#: Copies lines and sums what it has read: a few calls for each.
_WORK = """
import os, sys
total = 0
for line in sys.stdin:
    total += sum(line.encode())
    print(os.getppid() > 0, total, flush=True)
"""
_LINES = 200


def tiers(name: str, console: Console) -> None:
    """Which tier each node of a running lab has."""
    for row in cluster.status(Cluster(name).lab):
        release = row.kernel or "the host's kernel"
        console.print(f"{row.name}: tier {row.tier or 'none'}, {release}", highlight=False)


def show(lab_name: str, console: Console) -> bool:
    """Whether all went well, or could not be tried."""
    name = f"{lab_name}-vm"
    console.print("\nbringing up two virtual machines with stock kernels …")
    try:
        machines = Cluster.up(name, 2, "--vm", f"--kernel={_KERNELS}", "--module")
    except MosixError as error:
        console.print(f"left out, no kernel tier here: {error.line()}", highlight=False)
        return True
    try:
        tiers(name, console)
        return _move(machines[1], machines[2], console)
    finally:
        machines.down()


def _move(home: NodeHandle, there: NodeHandle, console: Console) -> bool:
    command = ["python3", "-c", _WORK]
    plain = home.run(command, input=_input(), timeout_s=_LONG_S).stdout
    pipe = subprocess.PIPE
    with home.popen(["mosrun", "-h", *command], stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid = home.pid_of(process)
        drive.wait_for("the job", lambda: home.job(pid), _LONG_S)
        moved = home.migrate(pid, there.ip)
        before = _decided(there)
        process.stdin.write(_input())
        process.stdin.flush()
        said = "".join(process.stdout.readline() for _ in range(_LINES))
        decided = {name: count - before.get(name, 0) for name, count in _decided(there).items()}
        home.migrate(pid, "home")
        stats = (home.job(pid) or {}).get("stats", {})
        process.stdin.close()
        status = process.wait()
    _report(moved, decided, stats, console)
    same = said == plain and status == 0
    word = "identical to a plain run's" if same else "DIFFERENT from a plain run's"
    console.print(f"a job from 6.1 on 6.12: {_LINES} lines, {word}", highlight=False)
    return same


def _input() -> str:
    return "".join(f"line {number}\n" for number in range(_LINES))


def _decided(node: NodeHandle) -> dict[str, int]:
    """What the node's eBPF program and module have counted."""
    status = node.check(["mosctl", "status", "--json"], timeout_s=_LONG_S)
    return dict(json.loads(status)["decided"])


def _report(
    moved: dict[str, Any], decided: dict[str, int], stats: dict[str, int], console: Console
) -> None:
    table = Table(title="who did what while the job was on n2", title_justify="left")
    table.add_column("who")
    table.add_column("what")
    table.add_column("times", justify="right")
    rows = (
        ("intercept.bpf.c on n2", "let a call be made there", decided.get("native", 0)),
        ("intercept.bpf.c on n2", "sent a call home", decided.get("redirected", 0)),
        ("mosix.ko on n2", "parked a call and gave its result", decided.get("module_answered", 0)),
        ("deputy on n1", "had a call made in the job's name", stats.get("calls", 0)),
    )
    for who, what, times in rows:
        table.add_row(who, what, str(times))
    console.print(table)
    console.print(
        f"frozen for {moved['freeze_ns'] / 1e6:.0f} ms, {moved['page_bytes'] / 1e6:.1f} MB moved",
        highlight=False,
    )
