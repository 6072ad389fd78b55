"""docs/kernel-facts.md: each fact that the code relies on is kept by a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_manual_coverage import names_in

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "kernel-facts.md").read_text()
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
_BENCH = re.compile(r"`bench ([a-z]\w*)`")
_LATER = re.compile(r"later: \w[\w -]*")


def rows() -> list[list[str]]:
    """Fact, consequence and what keeps it, of every row."""
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [row for row in cells if row[0] != "fact" and set(row[0]) != {"-"}]


def wrong(answer: str) -> str:
    """What is wrong with what keeps a fact, or ""."""
    if _LATER.fullmatch(answer):
        return ""
    for part in answer.split(", "):
        if found := _TEST.fullmatch(part):
            if not (ROOT / found[1]).is_file() or found[2] not in names_in(found[1]):
                return f"there is no {part}"
        elif not _BENCH.fullmatch(part):
            return f"neither a test nor a benchmark nor later: {part!r}"
    return ""


def test_every_fact_has_a_consequence_and_a_test_that_exists() -> None:
    assert len(rows()) > 70
    bad = [row for row in rows() if len(row) != 3 or not all(row) or wrong(row[2])]
    assert not bad, [(row[0], wrong(row[-1])) for row in bad]


def test_no_fact_is_there_twice() -> None:
    facts = [row[0] for row in rows()]
    assert len(facts) == len(set(facts))


def test_named_benchmarks_exist() -> None:
    known = set(re.findall(r'@benchmark\("(\w+)"', "".join(map(Path.read_text, _sources()))))
    assert set(_BENCH.findall(PAGE)) <= known


def _sources() -> list[Path]:
    return sorted((ROOT / "bench").glob("*.py"))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "later",
        "later:",
        "`tests/native/test_inject.py::test_no_such`",
        "`tests/no_such.py::test_x`",
        "tests/native/test_inject.py::test_errors_say_why",
        "`bench`",
        "later: shim, `bench forward_rtt`",
    ],
)
def test_a_bad_answer_is_noticed(answer: str) -> None:
    assert wrong(answer)
