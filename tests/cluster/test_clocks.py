"""What a program reads from its clocks is right on every node, whatever kernel that runs."""

from __future__ import annotations

import json
import lzma
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import PROGRAMS, PYTHON, Job
from mosix.errors import CannotMoveError
from mosix.lab.drive import Cluster, NodeHandle, wait_for
from mosix.lab.programs import built

RIGHT = "back" + " 0" * 7 + " jumps 0 wrong 0 early 0 state 0\n"
MOVES = 10


@pytest.fixture(scope="module")
def foreign(lab: Cluster) -> Iterator[Cluster]:
    """The lab, with a kernel on node 3 that seems to have another vdso."""
    lab[3].mosd("stop")
    lab[3].mosd("start", "--foreign-vdso")
    yield lab
    lab[3].mosd("stop")
    lab[3].mosd("start")


def clocks(flag: str, *options: str) -> list[str]:
    return [str(built(PROGRAMS / "clocks.c", *options)), flag]


def wander(lab: Cluster, job: Job, moves: int = MOVES) -> None:
    """Random moves; all must succeed, and one lead to the foreign node."""
    seed = random.randrange(1 << 31)
    script = [sys.executable, str(PROGRAMS / "wander.py")]
    done = lab[1].run([*script, str(job.pid), str(moves), str(seed), "3"], timeout_s=100)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    if all(where != "3" for where, _ in json.loads(done.stdout)):
        job.move("3")


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_no_clock_runs_back_over_a_chain_of_moves(
    kind: str, foreign: Cluster, start: Callable[..., Job]
) -> None:
    """By the functions of its vdso and by system calls, on nodes whose clocks differ and with
    different kernels."""
    flag = f"/node/stop-clocks-{kind}"
    job = start(clocks(flag, *(["-static"] if kind == "static" else [])))
    assert job.line() == "ready"
    wander(foreign, job)
    job.home.check(["touch", flag])
    assert job.finish() == (0, RIGHT, "")


def test_a_program_that_starts_on_a_foreign_kernel_reads_its_clocks(foreign: Cluster) -> None:
    """Its libc looks up the vdso's functions there."""
    code = "import os, time; print(time.time() > 1e9, len(os.getrandom(8)), time.monotonic() > 0)"
    for command in ([PYTHON, "-c", code], clocks("/etc/passwd")):
        done = foreign[1].run(["mosrun", "-3", *command])
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout in ("True 8 True\n", "ready\n" + RIGHT)


def test_python_reads_clocks_on_a_foreign_kernel(
    foreign: Cluster, start: Callable[..., Job]
) -> None:
    code = (
        "import os, time, datetime, random\n"
        "print('ready', flush=True); back = 0; last = [0, 0]\n"
        "while not os.access('/node/stop-clock-python', os.F_OK):\n"
        "    for _ in range(500):\n"
        "        now = [time.monotonic(), time.time()]\n"
        "        back += any(a < b for a, b in zip(now, last)); last = now\n"
        "        datetime.datetime.now(); random.SystemRandom().random()\n"
        "print(back)\n"
    )
    job = start([PYTHON, "-c", code])
    assert job.line() == "ready"
    wander(foreign, job)
    job.home.check(["touch", "/node/stop-clock-python"])
    assert job.finish() == (0, "0\n", "")


def test_xz_by_way_of_a_foreign_kernel(foreign: Cluster, start: Callable[..., Job]) -> None:
    dice = random.Random(3)
    words = [f"{dice.randrange(1 << 24):x}" for _ in range(5000)]
    parts = [" ".join(dice.choices(words, k=60_000)) for _ in range(4)]
    path = foreign[1].path("/node/clocks.xz")
    with path.open("wb") as output:
        job = start(["xz", "-4", "-T1", "-c"], stdout=output)
    for part, target in zip(parts, ("3", "2", "3", "home"), strict=True):
        job.write(part)
        job.move(target)
    assert job.finish()[::2] == (0, "")
    assert lzma.decompress(path.read_bytes()).decode() == "".join(parts)


