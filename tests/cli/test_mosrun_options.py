"""Options of mosrun: parsed without printing, exiting or guessing."""

from __future__ import annotations

from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mosix.cli.mosrun import LATER, Parsed, parse
from mosix.errors import LAUNCH_FAILED


def words(text: str) -> list[bytes]:
    return [word.encode() for word in text.split()]


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        ("ls -l", Parsed(program=0)),
        ("-h ls", Parsed(program=1)),
        ("-3 -F ls -F", Parsed(program=2, node="3", fallback=True)),
        ("-10.0.0.2 -L ls", Parsed(program=2, node="10.0.0.2", changes={"lock": 1})),
        ("-rn2 -l ls", Parsed(program=2, node="n2", changes={"lock": 0})),
        ("-FLrn2 ls", Parsed(program=1, node="n2", fallback=True, changes={"lock": 1})),
        ("--no-interface -- -x", Parsed(program=2, interface=False)),
        ("-L - x", Parsed(program=1, changes={"lock": 1})),
        ("-G ls -G7", Parsed(program=1, changes={"job_class": 1})),
        ("-G5 -u ls", Parsed(program=2, changes={"job_class": 5, "unsupportok": 0})),
        ("-e -m100 ls", Parsed(program=2, changes={"unsupportok": 1, "needmem": 100})),
        ("-wn ls", Parsed(program=1, changes={"unsupportok": 2, "cpujob": 0})),
        ("-c -d 10000 ls", Parsed(program=3, changes={"cpujob": 1, "decayrate": 10000})),
        ("-bm100 ls", Parsed(program=1, best=True, changes={"needmem": 100})),
        ("-z ls -l", Parsed(program=1, own_name=True)),
        ("-j7 -F ls", Parsed(program=2, node="7", fallback=True)),
    ],
)
def test_the_manuals_options_are_understood(line: str, parsed: Parsed) -> None:
    assert parse(words(line), 80) == parsed


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-h",
        "-h -3 ls",
        "-L -l ls",
        "-3 -4.5.6.7 -rx",
        "--nope ls",
        "-q ls",
        "-Fq ls",
        "-b -3 ls",
        "-c -n ls",
        "-m262144 ls",
        "-d -1 ls",
        "-G99999999999 ls",
        "-j ls",
        "-j3-1 ls",
        "-j0 ls",
        "-j1-65536 ls",
        "-j1,,2 ls",
        "-j1 -h ls",
        "-z ls",
    ],
)
def test_mistakes_are_one_line_and_125(line: str) -> None:
    parsed = parse(words(line), 80)
    assert parsed.status == LAUNCH_FAILED
    assert parsed.text is not None
    assert parsed.text.startswith("mosrun: ")
    assert parsed.text.count("\n") == 1


def test_j_chooses_among_all_its_numbers() -> None:
    assert {parse(words("-j1-2,5,2-3 ls"), 80).node for _ in range(200)} == {"1", "2", "3", "5"}


@pytest.mark.parametrize("letter", LATER)
def test_options_of_later_versions_are_refused_by_name(letter: str) -> None:
    parsed = parse(words(f"-{letter}5 ls"), 80)
    assert parsed.status == LAUNCH_FAILED
    assert parsed.text is not None
    assert f"option -{letter}: {LATER[letter]}: not supported yet" in parsed.text


def test_it_tells_its_version() -> None:
    assert parse(words("-3 --version"), 80).text == f"mosrun {metadata.version('mosix')}\n"
    assert parse(words("ls --version"), 80).text is None


def test_help_lists_what_is_accepted_and_what_is_refused() -> None:
    text = " ".join((parse(words("--help"), 80).text or "").split())
    accepted, refused = text.split("are not supported yet and are refused")
    assert all(f" -{letter} " in accepted for letter in "hrjFLlmdcnewu")
    assert all(f"{shown} " in accepted for shown in ("-{node}, -{a.b.c.d}", "-G[{class}]"))
    assert "--node" not in text
    assert "--class" not in text
    assert all(f" -{letter}" in refused for letter in LATER)


@given(st.lists(st.binary(max_size=8).filter(lambda word: b"\0" not in word), max_size=6))
def test_any_words_give_a_program_or_a_complaint(argv: list[bytes]) -> None:
    parsed = parse(argv, 80)
    if parsed.text is None:
        assert 0 <= parsed.program < len(argv)
    elif parsed.status:
        assert parsed.status == LAUNCH_FAILED
        parsed.text.encode()
