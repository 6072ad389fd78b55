"""What cannot be done away is done at home: the program runs right, and mosps says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from jobs import Job, act
from mosix.lab.drive import Cluster


def goes_home(job: Job, expected: str) -> None:
    """Let it do what it waits for, at n2: it is done at home, natively."""
    assert job.line() == "ready"
    job.move("2")
    job.write("\n")
    status, output, complaints = job.finish()
    assert (status, output, complaints) == (0, expected, "")


def test_fork(start: Callable[..., Job]) -> None:
    goes_home(start(act("fork")), "child exited 5\n")


def test_exec(start: Callable[..., Job]) -> None:
    goes_home(start(act("exec", "cat", "/node/name")), "n1\n")


def test_shared_map_of_a_file(start: Callable[..., Job]) -> None:
    goes_home(start(act("map", "/node/name")), "n1\n")


def test_proc_self_maps(start: Callable[..., Job]) -> None:
    goes_home(start(act("self")), "stacks 1\n")


def test_subprocesses_of_python(lab: Cluster, start: Callable[..., Job]) -> None:
    code = (
        "import subprocess, sys\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(subprocess.check_output(['cat', '/node/name'], text=True), end='')\n"
    )
    goes_home(start(["/usr/bin/python3", "-c", code]), "n1\n")


def test_reason_is_told_and_it_leaves_again(start: Callable[..., Job]) -> None:
    """It came home for a fork; a second later it is back where it had been sent."""
    code = (
        "import os, sys\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if os.fork() == 0: os._exit(0)\n"
        "    os.wait(); print('forked', flush=True)\n"
    )
    job = start(["/usr/bin/python3", "-c", code])
    assert job.line() == "ready"
    job.move("2")
    away = job.where()
    job.write("\n")
    assert job.line() == "forked"
    row = job.row()
    if row["where"] == "home":  # it may be on its way back already
        assert "home:" in row["why"]
    assert row["nmigs"] >= 2
    job.wait_until_at(away)
    assert job.finish() == (0, "", "")


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_shell_scripts_run_right_from_the_start(shell: str, lab: Cluster) -> None:
    """Forks, pipes, substitutions: as in a plain run, though it starts at n2."""
    script = "for i in 1 2 3; do echo $i $(cat /node/name) | tr 1-3 a-c; done; exit 4"
    plain = lab[1].run([shell, "-c", script])
    sent = lab[1].run(["mosrun", "-2", shell, "-c", script])
    assert (sent.returncode, sent.stdout, sent.stderr) == (4, plain.stdout, "")


def test_threads_run_at_home(start: Callable[..., Job]) -> None:
    """A process with threads stays, and says why; its threads work."""
    code = (
        "import threading, sys\n"
        "t = threading.Thread(target=sys.stdin.readline); t.start()\n"
        "print('ready', flush=True); t.join(); print('joined')\n"
    )
    job = start(["/usr/bin/python3", "-c", code])
    assert job.line() == "ready"
    done = job.home.run(["migrate", "--wait", str(job.pid), "2"])
    assert done.returncode == 9
    assert "thread" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    why = job.home.check(["mosps", "--why", str(job.pid)])
    assert why.startswith(f"{job.pid}: home: it has 2 threads")  # and what the balancer says, soon
    job.write("\n")
    assert job.finish() == (0, "joined\n", "")
