"""What networked operations cost from here, as /etc/mosix/mostune says at the moment.

`tune` and people change the file while mosd runs; it is looked at twice a minute (MOSIX: changes
are taken up within a minute). A bad one is said in the log, and the last good one goes on holding.
Called by `decider` and `outlook`.
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable
from typing import Final

import numpy as np
from mosix.balancer.policy import Floats
from mosix.config.nodemap import NodeMap
from mosix.config.paths import Paths
from mosix.config.tuning import EVERY, Costs, Tuning, load_tuning
from mosix.errors import MosixError
from numpy.typing import NDArray

_log = logging.getLogger("mosd.tuned")

LOOK_EVERY_S: Final = 30.0


class Tuned:
    """`nodes`: the map that is in force. ConfigError if the file is bad at the start."""

    def __init__(self, paths: Paths, nodes: Callable[[], NodeMap]) -> None:
        self._paths = paths
        self._nodes = nodes
        self._tuning = self._load()
        self._stamp = self._stamp_now()
        self._next_look = time.monotonic() + LOOK_EVERY_S

    @property
    def others(self) -> Costs:
        """For nodes that the file does not name."""
        return self._now().others

    def call_s(self, nodes: NDArray[np.uint32]) -> Floats:
        """A redirected call from each of these nodes, in seconds. `nodes`: addresses in order, as
        in a `VectorTable`."""
        tuning = self._now()
        found = np.full(len(nodes), tuning.others.call_us / 1e6, np.float32)
        for name, _ in tuning.lines:
            if name != EVERY:
                found[nodes == int(ipaddress.IPv4Address(name))] = tuning.of(name).call_us / 1e6
        return found

    def _now(self) -> Tuning:
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_EVERY_S
            self.look()
        return self._tuning

    def look(self) -> None:
        """Read it again if it is another one."""
        stamp = self._stamp_now()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._tuning = self._load()
        except MosixError as error:
            _log.error("%s; the costs known before hold", error.line())

    def _load(self) -> Tuning:
        return load_tuning(self._paths, self._nodes().resolve_number_or_ip)

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            status = self._paths.tuning.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino
