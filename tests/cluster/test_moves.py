"""A program that is sent round computes, reads and writes what it would have at home."""

from __future__ import annotations

import json
import lzma
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from jobs import PROGRAMS, PYTHON, Job, act
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built

ROUND_TRIP = ("2", "3", "home")


def checksum(kind: str) -> list[str]:
    if kind == "python":
        return [PYTHON, str(PROGRAMS / "checksum.py")]
    return [str(built(PROGRAMS / "checksum.c", *(["-static"] if kind == "static" else [])))]


def plainly(home: NodeHandle, command: Sequence[str]) -> str:
    return home.check(list(command), timeout_s=300)


def rounds_of(output: str) -> str:
    return output.rpartition("rounds ")[2].split()[0]


@pytest.mark.parametrize("kind", ["static", "dynamic", "python"])
def test_round_trip_while_computing(kind: str, lab: Cluster, start: Callable[..., Job]) -> None:
    flag = f"/node/stop-{kind}"
    job = start([*checksum(kind), "until", flag])
    for target in ROUND_TRIP:
        job.move(target)
        job.line()  # it goes on there
    lab[1].check(["touch", flag])
    status, output, complaints = job.finish()
    assert (status, complaints) == (0, "")
    expected = plainly(lab[1], [*checksum(kind), "rounds", rounds_of(output)])
    assert output == expected[-len(output) :]
    assert lab[2].run(["test", "-e", flag]).returncode == 1


def test_xz_round_trip_with_files_only_at_home(lab: Cluster, start: Callable[..., Job]) -> None:
    lab[1].check(
        ["sh", "-c", "tar -C /usr/lib -c python3.11 2>/dev/null | head -c 12582912 >/node/in"]
    )
    plain, moved = lab[1].path("/node/plain.xz"), lab[1].path("/node/moved.xz")
    command = ["xz", "-4", "-T1", "-k", "-c", "/node/in"]
    with moved.open("wb") as output:
        job = start(command, stdout=output)
    for target in ROUND_TRIP:
        job.move(target)
    with plain.open("wb") as output:
        assert lab[1].run(command, stdout=output, timeout_s=300).returncode == 0
    status, _, complaints = job.finish()
    assert (status, complaints) == (0, "")
    assert moved.read_bytes() == plain.read_bytes()


def wander(lab: Cluster, job: Job, moves: int, seed: int) -> list[list[object]]:
    """Random moves from within home; all must succeed."""
    script = [sys.executable, str(PROGRAMS / "wander.py")]
    arguments = [str(job.pid), str(moves), str(seed), str(len(lab.nodes))]
    done = lab[1].run([*script, *arguments], timeout_s=400)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("kind", ["dynamic", "python"])
def test_random_moves_change_nothing(
    kind: str, lab: Cluster, start: Callable[..., Job], full: bool
) -> None:
    """50 moves (200 with --full) every 20 to 500 ms; the seed is printed."""
    moves = 200 if full else 50
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    flag, result = f"/node/stop-random-{kind}", lab[1].path(f"/node/random-{kind}")
    with result.open("w") as output:
        job = start([*checksum(kind), "until", flag], stdout=output)
    made = wander(lab, job, moves, seed)
    assert len(made) == moves
    assert job.row()["nmigs"] == moves
    lab[1].check(["touch", flag])
    status, _, complaints = job.finish()
    assert (status, complaints) == (0, ""), f"seed {seed}"
    output_text = result.read_text()
    expected = plainly(lab[1], [*checksum(kind), "rounds", rounds_of(output_text)])
    assert output_text == expected, f"seed {seed}"


@pytest.mark.parametrize("static", [False, True])
def test_blocked_in_a_read_of_a_pipe(static: bool, start: Callable[..., Job]) -> None:
    """Moved while it waits for input: what comes is read once, whole, and in order."""
    job = start(act("handle", static=static))
    assert job.line() == "ready"
    for target in (*ROUND_TRIP, "3", "2", "home"):
        job.move(target)
        job.write("a")
        assert job.line() == "read 97"
    assert job.finish() == (0, "end, 0 signals\n", "")


def test_blocked_in_a_large_write_to_a_pipe(start: Callable[..., Job]) -> None:
    """One write of 4 MiB to a pipe nobody reads: it returns 4 MiB, however often it was moved."""
    code = "import os; n = os.write(1, bytes(range(256)) * 16384); os.write(2, b'%d' % n)"
    job = start([PYTHON, "-c", code])
    for target in ROUND_TRIP:
        job.move(target)
    data = job.stdout_bytes()
    assert data == bytes(range(256)) * 16384
    assert job.process.stderr is not None
    assert job.process.stderr.read() == str(4 << 20)


