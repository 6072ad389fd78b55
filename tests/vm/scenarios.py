"""A program in one machine that does scenarios with mosix.ko, and says how each went."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mosix.lab.drive import Cluster
from mosix.lab.kernels import kernel
from mosix.lab.programs import built_module

PROGRAMS = Path(__file__).resolve().parent / "programs"
#: of the machines
SERIES = ("6.1", "6.12")


class Scenarios:
    """programs/NAME in machine `number`, with the module for it and `arguments`."""

    def __init__(self, lab: Cluster, number: int, name: str, *arguments: str) -> None:
        module = str(built_module(kernel(SERIES[number - 1])))
        command = [sys.executable, str(PROGRAMS / name), module, *arguments]
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
            pytest.fail(said if isinstance(said, str) else f"left in the module: {said}")

    def end(self) -> None:
        """The module is unloaded, cleanly."""
        out, err = self._process.communicate(timeout=60)
        assert (self._process.returncode, out) == (0, '"unloaded"\n'), err
