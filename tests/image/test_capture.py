"""A process that is described goes on as if nothing had happened, and the description is true."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mosix.errors import CannotMoveError
from mosix.image import stream
from mosix.image.capture import clocks, describe, page_runs, send_pages
from mosix.image.maps import find_hole, read_mappings
from mosix.image.model import Image, PageRun
from mosix.image.pending import keep_in_place, restore_context
from mosix.native.stops import Registers
from mosix.native.tracee import Tracee
from targets import build, finish, running, self_check, state_of, watch


def _describe(pid: int) -> tuple[Tracee, Image]:
    tracee = Tracee.seize(pid)
    tracee.stop()
    return tracee, describe(tracee, 1)


KINDS = [
    *("compute", "nanosleep", "nanosleep_rem", "poll", "epoll", "read", "sigsuspend"),
    *("write", "writev", "send", "sendmsg", "waitall"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [keep_in_place, restore_context])
def test_described_and_resumed_it_never_notices(kind: str, way: object) -> None:
    """`restore_context` sets what a process that really moved would be given."""
    with self_check(kind) as target:
        for _ in range(25):
            tracee, image = _describe(target.pid)
            way(tracee, image.threads[0], clocks(target.pid)[0])  # type: ignore[operator]
            stream.check(image)
            tracee.detach()
            time.sleep(random.uniform(0, 0.008))
        target.wait_laps()
        assert target.errors == 0


def test_a_static_program_never_notices() -> None:
    with self_check("compute", "-static") as target:
        for _ in range(10):
            tracee, image = _describe(target.pid)
            restore_context(tracee, image.threads[0], clocks(target.pid)[0])
            tracee.detach()
        target.wait_laps()
        assert target.errors == 0


@pytest.mark.parametrize("kind", ["nanosleep", "nanosleep_rem", "poll"])
def test_a_call_that_the_kernel_restarted_is_recognised(kind: str) -> None:
    """After a mere stop the kernel goes on by restart_syscall(2): the number is lost."""
    with self_check(kind) as target:
        seen = 0
        for _ in range(40):
            tracee = Tracee.seize(target.pid)
            tracee.stop()
            tracee.cont()
            tracee.stop()
            seen += tracee.get_registers().orig_rax == 219
            image = describe(tracee, 1)
            restore_context(tracee, image.threads[0], clocks(target.pid)[0])
            tracee.detach()
            time.sleep(random.uniform(0, 0.004))
        target.wait_laps()
        assert target.errors == 0
        assert seen


def test_a_handler_above_a_continued_call_keeps_the_process_where_it_is() -> None:
    program = build(
        """
        #include <signal.h>
        #include <unistd.h>
        static void on(int s) {
            char c;
            if (s == SIGUSR1) { write(1, "handler\\n", 8); read(0, &c, 1); }
        }
        int main(void) {
            struct sigaction sa = { .sa_handler = on, .sa_flags = SA_RESTART };
            char c;
            int p[2];
            pipe(p);
            sigaction(SIGUSR1, &sa, 0);
            write(1, "ready\\n", 6);
            read(p[0], &c, 1);
        }
        """
    )
    with running([program], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        watch(process, lambda: state_of(process.pid) == "S")
        tracee = Tracee.seize(process.pid)
        tracee.stop()
        registers = tracee.get_registers()
        registers.rip, registers.rax = registers.rip - 2, 0
        tracee.finish_call(registers, 0, registers.args)
        tracee.cont()
        watch(process, lambda: state_of(process.pid) == "S")
        tracee.stop()
        describe(tracee, 1)
        os.kill(process.pid, signal.SIGUSR1)
        tracee.cont()
        stop = tracee.wait()
        assert stop is not None and stop.kind == "signal"
        tracee.cont(stop.signal)
        assert process.stdout.readline() == b"handler\n"
        watch(process, lambda: state_of(process.pid) == "S")
        tracee.stop()
        with pytest.raises(CannotMoveError, match="handler"):
            describe(tracee, 1)
        tracee.cont()
        process.stdin.write(b"x")
        process.stdin.flush()
        watch(process, lambda: state_of(process.pid) == "S")
        tracee.stop()
        assert tracee.get_registers().rsi == registers.rsi
        describe(tracee, 1)
        tracee.detach()


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-c", "import hashlib\nh = b''\nprint('ready', flush=True)\n"
         "for i in range(400000): h = hashlib.sha256(h + str(i).encode()).digest()\n"
         "print(h.hex())"],
        ["/bin/sh", "-c", "echo ready; xz -9 -c /usr/bin/perl | md5sum"],
    ],
)  # fmt: skip
def test_real_programs_give_the_same_output(command: list[str]) -> None:
    plain = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    with running(command) as process:
        assert process.stdout is not None
        for _ in range(20):
            pid = _busiest(process.pid)
            if state_of(pid) == "Z":
                break
            tracee, image = _describe(pid)
            keep_in_place(tracee, image.threads[0], clocks(pid)[0])
            tracee.detach()
            time.sleep(random.uniform(0, 0.01))
        assert b"ready\n" + process.stdout.read() == plain
        assert process.wait() == 0


def _busiest(pid: int) -> int:
    """The process itself, or its first child if it has one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


