"""mon says what its snapshot holds, on any terminal: no figure is invented, no node left out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from mosix.cli import mon_views
from mosix.cli.mon_app import Help, Listing, MonApp
from mosix.cli.mon_views import KINDS, Choice, Snapshot
from mosix.errors import NotRunningError
from mosix.node.requests import KnownNode, PastMove, ProcessRow
from textual.widgets import Static

NOON_S = 1_700_000_000.0


def node(number: int, state: str = "alive", **values: float) -> KnownNode:
    shown = {"running": 1.0, "cores": 2.0, "speed": 20000.0, "memory_mb": 4000.0}
    shown |= {"free_mb": 1000.0, "guests": 0.0, **values}
    return KnownNode(ip=f"10.0.0.{number}", number=number, state=state, age_s=1.0, **shown)


def process(pid: int, where: str = "home", why: str = "") -> ProcessRow:
    return ProcessRow(
        pid=pid,
        uid=0,
        where=where,
        where_number=int(where[-1]) if where[0] == "1" else None,
        home="10.0.0.1",
        home_number=1,
        nmigs=3,
        why=why,
        job="0" * 16,
        command="xz -9 \x1b[2Jbig",
    )


def move(number: int, origin: str, target: str) -> PastMove:
    return PastMove(
        number=number,
        at_s=NOON_S,
        pid=100 + number,
        uid=0,
        job="0" * 16,
        origin=origin,
        target=target,
        why="ordered",
        nmigs=number,
        freeze_ns=12_000_000,
        page_bytes=3_400_000,
    )


SMALL = Snapshot(
    NOON_S,
    "10.0.0.1",
    [node(1), node(2, running=8.0, guests=5.0, frozen=1.0), node(3, "dead")],
    [process(42), process(43, "10.0.0.2", "ordered")],
    [move(1, "home", "10.0.0.2"), move(2, "10.0.0.2", "home")],
)


def test_once_shows_nodes_processes_and_moves() -> None:
    """The bars of load: 8 running on 2 cores of twice the standard speed are a load of 2."""
    time, *shown = mon_views.text(SMALL, Choice(), 100).split("\n")
    assert time.endswith("2 of 3 nodes up, 9.0 running on 4 cores, 2000 of 8000 MB free, 5 guests")
    assert (
        "\n".join(line.replace(shown[-1][:8], "HH:MM:SS") for line in shown)
        == """
NODE  STATE  LOAD  UTIL  CORES  SPEED  FREE    MB  GUESTS  FROZEN  LOAD 0-2.00
1*    up     0.25   50%      2  20000  1000  4000       0       0  ####
2     up     2.00  100%      2  20000  1000  4000       5       1  #################################
3     down      -     -      -      -     -     -       -       -

