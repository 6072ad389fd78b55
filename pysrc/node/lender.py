"""Memory that a node lends: no guest gets more than it was promised, and the node's own come first.

Used by `mosix.node.guests`. A `Loan` is one guest's: near its limit the guest is stopped, not
killed, and goes home; `Shortage` finds out when the node itself runs short and which guest must go
then. Kernels are faster than this process: should memory be gone before anybody is home, they kill
a guest first (native/guest.c: oom_score_adj), never a process of the node. Nothing here may wait
for a guest or its home.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable, Iterable
from typing import Protocol

from mosix.errors import KernelError
from mosix.remote.cgroup import Cgroup

#: A part of a guest's limit, and its bounds in bytes: so much before the limit it has to go, and
#: so much it gets at the end so that it can stop and be sent.
_RESERVE_PART = 16
_LEAST_RESERVE, _MOST_RESERVE = 2 << 20, 64 << 20

#: Below this part of its memory, within these bounds in bytes, a node takes back what it lent.
_SHORT_PART = 32
_LEAST_SHORT, _MOST_SHORT = 32 << 20, 256 << 20
#: How often a node looks, and for how long the last guest that was sent home is waited for, s.
PERIOD_S = 0.5
_PATIENCE_S = 5.0


def reserve_of(limit: int) -> int:
    """Bytes; see `_RESERVE_PART`."""
    return min(max(limit // _RESERVE_PART, _LEAST_RESERVE), _MOST_RESERVE)


class Loan:
    """The memory of one guest, in `group`. `short` is called when it comes near its limit."""

    def __init__(self, group: Cgroup, limit: int, short: Callable[[], None]) -> None:
        self._limit = limit
        self._short = short
        self._version, self._directory = group.memory_directory()
        self._reserve = reserve_of(limit)
        self._fd = -1
        self._file = -1

    def watch(self) -> None:
        """KernelError, OSError: this cgroup cannot be watched."""
        if self._version == 1:
            self._watch_v1()
        else:
            self._watch_v2()
        asyncio.get_running_loop().add_reader(self._fd, self._look)
        self._look()

    def _watch_v1(self) -> None:
        # Who is at the limit waits in the kernel until there is more, and others are told.
        self._set("memory.oom_control", 1)
        self._set("memory.swappiness", 0)
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for name, at in (
            ("memory.oom_control", ""),
            # In a system call nobody waits: it would fail.
            ("memory.usage_in_bytes", f" {self._limit - self._reserve}"),
        ):
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._set("cgroup.event_control", f"{self._fd} {fd}{at}")
            finally:
                os.close(fd)

    def _watch_v2(self) -> None:
        # Above `high` the kernel lets a process sleep after each piece it takes.
        self._set("memory.high", self._limit - self._reserve)
        with contextlib.suppress(KernelError):  # no swap is accounted here
            self._set("memory.swap.max", 0)
        self._file = os.open(self._directory / "memory.events", os.O_RDONLY | os.O_CLOEXEC)
        with select.epoll() as poll:
            poll.register(self._file, select.EPOLLPRI)
            self._fd = os.dup(poll.fileno())
        os.set_inheritable(self._fd, False)

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # v2's is read below, and a cgroup may be gone
            if self._version == 1:
                os.eventfd_read(self._fd)
            else:
                os.pread(self._file, 4096, 0)
        if self.used() >= self._limit - self._reserve:
            self._short()

    def used(self) -> int:
        """Bytes; 0 when the guest is gone."""
        name = "memory.usage_in_bytes" if self._version == 1 else "memory.current"
        try:
            return int((self._directory / name).read_text())
        except OSError:
            return 0

    def let_it_go(self) -> None:
        """It has been told to stop, and will do nothing else with what it gets now."""
        with contextlib.suppress(KernelError):  # it is gone
            if self._version == 1:
                self._set("memory.limit_in_bytes", self._limit + self._reserve)
            else:
                self._set("memory.high", "max")

    def _set(self, name: str, value: int | str) -> None:
        path = self._directory / name
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, str(value).encode("ascii"))
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(f"cannot write {value!r} to {path}: {error.strerror}") from error

    def close(self) -> None:
        """Before the cgroup is removed."""
        for fd in (self._fd, self._file):
            if fd >= 0:
                if fd == self._fd:
                    asyncio.get_running_loop().remove_reader(fd)
                os.close(fd)
        self._fd = self._file = -1


class Node(Protocol):
    """The memory of this node (`mosix.remote.cgroup.Cgroup`)."""

    def available(self) -> int: ...

    def memory_total(self) -> int: ...


class Borrower(Protocol):
    """A guest (`mosix.node.guests.RemoteLink`)."""

    def memory_used(self) -> int: ...

    def send_home(self, reason: str) -> None: ...


class Shortage:
    """`run` sends guests home, the largest first and one after the other, while `node` is short."""

    def __init__(
        self,
        node: Node,
        guests: Callable[[], Iterable[Borrower]],
        name: str,
        lends: Callable[[], bool] = lambda: True,
    ) -> None:
        """`lends`: whether there is anybody who is a guest, or may become one; while there is none
        nothing is looked at until `lent`."""
        self._node = node
        self._guests = guests
        self._reason = f"node {name} needs its memory"
        self._asked: dict[int, float] = {}
        self._lends = lends
        self._lent = asyncio.Event()

    def lent(self) -> None:
        """Somebody comes: from now on there is something to look after."""
        self._lent.set()

    def floor(self) -> int:
        """Bytes that must be free."""
        return min(max(self._node.memory_total() // _SHORT_PART, _LEAST_SHORT), _MOST_SHORT)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._lends():
                self._lent.clear()
                await self._lent.wait()
            await asyncio.sleep(PERIOD_S)
            self.look(loop.time())

    def look(self, now: float) -> None:
        """Once."""
        guests = {id(guest): guest for guest in self._guests()}
        self._asked = {key: end for key, end in self._asked.items() if key in guests}
        if not guests or self._node.available() >= self.floor():
            return
        if any(now < end for end in self._asked.values()):
            return  # it is on its way
        # Who could not go is asked again when all have been.
        if len(self._asked) == len(guests):
            self._asked.clear()
        key, guest = max(
            ((key, guest) for key, guest in guests.items() if key not in self._asked),
            key=lambda item: item[1].memory_used(),
        )
        self._asked[key] = now + _PATIENCE_S
        guest.send_home(self._reason)
