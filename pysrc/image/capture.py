"""Describes a stopped process (`describe` → `Image`) and sends its pages (`send_pages`).

Called by the deputy (home) and the remote (guest); the process is seized and stands in a
PTRACE_EVENT_STOP. Whatever happens here, the process can be resumed afterwards as if nothing had
been done: only self-curing injected calls are made in it.
What a tracer cannot see from outside (dispositions with their masks, alternate stack, exact brk,
CPU timers) is asked for by one batch of injected calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
from mosix.errors import CannotMoveError
from mosix.image.maps import Mapping, find_hole, read_mappings
from mosix.image.model import (
    IMAGE_VERSION,
    PAGE_SIZE,
    Header,
    Image,
    MemoryMap,
    PageRun,
    PendingCall,
    Process,
    Rseq,
    Thread,
    Vma,
)
from mosix.image.pending import resolve
from mosix.native import vdso
from mosix.native._native import ffi, lib
from mosix.native.cpu import cpu_features, own_vdso
from mosix.native.stops import Registers, TraceError
from mosix.native.tracee import Tracee

SYS_MMAP, SYS_MUNMAP, SYS_BRK, SYS_RT_SIGACTION = 9, 11, 12, 13
SYS_GETITIMER, SYS_GETRUSAGE = 36, 98
SYS_SIGALTSTACK, SYS_PERSONALITY, SYS_PRCTL = 131, 135, 157
PR_GET_DUMPABLE = 3
PR_GET_TID_ADDRESS = 40
_MAP_PRIVATE_ANON_NOREPLACE = 0x100022
_ITIMER_VIRTUAL, _ITIMER_PROF = 1, 2
_SIGCHLD = 17
#: CHLD, CONT, URG, WINCH: default action is to ignore
_IGNORED_BY_DEFAULT = (1 << 16) | (1 << 17) | (1 << 22) | (1 << 27)
_SIGACTION_SIZE, _STACK_T_SIZE, _AUXV_SIZE, _ITIMER_SIZE, _RUSAGE_SIZE = 32, 24, 1024, 32, 144
_NO_PAGES = frozenset(("vdso", "vvar", "vsyscall", "eof"))
_WHOLE = frozenset(("file", "shared-file"))
_RANGES = 4096


@dataclass(frozen=True, slots=True)
class ProcFiles:
    """Descriptors of /proc/PID files opened by somebody who may (a guest's owner may not open
    them by name); -1: open by name. `module`: a file of /dev/mosix, where mosix.ko captures."""

    pagemap: int = -1
    mem: int = -1
    auxv: int = -1
    module: int = -1

    def close(self) -> None:
        """All but the module's, which others use, too."""
        for fd in (self.pagemap, self.mem, self.auxv):
            if fd >= 0:
                os.close(fd)


@dataclass(frozen=True, slots=True)
class GuestVdso:
    """Of a guest: the VMAs of kind vdso and vvar that it has at home, and its functions here."""

    vmas: Sequence[Vma]
    place: vdso.Place

    @classmethod
    def of(cls, image: Image, node: tuple[int, int]) -> GuestVdso:
        """Of a guest that `image` was restored in; `node`: where the node's own vdso lies there."""
        vmas = [vma for vma in image.vmas if vma.kind in ("vdso", "vvar")]
        start = next(vma.start for vma in vmas if vma.kind == "vdso")
        return cls(vmas, vdso.Place(start, image.process.vdso, node))


