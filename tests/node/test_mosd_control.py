"""The control socket and the start of mosd: rights, bad requests, unsafe files, one per node."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
from pathlib import Path

import msgspec
import pytest
from mosd_nodes import NOBODY, Cluster, Node, end, eventually
from mosix.node.records import JobRecord, read_all, write
from mosix.node.requests import Launch, Whois
from mosix.wire.frames import frame
from mosix.wire.messages import encode


def test_only_owner_and_root_may_move_a_process(cluster: Cluster) -> None:
    node = cluster.node(1)
    job = node.job(uid=NOBODY)
    stranger = node.mosix("migrate", job.pid, "home", uid=1234)
    assert stranger.status == 4
    assert stranger.err == (
        f"migrate: process {job.pid} belongs to uid {NOBODY} (only its owner or root may do this)\n"
    )
    assert node.mosix("migrate", job.pid, "home", "--wait", uid=NOBODY).status == 0
    assert node.mosix("migrate", job.pid, "home", "--wait").status == 0
    assert node.mosix("mosps", uid=1234).status == 0  # looking is free
    assert end(job) == 0


def test_what_is_no_job_is_said(cluster: Cluster) -> None:
    node = cluster.node(1)
    mine = node.mosix("migrate", os.getpid(), "home")
    assert (mine.status, "is not part of a job" in mine.err) == (5, True)
    gone = node.mosix("migrate", 4194303, "home")
    assert (gone.status, "there is no process" in gone.err) == (5, True)
    assert node.mosix("migrate", "x", "home").status == 2


def request(node: Node, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(15)
        sock.connect(str(node.control))
        answer = b""
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(1 << 16):
                answer += part
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer


def test_garbage_on_the_control_socket_costs_only_the_connection(cluster: Cluster) -> None:
    node = cluster.node(1)
    assert node.mosix("mosctl", "whois").status == 0
    before = node.descriptors()
    chance = random.Random(7)
    for size in (1, 3, 5, 100, 10_000):
        assert request(node, chance.randbytes(size)) == b""
        assert request(node, struct.pack("<I", size) + chance.randbytes(size)) == b""
    assert request(node, struct.pack("<I", 1 << 31)) == b""
    assert request(node, frame(b"\x81\xa1t\xa6nobody", 100)) == b""
    whole = frame(encode(Whois()), 100)
    assert request(node, whole[:-1]) == b""
    eventually(lambda: node.descriptors() <= before)
    assert "malformed request" in node.mosix("mosctl", "status").out


def test_a_launch_from_a_process_that_says_too_much_makes_no_job(cluster: Cluster) -> None:
    node = cluster.node(1)
    launch = frame(encode(Launch(argv=[b"true"], columns=80)), 1000)
    request(node, launch + b"more")
    eventually(lambda: not list((node.run_dir / "jobs").iterdir()))


def test_descriptors_that_nobody_asked_for_are_closed(cluster: Cluster) -> None:
    node = cluster.node(1)
    before = node.descriptors()
    for count in (1, 4, 30):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(node.control))
            socket.send_fds(sock, [b"\x05\0\0\0xxxxx"], [0] * count)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(10) == b""
    eventually(lambda: node.descriptors() <= before)


def test_everybody_may_connect_but_not_read_the_rest(cluster: Cluster) -> None:
    node = cluster.node(1)
    assert node.control.stat().st_mode & 0o777 == 0o666
    assert node.run_dir.stat().st_mode & 0o022 == 0
    assert node.mosix("mosctl", "whois", "2", uid=NOBODY).out.startswith("node 2, 127.0.0.3")


def test_a_second_mosd_is_refused_and_the_first_goes_on(cluster: Cluster) -> None:
    node = cluster.node(1)
    assert node.process is not None
    status, said = node.start_failing()
    assert status == 1
    assert said == (
        f"mosd: another mosd runs here already: process {node.process.pid} (stop it first)\n"
    )
    assert node.mosix("mosctl", "status").status == 0


def test_a_job_whose_deputy_died_leaves_no_cgroup_when_mosd_stops(cluster: Cluster) -> None:
    node = cluster.node(1)
    job = node.job(uid=NOBODY)
    (deputy,) = [pid for pid in node.processes() if os.stat(f"/proc/{pid}").st_uid == NOBODY]
    (record,) = read_all(node.run_dir / "jobs", JobRecord)
    group = Path(record.group)
    os.kill(deputy, 9)
    eventually(lambda: node.rows() == [])
    job.kill()
    assert end(job) == -9
    assert node.stop() == 0
    assert not group.exists()
    assert not list((node.run_dir / "jobs").iterdir())


def test_the_next_mosd_removes_the_cgroups_that_a_killed_one_has_left(cluster: Cluster) -> None:
    """Whether the job was over, or its cgroup not even made when mosd was killed."""
    node = cluster.node(1)
    job = node.job()
    (record,) = read_all(node.run_dir / "jobs", JobRecord)
    group = Path(record.group)
    assert node.process is not None
    node.process.kill()
    node.process.wait()
    assert end(job) == 0
    other = "0" * 16
    unmade = msgspec.structs.replace(record, id=other, group=f"{group.parent}/mosix-job-{other}")
    write(node.run_dir / "jobs", other, unmade)
    assert group.exists()
    node.start()
    eventually(lambda: not group.exists())
    eventually(lambda: not list((node.run_dir / "jobs").iterdir()))


def test_after_a_kill_it_starts_again(cluster: Cluster) -> None:
    node = cluster.node(1)
    job = node.job()
    assert node.process is not None
    node.process.kill()
    node.process.wait()
    node.start()
    done = node.mosix("migrate", job.pid, 2)
    assert done.status == 5
    assert "this mosd does not know" in done.err
    assert end(job) == 0
    eventually(lambda: not list((node.run_dir / "jobs").iterdir()))


@pytest.mark.parametrize(
    ("name", "text", "mode", "said"),
    [
        ("secret", "0123456789abcdef\n", 0o644, "secret: mode 644 lets others in (chmod 600"),
        ("secret", "short\n", 0o600, "secret: shorter than 16 characters"),
        ("mosix.map", "127.0.0.2 1\nnonsense\n", 0o644, "mosix.map, line 2: 1 fields"),
        ("mosip", "127.0.0.77\n", 0o644, "mosip, line 1: 127.0.0.77 is not in"),
        ("mosip", "127.0.0.2 3\n", 0o644, "mosip: must hold just one address"),
    ],
)
def test_unsafe_and_wrong_files_are_named(
    cluster: Cluster, name: str, text: str, mode: int, said: str
) -> None:
    node = cluster.node(1, start=False)
    path = node.directory / name
    path.write_text(text)
    path.chmod(mode)
    status, complaint = node.start_failing()
    assert status == 11
    assert complaint.startswith(f"mosd: {node.directory}/")
    assert said in complaint
    assert complaint.count("\n") == 1
    assert node.start_failing("--detach") == (status, complaint)
    assert node.processes() == []


def test_an_address_of_another_machine_is_refused(cluster: Cluster) -> None:
    node = cluster.node(1, start=False, map_text="127.0.0.2 1\n192.0.2.1 1\n")
    (node.directory / "mosip").write_text("192.0.2.1\n")
    status, complaint = node.start_failing()
    assert status == 11
    assert "cannot listen on 192.0.2.1" in complaint


def test_others_than_root_cannot_run_it(cluster: Cluster) -> None:
    node = cluster.node(1, start=False)
    done = node.mosix("mosd", uid=NOBODY)
    assert (done.status, done.err) == (4, "mosd: only root runs mosd (sudo mosd)\n")


def test_detached_it_returns_when_it_is_ready_and_logs_to_a_file(cluster: Cluster) -> None:
    node = cluster.node(1, start=False)
    done = subprocess.run(
        [*node.command(), "--detach"],
        env=node.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert node.mosrun("true").status == 0
    pid = int((node.run_dir / "mosd.pid").read_text())
    again = subprocess.run(
        [*node.command(), "--detach"],
        env=node.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert again.returncode == 1
    assert f"process {pid}" in again.stderr
    os.kill(pid, 15)
    eventually(lambda: node.processes() == [])
    assert "stopping" in (node.run_dir / "mosd.log").read_text()
