"""Machines of a lab brought up with --vm: booted, connected, ordered about, lost."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from mosix.errors import MachineLostError
from mosix.lab import drive, vm_agent, vm_enter, vm_nodes
from mosix.lab.drive import LAB, Cluster
from mosix.lab.terminal import terminal

_CONNECT = (
    "import socket, sys\n"
    "s = socket.socket(); s.settimeout(5)\n"
    "try: s.connect((sys.argv[1], int(sys.argv[2]))); print(s.recv(9) or 'closed')\n"
    "except ConnectionRefusedError: print('there')\n"
    "except OSError: print('away')\n"
)
_PYTHON = "/usr/bin/python3"


def test_each_machine_runs_the_kernel_it_was_given(lab: Cluster) -> None:
    for node, series in zip(lab.nodes, ("6.1.", "6.12."), strict=True):
        assert node.check(["uname", "-r"]).startswith(series)
        assert (
            node.check(["cat", "/node/name", "/proc/sys/kernel/hostname"]) == f"{node.name}\n" * 2
        )


def test_machines_see_each_other_until_the_cable_is_pulled(lab: Cluster) -> None:
    first, second = lab[1], lab[2]
    ask = [_PYTHON, "-c", _CONNECT, first.ip, "1"]
    assert second.check(ask) == "there\n"
    first.link(up=False)
    try:
        assert second.check(ask) == "away\n"
    finally:
        first.link(up=True)
    drive.wait_for("the link", lambda: second.check(ask) == "there\n")


def test_a_command_has_the_callers_streams_environment_and_status(lab: Cluster) -> None:
    done = lab[1].run(
        ["sh", "-c", "cat; echo $A >&2; exit 7"], input="x\n", env={**os.environ, "A": "1"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "x\n", "1\n")
    assert lab[2].run(["sh", "-c", "kill -SEGV $$"]).returncode == -signal.SIGSEGV
    assert lab[1].run(["/node/nothing"]).returncode == 127
    assert lab[1].check(["id", "-un"], user="games") == "games\n"


def test_not_a_byte_is_lost_in_either_direction(lab: Cluster) -> None:
    data = os.urandom(1 << 20)
    done = subprocess.run(
        lab[2].argv(["sh", "-c", "tee /dev/stderr"]), input=data, capture_output=True, check=True
    )
    digests = {hashlib.sha256(each).digest() for each in (data, done.stdout, done.stderr)}
    assert len(digests) == 1


def test_signals_sent_to_run_reach_the_command_and_its_end_ends_it(lab: Cluster) -> None:
    script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    with lab[1].popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "got\n"
        assert process.wait() == 3
    with lab[1].popen(["sleep", "1234"]) as process:
        pid = lab[1].pid_of(process)
        process.kill()
    gone = ["sh", "-c", f"test ! -e /proc/{pid}"]
    drive.wait_for("the end of sleep", lambda: lab[1].run(gone).returncode == 0)


def test_a_shell_has_a_terminal_of_the_callers_size(lab: Cluster) -> None:
    # Without somebody's .bashrc, which may take its time.
    with terminal(["env", "HOME=/node", *LAB, "shell", f"--name={lab.name}", "n1"]) as screen:
        screen.prompt()
        screen.type("tty; exit 5\n")
        assert "/dev/pts/" in screen.expect("exit\r\n")
        assert screen.wait() == 5


def test_nobody_in_a_machine_can_give_its_agent_orders(lab: Cluster) -> None:
    for node, other in ((lab[1], lab[1]), (lab[1], lab[2])):
        assert other.node.machine is not None
        ask = [_PYTHON, "-c", _CONNECT, other.node.machine.control, str(vm_agent.PORT)]
        assert node.check(ask, user="nobody") == "closed\n"


@pytest.fixture
def victim() -> Iterator[Cluster]:
    name = f"t{os.getpid()}-lost"
    try:
        yield Cluster.up(name, 1, "--vm", "--kernel=6.1", "--no-mosd", "--memory-mb=256")
    finally:
        drive.down(name)


def test_a_lost_machine_is_no_failed_command(victim: Cluster) -> None:
    """Its kernel panics under a command: that has no status, and the console says why."""
    node = victim[1]
    with node.popen(["sh", "-c", "echo c >/proc/sysrq-trigger"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 125
    assert "the virtual machine n1 is lost" in said
    assert [line for line in node.splats() if "Kernel panic" in line]
    lab = victim.lab
    with pytest.raises(MachineLostError, match="n1 is lost"):
        vm_nodes.watch(lab, node.node).check()
    with pytest.raises(MachineLostError):
        vm_enter.listens(lab, node.node, "/run/nothing")
