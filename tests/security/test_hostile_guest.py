"""A program of which every instruction is its author's, sent to another node: it gets what it would
get at home, and of that node nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import guests, mosd, spawners, stubs, workers
from jobs import Job
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle
from mosix.lab.programs import built
from mosix.syscalls.shapes import Class
from mosix.syscalls.table import TABLE

HOSTILE = Path(__file__).resolve().parent / "programs" / "hostile.c"
USER = "games"
_BAD = " ".join(["ffffffffffffffff"] * 6)
#: What ends or stops it wherever it is, says what differs from one process to the next, or what
#: the machine's own users would feel.
_NOT_TRIED = {
    "exit", "exit_group", "fork", "vfork", "pause", "rt_sigreturn", "restart_syscall", "sync",
    "getpid", "gettid", "getppid", "getpgrp", "setsid", "times", "time", "brk", "alarm", "umask",
    "mincore", "inotify_init", "epoll_create1", "getcpu", "sched_yield", "membarrier", "vhangup",
    "munlockall", "clock_gettime", "msgget", "set_tid_address",
}  # fmt: skip
#: Ways into a kernel that a guest has no business with, with arguments that do something at home.
_WAYS = {
    "io_uring_setup": "64 1a9 1 buffer",
    "userfaultfd": "64 143 1",
    "bpf": "64 141 0 buffer 48",
    "add_key": "64 f8 name name buffer 10 fffffffd",
    "keyctl": "64 fa ffff fffffffd 1",
    "ptrace of PID 1": "64 65 4206 1 0 0",
    "process_vm_readv of PID 1": "64 136 1 buffer 1 buffer 1 0",
    "unshare of a user namespace": "64 110 10000000",
    "setns": "64 134 0 0",
    "mount": "64 a5 name name name 0 0",
    "chroot": "64 a1 name",
    "perf_event_open": "64 12a buffer 0 ffffffffffffffff ffffffffffffffff 0",
    "memfd_create with execveat": "64 142 ffffffffffffff9c name 0 0 0",
    "pidfd_getfd": "64 1b6 0 0 0",
    "kill of PID 1": "64 3e 1 9",
    "reboot": "64 a9 fee1dead 28121969 0 0",
    "a module": "64 af buffer 10 name",
    "modify_ldt": "64 9a 0 buffer 100",
    "iopl": "64 ac 3",
    "personality": "64 87 40000",
    "nobody's number": "64 1ff",
    "nobody's large number": "64 3fffffff",
    "a negative number": "64 ffffffffffffffff",
    "x32 getpid's neighbour, open": "x32 2 name 0 0",
    "x32 readv": "x32 203 ffffffff buffer 1",
    "ia32 open of nothing": "32 5 0 0 0",
    "ia32 socketcall": "32 66 63 0",
    "ia32 mmap": "32 5a 0",
    "ia32 ptrace": "32 1a 4206 1 0 0",
    "ia32 nobody's": "32 fff",
}


@contextmanager
def plainly(node: NodeHandle) -> Iterator[Callable[[str], str]]:
    """The same program without mosix: what an order answers there."""
    process = node.popen(
        [str(built(HOSTILE, "-static"))], user=USER, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(order: str) -> str:
        stdin.write(f"{order}\n")
        stdin.flush()
        return str(stdout.readline().strip())

    try:
        assert stdout.readline() == "ready\n"
        yield ask
    finally:
        process.communicate()


@pytest.fixture
def guest(lab: Cluster, start: Callable[..., Job]) -> Job:
    job = start([str(built(HOSTILE, "-static"))], user=USER)
    assert job.line() == "ready"
    job.move("2")
    return job


def ask(job: Job, order: str) -> str:
    job.write(f"{order}\n")
    return job.line()


def daemons(node: NodeHandle) -> list[int]:
    return sorted([*mosd(node), *spawners(node)])


def test_every_call_that_is_made_away_answers_as_at_home(lab: Cluster, guest: Job) -> None:
    """By its number, with senseless arguments: memory that nobody has, descriptors too high."""
    tried = [
        row
        for row in TABLE
        if row.cls is not Class.AT_HOME and not row.rules and row.name not in _NOT_TRIED
    ]
    assert len(tried) > 150
    before = daemons(lab[2])
    wrong = {}
    with plainly(lab[1]) as native:
        for row in tried:
            order = f"64 {row.nr:x} {_BAD}"
            expected, found = native(order), ask(guest, order)
            if found != expected:
                wrong[row.name] = (expected, found)
    assert wrong == {}
    assert guest.where() in (guest.ip("2"), "home")
    assert daemons(lab[2]) == before


@pytest.mark.parametrize("part", range(3))
def test_every_other_way_into_a_kernel_leads_to_homes(part: int, lab: Cluster, guest: Job) -> None:
    """Unknown numbers, x32 and ia32 entries and what nobody may do: never executed there."""
    before = daemons(lab[2])
    there = {f"{row.nr:x}" for row in TABLE if row.cls is not Class.AT_HOME or row.rules}
    with plainly(lab[1]) as native:
        for what, order in list(_WAYS.items())[part::3]:
            guest.move("2")
            moves = guest.row()["nmigs"]
            expected = native(order)
            assert (what, ask(guest, order)) == (what, expected)
            how, nr = order.split()[:2]
            if nr != "ffffffffffffffff" and (how != "64" or nr not in there):
                drive.wait_for(f"{what} at home", lambda: came_home(guest, moves))  # noqa: B023
            if how == "64" and int(expected) > 2:  # what was opened would keep it at home
                for close in (native, lambda order: ask(guest, order)):
                    close(f"64 3 {int(expected):x}")
    assert daemons(lab[2]) == before


def came_home(job: Job, moves_before: int) -> bool:
    row = job.row()
    return bool(row["where"] == "home" or row["nmigs"] > moves_before)


def test_nothing_that_we_have_put_into_it_can_be_turned_against_the_node(
    lab: Cluster, guest: Job
) -> None:
    """The vdso, the blob before it and the clock page are its own to destroy, and only its own:
    nothing there becomes writable memory that it shares with the remote."""
    vdso = int(ask(guest, "vdso"))
    before = daemons(lab[2])
    for page in (vdso - 0x3000, vdso - 0x2000, vdso - 0x1000, vdso):
        assert ask(guest, f"write {page:x}") == "11"
        ask(guest, f"64 a {page:x} 1000 3")  # mprotect: read, write
    (outer,) = guests(lab[2])
    shared = [
        line
        for line in Path(f"/proc/{outer}/maps").read_text().splitlines()
        if line.split()[1].endswith("s")
    ]
    assert [line for line in shared if "w" in line.split()[1]] == []
    for page in (vdso - 0x2000, vdso - 0x1000, vdso):
        # munmap, then something else in its place
        assert ask(guest, f"64 b {page:x} 1000") == "0"
        mapped = ask(guest, f"64 9 {page:x} 1000 3 32 ffffffffffffffff 0")
        assert int(mapped) == page
        assert ask(guest, f"write {page:x}") == "0"
    assert ask(guest, "64 27") == str(guest.pid)  # getpid, by the instruction
    assert daemons(lab[2]) == before
    # What it has broken for itself is its own affair: it moves, or is told that it cannot.
    done = lab[1].run(["migrate", "--wait", str(guest.pid), "home"])
    assert done.returncode in (0, 9, 10), done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_it_has_no_descriptor_and_no_capability_and_can_get_none(lab: Cluster, guest: Job) -> None:
    (outer,) = guests(lab[2])
    (stub,) = stubs(lab[2])
    (remote,) = workers(lab[2])
    assert os.listdir(f"/proc/{outer}/fd") == []
    assert os.listdir(f"/proc/{stub}/fd") == []
    for pid, allowed in ((outer, 0), (remote, 0), (stub, 1 << 40)):  # CAP_CHECKPOINT_RESTORE
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        assert int(status["CapEff"], 16) | int(status["CapPrm"], 16) == allowed, pid
        assert int(status["CapBnd"], 16) == 0 or pid == remote, pid
        assert status["Uid"].split()[0] not in ("0", "5")
    # dup2, socket, openat: descriptors are of its ghost at home
    for order in ("64 21 0 9", "64 29 1 1 0", "64 101 ffffffffffffff9c name 0 0"):
        assert int(ask(guest, order)) > 2
    assert os.listdir(f"/proc/{outer}/fd") == []


def test_it_reaches_no_socket_of_the_node(lab: Cluster, guest: Job) -> None:
    """Not by an abstract name either."""
    code = (
        "import socket\n"
        "with socket.socket(socket.AF_UNIX) as sock:\n"
        "    sock.bind(b'\\0' + b'n' * 20); sock.listen(); print('ready', flush=True)\n"
        "    sock.accept()\n"
    )
    listener = lab[2].popen(["/usr/bin/python3", "-c", code], stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        fd = int(ask(guest, "64 29 1 1 0"))
        # An address in its buffer: family, then the name; written by itself through pipes would be
        # long-winded, so /dev/zero gives an autobind name that nobody has.
        assert int(ask(guest, f"64 2a {fd:x} buffer 17")) < 0
        assert listener.poll() is None
    finally:
        drive.kill_command(listener)
        listener.communicate()


def test_its_stub_and_its_remote_are_out_of_its_sight(lab: Cluster, guest: Job) -> None:
    """What it calls 1 is home's init, and no number is a process of the node."""
    for _ in range(2):
        assert ask(guest, "64 3e 1 0") == "-1"  # EPERM, of home's
        assert guest.where() == guest.ip("2")
    (remote,) = workers(lab[2])
    inside = int(
        next(
            line
            for line in Path(f"/proc/{remote}/status").read_text().splitlines()
            if line.startswith("NSpid")
        ).split()[-1]
    )
    with plainly(lab[1]) as native:
        assert ask(guest, f"64 3e {inside:x} 9") == native(f"64 3e {inside:x} 0")
    assert workers(lab[2]) == [remote]