def describe(
    tracee: Tracee,
    epoch: int,
    mappings: list[Mapping] | None = None,
    *,
    files: ProcFiles | None = None,
    guest: GuestVdso | None = None,
    call: PendingCall | None = None,
) -> Image:
    """All of a single-threaded process but its pages. `mappings`: if they are known already.
    Of a guest: its vdso, and what is left of a call that was made for it.

    CannotMoveError: it changed into something that cannot move; TraceError: it ended."""
    pid = tracee.pid
    status = _status(pid)
    caught, ignored = int(status[b"SigCgt"], 16), int(status[b"SigIgn"], 16)
    module = files.module if files is not None else -1
    vmas = [mapping.vma for mapping in mappings or read_mappings(pid, module)]
    asked = _ask(tracee, vmas, caught)
    auxv = _read_auxv(pid, files)
    if tracee.stub_on_stack():
        raise CannotMoveError(
            f"process {pid} runs a signal handler that interrupted a call continued by mosix",
            "it can move again when the handler has returned",
        )
    now, boottime = clocks(pid)
    pending = tracee.pending(shared=False), tracee.pending(shared=True)
    mask = tracee.signal_mask
    flags = _first_handler_flags(pending, mask, asked.sigactions)
    offset = time_offsets(str(pid))[0] - time_offsets("self")[0]
    registers, interrupted = resolve(tracee, offset, flags)
    rseq = tracee.rseq()
    if rseq is not None and interrupted is None:
        registers = _leave_rseq_section(tracee, registers, rseq)
    call = call or interrupted
    if guest is not None:
        vmas = _as_at_home(vmas, guest.vmas)
        if vdso.begin_again(guest.place, registers, partial(vdso.read_up, tracee)):
            call = None  # what such a function asks for is asked again
        vdso.begin_frames_again(tracee, guest.place)
    registers.orig_rax = -1
    for signal in range(1, 65):
        if ignored >> signal - 1 & 1:
            asked.sigactions[signal] = struct.pack("<QQQQ", 1, 0, 0, 0)
    stat = _stat(pid)
    xstate = tracee.xstate
    with _proc_files(pid, files) as opened:
        vmas = split_at_eof(pid, vmas, opened.mem)
        runs = page_runs(pid, vmas, opened)
    return Image(
        header=Header(
            version=IMAGE_VERSION,
            kernel=os.uname().release,
            page_size=PAGE_SIZE,
            cpu_features=cpu_features(),
            xsave_size=len(xstate),
            epoch=epoch,
            monotonic_ns=now,
            boottime_ns=boottime,
            date_ns=time.time_ns(),
        ),
        process=Process(
            pid=pid,
            exe=_exe(pid),
            mm=_memory_map(stat, asked.brk),
            auxv=auxv,
            sigactions=asked.sigactions,
            pending=pending[1],
            itimers=asked.itimers,
            cpu_ns=(asked.user_ns, cpu_clock(pid) - asked.user_ns),
            dumpable=asked.dumpable,
            personality=asked.personality,
            stopped=tracee.current is not None and tracee.current.kind == "group",
            rlimits=_rlimits(pid),
            ignored=ignored | (_IGNORED_BY_DEFAULT & ~caught),
            vdso=guest.place.image if guest is not None else own_vdso(),
        ),
        threads=[
            Thread(
                tid=pid,
                registers=registers.pack(),
                xstate=xstate,
                signal_mask=mask,
                pending=pending[0],
                altstack=asked.altstack,
                rseq=Rseq(*rseq) if rseq else None,
                robust_list=_robust_list(pid),
                tid_address=asked.tid_address,
                comm=_read(pid, "comm").rstrip(b"\n"),
                call=call,
            )
        ],
        vmas=vmas,
        runs=runs,
    )


def _as_at_home(vmas: list[Vma], kernels: Sequence[Vma]) -> list[Vma]:
    """`vmas` of a guest without the node's own vdso, and with `kernels` in the places of what
    stands for them, which the kernel may have made one mapping with its neighbours."""
    vmas = [vma for vma in vmas if vma.kind not in ("vdso", "vvar")]
    for kernel in kernels:
        rest = []
        for vma in vmas:
            if vma.end <= kernel.start or kernel.end <= vma.start:
                rest.append(vma)
                continue
            if vma.start < kernel.start:
                rest.append(msgspec.structs.replace(vma, end=kernel.start))
            if kernel.end < vma.end:
                offset = vma.offset + kernel.end - vma.start if vma.offset else 0
                rest.append(msgspec.structs.replace(vma, start=kernel.end, offset=offset))
        vmas = sorted([*rest, kernel], key=lambda vma: vma.start)
    return vmas


# ---- what only the process itself can tell ----


@dataclass(slots=True)
class _Answers:
    sigactions: dict[int, bytes]
    altstack: bytes
    tid_address: int
    brk: int
    itimers: tuple[tuple[int, int], tuple[int, int]]
    user_ns: int
    dumpable: int
    personality: int


