"""The functions of a guest's vdso do what the kernel's own do, and can be left at any moment."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from mosix.errors import MoveFailedError
from mosix.native import vdso
from mosix.native._native import ffi, lib
from mosix.native.blob import mapped
from mosix.native.cpu import own_vdso
from mosix.native.stops import Registers

IMAGE = own_vdso()
LAYOUT = vdso.layout(IMAGE)
NODE = next(at for at in mapped(os.getpid()) if at.name == "[vdso]")
DIRECT = sum(1 << clock for clock in (1, 4, 6, 7))
AHEAD_NS = 3_600_000_000_000
EARLIER_NS = 400_000_000
WORDS = "uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t"


class Functions:
    """The functions of a guest's vdso in this process, whose date is `AHEAD_NS` ahead of ours.

    `fast`: those of the node's vdso are used."""

    def __init__(self, fast: bool) -> None:
        self._memory = mmap.mmap(-1, vdso.BEFORE + len(IMAGE), prot=7)
        self._memory.seek(vdso.BEFORE - mmap.PAGESIZE)
        self._memory.write(vdso.guest_vdso(IMAGE))
        self.clock = ffi.from_buffer("struct mx_clock *", self._memory)
        self.start = int(ffi.cast("uintptr_t", self.clock)) + vdso.BEFORE
        self.place = vdso.Place(self.start, IMAGE, (NODE.start, NODE.end))
        node = NODE.start if fast else None
        functions = vdso.node_functions(self.start, IMAGE, node)
        self.clock.clock_gettime, self.clock.clock_getres, self.clock.getcpu = functions
        self.clock.direct = DIRECT
        lib.mx_clock_set(self.clock, 0, time.time_ns() - time.monotonic_ns() + AHEAD_NS)

    def __call__(self, name: str, *args: object) -> int:
        call = ffi.cast(f"long (*)({WORDS})", self.start + LAYOUT.entries[name])
        words = [int(ffi.cast("uintptr_t", arg)) for arg in args]
        return int(call(*words, *([0] * (5 - len(words)))))

    def date_ns(self) -> int:
        now = ffi.new("int64_t[2]")
        assert self("clock_gettime", time.CLOCK_REALTIME, now) == 0
        return int(now[0]) * 10**9 + int(now[1])

    def close(self) -> None:
        ffi.release(self.clock)
        self._memory.close()


@pytest.fixture(params=[True, False], ids=["node's", "system calls"])
def call(request: pytest.FixtureRequest) -> Iterator[Functions]:
    functions = Functions(request.param)
    yield functions
    functions.close()


def test_every_function_of_this_kernels_vdso_is_known() -> None:
    assert not LAYOUT.problem
    assert {"clock_gettime", "gettimeofday", "time", "getcpu"} <= LAYOUT.entries.keys()


def test_only_the_entries_differ() -> None:
    ours = vdso.guest_vdso(IMAGE)[mmap.PAGESIZE :]
    changed = {at for at, (a, b) in enumerate(zip(IMAGE, ours, strict=True)) if a != b}
    assert changed <= {entry + i for entry in LAYOUT.entries.values() for i in range(5)}


def test_clocks_and_cpus_are_the_nodes(call: Functions) -> None:
    now = ffi.new("int64_t[2]")
    for clock in (
        *(time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC_RAW),
        *(time.CLOCK_PROCESS_CPUTIME_ID, time.CLOCK_THREAD_CPUTIME_ID, time.CLOCK_TAI),
    ):
        before = time.clock_gettime_ns(clock)
        assert call("clock_gettime", clock, now) == 0
        assert before <= now[0] * 10**9 + now[1] <= time.clock_gettime_ns(clock)
    for clock in (77, 31, -77):
        assert call("clock_gettime", ffi.cast("unsigned", clock), now) == -errno.EINVAL
    assert call("clock_getres", time.CLOCK_MONOTONIC, now) == 0
    assert (now[0], now[1] / 1e9) == (0, time.clock_getres(time.CLOCK_MONOTONIC))
    cpu = ffi.new("uint32_t *")
    assert call("getcpu", cpu) == 0
    assert cpu[0] < (os.cpu_count() or 1)


