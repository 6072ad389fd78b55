"""A process that had to come home goes back by itself, later each time: on a clock that jumps."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Iterator
from typing import Any

import pytest
from mosix.deputy.process import FIRST_RETURN, LAST_RETURN, LAUNCH_RETURN, JobProcess, next_return
from mosix.errors import CannotMoveError
from mosix.wire.attributes import JobAttributes

NODE = "10.0.0.2"


class Jumping(asyncio.SelectorEventLoop):
    """A loop that never waits: its clock jumps to the next timer."""

    def __init__(self) -> None:
        loop = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                loop.now += timeout or 0
                return super().select(0)

        self.now = 0.0
        super().__init__(Selector())

    def time(self) -> float:
        return self.now


class Home:
    """The deputy of a process that can never leave, or only sometimes."""

    here = "10.0.0.1"
    listener = None

    def __init__(self, loop: Jumping) -> None:
        self.loop = loop
        self.tried: list[float] = []
        self.enough = asyncio.Event()
        self.attempts = 9

    def report(self, _: object) -> None:
        pass

    async def leave(self, _: JobProcess, ip: str) -> None:
        assert ip == NODE
        self.tried.append(self.loop.now)
        if len(self.tried) >= self.attempts:
            self.enough.set()
        raise CannotMoveError("it has 2 threads")


@pytest.fixture
def loop() -> Iterator[Jumping]:
    loop = Jumping()
    yield loop
    loop.close()


def test_the_delay_doubles_from_one_second_to_sixty() -> None:
    delays = [FIRST_RETURN]
    while len(delays) < 9:
        delays.append(next_return(delays[-1]))
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert LAST_RETURN == 60


def test_it_tries_again_later_each_time_and_at_once_after_an_order(loop: Jumping) -> None:
    async def scene() -> list[float]:
        home = Home(loop)
        process = JobProcess(home, 1, JobAttributes())  # type: ignore[arg-type]
        process.order(NODE)
        process.go_back_later()
        await home.enough.wait()
        assert "2 threads" in process.why
        process.order(NODE)  # an order begins anew
        home.enough.clear()
        home.attempts += 2
        process.go_back_later()
        await home.enough.wait()
        process.order(None)  # and one to stay home ends it
        before = len(home.tried)
        await asyncio.sleep(1000)
        assert len(home.tried) == before
        return home.tried

    tried = loop.run_until_complete(scene())
    waits = [later - earlier for earlier, later in zip([0, *tried], tried, strict=False)]
    assert waits == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60, 1, 2])


def test_a_program_launched_elsewhere_is_back_as_soon_as_its_libraries_are_mapped(
    loop: Jumping,
) -> None:
    async def scene() -> list[float]:
        home = Home(loop)
        home.attempts = 8
        process = JobProcess(home, 1, JobAttributes())  # type: ignore[arg-type]
        process.order(NODE, LAUNCH_RETURN)
        process.go_back_later()
        await home.enough.wait()
        process.order(None)
        return home.tried

    tried = loop.run_until_complete(scene())
    waits = [later - earlier for earlier, later in zip([0, *tried], tried, strict=False)]
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4])