def _ask(tracee: Tracee, vmas: list[Vma], caught: int) -> _Answers:
    """One batch of injected calls that write into a page mapped by the first of them."""
    signals = [n for n in range(1, 65) if caught >> n - 1 & 1 or n == _SIGCHLD]
    page = find_hole(vmas, PAGE_SIZE)
    actions = page
    altstack = actions + len(signals) * _SIGACTION_SIZE
    timers = altstack + _STACK_T_SIZE
    rusage = timers + 2 * _ITIMER_SIZE
    tid_address = rusage + _RUSAGE_SIZE
    assert tid_address + 8 <= page + PAGE_SIZE
    calls: list[tuple[int, Sequence[int]]] = [
        (SYS_MMAP, (page, PAGE_SIZE, 3, _MAP_PRIVATE_ANON_NOREPLACE, -1, 0)),
        (SYS_BRK, (0,)),
        (SYS_PRCTL, (PR_GET_DUMPABLE,)),
        (SYS_PERSONALITY, (0xFFFFFFFF,)),
        (SYS_SIGALTSTACK, (0, altstack)),
        (SYS_GETITIMER, (_ITIMER_VIRTUAL, timers)),
        (SYS_GETITIMER, (_ITIMER_PROF, timers + _ITIMER_SIZE)),
        (SYS_GETRUSAGE, (0, rusage)),
        (SYS_PRCTL, (PR_GET_TID_ADDRESS, tid_address)),
    ]
    calls += [
        (SYS_RT_SIGACTION, (n, 0, actions + i * _SIGACTION_SIZE, 8)) for i, n in enumerate(signals)
    ]
    results = tracee.inject_many(calls)
    if results[0] != page:
        error = -results[0] if results[0] < 0 else errno.EEXIST
        raise TraceError(f"no memory in process {tracee.pid}", error)
    data = tracee.read(page, PAGE_SIZE)
    tracee.inject(SYS_MUNMAP, page, PAGE_SIZE)
    for (nr, _), result in zip(calls, results, strict=True):
        if result < 0:
            raise TraceError(f"injected call {nr} of process {tracee.pid}", -result)
    sigactions = {}
    for i, number in enumerate(signals):
        action = data[i * _SIGACTION_SIZE : (i + 1) * _SIGACTION_SIZE]
        if any(action):
            sigactions[number] = action
    at = altstack - page
    return _Answers(
        sigactions=sigactions,
        altstack=data[at : at + _STACK_T_SIZE],
        tid_address=int.from_bytes(data[tid_address - page :][:8], "little"),
        brk=results[1],
        itimers=(
            _itimer(data[timers - page :]),
            _itimer(data[timers - page + _ITIMER_SIZE :]),
        ),
        user_ns=_timeval(data[rusage - page :]),
        dumpable=results[2],
        personality=results[3],
    )


def _itimer(data: bytes) -> tuple[int, int]:
    return _timeval(data), _timeval(data[16:])


def _timeval(data: bytes) -> int:
    seconds, us = struct.unpack_from("<qq", data)
    return int(seconds) * 1_000_000_000 + int(us) * 1000


def _read_auxv(pid: int, files: ProcFiles | None) -> bytes:
    if files is not None and files.auxv >= 0:
        return os.pread(files.auxv, _AUXV_SIZE, 0)
    return _read(pid, "auxv")


def _first_handler_flags(
    pending: tuple[list[bytes], list[bytes]], mask: int, sigactions: dict[int, bytes]
) -> int | None:
    """sa_flags of the handler that the kernel will run first: own queue before shared, lowest
    number first. None: no caught signal can be delivered."""
    for queue in pending:
        numbers = sorted(struct.unpack_from("<i", info)[0] for info in queue)
        for number in numbers:
            action = sigactions.get(number)
            if action is None or mask >> number - 1 & 1:
                continue
            handler, flags = struct.unpack_from("<QQ", action)
            if handler > 1:
                return int(flags)
    return None


def _leave_rseq_section(
    tracee: Tracee, registers: Registers, rseq: tuple[int, int, int]
) -> Registers:
    """Inside a restartable sequence the program goes on at its abort handler, as after any
    preemption: the descriptor does not survive the move."""
    with contextlib.suppress(OSError):
        section = int.from_bytes(tracee.read(rseq[0] + 8, 8), "little")
        if section:
            start, length, abort = struct.unpack("<QQQ", tracee.read(section + 8, 24))
            if start <= registers.rip < start + length:
                registers.rip = abort
    return registers


