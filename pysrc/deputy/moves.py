"""The moves of a process: home → node, node → node, node → home.

Each is one coroutine, called with the process's `moves` lock held. The order of its steps is the
promise: until the commit (the deputy accepts `Running`, or decides that home has the body) every
failure leaves the process where it was, running; after it the old body can do nothing, since
every effect passes through the ghost. What is done to the process at home is in
`mosix.deputy.ghost`. docs/architecture.md tells the same story in words.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec
from mosix import failpoints
from mosix.deputy import ghost
from mosix.deputy.link import RemoteLink
from mosix.deputy.needs import needs_of
from mosix.deputy.process import JobProcess, Place
from mosix.errors import (
    CannotMoveError,
    MosixError,
    MoveFailedError,
    NodeDownError,
    TransferCutError,
)
from mosix.image import capture, eligibility, handlers, maps, plans, restore, stream
from mosix.image.model import Image, PageRun
from mosix.native.agent import Agent
from mosix.native.orders import NoDescriptorError
from mosix.native.tracee import Tracee
from mosix.wire.dialer import STALL
from mosix.wire.messages import (
    Freeze,
    Frozen,
    Needs,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Ready,
    Run,
    Running,
    Sent,
)

T = TypeVar("T")
P = ParamSpec("P")

#: From the last byte of an image to the restored guest, in seconds.
_RESTORE = 60

#: Runs of memory below this are not worth announcing (bytes).
_PREFAULT_FROM = 64 << 10
_MAX_PREFAULT = 512


def ran_short(process: JobProcess, error: OSError) -> MoveFailedError:
    """What `error` of this node's own kernel means for a move."""
    why = os.strerror(error.errno or 0).lower()
    return MoveFailedError(f"process {process.pid} cannot move: {why} at {process.home.here}")


