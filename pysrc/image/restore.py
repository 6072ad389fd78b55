"""Putting a body into a process: into an empty guest, or back into its own ghost.

Called by `mosix.remote` (guest) and `mosix.deputy` (ghost) with an `Agent` that obeys inside it.
What has to be done is planned by pure functions, as lists of `Call`; the drivers
`empty_ghost`, `prefault`, `fill_guest`, `fill_ghost` only carry the plans out. They use the
agent's socket and process_vm_*, never ptrace, and block: run them in an executor thread.
They must never leave a ghost without its arguments and environment (ps shows them) or its vdso
(injection needs it), and never let the process run: `Agent.leave(*final_state(image))` does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mosix.errors import MoveFailedError
from mosix.image.model import PAGE_SIZE, Image, MemoryMap, Process, Rseq, Thread, Vma
from mosix.image.pending import reissue
from mosix.native import vdso
from mosix.native.agent import Agent, Argument
from mosix.native.blob import Mapped, find_hole, mapped
from mosix.native.tracee import Registers, Tracee

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
#: what the agent takes of a limit on memory: its blob, in bytes, and some more
_AGENT_ROOM = 128 << 10
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


def _page_range(start: int, end: int) -> Range:
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
    return _page_range(mm.arg_start, max(mm.arg_end, mm.env_end))


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
    return [_munmap(start, end) for start, end in joined]


def _munmap(start: int, end: int) -> Call:
    return Call(_MUNMAP, (start, end - start), f"munmap of {start:#x}-{end:#x}")


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
        Call(_CLOSE, (clock,), "close"),
        *(
            Call(_MMAP, (low, high - low, prot, flags, _NO_FD, 0), "mmap for home's vdso")
            for ranges, prot in (
                ([(before + PAGE_SIZE, end)], _PROT_RW),
                (subtract(kernels, [(before, end)]), _PROT_NONE),
            )
            for low, high in ranges
        ),
    ]


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


def is_data_limited(pid: int) -> bool:
    """Memory that is writable only while it is filled might exceed RLIMIT_DATA of `pid`."""
    return resource.prlimit(pid, resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


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
    has used is taken off, and what the guest has used for itself (`before_ns`) comes on top."""
    used_s = (sum(process.cpu_ns) - before_ns) // 10**9  # too few: the signal comes never early
    calls: list[Call] = []
    for which, wanted in sorted(process.rlimits.items()):
        soft, hard = (limit % 2**64 for limit in wanted)
        if which == resource.RLIMIT_CPU:
            soft, hard = (
                limit if limit == _RLIM_INFINITY else max(limit - used_s, 1)
                for limit in (soft, hard)
            )
        ceiling = current.get(which, (-1, -1))[1] % 2**64
        data = _RLIMIT.pack(min(soft, ceiling), min(hard, ceiling))
        calls.append(Call(_PRLIMIT64, (0, which, data, 0), f"limit {which}"))
    return calls


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


# ---- carrying plans out ----


def _run(agent: Agent, calls: Sequence[Call]) -> list[int]:
    """All of `calls`; MoveFailedError names the one that failed."""
    results = agent.calls([(call.nr, call.args, call.may_fail) for call in calls])
    for call, result in zip(calls, results, strict=False):
        if -4095 <= result < 0 and not call.may_fail:
            raise MoveFailedError(f"{call.what}: {os.strerror(-result).lower()}", _hint(-result))
    return results


def _hint(number: int) -> str:
    if number == errno.ENOMEM:
        return "the node, its cgroup or RLIMIT_AS is short of memory"
    return ""


def _removal(agent: Agent, keep: Iterable[Range]) -> list[Call]:
    """Takes away all that is in the process but the agent and `keep`; to be carried out next."""
    agent.forget_host()
    agent.forget_area()
    return plan_removal(mapped(agent.pid), [agent.blob, *keep])


