"""mosd's measuring: once a second what this node has to do (`mosix.balancer.measure`).

`NodeMeter.run` is a task of mosd; `load` is what is shown and spread, `reading` what the decider
works on. Reading /proc takes milliseconds where there are many processes, so it happens in a
thread, where that took long the last time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mosix.balancer.measure import Group, Meter, Times, speed_of
from mosix.native.cpu import spin_ns
from mosix.node.settings import Settings
from mosix.wire.messages import NodeLoad

_log = logging.getLogger("mosd.meter")

#: The kernel's number for the first PID namespace (PROC_PID_INIT_INO): who is in it sees all
#: processes of the machine.
_FIRST_PID_NAMESPACE = "pid:[4026531836]"

#: A reading that took less CPU time than this (s) is made without a thread, whose start and end
#: would cost as much again.
_AT_ONCE_S: Final = 0.01


@dataclass(frozen=True)
class Reading:
    """One window, from `began` to `ended` (monotonic seconds). `times`: of all threads, at its
    end, by thread id."""

    began: float
    ended: float
    load: NodeLoad
    times: dict[int, Times]


class NodeMeter:
    """`load` is None until the first second is over."""

    def __init__(self, settings: Settings, group: Group, own: Callable[[], Iterable[int]]) -> None:
        self._settings = settings
        self._group = group
        self._own = own
        self._measured: int | None = None
        self.load: NodeLoad | None = None
        self._next: asyncio.Future[Reading] | None = None

    async def reading(self) -> Reading:
        """The next one, as soon as it is made."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._next)

    async def run(self) -> None:
        """Until cancelled."""
        meter = await asyncio.to_thread(self._begin)
        while True:
            await asyncio.sleep(meter.pause)
            try:
                own = tuple(self._own())
                if meter.cost < _AT_ONCE_S:
                    self.load = self._sample(meter, own)
                else:
                    self.load = await asyncio.to_thread(self._sample, meter, own)
                self._tell(Reading(meter.began, meter.ended, self.load, meter.times))
            except OSError as error:
                _log.error("this node's load cannot be measured: %s", error)

    def _sample(self, meter: Meter, own: tuple[int, ...]) -> NodeLoad:
        meter.speed = self._speed()
        return meter.sample(own)

    def _tell(self, reading: Reading) -> None:
        waiting, self._next = self._next, None
        if waiting is not None:
            waiting.set_result(reading)

    def _begin(self) -> Meter:
        return Meter(
            self._group,
            speed=self._speed(),
            machine=os.readlink("/proc/self/ns/pid") == _FIRST_PID_NAMESPACE,
        )

    def _speed(self) -> int:
        """What the owner says now, else what was measured."""
        config = self._settings.config
        if config.speed is not None:
            return config.speed
        if self._measured is None:
            self._measured = _measured_speed(config.paths.measured_speed)
        return self._measured


def _measured_speed(cache: Path) -> int:
    """Measured once for each model of CPU since the machine was started: while it is loaded a
    measurement comes out low."""
    cpu = _cpu_model()
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        known = {}
    if isinstance(known, dict) and known.get("cpu") == cpu and isinstance(known.get("speed"), int):
        return int(known["speed"])
    speed = speed_of(spin_ns)
    try:
        cache.write_text(json.dumps({"cpu": cpu, "speed": speed}) + "\n")
    except OSError as error:
        _log.warning("%s: %s", cache, error.strerror)
    return speed


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return ""
