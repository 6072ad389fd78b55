"""Whoever dies or stands still: a job goes on, or ends by SIGKILL with one line; nothing hangs.

What it did is counted to the last call (programs/ledger.c). At random: test_random_moves.py.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import pytest
from faults import Ledger
from jobs import PROGRAMS, PYTHON, Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built

HOLD = Path(__file__).parents[2] / "bench/programs/hold.c"
#: What a job says that was lost with its remote, and with a node.
LOST = (
    "mosix: process {pid} ended: the connection to node {ip} was lost, and the process is not "
    "there any more"
)
LOST_NODE = "mosix: process {pid} ended: the connection to node {ip} was lost for 60 s"
GUEST_DIED = "mosix: process {pid}: the guest died by SIGKILL on node {ip}"


@pytest.fixture
def ledger(lab: Cluster, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    counting = Ledger(lab[1], str(abs(hash(request.node.name))))
    counting.goes_on()
    yield counting
    counting.job.end()
    restore(lab)


def restore(lab: Cluster) -> None:
    """Every daemon runs again and has its spawner, no worker is left."""
    for node in lab.nodes:
        if not faults.mosd(node):
            node.mosd("start")
        drive.wait_for(f"spawner of {node.name}", lambda node=node: bool(faults.spawners(node)))
        drive.wait_for(f"{node.name} without workers", lambda node=node: not faults.workers(node))


@contextlib.contextmanager
def stalled(pids: list[int]) -> Iterator[None]:
    faults.kill(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        faults.kill(pids, signal.SIGCONT)


# ---- while nothing moves ----


def test_job_at_home_goes_on_without_its_deputy(lab: Cluster, ledger: Ledger) -> None:
    faults.kill(faults.workers(lab[1]))
    ledger.goes_on()
    assert ledger.finish() == "done"


def test_job_away_ends_with_its_deputy(lab: Cluster, ledger: Ledger) -> None:
    ledger.job.move("2")
    faults.kill(faults.workers(lab[1]))
    assert ledger.end() == ledger.deputy_died
    drive.wait_for("a line in mosd's log", lambda: "killed by signal 9" in lab[1].log())


@pytest.mark.parametrize("who", ["worker", "stub", "guest"])
def test_job_away_ends_with_its_guest(who: str, lab: Cluster, ledger: Ledger) -> None:
    ledger.job.move("2")
    ledger.goes_on()
    faults.kill(faults.VICTIMS[who](lab[2]))
    said = LOST if who == "worker" else GUEST_DIED
    assert ledger.end() == said.format(pid=ledger.job.pid, ip=lab[2].ip)


@pytest.mark.parametrize("number", [1, 2])
def test_job_away_goes_on_and_comes_home_without_mosd(
    number: int, lab: Cluster, start: Callable[..., Job]
) -> None:
    """A fork needs home, whose mosd, or the one where the guest is, died before."""
    code = (
        "import os, sys\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    pid = os.fork()\n"
        "    if not pid: os._exit(5)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)\n"
    )
    job = start([PYTHON, "-c", code])
    assert job.line() == "ready"
    job.move("2")
    lab[number].mosd("kill")
    try:
        for _ in range(2):
            job.write("\n")
            assert job.line() == "5"
        assert job.finish() == (0, "", "")
    finally:
        restore(lab)


def test_command_says_that_mosd_is_dead(lab: Cluster, ledger: Ledger) -> None:
    lab[1].mosd("kill")
    done = lab[1].run(["migrate", "--wait", str(ledger.job.pid), "2"])
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert ledger.finish() == "done"


def test_death_of_spawners_is_not_felt(lab: Cluster, ledger: Ledger) -> None:
    ledger.job.move("2")
    for node in lab.nodes:
        faults.kill(faults.spawners(node))
    ledger.goes_on()
    drive.wait_for("spawners", lambda: all(faults.spawners(node) for node in lab.nodes))
    ledger.job.move("3")
    assert ledger.finish() == "done"


def test_full_standard_error_keeps_nobody(lab: Cluster) -> None:
    """The line that says why the job ended has no room; its deputy ends all the same."""
    code = "import os; os.set_blocking(2, False)\ntry:\n    while os.write(2, bytes(4096)): pass\n"
    code += "except BlockingIOError: pass\nos.set_blocking(2, True); print('ready', flush=True)\n"
    code += "while True: pass\n"
    job = Job(lab[1], [PYTHON, "-c", code])
    try:
        assert job.line() == "ready"
        job.move("2")
        faults.kill(faults.guests(lab[2]))
        assert job.process.wait(60) == -signal.SIGKILL
        restore(lab)
    finally:
        job.end()


# ---- while it moves ----


def node_of(lab: Cluster, place: str) -> NodeHandle:
    return lab[1 if place == "home" else int(place)]


@pytest.mark.parametrize(
    ("route", "who"),
    [
        (("home", "2"), "worker"),
        (("home", "2"), "stub"),
        (("home", "2"), "deputy"),
        (("2", "3"), "worker"),
        (("2", "3"), "guest"),
        (("2", "3"), "mosd"),
    ],
)
def test_job_goes_on_where_it_was_when_its_move_is_killed(
    route: tuple[str, str], who: str, lab: Cluster, start: Callable[..., Job]
) -> None:
    """200 MiB are on their way when one of those who carry them dies."""
    job = start([str(built(HOLD)), "200"])
    job.line()
    job.write("\n")
    expected = job.line()
    source, target = node_of(lab, route[0]), node_of(lab, route[1])
    job.home.migrate(job.pid, route[0])
    before = job.where()
    with moving(job, source, target) as order:
        killed = faults.workers(lab[1]) if who == "deputy" else faults.VICTIMS[who](target)
        assert faults.kill(killed)
        _, complaint = order.communicate(timeout=90)
    if who != "mosd":  # which only has to make connections, and has
        assert order.returncode in (7, 8, 10), complaint
        assert len(complaint.splitlines()) == 1
    if who not in ("deputy", "mosd"):
        assert job.where() == before
    job.write("\n")
    assert job.line() == expected
    assert job.finish()[0] == 0
    restore(lab)


@contextlib.contextmanager
def moving(
    job: Job, source: NodeHandle, target: NodeHandle, megabytes: int = 20
) -> Iterator[subprocess.Popen[str]]:
    """A move, once so much of the body has come to `target`; the rest takes seconds."""
    before = faults.received(target)
    with faults.slow_sender(source):
        order = faults.order(job, target.ip)
        try:
            drive.wait_for("pages", lambda: faults.received(target) > before + (megabytes << 20))
            yield order
        finally:
            drive.kill_command(order)
            order.communicate()


@pytest.mark.full
@pytest.mark.parametrize(("source", "target"), [("home", "2"), ("2", "3"), ("2", "home")])
@pytest.mark.parametrize("who", ["source", "target"])
def test_job_goes_on_where_it_was_when_a_remote_stands_still(
    source: str, target: str, who: str, lab: Cluster, start: Callable[..., Job]
) -> None:
    """Its kernel acknowledges everything; only the process does nothing. It takes the 30 s of
    docs/architecture.md."""
    if (source if who == "source" else target) == "home":
        pytest.skip("home has no remote")
    job = start([str(built(HOLD)), "200"])
    job.line()
    job.write("\n")
    expected = job.line()
    job.home.migrate(job.pid, source)
    before = job.where()
    still = faults.workers(lab[int(source if who == "source" else target)])
    with moving(job, node_of(lab, source), node_of(lab, target)) as order:
        still = still or faults.workers(lab[int(target)])
        with stalled(still):
            _, complaint = order.communicate(timeout=90)
    assert order.returncode in (7, 10), complaint
    assert job.where() == before
    job.write("\n")
    assert job.line() == expected


@pytest.mark.full
def test_job_is_lost_with_its_node(lab: Cluster, ledger: Ledger) -> None:
    """The cable is pulled: nobody says anything any more."""
    ledger.job.move("2")
    lab[2].link(up=False)
    try:
        assert ledger.job.process.wait(120) == -signal.SIGKILL
    finally:
        lab[2].link(up=True)
    assert ledger.finish() == LOST_NODE.format(pid=ledger.job.pid, ip=lab[2].ip)


# ---- many, and full disks ----


def test_many_jobs_at_once(lab: Cluster, full: bool) -> None:
    """30 jobs (200 with --full) begin at once, a third of them is moved about, all count right."""
    jobs = 200 if full else 30
    command = [str(built(PROGRAMS / "ledger.c"))]
    script = [sys.executable, str(PROGRAMS / "crowd.py"), str(jobs), *command]
    done = lab[1].run(script, timeout_s=400)
    assert done.returncode == 0, done.stderr
    statuses, moves, complaints = json.loads(done.stdout)
    assert statuses == [faults.STATUS] * jobs
    assert (moves > jobs, complaints) == (True, [])
    for number in range(jobs):
        kept = faults.check_counting(lab[1].path(f"/node/crowd-{number}").read_text())
        output = lab[1].path(f"/node/crowd-{number}.out").read_text()
        assert output.endswith("end\n")
        assert kept == faults.check_counting(output)
    restore(lab)


def test_full_disks_of_other_nodes_do_not_matter(lab: Cluster, ledger: Ledger) -> None:
    tree = Path(__file__).resolve()
    # What lies over the programs of this tree cannot be covered by another file system.
    full = [place for place in ("/tmp", "/node", "/var/tmp") if not tree.is_relative_to(place)]
    script = (
        'for d in "$@"; do mount -t tmpfs -o size=64k none $d; '
        "dd if=/dev/zero of=$d/full bs=4k; done 2>&1; df --output=pcent $d | tail -1"
    )
    try:
        for node in (lab[2], lab[3]):
            assert "100%" in node.check(["sh", "-c", script, "sh", *full], cwd="/")
        for target in ("2", "3", "home"):
            ledger.job.move(target)
            ledger.goes_on()
    finally:
        for node in (lab[2], lab[3]):
            node.check(["umount", *full], cwd="/")
    assert ledger.finish() == "done"


# ---- signals ----


def test_signals_come_all_once_and_in_order_wherever_it_is(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    """A thousand queued ones among a storm of others, ends of children, faults and timers, while
    it moves."""
    count, seed = 1000, random.randrange(1 << 31)
    print(f"seed {seed}")
    job = start([str(built(PROGRAMS / "storm.c")), str(count)])
    assert job.line() == "ready"
    script = [sys.executable, str(PROGRAMS / "storm.py"), str(job.pid), str(count), str(seed)]
    done = lab[1].run(script, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 3
    assert job.finish() == (0, f"{count} queued, 0 wrong, 0 errors, all came\n", "")
