"""Runs test code as a remote: forked, under a reserved uid, with the test as its mosd."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import re
import signal
import socket
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mosix.errors import MosixError
from mosix.node.idmaps import IdPair, IdPool, write_id_maps
from mosix.remote.confine import GuestShell

#: Ids of our own: tests of other parts may run at the same time.
POOL = IdPool(first=0x71000000 + os.getpid() % 4096 * 64, pairs=32)
JOB_UID = 1000
HOME_PID = 54321


class Mosd:
    """In the remote: what the test does on its behalf, as root."""

    def __init__(self, sock: socket.socket, ids: IdPair, helper_fd: int) -> None:
        self._sock = sock
        self.ids = ids
        self.helper_fd = helper_fd

    def ask(self, function: str, *args: Any) -> Any:
        self._sock.send(pickle.dumps((function, args)))
        outcome, value = pickle.loads(self._sock.recv(1 << 16))
        if outcome == "raised":
            raise value
        return value

    async def guest(self, home_pid: int = HOME_PID, uid: int = JOB_UID, **more: Any) -> GuestShell:
        gid = more.pop("gid", uid)

        async def map_ids(carrier: int) -> None:
            self.ask("map", carrier, uid, gid)

        more.setdefault("monotonic_ns", time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        more.setdefault("boottime_ns", time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        more.setdefault("map_ids", map_ids)
        return await GuestShell.create(
            home_pid=home_pid, uid=uid, gid=gid, comm="job", helper_fd=self.helper_fd, **more
        )


Body = Callable[[Mosd], Awaitable[Any]]


class Remote:
    """A forked process of uid R that runs `body`; `finish` serves it and gives its result."""

    def __init__(
        self,
        body: Body,
        helper_fd: int,
        ids: IdPair | None = None,
        actions: dict[str, Callable[..., Any]] | None = None,
    ) -> None:
        self.ids = ids or POOL.allocate()
        self._actions = {"map": self._map} | (actions or {})
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if not self.pid:
            self._sock.close()
            self._child(body, theirs, helper_fd)
        theirs.close()

    def _child(self, body: Body, sock: socket.socket, helper_fd: int) -> None:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(self.ids.owner, self.ids.owner, self.ids.owner)
            os.setresuid(self.ids.owner, self.ids.owner, self.ids.owner)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as after an exec

            async def main() -> Any:
                return await body(Mosd(sock, self.ids, helper_fd))

            value = asyncio.run(main())
            sock.send(pickle.dumps(("result", value)))
            status = 0
        except (MosixError, OSError, ValueError, AssertionError) as error:
            traceback.print_exc()
            sock.send(pickle.dumps(("failed", f"{type(error).__name__}: {error}")))
        finally:
            os._exit(status)

    def _map(self, carrier: int, uid: int, gid: int) -> None:
        write_id_maps(
            carrier,
            inside_uid=uid,
            inside_gid=gid,
            outer_id=self.ids.outer,
            owner_uid=self.ids.owner,
            remote_pid=self.pid,
        )

    def serve_until(self, wanted: str) -> Any:
        """Serve the remote until it asks for `wanted`, which is not answered; its arguments."""
        while True:
            data = self._sock.recv(1 << 16)
            assert data, "the remote died"
            function, args = pickle.loads(data)
            if function == wanted:
                return args
            if function == "failed":
                raise AssertionError(args)
            try:
                answer = ("returned", self._actions[function](*args))
            except (MosixError, OSError) as error:
                answer = ("raised", error)
            self._sock.send(pickle.dumps(answer))

    def finish(self) -> Any:
        try:
            return self.serve_until("result")
        finally:
            self._end()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._end()

    def _end(self) -> None:
        self._sock.close()
        os.waitpid(self.pid, 0)


def processes_of(ids: IdPair) -> dict[int, str]:
    """PID → status text of whoever runs as one of `ids`."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            text = path.read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        uids = re.search(r"^Uid:\s+(\d+)", text, re.M)
        if uids and int(uids[1]) in ids:
            found[int(path.parent.name)] = text
    return found