PID  USER  WHERE  FROM  NMIGS  CMD            WHY
 42  root  home   here      3  xz -9 ?[2Jbig  -
 43  root  2      here      3  xz -9 ?[2Jbig  ordered

TIME      PID  FROM  TO    FROZEN ms   MB  WHY
HH:MM:SS  102  2     home         12  3.4  ordered
HH:MM:SS  101  home  2            12  3.4  ordered""".replace("?[2Jbig  ", "?[2Jbig  ").replace(
            "CMD             WHY", "CMD            WHY"
        )
    )


def test_every_one_of_200_nodes_has_its_line_and_those_down_are_last_and_say_so() -> None:
    states = ["alive", "suspect", "dead", "left", "unheard"]
    many = [node(k, states[k % 5], running=float(k)) for k in range(1, 201)]
    table = mon_views.nodes(Snapshot(NOON_S, nodes=many), Choice(), 80)
    assert len(table.lines) == 200
    words = [line.split()[1] for line in table.lines]
    assert words[:80] == ["up?", "up"] * 40 or set(words[:80]) == {"up", "up?"}
    assert set(words[80:]) == {"down", "stopped", "unknown"}
    assert {line.split()[0] for line in table.lines} == {str(k) for k in range(1, 201)}
    assert max(map(len, [table.header, *table.lines])) <= 80
    up = mon_views.nodes(Snapshot(NOON_S, nodes=many), Choice(down=False), 80)
    assert len(up.lines) == 80


def test_a_narrow_terminal_loses_columns_but_no_name_state_or_bar() -> None:
    for width in (1, 8, 20, 31, 50, 79):
        table = mon_views.nodes(SMALL, Choice(), width)
        assert max(map(len, [table.header, *table.lines])) <= width
    table = mon_views.nodes(SMALL, Choice(), 31)
    assert table.header.split()[:3] == ["NODE", "STATE", "LOAD"]
    assert table.lines[1].endswith("#")
    wide = mon_views.nodes(SMALL, Choice(wide=True), 80)
    assert "FROZEN" in wide.header


@pytest.mark.parametrize("kind", KINDS.values())
def test_the_longest_bar_is_that_of_the_greatest_value(kind: str) -> None:
    shot = Snapshot(
        NOON_S,
        nodes=[
            node(1, running=0.5, free_mb=3000.0, speed=9000.0),
            node(2, running=2.0, free_mb=100.0, guests=4.0, frozen=2.0),
        ],
    )
    lines = mon_views.nodes(shot, Choice(kind=kind), 100).lines
    assert lines[1].count("#") > lines[0].count("#")


def test_the_yardstick_is_a_standard_core_or_one_of_this_node() -> None:
    standard = mon_views.nodes(SMALL, Choice(), 100).lines[1].split()
    own = mon_views.nodes(SMALL, Choice(standard=False), 100).lines[1].split()
    assert (standard[2], own[2]) == ("2.00", "4.00")


def test_what_the_owner_has_said_is_beside_the_state() -> None:
    blocked = KnownNode(
        ip="10.0.0.1",
        number=None,
        state="alive",
        age_s=0.0,
        running=0.0,
        cores=1.0,
        speed=1e4,
        memory_mb=1.0,
        free_mb=1.0,
        guests=0.0,
        owner=["block", "stay"],
    )
    assert mon_views.state_of(blocked) == "up,block,stay"


# ---- the screen ----


def screen(app: MonApp, *names: str) -> str:
    parts = [str(app.screen_stack[0].query_one(f"#{name}", Static).content) for name in names]
    return "\n".join(parts)


def listed(app: MonApp, name: str) -> list[str]:
    listing = app.screen_stack[0].query_one(f"#{name}", Listing)
    return str(listing.query_one(Static).content).split("\n")


@pytest.fixture
def app() -> Callable[[Snapshot], MonApp]:
    return lambda shot: MonApp(lambda _: shot, shot, Choice())


async def test_the_keys_of_the_manual_change_what_is_shown(
    app: Callable[[Snapshot], MonApp],
) -> None:
    mon = app(SMALL)
    async with mon.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        assert [line.split()[0] for line in listed(mon, "nodes")] == ["1*", "2", "3"]
        assert len(listed(mon, "processes")) == len(listed(mon, "moves")) == 2
        for key, kind in KINDS.items():
            await pilot.press(key)
            assert kind.upper() in screen(mon, "nodes-header")
        await pilot.press("d")
        assert len(listed(mon, "nodes")) == 2
        await pilot.press("t")
        assert not mon.query_one("#title").display
        await pilot.press("h")
        assert isinstance(mon.screen, Help)
        await pilot.press("x")
        assert not isinstance(mon.screen, Help)
        await pilot.press("q")
    assert mon.return_code == 0


# Textual's pilot waits long for keys that a screen of one cell has no room to act on.
@pytest.mark.parametrize(
    "size", [pytest.param((1, 1), marks=pytest.mark.full), (5, 2), (20, 5), (40, 8)]
)
async def test_a_tiny_terminal_is_no_reason_to_fail(
    app: Callable[[Snapshot], MonApp], size: tuple[int, int]
) -> None:
    mon = app(SMALL)
    async with mon.run_test(size=size) as pilot:
        await pilot.pause()
        for key in "lumsgfdwyth":
            await pilot.press(key)
        await pilot.press("x", "down", "tab")
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert "NODE" in screen(mon, "nodes-header")


async def test_200_nodes_scroll(app: Callable[[Snapshot], MonApp]) -> None:
    mon = app(Snapshot(NOON_S, nodes=[node(k) for k in range(1, 201)]))
    async with mon.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert len(listed(mon, "nodes")) == 200
        await pilot.press("end")
        await pilot.pause()
        assert mon.query_one("#nodes", Listing).is_vertical_scroll_end


async def test_a_mosd_that_is_silent_is_said_and_the_keys_go_on() -> None:
    looked = asyncio.Event()

    def look(_: str) -> Snapshot:
        looked.set()
        raise NotRunningError("mosd does not answer", "see its log")

    mon = MonApp(look, SMALL, Choice())
    async with mon.run_test(size=(100, 24)) as pilot:
        mon._at_once.set()
        while "mosd does not answer" not in screen(mon, "title"):
            await pilot.pause()
        assert looked.is_set()
        await pilot.press("m")
        assert "MEMORY" in screen(mon, "nodes-header")
        assert len(listed(mon, "nodes")) == 3