def empty_ghost(agent: Agent, image: Image) -> None:
    """The body is elsewhere: gives its memory back, all but arguments, environment and vdso.

    Also after a `fill_ghost` that failed. `image` is the body that was here or came."""
    removal = _removal(agent, [arguments_range(image.process.mm)])
    _run(agent, [*plan_unregister(image), *removal])


def prefault(agent: Agent, ranges: Iterable[Range]) -> list[Range]:
    """Empties the guest and populates memory that a body will need, while that still runs
    elsewhere: page faults are most of the time of a fill. `ranges` is a guess; what does not
    fit is left out. Returns what was mapped, for `fill_guest`."""
    # The guest's own program goes. It has no rseq area and no robust list: the kernel would
    # write into memory that is gone.
    default = dict.fromkeys(_SETTABLE, bytes(_SIGACTION_SIZE))
    _run(agent, [*_removal(agent, ()), *plan_sigactions(default)])
    wanted = sorted(_page_range(*range_) for range_ in ranges)
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE | _MAP_POPULATE
    results = _run(
        agent,
        [
            Call(_MMAP, (start, end - start, _PROT_RW, flags, _NO_FD, 0), "prefault", True)
            for start, end in wanted
        ],
    )
    return [range_ for range_, got in zip(wanted, results, strict=True) if got == range_[0]]


def fill_guest(
    agent: Agent,
    image: Image,
    bulk: int,
    prefaulted: Sequence[Range],
    *,
    clock: int,
) -> Range | None:
    """Puts the body into the confined, empty process in which `agent` obeys.

    `bulk`: number in that process of the descriptor from which the pages come, in the order of
    ``image.runs``; closed when the agent leaves. `prefaulted`: what `prefault` has returned.
    `clock`: number there of the clock page, which is closed.
    Returns the place that is kept free for an agent, if memory is limited.
    MoveFailedError; the guest is then good for nothing but killing."""
    process = image.process
    ready = usable_prefault(image, prefaulted)
    agent.relocate(body_ranges(image))
    with _empty_file(agent, image) as empty:
        plan = plan_mapping(image, premapped=ready, empty_file=empty, locks_may_fail=True)
        useless = subtract(prefaulted, ready)
        # vdso and data pages, before anything is mapped where they have to go
        moved = plan_vdso(mapped(agent.pid), image, clock)
        _run(agent, [*(_munmap(*range_) for range_ in useless), *moved, *plan.before])
    _write_vdso(agent, image)
    _receive(agent, image, bulk)
    _run(
        agent,
        [
            *plan.after,
            plan_mm(process),
            *plan_thread(image.threads[0]),
            *plan_sigactions(process.sigactions),
            *plan_itimers(process),
            # last what would have been in the way: READ_IMPLIES_EXEC, then limits of memory
            Call(_PERSONALITY, (process.personality,), "personality"),
        ],
    )
    room = _reserve(agent, image)
    before_ns = time.clock_gettime_ns((~agent.pid << 3) | 2)
    limits = _current_limits(agent.pid, process.rlimits)
    _run(agent, plan_rlimits(process, limits, before_ns))
    _requeue(agent, image)
    return room


def _write_vdso(agent: Agent, image: Image) -> None:
    """Into the memory of `plan_vdso`, which then becomes readable and executable."""
    content = vdso.guest_vdso(image.process.vdso)
    begin = vdso_range(image)[1] - len(content)
    agent.write(begin, content)
    _run(agent, [Call(_MPROTECT, (begin, len(content), _PROT_RX), "mprotect of the vdso")])


def _reserve(agent: Agent, image: Image) -> Range | None:
    """A body may use all that RLIMIT_AS and RLIMIT_DATA allow, and still it must be possible to
    capture it, and at home to have an agent beside it: that much is kept from it."""
    limits = image.process.rlimits
    unlimited = (_RLIM_INFINITY, _RLIM_INFINITY)
    if all(
        limits.get(which, unlimited)[0] % 2**64 == _RLIM_INFINITY
        for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    ):
        return None
    start = find_hole(_AGENT_ROOM, [(at.start, at.end) for at in mapped(agent.pid)])
    _run(agent, [Call(*reservation((start, start + _AGENT_ROOM)), "room for the agent")])
    return start, start + _AGENT_ROOM


