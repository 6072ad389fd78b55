"""Calls made in another process leave no trace in it, whatever happens to whoever makes them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
from mosix.native.stops import PTRACE_EVENT_EXEC, PTRACE_O_TRACEEXEC, Registers, TraceError
from mosix.native.tracee import Tracee
from targets import build, running, self_check, state_of, watch

SYS_WRITE, SYS_GETPID, SYS_GETPPID, SYS_UNAME, SYS_NANOSLEEP = 1, 39, 110, 63, 35


def test_results_are_the_kernels_own() -> None:
    with self_check("spin") as target:
        tracee = Tracee.seize(target.pid)
        tracee.stop()
        assert tracee.inject(SYS_GETPID) == target.pid
        assert tracee.inject_many([(SYS_GETPID, ()), (SYS_WRITE, (-1, 0, 0))]) == [target.pid, -9]
        before = tracee.registers
        with tracee.scratch(8192) as address:
            tracee.write(address, b"some words")
            assert tracee.read(address, 10) == b"some words"
            assert tracee.inject(SYS_UNAME, address) == 0
            assert tracee.read(address, 5) == b"Linux"
        assert tracee.registers == before
        with pytest.raises(OSError, match="ends at"):
            tracee.read(address, 1)
        tracee.detach()
        target.wait_laps()
        assert target.errors == 0


@pytest.mark.parametrize(
    "kind", ["compute", "nanosleep", "nanosleep_rem", "poll", "read", "sigsuspend"]
)
def test_the_program_never_notices(kind: str) -> None:
    with self_check(kind) as target:
        tracee = Tracee.seize(target.pid)
        for _ in range(60):
            tracee.stop()
            assert tracee.inject_many([(SYS_GETPID, ())] * 3) == [target.pid] * 3
            tracee.cont()
            time.sleep(random.uniform(0, 0.002))
        tracee.stop()
        tracee.detach()
        target.wait_laps()
        assert target.errors == 0


def _inject_forever(pid: int, ready: int) -> None:
    tracee = Tracee.seize(pid)
    tracee.stop()
    os.write(ready, b"x")
    while True:
        assert tracee.inject(SYS_GETPID) == pid
        page = tracee.inject(9, 0, 4096, 3, 0x22, -1, 0)
        assert tracee.inject_many([(11, (page, 4096)), (SYS_GETPPID, ())])[0] == 0
        tracee.cont()
        tracee.stop()


@pytest.mark.parametrize("kind", ["compute", "nanosleep", "read", "sigsuspend"])
def test_a_tracer_killed_at_any_moment_leaves_the_program_right(kind: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with self_check(kind) as target:
        for _ in range(200):
            ready, tell = os.pipe()
            tracer = os.fork()
            if tracer == 0:
                status = 1
                try:
                    os.close(ready)
                    _inject_forever(target.pid, tell)
                finally:
                    os._exit(status)
            os.close(tell)
            assert os.read(ready, 1) == b"x"
            os.close(ready)
            until = time.perf_counter() + dice.random() * 0.0015
            while time.perf_counter() < until:
                pass
            os.kill(tracer, signal.SIGKILL)
            _, status = os.waitpid(tracer, 0)
            assert os.WIFSIGNALED(status), "the tracer failed"
            assert target.process.poll() is None, "the program died"
        target.wait_laps()
        assert target.errors == 0


def test_a_process_in_group_stop_stays_stopped() -> None:
    with self_check("spin") as target:
        os.kill(target.pid, signal.SIGSTOP)
        watch(target.process, lambda: state_of(target.pid) == "T")
        tracee = Tracee.seize(target.pid)
        stop = tracee.stop()
        assert (stop.kind, stop.signal) == ("group", signal.SIGSTOP)
        assert tracee.inject(SYS_GETPID) == target.pid
        assert tracee.current is not None and tracee.current.kind == "group"
        tracee.detach()
        watch(target.process, lambda: state_of(target.pid) == "T")
        laps = target.laps
        os.kill(target.pid, signal.SIGCONT)
        watch(target.process, lambda: target.laps > laps)
        assert target.errors == 0


def test_job_control_is_heard_while_listening() -> None:
    with self_check("spin") as target:
        os.kill(target.pid, signal.SIGSTOP)
        watch(target.process, lambda: state_of(target.pid) == "T")
        tracee = Tracee.seize(target.pid)
        assert tracee.stop().kind == "group"
        tracee.listen()
        assert tracee.wait(block=False) is None
        os.kill(target.pid, signal.SIGCONT)
        stop = tracee.wait()
        assert stop is not None and stop.kind == "event"
        tracee.stop()
        tracee.detach()
        target.wait_laps()


def test_right_at_exec_the_program_starts_unharmed() -> None:
    process = subprocess.Popen(
        ["/bin/sh", "-c", "read x; exec /bin/echo fresh"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    tracee = Tracee.seize(process.pid, PTRACE_O_TRACEEXEC)
    process.stdin.write(b"\n")
    process.stdin.close()
    stop = tracee.wait()
    assert stop is not None and stop.event == PTRACE_EVENT_EXEC
    assert tracee.inject(SYS_GETPID) == process.pid
    tracee.detach()
    assert process.stdout.read() == b"fresh\n"
    process.stdout.close()
    assert process.wait() == 0


def test_a_waiting_signal_must_be_delivered_first() -> None:
    program = build(
        """
        #include <signal.h>
        #include <stdio.h>
        #include <unistd.h>
        static void on(int s) { (void)s; write(1, "caught\\n", 7); }
        int main(void) { signal(SIGUSR1, on); write(1, "ready\\n", 6); for (;;) pause(); }
        """
    )
    with running([program]) as process:
        tracee = Tracee.seize(process.pid)
        os.kill(process.pid, signal.SIGUSR1)
        stop = tracee.wait()
        assert stop is not None and (stop.kind, stop.signal) == ("signal", signal.SIGUSR1)
        with pytest.raises(TraceError, match="busy"):
            tracee.inject(SYS_GETPID)
        assert tracee.stop().quiet
        assert tracee.inject(SYS_GETPID) == process.pid
        tracee.detach()
        assert process.stdout is not None and process.stdout.readline() == b"caught\n"


def test_the_rest_of_a_call_returns_the_sum() -> None:
    """write(1, "abcdefgh", 8) of which 3 bytes are already done elsewhere."""
    program = build(
        """
        #include <stdio.h>
        #include <unistd.h>
        int main(void) {
            char c;
            write(1, "ready\\n", 6);
            read(0, &c, 1);
            long r = write(1, "abcdefg\\n", 8);
            dprintf(1, "%ld\\n", r);
        }
        """
    )
    with running([program], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        tracee = Tracee.seize(process.pid)
        tracee.stop()
        process.stdin.write(b"x")
        process.stdin.flush()
        registers = _next_call(tracee, SYS_WRITE)
        buffer = registers.rsi
        registers.rip -= 2
        registers.rax = SYS_WRITE
        tracee.finish_call(registers, SYS_WRITE, (1, buffer + 3, 5), 3)
        tracee.detach()
        assert process.stdout.read() == b"defg\n8\n"
        assert process.wait() == 0


def _next_call(tracee: Tracee, nr: int) -> Registers:
    """Context before the call `nr`, which was not made: stopped at its entry, cancelled."""
    while True:
        tracee._ptrace(24)  # PTRACE_SYSCALL
        tracee.current = None
        stop = tracee.wait()
        assert stop is not None and not stop.ended
        registers = tracee.get_registers()
        if stop.kind == "syscall" and registers.orig_rax == nr and registers.result == -38:
            cancelled = tracee.get_registers()
            cancelled.orig_rax = -1
            tracee.set_registers(cancelled)
            tracee.stop()
            return registers


@pytest.mark.parametrize("done", [0, 3])
def test_an_interrupted_rest_ends_as_natively(done: int) -> None:
    """A handler without SA_RESTART ends the reissued call: EINTR, or what was done before."""
    program = build(
        """
        #include <errno.h>
        #include <signal.h>
        #include <stdio.h>
        #include <time.h>
        #include <unistd.h>
        static void on(int s) { (void)s; }
        int main(void) {
            struct sigaction sa = { .sa_handler = on };
            char b[8];
            int p[2];
            pipe(p);
            sigaction(SIGUSR1, &sa, 0);
            write(1, "ready\\n", 6);
            long r = read(p[0], b, 8);
            dprintf(1, "%ld %d\\n", r, r < 0 ? errno : 0);
        }
        """
    )
    with running([program]) as process:
        watch(process, lambda: state_of(process.pid) == "S")
        tracee = Tracee.seize(process.pid)
        tracee.stop()
        registers = tracee.get_registers()
        assert registers.result == -512
        registers.rip -= 2
        registers.rax = registers.orig_rax
        tracee.finish_call(registers, 0, (registers.rdi, registers.rsi, 8 - done), done)
        for _ in range(20):  # more injections than there are slots: the stub must survive
            tracee.cont()
            watch(process, lambda: state_of(process.pid) == "S")
            tracee.stop()
            assert tracee.inject(SYS_GETPID) == process.pid
        stub = tracee.in_stub(tracee.get_registers())
        assert stub is not None and not isinstance(stub, str)
        assert (stub.nr, stub.add, stub.args[2]) == (0, done, 8)
        tracee.detach()
        watch(process, lambda: state_of(process.pid) == "S")
        os.kill(process.pid, signal.SIGUSR1)
        assert process.stdout is not None
        assert process.stdout.read() == (b"3 0\n" if done else b"-1 4\n")


def test_a_timespec_beside_the_stub_is_used() -> None:
    with running(["/bin/sleep", "1000"], ready=b"") as process:
        watch(process, lambda: _comm(process.pid) == "sleep" and state_of(process.pid) == "S")
        tracee = Tracee.seize(process.pid)
        tracee.stop()
        registers = tracee.get_registers()
        assert registers.orig_rax in (35, 230)
        registers.rip -= 2
        registers.rax = registers.orig_rax
        timespec = (0).to_bytes(8, "little") + (1000).to_bytes(8, "little")
        tracee.finish_call(registers, SYS_NANOSLEEP, (0, 0), data=timespec, data_arg=0)
        tracee.detach()
        assert process.wait(60) == 0


def _comm(pid: int) -> str:
    with open(f"/proc/{pid}/comm", encoding="ascii") as file:
        return file.read().strip()


def test_no_descriptor_leaks() -> None:
    with self_check("spin") as target:
        before = os.listdir("/proc/self/fd")
        for _ in range(5):
            tracee = Tracee.seize(target.pid)
            tracee.stop()
            tracee.inject(SYS_GETPID)
            tracee.poke(tracee.get_registers().rsp - 4096, bytes(1000))
            tracee.detach()
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_errors_say_why() -> None:
    with pytest.raises(TraceError, match="no such process"):
        Tracee.seize(4194303)
    with self_check("spin") as target:
        first = Tracee.seize(target.pid)
        with pytest.raises(TraceError, match="not permitted") as caught:
            Tracee.seize(target.pid)
        assert "debugger" in caught.value.hint
        first.stop()
        os.kill(target.pid, signal.SIGKILL)
        end = None
        while end is None or not end.ended:
            end = first.wait()
        assert (end.kind, end.signal, end.wait_status) == ("killed", signal.SIGKILL, 9)
        assert not first.alive


def test_the_dead_cannot_be_traced() -> None:
    """SEIZE of a zombie is EPERM, as if somebody else traced it."""
    process = subprocess.Popen(["/bin/true"])
    while state_of(process.pid) != "Z":
        os.sched_yield()
    with pytest.raises(TraceError, match="not permitted"):
        Tracee.seize(process.pid)
    assert process.wait() == 0


def test_only_the_thread_that_seized_it_can_trace_it() -> None:
    """To all others the kernel says that there is no such process."""
    said: list[str] = []

    def look(tracee: Tracee) -> None:
        try:
            tracee.get_registers()
        except TraceError as error:
            said.append(error.message)

    with self_check("spin") as target:
        tracee = Tracee.seize(target.pid)
        tracee.stop()
        thread = threading.Thread(target=look, args=(tracee,))
        thread.start()
        thread.join()
        assert tracee.get_registers().rip
        tracee.detach()
    assert len(said) == 1 and "no such process" in said[0].lower()


_LOOKS_AND_WAITS = """
import sys, time
from mosix.native.tracee import Tracee
tracee = Tracee.seize(int(sys.argv[1]))
print("seized", flush=True)
stop = tracee.wait()
print(stop.kind, stop.signal, flush=True)
time.sleep(60)
"""


def test_a_signal_that_a_tracer_has_looked_at_is_delivered_when_it_dies() -> None:
    """With waitpid it would be lost: stops are looked at with WNOWAIT."""
    program = build(
        """
        #include <signal.h>
        #include <unistd.h>
        static void on(int s) { (void)s; write(1, "got\\n", 4); }
        int main(void) {
            signal(SIGUSR1, on);
            write(1, "ready\\n", 6);
            for (;;) pause();
        }
        """
    )
    with running([program]) as process:
        command = [sys.executable, "-c", _LOOKS_AND_WAITS, str(process.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracer:
            assert tracer.stdout is not None and process.stdout is not None
            assert tracer.stdout.readline() == "seized\n"
            os.kill(process.pid, signal.SIGUSR1)
            assert tracer.stdout.readline() == f"signal {int(signal.SIGUSR1)}\n"
            tracer.kill()
        assert process.stdout.readline() == b"got\n"


LISTENED = """
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    struct sock_filter f[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog p = { 4, f };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &p);
    if (fd != 3 && dup2(fd, 3) < 0) return 1;
    write(1, "ready\\n", 6);
    for (;;) pause();
}
"""
SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND = 0xC0502100, 0xC0182101


def test_a_call_that_its_own_filter_notifies_is_answered_by_another_thread() -> None:
    with running([build(LISTENED, "-w")]) as process:
        pidfd = os.pidfd_open(process.pid)
        libc = ctypes.CDLL(None, use_errno=True)
        listener = libc.syscall(438, pidfd, 3, 0)  # pidfd_getfd
        os.close(pidfd)
        assert listener >= 0
        answered = []

        def answer() -> None:
            for _ in range(2):
                notification = bytearray(80)
                fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, notification)
                (number,) = struct.unpack_from("<Q", notification)
                answered.append(struct.unpack_from("<i", notification, 16)[0])
                reply = struct.pack("<QqiI", number, 0, 0, 1)  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
                fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, reply)

        thread = threading.Thread(target=answer)
        thread.start()
        tracee = Tracee.seize(process.pid)
        tracee.stop()
        assert tracee.inject_many([(SYS_GETPID, ()), (SYS_GETPPID, ()), (SYS_GETPID, ())]) == [
            process.pid, os.getpid(), process.pid,
        ]  # fmt: skip
        thread.join()
        assert answered == [SYS_GETPID] * 2
        os.close(listener)
        tracee.detach()
