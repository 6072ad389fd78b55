"""A lab without mosd, for the tests of the lab itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosix.lab import drive
from mosix.lab.drive import Cluster

# what a job is to a test is told once
sys.path.append(str(Path(__file__).resolve().parents[1] / "cluster"))


@pytest.fixture(scope="module")
def pair() -> Iterator[Cluster]:
    """Two nodes without mosd."""
    name = f"t{os.getpid()}-pair"
    cluster = Cluster.up(name, 2, "--no-mosd", "--memory-mb=256")
    yield cluster
    drive.down(name)
