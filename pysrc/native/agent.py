"""The agent of one process: puts the blob into it, gives it orders, takes it out again.

Used by the deputy (the blob in a ghost) and by the remote (in a guest while it is filled). The
blob itself is agent.c and agent_serve.c; what both sides agree on is in abi.h.
Methods that stop or resume the process (`inject`, `obey`, `finish`, `serve`, `pause`, `unpause`,
`leave`, `abandon`, `mark_cancelled`, `install_filter`) must come from the thread that traces it.
The orders (`calls`, `fill`, `give_fd`, `relocate`, `read`, `write`) only use the
control socket and process_vm_*: they block and may come from any thread.
Until `serve` the host's own body must stay as it was, whatever happens to this process.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from mosix.errors import KernelError, MoveFailedError, TransferCutError
from mosix.failpoints import Fault
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
from mosix.native.tracee import Registers, Stop, Tracee

#: An argument of a call: a number; bytes that are placed in the blob's scratch memory; or a
#: function that is told their address and returns them (for structures that point into themselves).
Argument = int | bytes | Callable[[int], bytes]

_M64 = (1 << 64) - 1
_ALL_SIGNALS = _M64
_ARGUMENT_ALIGN = 16
#: How often a blocking order looks whether the process still runs, in seconds.
_LOOK_INTERVAL = 0.05

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

_POUR_BYTES = 1 << 20

_CALLS, _FILL, _FD, _MOVE = lib.MX_OP_CALLS, lib.MX_OP_FILL, lib.MX_OP_FD, lib.MX_OP_MOVE
_RENEW = lib.MX_OP_RENEW


_FAULTS = {
    "kill": lib.MX_FAULT_KILL,
    "cut": lib.MX_FAULT_CUT,
    "stall": lib.MX_FAULT_STALL,
    "error": lib.MX_FAULT_ERROR,
}
_POINTS = {
    "agent.request": lib.MX_FP_REQUEST,
    "agent.executed": lib.MX_FP_EXECUTED,
    "agent.half_reply": lib.MX_FP_HALF_REPLY,
}


class NoDescriptorError(MoveFailedError):
    """The process has used up its descriptors."""


class Run(Protocol):
    """`mosix.image.model.PageRun`, which this layer does not know."""

    @property
    def start(self) -> int: ...
    @property
    def size(self) -> int: ...


class State(NamedTuple):
    """What the deputy looks at of struct mx_agent_state."""

    current_id: int  # request being executed, 0: none
    calls: int
    area: int
    area_size: int


class Agent:
    """The blob in one process. Not created directly: `Agent.inject`.

    After `inject` the process stands still and is what it was; `obey` lets the agent run."""

    def __init__(
        self, tracee: Tracee, base: int, control: socket.socket, number: int, way_back: bool
    ) -> None:
        self._tracee = tracee
        self._way_back = way_back
        self._base = base
        self._control = control
        self._number = number  # of the control socket inside
        self._fds: set[int] = set()  # other descriptors of ours inside
        self._call_number = -1  # of the call socket, which is one of them
        self._thread = threading.get_ident()
        self._lock = threading.RLock()
        self._obeying = False
        # the host's own state, until `serve`
        self._registers = tracee.registers
        self._mask = tracee.signal_mask
        self._cure: int | None = None
        # where serve was left by `pause`
        self._paused: tuple[bytes, int] | None = None
        self._serving = False
        self._restart_serve = False
        #: call sockets that were given to the serving half instead of lost ones
        self._renewals = 0

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
    def pid(self) -> int:
        return self._tracee.pid

    @property
    def blob(self) -> Range:
        """Where the blob lies in the process."""
        return self._base, self._base + load_blob().size

    @property
    def paused(self) -> bool:
        """It stands, or obeys, between `pause` and what ends that."""
        return self._paused is not None

    @property
    def obeying(self) -> bool:
        """The agent runs and waits for orders."""
        return self._obeying

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

    def calls(self, calls: Sequence[tuple[int, Sequence[Argument], bool]]) -> list[int]:
        """Makes system calls (number, arguments, may fail) in order; their results.

        Stops behind the first that fails and may not: the list is then shorter (or as long,
        if it was the last) and ends with its -errno."""
        results: list[int] = []
        pending = list(calls)
        while pending:
            count, data, batch = self._place(pending)
            with self._lock:
                if data:
                    self.write(self._base + load_blob().scratch[0], data)
                self._send(_CALLS, count, bytes(ffi.buffer(batch)))
                _, some = self._receive()
            results += some
            if len(some) < count or (some[-1] < 0 and not pending[count - 1][2]):
                break
            del pending[:count]
        return results

    def call(self, nr: int, *args: Argument) -> int:
        """One system call; its result."""
        return self.calls([(nr, args, True)])[0]

    def _place(
        self, calls: Sequence[tuple[int, Sequence[Argument], bool]]
    ) -> tuple[int, bytes, Any]:
        """As many of `calls` as fit into one order: how many, scratch memory, struct mx_call[]."""
        start, end = (self._base + offset for offset in load_blob().scratch)
        data = bytearray()
        placed: list[tuple[int, list[int], bool]] = []
        for nr, args, may_fail in calls[: lib.MX_MAX_CALLS]:
            values: list[int] = []
            size_before = len(data)
            for arg in args:
                if isinstance(arg, int):
                    values.append(arg)
                    continue
                address = start + len(data)
                content = arg if isinstance(arg, bytes) else arg(address)
                values.append(address)
                data += content + bytes(-len(content) % _ARGUMENT_ALIGN)
            if start + len(data) > end:
                if not placed:
                    raise ValueError(f"the arguments of call {nr} take {len(data)} bytes")
                del data[size_before:]
                break
            placed.append((nr, values, may_fail))
        batch = ffi.new("struct mx_call[]", len(placed))
        for slot, (nr, values, may_fail) in zip(batch, placed, strict=True):
            slot.nr = nr
            slot.flags = lib.MX_CALL_MAY_FAIL if may_fail else 0
            for i, value in enumerate(values):
                slot.args[i] = value & _M64
        return len(placed), bytes(data), batch

    def fill(self, fd: int, runs: Sequence[Run]) -> int:
        """Receives all `runs` from descriptor number `fd` of the process straight into its
        memory; how many bytes. TransferCutError: the sender ended early or stands still;
        MoveFailedError: no such memory."""
        flat = array.array("Q")
        for run in runs:
            flat.extend((run.start, run.size))
        with self._lock:
            self._send(_FILL, len(runs), flat.tobytes(), fd)
            result, _ = self._receive()
        if result == -errno.EPIPE:
            raise TransferCutError("the image ended early", "the connection was cut")
        if result in (-errno.ETIMEDOUT, -errno.ECONNRESET):
            raise TransferCutError(f"the image ended early: {strerror(result).lower()}")
        if result < 0:
            raise MoveFailedError(f"receiving memory failed: {strerror(result)}")
        return result

    def pour(self, fd: int, runs: Sequence[Run]) -> int:
        """As `fill`, from our own descriptor `fd` into memory that need not be writable: a copy
        more, for a process that has no descriptor left or may not have so much writable memory.
        OSError as of read(2)."""
        buffer = memoryview(bytearray(_POUR_BYTES))
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            for run in runs:
                at, end = run.start, run.start + run.size
                while at < end:
                    size = os.readv(fd, [buffer[: min(end - at, _POUR_BYTES)]])
                    if not size:
                        raise TransferCutError("the image ended early", "the connection was cut")
                    _write_at(memory.fileno(), buffer[:size], at)
                    at += size
        return sum(run.size for run in runs)

    def give_fd(self, fd: int) -> int:
        """Gives our descriptor `fd` to the process; the number it has there, until the agent
        leaves. NoDescriptorError: all of its own are in use."""
        order = ffi.new("struct mx_order *", {"op": _FD, "count": 0, "fd": -1})
        with self._lock:
            try:
                socket.send_fds(self._control, [bytes(ffi.buffer(order))], [fd])
            except OSError as error:
                raise self._lost(error) from error
            number, _ = self._receive()
        if number < 0:
            raise NoDescriptorError("the process has no free descriptor", "raise RLIMIT_NOFILE")
        self._fds.add(number)
        return number

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
            call_fd=call_fd, current_id=0, cancelled=0, signals=signals, broken=0, first=0
        )
        self._forget_reply()
        self._call_number = call_fd
        self._restart_serve = True
        self.unpause()

    def renew(self, fd: int) -> None:
        """The connection of the serving half was lost; it goes on with our descriptor `fd` as soon
        as it is through with the call it executes. It may be running, or stand still."""
        order = ffi.new("struct mx_order *", {"op": _RENEW, "count": 0, "fd": -1})
        try:
            socket.send_fds(self._control, [bytes(ffi.buffer(order))], [fd])
        except OSError as error:
            raise self._lost(error) from error
        self._renewals += 1

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

    def arm(self, faults: Mapping[str, Fault]) -> None:
        """Tests only: one point of the serving half at the most."""
        self._set_state(failpoint=0)
        for name, fault in faults.items():
            kind, value = _FAULTS[fault.kind], fault.value
            self._set_state(fault=kind, fault_value=value, fault_hits=fault.hits)
            self._set_state(failpoint=_POINTS[name])

    def state(self) -> State:
        """What the agent does; also while the process runs. OSError if it is gone."""
        state = self._read_state()
        return State(state.current_id, state.calls, state.area, state.area_size)

    def calls_served(self) -> int:
        return self.state().calls

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
                self._send(_MOVE, 1, struct.pack("<Q", base))
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

    # ---- the control socket and the state ----

    def _send(self, op: int, count: int, data: bytes, fd: int = -1) -> None:
        order = ffi.new("struct mx_order *", {"op": op, "count": count, "fd": fd})
        message = memoryview(bytes(ffi.buffer(order)) + data)
        while message:
            self._wait(select.POLLOUT)
            try:
                message = message[self._control.send(message, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lost(error) from error

    def _receive(self) -> tuple[int, list[int]]:
        done = ffi.new("struct mx_done *")
        ffi.buffer(done)[:] = self._exactly(ffi.sizeof("struct mx_done"))
        results = array.array("q")
        results.frombytes(self._exactly(8 * done.count))
        return done.result, results.tolist()

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(select.POLLIN)
            try:
                some = self._control.recv(size - len(data), socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError as error:
                raise self._lost(error) from error
            if not some:
                raise self._lost(None)
            data += some
        return bytes(data)

    def _wait(self, event: int) -> None:
        """Until the socket is ready. Meanwhile the process may be stopped by SIGSTOP, which
        nothing blocks: from the tracing thread it is sent on (it stops for good once it is let
        go), other threads rely on that thread to do so."""
        poll = select.poll()
        poll.register(self._control, event)
        while not poll.poll(_LOOK_INTERVAL * 1000):
            if threading.get_ident() != self._thread or not self._obeying:
                continue
            stop = self._tracee.wait(block=False)
            if stop is not None and stop.ended:
                raise self._lost(None)
            if stop is not None:
                self._tracee.cont()

    def _lost(self, error: OSError | None) -> MoveFailedError:
        why = f": {error.strerror}" if error else ""
        return MoveFailedError(
            f"process {self.pid} no longer obeys{why}", "it may have been killed"
        )

    def _read_state(self) -> Any:
        state = ffi.new("struct mx_agent_state *")
        address = self._base + load_blob().header.state_offset
        ffi.buffer(state)[:] = self.read(address, ffi.sizeof("struct mx_agent_state"))
        return state

    def _field(self, name: str) -> int:
        return int(getattr(self._read_state(), name))

    def _set_state(self, **fields: int) -> None:
        """Writes only the named fields: the others may be changing."""
        base = self._base + load_blob().header.state_offset
        for name, value in fields.items():
            kind = dict(ffi.typeof("struct mx_agent_state").fields)[name]
            size = ffi.sizeof(kind.type)
            data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            self.write(base + kind.offset, data)

    def read(self, address: int, size: int) -> bytes:
        """Memory of the process. OSError EFAULT if not all of it is there."""
        return self._tracee.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Writes where the process itself could. OSError EFAULT otherwise."""
        self._tracee.write(address, data)


def _write_at(mem: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(mem, data, at)
        data, at = data[written:], at + written
