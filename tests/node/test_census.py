"""What is remembered of the processes of a node, for decisions about them."""

from __future__ import annotations

import msgspec
import numpy as np
from mosix.balancer.measure import Times
from mosix.balancer.statistics import COLUMN
from mosix.node.census import Census
from mosix.node.meter import Reading
from mosix.node.registry import Guest, Registry
from mosix.wire.attributes import JobAttributes
from mosix.wire.messages import NodeLoad

LOAD = NodeLoad(
    running=1, exported=1, dilation=1, cores=2, speed=10_000, memory=1 << 30, free=1 << 29
)
PID = 999_999_999  # nobody's


def read(census: Census, second: int, ran_s: float) -> None:
    times = {PID: Times(int(ran_s * 1e9), 0)}
    census.take(Reading(float(second), second + 1.0, LOAD, times), {})


def test_clear_makes_statistics_begin_anew() -> None:
    registry = Registry()
    guest = Guest(b"token", "job", 7, 1, "10.0.0.1", 1, outer_pid=PID, since=0.0)
    registry.guests[guest.token] = guest
    census = Census(registry, "10.0.0.2")
    for second in range(5):
        read(census, second, ran_s=second)
    rows = census.statistics.rows([("10.0.0.1", 7)])
    assert census.statistics.rates(rows)[0, COLUMN["cpu"]] > 0.5
    age = float(census.statistics.ages(rows)[0])
    guest.attributes = msgspec.structs.replace(JobAttributes(), cleared=1)
    read(census, 5, ran_s=4)
    assert np.allclose(census.statistics.rates(rows), 0)
    assert float(census.statistics.ages(rows)[0]) == age
