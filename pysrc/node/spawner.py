"""The spawner: a warm, single-threaded root process that forks deputies and remotes for mosd.

Started by mosd (`python -m mosix.node.spawner`) as a program of its own before mosd reads the
secret, and again whenever it has died: the secret is never in its memory nor in its children's.
It imports what workers need, once; a worker is then a fork of a few milliseconds that shares
those pages. It never reads anything but orders from mosd's socket, and ends when that closes;
workers go on without it. Only while it holds listeners of jobs (`mosix.node.listeners`) it stays,
until another mosd takes them: for a job whose deputy has died it makes a survivor, a worker that
does nothing but let opens go on.
"""

from __future__ import annotations

import array
import fcntl
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from typing import Literal

import msgspec
from mosix import failpoints
from mosix.image.maps import vsyscall
from mosix.native import listener
from mosix.native.cpu import own_vdso
from mosix.node.listeners import Held, Holder
from mosix.node.privileges import Capabilities, become, lift_limits, own_bounding
from mosix.wire.adoption import PAUSE_S, try_to_return
from mosix.wire.messages import decode, encode

Run = Callable[[socket.socket], None]
WorkerKind = Literal["deputy", "remote"]

MAX_ORDER_BYTES = 512 << 10  # 65536 supplementary groups are allowed by the kernel
_MAX_FDS = 3


