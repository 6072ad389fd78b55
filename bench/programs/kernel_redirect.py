"""In a virtual machine: a forwarded call by way of mosix.ko and of a seccomp listener.

Arguments: the module, the programs agent_host (a ghost) and seek (linked as a guest). Prints a
JSON list of pairs [module, notify] in ns per call. Both take turns, each with a guest, a redirector
and a ghost of its own and a TCP connection between these, as after a move. The one has the hooks,
the program and the filter of a node of the kernel tier; the other is alone, as on a portable node.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mosix.kernel import policies
from mosix.kernel.device import ORPHAN_KILL, Device
from mosix.kernel.keeper import Add, Keeper, load
from mosix.native.listener import special_names
from mosix.remote.module import ModuleRedirector
from mosix.remote.notify import NotifyRedirector
from mosix.syscalls import filter as syscall_filter

MODULE, HOST, SEEK = sys.argv[1:]
PAIRS = 9
BATCHES = 60
CALLS = 10
FILE = "/tmp/sought"
FLAGS = syscall_filter.FLAG_NEW_LISTENER | syscall_filter.FLAG_WAIT_KILLABLE_RECV


@contextmanager
def ghost() -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """A process that makes the calls, and our end of its call socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    fd, pipe = far.fileno(), subprocess.PIPE
    process = subprocess.Popen(
        [HOST, str(fd)], pass_fds=[fd], stdin=pipe, stdout=pipe, text=True, bufsize=1
    )
    far.close()
    try:
        yield process, near
    finally:
        process.kill()
        process.communicate()
        near.close()


def guest(code: bytes, flags: int, fd: int) -> subprocess.Popen[bytes]:
    """It gets the filter before its main(); if that has a listener, fd is what it is sent by."""
    path = Path("/tmp/filter")
    path.write_bytes(code)
    environment = {"MX_FILTER": str(path), "MX_SOCKET": str(fd), "MX_FLAGS": str(flags)}
    return subprocess.Popen([SEEK, FILE, str(CALLS)], env=environment, pass_fds=[fd])


def best(process: subprocess.Popen[str], redirector: NotifyRedirector) -> float:
    """Of some short batches of the guest whose standard streams `process` has: on a machine that is
    not alone most are disturbed."""
    assert process.stdin is not None
    assert process.stdout is not None
    values = []
    for _ in range(BATCHES):
        before = redirector.calls
        process.stdin.write("\n")
        values.append(float(process.stdout.readline()))
        assert redirector.calls - before >= CALLS
    return min(values)


def by_notify() -> float:
    here, there = socket.socketpair()
    with ghost() as (process, call), here, there:
        served = guest(syscall_filter.program(), FLAGS, there.fileno())
        _, (listener,), _, _ = socket.recv_fds(here, 1, 1)
        redirector = NotifyRedirector(listener, call.fileno(), served.pid, process.pid)
        redirector.start()
        try:
            return best(process, redirector)
        finally:
            served.kill()
            served.wait()
            redirector.close()
            os.close(listener)


def by_module(keeper: Keeper) -> float:
    owner = Device.open(blocking=True)
    number = owner.own(1 << policies.HOME_HOOKS | 1 << policies.GUEST_HOOKS)
    with ghost() as (process, call):
        served = guest(syscall_filter.wall(frozenset(keeper.unhooked)), 0, owner.fd)
        os.waitid(os.P_PID, served.pid, os.WSTOPPED)
        order = Add(tid=served.pid, policy=policies.GUEST, owner=number, orphan=ORPHAN_KILL)
        assert not keeper.obey(order).error
        redirector = ModuleRedirector(owner.fd, call.fileno(), served.pid, process.pid)
        redirector.start()
        os.kill(served.pid, signal.SIGCONT)
        try:
            return best(process, redirector)
        finally:
            served.kill()
            served.wait()
            redirector.close()
            owner.close()


async def main() -> None:
    subprocess.run(["insmod", MODULE], check=True)
    Path(FILE).write_bytes(bytes(8192))
    keeper = load(special_names())
    pairs = []
    for number in range(PAIRS):
        before = by_notify() if number % 2 else None
        value = by_module(keeper)
        pairs.append((value, by_notify() if before is None else before))
    print(json.dumps(pairs))


asyncio.run(main())
