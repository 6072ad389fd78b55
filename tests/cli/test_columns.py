"""Tables fit the terminal by cutting their last column; no other column is ever lost."""

from __future__ import annotations

from mosix.cli import columns

HEADER = ("PID", "USER", "WHERE", "CMD")
ROWS = [("4711", "ann", "home", "x" * 300), ("12", "somebody", "10.77.3.22", "xz -9")]


def test_on_a_terminal_only_the_last_column_is_cut() -> None:
    lines = columns.lines(HEADER, ROWS, ("PID",), 80)
    assert max(map(len, lines)) == 80
    assert lines[0].split() == list(HEADER)
    assert lines[1].startswith("4711  ann       home        xxx")
    assert lines[1].endswith("x…")
    assert lines[2] == "  12  somebody  10.77.3.22  xz -9"


def test_a_terminal_that_is_too_narrow_costs_no_column() -> None:
    lines = columns.lines(HEADER, ROWS, (), 10)
    assert lines[1].split() == ["4711", "ann", "home", "xx…"]


def test_in_a_pipe_nothing_is_cut() -> None:
    assert columns.lines(HEADER, ROWS)[1].endswith(" " + "x" * 300)