RICH = r"""
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <unistd.h>
static void on(int s, siginfo_t *i, void *c) { (void)s; (void)i; (void)c; }
static char stack[65536];
int main(int argc, char **argv) {
    struct sigaction sa = { .sa_sigaction = on, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
    stack_t ss = { .ss_sp = stack, .ss_size = sizeof(stack) };
    struct itimerval it = { { 7, 0 }, { 5000, 250000 } };
    sigset_t block;
    char *hidden, *zero, *data;
    int fd;
    (void)argc;
    sigaltstack(&ss, 0);
    sigaddset(&sa.sa_mask, SIGUSR2);
    sigaction(SIGUSR1, &sa, 0);
    signal(SIGHUP, SIG_IGN);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    sigaddset(&block, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &block, 0);
    setitimer(ITIMER_VIRTUAL, &it, 0);
    prctl(PR_SET_NAME, "rich");
    hidden = mmap(0, 16384, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(hidden + 4096, "under PROT_NONE");
    mprotect(hidden, 16384, PROT_NONE);
    zero = mmap(0, 1 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 1 << 20; i += 4096) data = zero + i, (void)*(volatile char *)data;
    madvise(zero, 1 << 20, MADV_DONTFORK);
    fd = open(argv[1], O_RDWR);
    data = mmap(0, 12288, 3, MAP_PRIVATE, fd, 0);
    data[1] = 'X';
    sigqueue(getpid(), SIGUSR1, (union sigval){ .sival_int = 42 });
    for (int i = 0; i < 3; i++) sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = i });
    sbrk(5000);
    char line[200]; /* stdio would allocate and move the break */
    write(1, line, snprintf(line, 200, "%p %p %p %p\n", (void *)hidden, (void *)zero,
                            (void *)data, sbrk(0)));
    for (;;) pause();
}
"""


def test_everything_is_described(tmp_path: Path) -> None:
    file = tmp_path / "five thousand bytes"
    file.write_bytes(b"f" * 5000)
    program = build(RICH)
    with running([program, str(file)], ready=b"") as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        hidden, zero, data, brk = (int(word, 16) for word in words)
        watch(process, lambda: state_of(process.pid) == "S")
        tracee, image = _describe(process.pid)
        thread = image.threads[0]
        assert image.header.epoch == 1 and thread.comm == b"rich"
        assert image.process.mm.brk == brk
        assert image.process.exe == program
        # dispositions
        handler, flags, _, mask = struct.unpack("<4Q", image.process.sigactions[signal.SIGUSR1])
        assert handler > 1 and flags & 0x18000004 == 0x18000004
        assert mask == 1 << signal.SIGUSR2 - 1
        assert image.process.sigactions[signal.SIGHUP][:8] == struct.pack("<Q", 1)
        assert image.process.ignored & 1 << signal.SIGHUP - 1
        blocked = 1 << signal.SIGUSR1 - 1 | 1 << signal.SIGRTMIN - 1
        assert thread.signal_mask == blocked
        queue = image.process.pending
        assert [struct.unpack_from("<i", info)[0] for info in queue] == [
            signal.SIGUSR1, *[signal.SIGRTMIN] * 3,
        ]  # fmt: skip
        assert [struct.unpack_from("<i", info, 24)[0] for info in queue] == [42, 0, 1, 2]
        assert thread.pending == []
        assert struct.unpack("<QiiQ", thread.altstack)[3] == 65536
        interval, value = image.process.itimers[0]
        assert interval == 7_000_000_000 and 4_990e9 < value <= 5001e9
        assert image.process.itimers[1] == (0, 0)
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert image.process.rlimits[resource.RLIMIT_NOFILE] == (soft, hard)
        assert image.process.auxv == Path(f"/proc/{process.pid}/auxv").read_bytes()
        # pages
        covered = _covered(image.runs)
        assert hidden + 4096 in covered and hidden not in covered
        assert not any(zero + i in covered for i in range(0, 1 << 20, 4096)), "zero pages travel"
        assert data in covered and data + 4096 in covered and data + 8192 not in covered
        kinds = {vma.start: vma for vma in image.vmas}
        assert kinds[data].kind == "file" and kinds[data].end == data + 8192
        assert kinds[data + 8192].kind == "eof"
        assert next(v for v in image.vmas if v.start == zero).vm_flags == ("dc",)
        # registers: before the pause() that is to be made again
        registers = Registers.unpack(thread.registers)
        assert registers.rax == 34 and tracee.read(registers.rip, 2) == b"\x0f\x05"
        # the bytes
        content = _sent(image)
        assert content[hidden + 4096][:15] == b"under PROT_NONE"
        assert content[data][:3] == b"fXf" and content[data + 4096] == b"f" * 904 + bytes(3192)
        tracee.detach()