# ---- what /proc tells ----


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def _status(pid: int) -> dict[bytes, bytes]:
    lines = _read(pid, "status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(b":") for line in lines)}


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/PID/stat, numbered as in proc(5): index 0 is unused."""
    return [b"", b"", b"", *_read(pid, "stat").rpartition(b")")[2].split()]


def _memory_map(stat: list[bytes], brk: int) -> MemoryMap:
    return MemoryMap(
        start_code=int(stat[26]),
        end_code=int(stat[27]),
        start_data=int(stat[45]),
        end_data=int(stat[46]),
        start_brk=int(stat[47]),
        brk=brk,
        start_stack=int(stat[28]),
        arg_start=int(stat[48]),
        arg_end=int(stat[49]),
        env_start=int(stat[50]),
        env_end=int(stat[51]),
    )


def cpu_clock(pid: int) -> int:
    """CPU time of a process, in ns: clock_getcpuclockid(3)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def cpu_time(pid: int) -> tuple[int, int]:
    """User and system ns of a process: the exact sum, divided as the ticks say."""
    stat = _stat(pid)
    user, system = int(stat[14]), int(stat[15])
    total = cpu_clock(pid)
    return (
        (total * user // (user + system), total * system // (user + system))
        if (user + system)
        else (total, 0)
    )


def _exe(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe").encode("utf-8", "replace").decode()
    except PermissionError:
        return ""


def _rlimits(pid: int) -> dict[int, tuple[int, int]]:
    """RLIMIT_* → (soft, hard); /proc/PID/limits lists them in the kernel's own order."""
    limits = {}
    for number, line in enumerate(_read(pid, "limits").decode().splitlines()[1:]):
        soft, hard = (
            (1 << 64) - 1 if word == "unlimited" else int(word) for word in line[26:].split()[:2]
        )
        limits[number] = (soft, hard)
    return limits


def _robust_list(tid: int) -> tuple[int, int]:
    head, length = ffi.new("uint64_t *"), ffi.new("uint64_t *")
    error = lib.mx_get_robust_list(tid, head, length)
    if error < 0:
        raise TraceError(f"robust list of process {tid}", -error)
    return head[0], length[0]


def clocks(pid: int) -> tuple[int, int]:
    """CLOCK_MONOTONIC and CLOCK_BOOTTIME as the process reads them, in ns."""
    mine, its = time_offsets("self"), time_offsets(str(pid))
    return (
        time.clock_gettime_ns(time.CLOCK_MONOTONIC) + its[0] - mine[0],
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) + its[1] - mine[1],
    )


def time_offsets(who: str) -> tuple[int, int]:
    """What the time namespace of process `who` adds to CLOCK_MONOTONIC and BOOTTIME, in ns."""
    try:
        with open(f"/proc/{who}/timens_offsets", "rb") as file:
            lines = [line.split() for line in file.read().splitlines()]
    except FileNotFoundError:
        return 0, 0
    found = {name: int(seconds) * 1_000_000_000 + int(ns) for name, seconds, ns in lines}
    return found.get(b"monotonic", 0), found.get(b"boottime", 0)


# ---- pages ----


@contextlib.contextmanager
def _proc_files(pid: int, files: ProcFiles | None):  # type: ignore[no-untyped-def]
    """`files` with the missing descriptors opened by name."""
    files = files or ProcFiles()
    opened = []

    def by_name(name: str) -> int:
        with contextlib.suppress(PermissionError):
            fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            opened.append(fd)
            return fd
        return -1

    try:
        yield ProcFiles(
            files.pagemap if files.pagemap >= 0 else by_name("pagemap"),
            files.mem if files.mem >= 0 else by_name("mem"),
            module=files.module,
        )
    finally:
        for fd in opened:
            os.close(fd)


def split_at_eof(pid: int, vmas: list[Vma], mem: int = -1) -> list[Vma]:
    """`vmas` with each file mapping that is longer than its file divided into the part that
    has data and one of kind ``eof``, where the program must still get SIGBUS."""
    result = []
    for vma in vmas:
        if vma.kind not in _WHOLE:
            result.append(vma)
            continue
        there = lib.mx_readable(pid, mem, vma.start, vma.size)
        if there < 0:
            raise TraceError(f"memory of process {pid}", -there)
        middle = vma.start + there
        if there:
            result.append(msgspec.structs.replace(vma, end=middle))
        if middle < vma.end:
            result.append(
                msgspec.structs.replace(vma, start=middle, kind="eof", offset=vma.offset + there)
            )
    return result


def page_runs(
    pid: int,
    vmas: Sequence[Vma],
    files: ProcFiles | None = None,
    *,
    plain: bool = False,
    dirty: bool = False,
) -> list[PageRun]:
    """Which pages travel: anonymous ones that are present or swapped and not the zero page,
    whatever their protection; file mappings whole. `plain`: do without PAGEMAP_SCAN. `dirty`: of
    the anonymous ones only those written since /proc/PID/clear_refs was; only with a module.

    CannotMoveError: guard regions; PermissionError: pagemap may not be opened."""
    travel = [vma for vma in vmas if vma.kind not in _NO_PAGES]
    whole = [(vma.start, vma.size) for vma in travel if vma.kind in _WHOLE]
    looked_at = [vma for vma in travel if vma.kind not in _WHOLE]
    try:
        found = None
        if files is not None and files.module >= 0:
            found = _find_by_module(pid, looked_at, files.module, dirty=dirty)
        if found is None:
            found = _find_by_proc(pid, looked_at, files, plain=plain)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        raise CannotMoveError(
            f"process {pid} has guard pages (MADV_GUARD_INSTALL)",
            "it can move again when they are removed",
        ) from error
    return _merge(sorted(whole + found))


def _find_by_proc(
    pid: int, vmas: Sequence[Vma], files: ProcFiles | None, *, plain: bool
) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    ranges = ffi.new("struct mx_range[]", _RANGES)
    position = ffi.new("uint64_t *")
    with _proc_files(pid, files) as opened:
        if opened.pagemap < 0:
            raise PermissionError(errno.EACCES, f"/proc/{pid}/pagemap may not be opened")
        for vma in vmas:
            position[0] = vma.start
            while position[0] < vma.end:
                count = lib.mx_page_scan(opened.pagemap, position, vma.end, ranges, _RANGES, plain)
                if count < 0:
                    raise OSError(-count, f"/proc/{pid}/pagemap: {os.strerror(-count)}")
                runs += [(ranges[i].start, ranges[i].size) for i in range(count)]
    return runs


def _find_by_module(
    pid: int, vmas: Sequence[Vma], module: int, *, dirty: bool
) -> list[tuple[int, int]] | None:
    """None: it is left to those who may open /proc/PID/pagemap."""
    runs: list[tuple[int, int]] = []
    wanted = ffi.new("struct mx_range[]", [(vma.start, vma.size) for vma in vmas])
    ranges = ffi.new("struct mx_range[]", _RANGES)
    position = ffi.new("long *")
    while position[0] < len(vmas):
        count = lib.mx_module_pages(
            module, pid, wanted, len(vmas), position, dirty, ranges, _RANGES
        )
        if count == -errno.EPERM and not dirty:
            return None
        if count < 0:
            raise OSError(-count, f"pages of process {pid}: {os.strerror(-count)}")
        runs += [(ranges[i].start, ranges[i].size) for i in range(count)]
    return runs


def _merge(runs: list[tuple[int, int]]) -> list[PageRun]:
    merged: list[PageRun] = []
    start = end = 0
    for run_start, size in runs:
        if run_start == end and end:
            end += size
            continue
        if end:
            merged.append(PageRun(start, end - start))
        start, end = run_start, run_start + size
    if end:
        merged.append(PageRun(start, end - start))
    return merged


def send_pages(pid: int, fd: int, runs: Sequence[PageRun], files: ProcFiles | None = None) -> int:
    """Send the bytes of `runs`, raw and in order, to the blocking descriptor `fd`; their number.

    Blocks, without the GIL: called from an executor thread. OSError: EPIPE, ECONNRESET, ENOSPC…
    of `fd`; EFAULT when memory is missing; ESRCH when the process ended."""
    ranges = ffi.new("struct mx_range[]", max(1, len(runs)))
    for i, run in enumerate(runs):
        ranges[i].start, ranges[i].size = run.start, run.size
    files = files or ProcFiles()
    sent = -errno.EPERM
    if files.module >= 0:
        sent = lib.mx_module_send(files.module, pid, fd, ranges, len(runs))
    if sent == -errno.EPERM:  # no module, or one that only lets those who may open /proc/PID/mem
        with _proc_files(pid, ProcFiles(pagemap=0, mem=files.mem)) as opened:
            sent = lib.mx_send_pages(pid, opened.mem, fd, ranges, len(runs))
    if sent < 0:
        raise OSError(-sent, os.strerror(-sent))
    return int(sent)
