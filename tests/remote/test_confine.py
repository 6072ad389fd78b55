"""Promises of the confined empty guest, on the real kernel, as root."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import re
import select
import signal
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import HOME_PID, JOB_UID, POOL, Body, Mosd, Remote, processes_of
from mosix.errors import KernelError, RefusedError
from mosix.node.idmaps import IdPair
from mosix.remote.confine import GuestShell, _raise_report, open_helper, time_offsets
from plain_ptrace import Puppet, seize

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# x86-64 system call numbers
OPEN, CLOSE, IOCTL, SOCKET, CONNECT, EXECVE, KILL, UNAME = 2, 3, 16, 41, 42, 59, 62, 63
GETPID, SHMGET, FCNTL, MKDIR, GETUID, GETGID, SETUID, GETPPID = 39, 29, 72, 83, 102, 104, 105, 110
PTRACE, CAPGET, PIVOT_ROOT, MOUNT, SETHOSTNAME, GETDENTS64 = 101, 125, 155, 165, 170, 217
CLOCK_GETTIME, UNSHARE, PRCTL, CHROOT, PROCESS_VM_READV, CLONE3 = 228, 272, 157, 161, 310, 435
STATUS = r"^(\w+):[ \t]*(.*?)[ \t]*$"
NS_NAMES = ("user", "pid_for_children", "mnt", "net", "ipc", "uts", "time", "cgroup")


@pytest.fixture
def ids() -> Iterator[IdPair]:
    """Ids of one guest; at the end no process has them, and nothing of ours has changed."""
    mounts = Path("/proc/self/mountinfo").read_text()
    fds = sorted(os.listdir("/proc/self/fd"))
    pair = POOL.allocate()
    yield pair
    POOL.release(pair)
    assert processes_of(pair) == {}
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert sorted(os.listdir("/proc/self/fd")) == fds
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def run(body: Body, ids: IdPair, **actions: Any) -> Any:
    helper = open_helper()
    try:
        return Remote(body, helper, ids, actions).finish()
    finally:
        os.close(helper)


def namespaces(pid: int) -> dict[str, int]:
    return {name: os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in NS_NAMES}


def open_fds() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


async def puppet_of(shell: GuestShell) -> Puppet:
    return Puppet(shell.pid, shell.open_proc("mem"))


# ---- what a guest is ----


def test_a_guest_has_its_home_pid_and_uid_and_nothing_else(ids: IdPair) -> None:
    def look(pid: int, stub: int) -> dict[str, Any]:
        return {
            "status": Path(f"/proc/{pid}/status").read_text(),
            "stub": Path(f"/proc/{stub}/status").read_text(),
            "fds": os.listdir(f"/proc/{pid}/fd") + os.listdir(f"/proc/{stub}/fd"),
            "root": os.listdir(f"/proc/{pid}/root/"),
            "mounts": Path(f"/proc/{pid}/mounts").read_text(),
            "oom": Path(f"/proc/{pid}/oom_score_adj").read_text(),
            "ns": namespaces(pid),
            "maps": Path(f"/proc/{pid}/maps").read_text(),
            "cwd": os.readlink(f"/proc/{pid}/cwd"),
        }

    async def body(mosd: Mosd) -> Any:
        shell = await mosd.guest()
        seen = mosd.ask("look", shell.pid, shell.stub_pid)
        puppet = await puppet_of(shell)
        inside = [puppet.call(nr) for nr in (GETPID, GETPPID, GETUID, GETGID)]
        puppet.call(UNAME, bytes(390))
        host = puppet.read(65, 65).rstrip(b"\0")
        puppet.call(CAPGET, struct.pack("Ii", 0x20080522, 0), bytes(24))
        capabilities = puppet.read(24, 16)
        os.close(puppet.mem)
        await shell.destroy()
        return seen, inside, host, capabilities, (shell.pid, shell.stub_pid)

    seen, inside, host, capabilities, (pid, stub) = run(body, ids, look=look)
    assert inside == [HOME_PID, 1, JOB_UID, JOB_UID]
    assert host == b"guest"
    assert capabilities == bytes(24)
    status = dict(re.findall(STATUS, seen["status"], re.M))
    assert status["NSpid"].split() == [str(pid), str(HOME_PID)]
    assert status["Uid"].split() == status["Gid"].split() == [str(ids.outer)] * 4
    assert status["PPid"] == str(stub)
    assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert {status[f"Sig{kind}"] for kind in ("Ign", "Cgt", "Blk")} == {"0" * 16}
    assert status["Groups"] == "" and status["NoNewPrivs"] == "1" and status["Name"] == "job"
    stub_status = dict(re.findall(STATUS, seen["stub"], re.M))
    assert int(stub_status["CapPrm"], 16) == 1 << 40  # CAP_CHECKPOINT_RESTORE
    assert int(stub_status["CapBnd"], 16) == 0
    assert seen["fds"] == [] and seen["root"] == [] and seen["cwd"] == "/"
    (mount,) = seen["mounts"].splitlines()
    assert mount.split()[1:3] == ["/", "tmpfs"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(mount.split()[3].split(","))
    assert seen["oom"] == "1000\n"
    assert not set(seen["ns"].values()) & set(namespaces(os.getpid()).values())
    # Out of the way of what a body may occupy.
    starts = [int(line.split("-")[0], 16) for line in seen["maps"].splitlines()]
    assert all(start < 0x200000 or start >= 0x7FFFF7000000 for start in starts)


def test_a_guest_reaches_nothing_of_the_node(ids: IdPair) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    name = f"\0mosix-test-{os.getpid()}".encode()
    abstract.bind(name)
    abstract.listen()
    libc = ctypes.CDLL(None, use_errno=True)
    key = 0x6D780000 | (os.getpid() & 0xFFFF)
    segment = libc.shmget(key, 4096, 0o1666)  # IPC_CREAT | 0666
    address = struct.pack("!HH4s8x", 0, listener.getsockname()[1], bytes([127, 0, 0, 1]))
    address = struct.pack("H", socket.AF_INET) + address[2:]
    node_pid = os.getpid()

    async def body(mosd: Mosd) -> Any:
        shell = await mosd.guest()
        p = await puppet_of(shell)
        root = p.call(OPEN, b"/\0", os.O_RDONLY | os.O_DIRECTORY)
        size = p.call(GETDENTS64, root, bytes(1024), 1024)
        entries = p.read(size)
        p.call(CLOSE, root)
        unix = struct.pack("H", socket.AF_UNIX) + name
        tid = p.hold(struct.pack("i", 77))
        local = struct.pack("QQ", p.hold(bytes(8)), 8)
        got = {
            "open /etc/passwd": p.call(OPEN, b"/etc/passwd\0", os.O_RDONLY),
            "open /proc": p.call(OPEN, b"/proc/self/status\0", os.O_RDONLY),
            "open /..": p.call(OPEN, b"/../../etc\0", os.O_RDONLY),
            "create": p.call(OPEN, b"/x\0", os.O_CREAT | os.O_WRONLY, 0o600),
            "mkdir": p.call(MKDIR, b"/x\0", 0o700),
            "execve": p.call(EXECVE, b"/bin/true\0", 0, 0),
            "connect tcp": p.call(
                CONNECT, p.call(SOCKET, socket.AF_INET, socket.SOCK_STREAM, 0), address, 16
            ),
            "connect abstract": p.call(
                CONNECT, p.call(SOCKET, socket.AF_UNIX, socket.SOCK_STREAM, 0), unix, len(unix)
            ),
            "shmget": p.call(SHMGET, key, 4096, 0),
            "kill node": p.call(KILL, node_pid, 0),
            "kill stub's outer pid": p.call(KILL, shell.stub_pid, 0),
            "kill all": p.call(KILL, -1, 0),
            "seize stub": p.call(PTRACE, 0x4206, 1, 0, 0),
            "read stub": p.call(
                PROCESS_VM_READV, 1, local, 1, struct.pack("QQ", 0x100000, 8), 1, 0
            ),
            "mount": p.call(MOUNT, b"none\0", b"/\0", b"proc\0", 0, 0),
            "chroot": p.call(CHROOT, b"/\0"),
            "sethostname": p.call(SETHOSTNAME, b"x", 1),
            "setuid": p.call(SETUID, JOB_UID + 1),
            "user namespace": p.call(UNSHARE, 0x10000000),
            "mount namespace": p.call(UNSHARE, 0x20000),
            "chosen pid": p.call(
                CLONE3, struct.pack("11Q", 0, 0, 0, 0, 17, 0, 0, 0, tid, 1, 0), 88
            ),
            "capability": p.call(PRCTL, 47, 2, 40, 0, 0),  # PR_CAP_AMBIENT_RAISE
        }
        p.call(KILL, 1, signal.SIGKILL)
        got["stub lives"] = os.kill(shell.stub_pid, 0) is None and p.call(GETPPID)
        os.close(p.mem)
        await shell.destroy()
        return got, entries

    try:
        got, entries = run(body, ids)
    finally:
        libc.shmctl(segment, 0, None)
        listener.close()
        abstract.close()
    names = re.findall(rb"[\x04](\.{1,2})\0", entries)
    assert sorted(names) == [b".", b".."] and len(entries) == 48
    expected = {
        "open /etc/passwd": errno.ENOENT,
        "open /proc": errno.ENOENT,
        "open /..": errno.ENOENT,
        "create": errno.EROFS,
        "mkdir": errno.EROFS,
        "execve": errno.ENOENT,
        "connect tcp": errno.ENETUNREACH,
        "connect abstract": errno.ECONNREFUSED,
        "shmget": errno.ENOENT,
        "kill node": errno.ESRCH,
        "kill stub's outer pid": errno.ESRCH,
        "kill all": errno.ESRCH,
        "seize stub": errno.EPERM,
        "read stub": errno.EPERM,
        "mount": errno.EPERM,
        "chroot": errno.EPERM,
        "sethostname": errno.EPERM,
        "setuid": errno.EINVAL,
        "user namespace": errno.ENOSPC,
        "mount namespace": errno.EPERM,
        "chosen pid": errno.EPERM,
        "capability": errno.EPERM,
    }
    assert got.pop("stub lives") == 1
    assert {key: -value for key, value in got.items()} == expected


def attempts(pid: int) -> dict[str, int]:
    """errno of what the calling process may do to `pid` (0: allowed)."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = ctypes.c_long()
    iovec = struct.pack("QQ", ctypes.addressof(here), 8)

    def number(action: Any) -> int:
        try:
            action()
        except OSError as error:
            return error.errno or -1
        return 0

    def readv() -> None:
        if libc.process_vm_readv(pid, iovec, 1, iovec, 1, 0) < 0:
            raise OSError(ctypes.get_errno(), "process_vm_readv")

    def pidfd_getfd() -> None:
        fd = os.pidfd_open(pid)
        try:
            if libc.syscall(438, fd, 0, 0) < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
        finally:
            os.close(fd)

    files = ("mem", "maps", "environ", "auxv", "syscall", "stack", "pagemap", "ns/user")
    result = {
        f"open {name}": number(lambda name=name: Path(f"/proc/{pid}/{name}").read_bytes())
        for name in files
    }
    result["fd"] = number(lambda: os.listdir(f"/proc/{pid}/fd"))
    result["cwd"] = number(lambda: os.readlink(f"/proc/{pid}/cwd"))
    result["root"] = number(lambda: os.listdir(f"/proc/{pid}/root/"))
    result["seize"] = number(lambda: seize(pid))
    result["kill"] = number(lambda: os.kill(pid, 0))
    result["sigstop"] = number(lambda: os.kill(pid, signal.SIGSTOP))
    result["process_vm_readv"] = number(readv)
    result["pidfd_getfd"] = number(pidfd_getfd)
    result["setpriority"] = number(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
    result["affinity"] = number(lambda: os.sched_setaffinity(pid, {0}))
    return result


def as_uid(uid: int, pid: int) -> dict[str, int]:
    """`attempts` in a process of the node with that uid, no capability."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
        os.write(writing, repr(attempts(pid)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        text = file.read().decode()
    os.waitpid(child, 0)
    return dict(re.findall(r"'([^']+)': (\d+)", text))  # type: ignore[arg-type]


@pytest.mark.parametrize("uid", [JOB_UID, 65534])
def test_a_namesake_on_the_node_cannot_touch_guest_stub_or_remote(ids: IdPair, uid: int) -> None:
    async def body(mosd: Mosd) -> Any:
        shell = await mosd.guest(uid=uid)
        found = {
            who: mosd.ask("attempt", pid)
            for who, pid in (
                ("guest", shell.pid),
                ("stub", shell.stub_pid),
                ("remote", os.getpid()),
            )
        }
        found["owners"] = mosd.ask("owner", shell.pid)
        await shell.destroy()
        return found

    found = run(
        body,
        ids,
        attempt=lambda pid: as_uid(uid, pid),
        owner=lambda pid: os.stat(f"/proc/{pid}").st_uid,
    )
    assert found.pop("owners") == ids.outer  # so it is not in the user's own process list
    for who, what in found.items():
        allowed = [name for name, number in what.items() if number == "0"]
        assert allowed == [], who
        assert set(what.values()) <= {str(errno.EPERM), str(errno.EACCES)}, who


def test_a_job_of_uid_0_is_as_powerless(ids: IdPair) -> None:
    async def body(mosd: Mosd) -> Any:
        shell = await mosd.guest(uid=0)
        p = await puppet_of(shell)
        got = [
            p.call(GETUID),
            p.call(GETGID),
            p.call(GETPID),
            p.call(MOUNT, b"none\0", b"/\0", b"tmpfs\0", 0, 0),
            p.call(CHROOT, b"/\0"),
            p.call(SETHOSTNAME, b"x", 1),
            p.call(UNSHARE, 0x20000),
            p.call(KILL, os.getpid(), 0),
            p.call(OPEN, b"/etc/shadow\0", os.O_RDONLY),
        ]
        os.close(p.mem)
        await shell.destroy()
        return got

    refused = [-errno.EPERM] * 4
    assert run(body, ids) == [0, 0, HOME_PID, *refused, -errno.ESRCH, -errno.ENOENT]


# ---- clocks ----


async def _clocks(mosd: Mosd, ahead_ns: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(wanted, read in the guest, latest right value) of both clocks."""
    kinds = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)
    before = [time.clock_gettime_ns(kind) for kind in kinds]
    wanted = [value + ahead for value, ahead in zip(before, ahead_ns, strict=True)]
    shell = await mosd.guest(monotonic_ns=wanted[0], boottime_ns=wanted[1])
    puppet = await puppet_of(shell)
    result = []
    for kind, start, want in zip(kinds, before, wanted, strict=True):
        assert puppet.call(CLOCK_GETTIME, kind, bytes(16)) == 0
        seconds, nanoseconds = struct.unpack("qq", puppet.read(16))
        latest = want + time.clock_gettime_ns(kind) - start
        result.append((want, seconds * 1_000_000_000 + nanoseconds, latest))
    os.close(puppet.mem)
    await shell.destroy()
    return result


