"""What a body is: the records that the image stream carries and capture and restore share.

Written by `mosix.image.capture`, read by `mosix.image.restore`; `mosix.image.stream` puts them
on a socket or into a file. Only data: no kernel is touched here.
Units: addresses and sizes in bytes, times in nanoseconds, signal masks as 64-bit integers
(bit n-1 is signal n).
"""

from __future__ import annotations

import msgspec

PAGE_SIZE = 4096
IMAGE_VERSION = 2


class Vma(msgspec.Struct, array_like=True, frozen=True):
    """One line of /proc/PID/maps with the VmFlags of smaps.

    `kind`: ``anon``, ``file`` (private mapping of a file), ``shared-file`` (read-only shared
    mapping that travels as a private copy), ``heap``, ``stack``, ``vdso``, ``vvar``, ``vsyscall``,
    ``eof``: the part of a file mapping past the end of its file, where any access is SIGBUS (a
    private mapping of an empty memfd behaves so).
    `prot` is PROT_READ|WRITE|EXEC; `vm_flags` the two-letter names of smaps that a restore must
    repeat by madvise, mmap or mlock (``gd`` grows down, ``dd`` don't dump, ``dc`` don't fork, …).
    """

    start: int
    end: int
    prot: int
    kind: str
    offset: int = 0
    path: str = ""
    vm_flags: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return self.end - self.start


class PageRun(msgspec.Struct, array_like=True, frozen=True):
    """`size` bytes of memory at `start`; the bytes follow raw, runs in order."""

    start: int
    size: int


class PendingCall(msgspec.Struct, array_like=True, frozen=True):
    """A system call that was interrupted by the move and is not finished.

    The registers are rewound to its ``syscall`` instruction. `done`: bytes already transferred
    (the rest is to be done, the sum returned).
    `deadline_ns`: CLOCK_MONOTONIC of the job at which a relative timeout ends, else 0. `code`: the
    restart code (-512 or -514) from which the kernel decides what a handler that runs before it
    is made again makes of it: EINTR or not. 0: it is made again in any case.
    """

    nr: int
    args: tuple[int, int, int, int, int, int]
    done: int = 0
    deadline_ns: int = 0
    code: int = 0


class Rseq(msgspec.Struct, array_like=True, frozen=True):
    address: int
    size: int
    signature: int


class Thread(msgspec.Struct):
    """One thread. `registers`: struct user_regs_struct (216 bytes), already normalised: the
    context as user code would see it, restart codes resolved, never inside an rseq section.
    `xstate`: NT_X86_XSTATE. `pending`: siginfo_t (128 bytes each) of the thread's own queue.
    """

    tid: int
    registers: bytes
    xstate: bytes
    signal_mask: int
    pending: list[bytes]
    altstack: bytes  # stack_t, 24 bytes
    rseq: Rseq | None
    robust_list: tuple[int, int]  # head, length
    tid_address: int
    comm: bytes
    call: PendingCall | None = None


class MemoryMap(msgspec.Struct, frozen=True):
    """The mm fields of prctl_mm_map, in its order."""

    start_code: int
    end_code: int
    start_data: int
    end_data: int
    start_brk: int
    brk: int
    start_stack: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int


class Process(msgspec.Struct):
    """All that is not a thread. `sigactions`: signal → struct kernel_sigaction (32 bytes), only
    those that are not SIG_DFL with no flags. `pending`: the shared queue (siginfo_t, 128 bytes).
    `itimers`: ITIMER_VIRTUAL and ITIMER_PROF as (interval_ns, value_ns). `cpu_ns`: user and
    system time so far. `stopped`: in group stop (SIGSTOP, SIGTSTP…). `ignored`: mask of signals
    that SIG_IGN or a default of "ignore" would drop. `vdso`: the bytes of home's.
    """

    pid: int
    exe: str
    mm: MemoryMap
    auxv: bytes
    sigactions: dict[int, bytes]
    pending: list[bytes]
    itimers: tuple[tuple[int, int], tuple[int, int]]
    cpu_ns: tuple[int, int]
    dumpable: int
    personality: int
    stopped: bool
    rlimits: dict[int, tuple[int, int]]
    ignored: int = 0
    vdso: bytes = b""


class Header(msgspec.Struct, frozen=True):
    """First section of a stream: what the target must be able to run, and when it was taken.
    `date_ns`: CLOCK_REALTIME as the process reads it."""

    version: int
    kernel: str
    page_size: int
    cpu_features: tuple[str, ...]
    xsave_size: int
    epoch: int
    monotonic_ns: int
    boottime_ns: int
    date_ns: int = 0


class Image(msgspec.Struct):
    """A body without its pages. `runs` tells which pages follow."""

    header: Header
    process: Process
    threads: list[Thread]
    vmas: list[Vma]
    runs: list[PageRun] = []

    @property
    def page_bytes(self) -> int:
        return sum(run.size for run in self.runs)
