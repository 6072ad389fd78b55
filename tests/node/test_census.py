"""Who could move from a node, and what mosd knows of each."""

from __future__ import annotations

import msgspec
import pytest
from groups import Anybody
from mosix.balancer.account import Use
from mosix.balancer.measure import Times
from mosix.balancer.statistics import COLUMN
from mosix.node.census import Census, Key
from mosix.node.jobgroup import JobGroup, Members, Membership
from mosix.node.meter import Reading
from mosix.node.registry import Guest, Job, Registry
from mosix.wire.attributes import JobAttributes
from mosix.wire.messages import NodeLoad
from mosix.wire.mosd_messages import GuestState, ProcessState

OWN, OTHER = "10.0.0.1", "10.0.0.2"
LOAD = NodeLoad(running=1, exported=1, dilation=1, cores=1, speed=10_000, memory=1, free=1)
JOB = "0" * 16


class Known(Members):
    """PIDs of the one job."""

    def __init__(self, *pids: int) -> None:
        super().__init__(Membership.detect())
        self.pids = list(pids)

    def of(self, job: str, group: JobGroup) -> list[int]:
        return self.pids


def reading(number: int, **ran_s: float) -> Reading:
    """The one that ends at second `number`; of threads (as in p7=1.5) how long they had run."""
    times = {int(name[1:]): Times(int(ran * 1e9), 0) for name, ran in ran_s.items()}
    return Reading(number - 1.0, float(number), LOAD, times)


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    group = Anybody()
    registry.jobs[JOB] = Job(JOB, 7, 1000, 1000, group)
    guest = Guest(b"t" * 16, "1" * 16, 70, 1000, OTHER, 1)
    registry.guests[guest.token] = guest
    return registry


def rates(census: Census, key: Key) -> dict[str, float]:
    row = census.statistics.rates(census.statistics.rows([key]))[0]
    return {name: float(row[index]) for name, index in COLUMN.items()}


def test_what_processes_at_home_and_guests_do_is_known_by_their_home(registry: Registry) -> None:
    census = Census(registry, Known(7, 8), OWN)
    guest = next(iter(registry.guests.values()))
    attributes = JobAttributes(cpujob=0, needmem=5)
    state = GuestState(
        outer_pid=9, pid=70, runs=True, cpu_before_ns=100 * 10**9, attributes=attributes
    )
    registry.update_guest(guest, state)
    came = census.take(reading(1, p7=5, p8=1, p9=2), {})
    assert [one.key for one in came] == [(OTHER, 70)]
    registry.update_guest(
        guest,
        GuestState(outer_pid=9, pid=70, runs=True, calls=300, call_bytes=5000),
    )
    uses = {7: Use(cpu=0.5, calls=200, read_bytes=10, written_bytes=20)}
    assert census.take(reading(2, p7=5.5, p8=1, p9=3), uses) == []
    assert set(census.residents) == {(OWN, 7), (OWN, 8), (OTHER, 70)}
    assert rates(census, (OWN, 7))["cpu"] == pytest.approx(0.5)
    assert rates(census, (OWN, 7))["calls"] == pytest.approx(200)
    assert census.busy_at_home() == {7}
    assert rates(census, (OTHER, 70))["calls"] == pytest.approx(300)
    assert rates(census, (OTHER, 70))["written_bytes"] == pytest.approx(5000)
    ages = census.statistics.ages(census.statistics.rows([(OWN, 7), (OTHER, 70)]))
    assert ages.tolist() == pytest.approx([5.5, 103])
    assert census.at_home() == {7, 8}


def test_clear_makes_statistics_begin_anew(registry: Registry) -> None:
    census = Census(registry, Known(), OWN)
    guest = next(iter(registry.guests.values()))
    key = (OTHER, 70)
    for second in range(1, 4):
        state = GuestState(outer_pid=9, pid=70, runs=True, calls=100 * second)
        registry.update_guest(guest, state)
        census.take(reading(second, p9=second), {})
    assert rates(census, key)["calls"] == pytest.approx(100)
    assert rates(census, key)["cpu"] == pytest.approx(1)
    state = msgspec.structs.replace(state, attributes=JobAttributes(cleared=1))
    registry.update_guest(guest, state)
    census.take(reading(4, p9=3), {})
    assert rates(census, key)["calls"] == rates(census, key)["cpu"] == 0
    assert census.statistics.ages(census.statistics.rows([key]))[0] == pytest.approx(3)


def test_who_is_away_on_its_way_or_not_running_yet_is_not_here(registry: Registry) -> None:
    census = Census(registry, Known(7, 8), OWN)
    job = registry.jobs[JOB]
    registry.update(job, ProcessState(pid=7, where=OTHER, nmigs=1, why="", epoch=1))
    registry.update(job, ProcessState(pid=8, where="moving", nmigs=0, why="", epoch=1))
    registry.update_guest(next(iter(registry.guests.values())), GuestState(outer_pid=9, pid=70))
    assert census.take(reading(1, p7=1, p8=1, p9=1), {}) == []
    assert census.residents == {}
    home = ProcessState(
        pid=7, where="home", nmigs=2, why="", epoch=2, stats={"cpu_away_ms": 40_000}
    )
    registry.update(job, home)
    came = census.take(reading(2, p7=2), {})
    assert [one.key for one in came] == [(OWN, 7)]
    assert census.statistics.ages(census.statistics.rows([(OWN, 7)]))[0] == pytest.approx(42)
    registry.jobs.clear()
    registry.guests.clear()
    census.take(reading(3), {})
    assert census.residents == {}
    assert len(census.statistics) == 0


def test_who_has_left_is_not_offered_again_until_the_next_reading(registry: Registry) -> None:
    census = Census(registry, Known(7), OWN)
    census.take(reading(1, p7=1), {})
    seven = census.residents[(OWN, 7)]
    job = registry.jobs[JOB]
    registry.update(job, ProcessState(pid=7, where=OTHER, nmigs=1, why="", epoch=1))
    census.left(seven)
    assert census.residents == {}
    assert census.take(reading(2, p7=2), {}) == []
    registry.update(job, ProcessState(pid=7, where="home", nmigs=2, why="", epoch=2))
    census.take(reading(3, p7=3), {})
    census.left(seven)  # of an earlier stay
    assert set(census.residents) == {(OWN, 7)}
