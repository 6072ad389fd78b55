"""tune measures a cluster and writes what mosd reads."""

from __future__ import annotations

import json
import sys

import pytest
from mosix.config.tuning import parse_tuning
from mosix.lab.drive import Cluster

TUNE = [sys.executable, "-m", "mosix.cli.tune"]


def test_tune_measures_and_writes_the_file_that_mosd_reads(lab: Cluster) -> None:
    file = lab[1].path("/etc/mosix/mostune")
    try:
        (found,) = json.loads(lab[1].check([*TUNE, "--write", "--json", "2"], timeout_s=300))
        assert (found["ip"], found["number"]) == (lab[2].ip, 2)
        assert found["latency_us"] > 1
        assert found["link_mb_s"] > 1
        assert all(value > 0 for value in found["costs"].values())
        text = file.read_text()
        tuning = parse_tuning(text, file, lambda name: name)
        assert tuning.of(lab[2].ip).call_us == pytest.approx(found["costs"]["call_us"], rel=0.01)
        assert tuning.lines[0][0] == lab[2].ip
    finally:
        file.unlink(missing_ok=True)
    assert lab[1].jobs() == []


def test_only_root_may_load_the_link(lab: Cluster) -> None:
    done = lab[1].run([*TUNE, "2"], user="nobody")
    assert (done.returncode, "only root" in done.stderr) == (4, True)
