"""docs/manual-coverage.md: all rows of the manual, each with an answer, each answer true."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "manual-coverage.md").read_text()
COUNT = 251
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """Number, statement and answer of every row."""
    lines = [line for line in PAGE.splitlines() if re.match(r"\|\s*\d", line)]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@functools.cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def wrong(answer: str) -> str:
    """What is wrong with an answer, or ""."""
    if answer == "later":
        return ""
    if answer.startswith("not kept:"):
        return "" if answer.removeprefix("not kept:").strip() else "no reason"
    named = [_TEST.fullmatch(part) for part in answer.split(", ")]
    if not answer or not all(named):
        return "neither tests, nor later, nor not kept: reason"
    for found in named:
        assert found is not None
        if not (ROOT / found[1]).is_file() or found[2] not in names_in(found[1]):
            return f"there is no {found[0]}"
    return ""


def test_every_number_is_there_once_and_in_order() -> None:
    assert [row[0] for row in rows()] == [str(number) for number in range(1, COUNT + 1)]


def test_every_row_has_a_statement_and_an_answer_that_is_true() -> None:
    bad = [row for row in rows() if len(row) != 3 or not row[1] or wrong(row[2])]
    assert not bad, [(row[0], wrong(row[-1])) for row in bad]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "soon",
        "not kept:",
        "later, `tests/cli/test_documented.py::test_the_port_is_the_documented_one`",
        "`tests/cli/test_documented.py::test_no_such`",
        "`tests/no_such.py::test_x`",
        "tests/cli/test_documented.py",
    ],
)
def test_a_bad_answer_is_noticed(answer: str) -> None:
    assert wrong(answer)
