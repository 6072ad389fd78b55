"""The matrix process × failpoint × fault: what is tried, and what the design's table promises.

A cell arms one point of `mosix.failpoints` on one node and does what leads there: `play`. The
promises are in `promised`; test_failpoints.py compares and writes docs/faults.md.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass

import faults
from faults import Ledger
from jobs import PROGRAMS
from mosix import failpoints
from mosix.errors import NotRunningError
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built

#: Ways to a point: where the job is before, and where it is sent.
ROUTES = {"leave": ("home", "2"), "home": ("2", "home"), "on": ("2", "3")}
STALL_MS = 400
ERRORS = ("ENOSPC", "ENOMEM", "EMFILE")
CUTS = ("cut", "half-open")

_LAUNCH = ("mosd.launch", "mosd.launched", "deputy.launch")
_TARGET = ("remote.prepare", "remote.prepared", "remote.image", "remote.restored")
_TARGET += ("remote.ready", "remote.run", "remote.running", "mosd.guest", "mosd.welcome")
_TARGET += ("mosd.attach",)
_SOURCE = ("remote.freeze", "remote.frozen", "remote.sending", "remote.sent")
_LEAVE = ("deputy.dialed", "deputy.prepared", "deputy.stopped", "deputy.described")
_LEAVE += ("deputy.sending", "deputy.injected", "deputy.ready", "deputy.committed")
_LEAVE += ("deputy.emptied", "deputy.away")
_HOME = ("deputy.freeze", "deputy.frozen", "deputy.filled", "deputy.home")
_ON = ("deputy.next_prepared", "deputy.next_frozen", "deputy.transferred", "deputy.moved")
_ON += ("deputy.served",)
_CALL = tuple(name for name in failpoints.POINTS if name.startswith(("redirect.", "agent.")))
_SIGNAL = ("deputy.signal", "remote.signal", "remote.halted", "remote.signalled")

#: What is said when it is the mosd of this very node.
_MOSD_DIED = (faults.MOSD_DIED, "mosrun: mosd closed the connection")
#: From here on the body is at the target and nowhere else.
_AFTER_COMMIT = {
    "leave": ("deputy.committed", "deputy.emptied", "deputy.away"),
    "on": ("deputy.moved", "deputy.served"),
}
#: Points that no connection is given to.
_NOTHING_TO_CUT = (*_LAUNCH, "spawner.fork", "mosd.move", "deputy.exec", "deputy.sending")
_NOTHING_TO_CUT += ("remote.halted",)


@dataclass(frozen=True)
class Cell:
    way: str
    point: str
    node: int
    fault: str

    @property
    def process(self) -> str:
        return self.point.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.way}-{self.point}-n{self.node}-{self.fault}"


@dataclass(frozen=True)
class Result:
    """`outcome`: done, lost, killed or refused (never begun); `said`: by the command or mosix."""

    outcome: str
    said: str


def cells(*, whole: bool) -> list[Cell]:
    """All of them, or a third in which every point and every fault occurs."""
    ways: list[tuple[str, str, int]] = []
    ways += [("launch", point, 1) for point in (*_LAUNCH, "spawner.fork")]
    ways += [("launch away", "deputy.exec", 1)]
    ways += [("leave", point, 1) for point in ("mosd.move", "mosd.dial", "mosd.dialed", *_LEAVE)]
    ways += [("leave", point, 2) for point in ("spawner.fork", *_TARGET)]
    ways += [("call", point, 1 if point.startswith("agent.") else 2) for point in _CALL]
    ways += [("signal", point, 1 if point.startswith("deputy.") else 2) for point in _SIGNAL]
    ways += [("home", point, 1) for point in _HOME]
    ways += [("home", point, 2) for point in _SOURCE]
    ways += [("on", point, 1) for point in _ON]
    ways += [("on", point, 2) for point in ("mosd.dial", "mosd.dialed", *_SOURCE)]
    ways += [("on", point, 3) for point in _TARGET]
    found = []
    for row, (way, point, node) in enumerate(ways):
        kinds = ["kill", f"stall:{STALL_MS}", *(ERRORS if whole else [ERRORS[row // 3 % 3]])]
        if point not in _NOTHING_TO_CUT:
            kinds += CUTS
        for column, fault in enumerate(kinds):
            if whole or (row + column) % 3 == 0:
                found.append(Cell(way, point, node, fault))
    return found


def promised(cell: Cell) -> tuple[str, ...]:
    """The outcomes that docs/architecture.md allows."""
    if cell.fault.startswith("stall"):
        return ("done",)
    if cell.way.startswith("launch"):
        return _promised_at_launch(cell)
    if cell.process in ("mosd", "spawner") or cell.fault in CUTS:
        return ("done",)  # the connection is made again
    if cell.way in ROUTES:
        return _promised_on_the_way(cell)
    if cell.fault == "kill":
        return ("killed",) if cell.process in ("agent", "deputy") else ("lost",)
    return ("done",) if cell.way == "call" else ("lost",)


def _promised_at_launch(cell: Cell) -> tuple[str, ...]:
    if cell.fault == "kill" and cell.point in ("spawner.fork", "deputy.exec"):
        return ("done",)  # it is started again in time; it stays a process at home
    return ("refused",)


def _promised_on_the_way(cell: Cell) -> tuple[str, ...]:
    if cell.point == "remote.running" and cell.way != "home":
        return ("done", "lost")  # home has heard of it, or not
    away = cell.point in _AFTER_COMMIT.get(cell.way, ())
    if cell.process == "deputy" and cell.fault == "kill":
        # The body at home is whole until its ghost is emptied, whoever believes to have it.
        whole = ROUTES[cell.way][0] == "home" and (not away or cell.point == "deputy.committed")
        # Its mosd tells the user, if it knew already that the process was away.
        return ("done",) if whole or cell.point == "deputy.home" else ("killed", "lost")
    if cell.point in _SOURCE and cell.fault == "kill":
        return ("lost",)  # home does not have all of the body yet
    return ("lost",) if away else ("done",)


def play(lab: Cluster, cell: Cell) -> Result:
    """Tries `cell` and checks that the job's effects happened once each, whatever became of it."""
    node = lab[cell.node]
    before = len(node.log())
    if cell.way.startswith("launch"):
        node.arm(f"{cell.point}={cell.fault}")
        try:
            result = _launch(lab, [] if cell.way == "launch" else ["-2"])
        finally:
            _disarm(node)
    else:
        ledger = Ledger(lab[1], "matrix")
        try:
            result = _away(lab, cell, ledger)
        finally:
            ledger.job.end()
    if result.said and not result.said.startswith(_MOSD_DIED):
        assert any(other.ip in result.said for other in lab.nodes), f"no node named: {result}"
    if cell.process != "agent":  # which has nowhere to say so
        assert "failpoint" in node.log()[before:], f"the failpoint was not reached: {result}"
    return result


