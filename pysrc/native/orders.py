"""What an agent is told from outside: orders on its control socket, its state, memory.

The half of `mosix.native.agent.Agent` that needs no ptrace. Orders (`calls`, `fill`, `give_fd`,
`read`, `write`) only use the control socket and process_vm_*: they block and may come from any
thread while the agent obeys. They must never stop the process.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from mosix.errors import MoveFailedError, TransferCutError
from mosix.failpoints import Fault
from mosix.native._native import ffi, lib
from mosix.native.blob import Range, load_blob, strerror
from mosix.native.tracee import Tracee

#: An argument of a call: a number; bytes that are placed in the blob's scratch memory; or a
#: function that is told their address and returns them (for structures that point into themselves).
Argument = int | bytes | Callable[[int], bytes]

_M64 = (1 << 64) - 1
_ARGUMENT_ALIGN = 16
#: How often a blocking order looks whether the process still runs, in seconds.
_LOOK_INTERVAL = 0.05
_POUR_BYTES = 1 << 20

_CALLS, _FILL, _FD, _RENEW = lib.MX_OP_CALLS, lib.MX_OP_FILL, lib.MX_OP_FD, lib.MX_OP_RENEW

#: Numbers of what failpoints in C do, by `mosix.failpoints.Fault.kind`.
FAULTS = {
    "kill": lib.MX_FAULT_KILL,
    "cut": lib.MX_FAULT_CUT,
    "half-open": lib.MX_FAULT_HALF_OPEN,
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
    masked: bool


class Orders:
    """An agent as one can speak to it. Made only as an `Agent`."""

    def __init__(self, tracee: Tracee, base: int, control: socket.socket) -> None:
        self._tracee = tracee
        self._base = base
        self._control = control
        self._fds: set[int] = set()  # descriptors of ours inside, without the control socket
        self._thread = threading.get_ident()
        self._lock = threading.RLock()
        self._obeying = False
        #: call sockets that were given to the serving half instead of lost ones
        self._renewals = 0

    @property
    def pid(self) -> int:
        return self._tracee.pid

    @property
    def blob(self) -> Range:
        """Where the blob lies in the process."""
        return self._base, self._base + load_blob().size

    @property
    def obeying(self) -> bool:
        """The agent runs and waits for orders."""
        return self._obeying

    # ---- orders ----

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

    def renew(self, fd: int) -> None:
        """The connection of the serving half was lost; it goes on with our descriptor `fd` as soon
        as it is through with the call it executes. It may be running, or stand still."""
        order = ffi.new("struct mx_order *", {"op": _RENEW, "count": 0, "fd": -1})
        try:
            socket.send_fds(self._control, [bytes(ffi.buffer(order))], [fd])
        except OSError as error:
            raise self._lost(error) from error
        self._renewals += 1

    # ---- its state, and memory of the process ----

    def arm(self, faults: Mapping[str, Fault]) -> None:
        """Tests only: one point of the serving half at the most."""
        self._set_state(failpoint=0)
        for name, fault in faults.items():
            kind, value = FAULTS[fault.kind], fault.value
            self._set_state(fault=kind, fault_value=value, fault_hits=fault.hits)
            self._set_state(failpoint=_POINTS[name])

    def state(self) -> State:
        """What the agent does; also while the process runs. OSError if it is gone."""
        state = self._read_state()
        return State(state.current_id, state.calls, state.area, state.area_size, bool(state.masked))

    def calls_served(self) -> int:
        return self.state().calls

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

    # ---- the control socket ----

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


def _write_at(mem: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(mem, data, at)
        data, at = data[written:], at + written
