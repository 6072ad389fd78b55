"""`mosix-lab run`: a command in a node is as if it had been started there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mosix.lab import cgroups, drive
from mosix.lab.drive import LAB, Cluster
from mosix.lab.terminal import terminal


def state_of(pair: Cluster, command: str) -> str:
    """State letter of the process in n1 whose command line is `command`."""
    (pid,) = [pid for pid, line in pair[1].processes().items() if line == command]
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_exit_status_is_the_commands(pair: Cluster) -> None:
    for status in (0, 1, 7, 255):
        assert pair[1].run(["sh", "-c", f"exit {status}"]).returncode == status


def test_death_by_signal_is_the_commands(pair: Cluster) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT):
        done = pair[1].run(["sh", "-c", f"kill -{int(number)} $$"])
        assert done.returncode == -number


def test_own_failures_are_125_126_127(pair: Cluster) -> None:
    assert pair[1].run(["/node/nothing"]).returncode == 127
    assert pair[1].run(["/etc/passwd"]).returncode == 126
    unknown = subprocess.run(
        [*LAB, "run", f"--name={pair.name}", "n9", "true"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert unknown.returncode == 125
    assert unknown.stderr == (f"mosix-lab: lab {pair.name} has no node 'n9' (it has n1, n2)\n")
    assert pair[1].run(["true"], user="nobody-at-all").returncode == 125


def test_standard_descriptors_are_the_callers(pair: Cluster) -> None:
    done = pair[2].run(["sh", "-c", "cat; echo complaint >&2"], input="asked\n")
    assert (done.stdout, done.stderr) == ("asked\n", "complaint\n")


def test_options_of_the_command_are_left_alone(pair: Cluster) -> None:
    assert pair[1].check(["printf", "%s|", "--name=x", "-h", "--", "--user"]) == (
        "--name=x|-h|--|--user|"
    )


def test_environment_and_signal_dispositions_are_the_callers(pair: Cluster) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": "/x", "A": "1=2"}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    look = ["sh", "-c", "env; grep -E 'Sig(Blk|Ign)' /proc/self/status"]
    lines = pair[1].check(look, env=environment).splitlines()
    assert "A=1=2" in lines
    assert "HOME=/x" in lines
    assert not [line for line in lines if line.startswith("LC_")]
    for field in ("SigBlk", "SigIgn"):
        assert f"{field}:\t{0:016x}" in lines


def test_descriptors_do_not_leak_into_the_command(pair: Cluster) -> None:
    look = ["sh", "-c", "echo /proc/self/fd/*"]
    assert pair[1].check(look) == subprocess.check_output(look, text=True)


def test_user_has_ids_groups_home_and_no_capabilities(pair: Cluster) -> None:
    look = ["sh", "-c", "id -u; id -g; echo $HOME $USER; grep CapEff /proc/self/status"]
    lines = pair[1].check(look, user="games").splitlines()
    assert lines == ["5", "60", "/usr/games games", "CapEff:\t0000000000000000"]
    assert pair[1].check(["id", "-u"], user="12345") == "12345\n"


def test_signals_sent_to_run_reach_the_command(pair: Cluster) -> None:
    script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    with pair[1].popen(["sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "got\n"
    assert process.returncode == 3


def test_control_c_at_the_terminal_is_handled_by_the_command_alone(pair: Cluster) -> None:
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.01; done"
    with terminal(pair[1].argv(["sh", "-c", script]), controlling=True) as screen:
        screen.expect("ready")
        screen.type("\x03")
        screen.expect("caught")
        assert screen.wait() == 9


def test_control_z_and_fg_in_a_shell_outside(pair: Cluster) -> None:
    """The shell that ran `mosix-lab run` sees it stop, and continues it."""
    argv = " ".join(pair[1].argv(["cat"]))
    with terminal(["bash", "--norc", "--noprofile", "-i"], controlling=True) as screen:
        screen.prompt()
        screen.type(f"{argv}\n")
        drive.wait_for("cat", lambda: "cat" in pair[1].processes().values() or None)
        screen.type("echoed\n")
        screen.expect("echoed\r\nechoed")
        screen.type("\x1a")
        screen.expect("Stopped")
        screen.expect("ready:")
        assert state_of(pair, "cat") == "T"
        screen.type("fg\n")
        drive.wait_for("going on", lambda: state_of(pair, "cat") == "S")
        screen.type("again\n")
        screen.expect("again\r\nagain")
        screen.type("\x04")
        screen.expect("ready:")
        screen.type("echo status $?\n")
        screen.expect("status 0")
        screen.type("exit\n")
        assert screen.wait() == 0


def test_shell_in_a_node_has_job_control(pair: Cluster) -> None:
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with terminal(pair[1].argv(shell, setsid=True)) as screen:
        screen.prompt()
        screen.type("sleep 1000\n")
        drive.wait_for("sleep", lambda: "sleep 1000" in pair[1].processes().values() or None)
        screen.type("\x1a")
        screen.expect("Stopped")
        screen.expect("ready:")
        screen.type("fg\n")
        drive.wait_for("going on", lambda: state_of(pair, "sleep 1000") == "S")
        screen.type("\x03")
        screen.expect("ready:")
        screen.type("echo status $?\n")
        screen.expect("status 130")
        screen.type("tty; hostname; exit 4\n")
        screen.expect("/dev/pts/")
        screen.expect("n1")
        assert screen.wait() == 4


def test_a_closed_terminal_ends_what_its_shell_runs(pair: Cluster) -> None:
    """As on a machine: the shell hears of it, and tells its jobs."""
    shell = pair[1].argv(["bash", "--norc", "--noprofile", "-i"])
    with terminal(shell, controlling=True) as screen:
        screen.prompt()
        screen.type("sleep 1001 & sleep 1002\n")
        drive.wait_for(
            "both",
            lambda: {"sleep 1001", "sleep 1002"} <= set(pair[1].processes().values()) or None,
        )
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, screen.master)  # closes it
        os.close(nowhere)
        screen.wait()
    left = pair[1].processes
    drive.wait_for("their end", lambda: not [c for c in left().values() if "sleep" in c] or None)


def test_node_is_its_own_machine(pair: Cluster) -> None:
    """Files, names, processes, clocks and network of a node are its own."""
    first, second = pair.nodes
    first.check(["sh", "-c", "echo only here > /node/a; echo x > /tmp/b; echo y > /etc/c"])
    for path in ("/node/a", "/tmp/b", "/etc/c"):
        assert first.path(path).exists()
        assert second.run(["test", "-e", path]).returncode == 1
        assert not os.path.exists(path) or path == "/tmp/b"
    assert [node.check(["hostname"]) for node in pair.nodes] == ["n1\n", "n2\n"]
    assert first.check(["ps", "-e", "-o", "pid="]).split()[0] == "1"
    assert len(first.check(["ps", "-e", "-o", "pid="]).split()) == 2
    assert first.check(["ls", "/sys/class/net"]).split() == ["eth0", "lo"]


def test_clocks_of_nodes_differ_as_status_says(pair: Cluster) -> None:
    command = [
        sys.executable,
        "-c",
        "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC),"
        " time.clock_gettime(time.CLOCK_BOOTTIME))",
    ]
    import time  # noqa: PLC0415

    for node in pair.nodes:
        before = time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)
        inside = [float(word) for word in node.check(command).split()]
        after = time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME)
        ahead = (node.node.monotonic_s, node.node.boottime_s)
        for clock in range(2):
            assert before[clock] <= inside[clock] - ahead[clock] <= after[clock]
    assert pair[1].node.monotonic_s != pair[2].node.monotonic_s


SERVE = """
import socket
with socket.create_server(("", 5000)) as server:
    print("ready", flush=True)
    client, (address, _) = server.accept()
    with client:
        client.sendall(address.encode())
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 5000), 10) as server:
    print(server.recv(100).decode())
