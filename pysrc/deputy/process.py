"""One process of a job, as its deputy sees it: where it is, and what happens to its ghost.

The moves themselves are in `mosix.deputy.moves`; this module holds the state between moves,
handles the ghost's stops (signals, job control, death) and what a remote says unasked.
Everything here runs in the deputy's one thread, from which all its ptrace calls must come.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import socket
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Protocol

from mosix import failpoints
from mosix.deputy import signals
from mosix.deputy.cputime import CpuTime
from mosix.deputy.link import RemoteLink, Unasked
from mosix.deputy.signals import Fate
from mosix.errors import MosixError
from mosix.native.agent import Agent
from mosix.native.listener import Listener
from mosix.native.stops import StillAsleepError, Stop
from mosix.native.tracee import Tracee
from mosix.wire.attributes import ENOSYS_WITH_MESSAGE, KILL, JobAttributes
from mosix.wire.messages import (
    Ask,
    CallsLost,
    Cancel,
    Cancelled,
    GuestDied,
    Hold,
    NeedHome,
    Needs,
    NodeFeatures,
    Resume,
    Signal,
    Token,
    Used,
)
from mosix.wire.mosd_messages import ProcessState

if TYPE_CHECKING:
    from mosix.image.capture import ProcFiles
    from mosix.native.watch import Watch

#: How long a process stays at home before it goes back to the last ordered node, in seconds.
FIRST_RETURN = 1.0
#: The same for a program that was launched at another node: first of all its dynamic loader maps
#: the libraries, which is over in a moment.
LAUNCH_RETURN = 0.05
LAST_RETURN = 60.0


def next_return(after: float) -> float:
    """How long it stays the next time, in seconds, when it has stayed `after`."""
    return min(2 * after, LAST_RETURN)


_RESTART_CODES = frozenset({-512, -513, -514, -516, -4})
_ERESTARTNOINTR = -513
_CANCEL_RETRY = 0.001
#: How long all processes of the job wait for one to stop, in seconds.
PATIENCE = 0.05
#: Questions of a guest that are being answered at once. It waits for the answer to one; of those
#: that it has withdrawn, because a signal came, some may still wait for a move to end.
_MAX_ASKED = 16


class Place(enum.Enum):
    HOME = "home"
    MOVING = "moving"
    AWAY = "away"
    ENDED = "ended"


class Home(Protocol):
    """What a process needs of its deputy."""

    watch: Watch

    @property
    def here(self) -> str: ...

    @property
    def features(self) -> NodeFeatures: ...

    @property
    def grace_s(self) -> int: ...

    async def reconnect(self, process: JobProcess, link: RemoteLink) -> None: ...

    def forsake(self, process: JobProcess, link: RemoteLink) -> None: ...

    def later(self, work: Coroutine[object, object, None]) -> None:
        """Done beside everything else; the deputy does not end before."""
        ...

    @property
    def interface(self) -> bool:
        """Whether there are the files /proc/self/{special}."""
        ...

    @property
    def listener(self) -> Listener | None:
        """Of the filter that mosrun installed."""
        ...

    @property
    def files(self) -> ProcFiles:
        """What a process of the job is captured by, besides what its deputy may open."""
        ...

    @property
    def filters(self) -> int:
        """How many seccomp filters each process had before its program began."""
        ...

    def ask_again(self, pid: int, stopping: bool) -> None: ...

    def settle(self) -> None:
        """Every process of the job gets its record: what changes now is not inherited."""
        ...

    async def answer(self, process: JobProcess, ask: Ask) -> None: ...

    def complain(self, ip: str, what: str) -> None:
        """The remote on node `ip` does what none of ours does: mosd counts that."""
        ...

    @property
    def date_ahead_ns(self) -> int: ...

    async def dial(
        self, ip: str, purposes: tuple[str, ...], pid: int, epoch: int, token: Token | None
    ) -> tuple[Token, list[socket.socket]]: ...

    def report(self, state: ProcessState) -> None: ...

    def tell_user(self, text: str) -> None: ...

    async def come_home(self, process: JobProcess) -> None: ...

    async def leave(self, process: JobProcess, ip: str) -> None: ...


class JobProcess:
    """Process `pid` of the job. `moves` serialises its moves."""

    def __init__(
        self, home: Home, pid: int, attributes: JobAttributes, *, nmigs: int = 0, started: int = 0
    ) -> None:
        self.home = home
        self.pid = pid
        #: as in /proc/PID/stat: tells it from another one that got its number
        self.started = started
        self.attributes = attributes
        self.place = Place.HOME
        self.epoch = 0
        #: moves of it and, before it was born, of its ancestors in the job
        self.nmigs = nmigs
        #: questions of its program so far, and the errno of a migrate whose call was stopped
        self.asks = 0
        self.failed_migrate = 0
        #: how many of its guest's are being answered, and the newest of those that are too many
        self._answering = 0
        self._unanswered: Ask | None = None
        self.why = ""
        self.link: RemoteLink | None = None
        self.tracee: Tracee | None = None
        self.agent: Agent | None = None
        #: in group stop: the guest, or the body once it is home, must not run
        self.held = False
        #: since a move began, its guest has been heard to stand still
        self.guest_halts = False
        self.moves = asyncio.Lock()
        self.page_bytes = 0
        #: what the body took of its node when it last left home
        self.needs = Needs()
        self.freeze_ns = 0
        self.cpu_time = CpuTime(pid, home.listener)
        #: calls served for bodies that have come home since
        self.calls_before = 0
        self.ordered: str | None = None
        self._return_after = FIRST_RETURN
        self._returning: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._signals = 0
        #: where mosd was told that it is
        self._told_at = "home"
        #: why the body must come home, until it has
        self._needs: NeedHome | None = None
        #: the request to be cancelled when the ghost, which sleeps too deeply, wakes up
        self._cancelling: int | None = None
        self._cancel_again: asyncio.TimerHandle | None = None
        self._guest_is_dead = False
        #: siginfo of signals that wait for the next guest, and of those that wait for home
        self.postponed: list[bytes] = []
        self.at_home: list[bytes] = []

    # ---- what others see ----

    def report(self) -> None:
        fixed = {Place.HOME: "home", Place.MOVING: "moving", Place.ENDED: "home"}.get(self.place)
        where = fixed or (self.link.ip if self.link else "home")
        origin = ""
        if self.place in (Place.HOME, Place.AWAY) and where != self._told_at:
            origin, self._told_at = self._told_at, where
        self.home.report(
            ProcessState(
                pid=self.pid,
                where=where,
                nmigs=self.nmigs,
                why=self.why[:2000],
                epoch=self.epoch,
                stats={
                    "calls": self.calls,
                    "page_bytes": self.page_bytes,
                    "freeze_ns": self.freeze_ns,
                    "cpu_away_ms": int(1000 * self.cpu_time.away_s),
                },
                attributes=self.attributes,
                ended=self.place is Place.ENDED,
                origin=origin,
                token=self.link.token if self.link and self.place is Place.AWAY else None,
            )
        )

    @property
    def calls(self) -> int:
        """System calls redirected home so far."""
        now = 0
        if self.agent is not None and self.place is Place.AWAY:
            try:
                now = self.agent.calls_served()
            except (OSError, MosixError):
                now = 0
        return self.calls_before + now

    def arm_agent(self) -> None:
        """Tests only: the agent's failpoints are the deputy's to set."""
        if self.agent is not None and self.place is Place.AWAY:
            self.agent.arm(failpoints.taken("agent."))

    # ---- the ghost's stops ----

    def on_stop(self, stop: Stop) -> None:
        """A stop of the ghost that no move was waiting for."""
        try:
            self._on_stop(stop)
        except (MosixError, OSError) as error:
            # Stopped it would hang for ever. It may also have been killed: the watch tells.
            if self.tracee is not None and not self.tracee.dying:
                self.lose_at_home(error)

    def _on_stop(self, stop: Stop) -> None:
        tracee = self.tracee
        if stop.ended:
            self.end()
        elif tracee is None:
            return
        elif self._cancelling is not None and not stop.ended:
            # A signal's stop has swallowed the interrupt, so it is asked again; the agent's own
            # answer must not come before the deputy has looked at the call.
            identity, self._cancelling = self._cancelling, None
            agent = self.agent
            if stop.kind != "event" or agent is None or agent.paused or agent.obeying:
                self.on_stop(stop)
            self.cancel(identity)  # which does nothing in a move
        elif stop.kind == "signal":
            tracee.cont(self.take_signal(stop))
        elif stop.kind == "group":
            self.held = True
            if self.link is not None and self._guest_runs():
                self.link.post(Hold(held=True))
                tracee.listen()
            else:
                tracee.cont()  # the agent has to move on; the stop is kept by the kernel
        elif stop.kind == "event":
            # Only the end of a group stop comes here: moves wait for their own interrupts.
            if self.held and self.link is not None and self._guest_runs():
                self.link.post(Hold(held=False))
            self.held = False
            tracee.cont()
        else:
            tracee.cont()

    def _guest_runs(self) -> bool:
        """Also when a move has begun, until its guest has met the freeze."""
        agent = self.agent
        serves = agent is not None and not agent.paused and not agent.obeying
        moves = self.place is Place.MOVING and serves and not self.guest_halts
        return self.place is Place.AWAY or moves

    def take_signal(self, stop: Stop) -> int:
        """The ghost is about to take `stop.signal`: what it is given instead (0: nothing)."""
        tracee, agent, link = self.tracee, self.agent, self.link
        assert tracee is not None
        caught, ignored = signals.dispositions(self.pid)
        fate = signals.decide(
            stop.signal, caught=caught, ignored=ignored, core_limit=signals.core_limit(self.pid)
        )
        if fate is Fate.TAKE or link is None or agent is None:
            return stop.signal
        if fate is Fate.FORWARD and self._met_temporary_mask(tracee, agent):
            # Only at home is there a kernel that has both masks: the call is made there again,
            # the signal waits for it, and the handler runs as natively.
            self.at_home.append(tracee.siginfo)
            self.why = "home: a signal came while it waited with a temporary signal mask"
            self._interrupted(tracee, agent, by_signal=False)
            self.spawn(self._come_home())
        elif fate is Fate.FORWARD:
            # Behind a freeze order the guest's queue has been read already: the signal goes to
            # whoever runs the body next.
            self.postponed.append(tracee.siginfo)
            agent.count_signal()
            failpoints.hit("deputy.signal", *link.sockets)
            if self.place is Place.AWAY:
                self.forward_postponed()
            self._interrupted(tracee, agent, by_signal=True)
        elif fate is Fate.HOME_FIRST:
            self.at_home.append(tracee.siginfo)
            self.why = f"home: dies by {signals.name(stop.signal)}"
            self.spawn(self._come_home())
        return 0

    def _met_temporary_mask(self, tracee: Tracee, agent: Agent) -> bool:
        """The signal has interrupted a call like sigsuspend, or came with one that has."""
        if not agent.state().masked:
            return False
        registers = tracee.get_registers()
        interrupted = registers.in_syscall and registers.result in _RESTART_CODES
        return registers.rip == agent.call_return and (interrupted or bool(self.at_home))

    def count_move(self) -> None:
        """A move has succeeded; the process is told by the signal that it has asked for."""
        self.home.settle()
        self.nmigs += 1
        self.failed_migrate = 0
        self._needs = None
        if self.attributes.sigmig:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self.attributes.sigmig)

    def keep_signal(self, stop: Stop) -> bool:
        """The ghost, about to be paused, meets a signal: one for a handler waits here for whoever
        runs the body next. In a queue it would overtake those that the guest still has."""
        assert self.tracee is not None
        caught, _ = signals.dispositions(self.pid)
        if not caught >> (stop.signal - 1) & 1:
            return False
        self.postponed.append(self.tracee.siginfo)
        return True

    def forward_postponed(self) -> None:
        """Sends what waits for a guest that can take it."""
        assert self.link is not None
        self.post_postponed(self.link)
        self.postponed.clear()

    def post_postponed(self, link: RemoteLink) -> int:
        """How many; they still wait, for this guest may never run."""
        for siginfo in self.postponed:
            self._signals += 1
            link.post(Signal(seq=self._signals, siginfo=siginfo))
        return len(self.postponed)

    def _interrupted(self, tracee: Tracee, agent: Agent, *, by_signal: bool) -> None:
        """The ghost was stopped while it executed a call: what its reply shall say.

        A call that did nothing is replied to with the kernel's own code. One that is over is
        marked when a signal waits behind it: the guest must take that before it sees the result."""
        registers = tracee.get_registers()
        if registers.rip == agent.call_return and registers.in_syscall:
            if registers.result in _RESTART_CODES:
                agent.mark_cancelled(registers.result)
                return
        elif registers.rip == agent.call_return - 2 and not registers.in_syscall:
            agent.mark_cancelled(_ERESTARTNOINTR)
            return
        if by_signal and agent.state().current_id:
            agent.mark_overtaken()

    def cancel(self, identity: int) -> None:
        """The remote waits for request `identity` to be interrupted."""
        tracee, agent, link = self.tracee, self.agent, self.link
        if tracee is None or agent is None or link is None or self.place is Place.ENDED:
            return
        if agent.paused or agent.obeying:
            return  # the guest is halted: what it waited for is over
        self.guest_halts = self.place is Place.MOVING
        try:
            stop = tracee.stop(on_signal=self.take_signal, patience_s=PATIENCE)
        except StillAsleepError:
            self._cancelling = identity  # `on_stop` goes on, and others are served meanwhile
            return
        if stop.ended:
            self.end()
            return
        if agent.state().current_id != identity:
            link.post(Cancelled(id=identity))
        else:
            at_call = tracee.get_registers().rip - agent.call_return
            if at_call in (0, -2):
                self._interrupted(tracee, agent, by_signal=False)
            else:  # between receiving the request and making the call, or behind it
                if self._cancel_again is not None:
                    self._cancel_again.cancel()
                loop = asyncio.get_running_loop()
                self._cancel_again = loop.call_later(_CANCEL_RETRY, self.cancel, identity)
        tracee.cont()

    # ---- what a remote says unasked ----

    def on_unasked(self, link: RemoteLink, message: Unasked) -> None:
        if link is not self.link or self.place is Place.ENDED:
            return
        if isinstance(message, Cancel):
            self.cancel(message.id)
        elif isinstance(message, Ask):
            self._ask(message)
        elif isinstance(message, NeedHome):
            if message.evicted and self.ordered == link.ip:
                self.order(None)
            wanted = self._needs is not None
            if wanted and message.nr < 0:
                return  # it comes already, for a call that waits for it
            self.why = f"home: {message.reason}"
            self._needs = message
            if not wanted:
                self.spawn(self._come_home())
        elif isinstance(message, Used):
            self.cpu_time.used_away(message.cpu_ns)
        elif isinstance(message, GuestDied):
            self._guest_died(message.status)
        elif isinstance(message, CallsLost) and self.tracee is not None and not self.tracee.dying:
            link.cut()

    def _ask(self, ask: Ask) -> None:
        if self._answering < _MAX_ASKED:
            self._answering += 1
            self.spawn(self._answer(ask))
            return
        # The guest waits for no other than the newest.
        self.asks += 1
        self._unanswered = ask
        if self.link is not None:
            self.home.complain(self.link.ip, "its guest asks and does not wait for the answer")

    async def _answer(self, ask: Ask) -> None:
        try:
            asked: Ask | None = ask
            while asked is not None:
                await self.home.answer(self, asked)
                asked, self._unanswered = self._unanswered, None
        finally:
            self._answering -= 1

    def on_down(self, link: RemoteLink) -> None:
        """The connections to the guest were lost, perhaps not for good."""
        if link is self.link and self.place is not Place.ENDED:
            self.spawn(self.home.reconnect(self, link))

    def lose(self, reason: str) -> None:
        """The body is lost for good: the process ends, and the user is told why."""
        if self.place is Place.ENDED:
            return
        self.why = reason
        self.home.tell_user(f"process {self.pid} ended: {reason}")
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.end()

    def lose_at_home(self, error: MosixError | OSError) -> None:
        """This node could not do its part."""
        why = error.message if isinstance(error, MosixError) else os.strerror(error.errno or 0)
        self.lose(f"home, node {self.home.here}, cannot go on with it: {why.lower()}")

    def _guest_died(self, status: int) -> None:
        """The guest ended without an exit call: the ghost ends the same way."""
        if self._guest_is_dead:
            return
        self._guest_is_dead = True
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else int(signal.SIGKILL)
        self.why = f"the guest died by {signals.name(number)}"
        self.home.tell_user(f"process {self.pid}: {self.why} on node {self.link and self.link.ip}")
        try:
            if number in signal.valid_signals():
                os.kill(self.pid, number)
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.end()

    def drop(self, link: RemoteLink) -> None:
        """The guest there is not wanted any more; `link` ends, and nothing waits for that."""
        if link.broke and link.epoch is None:  # else it was said when the body was lost by it
            self.home.complain(link.ip, link.broke)
        self.home.later(self._dismiss(link))

    async def _dismiss(self, link: RemoteLink) -> None:
        if not await link.dismiss():
            self.home.forsake(self, link)

    def end(self) -> None:
        """The process is dead, whoever killed it."""
        if self.place is Place.ENDED:
            return
        self.place = Place.ENDED
        self.cpu_time.stop()
        if self._returning is not None:
            self._returning.cancel()
        if self.link is not None:
            link, self.link = self.link, None
            self.drop(link)
        if self.tracee is not None:
            self.home.watch.remove(self.tracee)
            self.tracee = None
        if self.agent is not None:
            self.agent.close()
            self.agent = None
        self.report()

    # ---- going back ----

    def spawn(self, coroutine: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _come_home(self) -> None:
        """For a fault, or before a call which only home can do."""
        while True:
            async with self.moves:
                if self.place is not Place.AWAY or (self._needs is None and not self.at_home):
                    return
                epoch, link = self.epoch, self.link
                try:
                    await self.home.come_home(self)
                    break
                except MosixError as error:
                    if self.place is not Place.AWAY:
                        return
                    if link is None or not link.down:
                        self._cannot_come_home(error, resumed=self.epoch != epoch)
                        return
            await link.until_up()
        self.go_back_later()

    def _cannot_come_home(self, error: MosixError, *, resumed: bool) -> None:
        """The guest cannot go on before its call: unsupportok says what becomes of it."""
        needs, ok = self._needs, self.attributes.unsupportok
        if needs is not None and needs.evicted and not self.at_home:
            # It waits for nothing there: if it stood still at all it runs again.
            self._needs = None
            self.why = f"stays: {needs.reason}, but it could not come home: {error.message}"
            self.report()
            return
        if needs is None or not self._may_refuse:
            self.lose(f"it could not come home: {error.message}")
            return
        self.why = f"away: {needs.reason}, but it could not come home: {error.message}"
        if ok == ENOSYS_WITH_MESSAGE:
            self.home.tell_user(
                f"process {self.pid}: {needs.reason}: not supported on node "
                f"{self.link and self.link.ip}, and it could not come home: {error.message}"
            )
        if not resumed and self.link is not None:
            self.resume_guest(self.link)
        self._needs = None
        self.report()

    @property
    def _may_refuse(self) -> bool:
        """Whether the guest stands before a call that may fail instead of killing it."""
        return (
            self._needs is not None
            and self._needs.nr >= 0
            and not self.at_home
            and self.attributes.unsupportok != KILL
        )

    def resume_guest(self, link: RemoteLink) -> None:
        """A move away from there has failed."""
        link.post(Resume(epoch=self.epoch, held=self.held, unsupported=self._may_refuse))

    def go_back_later(self) -> None:
        """Schedules the return to the last ordered node (rule 2 of the design)."""
        if self.ordered is None or self.place is not Place.HOME:
            return
        if self._returning is not None:
            self._returning.cancel()
        self._returning = asyncio.create_task(self._go_back(self.ordered, self._return_after))
        self._return_after = next_return(self._return_after)

    async def _go_back(self, ip: str, delay: float) -> None:
        await asyncio.sleep(delay)
        async with self.moves:
            self._returning = None
            if self.place is not Place.HOME or self.ordered != ip:
                return
            self.why = "went back to where it was ordered"
            try:
                await self.home.leave(self, ip)
            except MosixError as error:
                self.why = f"home: {error.line()}"
                self.report()
                self.go_back_later()

    def say_why_not(self, error: MosixError) -> None:
        """An ordered move failed, and perhaps nobody waits for it: then mosps tells."""
        if self.place in (Place.HOME, Place.AWAY):
            stays = "home" if self.place is Place.HOME else "stays"
            self.why = f"{stays}: {error.line()}"
            self.report()

    def order(self, ip: str | None, first_return: float = FIRST_RETURN) -> None:
        """Remembers where a person or the balancer wants it; None: home."""
        self.ordered = ip
        self._return_after = first_return
        if self._returning is not None:
            self._returning.cancel()
            self._returning = None