def test_dates_are_those_of_the_clock_page(call: Functions) -> None:
    now = ffi.new("int64_t[2]")

    def passed_ns(date_ns: int) -> int:
        return date_ns - time.time_ns() - AHEAD_NS

    for clock in (time.CLOCK_REALTIME, 5):
        assert call("clock_gettime", clock, now) == 0
        assert abs(passed_ns(now[0] * 10**9 + now[1])) < 10**9
    assert call("gettimeofday", now) == 0
    assert abs(passed_ns(now[0] * 10**9 + now[1] * 1000)) < 10**9
    assert 0 <= now[1] < 10**6
    assert call("gettimeofday") == 0
    assert call("time", now) == now[0]
    assert abs(passed_ns(now[0] * 10**9)) < 2 * 10**9
    assert call("time", 0) >= now[0]


def test_a_guest_with_the_nodes_date_reads_that(call: Functions) -> None:
    call.clock.direct = DIRECT | 1 << 0 | 1 << 5
    before = time.time_ns()
    assert before <= call.date_ns() <= time.time_ns()
    now = ffi.new("int64_t[2]")
    before = time.time_ns() // 1000
    assert call("gettimeofday", now) == 0
    assert before <= now[0] * 10**6 + now[1] <= time.time_ns() // 1000
    assert int(time.time()) <= call("time", 0) <= time.time()


def test_the_time_zone_is_asked_for(call: Functions) -> None:
    zone = ffi.new("int32_t[2]", [77, 77])
    assert call("gettimeofday", 0, zone) == 0
    assert list(zone) != [77, 77]


@pytest.mark.skipif("getrandom" not in LAYOUT.entries, reason="this kernel has no vgetrandom")
def test_random_bytes_come_without_a_state_and_nobody_is_given_one(call: Functions) -> None:
    data = ffi.new("char[64]")
    assert call("getrandom", data, 64, 0, data, 1024) == 64
    assert any(ffi.buffer(data)[:])
    params = ffi.new("uint32_t[16]")
    everything = ffi.cast("uintptr_t", -1)
    assert call("getrandom", 0, 0, 0, params, everything) == -errno.ENOSYS
    assert not any(list(params))


def test_a_date_never_runs_back_for_a_better_estimate(call: Functions) -> None:
    """It runs slower instead until the estimate is reached."""
    offset = call.clock.offset_ns
    last = call.date_ns()
    for step in range(1, 200):
        ahead = lib.mx_clock_set(call.clock, 0, offset - step * 1_000_000)
        assert ahead > 0
        for _ in range(20):
            now = call.date_ns()
            assert now > last
            last = now
    assert abs(last - lib.mx_clock_date(call.clock, 0)) < 10**9


def test_an_excess_is_gone_after_a_while(call: Functions) -> None:
    offset = call.clock.offset_ns - 1_000_000
    assert 0 < lib.mx_clock_set(call.clock, 0, offset) <= 1_000_000
    call.clock.since_ns -= 64_000_000
    before = time.monotonic_ns()
    assert before + offset <= call.date_ns() <= time.monotonic_ns() + offset


def test_a_clock_that_was_set_back_is_seen(call: Functions) -> None:
    before = call.date_ns()
    assert lib.mx_clock_set(call.clock, 0, call.clock.offset_ns - 2 * 10**9) == 0
    assert call.date_ns() < before - 10**9


def test_what_is_no_vdso_is_refused() -> None:
    for wrong in (
        b"",
        IMAGE[:100],
        bytes(8192),
        b"\x7fELF" + bytes(5000),
        IMAGE[:64] + bytes(8128),
    ):
        with pytest.raises(MoveFailedError):
            vdso.layout(wrong)


def test_a_function_that_nobody_knows_is_refused() -> None:
    strange = IMAGE.replace(b"\0__vdso_time\0", b"\0__vdso_tide\0").replace(
        b"\0time\0", b"\0tide\0"
    )
    with pytest.raises(MoveFailedError, match="tide"):
        vdso.guest_vdso(strange)


