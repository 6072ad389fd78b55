"""What root orders a node with mosctl and setpe: who may, what is refused, what is kept."""

from __future__ import annotations

import json
import os
import signal
import socket

import pytest
from mosd_nodes import NOBODY, Cluster, Done, Node, end, eventually

SAYINGS = ("stay", "nostay", "lstay", "nolstay", "block", "noblock", "logmap", "nologmap")
ORDERS = [
    *((word,) for word in SAYINGS),
    ("expel",),
    ("bring",),
    ("drain",),
    ("nodrain",),
    ("shutdown",),
]


def status(node: Node, *which: str) -> dict[str, object]:
    done = node.mosix("mosctl", "status", "--json", *which)
    assert done.status == 0, done
    found: dict[str, object] = json.loads(done.out)
    return found


def setpe(node: Node, *options: str, uid: int = 0) -> Done:
    return node.mosix("setpe", *options, uid=uid)


def test_only_root_says_what_a_node_does(cluster: Cluster) -> None:
    one = cluster.node(1)
    before = status(one)["owner"]
    for order in ORDERS:
        done = one.mosix("mosctl", *order, uid=NOBODY)
        assert done.status == 4, (order, done)
        assert done.err.startswith("mosctl: only root may "), done
        assert done.err.count("\n") == 1
    assert one.mosix("mosctl", "drain", "2", uid=NOBODY).status == 4
    assert setpe(one, uid=NOBODY).status == setpe(one, "-off", uid=NOBODY).status == 4
    assert status(one)["owner"] == before == []
    assert one.mosix("mosctl", "rstatus", uid=NOBODY).out == "3\n"


def test_orders_need_a_mosd(cluster: Cluster) -> None:
    one = cluster.node(1, start=False)
    for order in ORDERS:
        assert one.mosix("mosctl", *order).status == 3
    assert setpe(one).status == 3


