"""Can this process move? Judged from outside, before anything is stopped, and once more stopped.

Called by the deputy (and by a remote before a guest moves on). `why_not` only looks: it reads
/proc and never touches the process. Each reason is short and says what the program does that
cannot be carried, so that a person can decide whether to change it.
What is only known to the kernel of the node (CPU features, vdso) is compared elsewhere
(`mosix.balancer.eligibility`).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import stat

from mosix.errors import NoSuchProcessError
from mosix.image.maps import Mapping, read_mappings
from mosix.native import vdso
from mosix.native.cpu import own_vdso
from mosix.native.stops import TraceError
from mosix.native.tracee import Tracee

_SYS_KCMP = 312
_KCMP_VM = 1
_ELFCLASS64 = 2
_USER_CS = 0x33
_KERNEL_KINDS = frozenset(("vdso", "vvar", "vsyscall"))

#: VmFlags → reason (proc(5), Documentation/filesystems/proc.rst)
_FLAG_REASONS = {
    "ht": "it uses huge pages (hugetlbfs)",
    "io": "it maps a device",
    "pf": "it maps a device",
    "mm": "it maps a device",
    "sl": "it has sealed memory (mseal)",
    "ss": "it has a shadow stack",
    "um": "it handles its own page faults (userfaultfd)",
    "uw": "it handles its own page faults (userfaultfd)",
    "ui": "it handles its own page faults (userfaultfd)",
    "gu": "it has guard pages (MADV_GUARD_INSTALL)",
}
_DESCRIPTOR_REASONS = {
    "anon_inode:[io_uring]": "it has an io_uring open",
    "anon_inode:[userfaultfd]": "it handles its own page faults (userfaultfd)",
}
#: files of a process that tell about its memory or its CPU time, which will be elsewhere
_OWN_FILES = re.compile(
    r"/proc/(\d+)/(?:task/\d+/)?"
    r"(maps|smaps|smaps_rollup|numa_maps|map_files|mem|pagemap|clear_refs|stat|statm|status"
    r"|sched|schedstat|syscall|wchan|stack|auxv)"
)
_SHARED_OBJECT = re.compile(r"/(dev/zero|memfd:|SYSV|dev/shm/|\[aio\])")
_libc = ctypes.CDLL(None, use_errno=True)

_ENDED = "it has just ended"
#: how often it is looked at when its memory vanishes under the look: execve replaces all of it
_LOOKS = 20


def why_not(pid: int, own_filters: int | None = None) -> str | None:
    """Why process `pid` cannot move now, in a few words; None: it can.

    `own_filters`: how many seccomp filters are ours (default: as many as the caller itself
    has, for those were there before the job). NoSuchProcessError: there is no such process."""
    for _ in range(_LOOKS):
        reason = _why_not(pid, own_filters, tracer=0)
        if reason != _ENDED:
            break
    return reason


def filters_of(pid: int) -> int:
    """How many seccomp filters a process has."""
    status = _status(pid)
    return int(status.get("Seccomp_filters", status.get("Seccomp") == "2"))


def why_not_stopped(
    tracee: Tracee, own_filters: int | None = None, mappings: list[Mapping] | None = None
) -> str | None:
    """The same once it stands still: nothing can change any more. Adds what only a tracer
    sees. `mappings`: its own, if somebody has read them since it stands."""
    reason = _why_not(tracee.pid, own_filters, os.getpid(), mappings)
    if reason is not None:
        return reason
    registers = tracee.get_registers()
    if registers.cs != _USER_CS:
        return "it runs 32-bit code"
    if registers.fs or registers.gs or registers.ds or registers.es:
        return "it uses segments of its own (modify_ldt)"
    try:
        tracee.in_stub(registers)
    except TraceError as error:
        return error.message
    return _by_vdso(tracee)


def _by_vdso(tracee: Tracee) -> str | None:
    """Elsewhere the functions of the vdso are others, so it must not be inside one."""
    if vdso.stands_inside(tracee, own_vdso()):
        return "it is reading the clock in this very moment"
    if vdso.handler_interrupted(tracee, own_vdso()):
        return "it runs a signal handler that interrupted it while it read the clock"
    return None


def _why_not(
    pid: int, own_filters: int | None, tracer: int, mappings: list[Mapping] | None = None
) -> str | None:
    status = _status(pid)
    reason = _by_status(status, own_filters, tracer)
    if reason is not None:
        return reason
    try:
        mappings = mappings or read_mappings(pid)
    except PermissionError:
        return "its memory may not be examined (another user's, or not dumpable)"
    if not mappings:
        return _ENDED
    try:
        return (
            _by_program(pid)
            or _by_sharing(pid, int(status["PPid"]))
            or _by_descriptors(pid)
            or _by_timers(pid)
            or _by_mappings(pid, mappings)
        )
    except (FileNotFoundError, ProcessLookupError):
        return _ENDED


def _status(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NoSuchProcessError(f"process {pid} does not exist") from error
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _by_status(status: dict[str, str], own_filters: int | None, tracer: int) -> str | None:
    if status["State"][0] in "ZX":
        return "it has ended (zombie)"
    if status.get("Kthread", "1") == "1" and "VmSize" not in status:
        return "it is a kernel thread"
    threads = int(status["Threads"])
    if threads > 1:
        return f"it has {threads} threads"
    traced_by = int(status["TracerPid"])
    if traced_by not in (0, tracer):
        return f"process {traced_by} traces it"
    if own_filters is None:
        own_filters = filters_of(os.getpid())
    filters = int(status.get("Seccomp_filters", status.get("Seccomp") == "2"))
    if status.get("Seccomp") == "1" or filters > own_filters:
        return "it has a seccomp filter of its own"
    return None


def _by_program(pid: int) -> str | None:
    with contextlib.suppress(PermissionError), open(f"/proc/{pid}/exe", "rb") as file:
        head = file.read(5)
        if head[:4] == b"\x7fELF" and head[4] != _ELFCLASS64:
            return "it is a 32-bit program"
    return None


def _by_sharing(pid: int, parent: int) -> str | None:
    """vfork and CLONE_VM: two processes in one address space."""
    relatives = [parent]
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
        relatives += [int(word) for word in file.read().split()]
    for other in relatives:
        # 0: the same; -1: not comparable (gone, or not ours)
        if other > 0 and _libc.syscall(_SYS_KCMP, pid, other, _KCMP_VM, 0, 0) == 0:
            return f"it shares its memory with process {other} (vfork)"
    return None


def _by_descriptors(pid: int) -> str | None:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        return "its descriptors may not be examined"
    for number in numbers:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except FileNotFoundError:
            continue
        reason = _DESCRIPTOR_REASONS.get(target)
        if reason is not None:
            return reason
        own = _OWN_FILES.fullmatch(target)
        if own is not None and int(own[1]) == pid:
            return f"it has its own /proc/self/{own[2]} open"
    return None


def _by_timers(pid: int) -> str | None:
    """Timers on CPU clocks (clock ids 2, 3 and negative ones) live where CPU time is spent."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/timers", "rb") as file:
        for line in file:
            if line.startswith(b"ClockID:"):
                clock = int(line.split()[1])
                if clock < 0 or clock in (2, 3):
                    return "it has a timer on a CPU clock (timer_create)"
    return None