class Spawn(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """mosd → spawner: fork one worker with these identities."""

    request: int
    kind: WorkerKind
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    capabilities: Capabilities = Capabilities()
    failpoints: str = ""


class Hold(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """mosd → spawner: hold a job's listener, its memory and the pidfd of who serves it, which
    ride along in this order."""

    uid: int
    gid: int


class Spawned(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """spawner → mosd: the worker's socket and pidfd ride along, unless `error`."""

    request: int
    pid: int = 0
    error: str = ""


class Died(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """spawner → mosd: a worker ended. `status` as of waitpid."""

    pid: int
    status: int


class AllHeld(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Spawner of a mosd that died → the next mosd, behind a `Hold` for each listener."""


class Taken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The answer: the old spawner is not needed any more."""


Order = Spawn | Hold
Report = Spawned | Died
Bequest = Hold | AllHeld
#: How long a mosd may take to take all of it, seconds.
_BEQUEATH_S = 60.0


class _Survivor:
    """The child that serves a listener whose deputy is dead."""

    def __init__(self, held: Held) -> None:
        self._held = held

    def run(self) -> None:
        held = self._held
        os.setsid()
        _close_all_but(held.listener, held.memory)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        become(held.uid, held.gid, (), Capabilities())
        listener.survive(held.listener, held.memory)


class _Worker:
    """What the child of a fork has to do; `run` returns only when the worker ends."""

    def __init__(self, order: Spawn, sock: socket.socket, run: Run) -> None:
        self._order = order
        self._sock = sock
        self._run = run

    def run(self) -> None:
        order = self._order
        os.setsid()
        os.chdir("/")
        os.umask(0o077)
        # Nothing of mosd's or the spawner's may be open in a process of the user.
        _close_all_but(self._sock.fileno())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        # A remote serves others: where memory is gone it goes right after its guest.
        os.write(score, b"900" if order.kind == "remote" else b"0")
        os.close(score)
        if order.kind == "remote":
            lift_limits()
        # The kernel makes the process undumpable here: its own user cannot trace it or read
        # its memory, and so not take over its connections.
        become(order.uid, order.gid, order.groups, order.capabilities)
        self._run(self._sock)


def _close_all_but(*kept: int) -> None:
    """And the standard descriptors."""
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, 1 << 20)


def _default_signals() -> None:
    """All but SIGINT, whose default would end the spawner with mosd's terminal."""
    # SIGPIPE stays ignored, as Python's socket code expects.
    fixed = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGINT}
    for number in signal.valid_signals() - fixed:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Spawner:
    """The loop. `workers`: what to run for each kind; `adoption`: where the next mosd listens."""

    def __init__(self, sock: socket.socket, workers: dict[WorkerKind, Run], adoption: str) -> None:
        self._sock = sock
        self._workers = workers
        self._adoption = adoption
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ, None)
        self._holder = Holder()
        self._selector.register(self._holder, selectors.EVENT_READ, self._holder)
        self._alone = False

    def serve(self) -> _Worker | _Survivor | None:
        """None when mosd is gone and nothing is held; in each forked child what it has to do."""
        while not (self._alone and not len(self._holder)):
            if self._alone and self._bequeathed():
                return None
            for key, _ in self._selector.select(PAUSE_S if self._alone else None):
                if self._selector.get_map().get(key.fd) is not key:
                    continue  # what came before it has ended it
                worker: _Worker | _Survivor | None = None
                if isinstance(key.data, int):
                    self._reap(key.fd, key.data)
                elif key.data is self._holder:
                    self._let_go()
                elif isinstance(key.data, Held):
                    worker = self._survive(key.data)
                else:
                    worker = self._obey()
                if worker is not None:
                    return worker
        return None

    def _obey(self) -> _Worker | None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                MAX_ORDER_BYTES, socket.CMSG_SPACE(4 * _MAX_FDS), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            data = b""  # mosd died before it read our last report
        if not data:
            self._alone = True
            self._selector.unregister(self._sock)
            return None
        order: Order = decode(data, Order)
        if isinstance(order, Spawn):
            return self._fork(order)
        fds = array.array("i", b"".join(data for _, _, data in ancillary))
        held = Held(order.uid, order.gid, *fds)
        self._holder.keep(held)
        self._selector.register(held.server, selectors.EVENT_READ, held)
        return None

    def _bequeathed(self) -> bool:
        """Whether there is another mosd, which now has all that is held here."""
        sock = try_to_return(self._adoption)
        if sock is None:
            return False
        with sock:
            sock.settimeout(_BEQUEATH_S)
            try:
                for held in self._holder.all():
                    order = encode(Hold(uid=held.uid, gid=held.gid))
                    socket.send_fds(sock, [order], held.descriptors)
                sock.send(encode(AllHeld()))
                return bool(sock.recv(MAX_ORDER_BYTES))
            except OSError:
                return False  # it has died, too, or does not know us

    # ---- listeners whose deputy has died ----

    def _let_go(self) -> None:
        for held in self._holder.finished():
            self._selector.unregister(held.server)
            held.close()

    def _survive(self, held: Held) -> _Survivor | None:
        """Its server has ended. In the child: the survivor."""
        self._let_go()
        if held not in self._holder.all():
            return None
        self._selector.unregister(held.server)
        os.close(held.server)
        pid = os.fork()
        if pid == 0:
            self._forget_descriptors()
            return _Survivor(held)
        held.server = os.pidfd_open(pid)
        self._selector.register(held.server, selectors.EVENT_READ, held)
        self._watch(pid)
        return None

    def _fork(self, order: Spawn) -> _Worker | None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            try:
                failpoints.arm(order.failpoints)
                failpoints.hit("spawner.fork")
                pid = os.fork()
            except OSError as error:
                theirs.close()
                self._tell(Spawned(request=order.request, error=f"fork: {error.strerror}"))
                return None
            if pid == 0:
                self._forget_descriptors()
                return _Worker(order, theirs, self._workers[order.kind])
            theirs.close()
            pidfd = self._watch(pid)
            self._tell(Spawned(request=order.request, pid=pid), [ours.fileno(), pidfd])
        return None

    def _forget_descriptors(self) -> None:
        """In a child: objects that own a descriptor would close its number once more when they
        are collected, and by then it is somebody else's."""
        self._selector.close()
        self._holder.forget()
        self._sock.close()

    def _watch(self, pid: int) -> int:
        """A pidfd that is closed when the child is reaped."""
        pidfd = os.pidfd_open(pid)
        self._selector.register(pidfd, selectors.EVENT_READ, pid)
        return pidfd

    def _reap(self, pidfd: int, pid: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._tell(Died(pid=pid, status=status))

    def _tell(self, report: Report, fds: list[int] | None = None) -> None:
        try:
            socket.send_fds(self._sock, [encode(report)], fds or [])
        except (BrokenPipeError, ConnectionResetError):
            return  # mosd is gone: the next recv says so


def load_worker(name: str) -> Run:
    """`module:function`. What the module's `warm_up`, if it has one, computes every worker of
    its kind has from the start."""
    module_name, _, function = name.partition(":")
    module = importlib.import_module(module_name)
    if hasattr(module, "warm_up"):
        module.warm_up()
    found: Run = getattr(module, function)
    return found


def main() -> None:
    """argv: deputy and remote as `module:function`, and where the next mosd listens; standard
    input: mosd's socket."""
    deputy, remote, adoption = sys.argv[1:]
    # Not left at 0, where whatever is opened next in a worker that closes it would come.
    sock = socket.socket(fileno=fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3))
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    sock.setblocking(True)
    # mosd's terminal is not ours: it alone decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _default_signals()
    workers: dict[WorkerKind, Run] = {"deputy": load_worker(deputy), "remote": load_worker(remote)}
    own_vdso()  # kept for the workers, who may not look at their own maps any more
    vsyscall()
    own_bounding()
    gc.collect()
    gc.freeze()  # a collection in a worker must not copy all of these pages
    worker = Spawner(sock, workers, adoption).serve()
    if worker is not None:
        worker.run()
        # Not through the interpreter's own end, which touches, and so copies, all that is shared.
        os._exit(0)


if __name__ == "__main__":
    main()
