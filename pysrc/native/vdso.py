"""The vdso of a guest: home's, with functions that know home's date.

A program calls the functions of its vdso (clock_gettime, getcpu…) at addresses that it looked up
when it started, and those read pages of the kernel it started on. In a guest the bytes of home's
vdso lie at the same place as ordinary memory, and each function begins with a jump into a blob
(guest_vdso.c) in the page before: `guest_vdso`. The blob calls the functions of the node's own
vdso, which lies elsewhere in the guest, or makes system calls. Before the blob is the guest's
clock page (`mosix.remote.clock`). At home the kernel has its data pages in both places.

A body must not leave in the middle of a function. A guest that does is put back to its beginning,
as are functions that its signal handlers will return into (`begin_again`, `begin_frames_again`).
A process at home has its kernel's own vdso: it can only be asked where it stands (`is_used`).
Called by restore, capture, eligibility and the deputy; this module never stops or resumes.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mosix.errors import KernelError, MoveFailedError
from mosix.native.blob import mapped
from mosix.native.stops import Registers
from mosix.native.tracee import Tracee

# <elf.h>
_EHDR_SIZE = 64
_PHOFF, _SHOFF, _PHNUM = 32, 40, 56
_PHDR = struct.Struct("<IIQQQQQQ")  # type, flags, offset, vaddr, paddr, filesz, memsz, align
_SHDR = struct.Struct("<IIQQQQIIQQ")  # name, type, flags, addr, offset, size, …
_SYM = struct.Struct("<IBBHQQ")  # name, info, other, shndx, value, size
_ELF_X86_64 = b"\x7fELF\x02", b"\x3e\x00"  # at 0, at 18
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 4, 5, 6, 0x6FFFFEF5
_STT_FUNC = 2
_SHF_EXECINSTR = 4
_MAX_SYMBOLS = 256
_MAX_SIZE = 1 << 20

_PAGE = 4096
_JMP_SIZE = 5
_RET = 0xC3
_SYSCALL = b"\x0f\x05"
_NR_CLOCK_GETTIME = 228
#: before the vdso: the clock page and the blob
BEFORE = 2 * _PAGE

_BLOB = Path(__file__).resolve().parent / "bin" / "guest_vdso.bin"
_MAGIC = 0x6F64767369786F6D
#: the functions, by their number in the blob
FUNCTIONS = ("clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu", "getrandom")
_HEADER = struct.Struct("<Q12I")
#: these stay as they are: no kernel data is read by them
_PURE = frozenset(("sgx_enter_enclave",))

#: what the guard of the blob keeps: its return address, the number of the function, and these
_SAVED = ("rdi", "rsi", "rbx", "rbp", "r12", "r13", "r14", "r15")
_GUARDED = struct.Struct("<10Q")
#: how far below the guard the functions it calls may get, in bytes
_DEPTH = 1024

#: struct sigcontext: these, eflags, segments
_CONTEXT_NAMES = (
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip"),
)
_CONTEXT = struct.Struct("<19Q")
_RIP = len(_CONTEXT_NAMES) - 1
_USER_CS = 0x33
_EFLAGS_ALWAYS, _EFLAGS_LIMIT = 2, 1 << 22
_STACK_LIMIT = 8 << 20

#: How often a process that stands inside is let run before it is given up.
ATTEMPTS = 600
_QUICK = 20


def pause_s(attempt: int) -> float:
    """For how long, in seconds. Its functions take less than a microsecond, but a program that does
    nothing else is nearly always met behind their slow instructions: there are many quick looks.
    A system call or a handler may have to wait for a processor: now and then one is long."""
    if attempt % _QUICK != _QUICK - 1:
        return 1e-5
    return min(1e-4 * 1.5 ** (attempt // _QUICK), 0.02)


class Layout(NamedTuple):
    """What is where in a vdso; offsets from its start."""

    entries: dict[str, int]  # function, without __vdso_ → where it begins
    code: tuple[int, int]  # its functions lie in here
    problem: str  # why a guest cannot have it


@functools.lru_cache(maxsize=8)
def layout(image: bytes) -> Layout:
    """MoveFailedError: `image` is no vdso."""
    if (image[:5], image[18:20]) != _ELF_X86_64 or len(image) > _MAX_SIZE:
        raise MoveFailedError("home's vdso is no ELF file for x86-64")
    try:
        symbols, code = _functions(image), _code(image)
    except (struct.error, LookupError, ValueError, StopIteration) as error:
        raise MoveFailedError(f"home's vdso cannot be understood: {error}") from error
    entries = {name: at for name, at in symbols.items() if name not in _PURE}
    starts = sorted(set(entries.values()))
    problem = ""
    if unknown := entries.keys() - set(FUNCTIONS):
        problem = f"home's vdso has a function {min(unknown)} that MOSIX does not know"
    elif any(b - a < _JMP_SIZE for a, b in itertools.pairwise(starts)):
        problem = "home's vdso has functions that are too short"
    return Layout(entries, code, problem)


# ---- the blob ----


class Blob(NamedTuple):
    """`image`, and where in it: each function, by number, and behind the last one the guard; what
    the guard calls when the node's functions are not to be used."""

    image: bytes
    functions: tuple[int, ...]
    guard: int
    guarding: int
    guarded: int
    unguarded: int
    system_calls: int


