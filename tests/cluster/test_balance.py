"""Nobody types `migrate`: load, memory and I/O decide where a job runs."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import PROGRAMS, PYTHON, Job
from mosix.errors import RefusedError
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle

#: Decisions take seconds, on a machine with much other work many of them.
PATIENCE_S = 120.0
BESTNODE = [sys.executable, "-m", "mosix.cli.bestnode"]
SPIN = ["sh", "-c", "while :; do :; done"]


@pytest.fixture(scope="module")
def balanced() -> Iterator[Cluster]:
    """Two nodes that decide by themselves."""
    name = f"t{os.getpid()}-balanced"
    cluster = None
    try:
        cluster = Cluster.up(name, 2, "--balance", "--memory-mb=768")
        for node in cluster.nodes:  # what answers is there from now on
            assert node.jobs() == []
        yield cluster
    finally:
        if cluster is not None:
            cluster.down()
        drive.down(name)


@pytest.fixture
def loaded(balanced: Cluster) -> Iterator[None]:
    """n1 has much to do that is not MOSIX's, and n2 knows."""
    spinning = [balanced[1].popen(SPIN) for _ in range(5)]
    try:
        for node in balanced.nodes:
            knows = functools.partial(knows_of_load, node)
            drive.wait_for(f"{node.name} to know that n1 is loaded", knows, PATIENCE_S)
        yield
    finally:
        for process in spinning:
            drive.kill_command(process)
            process.communicate()


def knows_of_load(node: NodeHandle) -> bool:
    """Of at least four that run on n1."""
    status = json.loads(node.check(["mosctl", "status", "--json"]))
    said = [known["running"] for known in status["known"] if known["number"] == 1]
    own = status["load"] or {"exported": 0}
    return bool((said[0] if said else own["exported"]) > 4)


@pytest.fixture
def begin(balanced: Cluster) -> Iterator[Callable[..., Job]]:
    """Starts jobs on n1 and ends them after the test; nobody else is to be there."""
    drive.wait_for("idle nodes", lambda: not (balanced[1].jobs() or balanced[2].jobs()))
    jobs: list[Job] = []

    def start(command: list[str], *options: str) -> Job:
        jobs.append(Job(balanced[1], command, options=options))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def places(cluster: Cluster) -> Counter[str]:
    return Counter(row["where"] for row in cluster[1].jobs())


def wait_for_places(cluster: Cluster, home: int, away: int) -> None:
    wanted = {"home": home, cluster[2].ip: away}
    drive.wait_for(f"{wanted}", lambda: places(cluster) == wanted, PATIENCE_S)


