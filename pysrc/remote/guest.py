"""One guest: a body that runs here, stopped and resumed, given signals, sent onward.

Owned by `mosix.remote.main`, which speaks with the deputy. Everything here runs in the remote's
main thread, from which all its ptrace calls must come; the redirector's C loop has a thread of
its own. A guest is *halted* when it stands in a ptrace stop with no call in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable

from mosix.errors import CannotMoveError, KernelError, MosixError, MoveFailedError
from mosix.image import capture, restore, stream
from mosix.image.capture import ProcFiles
from mosix.image.model import Image, PendingCall
from mosix.native.agent import Agent
from mosix.native.tracee import Stop, Tracee
from mosix.native.watch import Watch
from mosix.remote import redirector as events
from mosix.remote.confine import GuestShell
from mosix.remote.notify import NotifyRedirector
from mosix.syscalls import filter as syscall_filter
from mosix.wire.messages import Cancel, GuestDied, NeedHome, ToDeputy

_PTRACE_O_EXITKILL = 1 << 20
_PR_SET_NO_NEW_PRIVS = 38
_NR_PRCTL = 157
_NR_SECCOMP = 317
_NR_CLOSE_RANGE = 436
_NR_RT_TGSIGQUEUEINFO = 297
_SECCOMP_SET_MODE_FILTER = 1
_FAULTS = frozenset({4, 5, 7, 8, 11})  # SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV
_SIGINFO_BYTES = 128
_ERESTARTSYS = -512
_ERESTART_RESTARTBLOCK = -516


class Guest:
    """The process `shell.pid`, its redirector, and what it waits for.

    `say` sends a message to the deputy."""

    def __init__(
        self, shell: GuestShell, home_pid: int, watch: Watch, say: Callable[[ToDeputy], None]
    ) -> None:
        self.shell = shell
        self.home_pid = home_pid
        self._watch = watch
        self._say = say
        self.tracee = Tracee.seize(shell.pid, _PTRACE_O_EXITKILL)
        self.agent: Agent | None = None
        self.redirector: NotifyRedirector | None = None
        self._events: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()
        self._halted = True
        #: why the guest is being halted: what a call in flight is answered with
        self._for_signal = False
        self._pending: PendingCall | None = None
        self.held = False
        self.gone = asyncio.Event()
        self.status = 0
        self._cancelled: events.Cancelled | None = None
        self._waiting_home = False

    # ---- coming in ----

    def prepare(self, prefault: list[tuple[int, int]]) -> None:
        """The agent goes into the empty process; announced memory is populated."""
        stop = self.tracee.stop()
        if stop.kind in ("exited", "killed"):
            raise KernelError("the empty guest died")
        self.agent = Agent.inject(self.tracee, prefault_ranges(prefault))
        self.agent.obey()
        self._watch.add(self.tracee, self._on_stop)

    def restore(self, bulk: socket.socket, room: int) -> Image:
        """Reads the image from `bulk` and fills the guest; called in a thread.

        `room`: bytes that the guest may have. MoveFailedError, ProtocolError."""
        agent = self.agent
        assert agent is not None
        image = stream.read_image(bulk.fileno())
        if image.page_bytes * 11 // 10 > room:
            raise MoveFailedError(
                f"not enough memory: {image.page_bytes >> 20} MiB and 10%, {room >> 20} MiB free"
            )
        number = agent.give_fd(bulk.fileno())
        restore.fill_guest(agent, image, number)
        stream.read_end(bulk.fileno(), image)
        return image

    async def confine(self, image: Image, call: socket.socket) -> None:
        """Installs the filter, starts the redirector, sets the final state: ready to run."""
        agent, tracee = self.agent, self.tracee
        assert agent is not None
        program = syscall_filter.program(home_pid=self.home_pid)
        listener = agent.install_filter(program)
        self.redirector = NotifyRedirector(
            listener=listener,
            call=call,
            pid=self.shell.pid,
            home_pid=self.home_pid,
        )
        self.redirector.injecting = True
        self._events = asyncio.create_task(self._redirector_events())
        self.redirector.start()
        agent.finish()
        self._watch.remove(tracee)
        registers, xstate, mask = restore.guest_state(tracee, image)
        agent.leave(registers, xstate, mask)
        self._pending = image.threads[0].call
        self._watch.add(tracee, self._on_stop)

    # ---- running ----

    def resume(self, *, held: bool) -> None:
        """Runs (or, `held`, will run when job control says so)."""
        self.held = held
        if not held:
            self._go()

    def hold(self, held: bool) -> None:
        if held and not self.held:
            self.held = True
            if not self._halted:
                self.tracee.interrupt()
        elif self.held and not held:
            self.held = False
            if self._halted or self.tracee.stopped:
                self._go()

    def _go(self) -> None:
        assert self.redirector is not None
        if self._pending is not None:
            self.redirector.prime(self._pending)
            self._pending = None
        self.redirector.injecting = False
        self._halted = False
        self._stopped.clear()
        self.tracee.cont()

    async def halt(self, *, for_signal: bool = False) -> None:
        """Brings the guest to a stop with no call in flight.

        A call in flight is cancelled at home and, unless it completed, rewound."""
        if self._halted:
            return
        assert self.redirector is not None
        self._for_signal = for_signal
        if not self.tracee.stopped:
            self._stopped.clear()
            self.redirector.request_stop()
            self.tracee.interrupt()
            if self._cancelled is not None:
                self._answer_cancelled()
            await self._stopped.wait()
        if self.gone.is_set():
            raise MoveFailedError("the guest died")
        self.redirector.injecting = True
        self._halted = True

    async def deliver(self, siginfo: bytes) -> None:
        """Queues a signal that home has taken from the ghost, as its own kernel would have."""
        was_halted = self._halted
        await self.halt(for_signal=True)
        (number,) = struct.unpack_from("<i", siginfo)
        with self.tracee.borrowed(_SIGINFO_BYTES) as address:
            self.tracee.write(address, siginfo)
            result = self.tracee.inject(
                _NR_RT_TGSIGQUEUEINFO, self.home_pid, self.home_pid, number, address
            )
        if result < 0:
            raise KernelError(f"queueing signal {number}: {os.strerror(-result)}")
        if not was_halted and not self.held:
            self._go()

    # ---- going out ----

    async def describe(self, epoch: int) -> Image:
        """Halts and describes the guest; it stands still until `resume` or `destroy`."""
        await self.halt()
        pagemap, mem = self.shell.open_all(("pagemap", "mem"))
        try:
            image = capture.describe(self.tracee, epoch, ProcFiles(pagemap=pagemap, mem=mem))
        finally:
            os.close(pagemap)
            os.close(mem)
        image.process.pid = self.home_pid
        if self._pending is not None:
            image.threads[0].call = self._pending
        image.process.stopped = self.held
        return image

    def send(self, image: Image, bulk: socket.socket) -> None:
        """Writes the image and its pages; called in a thread."""
        fd = bulk.fileno()
        stream.write_image(fd, image)
        capture.send_pages(self.tracee.pid, fd, image.runs)
        stream.write_end(fd, image)

    async def destroy(self) -> None:
        self._watch.remove(self.tracee)
        if self._events is not None:
            self._events.cancel()
        if self.redirector is not None:
            await self.redirector.close()
        if self.agent is not None:
            self.agent.close()
        with contextlib.suppress(MosixError):
            self.tracee.kill()
        await self.shell.destroy()

    # ---- stops of the guest ----

    def _on_stop(self, stop: Stop) -> None:
        if stop.kind in ("exited", "killed"):
            self.status = stop.status
            self.gone.set()
            self._stopped.set()
            self._say(GuestDied(status=stop.status))
        elif stop.kind == "signal":
            self._on_signal(stop)
        elif stop.kind == "event":
            self._stopped.set()
            if self._halted:
                return
            if not self._halting and not self.held:
                self.tracee.cont()
        else:
            self.tracee.cont()

    @property
    def _halting(self) -> bool:
        return self.redirector is not None and self.redirector.stopping

    def _on_signal(self, stop: Stop) -> None:
        """A signal is about to be delivered in the guest: one of ours, a fault or a CPU timer."""
        if stop.signal in _FAULTS and self.tracee.siginfo[8:12] > b"\0\0\0\0":
            caught, blocked = _handled(self.tracee.pid, stop.signal)
            if not caught or blocked:
                # It dies: at home, by its own fault, so that status and core are its own.
                self._halted = True
                if self.redirector is not None:
                    self.redirector.injecting = True
                self._say(NeedHome(reason=f"fault (signal {stop.signal})", nr=-1))
                return
        self.tracee.cont(stop.signal)

    # ---- events of the redirector ----

    async def _redirector_events(self) -> None:
        assert self.redirector is not None
        while True:
            event = await self.redirector.events.get()
            if isinstance(event, events.CancelWanted):
                self._say(Cancel(id=event.id))
            elif isinstance(event, events.Cancelled):
                self._cancelled = event
                if self._halting:
                    self._answer_cancelled()
            elif isinstance(event, events.Home):
                await self._needs_home(event)
            elif isinstance(event, events.Sleeping):
                self._interrupted_sleep(event)

    def _answer_cancelled(self) -> None:
        """The call in flight did nothing: give the guest the ghost's own restart code.

        For a move always one that rewinds; for a signal the kernel decides, as natively
        (never a restart block, which this kernel does not have: that one is EINTR)."""
        event, self._cancelled = self._cancelled, None
        assert event is not None and self.redirector is not None
        code = event.result
        if not self._for_signal:
            code = _ERESTARTSYS
            self._pending = event.pending
        elif code == _ERESTART_RESTARTBLOCK:
            code = -errno.EINTR
        self.redirector.answer(code)

    def _interrupted_sleep(self, event: events.Sleeping) -> None:
        assert self.redirector is not None
        if self._for_signal:
            self.redirector.answer(-errno.EINTR)
        else:
            self._pending = event.pending
            self.redirector.answer(_ERESTARTSYS)

    async def _needs_home(self, event: events.Home) -> None:
        assert self.redirector is not None
        self._waiting_home = True
        self._stopped.clear()
        self.tracee.interrupt()
        self.redirector.answer(_ERESTARTSYS)
        await self._stopped.wait()
        self._halted = True
        self.redirector.injecting = True
        self._say(NeedHome(reason=event.reason, nr=event.nr))


def prefault_ranges(prefault: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(start, start + size) for start, size in prefault]


def _handled(pid: int, number: int) -> tuple[bool, bool]:
    """(has a handler, is blocked) for signal `number` of `pid`."""
    bit = 1 << (number - 1)
    masks = {}
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(("SigCgt:", "SigBlk:")):
                masks[line[:6]] = int(line.split()[1], 16)
    return bool(masks["SigCgt"] & bit), bool(masks["SigBlk"] & bit)


def clock_offsets() -> tuple[int, int]:
    return (
        time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    )


__all__ = ["CannotMoveError", "Guest"]
