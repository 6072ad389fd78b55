"""The spawner: a warm, single-threaded root process that forks deputies and remotes for mosd.

Started by mosd (`python -m mosix.node.spawner`) as a program of its own before mosd reads the
secret, and again whenever it has died: the secret is never in its memory nor in its children's.
It imports what workers need, once; a worker is then a fork of a few milliseconds that shares
those pages. It never reads anything but orders from mosd's socket, and ends when that closes;
workers go on without it.
"""

from __future__ import annotations

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
from mosix.node.privileges import Capabilities, become, lift_limits, own_bounding
from mosix.wire.messages import decode, encode

Run = Callable[[socket.socket], None]
WorkerKind = Literal["deputy", "remote"]

MAX_ORDER_BYTES = 512 << 10  # 65536 supplementary groups are allowed by the kernel


class Spawn(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """mosd → spawner: fork one worker with these identities."""

    request: int
    kind: WorkerKind
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    capabilities: Capabilities = Capabilities()
    failpoints: str = ""


class Spawned(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """spawner → mosd: the worker's socket and pidfd ride along, unless `error`."""

    request: int
    pid: int = 0
    error: str = ""


class Died(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """spawner → mosd: a worker ended. `status` as of waitpid."""

    pid: int
    status: int


Report = Spawned | Died


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
        fd = self._sock.fileno()
        os.closerange(3, fd)
        os.closerange(fd + 1, 1 << 20)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(score, b"0")
        os.close(score)
        if order.kind == "remote":
            lift_limits()
        # The kernel makes the process undumpable here: its own user cannot trace it or read
        # its memory, and so not take over its connections.
        become(order.uid, order.gid, order.groups, order.capabilities)
        self._run(self._sock)


def _default_signals() -> None:
    """All but SIGINT, whose default would end the spawner with mosd's terminal."""
    # SIGPIPE stays ignored, as Python's socket code expects.
    fixed = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGINT}
    for number in signal.valid_signals() - fixed:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Spawner:
    """The loop. `workers`: what to run for each kind."""

    def __init__(self, sock: socket.socket, workers: dict[WorkerKind, Run]) -> None:
        self._sock = sock
        self._workers = workers
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ, None)

    def serve(self) -> _Worker | None:
        """None when mosd is gone; a `_Worker` in each forked child, whose caller runs it."""
        while True:
            for key, _ in self._selector.select():
                if isinstance(key.data, int):
                    self._reap(key.fd, key.data)
                    continue
                data = self._sock.recv(MAX_ORDER_BYTES)
                if not data:
                    return None
                worker = self._fork(decode(data, Spawn))
                if worker is not None:
                    return worker

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
                # Objects that own a descriptor would close its number once more when they are
                # collected, and by then it is somebody else's.
                self._selector.close()
                self._sock.close()
                return _Worker(order, theirs, self._workers[order.kind])
            theirs.close()
            pidfd = os.pidfd_open(pid)
            # Registered before mosd hears of it; closed when the worker is reaped.
            self._selector.register(pidfd, selectors.EVENT_READ, pid)
            self._tell(Spawned(request=order.request, pid=pid), [ours.fileno(), pidfd])
        return None

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
    """argv: deputy and remote as `module:function`; standard input: mosd's socket."""
    deputy, remote = sys.argv[1:]
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
    own_bounding()
    gc.collect()
    gc.freeze()  # a collection in a worker must not copy all of these pages
    worker = Spawner(sock, workers).serve()
    if worker is not None:
        worker.run()
        # Not through the interpreter's own end, which touches, and so copies, all that is shared.
        os._exit(0)


if __name__ == "__main__":
    main()