@functools.cache
def load_blob() -> Blob:
    """KernelError if the file belongs to another build."""
    image = _BLOB.read_bytes()
    magic, *offsets = _HEADER.unpack_from(image)
    if magic != _MAGIC or offsets[-1] != len(image):
        raise KernelError(f"{_BLOB} belongs to another version", "build and install again")
    count = len(FUNCTIONS)
    return Blob(image, tuple(offsets[:count]), *offsets[count : count + 5])


def guest_vdso(image: bytes) -> bytes:
    """The blob's page, and home's vdso `image` that jumps into it. MoveFailedError: that cannot
    be made of it."""
    found, blob = layout(image), load_blob()
    if found.problem:
        raise MoveFailedError(found.problem, "use a node with the same kernel as home's")
    out = bytearray(blob.image.ljust(_PAGE, b"\0") + image)
    for name, entry in found.entries.items():
        target = blob.functions[FUNCTIONS.index(name)]
        at = _PAGE + entry
        out[at : at + _JMP_SIZE] = b"\xe9" + struct.pack("<i", target - at - _JMP_SIZE)
    return bytes(out)


def node_functions(start: int, image: bytes, node: int | None) -> tuple[int, int, int]:
    """Addresses of clock_gettime, clock_getres and getcpu for the clock page of a guest with its
    vdso at `start`: those of the node's own vdso `image`, which lies at `node`; None: they are
    not to be used."""
    blob = load_blob()
    size = len(_SYSTEM_CALL)
    calls = [start - _PAGE + blob.system_calls + size * i for i in range(3)]
    if node is not None:
        entries = layout(image).entries
        for i, name in enumerate(("clock_gettime", "clock_getres", "getcpu")):
            if name in entries:
                calls[i] = node + entries[name]
    return calls[0], calls[1], calls[2]


_SYSTEM_CALL = b"\xb8\0\0\0\0\x0f\x05\xc3"  # mov $nr,%eax; syscall; ret


# ---- where a guest stands ----


class Place(NamedTuple):
    """Of a guest: where its vdso begins, the bytes of home's, and where the node's own lies."""

    start: int
    image: bytes
    node: tuple[int, int]

    def contains(self, address: int) -> bool:
        return self.start - _PAGE <= address < self.start or self.node[0] <= address < self.node[1]


def begin_again(place: Place, registers: Registers, read: Callable[[int, int], bytes]) -> bool:
    """Takes `registers`, a context in which no system call is pending, out of the functions of
    a guest's vdso: to the beginning, or to the caller of one that is over. `read(address, size)`
    gives the guest's memory, or less where that ends. False: it was in none."""
    if not place.contains(registers.rip):
        return False
    blob, base = load_blob(), place.start - _PAGE
    at = registers.rip - base
    if blob.functions[0] <= at < blob.system_calls:
        if blob.image[at] == _RET:
            registers.rip = int.from_bytes(read(registers.rsp, 8), "little")
            registers.rsp += 8
            return True
        if blob.guarding <= at < blob.guarded:
            registers.rsp += _GUARDED.size - 8
        if at != blob.guarded:
            shared = at >= blob.guard
            number = registers.r10 if shared else sum(at >= begin for begin in blob.functions) - 1
            _begin(place, registers, number)
            return True
    # In what the guard has called, or back from it.
    low = registers.rsp - (8 if at == blob.guarded else 0)
    number, saved, registers.rsp = _guarded(read(low, _DEPTH), low, base + blob.guarded)
    for name, value in zip(_SAVED, saved, strict=True):
        setattr(registers, name, value)
    _begin(place, registers, number)
    return True


def _guarded(stack: bytes, low: int, caller: int) -> tuple[int, list[int], int]:
    """The lowest frame of the guard in `stack`, which begins at `low`: number of the function,
    registers, stack pointer."""
    at, wanted = -1, struct.pack("<Q", caller)
    while (at := stack.find(wanted, at + 1)) >= 0:
        if at % 8 == 0 and at + _GUARDED.size <= len(stack):
            _, number, *saved = _GUARDED.unpack_from(stack, at)
            if number < len(FUNCTIONS):
                return number, saved, low + at + _GUARDED.size
    raise MoveFailedError("the process stands in the vdso of the node where it is")


def _begin(place: Place, registers: Registers, number: int) -> None:
    registers.rip = place.start + layout(place.image).entries[FUNCTIONS[number]]


