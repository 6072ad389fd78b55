"""systemd/mosd.service says what mosd needs."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mosix.errors import ConfigError, KernelError, PermissionDeniedError, UsageError
from mosix.node.mosd import STOP_S
from mosix.remote.cgroup import GUEST_CPU_WEIGHT, LEAF

UNIT = Path(__file__).resolve().parents[2] / "systemd" / "mosd.service"


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


@pytest.fixture
def service(unit: configparser.ConfigParser) -> configparser.SectionProxy:
    return unit["Service"]


def test_mosd_starts_at_boot_once_it_is_enabled(unit: configparser.ConfigParser) -> None:
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    assert unit["Unit"]["After"] == "network-online.target"


def test_mosd_announces_itself_and_is_started_again(service: configparser.SectionProxy) -> None:
    assert (service["Type"], service["Restart"]) == ("notify", "on-failure")
    hopeless = {
        error.code for error in (UsageError, PermissionDeniedError, ConfigError, KernelError)
    }
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == hopeless


def test_a_mosd_that_stands_still_is_started_again(service: configparser.SectionProxy) -> None:
    """Its pings come from the process that the unit starts."""
    assert float(service["WatchdogSec"]) >= 2 * STOP_S
    assert (service["NotifyAccess"], service["Restart"]) == ("main", "on-failure")


def test_a_stop_leaves_time_and_workers_to_come_home(service: configparser.SectionProxy) -> None:
    assert float(service["TimeoutStopSec"]) > STOP_S
    assert service["KillMode"] == "process"


def test_guests_stand_back_behind_all_that_is_the_owners(
    service: configparser.SectionProxy,
) -> None:
    """A weight deeper in the tree would only count among mosd's own."""
    slices = configparser.ConfigParser(interpolation=None)
    slices.read(UNIT.with_name(service["Slice"]))
    assert int(slices["Slice"]["CPUWeight"]) == GUEST_CPU_WEIGHT
    assert "-" not in service["Slice"]  # so it is beside user.slice and system.slice


def test_it_begins_where_version_2_of_cgroups_lets_it(service: configparser.SectionProxy) -> None:
    """Also beside the guests of a mosd that was killed."""
    assert service["Delegate"] == "yes"
    assert service["DelegateSubgroup"] == LEAF


def test_systemd_understands_it(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    copy = tmp_path / "mosd.service"
    (tmp_path / "mosix.slice").write_text(UNIT.with_name("mosix.slice").read_text())
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/mosd", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Before systemd 254 it is not known, and left out.
    said = [line for line in done.stderr.splitlines() if "'DelegateSubgroup'" not in line]
    assert (done.returncode, said) == (0, [])
