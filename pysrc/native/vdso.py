"""The vdso of a body that is not at home: home's, with functions that make real system calls.

A program calls the functions of its vdso (clock_gettime, getcpu…) at addresses that it looked up
when it started, and those read pages of the kernel it started on. In a guest the bytes of home's
vdso lie at the same place as ordinary memory, and each function begins with a jump to a short one
in the unused end of the vdso, which makes the system call instead (`with_system_calls`). Called by
restore (the bytes), capture and eligibility (a process that stands in such code).
Nothing of home's vdso is executed in a guest, so a body must not be inside it when it leaves
(`stands_inside`, `handler_interrupted`); the short functions are left by rule (`leave_functions`),
and what a signal handler will return to is put where it was (`keep_functions`).
This module never decides which vdso a guest gets.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

from mosix.errors import MoveFailedError
from mosix.native._native import ffi, lib
from mosix.native.blob import mapped
from mosix.native.tracee import Registers, Tracee

# <elf.h>
_EHDR_SIZE = 64
_PHOFF, _SHOFF, _PHNUM = 32, 40, 56
_PHDR = struct.Struct("<IIQQQQQQ")  # type, flags, offset, vaddr, paddr, filesz, memsz, align
_SHDR = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, addr, offset, size, …
_SYM = struct.Struct("<IBBHQQ")  # name, info, other, shndx, value, size
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 4, 5, 6, 0x6FFFFEF5
_STT_FUNC = 2
_SHF_EXECINSTR = 4
_MAX_SYMBOLS = 256
_MAX_SIZE = 1 << 20

_JMP_SIZE = 5
_SYSCALL_RET = b"\x0f\x05\xc3"


def _call(nr: int) -> bytes:
    return b"\xb8" + struct.pack("<I", nr) + _SYSCALL_RET  # mov $nr,%eax; syscall; ret


#: function → what a guest has instead: the system call that does the same with the same arguments
#: (arch/x86/entry/vdso).
_CODE = {
    "clock_gettime": _call(228),
    "gettimeofday": _call(96),
    "time": _call(201),
    "clock_getres": _call(229),
    "getcpu": _call(309),
    # vgetrandom(buffer, size, flags, state, state size): whoever asks for the size of a state, by
    # a state size of -1, is told ENOSYS, as where the kernel cannot do it, and will not use the
    # function; for all others it is getrandom(2), whose three arguments come first
    # (lib/vdso/getrandom.c; arch/s390/kernel/vdso64/vgetrandom.c does just this).
    "getrandom": b"\x49\x83\xf8\xff"  # cmp $-1,%r8
    b"\x74\x08"  # je over the call
    + _call(318)
    + b"\x48\xc7\xc0\xda\xff\xff\xff\xc3",  # mov $-ENOSYS,%rax; ret
}
#: these stay: no kernel data is read by them
_PURE = frozenset(("sgx_enter_enclave",))

#: a signal frame's rsp, rip, eflags, segments (struct sigcontext, behind 15 other registers)
_FRAME = struct.Struct("<QQQQ")
_USER_CS = 0x33
_EFLAGS_ALWAYS, _EFLAGS_LIMIT = 2, 1 << 22
_STACK_LIMIT = 8 << 20

#: How often a process that stands inside is let run before it is given up.
ATTEMPTS = 60


def pause_s(attempt: int) -> float:
    """For how long, in seconds. Its functions take less than a microsecond, but a system call that
    they make may have to be answered by a thread that waits for a processor."""
    return min(1e-5 * 1.5**attempt, 0.02)


class Layout(NamedTuple):
    """What is where in a vdso; offsets from its start."""

    entries: dict[str, int]  # function, without __vdso_ → where it begins
    code: tuple[int, int]  # its functions lie in here
    tail: int  # unused from here on
    slot: int  # where the functions of a guest go
    functions: bytes  # those, MX_SLOT bytes; none if `problem` says why not
    begins: dict[int, str]  # offset in `functions` → which begins there
    problem: str


@functools.lru_cache(maxsize=8)
def layout(image: bytes) -> Layout:
    """MoveFailedError: `image` is no vdso."""
    tail = lib.mx_site_tail(ffi.from_buffer(image), len(image))
    if tail < 0 or len(image) > _MAX_SIZE:
        raise MoveFailedError("home's vdso is no ELF file for x86-64")
    try:
        symbols, code = _functions(image), _code(image)
    except (struct.error, LookupError, ValueError, StopIteration) as error:
        raise MoveFailedError(f"home's vdso cannot be understood: {error}") from error
    entries = {name: at for name, at in symbols.items() if name not in _PURE}
    functions, begins = bytearray(), {}
    for name in sorted(entries.keys() & _CODE.keys()):
        begins[len(functions)] = name
        functions += _CODE[name]
    slots = (len(image) - tail) // lib.MX_SLOT
    starts = sorted(set(entries.values()))
    problem = ""
    if entries.keys() - _CODE.keys():
        unknown = min(entries.keys() - _CODE.keys())
        problem = f"home's vdso has a function {unknown} that MOSIX does not know"
    elif slots < 2 or len(functions) > lib.MX_SLOT_MARK:  # injected calls need a slot as well
        problem = "home's vdso has no room for other functions"
    elif any(b - a < _JMP_SIZE for a, b in itertools.pairwise(starts)):
        problem = "home's vdso has functions that are too short"
    if problem:
        return Layout(entries, code, tail, tail, b"", {}, problem)
    slot = tail + (slots - 1) * lib.MX_SLOT
    mark = struct.pack("<Q", lib.MX_MARK_FUNCTIONS)
    filled = (bytes(functions).ljust(lib.MX_SLOT_MARK, b"\0") + mark).ljust(lib.MX_SLOT, b"\0")
    return Layout(entries, code, tail, slot, filled, begins, "")


def with_system_calls(image: bytes) -> bytes:
    """The vdso `image` for a guest. MoveFailedError: that cannot be made of it."""
    found = layout(image)
    if found.problem:
        raise MoveFailedError(found.problem, "use a node with the same kernel")
    out = bytearray(image)
    out[found.slot : found.slot + len(found.functions)] = found.functions
    for offset, name in found.begins.items():
        entry = found.entries[name]
        target = found.slot + offset
        out[entry : entry + _JMP_SIZE] = b"\xe9" + struct.pack("<i", target - entry - _JMP_SIZE)
    return bytes(out)


# ---- where a process stands ----


def is_used(tracee: Tracee, image: bytes) -> bool:
    """The stopped process is in, or will return into, the middle of a function of its own kernel's
    vdso `image`."""
    return stands_inside(tracee, image) or handler_interrupted(tracee, image)


def stands_inside(tracee: Tracee, image: bytes) -> bool:
    """The stopped process is in the middle of a function of its own kernel's vdso `image`."""
    start, _ = tracee.vdso
    offset = tracee.get_registers().rip - start
    found = layout(image)
    return _EHDR_SIZE <= offset < found.tail and offset not in found.entries.values()