def _launch(lab: Cluster, options: list[str]) -> Result:
    """A job that ends by itself."""
    stop = lab[1].path("/node/stop-launch")
    counted = lab[1].path("/node/ledger-launch")
    counted.unlink(missing_ok=True)
    stop.touch()
    program = [str(built(PROGRAMS / "ledger.c")), "/node/ledger-launch", "/node/stop-launch"]
    done = lab[1].run(["mosrun", *options, *program, str(faults.STATUS)])
    if done.returncode == faults.STATUS:
        assert (done.stdout, done.stderr) == ("end\n", "")
        return Result("done", "")
    assert done.returncode == 125, (done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not counted.exists()
    return Result("refused", done.stderr.strip())


def _away(lab: Cluster, cell: Cell, ledger: Ledger) -> Result:
    node, job = lab[cell.node], ledger.job
    start, target = ROUTES.get(cell.way, ("2", ""))
    ledger.goes_on(1)
    if start != "home":
        job.move(start)
    said, signals = "", 0
    hits = "@3" if cell.way == "call" else ""
    node.arm(f"{cell.point}={cell.fault}{hits}")
    try:
        if target:
            said = faults.Order(job, target).outcome()
        elif cell.way == "signal":
            job.kill(signal.SIGUSR1)
            signals = 1
        ledger.goes_on(10)
    finally:
        _disarm(node)
    outcome = ledger.finish(signals)
    if outcome == ledger.deputy_died:
        return Result("killed", outcome)
    if outcome not in ("done", "killed"):
        return Result("lost", outcome)
    return Result(outcome, said)


_HEAD = """# Who fails, and what becomes of the job

Written by `scripts/test --full`, from what it has seen: at each point of `pysrc/failpoints.py` the
process that gets there is killed, loses its connections, stands still for {stall} ms, or is told by
its kernel that there is no room. The job counts in a file and on its output; every number was there
once, but for the last one of a job that was lost.

`done`: the job ended rightly, moved or where it was before. `lost`: it ended by SIGKILL with one
line on its stderr that names the node. `killed`: it ended by SIGKILL, as mosd says there.
`refused`: mosrun said why in one line, ended with 125, and nothing had run.

| way | point | what has happened | at | {faults} |
|---|---|---|---|{rule}
"""


def document(results: dict[Cell, Result]) -> str:
    """docs/faults.md."""
    columns = ("kill", *CUTS, f"stall:{STALL_MS}", *ERRORS)
    text = _HEAD.format(
        stall=STALL_MS,
        faults=" | ".join(column.partition(":")[0] for column in columns),
        rule="---|" * len(columns),
    )
    rows = dict.fromkeys((cell.way, cell.point, cell.node) for cell in results)
    for way, point, node in rows:
        outcomes = [
            found.outcome if (found := results.get(Cell(way, point, node, fault))) else "–"
            for fault in columns
        ]
        told = failpoints.POINTS[point]
        text += f"| {way} | `{point}` | {told} | n{node} | {' | '.join(outcomes)} |\n"
    return text


def _disarm(node: NodeHandle) -> None:
    with contextlib.suppress(NotRunningError):  # killed, as it should be
        node.arm("")