"""


def test_nodes_reach_each_other_by_name_and_nobody_else(pair: Cluster) -> None:
    first, second = pair.nodes
    with first.popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert second.check([sys.executable, "-c", ASK, "n1"]).strip() == second.ip
    routes = second.check(["ip", "-4", "route"]).splitlines()
    assert len(routes) == 1
    assert routes[0].startswith(f"{second.ip.rpartition('.')[0]}.0/24 dev eth0")


def test_host_keeps_its_interfaces_mounts_and_name(pair: Cluster) -> None:
    assert pair[1].check(["hostname"]).strip() != os.uname().nodename
    assert not [
        line
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if "lab-" in line.split()[0]
    ]
    assert not {"br0", "n1", "n2"} & set(os.listdir("/sys/class/net"))
    assert not os.path.exists("/node")


def test_unplugged_node_is_unreachable_until_plugged(pair: Cluster) -> None:
    first, second = pair.nodes
    connect = (
        "import socket,sys\n"
        "s=socket.socket(); s.settimeout(0.3)\n"
        "try: s.connect((sys.argv[1], 1))\n"
        "except ConnectionRefusedError: print('there')\n"
        "except OSError: print('away')\n"
    )
    ask = [sys.executable, "-c", connect, first.ip]
    assert second.check(ask) == "there\n"
    first.link(up=False)
    assert second.check(ask) == "away\n"
    first.link(up=True)
    assert drive.wait_for("the link", lambda: second.check(ask) == "there\n" or None)


def test_memory_limit_is_the_nodes(pair: Cluster) -> None:
    """300 MiB do not fit into a node of 256 MiB; its neighbour has all of its own."""
    done = pair[1].run([sys.executable, "-c", "b = bytearray(300 << 20)"])
    assert done.returncode == -signal.SIGKILL
    pair[2].check([sys.executable, "-c", "b = bytearray(64 << 20)"])
    usage = cgroups.usage(pair.name, "n2")
    assert usage.memory_limit_bytes == 256 << 20
    assert usage.cpu_s > 0


def test_configuration_makes_the_node_a_member(pair: Cluster) -> None:
    etc = pair[2].path("/etc/mosix")
    assert (etc / "mosip").read_text().strip() == pair[2].ip
    assert (etc / "mosix.map").read_text().splitlines()[-1] == f"{pair[1].ip} 2"
    assert (etc / "secret").stat().st_mode & 0o777 == 0o600
    assert len((etc / "secret").read_text().strip()) >= 16


@pytest.mark.parametrize("order", ["stop", "kill"])
def test_mosd_orders_without_mosd_are_harmless(pair: Cluster, order: str) -> None:
    pair[1].mosd(order)
