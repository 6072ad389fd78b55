"""The files /proc/self/{special}: what a program and mosix say to each other, at home and away."""

from __future__ import annotations

import ipaddress
import signal
from collections.abc import Callable

import pytest
from jobs import PROGRAMS, PYTHON, Job
from mosix.lab import drive
from mosix.lab.drive import Cluster
from mosix.lab.programs import built

Ask = Callable[[str], str]


def asks() -> list[str]:
    return [str(built(PROGRAMS / "asks.c"))]


def asker(job: Job) -> Ask:
    """Has the program do what a line says; its answer."""

    def ask(line: str) -> str:
        job.write(line + "\n")
        return job.line()

    return ask


@pytest.fixture
def job(start: Callable[..., Job]) -> Job:
    return start(asks())


@pytest.fixture(params=["home", "2"])
def placed(job: Job, request: pytest.FixtureRequest) -> Job:
    """The program at home, and away."""
    if request.param != "home":
        job.move(request.param)
    return job


@pytest.mark.parametrize(
    ("name", "default", "highest"),
    [
        ("lock", 0, 1),
        ("unsupportok", 0, 2),
        ("sigmig", 0, 64),
        ("glob", 0, 2**31 - 1),
        ("needmem", 0, 262143),
        ("cpujob", 0, 1),
        ("localtime", 0, 1),
        ("decayrate", 9750, 10000),
    ],
)
def test_values_are_read_written_and_exchanged(
    placed: Job, name: str, default: int, highest: int
) -> None:
    ask = asker(placed)
    assert ask(f"r {name}") == str(default)
    assert ask(f"w {name} {highest}") == "0"
    assert ask(f"r {name}") == str(highest)
    assert ask(f"w {name} {highest + 1}") == "-1 EINVAL"
    assert ask(f"x {name} -1") == "-1 EINVAL"
    assert ask(f"x {name} 1") == str(highest)
    assert ask(f"x {name} 0") == "1"
    assert placed.finish() == (0, "", "")


def test_what_can_only_be_read_or_only_be_written_says_so(placed: Job) -> None:
    ask = asker(placed)
    assert [ask("w whereami 1"), ask("x whereami 1")] == ["-1 EACCES"] * 2
    assert [ask("w nmigs 1"), ask("x nmigs 1")] == ["-1 EACCES"] * 2
    for name in ("migrate", "clear"):
        assert [ask(f"r {name}"), ask(f"x {name} 0")] == ["-1 EACCES"] * 2
    assert ask("w clear 1") == "0"


def test_other_names_are_no_files(placed: Job) -> None:
    ask = asker(placed)
    for name in ("checkpoint", "lockx", "loc", "nonsense", "x" * 60):
        assert ask(f"r {name}") == "-1 ENOENT"
        assert ask(f"w {name} 1") == "-1 ENOENT"


def test_ordinary_files_are_opened_as_ever(placed: Job) -> None:
    ask = asker(placed)
    assert ask("o /node/name") == "n1"
    assert ask("o /proc/self/comm").startswith("asks")
    assert ask("o /no/such/file") == "-1 ENOENT"


def test_native_programs_have_no_such_files(lab: Cluster) -> None:
    done = lab[1].run(asks(), input="r lock\nw lock 1\nx migrate 0\n")
    assert done.stdout == "-1 ENOENT\n" * 3


def test_no_interface_leaves_them_out(start: Callable[..., Job]) -> None:
    job = start(asks(), options=("--no-interface",))
    ask = asker(job)
    assert [ask("r lock"), ask("o /node/name")] == ["-1 ENOENT", "n1"]
    job.move("2")
    assert [ask("r lock"), ask("o /node/name")] == ["-1 ENOENT", "n1"]