def cpu_s(cluster: Cluster) -> float:
    """That all jobs have used so far, wherever they are."""
    ticks = 0
    for node in cluster.nodes:
        for pid, command in node.processes().items():
            if command.startswith(SPIN[0]):
                try:
                    stat = Path(f"/proc/{pid}/stat").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                ticks += sum(map(int, stat.rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def work_on(cluster: Cluster, seconds: float) -> None:
    """Until the jobs have used so much more: the balancer has had its time to err."""
    end = cpu_s(cluster) + seconds
    drive.wait_for(f"{seconds} s of CPU", lambda: cpu_s(cluster) >= end, PATIENCE_S)


def test_equal_jobs_of_one_node_spread_over_two_and_stay(
    balanced: Cluster, begin: Callable[..., Job]
) -> None:
    for _ in range(4):
        begin(SPIN)
    wait_for_places(balanced, home=2, away=2)
    moves = sum(row["nmigs"] for row in balanced[1].jobs())
    assert moves == 2
    work_on(balanced, 4)
    # another one may be wanted by what else runs here; none goes to and fro
    assert sum(row["nmigs"] for row in balanced[1].jobs()) <= moves + 1
    away = next(row for row in balanced[1].jobs() if row["where"] == balanced[2].ip)
    why = balanced[1].check(["mosps", "--why", str(away["pid"])])
    assert "balanced: " in why
    assert "gains" in why


def test_a_locked_job_stays_when_others_leave(balanced: Cluster, begin: Callable[..., Job]) -> None:
    locked = begin(SPIN, "-L")
    for _ in range(3):
        begin(SPIN)
    wait_for_places(balanced, home=2, away=2)
    assert locked.where() == "home"
    assert locked.row()["nmigs"] == 0


def test_a_job_that_asks_for_much_io_goes_home_and_stays(
    balanced: Cluster, begin: Callable[..., Job]
) -> None:
    job = begin(["dd", "if=/dev/zero", "of=/dev/null", "bs=1"], "-2")
    job.wait_until_at(balanced[2].ip)
    drive.wait_for("it goes home", lambda: job.row()["why"].startswith("balanced"), PATIENCE_S)
    assert job.where() == "home"
    moves = job.row()["nmigs"]
    spin = begin(SPIN, "-L")
    work_on(balanced, 3)
    assert spin.where() == job.where() == "home"
    assert job.row()["nmigs"] == moves


#: Takes 6 MB each tenth of a second until it has 300, and sits on them.
HOG = """
import time
taken = []
for _ in range(50):
    taken.append(bytearray(6 << 20))
    time.sleep(0.1)
print("full", flush=True)
time.sleep(1000)
"""
BALLAST = "import time; held = bytearray(330 << 20); print('here', flush=True); time.sleep(1000)"


def test_who_takes_much_memory_leaves_before_its_node_has_none(
    balanced: Cluster, begin: Callable[..., Job]
) -> None:
    ballast = balanced[1].popen([PYTHON, "-c", BALLAST], stdout=subprocess.PIPE)
    try:
        assert ballast.stdout is not None
        assert ballast.stdout.readline() == "here\n"
        hog = begin([PYTHON, "-c", HOG])
        hog.wait_until_at(balanced[2].ip)
        assert "MB free" in hog.row()["why"]
        assert hog.line() == "full"
        assert hog.where() == balanced[2].ip
        assert ballast.poll() is None
    finally:
        drive.kill_command(ballast)
        ballast.communicate()


@pytest.mark.usefixtures("loaded")
def test_b_starts_where_it_is_best_and_bestnode_names_it(
    balanced: Cluster, begin: Callable[..., Job]
) -> None:
    n1, n2 = balanced.nodes
    assert n1.check([*BESTNODE, "-n"]) == "2\n"
    assert n2.check([*BESTNODE, "-u", "-m100"]) == f"{n2.ip}\n"
    assert json.loads(n1.check([*BESTNODE, "--json"]))["ip"] == n2.ip
    begin(["cat"], "-b").wait_until_at(n2.ip)
    none = n1.run([*BESTNODE, "-m100000"])
    assert (none.returncode, none.stdout) == (RefusedError.code, "")
    assert "no node that can be used has 100000 MB free" in none.stderr
    assert begin(["cat"], "-b", "-m100000").where() == "home"


@pytest.mark.usefixtures("loaded")
def test_a_place_is_free_again_as_soon_as_its_job_has_ended(balanced: Cluster) -> None:
    """Also of jobs so short that none is seen running: more of them than would fit."""
    n1 = balanced[1]
    for _ in range(8):
        assert n1.check([*BESTNODE, "-n"]) == "2\n"
        assert n1.run(["mosrun", "-b", "true"]).returncode == 0


#: Computes for a while, asks to be thought of, and says where it is then.
ASKER = """
import time
from mosix import job
while time.process_time() < 2:
    pass
job.consider_migration()
print(job.whereami(), flush=True)
time.sleep(1000)
"""


@pytest.mark.usefixtures("loaded")
def test_a_program_may_ask_to_be_thought_of_even_if_it_is_locked(
    balanced: Cluster, begin: Callable[..., Job]
) -> None:
    package = PROGRAMS.parents[2] / "build" / "typed"
    job = begin(["env", f"PYTHONPATH={package}", PYTHON, "-c", ASKER], "-L")
    assert job.line() == "2"
    assert job.where() == balanced[2].ip


@pytest.mark.usefixtures("loaded")
def test_who_was_sent_by_hand_is_moved_on_where_that_gains_unless_it_is_locked(
    balanced: Cluster, begin: Callable[..., Job]
) -> None:
    free, locked = begin(SPIN), begin(SPIN, "-L")
    locked.move("2")
    free.wait_until_at(balanced[2].ip)
    locked.move("home")
    balanced[1].migrate(free.pid, "home")
    drive.wait_for("it to be moved on", lambda: free.row()["nmigs"] >= 3, PATIENCE_S)
    assert free.row()["why"].startswith("balanced: ")
    assert locked.where() == "home"
    assert locked.row()["nmigs"] == 2


def test_mosps_says_why_a_process_stays(balanced: Cluster, begin: Callable[..., Job]) -> None:
    locked, idle, alone = begin(SPIN, "-L"), begin(["cat"]), begin(SPIN)

    def why(job: Job) -> str:
        return balanced[1].check(["mosps", "--why", str(job.pid)]).partition("home: ")[2]

    drive.wait_for("locked", lambda: "it is locked" in why(locked), PATIENCE_S)
    drive.wait_for("too little", lambda: "0.00 of a core, too little" in why(idle), PATIENCE_S)
    drive.wait_for("nothing to gain", lambda: "nothing to gain: " in why(alone), PATIENCE_S)


@pytest.fixture
def four() -> Iterator[Cluster]:
    """Nodes that may be killed; who is lost with one ends soon."""
    name = f"t{os.getpid()}-four"
    cluster = None
    os.environ["MOSIX_GRACE"] = "1"
    try:
        cluster = Cluster.up(name, 4, "--balance")
        yield cluster
    finally:
        del os.environ["MOSIX_GRACE"]
        if cluster is not None:
            cluster.down()
        drive.down(name)


def count_of(cluster: Cluster) -> list[int]:
    """Jobs of n1 by the node where they run."""
    found = Counter(row["where"] for row in cluster[1].jobs())
    return [found["home"], *(found[node.ip] for node in cluster.nodes[1:])]


@pytest.mark.full
def test_when_half_of_the_nodes_are_killed_at_once_the_others_go_on_balancing(
    four: Cluster,
) -> None:
    one = four[1]
    jobs = [Job(one, SPIN) for _ in range(8)]
    try:
        drive.wait_for("jobs everywhere", lambda: count_of(four) == [2, 2, 2, 2], PATIENCE_S)
        for node in four.nodes[2:]:
            os.kill(node.node.init.pid, signal.SIGKILL)
        drive.wait_for("the lost to end", lambda: sum(count_of(four)) == 4, PATIENCE_S)
        jobs += [Job(one, SPIN) for _ in range(4)]
        drive.wait_for("four each", lambda: count_of(four) == [4, 4, 0, 0], PATIENCE_S)
    finally:
        for job in jobs:
            job.end()