def _by_mappings(pid: int, mappings: list[Mapping]) -> str | None:
    for mapping in mappings:
        vma = mapping.vma
        if vma.kind in _KERNEL_KINDS:
            continue
        if vma.path == "[uprobes]":
            return "a debugger has set probes in it (uprobes)"
        if vma.path.startswith("/[aio]"):
            return "it has an AIO context (io_setup)"
        if mapping.pkey:
            return "it uses memory protection keys (pkey_mprotect)"
        for flag in mapping.flags & _FLAG_REASONS.keys():
            return _FLAG_REASONS[flag]
        if mapping.shared:
            reason = _by_shared(pid, mapping)
            if reason is not None:
                return reason
    return None


def _by_shared(pid: int, mapping: Mapping) -> str | None:
    """A read-only shared mapping of a file that nobody can write travels as a private copy."""
    name = mapping.vma.path.removesuffix(" (deleted)") or "memory"
    if "mw" in mapping.flags:
        if _SHARED_OBJECT.match(name):
            return "it shares memory with other processes"
        return f"it maps {name} shared and writable"
    fd = _open_mapped(pid, mapping)
    if fd < 0:
        return f"it maps {name} shared and nobody can tell who writes it"
    try:
        return f"it maps {name} shared, which is open for writing" if _has_writers(fd) else None
    finally:
        os.close(fd)


def _open_mapped(pid: int, mapping: Mapping) -> int:
    """The mapped file, opened read-only; -1 if it cannot be."""
    vma = mapping.vma
    for path in (f"/proc/{pid}/root{vma.path}", f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        found = os.fstat(fd)
        # the device of maps is the file system's own; some show another one in stat
        if stat.S_ISREG(found.st_mode) and found.st_ino == mapping.inode:
            return fd
        os.close(fd)
    return -1


def _has_writers(fd: int) -> bool:
    """Does anybody have the file open for writing?

    The kernel grants a read lease only if not, to the file's owner and root. Other users' files
    are looked for among the descriptors of all processes that we may see; their owner is
    trusted not to write what he installed while it is in use."""
    try:
        # a writer who comes in this moment makes the kernel send us this, which we ignore
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return _open_somewhere(os.fstat(fd))


def _open_somewhere(wanted: os.stat_result) -> bool:
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{entry}/fd"):
                found = os.stat(f"/proc/{entry}/fd/{number}")
                if (found.st_ino, found.st_dev) == (wanted.st_ino, wanted.st_dev):
                    with open(f"/proc/{entry}/fdinfo/{number}", "rb") as file:
                        flags = file.read().partition(b"flags:")[2].split(None, 1)[0]
                    if int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
                        return True
    return False
