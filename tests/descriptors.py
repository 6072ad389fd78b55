"""What a daemon has open, for tests that ask whether it leaves something open.

Files of /proc and of cgroups do not count: mosd keeps those open that it measures with
(`mosix.native.kept`), each from when it first reads it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def open_in(pid: int) -> list[str]:
    """Targets of its descriptors. FileNotFoundError if it is gone."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            links.append(os.readlink(Path(f"/proc/{pid}/fd", fd)))
    return [link for link in links if not link.startswith(("/proc/", "/sys/"))]
