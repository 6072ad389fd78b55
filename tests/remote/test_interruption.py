"""The redirector: calls that wait can be interrupted for a move or a signal, and nobody notices.

The tests play the deputy (interrupting the ghost) and the remote (tracing the guest)."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import socket
import struct
import termios
from pathlib import Path

import pytest
from mosix.native.tracee import Tracee
from mosix.remote.notify import NotifyRedirector
from mosix.remote.redirector import (
    ERESTARTSYS,
    Cancelled,
    CancelWanted,
    Gone,
    LinkBroken,
    NeedsHome,
    Sleeping,
    Stopped,
)
from served import CANCELLED, Kit, Served, served

READ, WRITE, POLL, GETPID, RT_TGSIGQUEUEINFO = 0, 1, 7, 39, 297


def said(pair: Served) -> list[str]:
    assert pair.ghost.stderr is not None
    return pair.ghost.stderr.read().decode().splitlines()


async def cancelled(kit: Kit, pair: Served) -> Cancelled:
    """A stop is asked for and the call in flight interrupted at the ghost."""
    await pair.until_blocked()
    assert pair.redirector.request_stop()
    wanted = await pair.event()
    assert isinstance(wanted, CancelWanted)
    pair.interrupt_ghost(kit)
    event = await pair.event()
    assert isinstance(event, Cancelled)
    assert event.id == wanted.id
    return event


def move_on(pair: Served, tracee: Tracee) -> None:
    """The guest comes to the stop that waits behind the call, and goes on."""
    stop = tracee.wait()
    assert stop is not None and stop.quiet
    pair.redirector.resume()
    tracee.detach()


async def test_a_read_that_is_moved_reads_what_comes_later(kit: Kit, tmp_path: Path) -> None:
    there, here = os.pipe()
    with served(kit, [kit.build("one_call", static=False), "read"], tmp_path, stdin=there) as pair:
        pair.blocked_in = READ
        event_task = asyncio.create_task(cancelled(kit, pair))
        event = await event_task
        assert (event.result, event.done, event.completed) == (-ERESTARTSYS, 0, False)
        left = event.pending()
        assert left is not None and (left.done, left.code) == (0, -ERESTARTSYS)
        tracee = Tracee.seize(pair.guest.pid)
        tracee.interrupt()
        assert pair.redirector.answer(-ERESTARTSYS)
        move_on(pair, tracee)
        await pair.until_blocked()
        os.write(here, b"abc")
        os.close(here)
        await pair.serve()
        assert said(pair) == ["abc 3 0 0", " 0 0 0"]
    os.close(there)


@pytest.mark.parametrize("for_signal", [False, True], ids=["move", "signal"])
async def test_a_long_write_is_shortened_by_a_signal_but_not_by_a_move(
    kit: Kit, tmp_path: Path, for_signal: bool
) -> None:
    there, here = os.pipe()
    binary = kit.build("one_call", static=False)
    with served(kit, [binary, "write"], tmp_path, stdout=here) as pair:
        os.close(here)
        pair.blocked_in = WRITE
        event = await cancelled(kit, pair)
        assert 0 < event.done < 1 << 20 and not event.completed
        tracee = Tracee.seize(pair.guest.pid)
        tracee.interrupt()
        pending = event.pending()
        assert pending is not None and pending.done == event.done
        if for_signal:
            assert pair.redirector.finish()
        else:
            assert pair.redirector.answer(-ERESTARTSYS)
            pair.redirector.prime(pending)
        move_on(pair, tracee)
        read = asyncio.create_task(asyncio.to_thread(_read_all, there))
        await pair.serve()
        data = await read
        assert data == b"w" * (event.done if for_signal else 1 << 20)
        assert said(pair) == [f"write {len(data)} 0 0"]
    os.close(there)


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("what", ["read", "read+"], ids=["EINTR", "SA_RESTART"])
async def test_a_signal_ends_or_restarts_a_read_as_its_handler_wants(
    kit: Kit, tmp_path: Path, what: str
) -> None:
    there, here = os.pipe()
    with served(kit, [kit.build("one_call", static=False), what], tmp_path, stdin=there) as pair:
        pair.blocked_in = READ
        await cancelled(kit, pair)
        tracee = Tracee.seize(pair.guest.pid)
        tracee.interrupt()
        assert pair.redirector.finish()
        stop = tracee.wait()
        assert stop is not None and stop.quiet
        info = struct.pack("<iii", signal.SIGUSR1, 0, -1).ljust(128, b"\0")
        with pair.redirector.injecting(), tracee.scratch(128) as address:
            tracee.write(address, info)
            pid = pair.guest.pid
            assert tracee.inject(RT_TGSIGQUEUEINFO, pid, pid, signal.SIGUSR1, address) == 0
        pair.redirector.resume()
        tracee.detach()
        os.write(here, b"abc")
        os.close(here)
        await pair.serve()
        mark = signal.SIGUSR1 * 1000 - 1
        interrupted = [f" -1 {errno.EINTR} {mark}", f"abc 3 0 {mark}"]
        restarted = [f"abc 3 0 {mark}", f" 0 0 {mark}"]
        assert said(pair) == (restarted if "+" in what else interrupted)
    os.close(there)


@pytest.mark.parametrize("what", ["raise", "unblock"])
async def test_a_signal_to_oneself_is_handled_before_the_call_returns(
    kit: Kit, tmp_path: Path, what: str
) -> None:
    binary = kit.build("one_call", static=False)
    with served(kit, [binary, what], tmp_path, still=True) as pair:
        ghost = Tracee.seize(pair.ghost.pid)
        pair.redirector.resume()
        while (stop := ghost.wait(block=False)) is None or stop.kind != "signal":
            await asyncio.sleep(0)
        assert stop.signal == signal.SIGUSR1
        info = ghost.siginfo
        ghost.write(kit.symbols["host_state"] + CANCELLED, (1).to_bytes(4, "little"))
        ghost.cont(0)
        event = await pair.event()
        assert isinstance(event, Cancelled) and event.completed and event.result == 0
        ghost.stop()
        ghost.detach()
        guest = Tracee.seize(pair.guest.pid)
        guest.interrupt()
        assert pair.redirector.finish()
        stop = guest.wait()
        assert stop is not None and stop.quiet
        number, pid = signal.SIGUSR1, pair.guest.pid
        with pair.redirector.injecting(), guest.scratch(128) as address:
            guest.write(address, info)
            assert guest.inject(RT_TGSIGQUEUEINFO, pid, pid, number, address) == 0
        pair.redirector.resume()
        guest.detach()
        await pair.serve()
        before = ["blocked 0 0 0"] if what == "unblock" else []
        assert said(pair) == [*before, f"{what} 0 0 {signal.SIGUSR1 * 1000}"]


async def test_a_sleep_goes_on_behind_a_stop(kit: Kit, tmp_path: Path) -> None:
    with served(kit, [kit.build("one_call", static=False), "sleep"], tmp_path) as pair:
        await _until_asleep(pair)
        pair.redirector.request_stop()
        event = await pair.event()
        assert isinstance(event, Sleeping) and event.deadline_ns
        pair.redirector.resume()
        await pair.serve()
        assert said(pair) == ["none 0 0 0", "long enough 1 0 0"]


async def test_a_moved_sleep_ends_when_it_would_have(kit: Kit, tmp_path: Path) -> None:
    with served(kit, [kit.build("one_call", static=False), "sleep"], tmp_path) as pair:
        await _until_asleep(pair)
        pair.redirector.request_stop()
        event = await pair.event()
        assert isinstance(event, Sleeping)
        tracee = Tracee.seize(pair.guest.pid)
        tracee.interrupt()
        assert pair.redirector.answer(-ERESTARTSYS)
        pending = event.pending()
        assert pending is not None
        pair.redirector.prime(pending)
        move_on(pair, tracee)
        await _until_asleep(pair)
        pair.redirector.request_stop()
        again = await pair.event()
        assert isinstance(again, Sleeping) and again.deadline_ns == event.deadline_ns
        pair.redirector.resume()
        await pair.serve()
        assert said(pair) == ["none 0 0 0", "long enough 1 0 0"]


async def test_an_interrupted_sleep_tells_the_rest(kit: Kit, tmp_path: Path) -> None:
    with served(kit, [kit.build("one_call", static=False), "sleep"], tmp_path) as pair:
        await _until_asleep(pair)
        pair.redirector.request_stop()
        await pair.event()
        assert pair.redirector.finish()
        pair.redirector.resume()
        await pair.serve()
        assert said(pair)[0] == f"rem -1 {errno.EINTR} 0"


async def _until_asleep(pair: Served) -> None:
    """Until the remote's thread sleeps for the guest."""
    threads = Path(f"/proc/{os.getpid()}/task")
    while not any((task / "syscall").read_text().startswith("230 ") for task in threads.iterdir()):
        await asyncio.sleep(0)


