"""mon's screen: three lists that fill the terminal, drawn again each second, and keys.

Called by `mon`. What the lists say is made by `mon_views`; mosd is asked in a thread, so that keys
are answered even if it does not. Needs no more of a terminal than a cursor that can be placed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

from mosix.cli import mon_views
from mosix.cli.mon_views import KINDS, NAMINGS, Choice, Snapshot, Table
from mosix.errors import MosixError
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Static

Look = Callable[[str], Snapshot]

PERIOD_S = 1.0
_STYLES = {"down": "red", "stopped": "dim", "unknown": "dim", "up?": "yellow"}
_HINTS = "h help  q quit  l load  u use  m memory  s speed  g guests  f frozen  d down  n names"
_HELP = """\
l  bars: load                    d  nodes that are down: show, hide
u  bars: utilisation             n  numbers, addresses, host names
m  bars: memory that is used     w  all columns, or what fits
s  bars: speed                   y  load in standard cores, or in
g  bars: guests                     such as this node has
f  bars: frozen processes        t  line of totals: show, hide

tab    next list                 arrows, page up and down: scroll
q      quit                      any key: back"""


_FLIPS: dict[str, Callable[[Choice], Choice]] = {
    "down": lambda choice: replace(choice, down=not choice.down),
    "wide": lambda choice: replace(choice, wide=not choice.wide),
    "standard": lambda choice: replace(choice, standard=not choice.standard),
    "totals": lambda choice: replace(choice, totals=not choice.totals),
}


class Help(ModalScreen[None]):
    """The keys."""

    CSS = "Help { align: center middle; } Help Static { width: auto; height: auto; padding: 1 2; }"

    def compose(self) -> ComposeResult:
        yield Static(_HELP, markup=False)

    def on_key(self, event: events.Key) -> None:
        event.stop()
        self.dismiss()


class Listing(VerticalScroll):
    """Lines below a header that stays; scrolls when it has the focus."""

    DEFAULT_CSS = """
    Listing { height: 1fr; scrollbar-size-vertical: 1; }
    Listing:focus { background: $surface; }
    """

    def compose(self) -> ComposeResult:
        yield Static("", markup=False)

    class Resized(Message):
        """There is another number of columns to be filled."""

    def on_resize(self) -> None:
        self.post_message(self.Resized())

    def show(self, table: Table) -> None:
        lines = [
            Text(line, style=_STYLES.get(state, ""), no_wrap=True)
            for line, state in zip(table.lines, table.states, strict=True)
        ]
        self.query_one(Static).update(Text("\n", no_wrap=True).join(lines))


class MonApp(App[None]):
    """`look` asks mosd (in a thread; MosixError); `first`: what it has said."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    .line { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    .header { height: 1; text-style: bold reverse; text-wrap: nowrap; }
    #nodes { height: 2fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key, f"kind('{kind}')", kind, show=False) for key, kind in KINDS.items()),
        Binding("d", "flip('down')", "nodes that are down", show=False),
        Binding("w", "flip('wide')", "all columns", show=False),
        Binding("y", "flip('standard')", "yardstick", show=False),
        Binding("t", "flip('totals')", "totals", show=False),
        Binding("n", "naming", "names", show=False),
        Binding("h,question_mark", "help", "help", show=False),
        Binding("q,Q", "quit", "quit", show=False),
    ]

    def __init__(self, look: Look, first: Snapshot, choice: Choice) -> None:
        super().__init__()
        self._look = look
        self.shot = first
        self.choice = choice
        #: wanted; the names of hosts have to be known before anything is drawn with them
        self._naming = choice.naming
        self._at_once = asyncio.Event()

    def compose(self) -> ComposeResult:
        yield Static("", id="title", classes="line", markup=False)
        for name in ("nodes", "processes", "moves"):
            yield Static("", id=f"{name}-header", classes="header", markup=False)
            yield Listing(id=name)
        yield Static(_HINTS, id="hints", classes="line", markup=False)

    def on_mount(self) -> None:
        self.query_one("#nodes").focus()
        self.run_worker(self._follow(), exit_on_error=True)

    def on_listing_resized(self) -> None:
        self.draw()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._at_once.wait(), PERIOD_S)
            self._at_once.clear()
            naming = self._naming
            try:
                self.shot = await asyncio.to_thread(self._look, naming)
                self.choice = replace(self.choice, naming=naming)
            except MosixError as error:
                self.shot = replace(self.shot, at_s=time.time(), problem=error.line())
            self.draw()

    def draw(self) -> None:
        """Everything again, as it is known and wanted now."""
        base = self.screen_stack[0]
        said = mon_views.title(self.shot, self.choice)
        title = base.query_one("#title", Static)
        title.display = self.choice.totals or bool(self.shot.problem)
        title.update(Text(said, style="bold red" if self.shot.problem else "", no_wrap=True))
        for name, view in (
            ("nodes", mon_views.nodes),
            ("processes", mon_views.processes),
            ("moves", mon_views.moves),
        ):
            listing = base.query_one(f"#{name}", Listing)
            # One column less than there is: the scroll bar's.
            table = view(self.shot, self.choice, max(1, listing.size.width - 1))
            base.query_one(f"#{name}-header", Static).update(Text(table.header, no_wrap=True))
            listing.show(table)

    # ---- keys ----

    def action_kind(self, kind: str) -> None:
        self._choose(replace(self.choice, kind=kind))

    def action_flip(self, what: str) -> None:
        self._choose(_FLIPS[what](self.choice))

    def action_naming(self) -> None:
        after = NAMINGS.index(self._naming) + 1
        self._naming = NAMINGS[after % len(NAMINGS)]
        self._at_once.set()

    def action_help(self) -> None:
        self.push_screen(Help())

    def _choose(self, choice: Choice) -> None:
        self.choice = choice
        self.draw()
