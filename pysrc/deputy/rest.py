"""A job at home of which nobody wants anything: all that its deputy does most of the time.

Called by `mosix.deputy.main.run`. The deputy shares the spawner's pages until it touches them, so
this is a plain loop over a few descriptors: an event loop would cost every job two megabytes, and
its launch milliseconds. Opens are served meanwhile by the listener's own thread. Must never take a
message: whoever starts the event loop finds it.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Sequence

from mosix.wire.adoption import PAUSE_S

_GONE = select.POLLHUP | select.POLLERR


def rest(
    node: socket.socket,
    others: Sequence[int],
    pidfd: int,
    cgroup: str,
    back: Callable[[], socket.socket | None],
) -> tuple[socket.socket, int]:
    """Returns when mosd has sent something or one of `others` is readable, a program having
    asked, with the socket to mosd and a pidfd of a process of the job, or -1 when the job is over.
    `pidfd` becomes ours. Without mosd the job goes on; `back` looks for another."""
    waiting = select.poll()
    for call in (node.fileno(), *others):
        waiting.register(call, select.POLLIN)
    waiting.register(pidfd, select.POLLIN)
    gone = False
    while True:
        ready = waiting.poll(PAUSE_S * 1000 if gone else None)
        if gone and not ready and (found := back()) is not None:
            node.close()
            node, gone = found, False
            waiting.register(node, select.POLLIN)
        for fd, event in ready:
            if fd == pidfd:
                waiting.unregister(pidfd)
                os.close(pidfd)
                pidfd = pidfd_of_any(cgroup)
                if pidfd < 0:
                    return node, -1
                waiting.register(pidfd, select.POLLIN)
            elif event & _GONE:
                waiting.unregister(fd)
                gone = gone or fd == node.fileno()
            else:
                return node, pidfd


def members(cgroup: str) -> list[int]:
    """PIDs of the job's processes; none when the cgroup is gone."""
    try:
        fd = os.open(f"{cgroup}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    with open(fd, encoding="ascii") as file:
        return [int(line) for line in file]


def pidfd_of_any(cgroup: str) -> int:
    """-1 when the job has no process any more."""
    while pids := members(cgroup):
        for pid in pids:
            try:
                return os.pidfd_open(pid)
            except ProcessLookupError:
                continue
    return -1