async def test_a_moved_poll_keeps_its_deadline(kit: Kit, tmp_path: Path) -> None:
    there, here = os.pipe()
    with served(kit, [kit.build("one_call", static=False), "poll"], tmp_path, stdin=there) as pair:
        pair.blocked_in = POLL
        event = await cancelled(kit, pair)
        pending = event.pending()
        assert pending is not None and pending.deadline_ns
        tracee = Tracee.seize(pair.guest.pid)
        tracee.interrupt()
        assert pair.redirector.answer(-ERESTARTSYS)
        pair.redirector.prime(pending)
        move_on(pair, tracee)
        await pair.serve()
        assert said(pair) == ["poll 0 0 0", "long enough 1 0 0"]
    os.close(there)
    os.close(here)


async def test_injected_calls_run_in_the_guest_itself(kit: Kit, tmp_path: Path) -> None:
    with served(kit, [kit.build("one_call", static=False), "spin"], tmp_path) as pair:
        tracee = Tracee.seize(pair.guest.pid)
        tracee.stop()
        pair.redirector.request_stop()
        while not isinstance(event := await pair.event(), Stopped):
            assert isinstance(event, CancelWanted)
        with pair.redirector.injecting():
            assert tracee.inject(GETPID) == pair.guest.pid
        tracee.detach()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("fork", "clone"),
        ("maps", "reads its own maps, status or memory in /proc"),
        ("unknown", "a system call unknown to MOSIX"),
        ("x32", "a system call unknown to MOSIX"),
    ],
)
async def test_what_cannot_be_done_away_is_wanted_at_home_with_its_reason(
    kit: Kit, tmp_path: Path, what: str, reason: str
) -> None:
    with served(kit, [kit.build("one_call", static=False), what], tmp_path) as pair:
        await pair.serve()
        assert pair.homes == [reason]


