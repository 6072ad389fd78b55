"""Each thing that cannot move is refused by its name, by a process that really does it; and
what can move is not refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mosix.balancer import eligibility as between_nodes
from mosix.errors import NoSuchProcessError
from mosix.image.eligibility import _by_mappings, why_not, why_not_stopped
from mosix.image.maps import parse_smaps
from mosix.native.stops import TraceError
from mosix.native.tracee import Tracee
from mosix.node.features import highest_cpu, probe
from mosix.wire.messages import NodeFeatures
from targets import build, finish, running, state_of, watch

HEAD = """
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static void *sleeper(void *p) { for (;;) pause(); return p; }
static long skip(long r) { if (r < 0) { write(1, "skip\\n", 5); _exit(0); } return r; }
int main(int argc, char **argv) {
    (void)argc; (void)argv; (void)sleeper; (void)skip;
"""
TAIL = """
    write(1, "ready\\n", 6);
    for (;;) pause();
}
"""

REFUSED = {
    "threads": ("pthread_t t; pthread_create(&t, 0, sleeper, 0);", "2 threads"),
    "seccomp": (
        """struct sock_filter f[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
        struct sock_fprog p = { 1, f };
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        skip(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p));""",
        "seccomp filter of its own",
    ),
    "shared anonymous": (
        "mmap(0, 4096, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);",
        "shares memory with other processes",
    ),
    "memfd": (
        "int f = memfd_create(\"x\", 0); ftruncate(f, 4096); mmap(0, 4096, 1, MAP_SHARED, f, 0);",
        "shares memory with other processes",
    ),
    "system V": (
        "int i = shmget(IPC_PRIVATE, 4096, 0600); shmat(i, 0, 0); shmctl(i, IPC_RMID, 0);",
        "shares memory with other processes",
    ),
    "shared file": (
        "int f = open(argv[1], O_RDWR); mmap(0, 4096, 3, MAP_SHARED, f, 0); close(f);",
        "shared and writable",
    ),
    "shared file, may write": (
        "int f = open(argv[1], O_RDWR); mmap(0, 4096, 1, MAP_SHARED, f, 0); close(f);",
        "shared and writable",
    ),
    "shared file with a writer": (
        "int f = open(argv[1], O_RDONLY); mmap(0, 4096, 1, MAP_SHARED, f, 0); open(argv[1], 1);",
        "open for writing",
    ),
    "device": (
        "int f = skip(open(\"/dev/mem\", O_RDONLY));"
        "skip(mmap(0, 4096, 1, MAP_SHARED, f, 0) == MAP_FAILED ? -1 : 0);",
        "maps a device|shared",
    ),
    "huge pages": (
        "skip(mmap(0, 2 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE,"
        " -1, 0) == MAP_FAILED ? -1 : 0);",
        "huge pages",
    ),
    "protection keys": (
        "int k = skip(pkey_alloc(0, 0)); void *p = mmap(0, 4096, 3, 34, -1, 0);"
        "skip(pkey_mprotect(p, 4096, 3, k));",
        "protection keys",
    ),
    "mseal": (
        "void *p = mmap(0, 4096, 3, 34, -1, 0); skip(syscall(462, p, 4096L, 0L));",
        "sealed",
    ),
    "userfaultfd": ("skip(syscall(SYS_userfaultfd, 1));", "page faults"),
    "io_uring": ("char p[512] = { 0 }; skip(syscall(425, 4, p));", "io_uring"),
    "AIO": ("unsigned long c = 0; skip(syscall(SYS_io_setup, 8, &c));", "AIO"),
    "CPU timer": (
        "timer_t t; struct sigevent e = { .sigev_notify = SIGEV_NONE };"
        "skip(timer_create(CLOCK_PROCESS_CPUTIME_ID, &e, &t));",
        "CPU clock",
    ),
    "own maps": ("open(\"/proc/self/maps\", O_RDONLY);", "/proc/self/maps"),
    "own mem": ("open(\"/proc/self/mem\", O_RDWR);", "/proc/self/mem"),
    "guard pages": (
        "char *p = mmap(0, 65536, 3, 34, -1, 0); skip(madvise(p, 4096, 102));",
        None,  # shown by newer kernels only; capture refuses it in any case
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name_and_unharmed(what: str, tmp_path: Path) -> None:
    code, reason = REFUSED[what]
    file = tmp_path / "data"
    file.write_bytes(bytes(8192))
    process = subprocess.Popen(
        [build(HEAD + code + TAIL, "-pthread", "-w"), str(file)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process:
        if process.stdout.readline() != b"ready\n":
            pytest.skip(f"{what}: not possible on this kernel")
        try:
            answer = why_not(process.pid)
            if reason is not None:
                assert answer is not None
                assert any(part in answer for part in reason.split("|")), answer
            assert process.poll() is None
        finally:
            finish(process)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("ht", "huge pages"),
        ("io", "device"),
        ("pf", "device"),
        ("mm", "device"),
        ("sl", "sealed"),
        ("ss", "shadow stack"),
        ("um", "page faults"),
        ("uw", "page faults"),
        ("ui", "page faults"),
        ("gu", "guard pages"),
        ("ac sd", None),
    ],
)
def test_each_flag_that_forbids_a_move_is_known(flags: str, reason: str | None) -> None:
    """As kernels show them that have what this machine has not."""
    text = f"7f00-7f10 rw-p 00000000 00:00 0\nSize: 64 kB\nVmFlags: rd wr mr mw me {flags}\n"
    answer = _by_mappings(os.getpid(), parse_smaps(text.encode()))
    assert answer is None if reason is None else reason in str(answer)


MOVABLE = {
    "plain": "",
    "read-only shared file": (
        "int f = open(argv[1], O_RDONLY); mmap(0, 4096, 1, MAP_SHARED, f, 0); close(f);"
    ),
    "private writable file": "int f = open(argv[1], 2); mmap(0, 4096, 3, MAP_PRIVATE, f, 0);",
    "real-time timer": (
        "timer_t t; struct sigevent e = { .sigev_notify = SIGEV_NONE };"
        "timer_create(CLOCK_MONOTONIC, &e, &t);"
    ),
    "own command line": 'open("/proc/self/cmdline", O_RDONLY);',
    "another's status": 'open("/proc/1/status", O_RDONLY);',
}


@pytest.mark.parametrize("what", MOVABLE)
def test_what_can_move_is_not_refused(what: str, tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(8192))
    with running([build(HEAD + MOVABLE[what] + TAIL, "-w"), str(file)]) as process:
        assert why_not(process.pid) is None
        tracee = Tracee.seize(process.pid)
        tracee.stop()
        assert why_not_stopped(tracee) is None
        assert "traces it" in (_seen_by_another(process.pid) or "")
        tracee.detach()


def _seen_by_another(pid: int) -> str | None:
    code = (
        "import sys; from mosix.image.eligibility import why_not; print(why_not(int(sys.argv[1])))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(pid)], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def test_python_with_a_locale_can_move() -> None:
    """Programs in a UTF-8 locale map gconv-modules.cache shared."""
    code = "import locale; locale.setlocale(locale.LC_ALL, ''); print('ready', flush=True); input()"
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    with running([sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment) as process:
        assert why_not(process.pid) is None


def test_the_dead_the_kernels_and_the_missing() -> None:
    process = subprocess.Popen(["/bin/true"])
    while state_of(process.pid) != "Z":
        os.sched_yield()
    assert "zombie" in (why_not(process.pid) or "")
    process.wait()
    with pytest.raises(NoSuchProcessError):
        why_not(process.pid)
    if Path("/proc/2/status").exists() and "kthreadd" in Path("/proc/2/comm").read_text():
        assert "kernel thread" in (why_not(2) or "")


def test_a_process_is_not_taken_for_dead_while_it_executes_another_program() -> None:
    """execve replaces the memory that is being looked at."""
    program = build(
        """
        #include <unistd.h>
        int main(int argc, char **argv) {
            if (argc == 1) { write(1, "ready\\n", 6); }
            return execl("/proc/self/exe", argv[0], "again", (char *)0);
        }
        """
    )
    with running([program]) as process:
        answers = {why_not(process.pid) for _ in range(1000)}
        assert process.poll() is None
    assert answers == {None}


def test_a_vfork_child_shares_its_parents_memory() -> None:
    program = build(
        """
        #include <unistd.h>
        #include <stdlib.h>
        int main(void) {
            if (vfork() == 0) {
                write(1, "ready\\n", 6);
                for (;;) pause();
            }
            return 0;
        }
        """
    )
    with running([program]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        child = int(children[0])
        watch(process, lambda: state_of(child) == "S")
        try:
            assert "vfork" in (why_not(process.pid) or "")
            assert "vfork" in (why_not(child) or "")
        finally:
            os.kill(child, 9)


def _features(**changes: object) -> NodeFeatures:
    values: dict[str, object] = {
        "kernel": "6.1",
        "vdso": "ab",
        "page_size": 4096,
        "cpu_features": ("avx", "sse2"),
        "xsave_size": 832,
        "cpus": 4,
    }
    return NodeFeatures(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"cpu_features": ("avx", "avx2", "sse2")}, None),
        ({"cpus": 2}, None),
        ({"cpu_features": ("sse2",)}, "lacks avx"),
        ({"xsave_size": 2696}, "2696 bytes"),
        ({"page_size": 16384}, "16384"),
        ({"vdso": "cd", "kernel": "6.8"}, None),
        ({"cpus": 8}, "8 CPUs"),
    ],
)
def test_nodes_are_compared(changes: dict[str, object], reason: str | None) -> None:
    answer = between_nodes.why_not(_features(), _features(**changes))
    assert answer is None if reason is None else answer is not None and reason in answer


def test_this_node_can_run_what_it_started() -> None:
    here = probe()
    assert between_nodes.why_not(here, here) is None
    assert "sse2" in here.cpu_features and len(here.vdso) == 64 and here.xsave_size >= 512


@pytest.mark.parametrize(("online", "highest"), [("0", 0), ("0-1\n", 1), ("0-2,5,7-11", 11)])
def test_cpus_are_compared_by_their_numbers(online: str, highest: int, tmp_path: Path) -> None:
    """One that is switched off leaves a hole; the numbers behind it stay."""
    (tmp_path / "online").write_text(online)
    assert highest_cpu(tmp_path / "online") == highest
    assert probe().cpus > max(os.sched_getaffinity(0))


def test_32_bit_programs_stay_at_home() -> None:
    program = build(
        """
        void _start(void) {
            static const char text[] = "ready\\n";
            __asm__ volatile("int $0x80" : : "a"(4), "b"(1), "c"(text), "d"(6) : "memory");
            for (;;)
                __asm__ volatile("int $0x80" : : "a"(29));
        }
        """,
        "-m32", "-nostdlib", "-static", "-ffreestanding", "-w", "-fno-pic", "-no-pie",
    )  # fmt: skip
    try:
        with running([program]) as process:
            assert "32-bit" in (why_not(process.pid) or "")
            tracee = Tracee.seize(process.pid)
            tracee.stop()
            assert "32-bit" in (why_not_stopped(tracee) or "")
            with pytest.raises(TraceError, match="32-bit"):
                tracee.inject(39)
            tracee.detach()
            assert process.poll() is None
    except OSError as error:
        pytest.skip(f"no 32-bit programs here: {error}")
