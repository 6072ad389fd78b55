"""A system call that a stop interrupted: what is left of it, and how the rest is made.

A program must never see that it was stopped for a move. `resolve` turns the registers of a
stopped process into the context that the program would see, and says what remains of the call it
was in (`PendingCall`); `restore_context` and `keep_in_place` let it go on, there or here.

Cases, all provoked by PTRACE_INTERRUPT alone (signal(7), restart_syscall(2)):
* the kernel's restart codes: -512, -513, -514: the call is simply made again (rip back on its
  instruction); -516: made again with the time that is left, for the kernel's own record of it
  (restart_block) does not travel;
* -EINTR from calls that the kernel never restarts (epoll_wait, semop, a socket with a timeout):
  made again, unless a signal with a handler waits, which would have interrupted it anyway;
* fewer bytes than asked from a call that would have gone on (a blocking write to a pipe or
  socket, MSG_WAITALL): the rest is to be made and the sum returned.

The time left: exactly, where the kernel wrote it into the program's `rem`; else from when the
process fell asleep (/proc/PID/sched), never less than what is really left; else all of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import time

from mosix.image.model import PendingCall, Thread
from mosix.native.stops import (
    ERESTART_RESTARTBLOCK,
    ERESTARTNOHAND,
    ERESTARTNOINTR,
    ERESTARTSYS,
    Registers,
    Reissue,
    SleepEvidence,
)
from mosix.native.tracee import Tracee

SYS_WRITE = 1
SYS_POLL = 7
SYS_PWRITE64 = 18
SYS_WRITEV = 20
SYS_SELECT = 23
SYS_NANOSLEEP = 35
SYS_SENDFILE = 40
SYS_SENDTO = 44
SYS_RECVFROM = 45
SYS_SENDMSG = 46
SYS_RECVMSG = 47
SYS_RT_SIGTIMEDWAIT = 128
SYS_FUTEX = 202
SYS_RESTART_SYSCALL = 219
SYS_SEMTIMEDOP = 220
SYS_CLOCK_NANOSLEEP = 230
SYS_EPOLL_WAIT = 232
SYS_PSELECT6 = 270
SYS_PPOLL = 271
SYS_EPOLL_PWAIT = 281
SYS_PWRITEV = 296
SYS_RECVMMSG = 299
SYS_PWRITEV2 = 328
SYS_EPOLL_PWAIT2 = 441

#: -EINTR without a signal handler: nothing has happened yet, they can be made again.
#: read, readv, recv*, accept*, connect, write, writev, send* (socket timeouts), semaphores…
_REMADE_ON_EINTR = frozenset(
    (
        *(0, 19, 42, 43, 45, 47, 288, SYS_RECVMMSG),
        *(SYS_WRITE, SYS_WRITEV, SYS_SENDTO, SYS_SENDMSG, 307),
        *(65, SYS_SEMTIMEDOP, SYS_RT_SIGTIMEDWAIT),
        *(SYS_EPOLL_WAIT, SYS_EPOLL_PWAIT, SYS_EPOLL_PWAIT2),
        # when the time left could not be written: it is in read-only memory
        *(SYS_SELECT, SYS_PSELECT6, SYS_PPOLL),
    )
)
_RESTART_CODES = frozenset((ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK))
#: call → index of a relative struct timespec argument
_TIMESPEC_ARG = {
    SYS_NANOSLEEP: 0,
    SYS_CLOCK_NANOSLEEP: 2,
    SYS_FUTEX: 3,
    SYS_RT_SIGTIMEDWAIT: 2,
    SYS_SEMTIMEDOP: 3,
    SYS_EPOLL_PWAIT2: 3,
}
#: call → index of a timeout that the kernel replaces by the time left
_UPDATED_ARG = {SYS_SELECT: 4, SYS_PSELECT6: 4, SYS_PPOLL: 2, SYS_RECVMMSG: 4}
#: call → index of the position in the file
_POSITION_ARG = {SYS_PWRITE64: 3, SYS_PWRITEV: 3, SYS_PWRITEV2: 3}
#: call → index of a timeout in ms (negative: none)
_MS_ARG = {SYS_POLL: 2, SYS_EPOLL_WAIT: 3, SYS_EPOLL_PWAIT: 3}
#: call → index of `rem`, where the kernel writes the time left
_REM_ARG = {SYS_NANOSLEEP: 1, SYS_CLOCK_NANOSLEEP: 3}
_TIMESPEC = struct.Struct("<qq")
_IOVEC = struct.Struct("<QQ")
_MSGHDRS = (SYS_SENDMSG, SYS_RECVMSG)
_MSGHDR_IOV = struct.Struct("<QQ")  # at offset 16: msg_iov, msg_iovlen
_SECOND = 1_000_000_000
#: what fits a deadline in the image: some hundred years
_LONGEST = 1 << 62
_SA_RESTART = 0x10000000
_MSG_PEEK, _MSG_DONTWAIT, _MSG_WAITALL = 0x2, 0x40, 0x100
_MAX_IOV = 1024
_CURRENT = (1 << 64) - 1  # of pwritev2: the position of the descriptor
_TIMER_ABSTIME = 1
_FUTEX_WAIT = 0
_FUTEX_COMMAND = 0x7F


def resolve(
    tracee: Tracee, offset_ns: int, handler_flags: int | None
) -> tuple[Registers, PendingCall | None]:
    """The program's context, and what is left of the call it was in.

    The process stands in a PTRACE_EVENT_STOP and is not changed. `offset_ns`: the job's
    CLOCK_MONOTONIC minus ours. `handler_flags`: sa_flags of the handler that will run first when
    the process is resumed, None if no caught signal waits."""
    registers = tracee.get_registers()
    stub = tracee.in_stub(registers)
    while isinstance(stub, Reissue) and stub.offset > 2:
        tracee.cont()  # the call is over, a few instructions are left
        tracee.stop()
        registers = tracee.get_registers()
        stub = tracee.in_stub(registers)
    if isinstance(stub, Reissue):
        return _resolve_reissued(tracee, registers, stub, offset_ns, handler_flags)
    if not registers.in_syscall:
        return registers, None
    nr = registers.orig_rax
    if nr == SYS_RESTART_SYSCALL:
        nr = _restarted_call(tracee, registers)
    outcome, result = _outcome(tracee, registers, nr, handler_flags)
    context = _copy(registers)
    context.orig_rax = -1
    if outcome == "finished":
        context.rax = result
        return context, None
    context.rax = nr
    context.rip -= 2
    done = result if outcome == "partial" else 0
    deadline = 0 if done else _deadline(tracee, registers, nr, offset_ns)
    return context, pending_call(nr, registers.args, done, deadline, registers.result)


def _resolve_reissued(
    tracee: Tracee, registers: Registers, stub: Reissue, offset_ns: int, handler_flags: int | None
) -> tuple[Registers, PendingCall | None]:
    """The same for a process whose call was already made again once."""
    context = _copy(registers)
    context.rdi, context.rsi, context.rdx, context.r10, context.r8, context.r9 = stub.args
    context.orig_rax = -1
    context.rcx, context.r11 = stub.rip, registers.eflags
    started = stub.offset == 2 and registers.in_syscall
    if stub.offset == 2:
        nr = registers.orig_rax if registers.in_syscall else stub.nr
        if nr == SYS_RESTART_SYSCALL:
            nr = stub.nr
        outcome, result = _outcome(tracee, registers, nr, handler_flags)
    else:
        nr, outcome, result = registers.rax, "restart", 0
        if nr == SYS_RESTART_SYSCALL:
            nr, started = stub.nr, True
    if outcome == "finished":
        context.rip = stub.rip
        context.rax = result + stub.add if result >= 0 else (stub.add or result)
        return context, None
    context.rip = stub.rip - 2
    context.rax = stub.nr
    done = stub.add + (result if outcome == "partial" else 0)
    deadline = 0
    if not done:
        deadline = _deadline(tracee, registers, nr, offset_ns, began=started)
    return context, pending_call(
        stub.nr, stub.args, done, deadline, registers.result if stub.offset == 2 else 0
    )


def pending_call(
    nr: int, args: tuple[int, ...], done: int, deadline: int, result: int
) -> PendingCall | None:
    """What is to be remembered of a call that was interrupted with `result` in rax."""
    code = ERESTARTSYS if result == ERESTARTSYS else 0
    if result in (ERESTARTNOHAND, ERESTART_RESTARTBLOCK, -errno.EINTR):
        # restart blocks do not travel; all of these end with EINTR when a handler runs
        code = ERESTARTNOHAND
    if not (done or deadline or code):
        return None
    a, b, c, d, e, f = args
    return PendingCall(nr, (a, b, c, d, e, f), done, deadline, code)


def enter(tracee: Tracee, call: PendingCall, now_ns: int) -> None:
    """Puts a stopped process that stands before `call`, interrupted, back into it: a handler that
    runs on resuming finds it there, as natively; without one the call is made again."""
    if not call.code:
        return
    registers = tracee.get_registers()
    if not registers.in_syscall:
        registers.rip, registers.orig_rax = registers.rip + 2, registers.rax
    if call.done:  # natively a handler ends the call here
        registers.rax, registers.orig_rax = call.done, -1
    else:
        registers.rax = call.code
    tracee.set_registers(registers)
    if call.deadline_ns and call.nr in _REM_ARG and call.args[_REM_ARG[call.nr]]:
        left = max(0, call.deadline_ns - now_ns)
        with contextlib.suppress(OSError):
            tracee.write(call.args[_REM_ARG[call.nr]], _TIMESPEC.pack(*divmod(left, _SECOND)))


def _copy(registers: Registers) -> Registers:
    return Registers.unpack(registers.pack())


def _outcome(
    tracee: Tracee, registers: Registers, nr: int, handler_flags: int | None
) -> tuple[str, int]:
    """How the call that the process came from ended: ("restart", 0), ("partial", bytes so far)
    or ("finished", result)."""
    result = registers.result
    if result in _RESTART_CODES:
        interrupted = handler_flags is not None and (
            result in (ERESTARTNOHAND, ERESTART_RESTARTBLOCK)
            or (result == ERESTARTSYS and not handler_flags & _SA_RESTART)
        )
        return ("finished", -errno.EINTR) if interrupted else ("restart", 0)
    if handler_flags is not None:
        return "finished", result
    if result == -errno.EINTR and nr in _REMADE_ON_EINTR:
        return "restart", 0
    if 0 < result < _wanted(tracee, nr, registers.args):
        return "partial", result
    return "finished", result


# ---- bytes ----


def _wanted(tracee: Tracee, nr: int, args: tuple[int, ...]) -> int:
    """How many bytes the call would have moved before returning; 0 if it may return early."""
    if nr in (SYS_WRITE, SYS_SENDTO):
        size = args[2]
    elif nr == SYS_SENDFILE:
        size = args[3]
    elif nr == SYS_RECVFROM:
        size = args[2] if args[3] & _MSG_WAITALL and not args[3] & _MSG_PEEK else 0
    elif nr in (SYS_WRITEV, SYS_SENDMSG) or (nr == SYS_RECVMSG and args[2] & _MSG_WAITALL):
        size = sum(length for _, length in _vectors(tracee, nr, args))
    else:
        return 0
    flags = args[3] if nr in (SYS_SENDTO, SYS_RECVFROM) else args[2] if nr in _MSGHDRS else 0
    if flags & (_MSG_DONTWAIT | (_MSG_PEEK if nr == SYS_RECVMSG else 0)) or not _blocks(
        tracee.pid, args[0]
    ):
        return 0
    return size


def _vectors(tracee: Tracee, nr: int, args: tuple[int, ...]) -> list[tuple[int, int]]:
    address, count = args[1], args[2]
    if nr in _MSGHDRS:
        address, count = _MSGHDR_IOV.unpack(tracee.read(args[1] + 16, 16))
    if not 0 < count <= _MAX_IOV:
        return []
    return list(_IOVEC.iter_unpack(tracee.read(address, count * _IOVEC.size)))


def _blocks(pid: int, fd: int) -> bool:
    """Is it a pipe, socket or terminal that makes the process wait?"""
    try:
        mode = os.stat(f"/proc/{pid}/fd/{fd}").st_mode
        with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as file:
            info = file.read()
    except OSError:
        return False
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
        return False
    flags = int(info.partition(b"flags:")[2].split(None, 1)[0], 8)
    return not flags & os.O_NONBLOCK


# ---- time ----


def _timeout(tracee: Tracee, nr: int, args: tuple[int, ...]) -> int | None:
    """The call's relative timeout in ns; None: it has none (or an absolute one)."""
    if nr in _MS_ARG:
        ms = args[_MS_ARG[nr]] & 0xFFFFFFFF
        return ms * 1_000_000 if ms < 1 << 31 else None
    if nr in _UPDATED_ARG:
        address = args[_UPDATED_ARG[nr]]
        return _read_timeout(tracee, nr, address) if address else None
    if nr not in _TIMESPEC_ARG or (nr == SYS_CLOCK_NANOSLEEP and args[1] & _TIMER_ABSTIME):
        return None
    if nr == SYS_FUTEX and args[1] & _FUTEX_COMMAND != _FUTEX_WAIT:
        return None
    address = args[_TIMESPEC_ARG[nr]]
    return _read_time(tracee, address) if address else None


