"""One guest: a body that runs here, is stopped and resumed, given signals, sent onward.

Owned by `mosix.remote.main`, which speaks with the deputy. Everything here runs in the remote's
main thread, from which all its ptrace calls must come; the redirector's loop has a thread of its
own and the transfers have theirs. A guest is *halted* when it stands in a ptrace stop, no call in
flight, the redirector standing still: only then is it captured or given a signal.
It must never let the guest run while the deputy has not said so.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator

import msgspec
from mosix import failpoints
from mosix.errors import KernelError, MosixError, MoveFailedError, ProtocolError
from mosix.image import capture, pending, plans, restore, stream
from mosix.image.capture import GuestVdso, ProcFiles
from mosix.image.model import Image, PendingCall
from mosix.native import vdso
from mosix.native.agent import Agent
from mosix.native.blob import Mapped, mapped
from mosix.native.cpu import own_vdso
from mosix.native.stops import (
    ERESTARTNOINTR,
    PTRACE_EVENT_SECCOMP,
    PTRACE_O_EXITKILL,
    PTRACE_O_TRACESECCOMP,
    Stop,
)
from mosix.native.tracee import Tracee
from mosix.native.watch import Watch
from mosix.remote import deaths
from mosix.remote.clock import ClockPage
from mosix.remote.confine import GuestShell
from mosix.remote.module import Module, ModuleRedirector
from mosix.remote.notify import NotifyRedirector
from mosix.remote.redirector import (
    ERESTARTSYS,
    Asks,
    Cancelled,
    CancelWanted,
    Event,
    LinkBroken,
    NeedsHome,
    Sleeping,
    Stopped,
)
from mosix.syscalls import filter as syscall_filter
from mosix.syscalls.table import UNKNOWN
from mosix.wire.messages import Ask, CallsLost, Cancel, GuestDied, NeedHome, ToDeputy

_NR_RT_TGSIGQUEUEINFO, _NR_MUNMAP = 297, 11
_SIGINFO_BYTES = 128
#: futex, futex_waitv, futex_wait: executed here, by the kernel
_WAITING_HERE = frozenset((202, 449, 455))
#: of the instruction that makes a call: syscall, int 0x80, sysenter
_CALL_BYTES = 2
#: the files whose open may last, and in which the guest is stopped for what it asks
_LASTING = frozenset(("migrate", "localtime"))
_NEW_LISTENER, _WAIT_KILLABLE_RECV = 1 << 3, 1 << 5


class Guest:
    """The process `shell.pid`, its redirector, and what it waits for.

    `say` sends a message to the deputy. `on_broken`: a system call can never be finished.
    `foreign_vdso`: home's vdso is not this kernel's; `localtime`: its dates are this node's.
    `module`: mosix.ko takes its calls."""

    def __init__(
        self,
        shell: GuestShell,
        watch: Watch,
        say: Callable[[ToDeputy], None],
        on_broken: Callable[[], None],
        *,
        foreign_vdso: bool,
        localtime: bool,
        interface: bool = False,
        module: Module | None = None,
    ) -> None:
        self.shell = shell
        self._module = module
        self._interface = interface
        self._on_broken = on_broken
        self.home_pid = shell.home_pid
        #: CPU time that its body had used when it came
        self.cpu_before_ns = 0
        #: job control has stopped it
        self.held = False
        self._watch = watch
        self._say = say
        walled = PTRACE_O_TRACESECCOMP if module else 0
        self.tracee = Tracee.seize(shell.pid, PTRACE_O_EXITKILL | walled)
        self._agent: Agent | None = None
        #: opened when nobody waits yet: it takes milliseconds
        self._files = ProcFiles()
        self._prefaulted: list[tuple[int, int]] = []
        #: memory that a body with limits is kept from, for what we do in its process
        self._room: tuple[int, int] | None = None
        self._foreign_vdso = foreign_vdso
        theirs, ours = capture.time_offsets(str(shell.pid)), capture.time_offsets("self")
        #: the guest's boottime minus ours
        self._boottime_offset_ns = theirs[1] - ours[1]
        self.clock = ClockPage(theirs[0] - ours[0], localtime=localtime)
        self._vdso: GuestVdso | None = None
        self._begun = False
        self._redirector: NotifyRedirector | None = None
        #: the redirector's: listener and call socket
        self._descriptors: tuple[int, ...] = ()
        self._events: asyncio.Task[None] | None = None
        #: what the redirector said last and stands still with
        self._event: Event | None = None
        self._still = asyncio.Event()
        self._stopped = asyncio.Event()
        self._halting = False
        self._halted = True
        #: the redirector waits for another connection
        self._cut = False
        self._gone = False
        #: an interrupted call that the next redirector, or home, has to finish
        self._pending: PendingCall | None = None
        #: an open of /proc/self/{special} that the deputy has been asked about, or was before
        #: the guest was stopped in it
        self._asking: Asks | None = None
        self._asked: Asks | None = None
        #: the call that only home can do, and that is made again, is answered ENOSYS
        self._unsupported = False
        #: signals from home: given so far, and so many before it may see its last result
        self._given = 0
        self._owed = 0
        #: halted only until those have come
        self._owing = False
        #: RLIMIT_CPU as the program set it, and what it had used elsewhere when it came here (user
        #: and system), less what the guest had used before it (ns)
        self._cpu_limit = resource.RLIM_INFINITY, resource.RLIM_INFINITY
        self._cpu_elsewhere_ns = 0, 0
        self._tasks: set[asyncio.Task[None]] = set()

    def went_home(self) -> tuple[int, int]:
        """Calls that were made at home, and the bytes of them, since the guest is here."""
        if self._redirector is None:
            return 0, 0
        return self._redirector.calls, self._redirector.bytes

    @property
    def redirector(self) -> NotifyRedirector:
        assert self._redirector is not None
        return self._redirector

    # ---- coming in ----

    def prepare(self) -> None:
        """The agent goes into the empty process."""
        if self.tracee.stop().ended:
            raise KernelError("the empty guest died")
        self._agent = Agent.inject(self.tracee, (), way_back=False)
        self._agent.obey()
        self._watch.add(self.tracee, self._on_stop)
        pagemap, mem, auxv = self.shell.open_all(("pagemap", "mem", "auxv"))
        module = self._module.fd if self._module else -1
        self._files = ProcFiles(pagemap, mem, auxv, module)

    def prefault(self, ranges: list[tuple[int, int]]) -> None:
        """Populates announced memory, (start, size) each; called in a thread."""
        assert self._agent is not None
        wanted = [(start, start + size) for start, size in ranges]
        self._agent.relocate(wanted)
        self._prefaulted = restore.prefault(self._agent, wanted)

    def restore(self, bulk: socket.socket, room: int) -> Image:
        """Reads the image from `bulk` and fills the guest; called in a thread.

        `room`: bytes that the guest may have. MoveFailedError, ProtocolError."""
        agent = self._agent
        assert agent is not None
        image = stream.read_image(bulk.fileno(), room)
        if len(image.threads) != 1:
            raise ProtocolError(f"a body of {len(image.threads)} threads")
        if image.page_bytes * 11 // 10 > room:
            raise MoveFailedError(
                f"not enough memory: {image.page_bytes / 1e6:.0f} MB and 10%, "
                f"{room / 1e6:.0f} MB free"
            )
        number = agent.give_fd(bulk.fileno())
        clock = agent.give_fd(self.clock.fd)
        self._room = restore.fill_guest(agent, image, number, self._prefaulted, clock=clock)
        stream.read_end(bulk.fileno(), image)
        return image

    async def confine(self, image: Image, call: socket.socket) -> None:
        """Installs the filter, starts the redirector, sets the final state: ready to run.
        MoveFailedError: its calls cannot be redirected."""
        agent, tracee = self._agent, self.tracee
        assert agent is not None
        agent.finish()
        self._watch.remove(tracee)
        self._vdso = self._find_vdso(image)
        redirector: type[NotifyRedirector] = NotifyRedirector
        if self._module is None:
            calls = _install_filter(agent)
        else:
            redirector, calls = ModuleRedirector, self._module.fd
            agent.install_filter(syscall_filter.wall(self._module.unhooked), 0)
            await self._module.intercept(tracee.pid)
        self._descriptors = (calls, call.detach())
        self.clock.begin(image.header.date_ns)
        self._redirector = redirector(
            *self._descriptors,
            tracee.pid,
            self.home_pid,
            monotonic_offset_ns=self.clock.shift_ns,
            boottime_offset_ns=self._boottime_offset_ns,
            carried_ns=image.process.cpu_ns,
            interface=self._interface,
            clock=self.clock,
        )
        self.cpu_before_ns = sum(image.process.cpu_ns)
        self._redirector.start(still=True)
        self._events = asyncio.create_task(self._listen())
        with self._redirector.injecting():
            agent.leave(*restore.guest_state(image))
        self._agent = None
        self._pending = image.threads[0].call
        self._cpu_limit = image.process.rlimits.get(resource.RLIMIT_CPU, self._cpu_limit)
        self._cpu_elsewhere_ns = image.process.cpu_ns
        self._watch.add(tracee, self._on_stop)

    def renew(self, call: socket.socket) -> None:
        """Another connection for system calls, in place of one that was lost."""
        self.redirector.renew(call.detach())
        if self._cut:
            self._go_on()

    def _go_on(self) -> None:
        self._cut = False
        self.redirector.resume()
        if self._halting:  # asked for while it could not answer
            self.redirector.request_stop()

    def _find_vdso(self, image: Image) -> GuestVdso:
        """The body's memory is in place: where its vdso is, and the one that it calls."""
        found = GuestVdso.of(image, self.tracee.vdso)
        node = None if self._foreign_vdso else found.place.node[0]
        self.clock.call(vdso.node_functions(found.place.start, own_vdso(), node))
        return found

    def clock_ns(self) -> int:
        """The guest's CLOCK_MONOTONIC."""
        return capture.clocks(self.tracee.pid)[0]

    # ---- running ----

    def resume(self, *, held: bool, unsupported: bool = False) -> None:
        """Runs (or, `held`, will run when job control says so). `unsupported`: the call that it
        stands at, and that only home can do, fails with ENOSYS."""
        self.held = held
        self._unsupported = unsupported
        if not self._halted:
            return
        if self._pending is not None:
            self.redirector.prime(self._pending)
            self._pending = None
        if not self._begun:
            self._begun = True
            before_ns = capture.cpu_clock(self.tracee.pid)
            user, system = self._cpu_elsewhere_ns
            self._cpu_elsewhere_ns = user - before_ns, system
            self.redirector.body_begins(before_ns)
        self._halted = False
        self._still.clear()
        self._event = None
        self.redirector.resume()
        if not held:
            self._run()

    def hold(self, held: bool) -> None:
        """Job control at home has stopped or continued the process."""
        self.held = held
        if self._halted or self._halting or self._gone:
            return
        if held:
            self.tracee.interrupt()
        elif self.tracee.current is not None:
            self._run()

    def _run(self) -> None:
        self._stopped.clear()
        self.tracee.cont()

    async def halt(self, *, for_signal: bool = False) -> None:
        """Brings the guest to a stop with no call in flight.

        A call in flight is cancelled at home and, unless it completed, made again by the kernel:
        `for_signal` with the code that lets it choose between restart and EINTR, else rewound,
        what it had done being kept for the image. MoveFailedError: the guest is dead."""
        if self._halted:
            return
        self._halting = True
        try:
            if self.tracee.current is None:
                self._stopped.clear()
                self.tracee.interrupt()
            self.redirector.request_stop()
            await self._still.wait()
            self._settle(for_signal)
            if self.tracee.current is None:
                await self._stopped.wait()
        finally:
            self._halting = False
        if self._gone:
            raise MoveFailedError("the guest died")
        self._halted = True
        result = self.redirector.take_undelivered()
        if result is not None:  # the call is over, but the stop kept its result from the guest
            registers = self.tracee.get_registers()
            registers.rax, registers.orig_rax = result, -1
            self.tracee.set_registers(registers)
        elif not isinstance(self._event, (NeedsHome, Asks, Cancelled, Sleeping)):
            self._rewind_unnoticed()

    def _rewind_unnoticed(self) -> None:
        """A stop meets a call that the redirector has not received with -ERESTARTSYS, from which a
        handler would make EINTR: but nobody has begun that call."""
        registers = self.tracee.get_registers()
        if (
            registers.in_syscall
            and registers.result == -ERESTARTSYS
            and registers.orig_rax not in _WAITING_HERE
        ):
            registers.rax = ERESTARTNOINTR
            self.tracee.set_registers(registers)

    def cancel_was_early(self) -> None:
        """A `Cancel` reached the ghost before its request: if it still matters, once more."""
        if self._halting and not self._still.is_set():
            self.redirector.request_stop()

    def _settle(self, for_signal: bool) -> None:
        """Answers the call that the redirector holds, a ptrace stop being pending behind it."""
        event = self._event
        if isinstance(event, Cancelled):
            self._owed = event.owed
        if isinstance(event, Asks):
            self._asking = None
        if isinstance(event, (NeedsHome, Asks)):
            self.redirector.answer(ERESTARTNOINTR)
        elif isinstance(event, (Cancelled, Sleeping)):
            if for_signal or (isinstance(event, Cancelled) and event.completed):
                self.redirector.finish()
            else:
                self._pending = event.pending()
                self.redirector.answer(ERESTARTNOINTR)
        elif isinstance(event, LinkBroken):
            raise MoveFailedError("the connection for system calls was lost")

    async def deliver(self, siginfo: bytes) -> None:
        """Queues a signal that home has taken from the ghost, as its own kernel would have.

        Only the process itself may queue siginfo of the kernel's own kinds."""
        stays = self._halted and not self._owing
        await self.halt(for_signal=True)
        failpoints.hit("remote.halted")
        if self._pending is not None and self._pending.code:
            pending.enter(self.tracee, self._pending, self.clock_ns())
            self._pending = None
        (number,) = struct.unpack_from("<i", siginfo)
        with (
            self.redirector.injecting(),
            self._with_room(),
            self.tracee.scratch(_SIGINFO_BYTES) as address,
        ):
            self.tracee.write(address, siginfo)
            result = self.tracee.inject(
                _NR_RT_TGSIGQUEUEINFO, self.home_pid, self.home_pid, number, address
            )
        if result < 0:
            raise KernelError(f"queueing signal {number}: {os.strerror(-result)}")
        self._given += 1
        self.redirector.given(self._given)
        self._owing = not stays and self._given < self._owed
        if not stays and not self._owing:
            self.resume(held=self.held)

    # ---- going out ----

    async def describe(self, epoch: int) -> Image:
        """Halts and describes the guest; it stands still until `resume` or `destroy`."""
        await self.halt()
        self._owing = False
        with self.redirector.injecting(), self._with_room():
            image = capture.describe(
                self.tracee, epoch, files=self._files, guest=self._vdso, call=self._pending
            )
        image.header = msgspec.structs.replace(image.header, date_ns=self.clock.date_ns())
        image.process.cpu_ns = self.redirector.cpu_ns()
        image.process.rlimits[resource.RLIMIT_CPU] = self._cpu_limit  # the guest's is lower
        image.process.pid = image.threads[0].tid = self.home_pid
        image.process.stopped = self.held
        return image

    @contextlib.contextmanager
    def _with_room(self) -> Iterator[None]:
        """Inside, there is memory for an injected call even if the body has used up its own."""
        room = self._room
        if room is None or Mapped(*room, "") not in mapped(self.tracee.pid):
            yield  # not limited; or the program has unmapped what it did not know
            return
        self.tracee.inject(_NR_MUNMAP, room[0], room[1] - room[0])
        try:
            yield
        finally:
            if self.tracee.alive:
                nr, args = plans.reservation(room)
                self.tracee.inject(nr, *args)

    def send(self, image: Image, bulk: socket.socket) -> None:
        """Writes the image and its pages; called in a thread."""
        fd = bulk.fileno()
        stream.write_image(fd, image)
        failpoints.hit("remote.sending", bulk)
        capture.send_pages(self.tracee.pid, fd, image.runs, self._files)
        stream.write_end(fd, image)

    async def destroy(self) -> None:
        """Kills the guest and everything made for it; nothing is left."""
        self._watch.remove(self.tracee)
        for task in (*self._tasks, *([self._events] if self._events else [])):
            task.cancel()
        await self.shell.destroy()
        if self._redirector is not None:
            self._redirector.close()
        self._files.close()
        self.clock.close()
        for fd in self._descriptors:
            os.close(fd)
        if self._agent is not None:
            self._agent.close()

    # ---- stops of the guest ----

    def _on_stop(self, stop: Stop) -> None:
        if stop.ended:
            self._gone = True
            self._stopped.set()
            self._still.set()
            self._say(GuestDied(status=stop.wait_status))
        elif stop.kind == "signal":
            self._on_signal(stop)
        elif stop.kind == "event" and stop.event == PTRACE_EVENT_SECCOMP:
            self._on_wall()
        elif stop.quiet:
            self._stopped.set()
            if not self._halting and not self.held:
                self._run()
        else:
            self.tracee.cont()

    def _on_signal(self, stop: Stop) -> None:
        """A signal is about to be taken in the guest: one from home, a fault or a CPU timer."""
        tracee = self.tracee
        reason = deaths.reason_to_go_home(
            tracee, stop.signal, self._cpu_limit[1], lambda: sum(self.cpu_ns() or ())
        )
        if reason is None:
            tracee.cont(stop.signal)
            return
        deaths.stop_before(tracee, stop.signal)
        self._stopped.set()
        self._spawn_need_home(reason, -1)

    def _on_wall(self) -> None:
        """It is about to make a call that the module does not take: only home can do it."""
        tracee = self.tracee
        registers = tracee.get_registers()
        nr = registers.orig_rax
        registers.orig_rax = -1  # not made here
        if self._unsupported:
            self._unsupported = False
            registers.rax = -errno.ENOSYS
            tracee.set_registers(registers)
            tracee.cont()
            return
        registers.rip -= _CALL_BYTES
        registers.rax = nr
        tracee.set_registers(registers)
        if not tracee.stop().ended:
            self._stopped.set()
            self._spawn_need_home(UNKNOWN, nr)

    def leave(self, reason: str) -> None:
        """This node has no memory for it, or no more: it stops and goes home. While it is filled
        it cannot, and then home is told when it may run."""
        self._spawn_need_home(reason, -1)

    def cpu_ns(self) -> tuple[int, int] | None:
        """User and system time of the body on all nodes, nearly as `NotifyRedirector.cpu_ns`, but
        while it runs; None: it does not yet, or no more."""
        if not self._begun or self._gone:
            return None
        try:
            user, system = capture.cpu_time(self.tracee.pid)
        except OSError:
            return None
        return max(0, self._cpu_elsewhere_ns[0] + user), self._cpu_elsewhere_ns[1] + system

    def _spawn_need_home(self, reason: str, nr: int) -> None:
        task = asyncio.create_task(self._need_home(reason, nr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _need_home(self, reason: str, nr: int) -> None:
        try:
            await self.halt()
        except MosixError:
            return  # dead, or its link is: the deputy learns that by other ways
        self._say(NeedHome(reason=reason, nr=nr))

    # ---- events of the redirector ----

    async def _listen(self) -> None:
        redirector = self.redirector
        while True:
            event = await redirector.events.get()
            if isinstance(event, CancelWanted):
                self._say(Cancel(id=event.id))
                continue
            if isinstance(event, LinkBroken) and event.error not in (errno.EPROTO, errno.ENOMEM):
                self._cut = True
                if redirector.renewed:
                    self._go_on()
                else:
                    self._say(CallsLost())
                continue
            if isinstance(event, Asks) and event.name not in _LASTING:
                # Whoever stops the guest waits until it is told, so that nothing is done twice.
                self._ask(event)
                continue
            self._event = event
            self._still.set()
            if isinstance(event, LinkBroken):
                self._on_broken()
            if self._halting or self._halted:
                continue
            if isinstance(event, Asks):
                self._ask(event)
            elif isinstance(event, NeedsHome) and self._unsupported:
                self._refuse()
            elif isinstance(event, NeedsHome):
                self._spawn_need_home(event.reason, event.call.nr)
            elif isinstance(event, Stopped):  # asked for by a halt that is over
                self._still.clear()
                redirector.resume()

    # ---- what the program says to mosix ----

    def _ask(self, event: Asks) -> None:
        self._asking = event
        again, self._asked = event == self._asked, event
        self._say(Ask(name=event.name, flags=event.flags, value=event.value, again=again))

    def told(self, result: int) -> None:
        """The deputy's answer. To a guest that has been stopped in its call meanwhile it means
        nothing: it asks again."""
        event, self._asking = self._asking, None
        if event is None:
            return
        self._asked = None
        self.redirector.answer(result)
        if self._halting:
            self._event = Stopped()
            self._still.set()
        else:
            self._still.clear()
            self._event = None
            self.redirector.resume()

    def _refuse(self) -> None:
        """The call that only home can do is made again, and there is no way home."""
        self._unsupported = False
        self.redirector.answer(-errno.ENOSYS)
        self._still.clear()
        self._event = None
        self.redirector.resume()


def _install_filter(agent: Agent) -> int:
    """The generated filter, with the kind of listener that this kernel has."""
    program = syscall_filter.program()
    try:
        return agent.install_filter(program, _NEW_LISTENER | _WAIT_KILLABLE_RECV)
    except KernelError:
        # Before Linux 5.19: the redirector then keeps results that a signal got in the way of.
        return agent.install_filter(program, _NEW_LISTENER)