@pytest.mark.parametrize("node", [2, 3])
def test_nothing_of_the_nodes_vdso_lies_where_home_has_its_own(
    node: int, foreign: Cluster, start: Callable[..., Job]
) -> None:
    """Neither its code nor its data, and nobody else's memory."""
    job = start(["cat"])
    job.write("here\n")
    assert job.line() == "here"
    at_home = _kernel_ranges(Path(f"/proc/{job.outer}/maps").read_text())
    assert at_home
    job.move(str(node))
    (guest,) = (
        outer
        for outer in foreign[node].processes()
        if Path(f"/proc/{outer}/comm").read_text() == "cat\n"
    )
    maps = Path(f"/proc/{guest}/maps").read_text()
    taken = [_range(line) for line in maps.splitlines()]
    nodes_own = _kernel_ranges(maps)
    for low, high in at_home:
        assert all(end <= low or high <= begin for begin, end in nodes_own)
        for page in range(low, high, 4096):
            assert any(begin <= page < end for begin, end in taken)
    assert job.finish() == (0, "", "")


def _range(line: str) -> tuple[int, int]:
    low, _, high = line.partition(" ")[0].partition("-")
    return int(low, 16), int(high, 16)


def _kernel_ranges(maps: str) -> list[tuple[int, int]]:
    names = ("[vdso]", "[vvar]", "[vvar_vclock]")
    return [_range(line) for line in maps.splitlines() if line.endswith(names)]


# ---- dates ----

#: Says the dates that it reads in all ways; then how long it slept until a date 0.2 s later (ms)
DATES = """
import ctypes, os, struct, time
libc = ctypes.CDLL(None)
def call(nr, *args):
    buffer = ctypes.create_string_buffer(16)
    result = libc.syscall(nr, *(buffer if arg is None else arg for arg in args))
    return struct.unpack('qq', buffer)[0], result
while input():
    dates = [time.time(), time.clock_gettime(5), call(228, 0, None)[0], call(96, None, 0)[0]]
    dates += [call(201, None)[0], call(201, 0)[1], call(96, 0, None)[1] + time.time()]
    begin, (second, part) = time.monotonic(), divmod(time.time_ns() + 200_000_000, 10**9)
    libc.clock_nanosleep(0, 1, struct.pack('qq', second, part), 0)
    print(*dates, round((time.monotonic() - begin) * 1000), flush=True)
"""
AHEAD_S = 7200
ON_THE_HOUR_S = 600


@pytest.fixture
def ahead(foreign: Cluster) -> Iterator[Cluster]:
    """The lab, with a home that says to guests that it is two hours later: nodes of one machine
    cannot have different dates."""
    foreign[1].mosd("stop")
    foreign[1].mosd("start", f"--date-ahead={AHEAD_S}")
    yield foreign
    foreign[1].mosd("stop")
    foreign[1].mosd("start")


def dates_ahead(job: Job) -> tuple[set[int], int]:
    """How many hours the program's dates are ahead of ours; how long it slept."""
    job.write("go\n")
    *dates, slept_ms = job.line().split()
    return {round((float(date) - time.time()) / 3600) for date in dates}, int(slept_ms)


@pytest.mark.parametrize(("option", "hours"), [("-T", 2), ("-t", 0)])
def test_dates_are_those_of_home_or_as_wanted_of_the_node(
    option: str, hours: int, ahead: Cluster, start: Callable[..., Job]
) -> None:
    job = start([PYTHON, "-c", DATES], options=(option,))
    for target, expected in (("home", 0), ("2", hours), ("3", hours), ("home", 0)):
        if target != job.where():
            job.move(target)
        seen, slept_ms = dates_ahead(job)
        assert seen == {expected}, target
        assert 199 <= slept_ms < ON_THE_HOUR_S * 1000
    job.write("\n")
    assert job.finish()[::2] == (0, "")


def test_a_program_chooses_itself_whose_dates_it_sees(
    ahead: Cluster, start: Callable[..., Job]
) -> None:
    """For a choice it comes home, and goes back by itself."""
    job = start([str(built(PROGRAMS / "asks.c"))])

    def ask(line: str) -> str:
        job.write(line + "\n")
        return job.line()

    job.move("2")
    for choice, before, hours in ((1, 0, 0), (0, 1, 2)):
        assert round((int(ask("d")) - time.time()) / 3600) == 2 - hours
        assert ask(f"x localtime {choice}") == str(before)
        wait_for("it to be back", lambda: ask("r whereami") == "2")
        assert round((int(ask("d")) - time.time()) / 3600) == hours
    assert job.finish() == (0, "", "")