def _read_time(tracee: Tracee, address: int) -> int:
    seconds, ns = _TIMESPEC.unpack(tracee.read(address, _TIMESPEC.size))
    return int(seconds * _SECOND + ns)


def _read_timeout(tracee: Tracee, nr: int, address: int) -> int | None:
    """A timespec or timeval (select) in ns; None if the kernel will refuse it."""
    seconds, fraction = _TIMESPEC.unpack(tracee.read(address, _TIMESPEC.size))
    unit = 1000 if nr == SYS_SELECT else 1
    if seconds < 0 or fraction < 0 or (nr != SYS_SELECT and fraction >= _SECOND):
        return None
    return min(int(seconds * _SECOND + fraction * unit), _LONGEST)


def _deadline(
    tracee: Tracee, registers: Registers, nr: int, offset_ns: int, began: bool = True
) -> int:
    """When the call's timeout ends, on the job's CLOCK_MONOTONIC; 0: no timeout.

    `began`: the call was being made (else all of its time is left)."""
    try:
        timeout = _timeout(tracee, nr, registers.args)
        if timeout is None:
            return 0
        rem = registers.args[_REM_ARG[nr]] if nr in _REM_ARG else 0
        exact = bool(began and rem and registers.result == ERESTART_RESTARTBLOCK)
        left = min(timeout, _read_time(tracee, rem)) if exact else timeout
        # With this code the kernel has written what is left where the timeout was read.
        exact |= nr in _UPDATED_ARG and registers.result == ERESTARTNOHAND
    except OSError:
        return 0  # it will fail with EFAULT when it is made again
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    if began and not exact:
        since = _asleep_since(tracee.sleep)
        if since is not None:
            left = max(0, timeout - (now - since))
    return now + left + offset_ns


