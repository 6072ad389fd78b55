"""Body and ghost: what a move does to the process at home.

The steps of `mosix.deputy.moves` that are done with ptrace and the agent: stopping a process
where it can leave, emptying it, giving it its body again, and the way back from each. All of
them run in the thread that traces; none may be done twice, nor a body be put into a ghost whose
guest may still run.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from dataclasses import dataclass

from mosix import failpoints
from mosix.deputy.needs import needs_of
from mosix.deputy.process import PATIENCE, JobProcess, Place
from mosix.errors import CannotMoveError, MosixError, MoveFailedError
from mosix.image import capture, eligibility, maps, pending, restore
from mosix.image.model import Image
from mosix.native import vdso
from mosix.native.agent import Agent
from mosix.native.cpu import own_vdso
from mosix.native.stops import PTRACE_O_EXITKILL, StillAsleepError, Stop
from mosix.native.tracee import Tracee
from mosix.wire.dialer import STALL
from mosix.wire.messages import Hold

log = logging.getLogger("mosix.deputy")

_SIGINFO_BYTES = 128
#: When home's clock is behind what the guest read by so many ns, it was set meanwhile.
_CLOCK_WAS_SET = 1_000_000_000
_SIGNAL = struct.Struct("<i")
#: A process that is sent signals without end leaves all the same.
_MAX_SIGNALS = 64
#: How often a process that does not stop is looked at, in seconds.
_LOOK_AGAIN = 0.2
_LOOP_TICK = 1e-3
_NR_RT_TGSIGQUEUEINFO = 297


async def stop_to_leave(process: JobProcess, tracee: Tracee) -> None:
    """Stops it where its body can be taken away. StillAsleepError: it cannot be stopped now;
    MoveFailedError: it ended."""
    stop = await _leave_vdso(tracee, await _stand_still(tracee))
    stop = _begin_handlers(tracee, stop)
    if stop.ended:
        process.end()
        raise MoveFailedError(f"process {process.pid} ended")
    process.held = stop.kind == "group"


async def _leave_vdso(tracee: Tracee, stop: Stop) -> Stop:
    """Lets the stopped process run until it is not in the middle of a function of its kernel's
    vdso, whose data will not be there where it goes, nor in a handler that interrupted one."""
    for attempt in range(vdso.ATTEMPTS):
        if stop.ended or stop.kind == "group" or not vdso.is_used(tracee, own_vdso()):
            break
        tracee.cont()
        await _pause(vdso.pause_s(attempt))
        stop = await _stand_still(tracee)
    return stop


async def _pause(seconds: float) -> None:
    """asyncio cannot sleep for less than a tick; blocking for less keeps nobody waiting."""
    if seconds < _LOOP_TICK:
        time.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def _stand_still(tracee: Tracee) -> Stop:
    """Its stop. StillAsleepError: it slept through all of `STALL` seconds, and will stop."""
    end = time.monotonic() + STALL
    while True:
        try:
            return tracee.stop(patience_s=PATIENCE)
        except StillAsleepError:
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(_LOOK_AGAIN)


def describe(process: JobProcess, tracee: Tracee, epoch: int) -> Image:
    """The image, without pages, of the stopped process. CannotMoveError: it may not leave."""
    mappings = maps.read_mappings(process.pid, process.home.files.module)
    reason = eligibility.why_not_stopped(tracee, process.home.filters, mappings)
    if reason:
        raise CannotMoveError(f"process {process.pid} cannot move: {reason}")
    image = capture.describe(tracee, epoch, mappings, files=process.home.files)
    image.process.stopped = process.held
    image.process.cpu_ns = process.cpu_time.everywhere(image.process.cpu_ns)
    process.needs = needs_of(process.pid, mappings, image.runs)
    # What waits in the ghost's queue stays there: it is the process's only queue.
    image.process.pending, image.threads[0].pending = [], []
    return image


def _begin_handlers(tracee: Tracee, stop: Stop) -> Stop:
    """Lets the stopped process take what its kernel was about to give it, and stops it again
    before the first instruction of a handler.

    An interrupt overtakes signals that wait already: a fault of the instruction it stands at, what
    it has just sent to itself. Left in the queue they would reach the guest after more of its
    instructions."""
    for _ in range(_MAX_SIGNALS):
        if stop.ended or stop.kind == "group" or not _signals_wait(tracee):
            break
        tracee.cont()
        tracee.wait()
        stop = tracee.stop()
    return stop


def _signals_wait(tracee: Tracee) -> bool:
    blocked = tracee.signal_mask
    return any(
        not blocked >> number - 1 & 1
        for shared in (False, True)
        for (number,) in map(_SIGNAL.unpack_from, tracee.pending(shared=shared))
    )


def become_ghost(process: JobProcess, image: Image, call_number: int, mask: int) -> None:
    """The body runs elsewhere: what is left here gives its memory back and serves."""
    link, tracee, agent = process.link, process.tracee, process.agent
    assert link is not None and tracee is not None and agent is not None
    process.page_bytes = image.page_bytes
    process.epoch = image.header.epoch
    process.count_move()
    agent.finish()
    tracee.set_options(PTRACE_O_EXITKILL)
    agent.obey()
    process.cpu_time.stop()
    restore.empty_ghost(agent, image)
    failpoints.hit("deputy.emptied", *link.sockets)
    agent.finish()
    stopped_meanwhile = tracee.current is not None and tracee.current.kind == "group"
    agent.serve(call_number, mask, image.process.ignored)
    process.place = Place.AWAY
    process.home.watch.add(tracee, process.on_stop)
    if stopped_meanwhile and not process.held:
        process.held = True
        link.post(Hold(held=True))
    stop_again(process)
    process.report()
    process.arm_agent()
    failpoints.hit("deputy.away", *link.sockets)
    link.adopt()


def no_ghost(process: JobProcess, tracee: Tracee, error: MosixError | OSError) -> None:
    """Behind the commit the ghost could not do its part. Mostly because it was killed, which
    the watch will tell; a process that cannot go on is ended."""
    process.place = Place.AWAY
    process.home.watch.add(tracee, process.on_stop)
    if not tracee.dying:
        log.error("process %d cannot be served any more", process.pid, exc_info=error)
        process.lose_at_home(error)


def stop_again(process: JobProcess) -> None:
    """The agent has run although job control stopped the process: back into its group stop, in
    which `JobProcess.on_stop` lets it listen for SIGCONT."""
    if process.held and process.tracee is not None:
        process.tracee.interrupt()


def resume_at_home(
    process: JobProcess,
    tracee: Tracee,
    agent: Agent | None,
    image: Image | None,
    *,
    keep: bool,
) -> None:
    """A move that was to begin failed: the process goes on as if nothing had been."""
    if process.place is Place.ENDED:
        return
    process.place = Place.HOME
    if agent is None and tracee.current is None:
        _let_go_later(process, tracee)  # it never stopped
        return
    try:
        if agent is not None:
            agent.abandon()
        if image is not None:
            pending.keep_in_place(
                tracee, image.threads[0], time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            )
        if not keep:
            tracee.detach()
    except (MosixError, OSError) as error:
        # It was killed. Its parent is told of its death only when its tracer has taken note.
        process.tracee = tracee
        process.home.watch.add(tracee, process.on_stop)
        if not tracee.dying:
            log.error("process %d cannot be let go: %s", process.pid, error)


def _let_go_later(process: JobProcess, tracee: Tracee) -> None:
    """It cannot be let go before it has stopped, which it will when it wakes up."""

    def stopped(stop: Stop) -> None:
        if stop.ended:
            process.end()
            return
        process.home.watch.remove(tracee)
        tracee.detach(stop.signal if stop.kind == "signal" else 0)

    process.home.watch.add(tracee, stopped)


async def become_body(process: JobProcess, tracee: Tracee, agent: Agent, body: Image) -> None:
    """The ghost, filled with its body, goes on by itself: no agent, no tracer."""
    process.calls_before = process.calls_before + agent.calls_served()
    process.home.watch.remove(tracee)
    await _until_clock(time.CLOCK_MONOTONIC, body.header.monotonic_ns)
    if not process.attributes.localtime:
        await _until_clock(time.CLOCK_REALTIME, body.header.date_ns)
    process.cpu_time.came_home(body.process.cpu_ns)
    agent.leave(*restore.final_state(tracee, body))
    for siginfo in (*process.postponed, *process.at_home):
        _queue(tracee, process.pid, siginfo)
    process.postponed.clear()
    process.at_home.clear()
    tracee.set_options(0)
    tracee.detach()
    process.tracee = process.agent = None
    process.place = Place.HOME
    process.held = False


async def _until_clock(clock: int, reading_ns: int) -> None:
    """Waits (a round trip at the most) until home's clock has passed the body's last reading."""
    behind = reading_ns - time.clock_gettime_ns(clock)
    if 0 < behind < _CLOCK_WAS_SET:
        await asyncio.sleep(behind / 1e9)


@dataclass
class Done:
    """What a move away from a node has done to the ghost so far."""

    paused: bool = False
    #: the body that was, perhaps in part, put back into it
    filled: Image | None = None
    #: number of the descriptor that it was given
    given: int | None = None


def back_to_guest(process: JobProcess, epoch: int, done: Done) -> None:
    """A move away from a node failed: its guest goes on as `epoch`, the ghost serves again."""
    link, agent, tracee = process.link, process.agent, process.tracee
    if process.place is Place.ENDED or link is None or agent is None or tracee is None:
        return
    process.place = Place.AWAY
    process.epoch = epoch
    try:
        if done.filled is not None and agent.obeying:
            restore.empty_ghost(agent, done.filled)
        if done.given is not None:
            agent.close_fd(done.given)
        if done.paused:
            agent.unpause()
            stop_again(process)
    except (MosixError, OSError) as error:
        no_ghost(process, tracee, error)
        return
    process.forward_postponed()  # a handler runs before whatever the guest did next
    process.resume_guest(link)


def _queue(tracee: Tracee, pid: int, siginfo: bytes) -> None:
    """Puts a signal back into the queue of the stopped process, exactly as it was.

    Only a process itself may queue siginfo of the kernel's kinds (SI_USER, CLD_EXITED…)."""
    (number,) = struct.unpack_from("<i", siginfo)
    with tracee.scratch(_SIGINFO_BYTES) as address:
        tracee.write(address, siginfo)
        tracee.inject(_NR_RT_TGSIGQUEUEINFO, pid, pid, number, address)
