"""What docs/commands.md and --help say is what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from mosix.cli import lab, mosctl
from mosix.config import DEFAULT_PEER_PORT
from mosix.errors import EXIT_CODES, LAUNCH_FAILED, NOT_EXECUTABLE, NOT_FOUND

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|$", PAGE, re.M))
    expected = {str(code): text for code, text in EXIT_CODES.items()}
    assert {code: rows.get(code) for code in expected} == expected
    assert {str(LAUNCH_FAILED), str(NOT_EXECUTABLE), str(NOT_FOUND)} <= set(rows)


def test_the_port_is_the_documented_one() -> None:
    assert re.search(rf"\| {DEFAULT_PEER_PORT}/tcp \|", PAGE)


@pytest.mark.parametrize("name", ["migrate", "mon", "mosctl", "mosd", "mosps"])
def test_commands_tell_their_version(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"mosix.cli.{name}", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"{name} {metadata.version('mosix')}\n"


@pytest.mark.parametrize(("module", "name"), [("mosctl", "mosctl"), ("lab", "mosix-lab")])
def test_without_a_subcommand_it_says_so_in_one_line(module: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"mosix.cli.{module}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{name}: Missing command ({name} --help explains)\n"


@pytest.mark.parametrize(
    "words",
    [
        "bestnode",
        "migrate",
        "mosctl",
        *(f"mosctl {sub}" for sub in mosctl.main.commands),
        "mosd",
        "mosps",
        "lab",
        *(f"lab {sub}" for sub in lab.lab.commands),
    ],
)
def test_help_shows_every_exit_code_or_where_they_are(words: str) -> None:
    name, *sub = words.split()
    done = subprocess.run(
        [sys.executable, "-m", f"mosix.cli.{name}", *sub, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    if words != "mosctl":
        assert "mosctl --help lists the others" in done.stdout
        return
    for code in EXIT_CODES:
        assert re.search(rf"^  {code} ", done.stdout, re.M)
