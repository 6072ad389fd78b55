"""What the attackers' tests have: a lab of their own with the rules of tests/cluster, and mosds
beside each other with those of tests/node. Whatever an attacker does, a test leaves nothing."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosix.lab.drive import Cluster as Lab

_TESTS = Path(__file__).resolve().parent.parent
for part in ("cluster", "node", "image"):
    if str(_TESTS / part) not in sys.path:
        sys.path.append(str(_TESTS / part))

import mosd_nodes  # noqa: E402 - of tests/node

_spec = importlib.util.spec_from_file_location("cluster_rules", _TESTS / "cluster" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_rules = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_rules)

start = _rules.start
nodes_as_before = _rules.nodes_as_before
pytest_runtest_makereport = _rules.pytest_runtest_makereport


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Three nodes; n1 is home."""
    if os.geteuid() != 0:
        pytest.skip("a lab needs root")
    yield from _rules.a_lab("security")


@pytest.fixture
def cluster() -> Iterator[mosd_nodes.Cluster]:
    """Mosds on 127.0.0.2 and further."""
    if os.geteuid() != 0:
        pytest.skip("mosd must run as root")
    with tempfile.TemporaryDirectory(prefix="mosix-test-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        made = mosd_nodes.Cluster(path)
        yield made
        made.close()