def _restarted_call(tracee: Tracee, registers: Registers) -> int:
    """Which call restart_syscall(2) stands for: its number was lost when the kernel restarted it.

    Nearly always the number is loaded just before the instruction; otherwise the arguments
    tell the four possible calls apart."""
    candidates = (SYS_NANOSLEEP, SYS_CLOCK_NANOSLEEP, SYS_POLL, SYS_FUTEX)
    with contextlib.suppress(OSError):
        code = tracee.read(registers.rip - 34, 32)
        found = {nr: code.rfind(b"\xb8" + struct.pack("<I", nr)) for nr in candidates}
        best = max(found, key=lambda nr: found[nr])
        if found[best] >= 0:
            return best
    first, second, third, fourth = registers.args[:4]
    if first < 16:
        return SYS_CLOCK_NANOSLEEP
    if fourth > 0xFFFF and second & ~0x180 in (0, 9):
        return SYS_FUTEX
    if second == 0 or second > 1 << 20:
        return SYS_NANOSLEEP
    return SYS_POLL if third < 1 << 32 else SYS_NANOSLEEP


def _field(sched: bytes, name: bytes) -> float | None:
    _, found, rest = sched.partition(b"\n" + name)
    if not found:
        return None
    return float(rest.partition(b":")[2].split(None, 1)[0])


