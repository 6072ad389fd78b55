"""Each node of a cluster knows what the others have to do, without asking them."""

from __future__ import annotations

import json

from mosix.lab import drive
from mosix.lab.drive import Cluster


def known(lab: Cluster, number: int) -> dict[int, dict[str, float]]:
    found = json.loads(lab[number].check(["mosctl", "status", "--json"]))["known"]
    return {node["number"]: node for node in found if node["state"] == "alive"}


def test_a_busy_node_is_busy_for_the_others_and_an_idle_one_is_not(lab: Cluster) -> None:
    spin = lab[1].popen(["sh", "-c", "while :; do :; done"])
    try:
        drive.wait_for("n2 to know", lambda: known(lab, 2).get(1, {}).get("running", 0) > 0.5)
        drive.wait_for("n1 to know", lambda: known(lab, 1).get(2, {}).get("running", 9) < 0.5)
    finally:
        drive.kill_command(spin)
        spin.communicate()
