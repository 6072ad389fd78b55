"""A node measures what it has to do and what it has left, by differences over its own window."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mosix.balancer.measure import (
    STANDARD_SPEED,
    Exported,
    Meter,
    Times,
    Window,
    effective_cores,
    speed_of,
    thread_times,
)
from mosix.native.cpu import spin_ns

MIB = 1 << 20


@dataclass
class Group:
    """A cgroup that says what the test wants."""

    quota: float | None = None
    limit: int | None = None
    file: Path | None = None

    def available(self) -> int:
        return 100 * MIB

    def memory_limit(self) -> int | None:
        return self.limit

    def cpu_quota(self) -> float | None:
        return self.quota

    def pressure(self, resource: str) -> Path | None:
        return self.file


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc with one process, PID 7, and two that are not to be counted."""
    (tmp_path / "meminfo").write_text("MemTotal:  4096 kB\nMemFree:  1 kB\n")
    (tmp_path / "pressure").mkdir()
    (tmp_path / "self").mkdir()
    for pid in (7, 8):
        (tmp_path / f"{pid}/task/{pid}").mkdir(parents=True)
    tell(tmp_path, ran_s=10, waited_s=10, steal=0, stalls_us=0)
    return tmp_path


def tell(proc: Path, *, ran_s: float, waited_s: float, steal: int, stalls_us: int) -> None:
    (proc / "7/schedstat").write_text(f"{int(ran_s * 1e9)} {int(waited_s * 1e9)} 5\n")
    (proc / "8/schedstat").write_text(f"{int(ran_s * 9e9)} 0 5\n")
    (proc / "stat").write_text(f"cpu  {400 - steal} 0 0 {int(ran_s * 100)} 0 0 0 {steal} 0 0\n")
    line = f"some avg10=9.00 avg60=9.00 avg300=9.00 total={stalls_us}\nfull total=1\n"
    for resource in ("memory", "io"):
        (proc / "pressure" / resource).write_text(line)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_load_is_what_ran_or_waited_and_dilation_their_ratio(proc: Path) -> None:
    clock = Clock()
    meter = Meter(Group(), speed=12345, proc=proc, clock=clock)
    tell(proc, ran_s=11, waited_s=12, steal=0, stalls_us=500_000)
    clock.now += 2
    load = meter.sample(own=[8])
    assert (load.running, load.dilation, load.speed) == (1.5, 3.0, 12345)
    assert (load.psi_memory, load.psi_io) == (0.25, 0.25)
    assert meter.window.busy == {7: 1.0}
    clock.now += 2
    idle = meter.sample(own=[8])
    assert (idle.running, idle.dilation, idle.psi_io) == (0.0, 1.0, 0.0)
    assert idle.exported == pytest.approx(1.5 * 7 / 8)


def test_memory_and_stalls_are_the_cgroups_where_it_has_its_own(proc: Path, tmp_path: Path) -> None:
    file = tmp_path / "memory.pressure"
    file.write_text("some avg10=0.00 total=0\n")
    clock = Clock()
    group = Group(quota=0.5, limit=3 * MIB, file=file)
    inside, machine = (
        Meter(group, speed=1, proc=proc, clock=clock, machine=whole) for whole in (False, True)
    )
    tell(proc, ran_s=10, waited_s=10, steal=0, stalls_us=1_000_000)
    clock.now += 2
    load = inside.sample()
    assert (load.memory, load.free, load.psi_memory) == (3 * MIB, 90 * MIB, 0.0)
    assert load.cores == 0.5
    assert machine.sample().psi_memory == 0.5


def test_cores_are_bounded_by_affinity_quota_and_steal() -> None:
    assert effective_cores(None, 0.0, allowed=4) == 4
    assert effective_cores(1.5, 0.0, allowed=4) == 1.5
    assert effective_cores(9.0, 0.25, allowed=4) == 3
    assert effective_cores(None, 1.0, allowed=1) == pytest.approx(0.01)
    assert effective_cores(None, 0.0) == len(os.sched_getaffinity(0))


def test_steal_is_that_of_the_window_and_not_since_the_boot(proc: Path) -> None:
    clock = Clock()
    meter = Meter(Group(quota=1.0), speed=1, proc=proc, clock=clock)
    (proc / "stat").write_text("cpu  500 0 0 1050 0 0 0 50 0 0\n")  # 200 ticks more, 50 stolen
    clock.now += 1
    assert meter.sample().cores == pytest.approx(0.75)
    clock.now += 1
    assert meter.sample().cores == 1.0


def test_the_exported_load_rises_at_once_and_falls_slowly() -> None:
    exported = Exported()
    assert [exported.next(load) for load in (8, 0, 0, 9)] == [8, 7, 7 * 7 / 8, 9]


def test_threads_that_come_go_or_are_new_under_an_old_number_do_not_count() -> None:
    before = {1: Times(10, 0), 2: Times(10**9, 0), 3: Times(5 * 10**9, 0)}
    after = {1: Times(10, 0), 3: Times(10**9, 0), 4: Times(10**9, 0)}
    assert Window.between(before, after) == Window()


@pytest.fixture
def spinner() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def test_every_thread_of_a_real_process_is_read(spinner: subprocess.Popen[bytes]) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        first = thread_times()
        assert thread.native_id in first
        assert os.getpid() in first and os.getpid() not in thread_times(own=[os.getpid()])
        while thread_times()[spinner.pid].ran == first[spinner.pid].ran:
            time.sleep(0)
        assert spinner.pid in Window.between(first, thread_times()).busy
    finally:
        stop.set()
        thread.join()


def test_a_processor_that_is_as_slow_as_the_manuals_has_its_speed() -> None:
    assert speed_of(lambda rounds: round(rounds * 19 / 3)) == STANDARD_SPEED
    assert speed_of(lambda rounds: round(rounds * 19 / 6)) == 2 * STANDARD_SPEED
    assert speed_of(spin_ns) > 0