def _move(
    move: Callable[Concatenate[JobProcess, P], Awaitable[None]],
) -> Callable[Concatenate[JobProcess, P], Coroutine[Any, Any, None]]:
    """Its errors of this node's kernel are such of the move, too."""

    @functools.wraps(move)
    async def told(process: JobProcess, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await move(process, *args, **kwargs)
        except OSError as error:
            raise ran_short(process, error) from error

    return told


@_move
async def leave(process: JobProcess, ip: str, *, seized: Tracee | None = None) -> None:
    """home → node `ip`. `seized`: already traced and stopped (at its first instruction).

    CannotMoveError, RefusedError, NodeDownError, MoveFailedError: nothing changed, it runs on
    (or, if `seized`, stands where it stood)."""
    filters = process.home.filters
    reason = eligibility.why_not(process.pid, filters) if seized is None else None
    if reason:
        raise CannotMoveError(f"process {process.pid} cannot move: {reason}")
    epoch = process.epoch + 1
    token, (control, call, bulk, way_home) = await process.home.dial(
        ip, ("guest", "call", "bulk", "home"), process.pid, epoch, None
    )
    link = RemoteLink(ip, token, control, process.on_unasked, process.on_down)
    link.date_ahead_ns = process.home.date_ahead_ns
    link.way_home = way_home
    with contextlib.ExitStack() as sockets:
        sockets.callback(call.close)
        sockets.callback(bulk.close)
        try:
            failpoints.hit("deputy.dialed", *link.sockets, call, bulk)
            needs, runs = _expected(process.pid)
            await _prepare(process, link, epoch, needs, runs)
            failpoints.hit("deputy.prepared", *link.sockets, call, bulk)
            await _leave_prepared(process, link, (call, bulk), epoch=epoch, seized=seized)
        except BaseException:
            process.drop(link)
            raise


async def _leave_prepared(
    process: JobProcess,
    link: RemoteLink,
    sockets: tuple[socket.socket, socket.socket],
    *,
    epoch: int,
    seized: Tracee | None,
) -> None:
    call, bulk = sockets
    begin = time.monotonic_ns()
    tracee = seized or Tracee.seize(process.pid)
    # Nobody answers what it asks while this thread waits for its stop.
    tracee.stopping = functools.partial(process.home.ask_again, process.pid)
    agent: Agent | None = None
    image: Image | None = None
    process.place = Place.MOVING
    try:
        if seized is None:
            await ghost.stop_to_leave(process, tracee)
        failpoints.hit("deputy.stopped", *link.sockets, call, bulk)
        image = ghost.describe(process, tracee, epoch)
        ghost_mask = handlers.mask_outside(tracee, image)
        failpoints.hit("deputy.described", *link.sockets, call, bulk)
        # The image is on its way while the agent goes in beside the body.
        sending = _begin(link.ip, _send, process.pid, bulk.fileno(), image, process.home.files)
        try:
            agent = Agent.inject(tracee, plans.body_ranges(image))
            failpoints.hit("deputy.injected", *link.sockets, call, bulk)
            agent.obey()
            call_number = agent.give_fd(call.fileno())
            try:
                await sending
            except TransferCutError:
                await link.why_it_ended(epoch)
                raise
            await link.expect(Ready, epoch, timeout=_RESTORE)
            failpoints.hit("deputy.ready", *link.sockets, call)
            link.post(Run(epoch=epoch, held=process.held))
            await link.expect(Running, epoch)
        except BaseException:
            _shut(bulk)
            with contextlib.suppress(MosixError):
                await sending
            raise
    except BaseException:
        ghost.resume_at_home(process, tracee, agent, image, keep=seized is not None)
        raise
    # Committed: from here on this body is only an image of the past.
    process.freeze_ns = time.monotonic_ns() - begin
    process.link, process.tracee, process.agent = link, tracee, agent
    link.keep(epoch, call)
    try:
        failpoints.hit("deputy.committed", *link.sockets)
        ghost.become_ghost(process, image, call_number, ghost_mask)
    except (MosixError, OSError) as error:
        ghost.no_ghost(process, tracee, error)
        raise MoveFailedError(f"process {process.pid} ended") from error


@_move
async def come_home(process: JobProcess) -> None:
    """node → home. On failure the guest runs on where it is (MoveFailedError, NodeDownError)."""
    link, tracee, agent = process.link, process.tracee, process.agent
    assert link is not None and tracee is not None and agent is not None
    _check_up(link)
    epoch = process.epoch + 1
    bulk, link.way_home = link.way_home, None
    if bulk is None:  # an attempt before has failed
        _, (bulk,) = await process.home.dial(link.ip, ("home",), process.pid, epoch, link.token)
    with contextlib.closing(bulk):
        _check_alive(process)
        process.place, process.guest_halts = Place.MOVING, False
        begin = time.monotonic_ns()
        done = ghost.Done()
        try:
            failpoints.hit("deputy.freeze", *link.sockets, bulk)
            link.post(Freeze(epoch=epoch))
            body = await _fill(process, link, agent, bulk, epoch=epoch, done=done)
        except BaseException:
            _shut(bulk)
            ghost.back_to_guest(process, epoch + 1, done)
            raise
        # Committed: home has the body, whatever becomes of the guest now.
        process.link = None
        process.epoch = epoch
        process.count_move()
        process.page_bytes = body.page_bytes
        try:
            await ghost.become_body(process, tracee, agent, body)
        except (MosixError, OSError) as error:
            process.drop(link)
            ghost.no_ghost(process, tracee, error)
            raise MoveFailedError(f"process {process.pid} ended") from error
        process.freeze_ns = time.monotonic_ns() - begin
        try:
            failpoints.hit("deputy.home", *link.sockets)
        finally:
            process.report()
            process.drop(link)


async def _fill(
    process: JobProcess,
    link: RemoteLink,
    agent: Agent,
    bulk: socket.socket,
    *,
    epoch: int,
    done: ghost.Done,
) -> Image:
    """The frozen body comes over `bulk` into its ghost, which then stands still."""
    await link.expect(Frozen, epoch)
    _check_alive(process)
    agent.pause(process.keep_signal)
    done.paused = True
    failpoints.hit("deputy.frozen", *link.sockets, bulk)
    try:
        agent.obey()
        if not restore.is_data_limited(process.pid):
            with contextlib.suppress(NoDescriptorError):
                done.given = agent.give_fd(bulk.fileno())
        done.filled = body = await _comes(
            link, bulk, _begin(link.ip, stream.read_image, bulk.fileno())
        )
        await _comes(
            link, bulk, _begin(link.ip, _fill_ghost, agent, body, done.given, bulk.fileno())
        )
    except TransferCutError:
        await link.why_it_ended(epoch)
        raise
    await link.expect(Sent, epoch)
    _check_alive(process)
    failpoints.hit("deputy.filled", *link.sockets, bulk)
    agent.finish()
    return body


async def _comes(link: RemoteLink, bulk: socket.socket, work: asyncio.Future[T]) -> T:
    """The result of `work`, which is ended when the remote that writes into `bulk` stands still."""
    try:
        return await link.while_alive(work)
    except BaseException:
        _shut(bulk)
        await asyncio.gather(work, return_exceptions=True)
        raise


@_move
async def move_on(process: JobProcess, ip: str) -> None:
    """node → node `ip`, the image going straight there. On failure the guest runs on."""
    old, tracee, agent = process.link, process.tracee, process.agent
    assert old is not None and tracee is not None and agent is not None
    _check_up(old)
    epoch = process.epoch + 1
    token, (control, call, way_home) = await process.home.dial(
        ip, ("guest", "call", "home"), process.pid, epoch, None
    )
    new = RemoteLink(ip, token, control, process.on_unasked, process.on_down)
    new.date_ahead_ns = process.home.date_ahead_ns
    new.way_home = way_home
    with contextlib.closing(call):
        done = ghost.Done()
        try:
            _check_alive(process)
            process.place, process.guest_halts = Place.MOVING, False
            await _prepare(process, new, epoch, process.needs)
            _check_alive(process)
            failpoints.hit("deputy.next_prepared", *new.sockets, call)
            begin = time.monotonic_ns()
            old.post(Freeze(epoch=epoch, target=ip, token=token))
            frozen = await old.expect(Frozen, epoch)
            _check_alive(process)
            failpoints.hit("deputy.next_frozen", *new.sockets, call)
            agent.pause(process.keep_signal)
            done.paused = True
            await _transferred(old, new, epoch)
            _check_alive(process)
            failpoints.hit("deputy.transferred", *new.sockets, call)
            agent.obey()
            call_number = done.given = agent.give_fd(call.fileno())
            agent.finish()
            given = process.post_postponed(new)
            new.post(Run(epoch=epoch, held=process.held))
            await new.expect(Running, epoch)
            _check_alive(process)
        except BaseException:
            process.drop(new)
            ghost.back_to_guest(process, epoch + 1, done)
            raise
        # Committed.
        process.link = new
        new.keep(epoch, call)
    process.freeze_ns = time.monotonic_ns() - begin
    process.epoch = epoch
    process.count_move()
    process.page_bytes = frozen.page_bytes
    process.needs = msgspec.structs.replace(process.needs, memory=frozen.page_bytes)
    await _serve_another(process, old, new, call_number, given)


async def _serve_another(
    process: JobProcess, old: RemoteLink, new: RemoteLink, call_number: int, given: int
) -> None:
    """The body runs at another node, where it got `given` signals: the ghost serves it there."""
    tracee, agent = process.tracee, process.agent
    assert tracee is not None and agent is not None
    process.place = Place.AWAY
    try:
        failpoints.hit("deputy.moved", *new.sockets)
        agent.serve_on(call_number, given)
        del process.postponed[:given]
        ghost.stop_again(process)
        process.report()
        process.arm_agent()
        failpoints.hit("deputy.served", *new.sockets)
        new.adopt()
    except (MosixError, OSError) as error:
        ghost.no_ghost(process, tracee, error)
        raise MoveFailedError(f"process {process.pid} ended") from error
    finally:
        process.drop(old)


async def _transferred(old: RemoteLink, new: RemoteLink, epoch: int) -> None:
    """The image has left the old node and is restored at the new one, or the first failure.

    It may take as long as bytes move, which the two remotes see to."""
    sent = asyncio.create_task(old.expect(Sent, epoch, timeout=None))
    ready = asyncio.create_task(new.expect(Ready, epoch, timeout=None))
    try:
        done, _ = await asyncio.wait((sent, ready), return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        await sent
        async with asyncio.timeout(_RESTORE):
            await ready
    except TimeoutError as error:
        raise NodeDownError(f"node {new.ip} does not finish restoring the process") from error
    finally:
        for task in (sent, ready):
            task.cancel()
        await asyncio.gather(sent, ready, return_exceptions=True)


async def _prepare(
    process: JobProcess, link: RemoteLink, epoch: int, needs: Needs, runs: Sequence[PageRun] = ()
) -> None:
    """Asks for an empty guest. `runs`: the memory to come, as far as it is known.

    RefusedError: what it `needs` is not to be had there."""
    pinged_ns, round_trip = await _round_trip(link)
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    big = sorted((run for run in runs if run.size >= _PREFAULT_FROM), key=lambda run: -run.size)
    link.post(
        Prepare(
            pid=process.pid,
            comm=_comm(process.pid),
            epoch=epoch,
            needs=needs,
            prefault=[(run.start, run.size) for run in big[:_MAX_PREFAULT]],
            pinged_ns=pinged_ns,
            monotonic_ns=pinged_ns + round_trip,
            boottime_ns=pinged_ns + round_trip + asleep_ns,
            date_ns=link.date_ns() - (time.monotonic_ns() - pinged_ns),
            localtime=bool(process.attributes.localtime),
            features=process.home.features,
            grace_s=process.home.grace_s,
            interface=process.home.interface,
            attributes=process.attributes,
        )
    )
    await link.expect(Prepared)


async def _round_trip(link: RemoteLink) -> tuple[int, int]:
    """When the quickest of three pings was sent, and its round trip, in ns: the first of them
    waits for the remote to get up."""
    trips = []
    for _ in range(3):
        sent_ns = time.monotonic_ns()
        link.post(Ping(sent_ns=sent_ns))
        await link.expect(Pong)
        trips.append((time.monotonic_ns() - sent_ns, sent_ns))
    shortest, sent_ns = min(trips)
    return sent_ns, shortest


def _expected(pid: int) -> tuple[Needs, list[PageRun]]:
    """What it would need and what would travel if the process were stopped now."""
    try:
        mappings = maps.read_mappings(pid)
        runs = capture.page_runs(pid, [mapping.vma for mapping in mappings])
        return needs_of(pid, mappings, runs), runs
    except ProcessLookupError:  # it executes another program just now
        return Needs(), []
    except OSError as error:
        raise CannotMoveError(
            f"process {pid} cannot move: its memory cannot be read ({error.strerror})"
        ) from error


def _send(pid: int, fd: int, image: Image, files: capture.ProcFiles) -> None:
    stream.write_image(fd, image)
    failpoints.hit("deputy.sending")
    capture.send_pages(pid, fd, image.runs, files)
    stream.write_end(fd, image)


def _fill_ghost(agent: Agent, image: Image, number: int | None, fd: int) -> None:
    restore.fill_ghost(agent, image, number, fd)
    stream.read_end(fd, image)


def _begin(ip: str, function: Callable[..., T], *args: object) -> asyncio.Future[T]:
    """Starts `function` in a thread, now: it only reads and writes descriptors, never traces; what
    it speaks with is at node `ip`.

    TransferCutError, MoveFailedError instead of OSError and EOFError."""

    def run() -> T:
        try:
            return function(*args)
        except BlockingIOError as error:
            raise TransferCutError(f"no byte moved from or to node {ip} for {STALL} s") from error
        except (EOFError, ConnectionError, TimeoutError, TransferCutError) as error:
            said = f"the connection to node {ip} was cut in the middle of the image"
            raise TransferCutError(said) from error
        except OSError as error:
            why = error.strerror or error
            raise MoveFailedError(f"the transfer from or to node {ip} failed: {why}") from error

    return asyncio.get_running_loop().run_in_executor(None, run)


def _check_up(link: RemoteLink) -> None:
    if link.down:
        raise NodeDownError(
            f"the connection to node {link.ip} was lost", "it is being made again; see mosps --why"
        )


def _check_alive(process: JobProcess) -> None:
    if process.place is Place.ENDED:
        raise NodeDownError(f"process {process.pid} ended")


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError as error:
        raise CannotMoveError(f"process {pid} is gone") from error