def test_a_wait_on_a_futex_until_a_date_ends_at_that_date(start: Callable[..., Job]) -> None:
    """Only home's kernel can wait for home's date."""
    code = (
        "import ctypes, struct, time\n"
        "libc = ctypes.CDLL(None, use_errno=True); sem = ctypes.create_string_buffer(64)\n"
        "libc.sem_init(sem, 0, 0); print('ready', flush=True); input()\n"
        "begin, date = time.monotonic(), divmod(time.time_ns() + 200_000_000, 10**9)\n"
        "print(libc.sem_timedwait(sem, struct.pack('qq', *date)), ctypes.get_errno())\n"
        "print(round((time.monotonic() - begin) * 1000))\n"
    )
    job = start([PYTHON, "-c", code])
    assert job.line() == "ready"
    job.move("2")
    job.write("go\n")
    assert job.line() == "-1 110"  # ETIMEDOUT
    assert int(job.line()) >= 199
    assert job.finish() == (0, "", "")


def bound_ns(node: NodeHandle) -> int | None:
    found = json.loads(node.check(["mosctl", "status", "--json"]))["date_bound_ns"]
    return None if found is None else int(found)


def test_status_says_how_exact_the_dates_of_guests_are(
    ahead: Cluster, start: Callable[..., Job]
) -> None:
    """And so exact they are, although the date of the node is another one."""
    job = start([PYTHON, "-c", "import time\nwhile input(): print(time.time_ns(), flush=True)"])
    assert bound_ns(ahead[2]) is None
    job.move("2")
    bound = wait_for("a bound", lambda: bound_ns(ahead[2]))
    assert 0 < bound < 10**9
    for _ in range(200):
        before = time.time_ns()
        job.write("go\n")
        date = int(job.line()) - AHEAD_S * 10**9
        assert before - bound <= date <= time.time_ns() + bound
    assert "their home's, within" in ahead[1].check(["mosctl", "status", "2"])
    job.write("\n")
    assert job.finish() == (0, "", "")


# ---- handlers ----


def interrupt_inside(job: Job) -> None:
    """Its handler waits in the middle of a function of its vdso."""
    for _ in range(300):
        job.kill(signal.SIGUSR1)
        if job.line() == "inside":
            return
    pytest.fail("no signal came while it read the clock")


@pytest.mark.parametrize("node", ["2", "3"])
def test_a_handler_returns_anywhere_into_the_look_at_the_clock_that_it_interrupted_away(
    node: str, foreign: Cluster, start: Callable[..., Job]
) -> None:
    job = start([str(built(PROGRAMS / "interrupted.c", "-static"))])
    assert job.line() == "ready"
    for way in (("home",), ("2" if node == "3" else "3",), ("home", "2", "3"), ()):
        if job.where() != job.ip(node):
            job.move(node)
        interrupt_inside(job)
        for target in way:
            job.move(target)
        job.write("go on\n")
    interrupt_inside(job)
    job.write("end\n")
    assert job.finish() == (0, "back 0\n", "")


@pytest.mark.parametrize("node", ["2", "3"])
def test_a_handler_that_interrupted_a_look_at_the_clock_can_do_what_only_home_can(
    node: str, foreign: Cluster, start: Callable[..., Job]
) -> None:
    job = start([str(built(PROGRAMS / "interrupted.c", "-static"))])
    assert job.line() == "ready"
    job.move(node)
    interrupt_inside(job)
    job.write("fork\n")
    interrupt_inside(job)
    job.write("end\n")
    assert job.finish() == (0, "back 0\n", "")


def test_a_handler_that_interrupted_a_look_at_the_clock_keeps_its_program_at_home(
    foreign: Cluster, start: Callable[..., Job]
) -> None:
    job = start([str(built(PROGRAMS / "interrupted.c", "-static"))])
    assert job.line() == "ready"
    interrupt_inside(job)
    with pytest.raises(CannotMoveError, match="signal handler that interrupted it"):
        job.home.migrate(job.pid, "3")
    job.write("go on\n")
    job.move("3")
    interrupt_inside(job)
    job.write("end\n")
    assert job.finish() == (0, "back 0\n", "")
