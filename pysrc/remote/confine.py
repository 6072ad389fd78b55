"""The confined empty process that a body moves into.

Called by the remote, in its main thread (the thread that traces), as the reserved uid R and
without any capability. The work inside the namespaces is done by the helper program
``bin/mosix-guest`` (native/guest.c); root's share (id maps, cgroup) is mosd's, behind the
`map_ids` callback. Processes of one guest: the *carrier*, which unshares and ends; the *stub*,
PID 1 of the guest's PID namespace and child of the remote; the *guest*, under its home PID.
All of them die with the remote's main thread. This module must never run anything as the job
outside those namespaces, and leaves nothing behind when it fails.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

from mosix.errors import KernelError, RefusedError

HELPER: Final = Path(__file__).resolve().parent.parent / "native" / "bin" / "mosix-guest"

#: Creation takes milliseconds; after this many seconds the node is hopelessly overloaded.
CREATE_TIMEOUT: Final = 20.0

_PID_MAX_LIMIT: Final = 2**22
_WALL: Final = 0x40000000  # __WALL of linux/wait.h: also children of other threads, and tracees
_SO_PASSCRED: Final = 16
_SCM_CREDENTIALS: Final = 2
_UCRED: Final = struct.Struct("iII")
_PROC_NAME: Final = re.compile(r"[a-z_]+(/[A-Za-z0-9_-]+)*\Z")
_DEFAULTED: Final = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})

#: Why a system call of the helper is refused although the kernel knows it.
_HINTS: Final = {
    "unshare": "see kernel.unprivileged_userns_clone, user.max_*_namespaces and, with AppArmor,"
    " kernel.apparmor_restrict_unprivileged_userns",
    "pivot_root": "mosd must not run in a chroot or on an initramfs",
    "/proc/self/timens_offsets": "/proc must be mounted, and the kernel needs CONFIG_TIME_NS",
    "clone3 with set_tid": "needs Linux 5.9",
}


def open_helper() -> int:
    """A descriptor of the helper program for `GuestShell.create`.

    For a parent that may read the installation (the spawner) when uid R may not enter it.
    """
    return os.open(HELPER, os.O_RDONLY | os.O_CLOEXEC)


def time_offsets(
    monotonic_ns: int, boottime_ns: int, inherited: str, now: tuple[int, int]
) -> dict[str, int]:
    """Offsets in nanoseconds, as /proc/self/timens_offsets wants them.

    `now`: this node's CLOCK_MONOTONIC and CLOCK_BOOTTIME when the wanted values held.
    `inherited`: this process's own timens_offsets: the kernel's offsets count from the initial
    namespace, while `now` was read through the node's own (a lab node has one).
    """
    base = dict.fromkeys(("monotonic", "boottime"), 0)
    for line in inherited.splitlines():
        clock, seconds, nanoseconds = line.split()
        base[clock] = int(seconds) * 1_000_000_000 + int(nanoseconds)
    return {
        "monotonic": base["monotonic"] + monotonic_ns - now[0],
        "boottime": base["boottime"] + boottime_ns - now[1],
    }


def _offsets_text(offsets: dict[str, int]) -> str:
    # divmod rounds down, so the nanoseconds are never negative, which the kernel would refuse.
    parts = ((clock, *divmod(value, 1_000_000_000)) for clock, value in offsets.items())
    return "".join(f"{clock} {seconds} {nanoseconds}\n" for clock, seconds, nanoseconds in parts)


class GuestShell:
    """An empty guest. Made by `create`; belongs to the thread that made it."""

    def __init__(
        self, pid: int, stub_pid: int, carrier_pid: int, home_pid: int, helper: str
    ) -> None:
        #: the guest's PID on this node
        self.pid = pid
        #: PID 1 of its namespace, a child of this process until `destroy`
        self.stub_pid = stub_pid
        #: who was mapped; it has ended when `create` returns
        self.carrier_pid = carrier_pid
        self.home_pid = home_pid
        self._helper = helper
        self._pidfd = _pidfd_of(pid, stub_pid)
        self._gone = False

    @classmethod
    async def create(
        cls,
        *,
        home_pid: int,
        uid: int,
        gid: int,
        monotonic_ns: int,
        boottime_ns: int,
        map_ids: Callable[[int], Awaitable[None]],
        comm: str,
        helper_fd: int | None = None,
    ) -> GuestShell:
        """Make an empty guest that waits to be seized.

        `uid`, `gid`: the job's, inside. The guest's clocks are never behind `monotonic_ns` and
        `boottime_ns`, counted from the moment of this call. `map_ids(carrier_pid)` returns when
        mosd has written the maps and moved the carrier into the guest's cgroup.
        `helper_fd`: from `open_helper`, else the helper is executed by its path.
        Raises RefusedError (this job cannot live here), KernelError (no job can), and whatever
        `map_ids` raises.
        """
        now = (
            time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        )
        if not 1 < home_pid < _PID_MAX_LIMIT:
            raise RefusedError(
                f"a guest cannot have PID {home_pid}",
                "PID 1 of its namespace is the stub" if home_pid == 1 else "",
            )
        inherited = Path("/proc/self/timens_offsets")
        try:
            offsets = time_offsets(monotonic_ns, boottime_ns, inherited.read_text("ascii"), now)
        except FileNotFoundError as error:
            raise KernelError("no time namespaces here", "needs CONFIG_TIME_NS") from error
        helper = str(HELPER) if helper_fd is None else f"/proc/{os.getpid()}/fd/{helper_fd}"
        birth = _Birth(home_pid)
        try:
            async with asyncio.timeout(CREATE_TIMEOUT):
                name = os.fsencode(comm.replace("\0", ""))[:15]
                birth.start(helper, uid, gid, name)
                await birth.expect("U")
                await map_ids(birth.carrier)
                birth.order("M" + _offsets_text(offsets))
                birth.stub = await birth.expect("S")
                guest = await birth.expect("G")
                # The guest has closed its end, and so have stub and carrier: nobody of them
                # holds a descriptor any more.
                await birth.expect("")
            shell = cls(guest, birth.stub, birth.carrier, home_pid, helper)
        except TimeoutError as error:
            birth.abandon()
            raise RefusedError(
                f"making a guest took more than {CREATE_TIMEOUT:.0f} s", "the node is overloaded"
            ) from error
        except BaseException:
            birth.abandon()
            raise
        birth.finish()
        return shell

    def open_proc(self, name: str) -> int:
        """A close-on-exec descriptor of /proc/PID/`name`; the caller closes it.

        mem is opened for reading and writing, clear_refs for writing. The descriptors stay valid
        as long as the guest does not exec. Raises KernelError. Takes about a millisecond.
        """
        return self.open_all((name,))[0]

    def open_all(self, names: Sequence[str]) -> list[int]:
        """As `open_proc`, several with one helper.

        R owns the guest's user namespace but not these files (their owner is the guest's outer
        uid), so a helper joins the namespace and sends the descriptors back.
        """
        for name in names:
            if not _PROC_NAME.match(name):
                raise ValueError(f"not a name in /proc/PID: {name!r}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            joiner = _spawn(self._helper, ["open", str(self.pid), *names], theirs)
            theirs.close()
            opened: list[int] = []
            try:
                for _ in names:
                    data, fd = _receive_fd(ours)
                    if fd is None:
                        _raise_report(data, self.home_pid)
                    opened.append(fd)
            except BaseException:
                for fd in opened:
                    os.close(fd)
                raise
            finally:
                os.kill(joiner, signal.SIGKILL)
                os.waitpid(joiner, 0)
        return opened

    async def destroy(self) -> None:
        """Kill everything of this guest and reap it. May be called again.

        In the thread that traces the guest: the stub's exit is complete only when the dead
        guest's tracer has reaped it. Descriptors of the guest that others hold stay theirs.
        """
        if self._gone:
            return
        self._gone = True
        os.kill(self.stub_pid, signal.SIGKILL)  # our child, unreaped: cannot be anyone else
        try:
            await _readable(self._pidfd)
        finally:
            # Also when cancelled: nobody else can reap a tracee of ours.
            _reap_tracee(self.pid)
            os.close(self._pidfd)
            stub_pidfd = os.pidfd_open(self.stub_pid)
            try:
                await _readable(stub_pidfd)
            finally:
                os.close(stub_pidfd)
                os.waitpid(self.stub_pid, 0)


class _Birth:
    """What exists while `GuestShell.create` is under way."""

    def __init__(self, home_pid: int) -> None:
        self.home_pid = home_pid
        self.carrier = 0
        self.stub = 0
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The stub and the guest do not know their numbers out here; the kernel translates.
        self._ours.setsockopt(socket.SOL_SOCKET, _SO_PASSCRED, 1)

    def start(self, helper: str, uid: int, gid: int, comm: bytes) -> None:
        self._ours.setblocking(False)
        self.carrier = _spawn(
            helper, ["create", str(self.home_pid), str(uid), str(gid), comm], self._theirs
        )
        self._theirs.close()

    def order(self, text: str) -> None:
        try:
            self._ours.send(text.encode("ascii"))
        except BrokenPipeError:
            self._died()

    async def expect(self, letter: str) -> int:
        """Receive `letter` ("": the end), return the outer PID of the sender."""
        await _readable(self._ours.fileno())
        data, sender = self._receive()
        if data.decode("ascii", "replace") != letter:
            if not data:
                self._died()
            _raise_report(data, self.home_pid)
        return sender

    def _receive(self) -> tuple[bytes, int]:
        while True:
            try:
                data, control, _, _ = self._ours.recvmsg(300, socket.CMSG_SPACE(_UCRED.size))
                break
            except ConnectionResetError:
                # The other end went with an order unread: said once, before what it had sent.
                continue
        for level, kind, value in control:
            if (level, kind) == (socket.SOL_SOCKET, _SCM_CREDENTIALS):
                return data, int(_UCRED.unpack(value[: _UCRED.size])[0])
        return data, 0

    def _died(self) -> NoReturn:
        raise RefusedError("the process that makes guests was killed", "out of memory?")

    def finish(self) -> None:
        """All is well: only the carrier, which ends by itself, is left to be reaped."""
        os.waitpid(self.carrier, 0)
        self._ours.close()

    def abandon(self) -> None:
        """Kill and reap whatever was begun; blocks for some milliseconds at the most.

        A stub may exist that has not been heard of yet: what it sent comes before the end of
        the stream, and the stream ends only when every process of the helper is gone or mute.
        """
        self._theirs.close()
        if self.carrier:
            os.kill(self.carrier, signal.SIGKILL)
            self._ours.setblocking(True)
            self._ours.shutdown(socket.SHUT_WR)
            if self.stub:
                os.kill(self.stub, signal.SIGKILL)
            while (message := self._receive())[0]:
                if message[0] == b"S":
                    self.stub = message[1]
                    os.kill(self.stub, signal.SIGKILL)
            os.waitpid(self.carrier, 0)
            if self.stub:
                os.waitpid(self.stub, 0)
        self._ours.close()


def _spawn(helper: str, arguments: Sequence[str | bytes], channel: socket.socket) -> int:
    """Start the helper with `channel` as descriptor 3. posix_spawn: no copy of our memory."""
    try:
        return os.posix_spawn(
            helper,
            ["mosix-guest", arguments[0], "3", *arguments[1:]],
            {},
            file_actions=[(os.POSIX_SPAWN_DUP2, channel.fileno(), 3)],
            setsigdef=_DEFAULTED,
            setsigmask=(),
        )
    except OSError as error:
        raise KernelError(
            f"cannot run {HELPER.name}: {error.strerror}",
            f"uid {os.geteuid()} must be able to execute {HELPER}",
        ) from error


def _pidfd_of(guest: int, stub: int) -> int:
    """A pidfd of the guest. Its number may be somebody else's if it was killed just now."""
    try:
        pidfd = os.pidfd_open(guest)
    except ProcessLookupError:
        raise RefusedError("the new guest was killed", "out of memory?") from None
    try:
        status = Path(f"/proc/{guest}/status").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        status = ""
    if re.search(rf"^PPid:\s+{stub}$", status, re.M):
        return pidfd
    os.close(pidfd)
    raise RefusedError("the new guest was killed", "out of memory?")