def handler_interrupted(tracee: Tracee, image: bytes) -> bool:
    """A signal handler that runs now will return into the middle of such a function."""
    start, _ = tracee.vdso
    found = layout(image)
    low, high = start + found.code[0], start + found.code[1]
    entries = {start + entry for entry in found.entries.values()}
    rsp = tracee.get_registers().rsp
    return any(rip not in entries for rip in _returns_to(tracee, rsp, low, high))


def leave_functions(tracee: Tracee, registers: Registers, image: bytes) -> Registers:
    """`registers`, a context in which no call is pending, taken out of the functions of a guest:
    to their beginning, as long as the call is not made, else to their caller."""
    start, _ = tracee.vdso
    found = layout(image)
    offset = registers.rip - start - found.slot
    if (
        found.problem
        or not 0 <= offset < lib.MX_SLOT_MARK
        or not _has_functions(tracee, start, found)
    ):
        return registers
    begin = max(at for at in found.begins if at <= offset)
    if found.functions[offset] == _SYSCALL_RET[-1] and offset > begin:
        registers.rip = int.from_bytes(tracee.read(registers.rsp, 8), "little")
        registers.rsp += 8
    else:
        registers.rip = start + found.entries[found.begins[begin]]
    return registers


def keep_functions(tracee: Tracee, rsp: int, image: bytes) -> None:
    """For a body that has a kernel's own vdso again: if one of its signal handlers interrupted a
    function that it had as a guest, that is put where it was. The process stands still."""
    start, _ = tracee.vdso
    found = layout(image)
    slot = start + found.slot
    if not found.problem and any(_returns_to(tracee, rsp, slot, slot + lib.MX_SLOT_MARK)):
        tracee.poke(slot, found.functions)


