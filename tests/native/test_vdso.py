"""What stands for a foreign vdso does what the kernel's own does."""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Iterator

import pytest
from mosix.errors import MoveFailedError
from mosix.native import vdso
from mosix.native._native import ffi, lib
from mosix.native.cpu import own_vdso
from mosix.native.tracee import Registers, Tracee

IMAGE = own_vdso()
LAYOUT = vdso.layout(IMAGE)


class Functions:
    """The functions of a guest's vdso, called in this process."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, len(IMAGE), prot=7)
        self._memory.write(vdso.with_system_calls(IMAGE))
        self._view = ffi.from_buffer(self._memory)
        self._base = int(ffi.cast("uintptr_t", self._view))

    def __call__(self, name: str, *args: object) -> int:
        call = ffi.cast(
            "long (*)(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t)",
            self._base + LAYOUT.entries[name],
        )
        words = [int(ffi.cast("uintptr_t", arg)) for arg in args]
        return int(call(*words, *([0] * (5 - len(words)))))

    def close(self) -> None:
        ffi.release(self._view)
        self._memory.close()


@pytest.fixture
def call() -> Iterator[Functions]:
    functions = Functions()
    yield functions
    functions.close()


def test_every_function_of_this_kernels_vdso_is_known() -> None:
    assert not LAYOUT.problem
    assert {"clock_gettime", "gettimeofday", "time", "getcpu"} <= LAYOUT.entries.keys()


def test_only_the_entries_and_one_slot_differ() -> None:
    changed = {
        at
        for at, (a, b) in enumerate(zip(IMAGE, vdso.with_system_calls(IMAGE), strict=True))
        if a != b
    }
    allowed = set(range(LAYOUT.slot, LAYOUT.slot + lib.MX_SLOT))
    for entry in LAYOUT.entries.values():
        allowed |= set(range(entry, entry + 5))
    assert changed <= allowed


def test_clocks_and_cpus_are_the_kernels(call: Functions) -> None:
    now = ffi.new("int64_t[2]")
    for clock in (time.CLOCK_MONOTONIC, time.CLOCK_REALTIME, time.CLOCK_BOOTTIME):
        before = time.clock_gettime_ns(clock)
        assert call("clock_gettime", clock, now) == 0
        assert before <= now[0] * 10**9 + now[1] <= time.clock_gettime_ns(clock)
    assert call("clock_gettime", 77, now) == -errno.EINVAL
    before = time.time_ns() // 1000
    assert call("gettimeofday", now) == 0
    assert before <= now[0] * 10**6 + now[1] <= time.time_ns() // 1000
    assert call("time", now) == now[0] <= time.time() < now[0] + 60
    assert call("clock_getres", time.CLOCK_MONOTONIC, now) == 0
    assert (now[0], now[1] / 1e9) == (0, time.clock_getres(time.CLOCK_MONOTONIC))
    cpu = ffi.new("uint32_t *")
    assert call("getcpu", cpu) == 0
    assert cpu[0] < (os.cpu_count() or 1)


@pytest.mark.skipif("getrandom" not in LAYOUT.entries, reason="this kernel has no vgetrandom")
def test_random_bytes_come_without_a_state_and_nobody_is_given_one(call: Functions) -> None:
    data = ffi.new("char[64]")
    assert call("getrandom", data, 64, 0, data, 1024) == 64
    assert any(ffi.buffer(data)[:])
    params = ffi.new("uint32_t[16]")
    assert call("getrandom", 0, 0, 0, params, -1) == -errno.ENOSYS
    assert not any(list(params))


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
        vdso.with_system_calls(strange)


class Standing(Tracee):
    """A process whose memory is the vdso of a guest at `BASE`, and a word of stack."""

    BASE, STACK, CALLER = 0x7F0000000000, 0x1000, 0x401234

    def __init__(self) -> None:
        super().__init__(1, 0)
        self.vdso = (self.BASE, self.BASE + len(IMAGE))
        self._content = vdso.with_system_calls(IMAGE)

    def read(self, addr: int, size: int) -> bytes:
        if addr == self.STACK:
            return self.CALLER.to_bytes(8, "little")
        return self._content[addr - self.BASE : addr - self.BASE + size]


def test_a_context_in_the_functions_of_a_guest_is_taken_out() -> None:
    """Before the system call to the beginning, behind it to the caller."""
    tracee = Standing()
    instructions = {"getrandom": (0, 4, 6, 11, 13, 14, 21)}
    for begin, name in LAYOUT.begins.items():
        for at in instructions.get(name, (0, 5, 7)):
            registers = Registers(*[0] * 27)
            registers.rip = Standing.BASE + LAYOUT.slot + begin + at
            registers.rsp = Standing.STACK
            vdso.leave_functions(tracee, registers, IMAGE)
            if LAYOUT.functions[begin + at] == 0xC3:
                assert (registers.rip, registers.rsp) == (Standing.CALLER, Standing.STACK + 8)
            else:
                assert registers.rip == Standing.BASE + LAYOUT.entries[name]
                assert registers.rsp == Standing.STACK
    for elsewhere in (0x401000, Standing.BASE + 64, Standing.BASE + LAYOUT.slot - 1):
        registers = Registers(*[0] * 27)
        registers.rip = elsewhere
        assert vdso.leave_functions(tracee, registers, IMAGE).rip == elsewhere
