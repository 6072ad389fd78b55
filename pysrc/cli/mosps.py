"""mosps: processes of jobs and guests, where they are, and why."""

from __future__ import annotations

import functools
import pwd
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
from mosix.cli import columns, command
from mosix.cli.columns import printable
from mosix.cli.command import Command, paths_for, run_dir_option, version_option
from mosix.errors import MosixError, UsageError
from mosix.node.client import ask
from mosix.node.requests import Processes, ProcessList, ProcessRow

_WHY_WIDTH = 24
_NUMBERS = ("PID", "PPID", "ORIGPID", "NMIGS")
#: Letters of ps(1) that say what mosps does anyway: everybody's, with user, unabridged.
_PS_LETTERS = frozenset("auxwle")
_LATER = {"-D": "expected run times", "-J": "job numbers", "-S": "command files"}


@dataclass(frozen=True)
class Names:
    """How nodes are shown: "number" (else IP), "ip" or "host" (else IP)."""

    style: str

    def of(self, ip: str, number: int | None) -> str:
        if self.style == "host":
            return host_of(ip)
        return str(number) if number is not None and self.style == "number" else ip


def _later(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        name = parameter.opts[0]
        raise MosixError(f"option {name}: {_LATER[name]}: not supported yet")


def _later_option(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(name, is_flag=True, hidden=True, expose_value=False, callback=_later)


@click.command(
    "mosps",
    cls=Command,
    context_settings={"help_option_names": ["--help"]},
    options_metavar="[OPTIONS]",
)
@click.argument("words", metavar="[PID]", nargs=-1)
@click.option("-I", "ip", is_flag=True, help="Show nodes as IP addresses.")
@click.option("-h", "host", is_flag=True, help="Show nodes as host names.")
@click.option("-M", "migratable", is_flag=True, help="Only processes of jobs started here.")
@click.option("-O", "away", is_flag=True, help="Only those of them that are away.")
@click.option("-L", "local", is_flag=True, help="Only processes that run here, guests included.")
@click.option("-V", "guests", is_flag=True, help="Only guests (visitors).")
@click.option("-n", "nmigs", is_flag=True, help="With NMIGS (it is always shown).")
@click.option("-P", "origpid", is_flag=True, help="With ORIGPID, the PID of a guest at home.")
@click.option("-l", "long", is_flag=True, help="Long: also PPID, CLASS, FRZ, ORIGPID and JOB.")
@click.option("--why", is_flag=True, help="Say in full why each process is where it is.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_later_option("-D")
@_later_option("-J")
@_later_option("-S")
@run_dir_option
@version_option
def main(
    *,
    words: tuple[str, ...],
    ip: bool,
    host: bool,
    migratable: bool,
    away: bool,
    local: bool,
    guests: bool,
    nmigs: bool,
    origpid: bool,
    long: bool,
    why: bool,
    as_json: bool,
    run_dir: str | None,
) -> None:
    """List the processes of jobs started here, and the guests of this node; of every user.

    \b
    WHERE    home, the node where it runs, here (a guest), or moving
    FROM     its home node, or here
    NMIGS    how often it moved
    WHY      why it is where it is; --why shows all of it
    ORIGPID  the PID at home of a guest, or 0
    CLASS    0: it never leaves the cluster; N/A for guests
    FRZ      frozen by the system: - no, N/A for guests

    Nodes are shown by number where userview.map has one. The letters of ps(1), as in `mosps
    aux`, are understood: l as -l; a, u, x, w and e say what is done anyway."""
    pid, letters = _words(words)
    if ip and host:
        raise UsageError("only one of -I and -h can be given")
    rows = [
        row
        for row in ask(paths_for(run_dir), Processes(pid=pid, why=why), ProcessList).rows
        if _wanted(row, migratable=migratable, away=away, local=local, guests=guests)
    ]
    if as_json:
        click.echo(msgspec.json.encode(rows).decode())
        return
    names = Names("ip" if ip else "host" if host else "number")
    if why:
        for row in rows:
            said = [reason_of(row) or "it was never sent elsewhere", printable(row.balance)]
            reasons = "; ".join(text for text in said if text)
            click.echo(f"{row.pid}: {where_of(row, names)}: {reasons}")
        return
    shown = _columns(names, long=long or "l" in letters, origpid=origpid)
    cells = [[cell(row) for cell in shown.values()] for row in rows]
    columns.show(list(shown), cells, _NUMBERS)


def _words(words: tuple[str, ...]) -> tuple[int, str]:
    """A PID, and letters of ps(1)."""
    letters = "".join(word for word in words if word and set(word) <= _PS_LETTERS)
    others = [word for word in words if not word or not set(word) <= _PS_LETTERS]
    if len(others) > 1:
        raise UsageError("give one PID, or none for all")
    return command.pid(others[0]) if others else 0, letters


def _wanted(row: ProcessRow, *, migratable: bool, away: bool, local: bool, guests: bool) -> bool:
    is_guest = bool(row.origin_pid)
    here = row.where in ("home", "here")
    return not (
        (migratable and is_guest)
        or (away and (is_guest or here))
        or (local and not here)
        or (guests and not is_guest)
    )


def _columns(names: Names, *, long: bool, origpid: bool) -> dict[str, Callable[[ProcessRow], str]]:
    found: dict[str, Callable[[ProcessRow], str]] = {"PID": lambda row: str(row.pid)}
    if long:
        found["PPID"] = lambda row: _parent(row.pid)
    found["USER"] = lambda row: user_of(row.uid)
    found["WHERE"] = lambda row: where_of(row, names)
    found["FROM"] = lambda row: from_of(row, names)
    if long:
        found["CLASS"] = lambda row: "N/A" if row.origin_pid else str(row.job_class)
        found["FRZ"] = lambda row: "N/A" if row.origin_pid else "-"
    if long or origpid:
        found["ORIGPID"] = lambda row: str(row.origin_pid)
    found["NMIGS"] = lambda row: str(row.nmigs)
    if long:
        found["JOB"] = lambda row: row.job
    found["WHY"] = lambda row: _short(reason_of(row))
    found["CMD"] = lambda row: printable(row.command)
    return found


def where_of(row: ProcessRow, names: Names) -> str:
    """The column WHERE."""
    if row.where in ("home", "here", "moving"):
        return row.where
    return names.of(row.where, row.where_number)


def from_of(row: ProcessRow, names: Names) -> str:
    """The column FROM."""
    return names.of(row.home, row.home_number) if row.origin_pid else "here"


@functools.cache
def host_of(ip: str) -> str:
    """Its name, or the IP again. May ask the name service, once for each."""
    try:
        return socket.getnameinfo((ip, 0), socket.NI_NAMEREQD)[0]
    except OSError:
        return ip


def user_of(uid: int) -> str:
    """Login name, or the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _parent(pid: int) -> str:
    """Field 4 of proc_pid_stat(5); "-" when the process has ended meanwhile."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "-"
    return text.rpartition(")")[2].split()[1]


def reason_of(row: ProcessRow) -> str:
    """Without what PID and WHERE say beside it."""
    text = printable(row.why)
    if row.where == "home":
        text = text.removeprefix("home: ").removeprefix(f"process {row.pid} cannot move: ")
    return text


def _short(text: str) -> str:
    text = text or "-"
    if len(text) <= _WHY_WIDTH or not sys.stdout.isatty():
        return text
    return text[: _WHY_WIDTH - 1] + "…"


if __name__ == "__main__":
    main()