def begin_frames_again(tracee: Tracee, place: Place) -> None:
    """The same for what the signal handlers that run in the stopped guest will return into.
    Frames of handlers that are over may be among them: nobody reads those."""
    rsp = tracee.get_registers().rsp
    for low, high in ((place.start - _PAGE, place.start), place.node):
        for at, words in _frames(tracee, rsp, low, high):
            context = Registers(*[0] * 27)
            for name, value in zip(_CONTEXT_NAMES, words, strict=False):
                setattr(context, name, value)
            begin_again(place, context, functools.partial(read_up, tracee))
            changed = [getattr(context, name) for name in _CONTEXT_NAMES]
            tracee.write(at, _CONTEXT.pack(*changed, *words[len(changed) :]))


def read_up(tracee: Tracee, address: int, size: int) -> bytes:
    """`size` bytes at `address`, or less where the mapping ends."""
    try:
        return tracee.read(address, size)
    except OSError:
        return tracee.read(address, min(size, -address % _PAGE or _PAGE))


# ---- where a process at home stands ----


def is_used(tracee: Tracee, image: bytes) -> bool:
    """The stopped process is in, or will return into, the middle of a function of its own kernel's
    vdso `image`."""
    return stands_inside(tracee, image) or handler_interrupted(tracee, image)


def stands_inside(tracee: Tracee, image: bytes) -> bool:
    """The stopped process is in the middle of a function of its own kernel's vdso `image`.

    Not if it is at the system call that clock_gettime makes for clocks which are in no data, such
    as those of CPU time: that is the last of what the function does, and a process that asks for
    little else would hardly ever be found elsewhere."""
    registers = tracee.get_registers()
    offset = registers.rip - tracee.vdso[0]
    found = layout(image)
    if not found.code[0] <= offset < found.code[1] or offset in found.entries.values():
        return False
    before = registers.rax, image[offset : offset + 2]
    behind = registers.orig_rax, image[offset - 2 : offset]
    return (_NR_CLOCK_GETTIME, _SYSCALL) not in (before, behind)


def handler_interrupted(tracee: Tracee, image: bytes) -> bool:
    """A signal handler that runs now will return into the middle of such a function."""
    start, found = tracee.vdso[0], layout(image)
    low, high = start + found.code[0], start + found.code[1]
    entries = {start + entry for entry in found.entries.values()}
    frames = _frames(tracee, tracee.get_registers().rsp, low, high)
    return any(words[_RIP] not in entries for _, words in frames)


def _frames(tracee: Tracee, rsp: int, low: int, high: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Signal frames on the stack above `rsp` that return to addresses in [low, high): where
    their struct sigcontext lies, and its first words."""
    begin = rsp & ~7
    end = next((at.end for at in mapped(tracee.pid) if at.start <= begin < at.end), begin)
    stack = tracee.read(begin, min(end - begin, _STACK_LIMIT))
    for upper in range(low >> 16, (high - 1 >> 16) + 1):
        pattern, at = struct.pack("<Q", upper << 16)[2:], -1
        while (at := stack.find(pattern, at + 1)) >= 0:
            first = at - 2 - _RIP * 8
            if first % 8 or first < 0 or first + _CONTEXT.size > len(stack):
                continue
            words = _CONTEXT.unpack_from(stack, first)
            flags, segments = words[_RIP + 1 :]
            plain = flags & _EFLAGS_ALWAYS and flags < _EFLAGS_LIMIT
            if low <= words[_RIP] < high and plain and segments & 0xFFFF == _USER_CS:
                yield begin + first, words


# ---- ELF ----


def _functions(image: bytes) -> dict[str, int]:
    """The functions in the dynamic symbol table, by name without __vdso_."""
    segments = _segments(image)
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


def _segments(image: bytes) -> list[tuple[int, ...]]:
    return [
        _PHDR.unpack_from(image, _word(image, _PHOFF) + i * _PHDR.size)
        for i in range(_half(image, _PHNUM))
    ]


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
    """What the executable sections span; all that is used where there are none."""
    table, count = _word(image, _SHOFF), _half(image, _PHNUM + 4)
    ranges = []
    for i in range(count):
        header = _SHDR.unpack_from(image, table + i * _SHDR.size)
        if header[2] & _SHF_EXECINSTR:
            ranges.append((header[4], header[4] + header[5]))
    if not ranges:
        return _EHDR_SIZE, max(segment[2] + segment[5] for segment in _segments(image))
    return min(start for start, _ in ranges), max(end for _, end in ranges)


def _word(image: bytes, at: int) -> int:
    return int(struct.unpack_from("<Q", image, at)[0])


def _int(image: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", image, at)[0])


def _half(image: bytes, at: int) -> int:
    return int(struct.unpack_from("<H", image, at)[0])