def _asleep_since(evidence: SleepEvidence | None) -> int | None:
    """When (our CLOCK_MONOTONIC) the process fell asleep, at the latest; None: unknown.

    se.exec_start is when it last left its CPU, on that CPU's clock: the clocks of two CPUs
    differ, so ours is read on the same one."""
    if evidence is None:
        return None
    begin = _field(evidence.sched, b"se.exec_start")
    before = _field(evidence.sched, b"nr_voluntary_switches")
    after = _field(evidence.sched_after, b"nr_voluntary_switches")
    fields = evidence.stat.rpartition(b")")[2].split()
    if begin is None or before is None or after is None or len(fields) < 37 or fields[0] != b"S":
        return None
    if after != before + 1:
        return None  # it woke by itself in between: another sleep
    cpu = int(fields[36])
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {cpu})
        time.sleep(1e-6)  # leaving the CPU brings our own exec_start up to date
        with open("/proc/thread-self/sched", "rb") as file:
            ours = _field(file.read(), b"se.exec_start")
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    except OSError:
        return None
    finally:
        os.sched_setaffinity(0, mine)
    slept = int((ours - begin) * 1e6) if ours is not None else -1
    return now - slept if slept >= 0 else None


# ---- going on ----


def restore_context(tracee: Tracee, thread: Thread, now_ns: int) -> None:
    """Give a process that has just got its memory the context of `thread`; on resuming it makes
    the rest of the call that the move interrupted. `now_ns`: the job's CLOCK_MONOTONIC."""
    registers = Registers.unpack(thread.registers)
    if thread.call is not None:
        reissue(tracee, registers, thread.call, now_ns)
    else:
        tracee.set_registers(registers)