def _covered(runs: list[PageRun]) -> set[int]:
    return {page for run in runs for page in range(run.start, run.start + run.size, 4096)}


def _sent(image: Image) -> dict[int, bytes]:
    """Address of each page → its bytes, as they arrive behind the image on a socket."""
    left, right = socket.socketpair()

    def send() -> None:
        with left:
            stream.write_image(left.fileno(), image)
            assert send_pages(image.process.pid, left.fileno(), image.runs) == image.page_bytes
            stream.write_end(left.fileno(), image)

    thread = threading.Thread(target=send)
    thread.start()
    with right:
        received = stream.read_image(right.fileno())
        assert received == image
        pages = {
            page: stream.read_exactly(right.fileno(), 4096)
            for run in received.runs
            for page in range(run.start, run.start + run.size, 4096)
        }
        stream.read_end(right.fileno(), received)
    thread.join()
    return pages


def test_a_big_process_arrives_byte_for_byte() -> None:
    program = build(
        r"""
        #include <stdio.h>
        #include <stdlib.h>
        #include <unistd.h>
        int main(void) {
            size_t n = 24 << 20;
            unsigned *p = aligned_alloc(4096, n);
            for (size_t i = 0; i < n / 4; i++) p[i] = i * 2654435761u;
            printf("%p\n", (void *)p);
            fflush(stdout);
            for (;;) pause();
        }
        """
    )
    with running([program], ready=b"") as process:
        assert process.stdout is not None
        address = int(process.stdout.readline(), 16)
        tracee, image = _describe(process.pid)
        content = _sent(image)
        for offset in range(0, 24 << 20, 997 * 4096):
            words = struct.unpack("<1024I", content[address + offset])
            first = offset // 4
            assert words == tuple((first + i) * 2654435761 & 0xFFFFFFFF for i in range(1024))
        tracee.detach()


def test_without_pagemap_scan_the_same_data_travels() -> None:
    with self_check("spin") as target:
        tracee, image = _describe(target.pid)
        plain = page_runs(target.pid, image.vmas, plain=True)
        # without the ioctl zero pages cannot be told from others
        assert _covered(image.runs) <= _covered(plain)
        tracee.detach()


def test_a_receiver_that_goes_away_is_an_error_not_a_death() -> None:
    with self_check("spin") as target:
        tracee, image = _describe(target.pid)
        left, right = socket.socketpair()
        right.close()
        with left, pytest.raises(BrokenPipeError):
            for _ in range(3):
                send_pages(target.pid, left.fileno(), image.runs)
        tracee.detach()
        target.wait_laps()


def test_a_process_that_dies_is_an_error() -> None:
    with self_check("spin") as target:
        _, image = _describe(target.pid)
        os.kill(target.pid, signal.SIGKILL)
        watch_end = os.pidfd_open(target.pid)
        os.close(watch_end)
        target.process.wait()
        with open("/dev/null", "wb") as sink, pytest.raises(OSError, match=r"process|directory"):
            send_pages(target.pid, sink.fileno(), image.runs)


def test_a_stopped_process_is_described_as_stopped() -> None:
    with self_check("spin") as target:
        os.kill(target.pid, signal.SIGSTOP)
        watch(target.process, lambda: state_of(target.pid) == "T")
        tracee, image = _describe(target.pid)
        assert image.process.stopped
        keep_in_place(tracee, image.threads[0], clocks(target.pid)[0])
        tracee.detach()
        watch(target.process, lambda: state_of(target.pid) == "T")
        os.kill(target.pid, signal.SIGCONT)
        target.wait_laps()
        assert target.errors == 0


@pytest.mark.parametrize(("flags", "result"), [("0", -4), ("SA_RESTART", None)])
def test_a_signal_that_waits_interrupts_as_natively(flags: str, result: int | None) -> None:
    """read() blocked, a caught signal arrives with the stop: EINTR unless SA_RESTART."""
    program = build(
        f"""
        #include <signal.h>
        #include <unistd.h>
        static void on(int s) {{ (void)s; }}
        int main(void) {{
            struct sigaction sa = {{ .sa_handler = on, .sa_flags = {flags} }};
            char c;
            int p[2];
            pipe(p);
            sigaction(SIGUSR1, &sa, 0);
            write(1, "ready\\n", 6);
            read(p[0], &c, 1);
            for (;;) pause();
        }}
        """
    )
    with running([program]) as process:
        watch(process, lambda: state_of(process.pid) == "S")
        tracee = Tracee.seize(process.pid)
        tracee.stop()
        os.kill(process.pid, signal.SIGUSR1)
        registers = Registers.unpack(describe(tracee, 1).threads[0].registers)
        assert registers.result == (result if result is not None else 0)
        at = tracee.read(registers.rip - (2 if result is not None else 0), 2)
        assert at == b"\x0f\x05"
        tracee.detach()


