"""mosrun: where a program starts, what it inherits, and what is said when it cannot start."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from jobs import PYTHON, Job
from mosix.lab.drive import Cluster

STATE = (
    "import json, os, resource, signal\n"
    "print(json.dumps({\n"
    " 'env': dict(os.environ), 'cwd': os.getcwd(), 'umask': os.umask(0), 'nice': os.nice(0),\n"
    " 'limits': [resource.getrlimit(n) for n in range(16)],\n"
    " 'mask': sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),\n"
    " 'signals': [l for l in open('/proc/self/status') if l.startswith(('SigIgn', 'SigCgt'))],\n"
    " 'fds': sorted(os.listdir('/proc/self/fd')), 'ids': [os.getuid(), os.getgroups()]}))\n"
)


def test_program_inherits_what_it_would_natively(lab: Cluster) -> None:
    for environment in ({"LC_ALL": "C"}, {"A": "x=y", "LANG": ""}):
        command = [
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            *(f"{name}={value}" for name, value in environment.items()),
        ]
        mosrun = lab[1].check(["which", "mosrun"]).strip()
        plain = json.loads(lab[1].check([*command, PYTHON, "-c", STATE]))
        job = json.loads(lab[1].check([*command, mosrun, PYTHON, "-c", STATE]))
        assert job == plain


def test_with_z_a_program_gets_its_name_from_the_arguments(lab: Cluster) -> None:
    command = ["mosrun", "-z", "/bin/sh", "another name", "-c", 'echo "$0"']
    assert lab[1].check(command) == "another name\n"


def test_setuid_programs_get_their_rights_without_the_interface(lab: Cluster) -> None:
    """Without the filter of the interface: with it, and so no_new_privs, they do not."""
    command = ["passwd", "-S"]  # reads /etc/shadow
    plain = lab[1].run(command, user="games")
    if plain.returncode:
        pytest.skip(f"passwd is not setuid here: {plain.stderr}")
    done = lab[1].run(["mosrun", "-h", "--no-interface", *command], user="games")
    assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, "")


def test_options_say_where_it_starts(lab: Cluster, start: Callable[..., Job]) -> None:
    for options, where in (
        (("-h",), "home"),
        (("-2",), lab[2].ip),
        ((f"-{lab[3].ip}",), lab[3].ip),
        (("-rn2",), lab[2].ip),
        (("-L", "-3"), lab[3].ip),
        (("--no-interface", "-l"), "home"),
    ):
        job = start(["cat"], options=options)
        job.wait_until_at(where)
        job.write("hello\n")
        assert job.line() == "hello"
        assert job.finish() == (0, "", "")


def test_unknown_node_runs_nothing(lab: Cluster) -> None:
    done = lab[1].run(["mosrun", "-9", "touch", "/node/ran"])
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1
    assert "9" in done.stderr
    assert lab[1].run(["test", "-e", "/node/ran"]).returncode == 1


def test_node_that_is_down_fails_or_falls_back_with_f(lab: Cluster) -> None:
    lab[3].mosd("kill")
    try:
        done = lab[1].run(["mosrun", "-3", "touch", "/node/ran-down"])
        assert done.returncode == 125
        assert len(done.stderr.splitlines()) == 1
        assert lab[1].run(["test", "-e", "/node/ran-down"]).returncode == 1
        fallen = lab[1].run(["mosrun", "-F", "-3", "cat", "/node/name"])
        assert (fallen.returncode, fallen.stdout) == (0, "n1\n")
    finally:
        lab[3].mosd("start")


def test_own_failures_are_125_126_127(lab: Cluster) -> None:
    for command, status in (
        (["mosrun", "/node/nothing"], 127),
        (["mosrun", "/etc/passwd"], 126),
        (["mosrun", "--nonsense", "true"], 125),
        (["mosrun"], 125),
    ):
        done = lab[1].run(command)
        assert (done.returncode, done.stdout) == (status, "")
        assert len(done.stderr.splitlines()) == 1


def test_without_mosd_it_says_so(lab: Cluster) -> None:
    lab[3].mosd("stop")
    try:
        done = lab[3].run(["mosrun", "true"])
        assert done.returncode == 125
        assert "mosd" in done.stderr
        for command in (["migrate", "1", "2"], ["mosps"], ["mosctl", "status"]):
            done = lab[3].run(command)
            assert done.returncode == 3
            assert len(done.stderr.splitlines()) == 1
    finally:
        lab[3].mosd("start")


def test_whois_and_status_know_every_node(lab: Cluster) -> None:
    for number, node in enumerate(lab.nodes, 1):
        found = json.loads(lab[1].check(["mosctl", "whois", str(number), "--json"]))
        assert (found["ip"], found["number"]) == (node.ip, number)
        status = json.loads(lab[1].check(["mosctl", "status", node.ip, "--json"]))
        assert status["ip"] == node.ip
        assert 0 < status["memory_free"] <= 4 << 30


def test_mosps_counts_the_moves(start: Callable[..., Job]) -> None:
    job = start(["cat"])
    assert job.row()["nmigs"] == 0
    for count, target in enumerate(("2", "3", "home"), 1):
        job.move(target)
        assert job.row()["nmigs"] == count


@pytest.mark.parametrize("file", ["mosix.map", "secret"])
def test_mosd_refuses_to_start_without_its_files(file: str, lab: Cluster) -> None:
    script = f"mkdir /tmp/c-{file}; cp -a /etc/mosix/. /tmp/c-{file}; rm /tmp/c-{file}/{file}"
    lab[3].check(["sh", "-c", script])
    done = lab[3].run(["mosd", "--config", f"/tmp/c-{file}", "--run-dir", f"/tmp/r-{file}"])
    assert done.returncode == 11
    assert file in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_mosd_refuses_a_secret_that_others_can_read(lab: Cluster) -> None:
    lab[3].check(["sh", "-c", "cp -a /etc/mosix /tmp/open; chmod 644 /tmp/open/secret"])
    done = lab[3].run(["mosd", "--config", "/tmp/open", "--run-dir", "/tmp/r-open"])
    assert done.returncode == 11
    assert "secret" in done.stderr
