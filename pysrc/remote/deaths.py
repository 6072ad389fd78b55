"""Signals of its own node's kernel that would end a guest: it goes home first and ends there.

Faults, and the limit of CPU time. So status, core and what the shell says are the process's own.
Called by `mosix.remote.guest` at a signal-delivery stop. It must never let the guest run.
"""

from __future__ import annotations

import contextlib
import signal
import struct
from collections.abc import Callable

from mosix.native.tracee import Tracee

_FAULTS = frozenset((signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV))
_SI_CODE = struct.Struct("<8xi")
_SI_KERNEL = 0x80
_RLIM_NONE = 2**64  # RLIM_INFINITY is -1 in 64 bits
_INT3 = b"\xcc"


def reason_to_go_home(
    tracee: Tracee, number: int, hard_limit_s: int, used_ns: Callable[[], int]
) -> str | None:
    """Why signal `number`, at which the guest stands, is not for it to take; None: it is.

    `hard_limit_s`: RLIMIT_CPU of the process; `used_ns`: what it has used on all nodes."""
    (code,) = _SI_CODE.unpack_from(tracee.siginfo)
    if number in _FAULTS and code > 0:
        caught, blocked, _ = _handled(tracee.pid, number)
        return None if caught and not blocked else f"fault (signal {number})"
    if number == signal.SIGXCPU and code == _SI_KERNEL:
        caught, _, ignored = _handled(tracee.pid, number)
        is_limited = hard_limit_s % _RLIM_NONE != _RLIM_NONE - 1
        if not (caught or ignored) or (is_limited and used_ns() >= hard_limit_s * 10**9):
            return "used all the CPU time that it may"
    return None


def stop_before(tracee: Tracee, number: int) -> None:
    """Instead of taking it the guest stands where home will meet it again."""
    tracee.stop(on_signal=lambda _: 0)
    if number == signal.SIGTRAP:
        _step_back_over_int3(tracee)


def _step_back_over_int3(tracee: Tracee) -> None:
    """A breakpoint instruction traps behind itself; at home it must be executed again."""
    registers = tracee.get_registers()
    with contextlib.suppress(OSError):
        if tracee.read(registers.rip - 1, 1) == _INT3:
            registers.rip -= 1
            tracee.set_registers(registers)


def _handled(pid: int, number: int) -> tuple[bool, bool, bool]:
    """(has a handler, is blocked, is ignored) for signal `number` of process `pid`."""
    bit = 1 << (number - 1)
    masks = {}
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(("SigCgt:", "SigBlk:", "SigIgn:")):
                masks[line[:6]] = int(line.split()[1], 16)
    caught, blocked, ignored = (bool(masks[name] & bit) for name in ("SigCgt", "SigBlk", "SigIgn"))
    return caught, blocked, ignored