HOURS = 3_600_000_000_000
AHEAD = [(0, 0), (5 * HOURS + 999_999_999, 7 * HOURS + 1), (-1_500_000_001, -1), (1, 500 * HOURS)]


@pytest.mark.parametrize("ahead_ns", AHEAD)
def test_clocks_are_never_behind_the_wanted_values(ids: IdPair, ahead_ns: tuple[int, int]) -> None:
    for wanted, read, latest in run(lambda mosd: _clocks(mosd, ahead_ns), ids):
        assert wanted <= read <= latest


def test_clocks_are_right_on_a_node_with_its_own_time_namespace(ids: IdPair) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            assert ctypes.CDLL(None).unshare(0x80) == 0  # CLONE_NEWTIME
            Path("/proc/self/timens_offsets").write_text(
                "monotonic 777777 5\nboottime 888888 999999999\n"
            )
            inner = os.fork()
            if not inner:
                for wanted, read, latest in run(lambda mosd: _clocks(mosd, AHEAD[1]), ids):
                    assert wanted <= read <= latest
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_offsets_count_from_the_initial_namespace() -> None:
    own = "monotonic         100         7\nboottime           -5   999999999\n"
    assert time_offsets(1000, 2000, own, (600, 500)) == {
        "monotonic": 100_000_000_000 + 7 + 400,
        "boottime": -5_000_000_000 + 999_999_999 + 1500,
    }