# ---- leaving ----


class Walk(NamedTuple):
    """A call of a function by a child that is looked at before each of its instructions."""

    name: str
    first: int | None = None  # None: a buffer
    second: int | None = None


CLOCKS = (0, 1, 2, 4, 5, 6, 7, 77, 0xFFFFFFFE)
WALKS = (
    *(Walk("clock_gettime", clock) for clock in CLOCKS),
    *(Walk("gettimeofday", None, 0), Walk("gettimeofday", 0)),
    *(Walk("time"), Walk("time", 0)),
    *(Walk("clock_getres", 1), Walk("getcpu", None, 0), Walk("getrandom", None, 16)),
)
CALLER = 0x401234
_GETREGS, _SETREGS, _SINGLESTEP, _SEIZE, _INTERRUPT, _EXITKILL = 12, 13, 9, 0x4206, 0x4207, 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Child:
    """A copy of this process, and so of its `Functions`, that goes step by step."""

    STACK = 1 << 16

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.STACK)  # shared with it
        self._view = ffi.from_buffer(self._memory)
        self.stack = int(ffi.cast("uintptr_t", self._view))
        self.pid = os.fork()
        if not self.pid:
            signal.pause()
        self._ptrace(_SEIZE, _EXITKILL)
        self._ptrace(_INTERRUPT)
        os.waitpid(self.pid, 0)

    def _ptrace(self, request: int, data: object = None) -> None:
        assert _libc.ptrace(request, self.pid, None, data) >= 0, os.strerror(ctypes.get_errno())

    @property
    def registers(self) -> Registers:
        buffer = ctypes.create_string_buffer(27 * 8)
        self._ptrace(_GETREGS, buffer)
        return Registers.unpack(buffer.raw)

    @registers.setter
    def registers(self, registers: Registers) -> None:
        self._ptrace(_SETREGS, registers.pack())

    def step(self) -> None:
        self._ptrace(_SINGLESTEP)
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP, status

    def read(self, address: int, size: int) -> bytes:
        at = address - self.stack
        return self._memory[at : at + size]

    def write(self, address: int, value: int) -> None:
        at = address - self.stack
        self._memory[at : at + 8] = value.to_bytes(8, "little")

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        ffi.release(self._view)
        self._memory.close()


@pytest.fixture
def child(call: Functions) -> Iterator[Child]:
    found = Child()
    yield found
    found.end()


@pytest.mark.parametrize("walk", WALKS, ids=str)
def test_a_function_can_be_left_at_every_instruction(
    walk: Walk, call: Functions, child: Child
) -> None:
    """Its beginning or its caller finds the registers and the stack that are its own."""
    begin = child.registers
    begin.rip, begin.orig_rax = call.start + LAYOUT.entries[walk.name], -1
    begin.rsp = child.stack + Child.STACK - 4104  # as behind a call
    child.write(begin.rsp, CALLER)
    buffer = child.stack + Child.STACK - 2048
    begin.rdi, begin.rsi = (buffer if arg is None else arg for arg in walk[1:])
    begin.r8 = 0
    for number, name in enumerate(("rbx", "rbp", "r12", "r13", "r14", "r15")):
        setattr(begin, name, 0x1111 * (number + 1))
    kept = ("rbx", "rbp", "r12", "r13", "r14", "r15")
    child.registers = begin
    begun_again = steps = 0
    while (here := child.registers).rip != CALLER and steps < 5000:
        begun_again += vdso.begin_again(call.place, here, child.read)
        assert not call.place.contains(here.rip), hex(child.registers.rip - call.start)
        assert [getattr(here, name) for name in kept] == [getattr(begin, name) for name in kept]
        if here.rip == CALLER:
            assert here.rsp == begin.rsp + 8
        else:
            assert (here.rip, here.rsp) == (begin.rip, begin.rsp)
            assert (here.rdi, here.rsi) == (begin.rdi, begin.rsi)
        child.step()
        steps += 1
    assert child.registers.rip == CALLER
    assert begun_again == steps - 1  # all but the jump in the vdso itself
