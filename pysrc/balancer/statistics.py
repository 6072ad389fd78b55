"""What each process did lately, decaying: CPU, system calls, bytes, faults, dirtied memory.

mosd adds what it measured every second; the policy reads rates. All processes lie in one array,
so that a second costs nanoseconds per process. Decaying (MOSIX(7), decayrate): the rate 0…10000 is
how many ten-thousandths of the past are kept per second. Must never ask the kernel anything.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Per second of wall time; CPU in seconds, memory in MB.
STATISTICS: Final = ("cpu", "calls", "read_bytes", "written_bytes", "faults", "dirty_mb")
COLUMN: Final = {name: index for index, name in enumerate(STATISTICS)}
#: Kept per second in ten-thousandths: half of it is left after 27 s (mosrun -t), 9 s.
SLOW_DECAY: Final = 9750
FAST_DECAY: Final = 9260
NEVER_FORGET: Final = 10_000
_FIRST_ROWS: Final = 16


class Statistics:
    """Rows for processes, found by any hashable name (mosd: its PID).

    `amounts` decays towards what is new; `seconds` decays likewise, so that their quotient is a
    rate without bias: one of a process that is a second old is as true as an old one's."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, int] = {}
        self._free: list[int] = []
        self._allocate(_FIRST_ROWS)

    def _allocate(self, rows: int) -> None:
        width = len(STATISTICS)
        self._amounts = np.zeros((rows, width))
        self._seconds = np.zeros(rows)
        self._total_cpu = np.zeros(rows)
        self._kept = np.ones(rows)
        self._cpujob = np.zeros(rows, np.bool_)
        self._free = list(range(rows))[::-1]

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._rows

    def add(
        self, name: Hashable, *, decayrate: int = SLOW_DECAY, cpujob: bool = False, age_s: float = 0
    ) -> int:
        """A new process; its row. `age_s`: CPU seconds it used before, elsewhere. ValueError if
        it is there already or the decay rate is none."""
        if name in self._rows:
            raise ValueError(f"{name} has statistics already")
        kept = _kept(decayrate)
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._rows[name] = row
        self._amounts[row] = 0
        self._seconds[row] = 0
        self._total_cpu[row] = age_s
        self._kept[row] = kept
        self._cpujob[row] = cpujob
        return row

    def _grow(self) -> None:
        old = (self._amounts, self._seconds, self._total_cpu, self._kept, self._cpujob)
        rows = len(old[1])
        self._allocate(2 * rows)
        new = (self._amounts, self._seconds, self._total_cpu, self._kept, self._cpujob)
        for source, target in zip(old, new, strict=True):
            target[:rows] = source
        self._free = list(range(rows, 2 * rows))[::-1]

    def remove(self, name: Hashable) -> None:
        """It ended or left. KeyError."""
        self._free.append(self._rows.pop(name))

    def clear(self, name: Hashable) -> None:
        """MOSIX(7), clear: forget what it did; its age stays what it is."""
        row = self._rows[name]
        self._amounts[row] = 0
        self._seconds[row] = 0

    def set_decayrate(self, name: Hashable, decayrate: int) -> None:
        self._kept[self._rows[name]] = _kept(decayrate)

    def set_cpujob(self, name: Hashable, on: bool) -> None:
        """MOSIX(7), cpujob: 1 leaves system calls and I/O out of decisions."""
        self._cpujob[self._rows[name]] = on

    def rows(self, names: list[Hashable]) -> NDArray[np.intp]:
        """KeyError if one is not there."""
        return np.array([self._rows[name] for name in names], np.intp)

    def advance(self, seconds: float, rows: NDArray[np.intp], amounts: Floats) -> None:
        """`seconds` went by, in which the processes of `rows` (each once) did `amounts`
        (len(rows), statistics); all others nothing. Negative or NaN counts as nothing: counters
        of /proc start anew when a process moves."""
        if not seconds > 0:
            return
        kept = self._kept**seconds
        self._amounts *= kept[:, None]
        self._seconds *= kept
        # What is new counts whole: with decayrate 0 only the newest window is left.
        self._seconds += seconds
        new = np.where(amounts > 0, amounts, 0.0)
        self._amounts[rows] += new
        self._total_cpu[rows] += new[:, COLUMN["cpu"]]

    def rates(self, rows: NDArray[np.intp]) -> Floats:
        """(len(rows), statistics) per second; 0 of a process about which nothing is known yet."""
        seconds = self._seconds[rows]
        known = np.where(seconds > 0, seconds, 1.0)
        found: Floats = self._amounts[rows] / known[:, None]
        quiet = self._cpujob[rows]
        if quiet.any():
            found[quiet[:, None] & _IO] = 0
        return found

    def ages(self, rows: NDArray[np.intp]) -> Floats:
        """CPU seconds used in the whole life, which say how much is to be expected."""
        found: Floats = self._total_cpu[rows]
        return found


_IO: Final = np.isin(STATISTICS, ("calls", "read_bytes", "written_bytes"))


def _kept(decayrate: int) -> float:
    if not 0 <= decayrate <= NEVER_FORGET:
        raise ValueError(f"decayrate {decayrate} is not in 0…{NEVER_FORGET}")
    return decayrate / NEVER_FORGET
