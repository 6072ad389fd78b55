"""The kernel tier: mosix.ko redirects what intercept.bpf.c decides, on both kernels.

The machines' mosds are started again with the module loaded; in the end it is unloaded, which only
works when nothing of it is used any more. Bodies go between kernels and, by the last tests, between
tiers. Compiling the eBPF program takes long here, so each machine does it once.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from jobs import PROGRAMS, PYTHON, Job
from mosix.errors import MosixError
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.kernels import kernel
from mosix.lab.programs import built, built_module
from trips import FAMILIES, in_each, other, round_trip

SERIES = ("6.1", "6.12")
#: files of /proc/mosix/PID
_TOLD = ("from", "where", "class", "origipid", "origpid", "freezer")
_STUB = ["pgrep", "-x", "mosix-stub"]
#: for what takes a machine seconds, on a host that has other work
_LONG_S = 120.0


def decided(node: NodeHandle) -> dict[str, int]:
    """What the program and the module have done so far, and have in hand."""
    return dict(
        json.loads(node.check(["mosctl", "status", "--json"], timeout_s=_LONG_S))["decided"]
    )


def start(node: NodeHandle, tier: str) -> None:
    node.close()
    node.mosd("start", f"--tier={tier}")
    first = ["mosrun", "true"]
    drive.wait_for(f"a job in {node.name}", lambda: node.run(first).returncode == 0, _LONG_S)
    node.jobs()


def unload(node: NodeHandle) -> None:
    """Without mosd and keeper nothing may use the module any more."""
    keeper = ["pkill", "-f", "mosix.kernel.keepe[r]"]
    drive.wait_for("the keeper's end", lambda: node.run(keeper).returncode == 1, _LONG_S)
    node.check(["rmmod", "mosix"])


@pytest.fixture(scope="module")
def kernels(request: pytest.FixtureRequest, lab: Cluster) -> Iterator[Cluster]:
    """Both machines in the kernel tier."""
    modules = [str(built_module(kernel(series))) for series in SERIES]

    def begin(node: NodeHandle) -> None:
        node.mosd("stop")
        node.check(["insmod", modules[node.node.number - 1]])
        start(node, "kernel")

    def end(node: NodeHandle) -> None:
        if node.run(["test", "-e", "/dev/mosix"]).returncode == 0:
            node.mosd("stop")
            unload(node)
            if request.session.items[-1].path != request.path:  # somebody comes after us
                start(node, "portable")

    in_each(lab, begin)
    yield lab
    in_each(lab, end)


@pytest.fixture
def mixed(kernels: Cluster) -> Cluster:
    """n2 is a portable node, without the module, from here on."""
    if kernels[2].run(["test", "-e", "/dev/mosix"]).returncode == 0:
        kernels[2].mosd("stop")
        unload(kernels[2])
        start(kernels[2], "portable")
    for node in kernels.nodes:
        node.jobs()  # whom it asks from now on is there before the test
    return kernels


@pytest.fixture(params=[1, 2], ids=["home-6.1", "home-6.12"])
def home(request: pytest.FixtureRequest, kernels: Cluster) -> NodeHandle:
    return kernels[request.param]


def nothing_in_hand(node: NodeHandle) -> None:
    """No task waits in the module, nobody owns any, nothing is hooked."""
    names = ("module_parked", "module_owners", "module_hooks")
    drive.wait_for(
        f"{node.name} has nothing in hand",
        lambda: not any(decided(node)[name] for name in names),
        _LONG_S,
    )


def blocked(home: NodeHandle) -> Job:
    """A job that is away and waits in a read of its standard input."""
    job = Job(home, ["cat"])
    job.move(other(home))
    job.write("ready\n")
    assert job.line() == "ready"
    return job


# ---- guests ----


def test_mosctl_says_which_tier_a_node_runs(kernels: Cluster) -> None:
    for node in kernels.nodes:
        assert "judged by eBPF, redirected by mosix.ko" in node.check(["mosctl", "status"])


def test_round_trips_change_nothing_in_what_is_computed(kernels: Cluster, home: NodeHandle) -> None:
    away = kernels[int(other(home))]
    before, sent = decided(away), decided(home)
    round_trip(home)
    after = decided(away)
    for name in ("redirected", "module_answered"):
        assert after[name] > before[name]
    assert after["map_failed"] == 0
    # There, home and there again: captured by the modules of both.
    for node, earlier, moves in ((home, sent, 2), (away, before, 1)):
        later = decided(node)
        assert later["module_captures"] >= earlier["module_captures"] + moves
        assert later["module_sent_bytes"] > earlier["module_sent_bytes"]
        assert f"captures {later['module_captures']} by mosix.ko" in node.check(
            ["mosctl", "status"]
        )


def told(node: NodeHandle, pid: int) -> list[str]:
    """What nobody may read of a process; empty: there is nothing."""
    files = [f"/proc/mosix/{pid}/{name}" for name in _TOLD]
    return node.run(["cat", *files], user="nobody").stdout.split()


def guest_of(node: NodeHandle, pid: str) -> int | None:
    """Under which number process `pid` of another node runs here; None: it does not."""
    names = [name for name in node.check(["ls", "/proc/mosix"]).split() if name.isdigit()]
    return next((int(name) for name in names if told(node, int(name))[4:5] == [pid]), None)


def test_everyone_may_read_where_a_process_is(kernels: Cluster, home: NodeHandle) -> None:
    away = kernels[int(other(home))]
    with Job(home, ["cat"], options=("-G5",)) as job:

        def tells(node: NodeHandle, pid: int, expected: list[str]) -> None:
            drive.wait_for(f"{expected} at {node.name}", lambda: told(node, pid) == expected)

        tells(home, job.pid, ["0", "0", "5", "0", "0", "0"])
        job.move(other(home))
        tells(home, job.pid, ["0", job.ip(other(home)), "5", "0", "0", "0"])
        pid = str(job.pid)
        guest = drive.wait_for("the guest", lambda: guest_of(away, pid))
        tells(away, guest, [job.ip(str(home.node.number)), "0", "5", pid, pid, "-66"])
        job.move("home")
        tells(home, job.pid, ["0", "0", "5", "0", "0", "0"])
        tells(away, guest, [])
        assert job.finish() == (0, "", "")
        tells(home, job.pid, [])


def families_agree(home: NodeHandle, families: tuple[str, ...]) -> None:
    moves = 0
    for family in families:
        command = ["env", "HERE=/node", str(built(PROGRAMS / "families.c")), family, "1500"]
        plain = home.run(command)
        with Job(home, command) as job:
            while job.process.poll() is None:
                try:
                    home.migrate(job.pid, "home" if moves % 2 else other(home))
                except MosixError:  # it has ended, or does what cannot be interrupted
                    continue
                moves += 1
            moved = job.finish()
        assert moved == (plain.returncode, plain.stdout, plain.stderr), family
    assert moves > 0


@pytest.mark.full
def test_all_families_of_calls_do_the_same(home: NodeHandle) -> None:
    families_agree(home, FAMILIES)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_parked_call_ends_with_its_program(kernels: Cluster, number: signal.Signals) -> None:
    with blocked(kernels[1]) as job:
        job.kill(number)
        assert job.process.wait(_LONG_S) == -number
    nothing_in_hand(kernels[2])


def test_a_guest_dies_with_its_remote(kernels: Cluster) -> None:
    home, away = kernels[2], kernels[1]
    with blocked(home) as job:
        stub = away.check(_STUB).split()[0]
        away.check(["kill", "-9", away.check(["ps", "-o", "ppid=", "-p", stub]).strip()])
        assert job.process.wait(_LONG_S) == -signal.SIGKILL
    assert away.run(_STUB).returncode == 1
    nothing_in_hand(away)


def test_a_guest_dies_with_its_deputy(kernels: Cluster) -> None:
    home, away = kernels[2], kernels[1]
    with blocked(home) as job:
        kill_deputy(home)
        assert job.process.wait(_LONG_S) == -signal.SIGKILL
    drive.wait_for("the guest's end", lambda: away.run(_STUB).returncode == 1, _LONG_S)
    nothing_in_hand(away)


def kill_deputy(home: NodeHandle) -> None:
    """Of the last job, which has one: it is the spawner's youngest child."""
    (spawner,) = home.check(["pgrep", "-o", "-f", "mosix.node.spawne[r]"]).split()
    home.check(["pkill", "-9", "-n", "-P", spawner])


def test_a_call_that_no_table_knows_is_made_at_home(kernels: Cluster) -> None:
    """It stops at the second wall."""
    script = (
        "import ctypes, errno\n"
        "for _ in range(2):\n"
        "    input()\n"
        "    result = ctypes.CDLL(None, use_errno=True).syscall(500)\n"
        "    print(result, ctypes.get_errno() == errno.ENOSYS, flush=True)\n"
    )
    with Job(kernels[1], [PYTHON, "-c", script]) as job:
        job.write("\n")
        assert job.line() == "-1 True"
        job.move("2")
        job.write("\n")
        assert job.line() == "-1 True"
        job.process.wait(_LONG_S)


# ---- at home ----


def test_a_job_at_home_has_no_filter_and_may_gain_privileges(home: NodeHandle) -> None:
    status = home.check(["mosrun", "grep", "-E", "Seccomp:|NoNewPrivs:", "/proc/self/status"])
    assert status.split() == ["NoNewPrivs:", "0", "Seccomp:", "0"]
    home.check(["install", "-m", "4755", "/usr/bin/id", "/usr/local/bin/setuid-id"])
    done = home.run(["mosrun", "setuid-id", "-u"], user="nobody")
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_programs_speak_to_mosix_at_home_and_away(home: NodeHandle) -> None:
    with Job(home, [str(built(PROGRAMS / "asks.c"))]) as job:

        def ask(line: str) -> str:
            job.write(f"{line}\n")
            return job.line()

        assert ask("x needmem 7") == "0"
        assert ask("f r needmem") == "7"  # a child, which has inherited
        assert ask("r nothing") == "-1 ENOENT"
        assert ask(f"w migrate {other(home)}") == "0"
        assert job.where() == job.ip(other(home))
        assert ask("r nmigs") == "1"
        assert ask("x needmem 8") == "7"
        assert ask("w migrate 0") == "0"
        assert (job.where(), ask("r needmem")) == ("home", "8")


