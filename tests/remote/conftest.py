"""Fixtures of the redirector's tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from served import Kit


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No descriptor, thread or child survives a test."""
    before = set(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    yield
    left = set(os.listdir("/proc/self/fd")) - before
    assert len(left) <= 1, f"descriptors left: {left}"  # listdir's own may differ
    names = [t.name for t in threading.enumerate() if t.name == "redirector"]
    assert not names, (names, threads)
