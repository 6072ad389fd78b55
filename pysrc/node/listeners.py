"""The listeners of jobs at home, as those hold them who do not serve them.

A listener that nobody holds any more makes every open that its filter notifies fail with ENOSYS,
and a notification that its server took into death waits for ever. So mosd and the spawner each
hold a copy of every job's listener and of the memory that goes with it (`mosix.native.listener`);
when the deputy has died the spawner makes a survivor that serves on. mosd only holds, and gives
all of it to each new spawner; another mosd gets it from the spawner of the one that died, and from
the deputies. Nothing here may ever receive from a listener.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass


@dataclass
class Held:
    """One job's. `server`: pidfd of the process that serves it; its end makes it readable."""

    uid: int
    gid: int
    listener: int
    memory: int
    server: int

    @property
    def identity(self) -> tuple[int, int]:
        """Of the listener: each has memory of its own."""
        status = os.fstat(self.memory)
        return status.st_dev, status.st_ino

    @property
    def descriptors(self) -> list[int]:
        return [self.listener, self.memory, self.server]

    def close(self) -> None:
        for fd in self.descriptors:
            os.close(fd)


class Holder:
    """What one process holds, by listener. Readable (`fileno`) when some have no use any more."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._held: dict[int, Held] = {}
        self._identities: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        return len(self._held)

    def all(self) -> list[Held]:
        return list(self._held.values())

    def fileno(self) -> int:
        return self._epoll.fileno()

    def keep(self, held: Held) -> bool:
        """Takes over its descriptors. False: that listener is held already, they are closed."""
        if held.identity in self._identities:
            held.close()
            return False
        self._identities.add(held.identity)
        # Only the end (EPOLLHUP, always told): to be woken by each open would cost the job.
        self._epoll.register(held.listener, 0)
        self._held[held.listener] = held
        return True

    def finished(self) -> list[Held]:
        """Those that no process is left for: no longer held, to be closed by the caller."""
        found = [self._held.pop(fd) for fd, _ in self._epoll.poll(0)]
        for held in found:
            self._epoll.unregister(held.listener)
            self._identities.discard(held.identity)
        return found

    def forget(self) -> None:
        """Without closing any of them."""
        self._held.clear()
        self._epoll.close()