async def test_without_killable_listeners_a_call_is_still_made_once(
    kit: Kit, tmp_path: Path
) -> None:
    there, here = os.pipe()
    binary = kit.build("one_call", static=False)
    with served(kit, [binary, "read"], tmp_path, stdin=there, killable=False) as pair:
        pair.blocked_in = READ
        await pair.until_blocked()
        tracee = Tracee.seize(pair.guest.pid)
        tracee.stop()  # the notification is dropped: the call will be issued again
        before = pair.redirector.calls
        os.write(here, b"abc")
        while int.from_bytes(fcntl.ioctl(there, termios.FIONREAD, bytes(4)), "little"):
            await asyncio.sleep(0)
        os.write(here, b"def")
        tracee.detach()
        os.close(here)
        await pair.serve()
        assert said(pair) == ["abc 3 0 0", "def 3 0 0"]
        assert pair.redirector.calls > before
    os.close(there)


async def test_a_result_that_a_stop_kept_from_the_guest_can_be_taken_along(
    kit: Kit, tmp_path: Path
) -> None:
    there, here = os.pipe()
    binary = kit.build("one_call", static=False)
    with served(kit, [binary, "read"], tmp_path, stdin=there, killable=False) as pair:
        pair.blocked_in = READ
        await pair.until_blocked()
        tracee = Tracee.seize(pair.guest.pid)
        tracee.stop()
        assert pair.redirector.request_stop()
        assert isinstance(await pair.event(), CancelWanted)
        os.write(here, b"abc")  # the call completes before it is cancelled
        assert isinstance(await pair.event(), Stopped)
        assert pair.redirector.take_undelivered() == 3
        assert pair.redirector.take_undelivered() is None
        registers = tracee.get_registers()
        registers.rax, registers.orig_rax = 3, (1 << 64) - 1
        tracee.set_registers(registers)
        pair.redirector.resume()
        tracee.detach()
        os.close(here)
        await pair.serve()
        assert said(pair) == ["abc 3 0 0", " 0 0 0"]
    os.close(there)


async def test_a_killed_guest_is_told(kit: Kit, tmp_path: Path) -> None:
    with served(kit, [kit.build("one_call", static=False), "spin"], tmp_path) as pair:
        pair.guest.kill()
        pair.guest.wait()
        assert isinstance(await pair.event(), Gone)


@pytest.mark.parametrize(
    "reply",
    [
        struct.pack("<IIQqQ", 0, 0, 999, 0, 0),
        struct.pack("<IIQqQ", 4096, 0, 1, 0, 0).ljust(4128, b"x"),
        struct.pack("<IIQqQ", 0, 0, 1, 0, 0) + b"m" * 32,
        b"",
    ],
    ids=["wrong id", "wrong size", "too much", "end"],
)
async def test_a_false_reply_breaks_the_link_and_nothing_else(
    kit: Kit, tmp_path: Path, reply: bytes
) -> None:
    with served(kit, [kit.build("one_call", static=False), "read"], tmp_path, still=True) as pair:
        near, far = socket.socketpair()
        redirector: NotifyRedirector = pair.redirector
        redirector.attach(near.fileno())
        far.send(reply) if reply else far.close()
        redirector.resume()
        event = await pair.event()
        assert isinstance(event, LinkBroken) and event.error in (errno.EPROTO, errno.EPIPE)
        near.close()
        far.close()


async def test_a_reason_is_given_before_the_call_is_made(kit: Kit, tmp_path: Path) -> None:
    with served(kit, [kit.build("one_call", static=False), "fork"], tmp_path) as pair:
        while not isinstance(event := await pair.event(), NeedsHome):
            raise AssertionError(event)
        assert event.call.nr in (56, 57)
        assert pair.redirector.answer(-errno.EAGAIN)
        pair.redirector.resume()
        await pair.serve()
        assert said(pair) == [f"fork -1 {errno.EAGAIN} 0"]