def test_a_job_at_home_goes_on_without_its_deputy(kernels: Cluster) -> None:
    with Job(kernels[1], [str(built(PROGRAMS / "asks.c"))]) as job:
        job.write("x needmem 7\n")
        assert job.line() == "0"
        kill_deputy(kernels[1])
        drive.wait_for("its end", lambda: kernels[1].job(job.pid) is None, _LONG_S)
        job.write("r needmem\n")
        assert job.line() == "-1 ENOENT"


# ---- tiers; from here on n2 is a portable node ----


def test_the_module_stays_while_a_guest_lives(kernels: Cluster) -> None:
    """Even when nobody holds the program any more but the guest's remote."""
    home, away = kernels[1], kernels[2]
    with blocked(home) as job:
        assert "in use" in away.run(["rmmod", "mosix"]).stderr
        away.close()
        away.mosd("kill")
        away.check(["pkill", "-9", "-f", "mosix.kernel.keepe[r]"])
        assert "in use" in away.run(["rmmod", "mosix"]).stderr
        job.write("still served\n")
        assert job.line() == "still served"
        assert job.finish() == (0, "", "")
    drive.wait_for("the guest's end", lambda: away.run(_STUB).returncode == 1, _LONG_S)
    drive.wait_for("it is unloaded", lambda: not away.run(["rmmod", "mosix"]).returncode, _LONG_S)
    start(away, "portable")
    for node in kernels.nodes:
        node.close()  # what was asked in this test was asked anew


def test_the_kernel_tier_is_refused_where_it_is_not_possible(mixed: Cluster) -> None:
    done = mixed[2].run(
        ["mosd", "--tier=kernel", "--run-dir=/run/other", "--port=4000"], timeout_s=_LONG_S
    )
    assert done.returncode != 0
    assert "cannot open /dev/mosix" in done.stderr


def test_a_job_moves_between_tiers(mixed: Cluster) -> None:
    assert "without a kernel module" in mixed[2].check(["mosctl", "status"])
    for home in mixed.nodes:
        round_trip(home)


@pytest.mark.full
def test_calls_do_the_same_in_both_tiers(mixed: Cluster) -> None:
    for home in mixed.nodes:
        families_agree(home, ("signals", "restarting", "special"))