def _receive_fd(sock: socket.socket) -> tuple[bytes, int | None]:
    # Not socket.recv_fds: that of Python 3.11 ignores its flags, so no MSG_CMSG_CLOEXEC.
    data, control, _, _ = sock.recvmsg(300, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
    for level, kind, value in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return data, int.from_bytes(value[:4], sys.byteorder)
    return data, None


def _raise_report(data: bytes, home_pid: int) -> NoReturn:
    """The error for a message of the helper that was not the expected one."""
    match = re.fullmatch(r"E(\d+) (.*)", data.decode("ascii", "replace"))
    if match is None:
        raise KernelError(f"unexpected answer of {HELPER.name}: {data[:50]!r}")
    what, reason = match[2], os.strerror(int(match[1]))
    if what == "clone3 with set_tid" and reason == os.strerror(22):  # EINVAL
        # Where pid_max is not per PID namespace (before Linux 6.14) set_tid minds it.
        limit = int(Path("/proc/sys/kernel/pid_max").read_text("ascii"))
        if home_pid >= limit:
            raise RefusedError(
                f"home PID {home_pid} is above this node's highest PID {limit - 1}",
                "raise kernel.pid_max there",
            )
    raise KernelError(f"cannot make a guest: {what}: {reason}", _HINTS.get(what, ""))


def _reap_tracee(pid: int) -> None:
    """Reap a dead process that this thread traces; nothing when it does not."""
    try:
        while True:
            _, status = os.waitpid(pid, _WALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                return
    except ChildProcessError:
        return


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
