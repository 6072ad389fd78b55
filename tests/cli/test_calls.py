"""`mosctl syscalls`: the table of system calls as everybody sees it, without mosd."""

from __future__ import annotations

import json
import subprocess
import sys

from mosix.cli import calls
from mosix.syscalls.shapes import Class
from mosix.syscalls.table import BY_NAME, TABLE


def syscalls(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mosix.cli.mosctl", "syscalls", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_every_call_is_listed_with_its_class() -> None:
    listed = {call["name"]: call for call in json.loads(syscalls("--json").stdout)}
    assert set(listed) == set(BY_NAME)
    for row in TABLE:
        assert listed[row.name]["where"] == calls.WHERE[row.cls][0]
        assert bool(listed[row.name]["reason"]) == (row.cls is Class.AT_HOME)


def test_reasons_are_those_that_mosps_shows() -> None:
    lines = syscalls("shmget", "mmap", "open", "prctl").stdout.splitlines()
    text = {line.split()[0]: line for line in lines}
    assert "System V shared memory" in text["shmget"]
    assert text["shmget"].split()[2] == "comes-home"
    assert "maps a file; locked or huge pages; or there; maps shared memory" in text["mmap"]
    assert "comes-home: reads its own maps" in text["open"]
    assert "comes-home: other requests" in text["prctl"]


def test_an_unknown_name_is_an_error() -> None:
    done = syscalls("open", "no_such_call")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no_such_call" in done.stderr


def test_what_is_not_listed_is_said_to_come_home() -> None:
    assert calls.OTHERS in syscalls().stdout