def test_time_already_slept_is_not_slept_again() -> None:
    with running(["/bin/sleep", "1000"], ready=b"") as process:
        watch(process, lambda: state_of(process.pid) == "S")
        time.sleep(0.05)
        tracee, image = _describe(process.pid)
        call = image.threads[0].call
        assert call is not None and call.nr == 230
        left = call.deadline_ns - image.header.monotonic_ns
        assert 990_000_000_000 < left < 1000_000_000_000 - 45_000_000
        tracee.detach()


def test_guard_pages_are_refused() -> None:
    program = build(
        """
        #include <stdlib.h>
        #include <sys/mman.h>
        #include <unistd.h>
        int main(void) {
            char *p = mmap(0, 65536, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            p[0] = 1;
            write(1, madvise(p + 8192, 4096, 102) ? "no\\n" : "ready\\n", 6);
            for (;;) pause();
        }
        """
    )
    process = subprocess.Popen([program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        if process.stdout.readline() != b"ready\n":
            finish(process)
            pytest.skip("this kernel has no MADV_GUARD_INSTALL")
        tracee = Tracee.seize(process.pid)
        tracee.stop()
        with pytest.raises(CannotMoveError, match="guard"):
            describe(tracee, 1)
        finish(process)


def test_holes_are_found_between_mappings() -> None:
    vmas = [mapping.vma for mapping in read_mappings(os.getpid())]
    hole = find_hole(vmas, 1 << 20)
    assert all(vma.end <= hole or vma.start >= hole + (1 << 20) for vma in vmas)


IN_SECTION = r"""
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/rseq.h>
#include <unistd.h>
static volatile long aborts;
static volatile sig_atomic_t asked;
static void ask(int s) { asked = s; }
__attribute__((noipa)) static void spin(struct rseq *rs)
{
    __asm__ volatile(
        ".pushsection __rseq_cs, \"aw\"\n\t.balign 32\n"
        "3:\t.long 0, 0\n\t.quad 1f, 2f - 1f, 4f\n\t.popsection\n\t"
        "leaq 3b(%%rip), %%rax\n\tmovq %%rax, %0\n"
        "1:\tpause\n\tjmp 1b\n"
        "2:\tud2\n\t"
        ".long 0x53053053\n" /* the kernel wants its signature before the handler */
        "4:\tincq %1\n"
        : "=m"(rs->rseq_cs), "+m"(aborts) : : "rax", "memory", "cc");
}
int main(void)
{
    struct rseq *rs = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
    signal(SIGUSR1, ask);
    if (!__rseq_size) return 77;
    write(1, "ready\n", 6);
    while (!asked) spin(rs);
    printf("left %d\n", aborts > 0);
    return 0;
}
"""


def test_inside_a_restartable_sequence_it_goes_on_at_its_abort_handler() -> None:
    """The kernel would do so after a preemption; elsewhere it knows nothing of the sequence."""
    with running([build(IN_SECTION, "-w")]) as process:
        for _ in range(5000):  # one that waited for a processor has been put out of it already
            tracee = Tracee.seize(process.pid)
            tracee.stop()
            registers = tracee.get_registers()
            if tracee.read(registers.rip, 2) in (b"\xf3\x90", b"\xeb\xfc"):  # pause, jmp
                break
            tracee.detach()
        else:
            pytest.skip("the machine is too busy to catch it inside")
        image = describe(tracee, 1)
        described = Registers.unpack(image.threads[0].registers)
        assert described.rip != registers.rip
        signature = tracee.read(described.rip - 4, 4)
        assert signature == (0x53053053).to_bytes(4, "little")
        keep_in_place(tracee, image.threads[0], clocks(process.pid)[0])
        tracee.detach()
        os.kill(process.pid, signal.SIGUSR1)
        assert process.stdout is not None
        assert process.stdout.readline() == b"left 1\n"
        assert process.wait() == 0


def test_no_descriptor_leaks() -> None:
    with self_check("spin") as target:
        before = len(os.listdir("/proc/self/fd"))
        tracee, image = _describe(target.pid)
        describe(tracee, 2)
        _sent(image)
        tracee.detach()
        assert len(os.listdir("/proc/self/fd")) == before