def test_what_the_owner_says_is_seen_everywhere_and_outlives_mosd(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    for word, number in (("block", 19), ("stay", 23), ("lstay", 31)):
        assert one.mosix("mosctl", word).out == ""
        assert one.mosix("mosctl", "rstatus").out == f"{number}\n"
    assert one.mosix("mosctl", "block").out == "it was said already\n"
    assert two.mosix("mosctl", "rstatus", "1").out == "31\n"
    assert "owner    says block, stay, lstay\n" in two.mosix("mosctl", "status", "1").out
    one.stop()
    one.start()
    assert status(two, "1")["owner"] == ["block", "stay", "lstay"]
    for word in ("noblock", "nostay", "nolstay", "nologmap"):
        one.mosix("mosctl", word)
    assert status(one)["owner"] == ["nologmap"]
    assert one.mosix("mosctl", "rstatus").out == "3\n"


def test_a_node_that_is_blocked_refuses_guests_and_says_why(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    job = one.job()
    assert two.mosix("mosctl", "block").status == 0
    refused = one.mosix("migrate", "--wait", job.pid, "2")
    assert refused.status == 8
    assert f"node {two.ip} refuses: its owner takes no guests now" in refused.err
    assert two.mosix("mosctl", "noblock").status == 0
    assert one.mosix("migrate", "--wait", job.pid, "2").status == 0
    assert end(job) == 0


def test_nodes_that_are_unknown_or_down_are_not_drained(cluster: Cluster) -> None:
    one = cluster.node(1)
    assert one.mosix("mosctl", "drain", "9").status == 6
    assert one.mosix("mosctl", "nodrain", "10.1.1.1").status == 6
    assert one.mosix("mosctl", "drain", "2").status == 7
    assert one.mosix("mosctl", "drain", "--deadline", "-1").status == 2


def test_a_drained_node_keeps_its_own_and_takes_nobody(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    job, other = one.job(), two.job()
    assert one.mosix("migrate", "--wait", job.pid, "2").status == 0
    drained = two.mosix("mosctl", "drain", "1", "--deadline", "30", "--json")
    assert drained.status == 0, drained
    done = json.loads(drained.out)
    assert (done["guests"], done["own"], done["left"]) == (0, 1, [])
    assert one.row(job.pid)["where"] == "home"
    away = one.mosix("migrate", "--wait", job.pid, "2")
    assert away.status == 8
    assert "this node is drained" in away.err
    assert two.mosix("migrate", "--wait", other.pid, "1").status == 8
    assert two.mosix("mosctl", "rstatus", "1").out == "27\n"
    assert two.mosix("mosctl", "nodrain", "1").status == 0
    assert one.mosix("migrate", "--wait", job.pid, "2").status == 0
    assert two.mosix("migrate", "--wait", other.pid, "1").status == 0
    assert end(job) == end(other) == 0


def test_setpe_takes_a_changed_map_and_names_what_has_changed(cluster: Cluster) -> None:
    one = cluster.node(1, map_text="127.0.0.2 1\n")
    two = cluster.node(2, map_text="127.0.0.2 1\n127.0.0.3 1\n")
    assert one.mosix("mosctl", "whois", "127.0.0.3").status == 6
    assert two.mosix("mosctl", "status", "127.0.0.2").status == 8  # not in its map
    (one.directory / "mosix.map").write_text("1 127.0.0.2 2\n")
    done = setpe(one)
    assert (done.status, done.out) == (0, "2 nodes in the map: 1 added, 0 removed\n")
    assert one.mosix("mosctl", "status", "2").status == 0
    assert two.mosix("mosctl", "status", "127.0.0.2").status == 0
    assert "the map has changed: 1 nodes added" in one.log()
    assert setpe(one).out == "2 nodes in the map: 0 added, 0 removed\n"
    (one.directory / "mosix.map").write_text("1 127.0.0.2 1\n")
    assert one.process is not None
    one.process.send_signal(signal.SIGHUP)
    eventually(lambda: one.mosix("mosctl", "whois", "2").status == 6)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mosix.map", "127.0.0.2 x\n", "mosix.map, line 1: the number of nodes must be a number"),
        ("mosix.map", "127.0.0.3 2\n", "mosip, line 1: 127.0.0.2 is not in"),
        ("mosix.map", None, "mosix.map: No such file"),
        ("userview.map", "1 127.0.0.2 1\n1 127.0.0.3 1\n", "userview.map, line 2: node numbers"),
        ("maxguests", "many\n", "maxguests, line 1: "),
        ("speed", "0\n", "speed, line 1: "),
        ("secret", "short\n", "secret: shorter than 16"),
        ("mosip", "127.0.0.3\n", "own address is 127.0.0.3 now, and mosd runs with 127.0.0.2"),
        ("ports", "peer 1\n", "port is 1 now, and mosd runs with"),
    ],
)
def test_a_wrong_file_leaves_the_last_good_configuration_in_force(
    name: str, text: str | None, said: str, cluster: Cluster
) -> None:
    one = cluster.node(1, map_text="127.0.0.2 2\n")
    path = one.directory / name
    before = path.read_text() if path.exists() else None
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    refused = setpe(one)
    assert refused.status == 11
    assert said in refused.err
    assert said in str(status(one)["problem"])
    assert "files    are not what is in force: " in one.mosix("mosctl", "status").out
    assert "the last good configuration stays in force" in one.log()
    assert len(one.mosix("mosctl", "localstatus", "--json").out) > 2
    assert one.mosrun("true").status == 0
    if before is None:
        path.unlink()
    else:
        path.write_text(before)
    assert setpe(one).status == 0
    assert status(one)["problem"] == ""


def test_limits_and_speed_and_secret_are_taken_while_mosd_runs(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    job, other = one.job(), one.job()
    (two.directory / "maxguests").write_text("1\n")
    (two.directory / "speed").write_text("4321\n")
    (two.directory / "myfeatures").write_text("blue\n")
    assert setpe(two).status == 0
    assert one.mosix("migrate", "--wait", job.pid, "2").status == 0
    refused = one.mosix("migrate", "--wait", other.pid, "2")
    assert refused.status == 8
    assert "it has 1 guests already" in refused.err
    assert status(one, "2")["topology"] == ["blue"]
    eventually(lambda: '"speed":4321' in one.mosix("mosctl", "status", "2", "--json").out, 40)
    (two.directory / "secret").write_text("quite another secret\n")
    assert setpe(two).status == 0
    assert one.mosix("mosctl", "status", "2").status == 8
    (one.directory / "secret").write_text("quite another secret\n")
    assert setpe(one).status == 0
    assert one.mosix("mosctl", "status", "2").status == 0
    assert one.mosix("migrate", "--wait", job.pid, "home").status == 0
    assert end(job) == end(other) == 0


def test_setpe_off_is_kept_until_setpe(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    job = one.job()
    assert one.mosix("migrate", "--wait", job.pid, "2").status == 0
    off = setpe(one, "-off")
    assert off.status == 0, off
    assert off.out.startswith("off: this node is alone")
    assert "1 own process came home" in off.out
    assert one.row(job.pid)["where"] == "home"
    refused = one.mosix("migrate", job.pid, "2")
    assert refused.status == 6
    assert "this node is off" in refused.err
    assert "it is off: it belongs to no cluster" in two.mosix("mosctl", "status", "1").err
    assert end(job) == 0
    one.stop()
    one.start()
    assert status(one)["owner"] == ["off"]
    assert one.mosrun("true").status == 0
    assert setpe(one).status == 0
    assert one.mosix("mosctl", "status", "2").status == 0
    assert two.mosix("mosctl", "status", "1").status == 0


def test_shutdown_ends_mosd_and_the_next_one_is_not_drained(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    job = one.job()
    assert one.mosix("migrate", "--wait", job.pid, "2").status == 0
    done = one.mosix("mosctl", "shutdown")
    assert done.status == 0, done
    assert "1 own process came home" in done.out
    assert one.process is not None
    assert one.process.wait(40) == 0
    one.process = None
    assert os.path.exists(f"/proc/{job.pid}")
    assert two.mosix("mosctl", "rstatus", "1").out == "1\n"
    assert end(job) == 0
    one.start()
    assert status(one)["owner"] == []


def test_a_whole_job_moves_by_its_number(cluster: Cluster) -> None:
    one, two = cluster.node(1), cluster.node(2)
    job, other = one.job(uid=NOBODY), one.job()
    number = str(one.row(job.pid)["job"])
    moved = one.mosix("migrate", f"-j{number[:12]}", "2", "--wait", uid=NOBODY)
    assert (moved.status, moved.out) == (0, f"{job.pid}: moved: frozen for 1.5 ms\n")
    assert one.row(job.pid)["where"] == two.ip
    assert one.row(other.pid)["where"] == "home"
    stranger = one.mosix("migrate", f"-j{one.row(other.pid)['job']}", "2", uid=NOBODY)
    assert stranger.status == 4
    assert one.mosix("migrate", "-jx", "2").status == 5
    assert one.mosix("migrate", f"-j{number}", "9").status == 6
    assert one.mosix("migrate", "-j", number).status == 2
    failed = one.mosix("migrate", f"-j{number}", "3", "--wait")
    assert failed.status == 7
    assert failed.out.startswith(f"{job.pid}: node 127.0.0.4 does not answer")
    assert one.mosix("migrate", f"-j{number}", "home", "--wait").status == 0
    assert end(job) == end(other) == 0


def test_the_system_log_tells_of_each_mosrun_and_move_while_it_is_asked_to(
    cluster: Cluster,
) -> None:
    device = cluster.directory / "devlog"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(device))
        log.settimeout(20)
        one = cluster.node(1, options=["--syslog", str(device)])
        two = cluster.node(2)
        assert one.mosrun("true").status == 0
        switch = one.directory / ".log_mosrun"
        switch.touch()
        job = one.job("-G3", uid=NOBODY)
        number = one.row(job.pid)["job"]
        who = f"uid {NOBODY}, process {job.pid}, job {number}"

        def said() -> str:
            tag, _, text = log.recv(4096).decode().partition(": ")
            assert tag.startswith("<30>mosix[")
            return text

        assert said() == f"mosrun: {who}: cat"
        assert one.mosix("migrate", "--wait", job.pid, "2").status == 0
        assert said() == f"migration: {who} to node {two.ip}"
        assert one.mosix("migrate", "--wait", job.pid, "home").status == 0
        assert said() == f"migration: {who} home"
        switch.unlink()
        assert one.mosix("migrate", "--wait", job.pid, "2").status == 0
        assert end(job) == 0
        log.setblocking(False)
        with pytest.raises(BlockingIOError):
            log.recv(4096)
    switch.touch()
    assert one.mosrun("true").status == 0  # nobody listens there, and nobody waits for it
    assert str(device) in one.log()