# ---- birth and death ----


def test_nothing_is_left_after_destroy(ids: IdPair) -> None:
    async def body(mosd: Mosd) -> Any:
        before = open_fds()
        shell = await mosd.guest()
        os.close(shell.open_proc("pagemap"))
        await shell.destroy()
        await shell.destroy()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        return before, open_fds(), mosd.ask("left", os.getpid())

    before, after, (left, spaces) = run(
        body, ids, left=lambda pid: (list(processes_of(ids)), namespaces(pid))
    )
    assert after == before
    assert len(left) == 1  # the remote itself
    # A namespace lives by its processes, descriptors and mounts; the last are `ids`' to check.
    assert spaces == namespaces(os.getpid())


@pytest.mark.parametrize("state", ["stopped", "running"])
def test_a_traced_guest_is_reaped_with_the_rest(ids: IdPair, state: str) -> None:
    async def body(mosd: Mosd) -> Any:
        shell = await mosd.guest()
        if state == "stopped":
            puppet = await puppet_of(shell)
            os.close(puppet.mem)
        else:
            seize(shell.pid)
        await shell.destroy()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG | 0x40000000)
        return list(mosd.ask("left"))

    assert len(run(body, ids, left=lambda: list(processes_of(ids)))) == 1


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.usefixtures("subreaper")
def test_everything_dies_with_the_remote(ids: IdPair, traced: bool) -> None:
    async def body(mosd: Mosd) -> Any:
        shell = await mosd.guest()
        if traced:
            seize(shell.pid)
        mosd.ask("ready", shell.pid, shell.stub_pid)

    helper = open_helper()
    remote = Remote(body, helper, ids)
    os.close(helper)
    pids = remote.serve_until("ready")
    pidfds = [os.pidfd_open(pid) for pid in pids]
    remote.kill()
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 5)[0]
        os.close(pidfd)
    reap_all()


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Orphans become our children, so that their end can be waited for."""
    libc = ctypes.CDLL(None)
    libc.prctl(36, 1, 0, 0, 0)
    yield
    libc.prctl(36, 0, 0, 0, 0)


def reap_all() -> None:
    with pytest.raises(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


@pytest.mark.usefixtures("subreaper")
def test_a_remote_that_dies_while_it_makes_a_guest_leaves_nothing(ids: IdPair) -> None:
    async def body(mosd: Mosd) -> Any:
        async def map_ids(carrier: int) -> None:
            mosd.ask("ready", carrier)

        await mosd.guest(map_ids=map_ids)

    helper = open_helper()
    remote = Remote(body, helper, ids)
    os.close(helper)
    (carrier,) = remote.serve_until("ready")
    pidfd = os.pidfd_open(carrier)
    remote.kill()
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)
    reap_all()


def test_a_cancelled_destroy_still_reaps_a_traced_guest(ids: IdPair) -> None:
    async def body(mosd: Mosd) -> Any:
        shell = await mosd.guest()
        seize(shell.pid)
        task = asyncio.create_task(shell.destroy())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG | 0x40000000)
        return task.cancelled()

    assert run(body, ids)


def test_the_stub_ends_when_the_guest_is_gone(ids: IdPair) -> None:
    async def body(mosd: Mosd) -> Any:
        shell = await mosd.guest()
        stub = os.pidfd_open(shell.stub_pid)
        os.kill(shell.pid, signal.SIGKILL)
        ended = select.select([stub], [], [], 5)[0]
        os.close(stub)
        await shell.destroy()
        return bool(ended)

    assert run(body, ids)


def test_two_guests_with_the_same_home_pid_live_side_by_side(ids: IdPair) -> None:
    async def body(mosd: Mosd) -> Any:
        shells = await asyncio.gather(mosd.guest(), mosd.guest())
        pids = {shell.pid for shell in shells}
        puppets = [await puppet_of(shell) for shell in shells]
        inside = [puppet.call(GETPID) for puppet in puppets]
        for shell, puppet in zip(shells, puppets, strict=True):
            os.close(puppet.mem)
            await shell.destroy()
        return len(pids), inside

    assert run(body, ids) == (2, [HOME_PID, HOME_PID])


def test_a_home_pid_above_this_nodes_pid_max(ids: IdPair) -> None:
    high = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1000

    async def body(mosd: Mosd) -> Any:
        try:
            shell = await mosd.guest(home_pid=high)
        except RefusedError as error:
            return error.line()
        puppet = await puppet_of(shell)
        inside = puppet.call(GETPID)
        os.close(puppet.mem)
        await shell.destroy()
        return inside

    if high >= 2**22:
        pytest.skip("pid_max is the greatest there is")
    got = run(body, ids)
    # A kernel whose pid_max is not per PID namespace refuses, and then the reason is named.
    assert got == high or "above this node's highest PID" in got


def test_a_kernel_that_minds_pid_max_is_explained() -> None:
    limit = int(Path("/proc/sys/kernel/pid_max").read_text())
    with pytest.raises(RefusedError, match="above this node's highest PID") as caught:
        _raise_report(b"E22 clone3 with set_tid", limit)
    assert "pid_max" in caught.value.hint


@pytest.mark.parametrize("home_pid", [-1, 0, 1, 2**22])
def test_impossible_home_pids_are_refused(ids: IdPair, home_pid: int) -> None:
    async def body(mosd: Mosd) -> Any:
        with pytest.raises(RefusedError, match="cannot have PID") as caught:
            await mosd.guest(home_pid=home_pid)
        return caught.value.hint

    assert ("stub" in run(body, ids)) == (home_pid == 1)


def test_without_clone3_the_pid_is_chosen_through_ns_last_pid(ids: IdPair) -> None:
    def no_clone3() -> None:
        program = struct.pack(
            "HBBI" * 4,
            *(0x20, 0, 0, 0),
            *(0x15, 0, 1, CLONE3),
            *(0x06, 0, 0, 0x00050000 | errno.ENOSYS),
            *(0x06, 0, 0, 0x7FFF0000),
        )
        libc = ctypes.CDLL(None, use_errno=True)
        buffer = ctypes.create_string_buffer(program)
        descriptor = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, descriptor, 0, 0) == 0, ctypes.get_errno()

    async def body(mosd: Mosd) -> Any:
        no_clone3()
        shell = await mosd.guest()
        puppet = await puppet_of(shell)
        inside = puppet.call(GETPID)
        os.close(puppet.mem)
        await shell.destroy()
        return inside

    assert run(body, ids) == HOME_PID


# ---- failures ----


@pytest.mark.parametrize("failure", ["refused", "unmapped", "carrier dies", "cancelled", "late"])
def test_a_failed_creation_leaves_nothing(ids: IdPair, failure: str) -> None:
    async def body(mosd: Mosd) -> Any:
        before = open_fds()
        reached = asyncio.Event()

        async def map_ids(carrier: int) -> None:
            reached.set()
            if failure == "refused":
                raise RefusedError("not here")
            if failure == "carrier dies":
                os.kill(carrier, signal.SIGKILL)
            elif failure == "cancelled":
                await asyncio.Event().wait()
            elif failure == "late":
                mosd.ask("map", carrier, JOB_UID, JOB_UID)
                task.cancel()

        task = asyncio.create_task(mosd.guest(map_ids=map_ids))
        await reached.wait()
        if failure == "cancelled":
            task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        return type(outcome).__name__, str(outcome), before == open_fds()

    kind, text, closed = run(body, ids)
    assert closed
    assert (kind, text) in {
        "refused": [("RefusedError", "not here")],
        "unmapped": [("KernelError", "cannot make a guest: setgroups: Operation not permitted")],
        "carrier dies": [("RefusedError", "the process that makes guests was killed")],
        "cancelled": [("CancelledError", "")],
        "late": [("CancelledError", "")],
    }[failure]


def test_a_helper_that_cannot_be_executed_is_named(ids: IdPair) -> None:
    async def body(mosd: Mosd) -> Any:
        mosd.helper_fd = os.open("/etc/passwd", os.O_RDONLY)
        before = open_fds()
        with pytest.raises(KernelError, match="cannot run mosix-guest") as caught:
            await mosd.guest()
        assert open_fds() == before
        return caught.value.line()

    assert "Permission denied" in run(body, ids)


# ---- its files ----


def test_the_remote_reads_and_writes_the_guests_memory(ids: IdPair) -> None:
    async def body(mosd: Mosd) -> Any:
        shell = await mosd.guest()
        before = open_fds()
        with pytest.raises(PermissionError):
            os.close(os.open(f"/proc/{shell.pid}/mem", os.O_RDWR))
        mem, pagemap, clear, auxv = shell.open_all(("mem", "pagemap", "clear_refs", "auxv"))
        assert not any(os.get_inheritable(fd) for fd in (mem, pagemap, clear, auxv))
        elf = os.pread(mem, 4, 0x100000)
        entry = int.from_bytes(os.pread(pagemap, 8, 0x100000 // 4096 * 8), "little")
        os.write(clear, b"1")
        assert os.read(auxv, 16)
        for fd in (mem, pagemap, clear, auxv):
            os.close(fd)
        with pytest.raises(KernelError, match="No such file"):
            shell.open_all(("mem", "nonsense"))
        for name in ("../1/mem", "/etc/passwd", "ns/../mem", ""):
            with pytest.raises(ValueError, match="not a name"):
                shell.open_proc(name)
        assert open_fds() == before
        await shell.destroy()
        return elf, entry >> 63

    assert run(body, ids) == (b"\x7fELF", 1)


def test_fifty_guests_in_a_row_leave_nothing(
    ids: IdPair, capsys: pytest.CaptureFixture[str]
) -> None:
    async def body(mosd: Mosd) -> Any:
        before = open_fds()
        made, ended = [], []
        for _ in range(50):
            start = time.perf_counter()
            shell = await mosd.guest()
            middle = time.perf_counter()
            await shell.destroy()
            made.append(middle - start)
            ended.append(time.perf_counter() - middle)
        assert open_fds() == before
        return made, ended

    made, ended = run(body, ids)
    with capsys.disabled():
        print(
            f"\n50 guests: made in {statistics.median(made) * 1e3:.2f} ms"
            f" (worst {max(made) * 1e3:.2f}), gone in {statistics.median(ended) * 1e3:.2f} ms"
        )
