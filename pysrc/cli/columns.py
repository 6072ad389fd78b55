"""Tables on standard output: for a terminal with rich, for a pipe in plain columns.

Used by commands whose rows have the text to be cut, if any, in the last column.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click


def show(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """`right`: names of the columns that hold numbers."""
    if not sys.stdout.isatty():
        for line in plain(header, rows):
            click.echo(line)
        return
    from rich.console import Console  # noqa: PLC0415 - a quarter of the time to start
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=True,
            overflow="ellipsis" if name == header[-1] else "ignore",
        )
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which every column but the last has one width."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        padded = [text.ljust(width) for text, width in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*padded, row[-1]]).rstrip())
    return lines


def printable(text: str) -> str:
    """A program's name must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
