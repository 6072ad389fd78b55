"""What a real process would take of another node is what its kernel says of it."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from mosix.deputy.needs import needs_of
from mosix.image import capture, maps
from mosix.wire.messages import Needs

MEBI = 1 << 20
_PROGRAM = f"""
import mmap, resource, sys
used = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE)
for at in range(0, len(used), 4096):
    used[at] = 1
untouched = mmap.mmap(-1, 96 << 20, flags=mmap.MAP_PRIVATE)
reserved = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | 0x4000, prot=0)
resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, {64 * MEBI}))
print('ready', flush=True)
sys.stdin.read()
"""


def needs(pid: int) -> Needs:
    mappings = maps.read_mappings(pid)
    return needs_of(pid, mappings, capture.page_runs(pid, [m.vma for m in mappings]))


def test_memory_promises_mappings_and_limits_are_counted() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        found = needs(process.pid)
        lines = Path(f"/proc/{process.pid}/maps").read_text().count("\n")
    assert 8 * MEBI < found.memory < 96 * MEBI
    assert 104 * MEBI < found.promised < 1 << 30  # not what may not be touched at all
    assert found.largest >= 96 * MEBI
    assert found.mappings == lines
    assert found.rlimits[resource.RLIMIT_STACK] == 64 * MEBI
    assert found.rlimits[resource.RLIMIT_AS] == resource.getrlimit(resource.RLIMIT_AS)[1]


def test_a_process_that_has_ended_is_told() -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        needs_of(process.pid, [], [])
