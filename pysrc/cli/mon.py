"""mon: the cluster as this node knows it, live: nodes, processes, and moves as they happen.

Everything comes from this node's own mosd, which has it from gossip: no other node is asked, so
none that is down can hold anything up. The screen is `mon_app`, what it says `mon_views`.
"""

from __future__ import annotations

import collections
import os
import shutil
import sys
import time
from collections.abc import Callable

import click
import msgspec
from mosix.cli import mon_views
from mosix.cli.command import Command, paths_for, run_dir_option, version_option
from mosix.cli.mon_views import KINDS, Choice, Snapshot
from mosix.cli.mosps import host_of
from mosix.config.paths import Paths
from mosix.errors import MosixError, UsageError
from mosix.node import requests
from mosix.node.client import ask
from mosix.node.requests import PastMove

#: mosd answers at once; one that does not is said to be silent.
_PATIENCE_S = 2.0
_MOST_MOVES = 200
_DUMB = ("", "dumb", "unknown")
_HELP = {
    "load": "load, in standard cores that its processes keep busy",
    "utilisation": "part of the cores that are busy",
    "memory": "part of the memory that is used",
    "speed": "speed of a core",
    "guests": "guests",
    "frozen": "processes that stand still",
}


class Watcher:
    """Asks mosd, and remembers what it has said."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._moves: collections.deque[PastMove] = collections.deque(maxlen=_MOST_MOVES)
        self._last = self._began_ns = 0

    def look(self, naming: str = "number") -> Snapshot:
        """What mosd says now; MosixError. Blocks for seconds at most, with host names for as long
        as the name service does."""
        known = ask(self._paths, requests.Nodes(), requests.NodeList, _PATIENCE_S)
        rows = ask(self._paths, requests.Processes(), requests.ProcessList, _PATIENCE_S).rows
        news = requests.Moves(since=self._last, began_ns=self._began_ns)
        moves = ask(self._paths, news, requests.MoveList, _PATIENCE_S)
        if moves.began_ns != self._began_ns:
            self._moves.clear()
        self._moves.extend(moves.moves)
        self._last, self._began_ns = moves.last, moves.began_ns
        if naming == "host":
            for node in known.nodes:
                host_of(node.ip)
        return Snapshot(time.time(), known.own, known.nodes, rows, tuple(self._moves))


def _kind_options(command: Callable[..., None]) -> Callable[..., None]:
    for key, kind in reversed(KINDS.items()):
        shown = f"Bars show the {_HELP[kind]}."
        option = click.option(f"-{key}", "kind", flag_value=kind, help=shown)
        command = option(command)
    return command


@click.command("mon", cls=Command, context_settings={"help_option_names": ["--help"]})
@_kind_options
@click.option("-w", "wide", is_flag=True, help="All columns, whatever the width.")
@click.option("-I", "ip", is_flag=True, help="Show nodes as IP addresses.")
@click.option("-h", "host", is_flag=True, help="Show nodes as host names.")
@click.option("--once", is_flag=True, help="Print it once; so it is without a terminal.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a line each second.")
@run_dir_option
@version_option
def main(
    *,
    kind: str | None,
    wide: bool,
    ip: bool,
    host: bool,
    once: bool,
    as_json: bool,
    run_dir: str | None,
) -> None:
    """Watch the cluster: its nodes, the processes of jobs started here and the guests of this
    node, and moves of those jobs as they happen.

    \b
    LOAD     processes that run or want to, for each core of speed 10000
    UTIL     part of the cores that they can keep busy
    SPEED    of a core; 10000 is a Pentium 4 of 3 GHz
    FREE     MB that may be used, of MB
    FROZEN   processes that stand still

    The keys are those of the options, and d (nodes that are down), n (numbers, addresses, names),
    y (load in standard cores or in this node's), t (totals), tab and the arrows (scroll), h
    (help), q (quit)."""
    if ip and host:
        raise UsageError("only one of -I and -h can be given")
    naming = "ip" if ip else "host" if host else "number"
    choice = Choice(kind=kind or "load", naming=naming, wide=wide, bar=_bar())
    watcher = Watcher(paths_for(run_dir))
    if as_json:
        _print_json(watcher, once=once)
    elif once or not (sys.stdout.isatty() and sys.stderr.isatty()):
        width = shutil.get_terminal_size((200, 24)).columns
        click.echo(mon_views.text(watcher.look(naming), choice, width))
    else:
        if os.environ.get("TERM", "") in _DUMB:
            raise MosixError("this terminal cannot be drawn on", "mon --once prints it once")
        # Half a second that the other ways need not wait for.
        from mosix.cli.mon_app import MonApp  # noqa: PLC0415

        MonApp(watcher.look, watcher.look(naming), choice).run()


def _bar() -> str:
    """A block where the terminal's locale has one."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))), "")
    return "█" if locale.lower().replace("-", "").endswith("utf8") else "#"


def _print_json(watcher: Watcher, *, once: bool) -> None:
    while True:
        shot = watcher.look()
        document = {"at_s": shot.at_s, "own": shot.own, "nodes": shot.nodes}
        document |= {"processes": shot.processes, "moves": shot.moves}
        click.echo(msgspec.json.encode(document).decode())
        if once:
            return
        sys.stdout.flush()
        time.sleep(1.0)


if __name__ == "__main__":
    main()
