"""mosps: processes of jobs and guests, where they are, and why."""

from __future__ import annotations

import pwd
import sys
from collections.abc import Sequence

import click
import msgspec
from mosix.cli import command
from mosix.cli.command import Command, paths_for, run_dir_option
from mosix.node.client import ask
from mosix.node.requests import Processes, ProcessList, ProcessRow
from rich.console import Console
from rich.table import Table

_COLUMNS = ("PID", "USER", "WHERE", "FROM", "NMIGS", "WHY", "CMD")
_WHY_WIDTH = 24


@click.command("mosps", cls=Command)
@click.argument("pid", type=command.pid, required=False)
@click.option("--why", is_flag=True, help="Say in full why each process is where it is.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@run_dir_option
def main(pid: int | None, why: bool, as_json: bool, run_dir: str | None) -> None:
    """List the processes of jobs started here, and the guests of this node.

    WHERE: home, the node where it runs, or here (a guest of this node). FROM: its home, or here.
    NMIGS: how often it moved."""
    rows = ask(paths_for(run_dir), Processes(pid=pid or 0), ProcessList).rows
    if as_json:
        click.echo(msgspec.json.encode(rows).decode())
    elif why:
        for row in rows:
            click.echo(f"{row.pid}: {_where(row)}: {row.why or 'it was never ordered elsewhere'}")
    else:
        _print_table(rows)


def _print_table(rows: list[ProcessRow]) -> None:
    cells = [
        (
            str(row.pid),
            _user(row.uid),
            _where(row),
            _from(row),
            str(row.nmigs),
            _short(row.why),
            _printable(row.command),
        )
        for row in rows
    ]
    if not sys.stdout.isatty():
        _print_plain(cells)
        return
    table = Table(box=None, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(
            name,
            justify="right" if name in ("PID", "NMIGS") else "left",
            no_wrap=True,
            overflow="ellipsis" if name == "CMD" else "ignore",
        )
    for row in cells:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)


def _print_plain(cells: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *cells, strict=True)]
    for row in (_COLUMNS, *cells):
        padded = [text.ljust(width) for text, width in zip(row[:-1], widths, strict=False)]
        click.echo("  ".join([*padded, row[-1]]).rstrip())


def _where(row: ProcessRow) -> str:
    return str(row.where_number) if row.where_number is not None else row.where


def _from(row: ProcessRow) -> str:
    if not row.origin_pid:
        return "here"
    return str(row.home_number) if row.home_number is not None else row.home


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _short(text: str) -> str:
    text = _printable(text) or "-"
    return text if len(text) <= _WHY_WIDTH else text[: _WHY_WIDTH - 1] + "…"


def _printable(text: str) -> str:
    """A program's name must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


if __name__ == "__main__":
    main()