def test_a_program_moves_itself(job: Job) -> None:
    """By number and by IP, from home, between nodes and back; it knows where it is."""
    ask = asker(job)
    assert ask("r whereami") == "0"
    assert ask("w migrate 2") == "0"
    assert job.where() == job.ip("2")
    assert ask("r whereami") == "2"
    third = int(ipaddress.IPv4Address(job.ip("3")))
    assert ask(f"w migrate {third}") == "0"
    assert ask("r whereami") == "3"
    assert ask("r nmigs") == "2"
    assert ask("w migrate 3") == "0"  # it is there
    assert ask("w migrate 0") == "0"
    assert ask("r whereami") == "0"
    assert ask("r nmigs") == "3"
    assert ask("w migrate -1") == "0"
    assert job.finish() == (0, "", "")


def test_a_migration_that_fails_says_so_and_changes_nothing(placed: Job) -> None:
    ask = asker(placed)
    where = ask("r whereami")
    assert ask("w migrate 9") == "-1 EINVAL"
    assert ask(f"w migrate {int(ipaddress.IPv4Address('192.0.2.1'))}") == "-1 EINVAL"
    assert ask("r whereami") == where
    assert placed.finish() == (0, "", "")


def test_nodes_without_a_number_are_told_by_their_ip(start: Callable[..., Job]) -> None:
    """In 32 bits that are never a negative number."""
    job = start(asks())
    ask = asker(job)
    ip = job.ip("2")
    assert ask(f"w migrate {int(ipaddress.IPv4Address(ip))}") == "0"
    assert ask("r whereami") in ("2", str(int(ipaddress.IPv4Address(ip))))


def test_sigmig_is_sent_after_each_move(job: Job) -> None:
    ask = asker(job)
    assert ask(f"w sigmig {int(signal.SIGUSR1)}") == "0"
    assert ask("w migrate 2") == "0"
    assert ask("s") == "1"
    job.move("3")
    assert ask("s") == "2"
    job.move("home")
    assert ask("s") == "3"
    assert ask("x sigmig 0") == str(int(signal.SIGUSR1))
    job.move("2")
    assert ask("s") == "3"
    assert job.finish() == (0, "", "")


def test_children_inherit_what_was_set_before_their_birth(job: Job) -> None:
    ask = asker(job)
    assert ask("w lock 1") == "0"
    assert ask("w needmem 77") == "0"
    assert ask("f x needmem 5") == "77"
    assert ask("r needmem") == "77"  # a child's own
    assert ask("f r lock") == "1"
    assert ask("f f r needmem") == "77"
    job.move("2")
    assert ask("r nmigs") == "1"
    job.move("home")
    assert ask("f r nmigs") == "2"
    assert job.finish() == (0, "", "")


def test_options_of_mosrun_are_the_values_at_the_start(start: Callable[..., Job]) -> None:
    job = start(asks(), options=("-L", "-w", "-G3", "-m100", "-d", "5", "-c"))
    ask = asker(job)
    values = [
        ask(f"r {name}")
        for name in ("lock", "unsupportok", "glob", "needmem", "decayrate", "cpujob")
    ]
    assert values == ["1", "2", "3", "100", "5", "1"]


def test_a_nested_mosrun_keeps_what_it_does_not_change(start: Callable[..., Job]) -> None:
    job = start(["mosrun", "-l", "-m5", *asks()], options=("-L", "-e", "-m100"))
    ask = asker(job)
    assert [ask("r lock"), ask("r unsupportok"), ask("r needmem")] == ["0", "1", "5"]
    assert len(job.home.jobs()) == 1  # a part of the same job
    assert ask("w migrate 2") == "0"
    assert ask("r whereami") == "2"
    assert job.finish() == (0, "", "")


def test_a_nested_mosrun_starts_where_it_is_told(start: Callable[..., Job]) -> None:
    job = start(["mosrun", "-2", *asks()])
    ask = asker(job)
    # It comes home once more, to map its libraries.
    drive.wait_for("it to be at n2", lambda: ask("r whereami") == "2")
    assert job.finish() == (0, "", "")


