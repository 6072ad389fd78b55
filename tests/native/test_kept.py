"""What is read every second is opened once, and never an old text."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from mosix.native.kept import KeptFiles


def open_files() -> set[str]:
    """Paths of what this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            continue  # that of the listing
    return found


def test_a_file_is_read_anew_from_one_descriptor_until_it_is_let_go(tmp_path: Path) -> None:
    file = tmp_path / "file"
    files = KeptFiles()
    for text in ("one", "another", "x" * 20_000):
        file.write_text(text)
        assert files.read(str(file)) == text
    file.rename(tmp_path / "elsewhere")
    assert len(files.read(str(file))) == 20_000  # no name is looked up again
    assert str(tmp_path / "elsewhere") in open_files()
    files.keep(set())
    assert str(tmp_path / "elsewhere") not in open_files()
    with pytest.raises(FileNotFoundError):
        files.read(str(file))


def test_of_a_process_that_has_ended_nothing_is_told_or_kept() -> None:
    files = KeptFiles()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        path = f"/proc/{process.pid}/schedstat"
        assert len(files.read(path).split()) == 3
    with pytest.raises(OSError):
        files.read(path)
    assert path not in open_files()
