"""What has to be done to put a body into a process, as lists of system calls.

Pure functions, called by `mosix.image.restore`, which carries the plans out in a guest or a
ghost. They must never touch a process: what one has is given to them.
"""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mosix.errors import MoveFailedError
from mosix.image.model import PAGE_SIZE, Image, MemoryMap, Process, Rseq, Thread, Vma
from mosix.native import vdso
from mosix.native.blob import Mapped, find_hole
from mosix.native.orders import Argument

Range = tuple[int, int]  # start, end

# x86-64 system call numbers (asm/unistd_64.h)
_MMAP, _MPROTECT, _MUNMAP, _RT_SIGACTION = 9, 10, 11, 13
_MREMAP, _MADVISE, _SETITIMER, _RT_SIGQUEUEINFO = 25, 28, 38, 129
_SIGALTSTACK, _PERSONALITY, _PRCTL, _MLOCK2 = 131, 135, 157, 325
_SET_TID_ADDRESS, _SET_ROBUST_LIST, _RT_TGSIGQUEUEINFO = 218, 273, 297
_PRLIMIT64, _RSEQ, _GETPID, _GETTID = 302, 334, 39, 186
_CLOSE, _MEMFD_CREATE = 3, 319

# mman.h
_PROT_NONE, _PROT_READ, _PROT_WRITE, _PROT_RW, _PROT_RX = 0, 1, 2, 3, 5
_MAP_SHARED, _MAP_PRIVATE, _MAP_DROPPABLE = 0x01, 0x02, 0x08
_MAP_FIXED, _MAP_ANONYMOUS = 0x10, 0x20
_MAP_GROWSDOWN = 0x100
_MAP_NORESERVE, _MAP_POPULATE, _MAP_FIXED_NOREPLACE = 0x4000, 0x8000, 0x100000
_MREMAP_MAYMOVE_FIXED = 3
_MLOCK_ONFAULT = 1
_NO_FD = 2**64 - 1

#: VmFlags of smaps → madvise (mman-common.h); the hints may be refused by a kernel built without.
_ADVICE = {"dd": 16, "dc": 10, "wf": 18, "hg": 14, "nh": 15, "mg": 12, "rr": 1, "sr": 2}
_HINTS = ("hg", "nh", "mg", "rr", "sr")

# prctl.h
_PR_SET_NAME, _PR_SET_MM, _PR_SET_MM_MAP = 15, 35, 14
_MM_MAP = struct.Struct("<11QQII")
_NO_EXE_FD = 2**32 - 1

_ITIMERS = (1, 2)  # ITIMER_VIRTUAL, ITIMER_PROF
_ITIMERVAL = struct.Struct("<4q")
_STACK_T = struct.Struct("<QiIQ")
_SS_ONSTACK = 1
_RLIMIT = struct.Struct("<QQ")
_RLIM_INFINITY = 2**64 - 1
#: no more is kept free for a stack to grow, and between it and other memory, in bytes
_STACK_ROOM, _STACK_GAP = 1 << 30, 1 << 20
_RSEQ_FLAG_UNREGISTER = 1
_ROBUST_LIST_HEAD = 24
_SIGACTION_SIZE = 32
#: all signals but SIGKILL and SIGSTOP
_SETTABLE = tuple(number for number in range(1, 65) if number not in (9, 19))

#: Kinds of VMA that the kernel made and that are moved or left, never filled.
_KERNEL_KINDS = ("vdso", "vvar", "vsyscall")


class Call(NamedTuple):
    """One system call inside the process. `what` names it in an error message."""

    nr: int
    args: tuple[Argument, ...]
    what: str
    may_fail: bool = False


# ---- ranges ----


def page_range(start: int, end: int) -> Range:
    """The whole pages that `start`–`end` touches."""
    return start & -PAGE_SIZE, (end + PAGE_SIZE - 1) & -PAGE_SIZE


