"""mosix.ko finds and sends a process's memory, and tells everyone of processes, on both kernels.

programs/capturing.py does it in the machine, one scenario at a time; here they are named. In the
end the module is unloaded with somebody still in /proc/mosix, and nothing is left of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mosix.lab.drive import Cluster
from mosix.lab.kernels import kernel
from mosix.lab.programs import built_module

PROGRAM = Path(__file__).resolve().parent / "programs" / "capturing.py"
SERIES = ("6.1", "6.12")


class Capturing:
    """programs/capturing.py in one machine."""

    def __init__(self, lab: Cluster, number: int) -> None:
        command = [sys.executable, str(PROGRAM), str(built_module(kernel(SERIES[number - 1])))]
        pipe = subprocess.PIPE
        self._process: subprocess.Popen[Any] = lab[number].popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe
        )
        assert self._answer() == "ready"

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            pytest.fail(f"ended with {self._process.wait()}: {self._process.stderr.read()}")
        return json.loads(line)

    def __call__(self, scenario: str, *numbers: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join([scenario, *map(str, numbers)]) + "\n")
        self._process.stdin.flush()
        if (said := self._answer()) is not None:
            pytest.fail(said)

    def end(self) -> None:
        """The module is unloaded, cleanly."""
        out, err = self._process.communicate(timeout=60)
        assert (self._process.returncode, out) == (0, '"unloaded"\n'), err


@pytest.fixture(scope="module", params=[1, 2], ids=list(SERIES))
def capturing(request: pytest.FixtureRequest, lab: Cluster) -> Iterator[Capturing]:
    capturing = Capturing(lab, request.param)
    yield capturing
    capturing.end()


@pytest.mark.parametrize(
    "scenario",
    [
        "mappings_are_those_of_proc",
        "pages_are_those_of_proc",
        "images_are_those_of_proc",
        "signals_do_not_cut_what_is_sent",
        "only_the_tracer_may_look",
        "everyone_reads_what_root_has_told",
    ],
)
def test_scenario(scenario: str, capturing: Capturing) -> None:
    capturing(scenario)


def test_rounds_of_dirty_pages_miss_nothing(capturing: Capturing, full: bool) -> None:
    capturing("rounds_of_dirty_pages_miss_nothing", 30 if full else 3)


def test_nonsense_about_memory_does_no_harm(capturing: Capturing, full: bool) -> None:
    capturing("nonsense_about_memory_does_no_harm", 100_000 if full else 1000)
