"""What nodes know of each other by gossip, as `mosctl status` shows it."""

from __future__ import annotations

import json
import socket

from mosd_nodes import Cluster, Node, eventually
from mosix.balancer.gossip_wire import MAX_DATAGRAM
from mosix.node.gossip import GROUP, group_of


def known(node: Node) -> dict[str, dict[str, object]]:
    done = node.mosix("mosctl", "status", "--json")
    assert done.status == 0, done
    return {row["ip"]: row for row in json.loads(done.out)["known"]}


def state_of(node: Node, other: Node) -> object:
    return known(node).get(other.ip, {}).get("state")


def test_nodes_know_each_others_load_and_a_stopped_one_says_goodbye(cluster: Cluster) -> None:
    one, two = (cluster.node(k, map_text="1 127.0.0.2 2\n") for k in (1, 2))
    (two.directory / "speed").write_text("23456\n")
    two.stop()
    two.start()
    eventually(lambda: state_of(one, two) == state_of(two, one) == "alive", 40)
    # until it has measured itself for a second it says nothing that would invite anybody
    eventually(lambda: known(one)[two.ip]["speed"] == 23456, 40)
    row = known(one)[two.ip]
    assert row["number"] == 2
    assert row["cores"] >= 1  # type: ignore[operator]
    assert 0 < row["free_mb"] <= row["memory_mb"]  # type: ignore[operator]
    shown = one.mosix("mosctl", "status").out
    assert f"knows    {two.ip} (node 2): alive" in shown
    two.stop()
    eventually(lambda: state_of(one, two) == "left", 40)
    assert f"{two.ip} (node 2): left" in one.mosix("mosctl", "status").out
    two.start()
    eventually(lambda: state_of(one, two) == "alive", 40)


def test_who_does_not_know_the_secret_is_not_heard_and_that_is_counted(cluster: Cluster) -> None:
    one = cluster.node(1)
    two = cluster.node(2, secret="another secret, long enough")
    address = (one.ip, one.port)

    def turned_away() -> set[str]:
        counters = json.loads(one.mosix("mosctl", "status", "--json").out)["counters"]
        return {reason for reason in counters if reason.startswith("gossip")}

    eventually(lambda: turned_away() == {"gossip forged"}, 40)
    two.stop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((two.ip, two.port))
        for size in (0, 1, MAX_DATAGRAM, MAX_DATAGRAM + 1, 9000):
            sock.sendto(b"x" * size, address)
    eventually(lambda: turned_away() == {"gossip forged", "gossip size"}, 40)
    assert known(one) == {}


def test_a_large_map_gossips_in_groups_of_neighbours() -> None:
    ips = [f"10.0.{k >> 8}.{k & 255}" for k in range(3000)]
    group = group_of(ips, "10.0.8.0")
    assert len(group) == 3000 - 2 * GROUP
    assert group == group_of(ips, ips[-1])
    assert len(group_of(ips, ips[0])) == GROUP
    assert group_of(["10.0.0.1"], "10.0.0.9") == [(10 << 24) + 1, (10 << 24) + 9]
