"""A job at home of which nobody wants anything: all that its deputy does most of the time.

Called by `mosix.deputy.main.run`. The deputy shares the spawner's pages until it touches them, so
this is a plain loop over a few descriptors: an event loop would cost every job two megabytes, and
its launch milliseconds. Opens are served meanwhile by the listener's own thread. Must never take a
message: whoever starts the event loop finds it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

_GONE = select.POLLHUP | select.POLLERR


def rest(calls: Sequence[int], pidfd: int, cgroup: str) -> int:
    """Returns when one of `calls` is readable, mosd has sent something or a program has asked,
    with a pidfd of a process of the job, or -1 when the job is over. `pidfd` becomes ours.
    Without mosd the job goes on."""
    waiting = select.poll()
    for call in calls:
        waiting.register(call, select.POLLIN)
    waiting.register(pidfd, select.POLLIN)
    while True:
        for fd, event in waiting.poll():
            if fd == pidfd:
                waiting.unregister(pidfd)
                os.close(pidfd)
                pidfd = pidfd_of_any(cgroup)
                if pidfd < 0:
                    return -1
                waiting.register(pidfd, select.POLLIN)
            elif event & _GONE:
                waiting.unregister(fd)
            else:
                return pidfd


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
