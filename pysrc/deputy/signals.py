"""What becomes of a signal that the ghost was about to take.

`decide` is pure; `disposition` reads what the kernel says of the ghost, whose table of
dispositions is always the guest's. Called by `mosix.deputy.process` at a signal-delivery stop.
"""

from __future__ import annotations

import enum
import signal
from pathlib import Path

from mosix.errors import NoSuchProcessError

IGNORED_BY_DEFAULT = frozenset({signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT})
STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
DUMPS_CORE = frozenset(
    {
        signal.SIGQUIT,
        signal.SIGILL,
        signal.SIGABRT,
        signal.SIGFPE,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGSYS,
        signal.SIGTRAP,
        signal.SIGXCPU,
        signal.SIGXFSZ,
    }
)


class Fate(enum.Enum):
    FORWARD = "a handler runs in the guest"
    DROP = "nothing happens"
    TAKE = "the ghost takes it as any process would: it stops or dies"
    HOME_FIRST = "the body comes home and dies there, so that the core is its own"


def decide(number: int, *, caught: int, ignored: int, core_limit: int) -> Fate:
    """Fate of signal `number`; `caught` and `ignored` are masks (bit n-1 is signal n)."""
    bit = 1 << (number - 1)
    if caught & bit:
        return Fate.FORWARD
    if ignored & bit or number in IGNORED_BY_DEFAULT:
        return Fate.DROP
    if number in DUMPS_CORE and core_limit > 0:
        return Fate.HOME_FIRST
    return Fate.TAKE


def dispositions(pid: int) -> tuple[int, int]:
    """(caught, ignored) masks of `pid`, from /proc/PID/status."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise NoSuchProcessError(f"process {pid} is gone") from error
    masks = {}
    for line in status.splitlines():
        if line.startswith(("SigCgt:", "SigIgn:")):
            name, value = line.split(":")
            masks[name] = int(value, 16)
    return masks["SigCgt"], masks["SigIgn"]


def name(number: int) -> str:
    """SIGKILL, SIGRTMIN+3…"""
    if signal.SIGRTMIN < number < signal.SIGRTMAX:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    return signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"


def core_limit(pid: int) -> int:
    """Soft RLIMIT_CORE of `pid` in bytes; 0 when it cannot be read."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in limits.splitlines():
        if line.startswith("Max core file size"):
            soft = line[26:].split()[0]
            return 2**62 if soft == "unlimited" else int(soft)
    return 0