def test_a_job_of_another_user_inside_a_job_has_no_files(start: Callable[..., Job]) -> None:
    """A filter may have one listener: that of the job around it, which is not his."""
    become = ["setpriv", "--reuid=games", "--regid=games", "--clear-groups"]
    job = start([*become, "mosrun", *asks()])
    ask = asker(job)
    assert [ask("r lock"), ask("o /node/name")] == ["-1 ENOENT", "n1"]
    assert job.finish() == (
        0,
        "",
        "mosrun: no files /proc/self/{special}: another program serves such files here "
        "(--no-interface leaves them out)\n",
    )


def test_moves_and_signals_neither_repeat_nor_lose_a_question(job: Job) -> None:
    """A write that is answered but whose answer is lost would find itself made."""
    count = 1500
    job.write(f"c {count}\n")
    for target in ("2", "3", "home", "3", "home", "2"):
        for _ in range(5):
            job.kill(signal.SIGUSR1)
        job.move(target)
    assert job.line() == str(count + 1)
    assert int(asker(job)("s")) > 0
    assert job.finish() == (0, "", "")


def test_a_locked_process_is_moved_by_people_and_by_itself(start: Callable[..., Job]) -> None:
    job = start(asks(), options=("-L",))
    ask = asker(job)
    job.move("2")
    assert ask("w migrate 3") == "0"
    assert ask("r whereami") == "3"


def test_python_programs_use_mosix_job(start: Callable[..., Job]) -> None:
    code = (
        "from mosix import job\n"
        "import sys\n"
        "print(job.is_job(), job.whereami(), flush=True)\n"
        "job.migrate(2); print(job.whereami(), job.nmigs(), flush=True)\n"
        "job.lock(); print(job.exchange('lock', 0), flush=True)\n"
        "try: job.migrate(99)\n"
        "except OSError as e: print(type(e).__name__, e.errno, flush=True)\n"
        "job.migrate(0); print(job.whereami(), flush=True)\n"
    )
    package = PROGRAMS.parents[2] / "build" / "typed"
    job = start(["env", f"PYTHONPATH={package}", PYTHON, "-c", code])
    assert job.finish() == (0, "True 0\n2 1\n1\nOSError 22\n0\n", "")


@pytest.mark.parametrize("option", ["-u", "-e", "-w"])
def test_where_the_way_home_is_missing_unsupportok_decides(
    option: str, lab: Cluster, start: Callable[..., Job]
) -> None:
    """A fork is done at home, and the image does not get there."""
    job = start(asks(), options=(option,))
    ask = asker(job)
    job.move("2")
    lab[2].ask("failpoints", "remote.sending=ENOMEM")
    try:
        job.write("f r lock\n")
        if option == "-u":
            status, output, complaints = job.finish()
            assert (status, output) == (-signal.SIGKILL, "")
            assert "it could not come home" in complaints
            assert len(complaints.splitlines()) == 1
            return
        assert job.line() == "-1 ENOSYS"
        assert ask("r whereami") == "2"
        assert ask("f r unsupportok") == ("1" if option == "-e" else "2")  # this time it is
    finally:
        lab[2].ask("failpoints", "")
    status, output, complaints = job.finish()
    assert (status, output) == (0, "")
    assert len(complaints.splitlines()) == (0 if option == "-e" else 1)
    if option == "-w":
        assert "not supported on node" in complaints


def test_a_program_may_choose_between_them_itself(lab: Cluster, job: Job) -> None:
    ask = asker(job)
    assert ask("w unsupportok 1") == "0"
    assert ask("w migrate 2") == "0"
    lab[2].ask("failpoints", "remote.sending=ENOMEM")
    try:
        assert ask("f r lock") == "-1 ENOSYS"
    finally:
        lab[2].ask("failpoints", "")
    assert ask("f r lock") == "0"
    assert job.finish() == (0, "", "")
