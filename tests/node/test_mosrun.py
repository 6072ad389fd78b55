"""mosrun: the job is the very process the shell started, and a failure leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mosd_nodes import MOSRUN, NOBODY, Cluster, Node, end, eventually


@pytest.fixture
def node(cluster: Cluster) -> Node:
    return cluster.node(1)


def test_the_status_is_the_programs_own(node: Node) -> None:
    assert node.mosrun("sh", "-c", "exit 7").status == 7
    assert node.mosrun("sh", "-c", "kill -TERM $$").status == -signal.SIGTERM
    assert node.mosrun("true").status == 0


def test_what_cannot_be_executed_is_126_or_127_as_with_env(node: Node) -> None:
    missing = node.mosrun("no-such-program")
    assert (missing.status, missing.err) == (
        127,
        "mosrun: no-such-program: No such file or directory\n",
    )
    plain = node.mosrun("/etc/passwd")
    assert (plain.status, plain.err) == (126, "mosrun: /etc/passwd: Permission denied\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "which program"),
        (["--nope", "true"], "no such option: --nope"),
        (["-q", "true"], "-q: the queue: not supported yet"),
        (["-L", "-l", "true"], "only one of -L and -l"),
        (["-9", "true"], "there is no node number 9"),
        (["-10.1.2.3", "true"], "10.1.2.3 is not in mosix.map"),
        (["-rno.such.host.invalid", "true"], "'no.such.host.invalid' is not known"),
    ],
)
def test_its_own_failures_are_125_and_one_line(node: Node, options: list[str], said: str) -> None:
    done = node.mosrun(*options)
    assert done.status == 125
    assert said in done.err
    assert done.err.startswith("mosrun: ")
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_without_a_free_descriptor_it_says_so_itself(node: Node) -> None:
    """Not a loader, whose 127 would mean that there is no such program."""
    done = node.run("/bin/bash", "-c", f"ulimit -n 3; exec {MOSRUN} true")
    assert done.status == 125
    assert done.err == "mosrun: no socket: Too many open files\n"


def test_help_goes_to_stdout_in_the_terminals_width(node: Node) -> None:
    done = node.mosrun("--help", env={"COLUMNS": "50"})
    assert (done.status, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 50
    assert "126" in done.out


def test_without_mosd_it_says_so(cluster: Cluster) -> None:
    done = cluster.node(1, start=False).mosrun("true")
    assert done.status == 125
    assert done.err.startswith("mosrun: mosd does not run here: No such file or directory (start")


def test_help_and_wrong_options_need_no_mosd(cluster: Cluster) -> None:
    running, absent = cluster.node(1), cluster.node(2, start=False)
    for options in (["--help"], ["--nope", "true"], ["-q", "true"], ["-L", "-l", "true"], []):
        assert absent.mosrun(*options) == running.mosrun(*options)
    done = absent.mosrun("-L", "--", "true")
    assert (done.status, done.out) == (125, "")
    assert done.err == (
        "mosrun: mosd does not run here: No such file or directory "
        "(start it as root: mosd --detach)\n"
    )


_STATE = """
import os, resource, signal, sys
print(dict(os.environ), os.getcwd())
print(oct(os.umask(0)), os.getpgrp() == os.getpid())
print(sorted(os.listdir('/proc/self/fd')), os.getppid())
for line in open('/proc/self/status'):
    if line.startswith(('SigB', 'SigI', 'SigC', 'Shd', 'Cap', 'NoNew', 'Seccomp', 'Uid', 'G')):
        print(line, end='')
print([resource.getrlimit(n) for n in range(16)])
print(sys.argv)
"""


def test_environment_masks_dispositions_and_limits_are_as_natively(node: Node) -> None:
    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGALRM})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.umask(0o027)

    program = ["/usr/bin/python3", "-c", _STATE, "-x", "ü", ""]
    natively = node.run(*program, preexec_fn=prepare, env={"A": "ü b", "LC_ALL": ""})
    assert natively.status == 0
    options = ["--no-interface", "--"]
    as_job = node.mosrun(*options, *program, preexec_fn=prepare, env={"A": "ü b", "LC_ALL": ""})
    assert as_job.out == natively.out
    as_job = node.mosrun("--", *program, preexec_fn=prepare, env={"A": "ü b", "LC_ALL": ""})
    # The one trace of the interface: its filter, for which root needs no no_new_privs.
    assert [line for line in as_job.out.splitlines() if "Seccomp" not in line] == [
        line for line in natively.out.splitlines() if "Seccomp" not in line
    ]
    assert "NoNewPrivs:\t0" in as_job.out


def test_the_locale_is_as_natively(node: Node) -> None:
    """A launcher in Python would set LC_CTYPE where the C locale is."""
    for locale in ({"LC_ALL": ""}, {"LC_ALL": "", "LC_NUMERIC": "C"}, {"LC_ALL": "C"}):
        assert node.mosrun("env", env=locale).out == node.run("env", env=locale).out


def test_a_set_user_id_program_runs_as_its_caller_and_that_is_said(
    node: Node, tmp_path: Path
) -> None:
    mine = tmp_path / "who"
    mine.write_bytes(Path("/usr/bin/id").read_bytes())
    mine.chmod(0o4755)
    for part in (tmp_path, *tmp_path.parents):
        if not part.stat().st_mode & 0o001:
            part.chmod(0o755)
    done = node.mosrun(mine, "-u", uid=NOBODY)
    assert (done.status, done.out) == (0, f"{NOBODY}\n")
    assert done.err == (
        f"mosrun: {mine}: runs without the privilege of its set-user-ID bit "
        "(mosrun --no-interface keeps it)\n"
    )
    done = node.mosrun("--no-interface", mine, "-u", uid=NOBODY)
    assert (done.status, done.out, done.err) == (0, "0\n", "")


def test_a_job_is_in_its_cgroup_and_its_children_too(node: Node) -> None:
    job = node.job()
    group = Path("/proc", str(job.pid), "cgroup").read_text()
    assert "/mosix-job-" in group
    assert node.row(job.pid)["where"] == "home"
    done = node.mosrun("sh", "-c", "cat /proc/$$/cgroup; sleep 9 & cat /proc/$!/cgroup; kill $!")
    assert done.out.count("mosix-job-") == 2
    assert end(job) == 0
    eventually(lambda: not list((node.run_dir / "jobs").iterdir()))


_FRONT_THAT_CANNOT_JOIN = """
import socket, sys
from mosix.node.requests import PREPARE, Launch, LaunchAnswer
from mosix.wire.frames import frame
from mosix.wire.messages import decode, encode
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(frame(encode(Launch(argv=[b"true"])), 1 << 16))
data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 1)
if decode(data[4:], LaunchAnswer).what == PREPARE:
    sock.sendall(b"x")
    data = sock.recv(1 << 16)