def reservation(room: Range) -> tuple[int, tuple[int, ...]]:
    """The system call that makes (again) what `fill_guest` has kept free."""
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE
    return _MMAP, (room[0], room[1] - room[0], _PROT_RW, flags, _NO_FD, 0)


def fill_ghost(agent: Agent, image: Image, bulk: int | None, ours: int = -1) -> None:
    """Puts the body back into its emptied ghost, in which `agent` obeys. `bulk` None: the pages
    come from `ours`, a descriptor of this process, and not straight into memory: because the
    ghost has no descriptor left, or `is_data_limited`.

    MoveFailedError: `empty_ghost` makes it a ghost again. Dispositions, limits, personality are
    the ghost's own: it executed the calls that set them."""
    agent.relocate(body_ranges(image))
    kept = arguments_range(image.process.mm)
    arguments = agent.read(kept[0], kept[1] - kept[0])
    removal = _removal(agent, [kept])
    with _empty_file(agent, image) as empty:
        plan = plan_mapping(image, replace=[kept], empty_file=empty, poured=bulk is None)
        _run(agent, [*removal, *plan.before])
    # The stack has to be one mapping that grows, so the kept pages were mapped over; ps and a
    # second emptying need what was in them, whatever becomes of the fill.
    agent.write(kept[0], arguments)
    _receive(agent, image, bulk, ours)
    _run(
        agent,
        [
            *plan.after,
            plan_mm(image.process),
            *plan_thread(image.threads[0]),
            *plan_itimers(image.process),
        ],
    )
    _requeue(agent, image)


def _receive(agent: Agent, image: Image, bulk: int | None, ours: int = -1) -> None:
    got = agent.pour(ours, image.runs) if bulk is None else agent.fill(bulk, image.runs)
    if got != image.page_bytes:
        raise MoveFailedError(f"{got} of {image.page_bytes} bytes of memory arrived")


@contextlib.contextmanager
def _empty_file(agent: Agent, image: Image) -> Iterator[int]:
    """Number of an empty file in the process, if the image needs one (else -1)."""
    if all(vma.kind != "eof" for vma in image.vmas):
        yield -1
        return
    (number,) = _run(agent, [Call(_MEMFD_CREATE, (b"eof\0", 0), "memfd_create")])
    yield number
    _run(agent, [Call(_CLOSE, (number,), "close")])


def _requeue(agent: Agent, image: Image) -> None:
    if image.process.pending or image.threads[0].pending:
        _run(agent, plan_pending(image, agent.call(_GETPID), agent.call(_GETTID)))


def _current_limits(pid: int, which: Iterable[int]) -> dict[int, tuple[int, int]]:
    return {limit: resource.prlimit(pid, limit) for limit in which}


# ---- the last step: registers, and a call that is not finished ----


def guest_state(image: Image) -> tuple[bytes, bytes, int]:
    """Registers, XSTATE and signal mask of a guest, for `Agent.leave`. An interrupted call
    (`Thread.call`) is finished by the redirector: the registers stand before it."""
    thread = image.threads[0]
    return thread.registers, thread.xstate, thread.signal_mask


def final_state(tracee: Tracee, image: Image) -> tuple[bytes, bytes, int]:
    """The same for a body at home, where nobody stands in for an interrupted call: a stub in
    the vdso makes the rest of it (`mosix.image.pending.reissue`). The process stands still."""
    registers, xstate, mask = guest_state(image)
    call = image.threads[0].call
    if call is not None:
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        reissue(tracee, Registers.unpack(registers), call, now_ns)
        registers = tracee.registers
    return registers, xstate, mask
