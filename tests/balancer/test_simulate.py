"""The simulator computes right, and in it our strategy is what it claims to be."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from mosix.balancer.compare import PLACING, SCENARIOS, STRATEGIES, Scenario, bootstrap, compare
from mosix.balancer.rivals import StaysHome
from mosix.balancer.simulate import MOVE_FIXED_S, THRASHING, Cluster, Strategy
from mosix.balancer.strategies import Balanced
from mosix.balancer.workload import (
    Workload,
    generate,
    ideal_sharing,
    least_makespan,
    read_trace,
    shortest_first,
)
from mosix.errors import MosixError


def workload(
    jobs: list[tuple[float, float, float, int]], nodes: list[tuple[float, float, float]]
) -> Workload:
    """Jobs: arrival, work, MB, home. Nodes: speed, cores, MB."""
    arrival, work, need, home = (np.array(column, float) for column in zip(*jobs, strict=True))
    speed, cores, memory = (np.array(column, float) for column in zip(*nodes, strict=True))
    return Workload(speed, cores, memory, arrival, work, need, home.astype(np.int64))


# ---- the simulator ----


def test_jobs_share_cores_equally() -> None:
    load = workload([(0, 10, 1, 0), (0, 10, 1, 0), (5, 4, 1, 0)], [(2, 1, 100)])
    cluster = Cluster(load, StaysHome())
    cluster.run()
    # each gets 5 of 10 by t=5; then thirds of speed 2: the last has its 4 at t=11
    assert cluster.done.tolist() == pytest.approx([12, 12, 11])


def test_a_node_over_its_memory_is_slow_and_that_is_counted() -> None:
    load = workload([(0, 1, 60, 0), (0, 1, 60, 0)], [(1, 2, 100)])
    result = Cluster(load, StaysHome()).run()
    assert result.response.tolist() == pytest.approx([THRASHING, THRASHING])
    assert result.over_memory_s == pytest.approx(THRASHING)


class MoveOnce(Strategy):
    """Job 0 from node 0 to 1 when job 1 arrives."""

    name = "once"

    def arrival(self, job: int) -> None:
        self.cluster.start(job, 0)
        if job == 1:
            self.cluster.move(0, 0, 1)


def test_a_move_stops_a_job_for_its_time_and_nothing_is_lost() -> None:
    load = workload([(0, 10, 950, 0), (4, 1, 1, 0)], [(1, 1, 2000), (2, 1, 2000)])
    cluster = Cluster(load, MoveOnce())
    result = cluster.run()
    # 4 done at speed 1, a second of moving, 6 at speed 2
    assert cluster.done[0] == pytest.approx(4 + MOVE_FIXED_S + 0.95 + 3)
    assert cluster.done[1] == pytest.approx(5)
    assert result.moves_per_job == 0.5
    assert cluster.used_mb.tolist() == pytest.approx([0, 0])
    assert cluster.running.tolist() == [0, 0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_finishes_every_job_and_no_bound_is_beaten(name: str) -> None:
    load = generate(8, 150, 0.7, seed=3, memory=0.1)
    cluster = Cluster(load, STRATEGIES[name]())
    result = cluster.run()
    assert np.isfinite(cluster.done).all()
    assert (result.slowdown >= 1 - 1e-9).all()
    assert result.makespan_ratio >= 1 - 1e-9
    assert result.response.mean() >= (shortest_first(load) - load.arrival).mean() * (1 - 1e-9)
    assert cluster.used_mb == pytest.approx(np.zeros(8), abs=1e-6)


def test_the_same_seed_gives_the_same_result() -> None:
    load = generate(6, 100, 0.8, seed=5)
    first, second = (Cluster(load, Balanced()).run() for _ in range(2))
    assert (first.slowdown == second.slowdown).all()


# ---- bounds and workloads ----


def test_ideal_sharing_gives_each_job_its_share_of_the_fastest_cores() -> None:
    load = workload([(0, 6, 1, 0), (0, 12, 1, 0)], [(1, 1, 100), (2, 1, 100)])
    # together 3, half each: 6 at t=4; then alone on the fast one
    assert ideal_sharing(load).tolist() == pytest.approx([4, 7])
    assert shortest_first(load).tolist() == pytest.approx([3, 3 + 9 / 2])
    assert least_makespan(load) == pytest.approx(6)


def test_generated_load_is_what_was_asked_for() -> None:
    load = generate(16, 4000, 0.7, seed=1)
    offered = load.work.sum() / load.arrival[-1] / load.capacity
    assert offered == pytest.approx(0.7, rel=0.1)
    assert load.work.min() >= 1
    assert (load.need_mb <= load.memory_mb.max() / 2).all()


def test_a_trace_in_standard_workload_format_is_read(tmp_path: Path) -> None:
    lines = ["; Version: 2.2"]
    for k in range(60):
        fields = ["-1"] * 18
        fields[0], fields[1], fields[3], fields[4] = str(k), str(10 * k), str(k % 7), "1"
        fields[15] = str(k % 3)
        lines.append(" ".join(fields))
    path = tmp_path / "some.swf.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    load = read_trace(path, 4, 0.5, jobs=30, start=5, seed=1)
    # those that ran for less than a second are left out
    assert load.jobs == 30
    assert load.work.min() >= 1
    assert len(set(load.home.tolist())) == 3
    assert load.work.sum() / load.capacity / load.arrival[-1] == pytest.approx(0.5)
    with pytest.raises(MosixError, match="usable jobs"):
        read_trace(path, 4, 0.5, jobs=100, start=0, seed=1)


# ---- what is claimed (bench has the full runs) ----


SMALL = Scenario("small", 16, 500, 0.7)
TIGHT = Scenario("tight", 16, 500, 0.7, memory=0.3)


def test_ours_is_close_to_the_ideal_and_no_worse_than_any_placement_on_the_same_gossip() -> None:
    figures = {f.strategy: f for f in compare(SMALL, range(2), ("balanced", *PLACING))}
    ours = figures["balanced"]
    assert ours.ratio <= 1.12
    assert ours.moves_per_job <= 0.8
    for name in PLACING:
        assert ours.ratio <= 1.02 * figures[name].ratio


def test_no_node_ever_has_more_memory_in_use_than_it_has() -> None:
    figures = {f.strategy: f for f in compare(TIGHT, range(2), ("balanced", "least loaded"))}
    assert figures["balanced"].over_memory_s == 0
    assert figures["least loaded"].over_memory_s > 0
    assert figures["balanced"].ratio < figures["least loaded"].ratio


def test_all_jobs_born_on_one_node_spread() -> None:
    jobs = [(0.0, 40.0, 10.0, 0)] * 8
    load = workload(jobs, [(1, 2, 1000)] * 2)
    stay = Cluster(load, StaysHome()).run()
    spread = Cluster(load, Balanced()).run()
    assert stay.makespan_ratio == pytest.approx(2)
    assert spread.makespan_ratio <= 1.05


def test_every_scenario_with_a_goal_is_there() -> None:
    assert {name for name, s in SCENARIOS.items() if s.goal} == {
        "n16",
        "n100",
        "rho9",
        "memtight",
    }


def test_the_interval_holds_the_mean_and_narrows_with_more_seeds() -> None:
    few, many = bootstrap([1.0, 1.2, 1.1]), bootstrap([1.0, 1.2, 1.1] * 20)
    for mean, low, high in (few, many):
        assert low <= mean <= high
        assert mean == pytest.approx((1.0 * 1.2 * 1.1) ** (1 / 3))
    assert many[2] - many[1] < few[2] - few[1]
