"""How this node intercepts calls: by seccomp (portable), or by mosix.ko and eBPF (kernel).

`chosen` is asked once, at mosd's start; what it finds decides how jobs and guests are made from
then on. `KernelTier` is mosd's side of the keeper (`mosix.kernel.keeper`), which holds the program.
Nothing here serves a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mosix.errors import KernelError
from mosix.kernel.device import PATH, Device
from mosix.kernel.keeper import OVER, Add, Count, Done, Greet, Order, version
from mosix.native.listener import special_names
from mosix.wire.channel import Packets

_log = logging.getLogger("mosd.tier")

Choice = Literal["auto", "portable", "kernel"]

#: The eBPF program is compiled at each start of a keeper: that takes seconds, emulated many.
_START_S = 900.0
_ANSWER_S = 20.0
_POLL_S = 0.05
#: /proc/self/ns/pid of the first PID namespace (linux/proc_ns.h)
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
_PASSED_ENVIRONMENT = ("PATH", "PYTHONPATH", "BCC_KERNEL_SOURCE", "PYTHONDONTWRITEBYTECODE")


@dataclass(frozen=True)
class TaskOwner:
    """An owner of tasks at the module: its number, and the file to serve them through."""

    number: int
    fd: int

    def close(self) -> None:
        """Our copy of the file: whoever serves has its own."""
        os.close(self.fd)


class KernelTier:
    """The keeper, as mosd sees it: if it is killed there is another. KernelError from every method:
    there is none."""

    def __init__(self, path: Path, sock: socket.socket) -> None:
        self._path = path
        self._packets: Packets[Done] = Packets(sock, Done)
        self._asking = asyncio.Lock()
        #: with which another can take over
        self._held: tuple[int, ...] = ()
        #: numbers of calls of guests that cannot be hooked
        self.unhooked: tuple[int, ...] = ()

    @classmethod
    async def start(cls, path: Path) -> KernelTier:
        """The keeper that listens at `path`, or a new one. KernelError says why there is none."""
        Device.open().close()
        if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
            raise KernelError(
                "mosd runs in a PID namespace", hint="the kernel tier needs the first"
            )
        sock = cls._found(path)
        if sock is None:
            sock = await cls._started(path, special_names())
        tier = cls(path, sock)
        try:
            await tier._greet()
        except BaseException:
            tier.close()
            raise
        return tier

    @classmethod
    def _found(cls, path: Path) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        return sock

    @classmethod
    async def _started(
        cls, path: Path, arguments: Sequence[str], fds: Sequence[int] = ()
    ) -> socket.socket:
        environment = {k: v for k in _PASSED_ENVIRONMENT if (v := os.environ.get(k))}
        command = [sys.executable, "-P", "-m", "mosix.kernel.keeper", str(path), *arguments]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**environment, "LC_ALL": "C.UTF-8"},
            pass_fds=fds,
        )
        reading = asyncio.create_task(asyncio.to_thread(_last_line, process))
        try:
            async with asyncio.timeout(_START_S):
                while True:
                    sock = cls._found(path)
                    if sock is not None:
                        return sock
                    if process.poll() is not None:
                        raise KernelError(await reading or "the keeper of the kernel tier ended")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            process.kill()
            process.wait()
            raise KernelError(f"the eBPF program is not there within {_START_S:.0f} s") from error

    async def _greet(self) -> None:
        try:
            done, fds = await self._exchange(Greet(version=version()))
        except EOFError as error:
            raise _gone() from error
        self.unhooked = done.unhooked
        self._let_go()
        self._held = tuple(fds)

    async def _ask(self, order: Order) -> Done:
        async with self._asking:
            try:
                return (await self._exchange(order))[0]
            except EOFError:
                await self._replace()
            try:
                return (await self._exchange(order))[0]
            except EOFError as error:
                raise _gone() from error

    async def _replace(self) -> None:
        """The keeper was killed: another takes over."""
        self._packets.close()
        sock = self._found(self._path)
        if sock is None:
            _log.warning("the keeper of the kernel tier is gone: another takes over")
            lists = (",".join(map(str, numbers)) for numbers in (self._held, self.unhooked))
            sock = await self._started(self._path, (OVER, *lists), self._held)
        self._packets = Packets(sock, Done)
        await self._greet()

    async def _exchange(self, order: Order) -> tuple[Done, list[int]]:
        """An order and its answer. EOFError: the keeper is gone."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._packets.send(order)
                done, fds = await self._packets.receive()
        except TimeoutError as error:
            self._packets.close()  # its answer would be taken for another's
            raise KernelError("the keeper of the kernel tier does not answer") from error
        except OSError as error:
            raise EOFError from error
        if done.error:
            raise KernelError(done.error)
        return done, fds

    @staticmethod
    def owner(*sets: int) -> TaskOwner:
        """A new owner of tasks that need these sets of hooks."""
        device = Device.open(blocking=True)
        try:
            return TaskOwner(device.own(sum(1 << each for each in sets)), device.fd)
        except OSError as error:
            device.close()
            raise KernelError(f"no owner at {PATH}: {error.strerror}") from error

    @staticmethod
    def device() -> Device:
        """A file that serves nobody: for root, who tells, and for the tracer of a process, who has
        it captured."""
        return Device.open()

    async def add(self, tid: int, policy: int, owner: int, orphan: int) -> None:
        """From now on task `tid` and its descendants are intercepted for `owner`."""
        await self._ask(Add(tid=tid, policy=policy, owner=owner, orphan=orphan))

    async def counts(self) -> dict[str, int]:
        """How often the program has decided what, and the module done what."""
        device = Device.open()
        try:
            module = {f"module_{name}": value for name, value in device.counters().items()}
        finally:
            device.close()
        return (await self._ask(Count())).counts | module

    def close(self) -> None:
        """Let go of the keeper, which ends by itself unless the next mosd comes soon."""
        self._packets.close()
        self._let_go()

    def _let_go(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held = ()


def _gone() -> KernelError:
    return KernelError("the keeper of the kernel tier is gone", hint="start mosd again")


def _last_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    with process.stderr as stream:
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:2000] if lines else ""


@contextlib.asynccontextmanager
async def chosen(choice: Choice, path: Path) -> AsyncIterator[KernelTier | None]:
    """The kernel tier, where it is wanted and possible; None: the portable one. KernelError: it
    was asked for and is not possible."""
    tier, why_not = await _choose(choice, path)
    _log.info("tier %s", "kernel" if tier else f"portable: {why_not}")
    try:
        yield tier
    finally:
        if tier is not None:
            tier.close()


async def _choose(choice: Choice, path: Path) -> tuple[KernelTier | None, str]:
    if choice == "portable":
        return None, "mosd --tier portable"
    if choice == "auto" and not PATH.exists():
        return None, "mosix.ko is not loaded"
    try:
        return await KernelTier.start(path), ""
    except KernelError as error:
        if choice == "kernel":
            raise
        return None, error.line()
