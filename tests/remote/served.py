"""Runs a program as a guest whose calls another process serves, all for real and on one machine.

The guest gets the generated filter before its main(); the test process is the remote with a
`NotifyRedirector`; `agent_host` is the ghost, with its own files and working directory, behind a
TCP connection on loopback. Used by the tests of the redirector.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mosix.native._native import ffi
from mosix.native.tracee import Tracee
from mosix.remote.notify import NotifyRedirector
from mosix.remote.redirector import Event, Gone, LinkBroken, NeedsHome
from mosix.syscalls.filter import FLAG_NEW_LISTENER, FLAG_WAIT_KILLABLE_RECV, program

PROGRAMS = Path(__file__).parent / "programs"
NATIVE = Path(__file__).parents[2] / "pysrc" / "native"
ENOSYS = 38
CANCELLED = ffi.offsetof("struct mx_agent_state", "cancelled")


class Kit:
    """The compiled helpers, made once per test run in `where`."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.filter = where / "filter.bin"
        self.filter.write_bytes(program())
        self.host = where / "agent_host"
        self.preload = where / "guest_preload.so"
        cc = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"-I{NATIVE}"]
        host = [PROGRAMS / "agent_host.c", NATIVE / "agent_serve.c"]
        fixed = ["-DMX_HOSTED", "-static", "-no-pie"]  # its symbols are its addresses
        subprocess.run([*cc, *fixed, "-o", self.host, *host], check=True)
        names = subprocess.run(["nm", self.host], capture_output=True, text=True, check=True)
        self.symbols = {
            line.split()[2]: int(line.split()[0], 16)
            for line in names.stdout.splitlines()
            if len(line.split()) == 3
        }
        preload = PROGRAMS / "guest_preload.c"
        subprocess.run([*cc, "-shared", "-fPIC", "-o", self.preload, preload], check=True)

    def build(self, name: str, *, static: bool) -> Path:
        """programs/NAME.c; a static one has the guest's beginning linked in."""
        out = self.where / (name + ("-static" if static else ""))
        if not out.exists():
            # -w: wrong arguments are the point of some of its calls
            cc = ["gcc", "-O2", "-w", "-D_GNU_SOURCE", "-o", str(out)]
            more = ["-static", str(PROGRAMS / "guest_preload.c")] if static else []
            subprocess.run([*cc, str(PROGRAMS / f"{name}.c"), *more], check=True)
        return out


@dataclass
class Served:
    """A running pair. `homes`: reasons for which the body would have had to go home."""

    redirector: NotifyRedirector
    guest: subprocess.Popen[bytes]
    ghost: subprocess.Popen[bytes]
    sockets: list[socket.socket]
    listener: int
    homes: list[str] = field(default_factory=list)
    #: for `until_blocked`: system call number
    blocked_in: int = 0

    async def serve(self, on_event: Callable[[Event], bool] | None = None) -> int:
        """Until the program exits: its status, as the ghost's parent sees it. `on_event`
        returns whether it dealt with the event."""
        while True:
            event = await asyncio.wait_for(self.redirector.events.get(), 9)
            if on_event is not None and on_event(event):
                continue
            if isinstance(event, NeedsHome):
                self.homes.append(event.reason)
                self.redirector.answer(-ENOSYS)
                self.redirector.resume()
            elif isinstance(event, LinkBroken | Gone):
                return await asyncio.to_thread(self.ghost.wait)
            else:
                raise AssertionError(f"unexpected {event}")

    async def event(self) -> Event:
        return await asyncio.wait_for(self.redirector.events.get(), 9)

    async def until_blocked(self) -> None:
        """Until the ghost executes a call and the kernel has put it to sleep."""
        path = Path(f"/proc/{self.ghost.pid}/syscall")
        while not path.read_text().startswith(f"{self.blocked_in} "):
            await asyncio.sleep(0)

    def interrupt_ghost(self, kit: Kit) -> None:
        """What a deputy does with Cancel: a call that did nothing is marked as cancelled."""
        tracee = Tracee.seize(self.ghost.pid)
        tracee.stop()
        registers = tracee.get_registers()
        assert registers.rip == kit.symbols["mx_call_return"]
        if registers.result < 0:
            tracee.write(kit.symbols["host_state"] + CANCELLED, (1).to_bytes(4, "little"))
            registers.orig_rax = -1 & (1 << 64) - 1
            tracee.set_registers(registers)
        tracee.detach()

    def close(self) -> None:
        self.guest.kill()
        self.guest.wait()
        self.redirector.close()
        self.ghost.kill()
        self.ghost.wait()
        os.close(self.listener)
        for sock in self.sockets:
            sock.close()
        for process in (self.guest, self.ghost):
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def launch(
    kit: Kit,
    command: list[str | Path],
    cwd: Path,
    *,
    killable: bool = True,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
) -> Served:
    """Start `command` as a guest in an empty directory; its files are those of `cwd`."""
    near, far = tcp_pair()
    ghost = subprocess.Popen(
        [kit.host, str(far.fileno())],
        cwd=cwd,
        pass_fds=[far.fileno()],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )
    far.close()
    here, there = socket.socketpair()
    flags = FLAG_NEW_LISTENER | (FLAG_WAIT_KILLABLE_RECV if killable else 0)
    env = {
        "LD_PRELOAD": str(kit.preload),
        "LC_ALL": "C",
        "PATH": "/usr/bin:/bin",
        "MX_FILTER": str(kit.filter),
        "MX_SOCKET": str(there.fileno()),
        "MX_FLAGS": str(flags),
    }
    executable = shutil.which(str(command[0]), path="/usr/bin:/bin")
    assert executable is not None
    guest = subprocess.Popen(
        [str(word) for word in command],
        executable=executable,
        cwd="/",
        env=env,
        pass_fds=[there.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    there.close()
    with here:
        here.settimeout(60)
        _, fds, _, _ = socket.recv_fds(here, 1, 1)
    redirector = NotifyRedirector(fds[0], near.fileno(), guest.pid, ghost.pid)
    return Served(redirector, guest, ghost, [near], fds[0])


@contextmanager
def served(
    kit: Kit,
    command: list[str | Path],
    cwd: Path,
    *,
    killable: bool = True,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    still: bool = False,
) -> Iterator[Served]:
    """`launch` and, at the end, all of it gone. `still`: not served until resumed."""
    pair = launch(kit, command, cwd, killable=killable, stdin=stdin, stdout=stdout)
    pair.redirector.start(still=still)
    try:
        yield pair
    finally:
        pair.close()


def native(
    command: list[str | Path], cwd: Path, stdin: int = subprocess.DEVNULL
) -> tuple[int, bytes]:
    done = subprocess.run(
        [str(word) for word in command],
        executable=shutil.which(str(command[0]), path="/usr/bin:/bin"),
        cwd=cwd,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        stdin=stdin,
        stdout=subprocess.PIPE,
        check=False,
    )
    return done.returncode, done.stdout
