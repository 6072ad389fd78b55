"""One traced process: stops, registers, signals, memory and system calls made in its name.

Used by capture, restore, the agent, deputy and remote. A thin, typed layer over ptrace(2); the
fiddly part (injection that cures itself when we die) is `inject.c`. It must never decide where a
process belongs, and never leave a process worse off when the tracer is killed: options always
hold PTRACE_O_TRACESYSGOOD, stops are looked at with WNOWAIT.
All calls for one tracee must come from the thread that seized it (the kernel demands it); blocking
ones release the GIL.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from mosix.native._native import ffi, lib
from mosix.native.stops import (
    NT_X86_XSTATE,
    PTRACE_CONT,
    PTRACE_DETACH,
    PTRACE_INTERRUPT,
    PTRACE_LISTEN,
    PTRACE_O_TRACESYSGOOD,
    PTRACE_SEIZE,
    PTRACE_SETOPTIONS,
    REGISTERS_SIZE,
    Registers,
    Reissue,
    SleepEvidence,
    StillAsleepError,
    Stop,
    TraceError,
    decode_stop,
)

_SIGINFO_SIZE = 128
_MAX_PENDING = 4096
_PF_EXITING = 4  # <linux/sched.h>, in the flags of /proc/PID/stat
_PENDING_LINE = re.compile(rb"^SigPnd:\s+([0-9a-f]+)$", re.M)
_XSTATE_MAX = 16384
_M64 = (1 << 64) - 1

SYS_MMAP = 9
SYS_MUNMAP = 11

OnSignal = Callable[[Stop], int]


class Tracee:
    """A process that this thread has seized. Not created directly: `Tracee.seize`."""

    def __init__(self, pid: int, options: int) -> None:
        self.pid = pid
        self.options = options
        #: the stop it stands in, None while it runs
        self.current: Stop | None = None
        #: set once it is known to have ended
        self.end: Stop | None = None
        #: called in `stop`: True once an interrupt is pending, False when it stands still
        self.stopping: Callable[[bool], None] | None = None
        #: where it slept when `stop` interrupted it (for `mosix.image.pending`)
        self.sleep: SleepEvidence | None = None
        self._site: Any = None
        #: an interrupt whose stop is still to come: a second one would stop it once more
        self._asked = False

    @classmethod
    def seize(cls, pid: int, options: int = 0) -> Tracee:
        """Attach without stopping. TraceError: EPERM (another tracer, other user, Yama, not
        dumpable, or a zombie), ESRCH (gone)."""
        options |= PTRACE_O_TRACESYSGOOD
        error = lib.mx_ptrace(PTRACE_SEIZE, pid, 0, options)
        if error == -errno.EPERM:
            raise TraceError(
                f"cannot trace process {pid}",
                errno.EPERM,
                "another debugger traces it, it belongs to another user, or it has just ended",
            )
        if error < 0:
            raise TraceError(f"cannot trace process {pid}", -error)
        return cls(pid, options)

    @property
    def alive(self) -> bool:
        return self.end is None

    @property
    def dying(self) -> bool:
        """It has ended, or has been killed and will be seen to have ended in a moment."""
        if self.end is not None:
            return True
        fields = _read_proc(self.pid, "stat").rpartition(b")")[2].split()
        if not fields or fields[0] in (b"Z", b"X") or int(fields[6]) & _PF_EXITING:
            return True
        match = _PENDING_LINE.search(_read_proc(self.pid, "status"))
        return match is not None and bool(int(match[1], 16) & 1 << signal.SIGKILL - 1)

    # ---- stops ----

    def interrupt(self) -> None:
        """Ask for a PTRACE_EVENT_STOP; it is met by `wait`."""
        self._ptrace(PTRACE_INTERRUPT)

    def wait(self, block: bool = True, deadline: float = math.inf) -> Stop | None:
        """The stop or end it is in; None if it runs and `block` is false. Looking again at a
        stop gives the same stop until the process is resumed.

        StillAsleepError: a signal came behind `deadline` (time.monotonic)."""
        if self.end is not None:
            return self.end
        code, status = ffi.new("int *"), ffi.new("int *")
        while True:
            result = lib.mx_wait(self.pid, block, code, status)
            if result != -errno.EINTR:
                break
            if time.monotonic() >= deadline:
                self._asked = True
                raise StillAsleepError(
                    f"process {self.pid} does not stop",
                    errno.EBUSY,
                    "it waits in the kernel for something that cannot be interrupted",
                )
        if result < 0:
            self.end = Stop("killed", signal.SIGKILL, 0, 0)
            raise TraceError(f"process {self.pid} is no longer traced", -result)
        if result == 0:
            return None
        stop = decode_stop(code[0], status[0])
        self._asked = False
        if stop.ended:
            self.end = stop
            self.current = None
        else:
            self.current = stop
        return stop

    def stop(self, on_signal: OnSignal | None = None, patience_s: float | None = None) -> Stop:
        """Make it stand still in a PTRACE_EVENT_STOP (or tell its end).

        With `patience_s` it is waited for no longer: StillAsleepError, and the stop comes later.
        Only the main thread can have patience, since an alarm ends it.
        Signals met on the way are passed on, or `on_signal` says what is delivered instead
        (0: nothing). Other events met on the way (exec, fork) are passed."""
        stop = self.current
        if stop is not None and stop.quiet:
            return stop
        asleep = _schedule(self.pid) if stop is None else None
        try:
            if not self._asked:
                self.interrupt()
        except TraceError as error:
            if error.errno != errno.ESRCH:
                raise
            # Killed: the end comes, if it is not there already.
        if self.stopping is not None:
            self.stopping(True)
        try:
            with _alarm(patience_s) as deadline:
                return self._wait_for_quiet(on_signal, asleep, deadline)
        finally:
            if self.stopping is not None:
                self.stopping(False)

    def _wait_for_quiet(
        self, on_signal: OnSignal | None, asleep: tuple[bytes, bytes] | None, deadline: float
    ) -> Stop:
        while True:
            stop = self.wait(deadline=deadline)
            assert stop is not None
            if stop.ended or stop.quiet:
                self.sleep = (
                    SleepEvidence(*asleep, _read_proc(self.pid, "sched")) if asleep else None
                )
                return stop
            asleep = None
            deliver = 0
            if stop.kind == "signal":
                deliver = on_signal(stop) if on_signal else stop.signal
            try:
                self.interrupt()  # any trap has cleared the one before
                self.cont(deliver)
            except TraceError as error:
                if error.errno != errno.ESRCH:  # killed in that stop: as above
                    raise

    def cont(self, signal: int = 0) -> None:
        """Resume; from a signal's stop `signal` is delivered, from others it is ignored.
        A process in group stop runs: to leave it stopped use `listen`."""
        self.current = None
        self._ptrace(PTRACE_CONT, 0, signal)

    def listen(self) -> None:
        """Let a process in group stop stay stopped, and report when it is continued."""
        self.current = None
        self._ptrace(PTRACE_LISTEN)

    def detach(self, signal: int = 0) -> None:
        """Let go of it; it runs on, or stays stopped if a job control stop is in effect."""
        self.current = None
        self._ptrace(PTRACE_DETACH, 0, signal)

    def set_options(self, options: int) -> None:
        self.options = options | PTRACE_O_TRACESYSGOOD
        self._ptrace(PTRACE_SETOPTIONS, 0, self.options)

    def _ptrace(self, request: int, addr: int = 0, data: int = 0) -> int:
        return self._check(lib.mx_ptrace(request, self.pid, addr, data), "ptrace")

    def _check(self, result: int, what: str) -> int:
        if result < 0:
            raise TraceError(f"{what} of process {self.pid}", -result)
        return result

    # ---- registers and signals ----

    @property
    def registers(self) -> bytes:
        buffer = ffi.new("char[]", REGISTERS_SIZE)
        self._check(lib.mx_get_regs(self.pid, buffer), "registers")
        return bytes(ffi.buffer(buffer))

    @registers.setter
    def registers(self, data: bytes) -> None:
        if len(data) != REGISTERS_SIZE:
            raise ValueError("registers have 216 bytes")
        self._check(lib.mx_set_regs(self.pid, data), "registers")

    def get_registers(self) -> Registers:
        return Registers.unpack(self.registers)

    def set_registers(self, registers: Registers) -> None:
        self.registers = registers.pack()

    @property
    def xstate(self) -> bytes:
        """The extended state (x87, SSE, AVX…) in XSAVE layout."""
        buffer = ffi.new("char[]", _XSTATE_MAX)
        size = lib.mx_get_regset(self.pid, NT_X86_XSTATE, buffer, _XSTATE_MAX)
        return bytes(ffi.buffer(buffer, self._check(size, "xstate")))

    @xstate.setter
    def xstate(self, data: bytes) -> None:
        self._check(lib.mx_set_regset(self.pid, NT_X86_XSTATE, data, len(data)), "xstate")

    @property
    def signal_mask(self) -> int:
        """Blocked signals; inside sigsuspend and the like the mask that it will return to."""
        mask = ffi.new("uint64_t *")
        self._check(lib.mx_get_sigmask(self.pid, mask), "signal mask")
        return int(mask[0])

    @signal_mask.setter
    def signal_mask(self, mask: int) -> None:
        self._check(lib.mx_set_sigmask(self.pid, mask), "signal mask")

    @property
    def siginfo(self) -> bytes:
        buffer = ffi.new("char[]", _SIGINFO_SIZE)
        self._check(lib.mx_get_siginfo(self.pid, buffer), "siginfo")
        return bytes(ffi.buffer(buffer))

    def pending(self, shared: bool) -> list[bytes]:
        """siginfo_t of what waits in the thread's own or the process's queue, in order."""
        buffer = ffi.new("char[]", _MAX_PENDING * _SIGINFO_SIZE)
        count = lib.mx_peek_siginfo(self.pid, shared, buffer, _MAX_PENDING)
        self._check(count, "pending signals")
        data = bytes(ffi.buffer(buffer, count * _SIGINFO_SIZE))
        return [data[i : i + _SIGINFO_SIZE] for i in range(0, len(data), _SIGINFO_SIZE)]

    def rseq(self) -> tuple[int, int, int] | None:
        """(address, size, signature) of the registered rseq area."""
        address, size, sig = ffi.new("uint64_t *"), ffi.new("uint32_t *"), ffi.new("uint32_t *")
        if self._check(lib.mx_get_rseq(self.pid, address, size, sig), "rseq") == 0:
            return None
        return address[0], size[0], sig[0]

    # ---- memory ----

    @property
    def vdso(self) -> tuple[int, int]:
        """Where its kernel's vdso begins and ends."""
        return _find_vdso(self.pid)

    def read(self, addr: int, size: int) -> bytes:
        """`size` bytes at `addr`. OSError EFAULT if not all of it can be read."""
        buffer = bytearray(size)
        done = lib.mx_read(self.pid, addr, ffi.from_buffer(buffer), size)
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        if done < size:
            raise OSError(errno.EFAULT, f"memory of {self.pid} ends at {addr + done:#x}")
        return bytes(buffer)

    def write(self, addr: int, data: bytes) -> None:
        """Write where the program itself could. OSError EFAULT otherwise."""
        done = lib.mx_write(self.pid, addr, data, len(data))
        if done < 0:
            raise OSError(-done, os.strerror(-done))
        if done < len(data):
            raise OSError(errno.EFAULT, f"memory of {self.pid} ends at {addr + done:#x}")

    def poke(self, addr: int, data: bytes) -> None:
        """Write whatever the protection is (a private copy of the page is made)."""
        mem = -1
        if len(data) > 256:
            with contextlib.suppress(OSError):
                mem = os.open(f"/proc/{self.pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
        try:
            self._check(lib.mx_poke(self.pid, mem, addr, data, len(data)), "memory")
        finally:
            if mem >= 0:
                os.close(mem)

    # ---- system calls in its name ----

    def inject(self, nr: int, *args: int) -> int:
        """Make one system call in the stopped process; its result (-errno on failure).

        The process is left as it was, in a PTRACE_EVENT_STOP. The call must not block.
        It passes the process's own seccomp filter: whoever listens there must answer."""
        return self.inject_many([(nr, args)])[0]

    def inject_many(self, calls: Sequence[tuple[int, Sequence[int]]]) -> list[int]:
        """Several calls in one go (about half the time of single ones); all are made, whatever
        the ones before returned."""
        batch = ffi.new("struct mx_injected[]", len(calls))
        for slot, (nr, args) in zip(batch, calls, strict=True):
            slot.nr = nr
            for i, value in enumerate(args):
                slot.args[i] = value & _M64
        status = ffi.new("int *")
        error = lib.mx_inject(self._stub_site(), self.pid, batch, len(calls), status)
        if error == -errno.EBUSY:
            raise TraceError(
                f"cannot make a call in process {self.pid}",
                errno.EBUSY,
                "it is about to be given a signal; deliver it first",
            )
        if error == -errno.ENOSPC:
            raise TraceError(f"vdso of process {self.pid} has no room", errno.ENOSPC)
        if error == -errno.ENOEXEC:
            raise TraceError(f"process {self.pid} runs 32-bit code", errno.ENOEXEC)
        self._check(error, "injected call")
        self.current = decode_stop(4, status[0])
        return [slot.result for slot in batch]

    @contextlib.contextmanager
    def scratch(self, size: int) -> Iterator[int]:
        """Address of `size` fresh bytes in the process, unmapped on leaving."""
        addr = self.inject(SYS_MMAP, 0, size, 3, 0x22, -1, 0)
        if addr < 0:
            raise TraceError(f"no memory in process {self.pid}", -addr)
        try:
            yield addr
        finally:
            if self.alive:
                self.inject(SYS_MUNMAP, addr, size)

    def finish_call(
        self,
        registers: Registers,
        nr: int,
        args: Sequence[int],
        add: int = 0,
        *,
        data: bytes = b"",
        data_arg: int = -1,
    ) -> None:
        """Arrange that on resuming the rest of an interrupted call is made.

        `registers`: the program's context rewound to its ``syscall`` instruction. ``nr(args)``
        is made instead; a result ≥ 0 is returned plus `add`, an error becomes `add` if that is
        not 0. Signals find it as if the program itself were in the call. `data` (≤ 16 bytes,
        read-only, for a timespec) is placed beside it and ``args[data_arg]`` points to it."""
        six = [value & _M64 for value in args] + [0] * (6 - len(args))
        block = ffi.new("char[16]", data) if data_arg >= 0 else ffi.NULL
        error = lib.mx_finish_call(
            self._stub_site(),
            self.pid,
            registers.pack(),
            nr,
            ffi.new("uint64_t[6]", six),
            add,
            block,
            data_arg,
        )
        self._check(error, "reissued call")

    def prepare_cure(self) -> tuple[int, bytes]:
        """A stub through which the stopped process can go back by itself to where it stands
        (its address, for `forget_cure`; see inject.h), and the registers that give it back."""
        stub, registers = ffi.new("uint64_t *"), ffi.new("char[]", REGISTERS_SIZE)
        error = lib.mx_cure_prepare(self._stub_site(), self.pid, stub, registers)
        self._check(error, "way back")
        return int(stub[0]), bytes(ffi.buffer(registers))

    def forget_cure(self, stub: int) -> None:
        self._check(lib.mx_cure_forget(self.pid, stub), "way back")

    def in_stub(self, registers: Registers) -> Reissue | Literal["injection"] | None:
        """Does it stand in a stub: a reissued call, or what a dead tracer left?"""
        out = ffi.new("struct mx_reissue *")
        kind = lib.mx_in_stub(self._stub_site(), self.pid, registers.pack(), out)
        if kind == 1:
            return "injection"
        if kind == 0:
            return None
        return Reissue(out.nr, tuple(out.args), out.add, out.rip, out.offset)

    def stub_on_stack(self) -> bool:
        """Will a signal handler that runs now return into a stub? Such a process cannot be
        given to another vdso."""
        found = lib.mx_stub_on_stack(self._stub_site(), self.pid, self.registers)
        return self._check(found, "stubs") == 1

    def _stub_site(self) -> Any:
        """Where stubs go; found again when the vdso has moved (exec, restore)."""
        if self._site is not None and lib.mx_site_valid(self._site, self.pid):
            return self._site
        start, end = self.vdso
        site = ffi.new("struct mx_site *")
        error = lib.mx_site_init(site, self.pid, start, end)
        if error == -errno.ENOEXEC:
            raise TraceError(f"process {self.pid} runs 32-bit code", errno.ENOEXEC)
        if error < 0:
            raise TraceError(f"vdso of process {self.pid} cannot be used", -error)
        self._site = site
        return site


@contextlib.contextmanager
def _alarm(patience_s: float | None) -> Iterator[float]:
    """Signals, from `patience_s` on, end blocking calls with EINTR: yields that moment."""
    if patience_s is None:
        yield math.inf
        return
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    # Again and again: the first may come just before the call that it is to end.
    signal.setitimer(signal.ITIMER_REAL, patience_s, patience_s)
    try:
        yield time.monotonic() + patience_s
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _read_proc(pid: int, name: str) -> bytes:
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 8192)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _schedule(pid: int) -> tuple[bytes, bytes] | None:
    sched = _read_proc(pid, "sched")
    return (sched, _read_proc(pid, "stat")) if sched else None


def _find_vdso(pid: int) -> tuple[int, int]:
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            for line in maps:
                if line.endswith(b"[vdso]\n"):
                    start, end = line.split(b" ", 1)[0].split(b"-")
                    return int(start, 16), int(end, 16)
    except OSError as error:
        raise TraceError(f"maps of process {pid}", error.errno or errno.EIO) from error
    raise TraceError(f"process {pid} has no vdso", errno.ENOEXEC)