def _has_functions(tracee: Tracee, start: int, found: Layout) -> bool:
    return tracee.read(start + found.slot, len(found.functions)) == found.functions


def _returns_to(tracee: Tracee, rsp: int, low: int, high: int) -> Iterator[int]:
    """Addresses in [low, high) to which signal frames on the stack above `rsp` return."""
    begin = rsp & ~7
    end = next((at.end for at in mapped(tracee.pid) if at.start <= begin < at.end), begin)
    stack = tracee.read(begin, min(end - begin, _STACK_LIMIT))
    for upper in range(low >> 16, (high - 1 >> 16) + 1):
        pattern = struct.pack("<Q", upper << 16)[2:]
        at = stack.find(pattern)
        while at >= 0:
            place = at - 2
            if place % 8 == 0 and place >= 8 and place + 24 <= len(stack):
                _, rip, flags, segments = _FRAME.unpack_from(stack, place - 8)
                plain = flags & _EFLAGS_ALWAYS and flags < _EFLAGS_LIMIT
                if low <= rip < high and plain and segments & 0xFFFF == _USER_CS:
                    yield rip
            at = stack.find(pattern, at + 1)


# ---- ELF ----


def _functions(image: bytes) -> dict[str, int]:
    """The functions in the dynamic symbol table, by name without __vdso_."""
    segments = [
        _PHDR.unpack_from(image, _word(image, _PHOFF) + i * _PHDR.size)
        for i in range(_half(image, _PHNUM))
    ]
    base = next(s[3] - s[2] for s in segments if s[0] == _PT_LOAD)
    where = next(s[2] for s in segments if s[0] == _PT_DYNAMIC)
    dynamic: dict[int, int] = {}
    while (tag := _word(image, where)) != 0:
        dynamic[tag] = _word(image, where + 8) - base
        where += 16
    strings, symbols = dynamic[_DT_STRTAB], dynamic[_DT_SYMTAB]
    found: dict[str, int] = {}
    for i in range(_symbols(image, dynamic)):
        name, info, _, section, at, _ = _SYM.unpack_from(image, symbols + i * _SYM.size)
        if info & 0xF != _STT_FUNC or not section:
            continue
        text = image[strings + name : image.index(b"\0", strings + name)].decode("ascii")
        found.setdefault(text.removeprefix("__vdso_"), at - base)
    return found


def _symbols(image: bytes, dynamic: dict[int, int]) -> int:
    """How many symbols there are: only the hash tables tell."""
    if _DT_HASH in dynamic:
        return min(_int(image, dynamic[_DT_HASH] + 4), _MAX_SYMBOLS)
    table = dynamic[_DT_GNU_HASH]
    buckets, first, bloom = (_int(image, table + 4 * i) for i in range(3))
    chains = table + 16 + 8 * bloom + 4 * buckets
    last = max(_int(image, chains - 4 * buckets + 4 * i) for i in range(buckets))
    while last >= first and not _int(image, chains + 4 * (last - first)) & 1:
        last += 1
    return min(last + 1, _MAX_SYMBOLS)


def _code(image: bytes) -> tuple[int, int]:
    """What the executable sections span; all of it where there are none."""
    table, count = _word(image, _SHOFF), _half(image, _PHNUM + 4)
    ranges = []
    for i in range(count):
        header = _SHDR.unpack_from(image, table + i * _SHDR.size)
        if header[2] & _SHF_EXECINSTR:
            ranges.append((header[4], header[4] + header[5]))
    if not ranges:
        return _EHDR_SIZE, len(image)
    return min(start for start, _ in ranges), max(end for _, end in ranges)


def _word(image: bytes, at: int) -> int:
    return int(struct.unpack_from("<Q", image, at)[0])


def _int(image: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", image, at)[0])


def _half(image: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", image, at)[0])
