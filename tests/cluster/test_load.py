"""What a node measures is its own: neighbours on the same machine do not load it."""

from __future__ import annotations

import json
from typing import Any

from mosix.lab import drive
from mosix.lab.drive import Cluster


def load_of(lab: Cluster, number: int) -> dict[str, Any]:
    status = json.loads(lab[1].check(["mosctl", "status", str(number), "--json"]))
    load: dict[str, Any] = status["load"] or {"running": -1}
    return load


def test_loading_one_node_leaves_another_idle(lab: Cluster) -> None:
    drive.wait_for("node 2 idle", lambda: 0 <= load_of(lab, 2)["running"] < 0.2)
    spinning = lab[1].popen(["sh", "-c", "while :; do :; done"])
    try:
        drive.wait_for("node 1 loaded", lambda: load_of(lab, 1)["running"] > 0.8)
        loaded, idle = load_of(lab, 1), load_of(lab, 2)
        assert loaded["dilation"] >= 1.0
        assert idle["running"] < 0.5
        shown = lab[2].check(["mosctl", "status"])
        assert "processes run or want to" in shown
    finally:
        drive.kill_command(spinning)
        spinning.communicate()
    drive.wait_for("node 1 idle again", lambda: load_of(lab, 1)["running"] < 0.5)


def _restart(lab: Cluster) -> None:
    lab[2].mosd("stop")
    lab[2].mosd("start")


def test_the_owner_may_say_the_speed(lab: Cluster) -> None:
    file = lab[2].path("/etc/mosix/speed")
    measured = load_of(lab, 2).get("speed", 0)
    file.write_text("4321\n")
    try:
        _restart(lab)
        drive.wait_for("4321", lambda: load_of(lab, 2).get("speed") == 4321)
    finally:
        file.unlink()
        _restart(lab)
    drive.wait_for("as before", lambda: load_of(lab, 2).get("speed") == measured)
