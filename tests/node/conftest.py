"""The cluster of real mosds for the tests of this directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosd_nodes import Cluster


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("mosd must run as root")
    # Not pytest's own directory: that one lets only root through, and commands run as others.
    with tempfile.TemporaryDirectory(prefix="mosix-test-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        made = Cluster(path)
        yield made
        made.close()
