"""Delivers the stops of traced processes to coroutines: SIGCHLD in an asyncio loop.

Used by deputy and remote, each of which makes all its ptrace calls from the thread of its loop
(the kernel demands one thread per tracee). Code that waits for a stop itself (`Tracee.stop`,
`Tracee.inject`) may do so at any time: a stop is reported once, to whoever looks first.
It must never decide what happens to a process.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from mosix.native.stops import Stop
from mosix.native.tracee import Tracee

Handler = Callable[[Stop], None]


class Watch:
    """The tracees of this process and who handles their stops."""

    def __init__(self) -> None:
        self._handlers: dict[int, tuple[Tracee, Handler]] = {}

    def start(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.poll)
        # With thousands of stops a second the loop's pipe runs full; what is in it says enough.
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)

    def add(self, tracee: Tracee, handler: Handler) -> None:
        self._handlers[tracee.pid] = (tracee, handler)
        # The stop may have happened before anyone was there to be told.
        asyncio.get_running_loop().call_soon(self.poll)

    def remove(self, tracee: Tracee) -> None:
        self._handlers.pop(tracee.pid, None)

    def poll(self) -> None:
        """Hands every new stop to its handler; SIGCHLD coalesces, so all are looked at."""
        for pid, (tracee, handler) in list(self._handlers.items()):
            while pid in self._handlers:
                known = tracee.current
                stop = tracee.wait(block=False)
                if stop is None or (known is not None and not stop.ended):
                    break  # runs, or stands where somebody has left it on purpose
                if stop.ended:
                    self._handlers.pop(pid, None)
                handler(stop)