@pytest.mark.parametrize("seconds", [5])
def test_sleeping_sleeps_as_long_as_it_wanted(seconds: int, start: Callable[..., Job]) -> None:
    job = start(act("sleep", str(seconds)))
    assert job.line() == "ready"
    for target in ROUND_TRIP:
        job.move(target)
    status, output, _ = job.finish()
    word, elapsed_ms = output.split()
    assert (status, word) == (0, "slept")
    assert int(elapsed_ms) >= seconds * 1000


def test_stopped_stays_stopped_and_goes_on(start: Callable[..., Job]) -> None:
    job = start(act("handle"))
    assert job.line() == "ready"
    job.kill(19)
    job.move("2")
    job.write("a")
    job.move("3")
    assert not job.has_output()
    job.kill(18)
    assert job.line() == "read 97"
    job.kill(19)
    job.move("home")
    assert job.state() == "T"
    job.kill(18)
    assert job.finish() == (0, "end, 0 signals\n", "")


def states(kind: str) -> list[str]:
    if kind == "python":
        return [PYTHON, str(PROGRAMS / "states.py")]
    return [str(built(PROGRAMS / "states.c", *(["-static"] if kind == "static" else [])))]


def test_what_needs_home_at_once_comes_home_each_time(start: Callable[..., Job]) -> None:
    """Its guest says so before its deputy has taken note that it runs."""
    # A futex that is waited for until a date.
    code = (
        "import ctypes, time; libc = ctypes.CDLL(None); gate = ctypes.create_string_buffer(32)\n"
        "libc.sem_init(gate, 0, 0); until = (ctypes.c_long * 2)(int(time.time()) + 10**6, 0)\n"
        "print('ready', flush=True); libc.sem_timedwait(gate, until)\n"
    )
    job = start([PYTHON, "-c", code])
    assert job.line() == "ready"
    for number in range(30):
        job.home.migrate(job.pid, str(2 + number % 2))
        job.wait_until_at("home")
    job.kill(signal.SIGTERM)
    assert job.finish()[0] == -signal.SIGTERM


def test_stopped_when_a_move_begins_it_does_nothing_more(start: Callable[..., Job]) -> None:
    """Natively nothing is done after kill has returned, whatever has come to be read."""
    job = start(states("dynamic"))
    assert job.line() == "ready"
    for _ in range(8):
        for target, other in (("2", "3"), ("3", "home"), ("home", "2")):
            job.move(target)
            job.write("a")
            assert job.line() == "read a"
            os.kill(job.outer, signal.SIGSTOP)
            job.write("b")
            job.move(other)
            assert not job.has_output()
            os.kill(job.outer, signal.SIGCONT)
            assert job.line() == "read b"


def through_every_state(job: Job) -> None:
    """Moves it while it is blocked in a forwarded call, stopped, computing and asleep."""
    assert job.line() == "ready"
    for target, other in (("2", "3"), ("3", "home"), ("home", "2")):
        job.move(target)
        job.write("a")
        assert job.line() == "read a"
        job.kill(signal.SIGSTOP)
        job.write("b")
        job.move(other)
        assert not job.has_output()
        job.kill(signal.SIGCONT)
        assert job.line() == "read b"
        job.write("c")
        assert job.line() == "computing"
        job.move(target)
        job.kill(signal.SIGUSR1)
        assert job.line() == "computed right"
        job.write("s")
        assert job.line() == "sleeping"
        job.move(other)
        assert job.line() == "slept"
    assert job.finish() == (0, "end, 3 signals\n", "")


@pytest.mark.parametrize("kind", ["static", "dynamic", "python"])
def test_every_kind_of_body_moves_in_every_state(kind: str, start: Callable[..., Job]) -> None:
    through_every_state(start(states(kind)))


def test_xz_moves_while_it_waits_to_read_and_to_write(start: Callable[..., Job]) -> None:
    job = start(["xz", "-1", "-T1", "-c"])
    for target in ROUND_TRIP:
        job.move(target)
    data = random.Random(5).randbytes(3 << 20)
    writer = threading.Thread(target=feed, args=(job.process, data))
    writer.start()  # it waits, too, when xz has no room for its output
    drive.wait_for("output", job.has_output)
    for target in ROUND_TRIP:
        job.move(target)
        job.kill(signal.SIGSTOP)
        job.move("2" if target == "3" else "3")
        job.kill(signal.SIGCONT)
    packed = job.stdout_bytes()
    writer.join()
    assert lzma.decompress(packed) == data
    assert job.process.wait(60) == 0


