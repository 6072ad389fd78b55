"""Between nodes: only who proves the secret, in bounded time and number, and every refusal said."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
from pathlib import Path

import pytest
from mosd_nodes import HERE, NOBODY, Cluster, Node, end, eventually
from mosix.config import Paths, load
from mosix.errors import RefusedError
from mosix.node.guests import group_prefix
from mosix.node.peers import Dialer
from mosix.node.settings import Settings
from mosix.remote.cgroup import Cgroups
from mosix.wire.handshake import ABI_VERSION, MAX_HALF_OPEN
from mosix.wire.messages import PROTOCOL_VERSION


def moved_away(node: Node, other: Node, job_pid: int) -> dict[str, object]:
    """Moves the process and returns the guest's row at `other`."""
    done = node.mosix("migrate", job_pid, other.ip, "--wait")
    assert done.status == 0, done
    (row,) = [row for row in other.rows() if row["origin_pid"] == job_pid]
    return row


def group_of(pid: object) -> Path:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(",") or (not controllers and "mosixd" in path):
            return Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup") / path[1:]
    raise AssertionError("no cgroup")


def is_dead(pid: object) -> bool:
    """Also a zombie: its remote is gone, and who inherited it may take its time."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_process_goes_away_and_comes_home_and_leaves_nothing_there(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    job = one.job(uid=NOBODY)
    done = one.mosix("migrate", job.pid, 2, "--wait", uid=NOBODY)
    assert (done.status, done.out) == (0, "moved: frozen for 1.5 ms, 2.1 MB sent\n"), done
    row = one.row(job.pid)
    assert (row["where"], row["where_number"], row["nmigs"], row["uid"]) == (two.ip, 2, 1, NOBODY)
    (guest,) = two.rows()
    assert (guest["where"], guest["home"], guest["origin_pid"]) == ("here", one.ip, job.pid)
    group = group_of(guest["pid"])
    assert "mosixd.guest-" in group.name
    owner = os.stat(f"/proc/{guest['pid']}").st_uid
    assert owner not in (0, NOBODY)
    assert one.mosix("migrate", job.pid, "home", "--wait").status == 0
    assert one.row(job.pid)["where"] == "home"
    eventually(lambda: two.rows() == [])
    eventually(lambda: not group.exists())
    assert end(job) == 0


def test_migrate_works_on_the_guests_node_with_the_pid_there(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    job = one.job(uid=NOBODY)
    guest = moved_away(one, two, job.pid)
    assert two.mosix("migrate", guest["pid"], "home", uid=1234).status == 4
    assert one.row(job.pid)["where"] == two.ip
    done = two.mosix("migrate", guest["pid"], "home", "--wait", uid=NOBODY)
    assert done.status == 0, done
    assert one.row(job.pid)["where"] == "home"
    assert end(job) == 0


def test_a_stopping_mosd_brings_its_own_home_and_sends_guests_to_theirs(
    cluster: Cluster,
) -> None:
    one, two = cluster.node(1), cluster.node(2)
    own, other = one.job(), two.job()
    moved_away(one, two, own.pid)
    guest = moved_away(two, one, other.pid)
    assert one.stop() == 0
    eventually(lambda: two.rows() != [] and len(two.rows()) == 1)
    eventually(lambda: is_dead(guest["pid"]))
    # The fake deputy has ended, too: what is left is who serves the listener of its job.
    eventually(lambda: len(one.processes()) == 2)
    one.start()
    assert end(own) == 0  # a job at home went on
    eventually(lambda: len(one.processes()) == 2)  # the new mosd and its spawner
    assert end(other) == 0
    # its cgroup is removed by the mosd that came after
    eventually(lambda: not list((one.run_dir / "jobs").iterdir()))


def test_a_node_with_another_secret_is_refused_by_name(cluster: Cluster) -> None:
    one = cluster.node(1)
    cluster.node(2, secret="quite another secret")
    done = one.mosix("mosctl", "status", "2")
    assert done.status == 8
    assert done.err == (
        "mosctl: node 127.0.0.3 refuses: wrong secret "
        "(the file secret must be the same on all nodes)\n"
    )


def test_a_node_of_another_version_is_refused_with_both_named(cluster: Cluster) -> None:
    """By both, whoever calls; and a process that should go there goes on where it is."""
    one = cluster.node(1)
    two = cluster.node(2, program=[str(HERE / "mosd_of_version_9.py")])
    ours, theirs = f"{PROTOCOL_VERSION}.{ABI_VERSION}", f"9.{ABI_VERSION}"
    done = one.mosix("mosctl", "status", "2")
    assert done.status == 8
    assert f"speaks protocol {theirs}, this node {ours}" in done.err
    assert f"speaks protocol {ours}, this node {theirs}" in two.log()
    done = two.mosix("mosctl", "status", "1")
    assert done.status == 8
    assert f"speaks protocol {ours}, this node {theirs}" in done.err
    assert f"speaks protocol {theirs}, this node {ours}" in one.log()
    job = one.job()
    done = one.mosix("migrate", job.pid, 2, "--wait")
    assert (done.status, theirs in done.err) == (8, True)
    assert one.row(job.pid)["where"] == "home"
    assert end(job) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cpu_features": ["sse2"]}, "its CPU lacks "),
        ({"xsave_size": 11008}, "its CPU saves 11008 bytes of extended state, home's "),
        ({"cpus": 1024}, "it numbers 1024 CPUs, home only "),
        ({"page_size": 65536}, "pages have 4096 bytes at home and 65536 there"),
    ],
)
def test_a_machine_that_cannot_run_the_program_refuses_before_it_makes_a_guest(
    changes: dict[str, object], reason: str, cluster: Cluster
) -> None:
    one = cluster.node(1)
    other = [str(HERE / "mosd_of_another_machine.py"), json.dumps(changes)]
    two = cluster.node(2, program=other)
    job = one.job()
    done = one.mosix("migrate", job.pid, 2, "--wait")
    assert done.status == 8, done
    assert reason in done.err and "(choose another node)" in done.err, done
    assert len(done.err.splitlines()) == 1
    row = one.row(job.pid)
    assert (row["where"], row["nmigs"]) == ("home", 0)
    assert two.rows() == []
    assert end(job) == 0


def test_a_node_that_is_not_in_the_map_is_refused(cluster: Cluster) -> None:
    one = cluster.node(1)
    cluster.node(2, map_text="1 127.0.0.3 1\n")
    done = one.mosix("mosctl", "status", "2")
    assert done.status == 8
    assert "127.0.0.2 is not in its mosix.map" in done.err


def test_a_node_takes_no_more_guests_than_its_owner_allows(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2, start=False)
    two.write_files()
    (two.directory / "maxguests").write_text("2\n")
    two.start()
    first, second, third = (one.job() for _ in range(3))
    for job in (first, second):
        moved_away(one, two, job.pid)
    refused = one.mosix("migrate", third.pid, 2, "--wait")
    assert refused.status == RefusedError.code
    assert "has 2 guests already and takes no more" in refused.err
    assert one.mosix("migrate", first.pid, "home", "--wait").status == 0
    eventually(lambda: len(two.rows()) == 1)
    moved_away(one, two, third.pid)
    assert [end(job) for job in (first, second, third)] == [0, 0, 0]


def test_unknown_and_dead_nodes_are_different_errors(cluster: Cluster) -> None:
    one = cluster.node(1)
    job = one.job()
    assert one.mosix("migrate", job.pid, "10.9.9.9").status == 6
    assert one.mosix("migrate", job.pid, 17).status == 6
    done = one.mosix("migrate", job.pid, 3, "--wait")
    assert done.status == 7
    assert done.err.startswith("migrate: node 127.0.0.4 does not answer: Connection refused (")
    assert "127.0.0.4 does not answer" in str(one.row(job.pid)["why"])
    assert end(job) == 0


def test_the_job_stays_home_when_the_remote_cannot_start(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    two.stop()
    two.options = ["--remote", "fake_workers:broken"]
    two.start()
    job = one.job()
    done = one.mosix("migrate", job.pid, 2, "--wait")
    assert done.status in (7, 8, 10, 13), done  # it dies before, between or after the dials
    assert one.row(job.pid)["where"] == "home"
    eventually(lambda: two.rows() == [])
    assert end(job) == 0


def connect(node: Node, source: str = "127.0.0.4") -> socket.socket:
    sock = socket.socket()
    sock.settimeout(15)
    sock.bind((source, 0))
    sock.connect((node.ip, node.port))
    return sock


def test_garbage_on_the_peer_port_is_closed_counted_and_logged_once(cluster: Cluster) -> None:
    node = cluster.node(1)
    random_bytes = random.Random(5)
    preamble = struct.pack("<6sHH32s", b"mosix\0", 1, 1, bytes(32))
    for size in (1, 42, 43, 1000, 100_000):
        for start in (b"", preamble):
            with connect(node) as sock:
                try:
                    sock.sendall(start + random_bytes.randbytes(size))
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(1 << 16):
                        pass
                except OSError:
                    pass  # mosd was faster to close
    with connect(node) as sock:
        sock.sendall(preamble + struct.pack("<I", 1 << 31))
        assert len(sock.recv(1 << 16, socket.MSG_WAITALL)) == 42
    status = node.mosix("mosctl", "status", "--json").out
    assert '"malformed":' in status
    assert node.log().count("127.0.0.4: malformed") == 1
    assert node.mosix("mosctl", "status").status == 0


def test_one_address_cannot_hold_more_than_its_share_of_connections(cluster: Cluster) -> None:
    node, other = cluster.node(1), cluster.node(2)
    before = node.descriptors()
    held = [connect(node) for _ in range(MAX_HALF_OPEN)]
    with connect(node) as surplus:
        assert surplus.recv(1) == b""
    assert other.mosix("mosctl", "status", "1").status == 0  # others are not kept out
    assert node.descriptors() <= before + MAX_HALF_OPEN + 4
    for sock in held:
        sock.close()
    eventually(lambda: node.descriptors() <= before)


def test_a_token_is_only_good_for_its_guest(cluster: Cluster) -> None:
    """Another node of the cluster, which knows the secret, invents a token."""
    one, two = cluster.node(1), cluster.node(2)
    three = cluster.node(3, start=False)
    job = one.job()
    moved_away(one, two, job.pid)
    dialer = Dialer(Settings(load(Paths(three.directory)), three.secret.encode()))

    async def attach() -> None:
        sock, _ = await dialer.dial(
            two.ip, "call", uid=0, gid=0, job="0" * 16, pid=job.pid, token=b"x" * 16
        )
        sock.close()

    with pytest.raises(RefusedError, match="not here any more"):
        asyncio.run(attach())
    assert end(job) == 0


def test_a_mosd_that_starts_removes_only_what_one_before_it_has_left(cluster: Cluster) -> None:
    """Another one in the same cgroup may be just about to fill its own."""
    one, two = cluster.node(1), cluster.node(2, start=False)
    top = Cgroups.detect().hierarchies[0].given
    theirs = top / f"mosixd.{group_prefix(one.run_dir / 'guests')}0123456789abcdef"
    left = top / f"mosixd.{group_prefix(two.run_dir / 'guests')}0123456789abcdef"
    for group in (theirs, left):
        group.mkdir()
    try:
        two.start()
        eventually(lambda: not left.exists())
        assert theirs.is_dir()
    finally:
        theirs.rmdir()
