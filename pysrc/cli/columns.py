"""Tables on standard output, without frames; on a terminal a row is one line.

Used by commands whose rows have the text to be cut, if any, in the last column. No other column
is ever cut, and none in a pipe.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

import click


def show(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """`right`: names of the columns that hold numbers, for a terminal."""
    if not sys.stdout.isatty():
        for line in lines(header, rows):
            click.echo(line)
        return
    title, *others = lines(header, rows, right, shutil.get_terminal_size().columns)
    click.secho(title, bold=True)
    for line in others:
        click.echo(line)


def lines(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Sequence[str] = (),
    width: int | None = None,
) -> list[str]:
    """Lines in which every column but the last has one width. `width`: of the terminal, where
    the last column is cut, but never to less than its title."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)][:-1]
    room = None
    if width is not None:
        room = max(width - sum(widths) - 2 * len(widths), len(header[-1]))
    found = []
    for row in (header, *rows):
        padded = [
            text.rjust(size) if name in right else text.ljust(size)
            for name, text, size in zip(header, row, widths, strict=False)
        ]
        found.append("  ".join([*padded, _cut(row[-1], room)]).rstrip())
    return found


def _cut(text: str, room: int | None) -> str:
    return text if room is None or len(text) <= room else text[: room - 1] + "…"


def printable(text: str) -> str:
    """A program's name must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