def subtract(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """What of `ranges` lies in none of `holes`, in order."""
    left = sorted(ranges)
    for low, high in holes:
        cut: list[Range] = []
        for start, end in left:
            if end <= low or high <= start:
                cut.append((start, end))
                continue
            if start < low:
                cut.append((start, low))
            if high < end:
                cut.append((high, end))
        left = cut
    return left


def intersect(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What lies in one of `ranges` and in one of `others` (each without overlaps), in order."""
    kept = sorted(others)
    return [
        (max(start, low), min(end, high))
        for start, end in sorted(ranges)
        for low, high in kept
        if low < end and start < high
    ]


def arguments_range(mm: MemoryMap) -> Range:
    """The pages from which the kernel reads /proc/PID/cmdline and environ."""
    return page_range(mm.arg_start, max(mm.arg_end, mm.env_end))


def _is_kernel_made(at: Mapped) -> bool:
    return at.name in ("[vdso]", "[vsyscall]") or at.name.startswith("[vvar")


def _vdso_of_process(current: Iterable[Mapped]) -> list[Mapped]:
    """vdso and its data pages (vsyscall is at the same place everywhere), by address."""
    return sorted(at for at in current if _is_kernel_made(at) and at.name != "[vsyscall]")


def _vdso_of_image(image: Image) -> list[Mapped]:
    return sorted(
        Mapped(v.start, v.end, "[vdso]" if v.kind == "vdso" else "[vvar]")
        for v in image.vmas
        if v.kind in ("vdso", "vvar")
    )


def body_ranges(image: Image) -> list[Range]:
    """All that the image occupies, the vdso included: where no blob may lie."""
    return [(v.start, v.end) for v in image.vmas if v.kind != "vsyscall"]


# ---- plans: memory ----


def plan_removal(current: Iterable[Mapped], keep: Iterable[Range]) -> list[Call]:
    """munmap of everything in `current` except `keep` and what the kernel made.

    One call spans all that lies between two kept ones."""
    ranges = list(current)
    kept = sorted([*keep, *((at.start, at.end) for at in ranges if _is_kernel_made(at))])
    pieces = subtract(((at.start, at.end) for at in ranges), kept)
    joined: list[Range] = []
    for start, end in pieces:
        if joined and not intersect([(joined[-1][1], start)], kept):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return [plan_munmap(start, end) for start, end in joined]


def plan_munmap(start: int, end: int) -> Call:
    """Takes away what lies between `start` and `end`."""
    return Call(_MUNMAP, (start, end - start), f"munmap of {start:#x}-{end:#x}")


def plan_prefault(ranges: Iterable[Range]) -> list[Call]:
    """Populated memory for each of `ranges`; what is in the way is left as it is."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE | _MAP_POPULATE
    return [
        Call(_MMAP, (start, end - start, _PROT_RW, flags, _NO_FD, 0), "prefault", True)
        for start, end in ranges
    ]


def plan_empty_file() -> Call:
    """Results in the number of a file without content."""
    return Call(_MEMFD_CREATE, (b"eof\0", 0), "memfd_create")


def plan_close(number: int) -> Call:
    """Closes a descriptor of the process."""
    return Call(_CLOSE, (number,), "close")


def vdso_range(image: Image) -> Range:
    """Where the image has its vdso. MoveFailedError: not as every kernel puts it."""
    found = [vma for vma in image.vmas if vma.kind == "vdso"]
    if [vma.size for vma in found] != [len(image.process.vdso)]:
        raise MoveFailedError("the image has another vdso than its process")
    start, end = found[0].start, found[0].end
    if subtract(
        [(start - vdso.BEFORE, start)], [(at.start, at.end) for at in _vdso_of_image(image)]
    ):
        raise MoveFailedError("the data of home's vdso do not lie before it")
    return start, end


def plan_vdso(current: Sequence[Mapped], image: Image, clock: int) -> list[Call]:
    """The process's own vdso and its data pages are got out of the way, if they are in it, and
    there is memory in the places of home's: the clock page (`clock`: its descriptor), the blob,
    still to be written like home's vdso behind it, and nothing where it has other data pages, for
    at home they will be there again."""
    start, end = vdso_range(image)
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE
    before = start - vdso.BEFORE
    kernels = [(at.start, at.end) for at in _vdso_of_image(image)]
    return [
        *_plan_aside(current, image),
        Call(
            _MMAP,
            (before, PAGE_SIZE, _PROT_READ, _MAP_SHARED | _MAP_FIXED_NOREPLACE, clock, 0),
            "mmap of the clock page",
        ),
        plan_close(clock),
        *(
            Call(_MMAP, (low, high - low, prot, flags, _NO_FD, 0), "mmap for home's vdso")
            for ranges, prot in (
                ([(before + PAGE_SIZE, end)], _PROT_RW),
                (subtract(kernels, [(before, end)]), _PROT_NONE),
            )
            for low, high in ranges
        ),
    ]


def plan_vdso_protection(start: int, size: int) -> Call:
    """Blob and vdso are written: readable and executable from now on."""
    return Call(_MPROTECT, (start, size, _PROT_RX), "mprotect of the vdso")


def _plan_aside(current: Sequence[Mapped], image: Image) -> list[Call]:
    """mremap of the process's vdso and its data pages, if the image needs their place or may
    come to need it. The vdso finds its data by their distance: all move by the same."""
    here = _vdso_of_process(current)
    if not here or not intersect([(here[0].start, here[-1].end)], _claimed(image)):
        return []
    size = here[-1].end - here[0].start
    hole = find_hole(size, [*((at.start, at.end) for at in current), *body_ranges(image)])
    return [
        Call(
            _MREMAP,
            (
                at.start,
                at.end - at.start,
                at.end - at.start,
                _MREMAP_MAYMOVE_FIXED,
                hole + at.start - here[0].start,
            ),
            f"mremap of {at.name}",
        )
        for at in here
    ]


def _claimed(image: Image) -> list[Range]:
    """`body_ranges`, and where the stack may grow."""
    limit = image.process.rlimits.get(resource.RLIMIT_STACK, (_RLIM_INFINITY,))[0] % 2**64
    room = min(limit, _STACK_ROOM) + _STACK_GAP
    return [
        *body_ranges(image),
        *((vma.end - room, vma.end) for vma in image.vmas if vma.kind == "stack"),
    ]


class Mapping(NamedTuple):
    """Plan for the VMAs of an image: before the fill, and after it."""

    before: list[Call]
    after: list[Call]


def _mapped_prot(vma: Vma, filled: bool) -> int:
    """What the VMA is mapped with. Pages can only be received where writing is allowed; a
    reservation without pages is never made writable: a kernel that counts commitments
    (vm.overcommit_memory) might refuse it."""
    return vma.prot | _PROT_RW if filled else vma.prot


def plan_mapping(
    image: Image,
    *,
    premapped: Sequence[Range] = (),
    replace: Sequence[Range] = (),
    empty_file: int = -1,
    locks_may_fail: bool = False,
    poured: bool = False,
) -> Mapping:
    """mmap, madvise (before the pages come), mprotect and mlock (after) for all VMAs.

    `premapped`: writable anonymous memory that is there already (`usable_prefault`).
    `replace`: ranges that are mapped and may be mapped over, all else must be free.
    `empty_file`: a descriptor of one; needed for VMAs of kind ``eof``, where touching a page
    has to raise SIGBUS as behind the end of the file that was mapped there.
    `poured`: the pages come by way of `Agent.pour`, which needs no permission to write.
    Other file mappings become anonymous: the file is at home, its bytes are among the pages."""
    runs = [(run.start, run.start + run.size) for run in image.runs]
    before: list[Call] = []
    after: list[Call] = []
    for vma in image.vmas:
        if vma.kind in _KERNEL_KINDS:
            continue
        whole = [(vma.start, vma.end)]
        name = f"{vma.path or vma.kind} at {vma.start:#x}-{vma.end:#x}"
        ready = intersect(whole, premapped) if _can_premap(vma) else []
        replaces = bool(intersect(whole, replace))
        filled = bool(ready) or replaces or bool(intersect(whole, runs))
        prot = _mapped_prot(vma, filled and not poured)
        if vma.kind == "eof":
            args = (vma.start, vma.size, prot, _MAP_PRIVATE | _MAP_FIXED_NOREPLACE, empty_file, 0)
            before.append(Call(_MMAP, args, f"mmap of {name}"))
            continue
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | (_MAP_FIXED if replaces else _MAP_FIXED_NOREPLACE)
        if "dp" in vma.vm_flags:
            flags += _MAP_DROPPABLE - _MAP_PRIVATE
        if "gd" in vma.vm_flags:
            flags |= _MAP_GROWSDOWN
        if "nr" in vma.vm_flags:
            flags |= _MAP_NORESERVE
        before += [
            Call(_MMAP, (start, end - start, prot, flags, _NO_FD, 0), f"mmap of {name}")
            for start, end in subtract(whole, ready)
        ]
        # before the pages come: hugepage and nohugepage decide how they are made
        before += [
            Call(
                _MADVISE,
                (vma.start, vma.size, advice),
                f"madvise {flag} of {name}",
                may_fail=flag in _HINTS,
            )
            for flag, advice in _ADVICE.items()
            if flag in vma.vm_flags
        ]
        if prot != vma.prot or (ready and vma.prot != _PROT_RW):
            after.append(Call(_MPROTECT, (vma.start, vma.size, vma.prot), f"mprotect of {name}"))
        if "lo" in vma.vm_flags:
            on_fault = _MLOCK_ONFAULT if "lf" in vma.vm_flags else 0
            lock = (vma.start, vma.size, on_fault)
            after.append(Call(_MLOCK2, lock, f"mlock of {name}", may_fail=locks_may_fail))
    return Mapping(before, after)


def _can_premap(vma: Vma) -> bool:
    """These flags exist only from mmap on."""
    return vma.kind != "eof" and not {"gd", "nr", "dp"} & set(vma.vm_flags)


def usable_prefault(image: Image, prefaulted: Iterable[Range]) -> list[Range]:
    """The parts of `prefaulted` that become memory of the image."""
    usable = [
        (v.start, v.end) for v in image.vmas if v.kind not in _KERNEL_KINDS and _can_premap(v)
    ]
    return intersect(usable, prefaulted)


# ---- plans: what the kernel knows of the process ----


def plan_unregister(image: Image) -> list[Call]:
    """Before memory goes: what the kernel would write into or read from it."""
    thread = image.threads[0]
    calls = [
        Call(_SET_ROBUST_LIST, (0, _ROBUST_LIST_HEAD), "clearing the robust list"),
        Call(_SET_TID_ADDRESS, (0,), "clearing the tid address"),
    ]
    if thread.rseq is not None:
        # an rseq area that is gone is a fatal SIGSEGV on the next return to user mode;
        # EINVAL, EPERM: it is not registered (a second emptying)
        calls.insert(0, _rseq_call(thread.rseq, _RSEQ_FLAG_UNREGISTER, may_fail=True))
    # CPU timers run where the body is
    return calls + [
        Call(_SETITIMER, (which, bytes(_ITIMERVAL.size), 0), "stopping a CPU timer")
        for which in _ITIMERS
    ]


def _rseq_call(rseq: Rseq, flags: int, may_fail: bool = False) -> Call:
    return Call(
        _RSEQ, (rseq.address, rseq.size, flags, rseq.signature), f"rseq, flags {flags}", may_fail
    )


def plan_mm(process: Process) -> Call:
    """All mm fields and auxv at once. Not PR_SET_MM_BRK and friends, which ask for
    CAP_SYS_RESOURCE. The brk is exact, to the byte, as the heap's VMA cannot tell."""

    def fields(address: int) -> bytes:
        mm = process.mm
        head = _MM_MAP.pack(
            mm.start_code,
            mm.end_code,
            mm.start_data,
            mm.end_data,
            mm.start_brk,
            mm.brk,
            mm.start_stack,
            mm.arg_start,
            mm.arg_end,
            mm.env_start,
            mm.env_end,
            address + _MM_MAP.size if process.auxv else 0,
            len(process.auxv),
            _NO_EXE_FD,
        )
        return head + process.auxv

    return Call(
        _PRCTL, (_PR_SET_MM, _PR_SET_MM_MAP, fields, _MM_MAP.size, 0), "prctl PR_SET_MM_MAP"
    )


def plan_thread(thread: Thread) -> list[Call]:
    """Addresses that the kernel keeps for the thread; its memory is in place."""
    calls: list[Call] = []
    if thread.rseq is not None:
        calls.append(_rseq_call(thread.rseq, 0))
    head, _ = thread.robust_list
    calls.append(Call(_SET_ROBUST_LIST, (head, _ROBUST_LIST_HEAD), "set_robust_list"))
    calls.append(Call(_SET_TID_ADDRESS, (thread.tid_address,), "set_tid_address"))
    calls.append(Call(_SIGALTSTACK, (altstack_to_set(thread.altstack), 0), "sigaltstack"))
    calls.append(Call(_PRCTL, (_PR_SET_NAME, thread.comm.ljust(16, b"\0")), "prctl PR_SET_NAME"))
    return calls


def altstack_to_set(altstack: bytes) -> bytes:
    """SS_ONSTACK in a queried stack_t tells where rsp was, not how to register it."""
    address, flags, pad, size = _STACK_T.unpack(altstack)
    return _STACK_T.pack(address, flags & ~_SS_ONSTACK, pad, size)


def plan_sigactions(sigactions: dict[int, bytes]) -> list[Call]:
    """What the image names; everything else is SIG_DFL since `prefault`."""
    return [
        Call(_RT_SIGACTION, (signal, action, 0, 8), f"rt_sigaction of signal {signal}")
        for signal, action in sigactions.items()
    ]


def plan_default_sigactions() -> list[Call]:
    """SIG_DFL for every signal that can have another disposition."""
    return plan_sigactions(dict.fromkeys(_SETTABLE, bytes(_SIGACTION_SIZE)))


def plan_personality(process: Process) -> Call:
    """Flags of the execution domain, as the process had them."""
    return Call(_PERSONALITY, (process.personality,), "personality")


def plan_itimers(process: Process) -> list[Call]:
    """ITIMER_VIRTUAL and ITIMER_PROF, with what was left of them."""
    calls: list[Call] = []
    for which, (interval_ns, value_ns) in zip(_ITIMERS, process.itimers, strict=True):
        # rounded up: 0 would mean "off"
        interval, value = -(-interval_ns // 1000), -(-value_ns // 1000)
        data = _ITIMERVAL.pack(*divmod(interval, 10**6), *divmod(value, 10**6))
        calls.append(Call(_SETITIMER, (which, data, 0), f"setitimer {which}"))
    return calls


def plan_rlimits(
    process: Process, current: dict[int, tuple[int, int]], before_ns: int = 0
) -> list[Call]:
    """The job's limits in a guest, as far as they are below the guest's `current` ones: it has
    no capability to raise them. RLIMIT_CPU counts from the guest's own start: what the body
    has used is taken off, and what the guest has used for itself (`before_ns`) comes on top. The
    hard one is a second later: before it comes a SIGXCPU, with which the body goes home."""
    used_s = (sum(process.cpu_ns) - before_ns) // 10**9  # too few: the signal comes never early
    calls: list[Call] = []
    for which, wanted in sorted(process.rlimits.items()):
        soft, hard = (limit % 2**64 for limit in wanted)
        if which == resource.RLIMIT_CPU:
            soft, hard = (
                limit if limit == _RLIM_INFINITY else max(limit - used_s, 1) + later
                for limit, later in ((soft, 0), (hard, 1))
            )
        ceiling = current.get(which, (-1, -1))[1] % 2**64
        data = _RLIMIT.pack(min(soft, ceiling), min(hard, ceiling))
        calls.append(Call(_PRLIMIT64, (0, which, data, 0), f"limit {which}"))
    return calls


def plan_identity() -> list[Call]:
    """Results in the PID and the thread's own, as `plan_pending` needs them."""
    return [Call(_GETPID, (), "getpid"), Call(_GETTID, (), "gettid")]


def plan_pending(image: Image, pid: int, tid: int) -> list[Call]:
    """Puts the signals that were pending back into both queues, in order; all are blocked. Only
    a process itself may queue whatever siginfo it likes, so the agent does it."""
    calls = [
        Call(_RT_SIGQUEUEINFO, (pid, _signal_of(info), info), "rt_sigqueueinfo")
        for info in image.process.pending
    ]
    return calls + [
        Call(_RT_TGSIGQUEUEINFO, (pid, tid, _signal_of(info), info), "rt_tgsigqueueinfo")
        for info in image.threads[0].pending
    ]


def _signal_of(siginfo: bytes) -> int:
    return int.from_bytes(siginfo[:4], "little")


def is_memory_limited(process: Process) -> bool:
    """RLIMIT_AS or RLIMIT_DATA holds for it."""
    unlimited = (_RLIM_INFINITY, _RLIM_INFINITY)
    return any(
        process.rlimits.get(which, unlimited)[0] % 2**64 != _RLIM_INFINITY
        for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    )


def reservation(room: Range) -> tuple[int, tuple[int, ...]]:
    """The system call that makes (again) what `restore.fill_guest` has kept free."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE
    return _MMAP, (room[0], room[1] - room[0], _PROT_RW, flags, _NO_FD, 0)