print(decode(data[4:], LaunchAnswer).what, open("/proc/self/cgroup").read())
"""


def test_who_cannot_join_its_cgroup_is_put_into_it(node: Node) -> None:
    done = node.run(sys.executable, "-c", _FRONT_THAT_CANNOT_JOIN, node.control, uid=NOBODY)
    assert done.status == 0, done.err
    assert done.out.startswith("0 ")
    assert "/mosix-job-" in done.out


def test_the_deputy_is_the_users_and_has_no_capability(node: Node) -> None:
    job = node.job(uid=NOBODY)
    workers = [pid for pid in node.processes() if _uid(pid) == NOBODY]
    assert len(workers) == 1
    status = Path(f"/proc/{workers[0]}/status").read_text()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{name}:\t0000000000000000" in status
    fds = [os.readlink(f"/proc/{workers[0]}/fd/{fd}") for fd in os.listdir(
        f"/proc/{workers[0]}/fd")]  # fmt: skip
    # stdio, mosd's socket, the job's pidfd and stderr, asyncio's own
    assert not [name for name in fds if "control" in name or "secret" in name]
    assert os.stat(f"/proc/{workers[0]}/environ").st_uid == 0  # not dumpable
    assert end(job) == 0


def _uid(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[0])


def test_closed_standard_descriptors_stay_closed(node: Node) -> None:
    done = node.run("/bin/sh", "-c", f"exec {MOSRUN} sh -c 'ls /proc/$$/fd' 0<&- 2>&-")
    assert done.status == 0, (done, node.log())  # it has nowhere to say why
    assert "0" not in done.out.split()
    assert "2" not in done.out.split()


def test_options_are_found_in_front_of_very_long_arguments(node: Node) -> None:
    many = ["x" * 1000] * 1500
    done = node.mosrun("-L", "sh", "-c", "echo $#", "sh", *many)
    assert (done.status, done.out) == (0, "1500\n")


def test_an_interrupt_during_launch_leaves_nothing(cluster: Cluster) -> None:
    node = cluster.node(1, options=["--deputy", "fake_workers:silent"])
    before = len(node.processes())
    front = subprocess.Popen([str(MOSRUN), "true"], env=node.environment)
    jobs = node.run_dir / "jobs"
    eventually(lambda: len(node.processes()) > before)  # its deputy
    front.send_signal(signal.SIGINT)
    assert front.wait(60) == -signal.SIGINT
    eventually(lambda: not list(jobs.iterdir()))
    eventually(lambda: len(node.processes()) == before)


def test_a_broken_deputy_is_reported_and_leaves_nothing(cluster: Cluster) -> None:
    node = cluster.node(1, options=["--deputy", "fake_workers:broken"])
    done = node.mosrun("true")
    assert done.status == 125
    assert (
        done.err == "mosrun: the job's deputy does not start on node 127.0.0.2 (see mosd's log)\n"
    )
    assert "this deputy is broken" in node.log()
    eventually(lambda: not list((node.run_dir / "jobs").iterdir()))


def test_the_spawner_is_started_again_when_it_dies(node: Node) -> None:
    assert node.process is not None
    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children")
    spawner = int(children.read_text())
    os.kill(spawner, signal.SIGKILL)
    eventually(lambda: children.read_text().split() not in ([], [str(spawner)]))
    assert node.mosrun("true").status == 0


def test_a_deputy_that_dies_takes_its_entry_with_it(node: Node) -> None:
    job = node.job(uid=NOBODY)
    (deputy,) = [pid for pid in node.processes() if _uid(pid) == NOBODY]
    os.kill(deputy, signal.SIGKILL)
    eventually(lambda: node.rows() == [])
    done = node.mosix("migrate", job.pid, 2)
    assert done.status == 5
    assert end(job) == 0  # it goes on at home
    eventually(lambda: not list((node.run_dir / "jobs").iterdir()))


def test_launches_leak_no_descriptor(node: Node) -> None:
    assert node.mosrun("true").status == 0
    eventually(lambda: not list((node.run_dir / "jobs").iterdir()))
    before = node.descriptors()
    for _ in range(10):
        assert node.mosrun("true").status == 0
    eventually(lambda: node.descriptors() <= before)
