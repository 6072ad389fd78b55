"""The guest's seccomp filters, generated from the table.

`program()` is handed to the guest's launcher, which installs it with a listener. The filter
allows what runs where the body is and notifies everything else: other architectures, x32
numbers, calls that are not in the table. It never kills and never fails a call by itself.
`wall()` is for guests whose calls the kernel module takes: what is behind it the module has.

The kernel evaluates a filter on every call (and caches "always allowed" numbers), so numbers
are found by binary search, not by a chain of comparisons.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from dataclasses import dataclass, field
from functools import cache

from mosix.syscalls.shapes import HOME_PID, MASK64, Class, Row, Test
from mosix.syscalls.table import TABLE

# linux/bpf_common.h, linux/filter.h
BPF_LD_W_ABS = 0x20
BPF_JMP_JA = 0x05
BPF_JMP_JEQ_K = 0x15
BPF_JMP_JGE_K = 0x35
BPF_ALU_AND_K = 0x54
BPF_RET_K = 0x06
MAX_INSTRUCTIONS = 4096

# linux/seccomp.h, linux/audit.h
RET_ALLOW = 0x7FFF0000
RET_TRACE = 0x7FF00000
RET_USER_NOTIF = 0x7FC00000
AUDIT_ARCH_X86_64 = 0xC000003E
FLAG_NEW_LISTENER = 1 << 3
FLAG_WAIT_KILLABLE_RECV = 1 << 5
_NR, _ARCH, _ARGS = 0, 4, 16

_INSTRUCTION = struct.Struct("<HBBI")


@dataclass
class _Assembler:
    """Instructions with labels; a jump's operand is resolved when all is written."""

    code: list[tuple[int, str | None, str | None, int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    count: int = 0

    def label(self, name: str = "") -> str:
        self.count += 1
        return name or f"L{self.count}"

    def place(self, label: str) -> None:
        self.labels[label] = len(self.code)

    def emit(self, op: int, k: int, yes: str | None = None, no: str | None = None) -> None:
        """`yes` and `no` of a conditional jump: labels, None for the next instruction."""
        self.code.append((op, yes, no, k))

    def jump(self, label: str) -> None:
        self.code.append((BPF_JMP_JA, label, None, 0))

    def assemble(self) -> bytes:
        out = bytearray()
        for at, (op, yes, no, k) in enumerate(self.code):
            if op == BPF_JMP_JA:
                assert yes is not None
                out += _INSTRUCTION.pack(op, 0, 0, self.labels[yes] - at - 1)
                continue
            jt = self.labels[yes] - at - 1 if yes else 0
            jf = self.labels[no] - at - 1 if no else 0
            out += _INSTRUCTION.pack(op, jt, jf, k)  # struct.error: a jump of more than 255
        return bytes(out)


def _is_plain(row: Row) -> bool:
    """The number alone decides."""
    local = row.cls == Class.LOCAL
    return all((rule.then == Class.LOCAL) == local for rule in row.rules)


def _test(asm: _Assembler, test: Test, fails: str) -> None:
    """Falls through when the test holds, else goes to `fails`."""
    wanted = test.value
    assert isinstance(wanted, int)
    halves = [
        (_ARGS + 8 * test.arg + 4 * half, test.mask >> 32 * half & 0xFFFFFFFF, wanted >> 32 * half)
        for half in (0, 1)
        if test.mask >> 32 * half & 0xFFFFFFFF
    ]
    holds = asm.label()
    for at, mask, number in halves:
        asm.emit(BPF_LD_W_ABS, at)
        if mask != 0xFFFFFFFF:
            asm.emit(BPF_ALU_AND_K, mask)
        if test.differs:
            asm.emit(BPF_JMP_JEQ_K, number & 0xFFFFFFFF, None, holds)
        else:
            asm.emit(BPF_JMP_JEQ_K, number & 0xFFFFFFFF, None, fails)
    if test.differs:
        asm.jump(fails)
    asm.place(holds)


def _row(asm: _Assembler, row: Row) -> None:
    """The row's rules in order; a test only the C side can judge means: notify."""
    for rule in row.rules:
        if any(test.value == HOME_PID for test in rule.tests):
            asm.emit(BPF_RET_K, RET_USER_NOTIF)
            return
        otherwise = asm.label()
        for test in rule.tests:
            _test(asm, test, otherwise)
        asm.emit(BPF_RET_K, RET_ALLOW if rule.then == Class.LOCAL else RET_USER_NOTIF)
        asm.place(otherwise)
    asm.emit(BPF_RET_K, RET_ALLOW if row.cls == Class.LOCAL else RET_USER_NOTIF)


def _intervals(rows: tuple[Row, ...]) -> list[tuple[int, str | Row]]:
    """(first number, what happens) by rising number; the last one reaches to infinity."""
    out: list[tuple[int, str | Row]] = [(0, "notify")]
    for row in sorted(rows, key=lambda row: row.nr):
        action: str | Row = row
        if _is_plain(row):
            action = "allow" if row.cls == Class.LOCAL else "notify"
        if out[-1][1] != action:
            if out[-1][0] == row.nr:
                out.pop()
            if not out or out[-1][1] != action:
                out.append((row.nr, action))
        # what follows is unknown until the next row says otherwise
        if action != "notify":
            out.append((row.nr + 1, "notify"))
    return out


def _search(asm: _Assembler, intervals: list[tuple[int, str | Row]]) -> None:
    if len(intervals) == 1:
        action = intervals[0][1]
        if isinstance(action, Row):
            _row(asm, action)
        else:
            asm.emit(BPF_RET_K, RET_ALLOW if action == "allow" else RET_USER_NOTIF)
        return
    middle = len(intervals) // 2
    below, right = asm.label(), asm.label()
    # Conditional jumps reach 255 instructions only: a far one goes over a plain jump.
    asm.emit(BPF_JMP_JGE_K, intervals[middle][0], None, below)
    asm.jump(right)
    asm.place(below)
    _search(asm, intervals[:middle])
    asm.place(right)
    _search(asm, intervals[middle:])


@cache
def program() -> bytes:
    """The filter as an array of struct sock_filter (8 bytes each)."""
    return _assembled(TABLE)


def _assembled(rows: tuple[Row, ...]) -> bytes:
    asm = _Assembler()
    native = asm.label()
    asm.emit(BPF_LD_W_ABS, _ARCH)
    asm.emit(BPF_JMP_JEQ_K, AUDIT_ARCH_X86_64, native)
    asm.emit(BPF_RET_K, RET_USER_NOTIF)
    asm.place(native)
    asm.emit(BPF_LD_W_ABS, _NR)
    # x32 numbers (bit 30) are above every row: the last interval notifies them.
    _search(asm, _intervals(rows))
    code = asm.assemble()
    assert len(code) // _INSTRUCTION.size <= MAX_INSTRUCTIONS
    assert all(rule_mask <= MASK64 for row in rows for rule_mask in _masks(row))
    return code


@cache
def wall(unhooked: frozenset[int] = frozenset()) -> bytes:
    """The filter of a guest whose calls mosix.ko redirects: it lets through what runs where the
    body is and what the module takes, and stops the guest, for its tracer, before all the rest.
    `unhooked`: numbers of calls that this kernel's module cannot take."""
    code = _assembled(_walled(TABLE, unhooked))
    notify, trace = (_INSTRUCTION.pack(BPF_RET_K, 0, 0, to) for to in (RET_USER_NOTIF, RET_TRACE))
    instructions = (code[at : at + len(notify)] for at in range(0, len(code), len(notify)))
    return b"".join(trace if each == notify else each for each in instructions)


def _walled(rows: tuple[Row, ...], unhooked: Container[int]) -> tuple[Row, ...]:
    """As if all that the module takes were local, and what it should and cannot, unknown."""
    return tuple(
        Row(row.nr, row.name, Class.LOCAL)
        for row in rows
        if row.nr not in unhooked or (_is_plain(row) and row.cls == Class.LOCAL)
    )


def _masks(row: Row) -> list[int]:
    return [test.mask for rule in row.rules for test in rule.tests]