def feed(process: subprocess.Popen[str], data: bytes) -> None:
    assert process.stdin is not None
    while data:
        data = data[os.write(process.stdin.fileno(), data) :]
    process.stdin.close()
    process.stdin = None


def test_monotonic_time_never_runs_back(start: Callable[..., Job]) -> None:
    """Nodes' clocks differ by hours; the program reads its clocks all the time."""
    code = (
        "import os, sys, time\n"
        "clocks = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)\n"
        "last = [time.clock_gettime(clock) for clock in clocks]; back = jump = 0\n"
        "print('ready', flush=True)\n"
        "while not os.access('/node/stop-clock', os.F_OK):\n"
        "    for _ in range(1000):\n"
        "        now = [time.clock_gettime(clock) for clock in clocks]\n"
        "        back += any(a < b for a, b in zip(now, last))\n"
        "        jump += any(a - b > 60 for a, b in zip(now, last)); last = now\n"
        "print(back, jump)\n"
    )
    job = start([PYTHON, "-c", code])
    assert job.line() == "ready"
    for target in (*ROUND_TRIP, "3", "2", "home", "2"):
        job.move(target)
    job.home.check(["touch", "/node/stop-clock"])
    assert job.finish() == (0, "0 0\n", "")


def test_guest_can_be_sent_home_from_the_node_where_it_is(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    job = start(["cat"])
    job.move("2")
    (guest,) = [row for row in lab[2].jobs() if row["origin_pid"] == job.pid]
    lab[2].migrate(guest["pid"], "home")
    assert job.where() == "home"
    assert job.finish() == (0, "", "")


def test_moving_where_it_is_already_changes_nothing_and_says_so(start: Callable[..., Job]) -> None:
    job = start(["cat"])
    nothing = {"freeze_ns": 0, "page_bytes": 0}
    assert job.home.migrate(job.pid, "home") == nothing
    assert job.move("2") != nothing
    for _ in range(2):
        assert job.home.migrate(job.pid, "2") == nothing
    said = job.home.check(["migrate", "--wait", str(job.pid), "2"])
    assert said == "it is there already\n"
    assert job.row()["nmigs"] == 1
    job.write("still\n")
    assert job.line() == "still"


def test_two_jobs_move_independently(start: Callable[..., Job]) -> None:
    first, second = start(["cat"]), start(["cat"])
    first.move("2")
    second.move("2")
    first.move("3")
    for job in (second, first):
        job.write("here\n")
        assert job.line() == "here"
    second.end()
    assert first.row()["nmigs"] == 2


def test_a_plain_run_is_not_touched(lab: Cluster) -> None:
    """What was not started by mosrun is no job and cannot be moved."""
    process = lab[1].popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pid = lab[1].pid_of(process)
    done = lab[1].run(["migrate", "--wait", str(pid), "2"])
    assert done.returncode == 5
    assert process.communicate("x\n")[0] == "x\n"


def test_memory_of_the_ghost_is_given_back(lab: Cluster, start: Callable[..., Job]) -> None:
    """200 MiB leave; what stays at home is small, and says truly what the program is."""
    hold = built(Path(__file__).parents[2] / "bench/programs/hold.c")
    job = start([str(hold), "200"])
    assert job.line() == "ready"

    def resident_kib() -> int:
        status = Path(f"/proc/{job.outer}/status").read_text()
        return int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1])

    before = Path(f"/proc/{job.outer}/cmdline").read_bytes()
    environment = Path(f"/proc/{job.outer}/environ").read_bytes()
    assert resident_kib() > 200 << 10
    job.move("2")
    assert resident_kib() < 1 << 10
    assert Path(f"/proc/{job.outer}/cmdline").read_bytes() == before
    assert Path(f"/proc/{job.outer}/environ").read_bytes() == environment
    assert os.readlink(f"/proc/{job.outer}/exe") == str(hold)
    job.move("home")
    assert resident_kib() > 200 << 10


@pytest.mark.full
def test_large_body_moves_whole(lab: Cluster, start: Callable[..., Job]) -> None:
    hold = built(Path(__file__).parents[2] / "bench/programs/hold.c")
    job = start([str(hold), "1024"])
    job.line()
    job.write("\n")
    expected = job.line()
    for target in ROUND_TRIP:
        job.move(target)
        job.write("\n")
        assert job.line() == expected
