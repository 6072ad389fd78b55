"""The agent of one process: puts the blob into it, lets it obey or serve, takes it out again.

Used by the deputy (the blob in a ghost) and by the remote (in a guest while it is filled). The
blob itself is agent.c and agent_serve.c; what both sides agree on is in abi.h. What an agent is
told while it obeys is in `mosix.native.orders`.
Methods that stop or resume the process (`inject`, `obey`, `finish`, `serve`, `pause`, `unpause`,
`leave`, `abandon`, `mark_cancelled`, `install_filter`) must come from the thread that traces it;
`relocate` is an order, too.
Until `serve` the host's own body must stay as it was, whatever happens to this process.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Sequence

from mosix.errors import KernelError, MoveFailedError
from mosix.native._native import ffi, lib
from mosix.native.blob import (
    Range,
    find_hole,
    load_blob,
    make_control,
    ranges_of,
    strerror,
    take_fd,
)
from mosix.native.orders import Orders
from mosix.native.stops import Registers, Stop
from mosix.native.tracee import Tracee

_M64 = (1 << 64) - 1
_ALL_SIGNALS = _M64

# x86-64 system call numbers
_NR_MMAP, _NR_MUNMAP, _NR_CLOSE, _NR_GETPID, _NR_GETTID = 9, 11, 3, 39, 186
_NR_PRCTL, _NR_SECCOMP, _NR_RT_TGSIGQUEUEINFO = 157, 317, 297
_PROT_RWX = 7
_MAP_PRIVATE_ANONYMOUS_NOREPLACE = 0x2 | 0x20 | 0x100000
_NO_FD = _M64
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_SOCK_FILTER_SIZE = 8


class Agent(Orders):
    """The blob in one process. Not created directly: `Agent.inject`.

    After `inject` the process stands still and is what it was; `obey` lets the agent run."""

    def __init__(
        self, tracee: Tracee, base: int, control: socket.socket, number: int, way_back: bool
    ) -> None:
        super().__init__(tracee, base, control)
        self._way_back = way_back
        self._number = number  # of the control socket inside
        self._call_number = -1  # of the call socket, which is one of them
        # the host's own state, until `serve`
        self._registers = tracee.registers
        self._mask = tracee.signal_mask
        self._cure: int | None = None
        # where serve was left by `pause`
        self._paused: tuple[bytes, int] | None = None
        self._serving = False
        self._restart_serve = False

    # ---- going in ----

    @classmethod
    def inject(cls, tracee: Tracee, avoid: Iterable[Range], *, way_back: bool = True) -> Agent:
        """Puts the blob into the stopped process, outside its memory and the ranges `avoid`.

        Only self-curing injected calls: whenever we die, the process goes on as it was (it may
        keep a mapping or a descriptor). `way_back`: so it does while the agent obeys, too; not for
        an empty guest, whose vdso is moved. MoveFailedError when it has no room."""
        blob = load_blob()
        base = find_hole(blob.size, [*ranges_of(tracee.pid), *avoid])
        got = tracee.inject(
            _NR_MMAP, base, blob.size, _PROT_RWX, _MAP_PRIVATE_ANONYMOUS_NOREPLACE, _NO_FD, 0
        )
        if got != base:
            raise MoveFailedError(f"no memory for the agent: {strerror(got)}")
        try:
            tracee.write(base, blob.image)
            control, number = make_control(tracee, base + blob.scratch[0])
        except BaseException:
            if tracee.alive:
                tracee.inject(_NR_MUNMAP, base, blob.size)
            raise
        return cls(tracee, base, control, number, way_back)

    @property
    def paused(self) -> bool:
        """It stands, or obeys, between `pause` and what ends that."""
        return self._paused is not None

    @property
    def call_return(self) -> int:
        """Address behind the instruction that makes a redirected call."""
        return self._base + int(load_blob().header.call_return)

    # ---- obeying ----

    def obey(self) -> None:
        """Resumes the stopped process in the agent; it then waits for orders.

        No signal is delivered to it until `leave`, `abandon`, `serve` or `unpause`."""
        header = load_blob().header
        registers = self._tracee.get_registers()
        stack = self._base + header.stack_top
        if self._paused is not None and not self._restart_serve:
            stack = Registers.unpack(self._paused[0]).rsp - 256  # below what serve keeps there
        elif not self._serving and self._cure is None:
            self._set_state(control_fd=self._number)
            if self._way_back:
                self._prepare_cure()
        registers.rip = self._base + header.obey_entry
        registers.rsp = stack
        registers.orig_rax = _M64
        self._tracee.set_registers(registers)
        # Only now: as long as the registers were the host's nothing would have unblocked them.
        self._tracee.signal_mask = _ALL_SIGNALS
        self._obeying = True
        self._tracee.cont()

    def _prepare_cure(self) -> None:
        """Tells the agent how to give the process back to its body if we die."""
        self._cure, self._registers = self._tracee.prepare_cure()
        self._mask = self._tracee.signal_mask
        host = self._tracee.get_registers()
        saved = ffi.new("struct mx_agent_saved *")
        for name in ("rbx", "rbp", "rsp", "r12", "r13", "r14", "r15"):
            setattr(saved, name, getattr(host, name))
        saved.rflags = host.eflags
        self.write(self._base + load_blob().header.saved_offset, bytes(ffi.buffer(saved)))
        self._set_state(cure=self._cure)

    def close_fd(self, number: int) -> None:
        """Closes a descriptor of ours in the process. Stopped or obeying."""
        self._call_anyhow(_NR_CLOSE, number)
        self._fds.discard(number)

    def finish(self) -> None:
        """Stops the process where the agent waits for an order. No effect if it stands already.

        MoveFailedError if it ended."""
        if not self._obeying:
            return
        stop = self._tracee.stop(on_signal=self._never_here)
        self._obeying = False
        if stop.ended:
            raise MoveFailedError(f"process {self.pid} ended")

    def _never_here(self, stop: Stop) -> int:
        """All signals are blocked: one that comes all the same is a fault of the agent's."""
        return stop.signal

    # ---- serving ----

    def serve(self, call_fd: int, guest_mask: int, ignored: int) -> None:
        """The move is committed: the stopped process serves the call socket `call_fd` (its
        number there) and is a ghost from now on, with the guest's signal mask. Resumes it."""
        self._forget_cure()
        self._set_state(
            call_fd=call_fd,
            control_fd=self._number,
            cure=0,
            current_id=0,
            cancelled=0,
            signals=0,
            guest_mask=guest_mask,
            ignored=ignored,
        )
        self._paused = None
        self._call_number = call_fd
        self._serving = True
        self._enter_serve((guest_mask | ignored) & _M64)

    def serve_on(self, call_fd: int, signals: int = 0) -> None:
        """Like `unpause`, but on another call socket: the body is at another node now, where it
        gets `signals` before it runs."""
        old = self._field("call_fd")
        if old >= 0 and old != call_fd:
            self._tracee.inject(_NR_CLOSE, old)
            self._fds.discard(old)
        self._set_state(
            call_fd=call_fd,
            current_id=0,
            cancelled=0,
            signals=signals,
            broken=0,
            first=0,
            ahead_size=0,
            ahead_left=0,
        )
        self._forget_reply()
        self._call_number = call_fd
        self._restart_serve = True
        self.unpause()

    def _enter_serve(self, mask: int) -> None:
        header = load_blob().header
        registers = self._tracee.get_registers()
        registers.rip = self._base + header.serve_entry
        registers.rsp = self._base + header.stack_top
        registers.orig_rax = _M64
        self._restart_serve = False
        self._tracee.set_registers(registers)
        self._tracee.signal_mask = mask
        self._tracee.cont()

    def pause(self, keep: Callable[[Stop], bool] = lambda _: False) -> None:
        """Stops the serving process, so that it can `obey`; `unpause` goes on exactly there.

        Signals that it is given just now and that are not for `keep` are put back into its
        queue: they come again when the signals are unblocked. MoveFailedError if it ended."""
        tracee = self._tracee
        met: list[bytes] = []

        def postpone(stop: Stop) -> int:
            if not keep(stop):
                met.append(tracee.siginfo)
            return 0

        stop = tracee.current
        if stop is not None and stop.kind == "signal":
            postpone(stop)
            tracee.cont(0)
        stop = tracee.stop(on_signal=postpone)
        if stop.ended:
            raise MoveFailedError(f"process {self.pid} ended")
        self._paused = tracee.registers, tracee.signal_mask
        tracee.signal_mask = _ALL_SIGNALS
        self._follow_numbers()
        if met:
            self._queue_again(met)

    def _follow_numbers(self) -> None:
        """The serving half gives way when the program wants a number of ours."""
        state = self._read_state()
        self._number = state.control_fd
        if state.broken or state.renewals != self._renewals:
            # It waits for another call socket, which may have come: from where it began then.
            self._set_state(broken=0)
            self._restart_serve = True
        if state.call_fd != self._call_number:
            self._fds.discard(self._call_number)
            if state.call_fd >= 0:
                self._fds.add(state.call_fd)
            self._call_number = state.call_fd

    def _queue_again(self, signals: Sequence[bytes]) -> None:
        """Only a process itself may queue siginfo of the kernel's kinds."""
        scratch = self._base + load_blob().scratch[0]
        me, thread = self._tracee.inject_many([(_NR_GETPID, ()), (_NR_GETTID, ())])
        for info in signals:
            self._tracee.write(scratch, info)
            (number,) = struct.unpack_from("<i", info)
            self._tracee.inject(_NR_RT_TGSIGQUEUEINFO, me, thread, number, scratch)

    def unpause(self) -> None:
        """Back into serve, where `pause` found it (or at its beginning if the blob or its area
        moved in between: no call was in flight then). Resumes it."""
        self.finish()
        if self._paused is None:
            raise ValueError("not paused")
        registers, mask = self._paused
        self._paused = None
        if self._restart_serve:
            self._enter_serve(mask)
            return
        # A receive that the stop interrupted has its restart code in rax: at this kind of stop
        # the kernel itself restarts it.
        self._tracee.registers = registers
        self._tracee.signal_mask = mask
        self._tracee.cont()

    def mark_cancelled(self, code: int) -> None:
        """At a stop at `call_return` (or before the call): the request gets the reply `code`
        (-errno or a restart code) with MX_REP_CANCELLED when the process is resumed."""
        self._set_state(cancelled=1)
        registers = self._tracee.get_registers()
        registers.rip = self.call_return
        registers.rax = code & _M64
        registers.orig_rax = _M64
        self._tracee.set_registers(registers)

    def count_signal(self) -> None:
        """At a stop: a signal was taken from the ghost for the guest, which must have taken it
        before any further call of its is made."""
        self._set_state(signals=self._field("signals") + 1)

    def mark_overtaken(self) -> None:
        """At a stop: the request being executed gets MX_REP_CANCELLED with whatever its result
        will be, because a signal has to be taken before that is seen."""
        self._set_state(cancelled=1)

    def forget_area(self) -> None:
        """The serving half's scratch memory is about to be unmapped by somebody else."""
        self._set_state(area=0, area_size=0, reply=0, kept=0)
        self._restart_serve = True

    def _forget_reply(self) -> None:
        """The guest is another one, which counts its calls anew."""
        state = self._read_state()
        if state.kept:
            self._tracee.inject(_NR_MUNMAP, state.kept, state.kept_size)
        self._set_state(last_id=0, reply=0, kept=0)

    # ---- moving aside, going out ----

    def relocate(self, avoid: Iterable[Range]) -> None:
        """Moves the blob if it lies in one of the ranges `avoid`. Stopped or obeying."""
        wanted = list(avoid)
        start, end = self.blob
        if not any(low < end and start < high for low, high in wanted):
            return
        size = end - start
        base = find_hole(size, [*ranges_of(self.pid), *wanted])
        got = self._call_anyhow(
            _NR_MMAP, base, size, _PROT_RWX, _MAP_PRIVATE_ANONYMOUS_NOREPLACE, _NO_FD, 0
        )
        if got != base:
            raise MoveFailedError(f"no memory to move the agent: {strerror(got)}")
        header = load_blob().header
        self.write(base, load_blob().image)
        for offset, kind in (
            (header.state_offset, "struct mx_agent_state"),
            (header.saved_offset, "struct mx_agent_saved"),
        ):
            self.write(base + offset, self.read(start + offset, ffi.sizeof(kind)))
        if self._obeying:
            with self._lock:
                self._send(lib.MX_OP_MOVE, 1, struct.pack("<Q", base))
                self._receive()
        self._base = base
        self._restart_serve = True
        if not self._obeying and self._paused is not None:
            # where the injected call returns to, should we die just then
            registers = self._tracee.get_registers()
            registers.rip = base + header.obey_entry
            registers.rsp = base + header.stack_top
            registers.orig_rax = _M64
            self._tracee.set_registers(registers)
        self._call_anyhow(_NR_MUNMAP, start, size)

    def _call_anyhow(self, nr: int, *args: int) -> int:
        return self.call(nr, *args) if self._obeying else self._tracee.inject(nr, *args)

    def install_filter(self, program: bytes, flags: int = SECCOMP_FILTER_FLAG_NEW_LISTENER) -> int:
        """Puts a seccomp filter (array of struct sock_filter) on the process and returns our
        descriptor of its listener (-1: the flags ask for none). The process stands still afterwards
        (`finish`), and every later call in its name passes the filter: somebody must answer the
        listener."""
        self.finish()
        scratch = self._base + load_blob().scratch[0]
        count = len(program) // _SOCK_FILTER_SIZE
        head = struct.pack("<HxxxxxxQ", count, scratch + 16)
        if len(head) + len(program) > load_blob().size - load_blob().scratch[0]:
            raise ValueError(f"a filter of {count} instructions is too long")
        self._tracee.write(scratch, head + program)
        privileges, number = self._tracee.inject_many(
            [
                (_NR_PRCTL, (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)),
                (_NR_SECCOMP, (_SECCOMP_SET_MODE_FILTER, flags, scratch)),
            ]
        )
        if privileges < 0 or number < 0:
            raise KernelError(f"seccomp refused the filter: {strerror(min(privileges, number))}")
        if not flags & SECCOMP_FILTER_FLAG_NEW_LISTENER:
            return -1
        self._fds.add(number)
        return take_fd(self.pid, number)

    def leave(self, registers: bytes, xstate: bytes, mask: int) -> None:
        """Takes the agent out; the process stands still with exactly this state.

        MoveFailedError if it ended."""
        self.finish()
        self._tracee.xstate = xstate
        self._go_out(registers, mask)

    def abandon(self) -> None:
        """Takes the agent out before the commit; the process stands still as it was found."""
        if self._serving:
            raise ValueError("the body is no longer here")
        self.finish()
        self._go_out(self._registers, self._mask)

    def _go_out(self, registers: bytes, mask: int) -> None:
        state = self._read_state()
        area, area_size, kept, kept_size = (
            state.area,
            state.area_size,
            state.kept,
            state.kept_size,
        )
        start, end = self.blob
        calls: list[tuple[int, Sequence[int]]] = [(_NR_MUNMAP, (start, end - start))]
        if area:
            calls.append((_NR_MUNMAP, (area, area_size)))
        if kept:
            calls.append((_NR_MUNMAP, (kept, kept_size)))
        calls += [(_NR_CLOSE, (number,)) for number in (self._number, *sorted(self._fds))]
        # First the state, then the calls: the stub restores what it finds.
        self._tracee.registers = registers
        self._tracee.signal_mask = mask
        self._tracee.inject_many(calls)
        self._forget_cure()
        self._fds.clear()
        self._serving, self._paused = False, None
        self.close()

    def forget_host(self) -> None:
        """The host's own body is about to go: from now on the agent kills the process when its
        control socket ends. Called before memory is removed; no ptrace."""
        self._set_state(cure=0)

    def _forget_cure(self) -> None:
        if self._cure is not None:
            self._tracee.forget_cure(self._cure)
            self._cure = None

    def close(self) -> None:
        """Closes our end of the control socket; an agent that still runs then ends (see abi.h)."""
        self._control.close()
