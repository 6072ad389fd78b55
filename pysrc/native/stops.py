"""What a tracer sees of a process: its stops, its registers, the errors of ptrace(2).

Values only, made by `mosix.native.tracee` and looked at by everything that moves processes. They
must never reach into a process.
"""

from __future__ import annotations

import operator
import os
import signal
import struct
from dataclasses import dataclass, fields
from typing import Literal

from mosix.errors import CannotMoveError

# <linux/ptrace.h>
PTRACE_CONT = 7
PTRACE_DETACH = 17
PTRACE_SYSCALL = 24
PTRACE_SETOPTIONS = 0x4200
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_LISTEN = 0x4208
PTRACE_O_TRACESYSGOOD = 1
PTRACE_O_TRACEFORK = 1 << 1
PTRACE_O_TRACEVFORK = 1 << 2
PTRACE_O_TRACECLONE = 1 << 3
PTRACE_O_TRACEEXEC = 1 << 4
PTRACE_O_TRACEEXIT = 1 << 6
PTRACE_O_TRACESECCOMP = 1 << 7
PTRACE_O_EXITKILL = 1 << 20
PTRACE_EVENT_FORK = 1
PTRACE_EVENT_VFORK = 2
PTRACE_EVENT_CLONE = 3
PTRACE_EVENT_EXEC = 4
PTRACE_EVENT_EXIT = 6
PTRACE_EVENT_SECCOMP = 7
PTRACE_EVENT_STOP = 128
NT_X86_XSTATE = 0x202

#: Result codes with which the kernel restarts a call, seen only by a tracer.
ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK = -512, -513, -514, -516

_STOP_SIGNALS = frozenset((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))
_CLD_EXITED, _CLD_KILLED, _CLD_DUMPED = 1, 2, 3
_M64 = (1 << 64) - 1


class TraceError(CannotMoveError):
    """A ptrace operation failed. `errno` is the kernel's; ESRCH: the process is gone."""

    def __init__(self, what: str, number: int, hint: str = "") -> None:
        super().__init__(f"{what}: {os.strerror(number).lower()}", hint)
        self.errno = number


class StillAsleepError(TraceError):
    """It did not stop in time: it sleeps in the kernel where nothing wakes it (a dead file server,
    a frozen cgroup). It stops when it wakes up."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a tracee stands still, or how it ended.

    ``event``: PTRACE_EVENT_* (`event`); ``group``: stopped by a job control signal; ``signal``:
    about to be given `signal`; ``syscall``: entry or exit of a call; ``exited`` (`status` is the
    exit code) and ``killed`` (`signal`) are ends.
    """

    kind: Literal["event", "group", "signal", "syscall", "exited", "killed"]
    signal: int
    event: int
    status: int

    @property
    def ended(self) -> bool:
        return self.kind in ("exited", "killed")

    @property
    def quiet(self) -> bool:
        """In PTRACE_EVENT_STOP: the one kind of stop from which injecting and resuming is exact."""
        return self.event == PTRACE_EVENT_STOP and not self.ended

    @property
    def wait_status(self) -> int:
        """An end as waitpid(2) reports it (without the core flag)."""
        return self.status << 8 if self.kind == "exited" else self.signal


@dataclass(slots=True)
class Registers:
    """struct user_regs_struct of x86-64, all as unsigned 64-bit integers."""

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    @classmethod
    def unpack(cls, data: bytes) -> Registers:
        return cls(*_REGISTERS.unpack(data))

    def pack(self) -> bytes:
        return _REGISTERS.pack(*(value & _M64 for value in _register_values(self)))

    @property
    def result(self) -> int:
        """rax as a system call's result: signed."""
        return self.rax - (1 << 64) if self.rax >> 63 else self.rax

    @property
    def in_syscall(self) -> bool:
        """The process came from a system call whose result is in rax (not yet seen by it)."""
        return self.orig_rax < 1 << 63

    @property
    def args(self) -> tuple[int, int, int, int, int, int]:
        return self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9


_REGISTERS = struct.Struct("<27Q")
REGISTERS_SIZE = _REGISTERS.size
_register_values = operator.attrgetter(*(field.name for field in fields(Registers)))


@dataclass(frozen=True, slots=True)
class Reissue:
    """A reissue stub in which a process stands: see `Tracee.finish_call`."""

    nr: int
    args: tuple[int, ...]
    add: int
    rip: int
    offset: int


@dataclass(frozen=True, slots=True)
class SleepEvidence:
    """/proc/PID/sched and stat before an interrupt, sched right after the stop; empty where the
    kernel has no such file."""

    sched: bytes
    stat: bytes
    sched_after: bytes


def decode_stop(code: int, status: int) -> Stop:
    """What waitid(2) (`code`) and the status of the stop tell."""
    if code == _CLD_EXITED:
        return Stop("exited", 0, 0, status)
    if code in (_CLD_KILLED, _CLD_DUMPED):
        return Stop("killed", status & 0x7F, 0, status)
    number, event = status & 0xFF, status >> 8
    if event == PTRACE_EVENT_STOP:
        kind: Literal["group", "event"] = "group" if number in _STOP_SIGNALS else "event"
        return Stop(kind, number, event, status)
    if event:
        return Stop("event", number, event, status)
    if number == signal.SIGTRAP | 0x80:
        return Stop("syscall", number, 0, status)
    return Stop("signal", number, 0, status)