def keep_in_place(tracee: Tracee, thread: Thread, now_ns: int) -> None:
    """Prepare a process that was described and not moved for going on: without this it would
    see the EINTR or the short count that the interrupt caused."""
    registers = tracee.get_registers()
    if registers.in_syscall and registers.result in _RESTART_CODES:
        return  # the kernel itself knows best
    restore_context(tracee, thread, now_ns)


def reissue(tracee: Tracee, registers: Registers, call: PendingCall, now_ns: int) -> None:
    """Set the registers so that on resuming the rest of `call` is made (see
    `Tracee.finish_call`). `registers`: the context of the image, rewound; `now_ns`: the job's
    CLOCK_MONOTONIC."""
    _rewind(tracee, registers, call, now_ns)
    if not call.done:
        enter(tracee, call, now_ns)


def _rewind(tracee: Tracee, registers: Registers, call: PendingCall, now_ns: int) -> None:
    args = list(call.args)
    nr = call.nr
    if call.done:
        _reissue_bytes(tracee, registers, call)
        return
    if not call.deadline_ns:
        tracee.set_registers(registers)
        return
    left = max(0, call.deadline_ns - now_ns)
    if nr in _MS_ARG:
        args[_MS_ARG[nr]] = min(-(-left // 1_000_000), 0x7FFFFFFF)
        tracee.finish_call(registers, nr, args)
        return
    data_arg = _UPDATED_ARG[nr] if nr in _UPDATED_ARG else _TIMESPEC_ARG[nr]
    data = _TIMESPEC.pack(*divmod(left, _SECOND))
    if nr in _UPDATED_ARG:
        if nr == SYS_SELECT:
            data = _TIMESPEC.pack(left // _SECOND, left % _SECOND // 1000)
        with contextlib.suppress(OSError):  # read-only: the kernel leaves it alone as well
            tracee.write(args[data_arg], data)
            tracee.set_registers(registers)
            return
    tracee.finish_call(registers, nr, args, data=data, data_arg=data_arg)


def _reissue_bytes(tracee: Tracee, registers: Registers, call: PendingCall) -> None:
    args = list(call.args)
    if call.nr in _POSITION_ARG and args[_POSITION_ARG[call.nr]] != _CURRENT:
        args[_POSITION_ARG[call.nr]] += call.done
    if call.nr in (SYS_WRITE, SYS_PWRITE64, SYS_SENDTO, SYS_RECVFROM):
        args[1] += call.done
        args[2] -= call.done
        tracee.finish_call(registers, call.nr, args, call.done)
        return
    if call.nr == SYS_SENDFILE:
        args[3] -= call.done
        tracee.finish_call(registers, call.nr, args, call.done)
        return
    rest, skip = [], call.done
    for address, length in _vectors(tracee, call.nr, call.args):
        if skip < length:
            rest.append((address + skip, length - skip))
        skip = max(0, skip - length)
    packed = b"".join(_IOVEC.pack(*vector) for vector in rest)
    if call.nr not in _MSGHDRS and len(rest) == 1:
        args[2] = 1
        tracee.finish_call(registers, call.nr, args, call.done, data=packed, data_arg=1)
        return
    # the rest's vectors need a place that stays as long as the call may last: a page of the
    # process, which is not given back
    page = tracee.inject(9, 0, 64 + len(packed), 3, 0x22, -1, 0)
    if page < 0:
        raise OSError(-page, os.strerror(-page))
    if call.nr in _MSGHDRS:
        header = bytearray(tracee.read(args[1], 56))
        _MSGHDR_IOV.pack_into(header, 16, page + 64, len(rest))
        # Descriptors and credentials, and what a receiver is told, went with the first part.
        header[32:48] = bytes(16)
        tracee.write(page, bytes(header) + bytes(8) + packed)
        args[1] = page
    else:
        tracee.write(page + 64, packed)
        args[1], args[2] = page + 64, len(rest)
    tracee.finish_call(registers, call.nr, args, call.done)
