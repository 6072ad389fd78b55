"""The manual pages say what the commands do, and roff has nothing to complain about."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mosix.cli import mosctl
from mosix.errors import EXIT_CODES
from mosix.syscalls.table import TABLE

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "man").glob("*.[1-9]"))


def text_of(page: str) -> str:
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-P-cbou", "-rLL=200n", str(ROOT / "man" / page)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_pages_are_those_that_the_commands_make_now() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "manpages.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_command_has_its_page() -> None:
    assert {page.name for page in PAGES} == {
        "bestnode.1", "mosrun.1", "migrate.1", "mosps.1", "mosctl.1", "mosix-lab.1", "mosd.8",
        "mosix.7", "mosconf.8", "setpe.8", "mon.1", "tune.1",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_roff_is_correct(page: Path) -> None:
    """As `man --warnings -l` asks groff."""
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", str(page)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_mosix_7_has_exit_codes_port_files_and_every_system_call() -> None:
    text = text_of("mosix.7")
    for code, summary in EXIT_CODES.items():
        assert re.search(rf"^ +{code} +{re.escape(summary)}$", text, re.M)
    words = set(re.findall(r"[\w./]+", text))
    assert {row.name for row in TABLE} <= {word.rstrip(".") for word in words}
    assert {"249/tcp", "/etc/mosix/mosix.map", "/etc/mosix/secret", "MOSIX_RUN_DIR"} <= words


def test_options_and_subcommands_are_explained() -> None:
    text = text_of("mosctl.1")
    assert all(f"mosctl {name} [OPTIONS]" in text for name in mosctl.main.commands)
    assert "Options of MOSIX that this version refuses" in text_of("mosrun.1")
    assert "--stop-timeout SECONDS" in text_of("mosd.8")
