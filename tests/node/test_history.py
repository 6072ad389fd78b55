"""The ring of moves: readers get each move once, listeners at once; old ones are dropped."""

from __future__ import annotations

from groups import Anybody
from mosix.node.history import MOST_MOVES, History
from mosix.node.registry import Job, Registry
from mosix.node.requests import PastMove
from mosix.wire.mosd_messages import ProcessState

AWAY = "10.0.0.2"


def state(pid: int, where: str, origin: str) -> ProcessState:
    stats = {"freeze_ns": 5, "page_bytes": 4096, "calls": 1}
    return ProcessState(
        pid=pid, where=where, nmigs=1, why="ordered", epoch=1, stats=stats, origin=origin
    )


def test_a_reader_gets_each_move_once_and_all_of_another_mosds() -> None:
    history = History()
    for pid in (1, 2, 3):
        history.add(7, "job", state(pid, AWAY, "home"))
    first = history.since(0, 0)
    assert [move.pid for move in first.moves] == [1, 2, 3]
    assert [move.number for move in first.moves] == [1, 2, 3]
    assert history.since(first.last, first.began_ns).moves == []
    history.add(7, "job", state(4, "home", AWAY))
    news = history.since(first.last, first.began_ns)
    assert [(m.pid, m.origin, m.target, m.uid) for m in news.moves] == [(4, AWAY, "home", 7)]
    assert len(history.since(first.last, first.began_ns + 1).moves) == 4


def test_only_the_last_moves_are_kept_and_their_numbers_go_on() -> None:
    history = History()
    for pid in range(1, MOST_MOVES + 11):
        history.add(0, "job", state(pid, AWAY, "home"))
    kept = history.since(0, 0)
    assert len(kept.moves) == MOST_MOVES
    assert kept.moves[0].number == 11
    assert kept.last == MOST_MOVES + 10


def test_who_wants_to_be_told_is_told_of_moves_and_of_nothing_else() -> None:
    registry = Registry()
    told: list[PastMove] = []
    registry.history.tell(told.append)
    job = Job("0" * 16, 1, 7, 7, Anybody())
    registry.update(job, state(9, "home", ""))
    registry.update(job, state(9, AWAY, "home"))
    registry.update(job, state(9, AWAY, ""))
    (move,) = told
    assert (move.pid, move.job, move.origin, move.target) == (9, job.id, "home", AWAY)
    assert (move.why, move.freeze_ns, move.page_bytes) == ("ordered", 5, 4096)
