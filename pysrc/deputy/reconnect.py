"""Making the connections to a guest again when they were lost: the grace of a link.

Home dials, for it alone knows whether the body there is still the process's: control, calls and the
way home, by the guest's token. Both sides then say again what the other has not heard
(`mosix.wire.lasting`), the redirector asks again for the call that it has no reply to, and the
agent executes none twice: the program feels a pause. Called by `mosix.deputy.process` when a link
is down; ends with the link up again or the process lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from mosix.deputy.link import RemoteLink
from mosix.deputy.process import JobProcess, Place
from mosix.errors import MosixError, RefusedError
from mosix.wire.mosd_messages import GUEST_GONE

#: Between two attempts, seconds.
_FIRST_PAUSE = 0.05
_LAST_PAUSE = 1.0


async def reconnect(process: JobProcess, link: RemoteLink) -> None:
    """Tries for as long as the grace is, then ends the process; at once if the remote broke the
    rules of the connection, for it would do so again."""
    if link.broke:
        process.home.complain(link.ip, link.broke)
        return await _give_up(
            process, link, f"node {link.ip} broke the rules of the connection: {link.broke}"
        )
    grace_s = process.home.grace_s
    end = time.monotonic() + grace_s
    pause = _FIRST_PAUSE
    lost = f"the connection to node {link.ip} was lost"
    why = process.why
    process.why = f"{lost}: waits for it up to {grace_s} s"
    process.report()
    while _is_down(process, link):
        left = end - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0)):
                await _make_again(process, link)
            process.why = why
            process.report()
            return
        except (MosixError, OSError, EOFError, TimeoutError) as error:
            if isinstance(error, RefusedError) and GUEST_GONE in error.message:
                await _give_up(process, link, f"{lost}, and the process is not there any more")
            elif time.monotonic() + pause >= end:
                await _give_up(process, link, f"{lost} for {grace_s} s")
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)


def _is_down(process: JobProcess, link: RemoteLink) -> bool:
    return process.link is link and process.place is not Place.ENDED and link.down


async def _make_again(process: JobProcess, link: RemoteLink) -> None:
    assert link.epoch is not None
    _, sockets = await process.home.dial(
        link.ip, ("call", "home", "control"), process.pid, link.epoch, link.token
    )
    with contextlib.ExitStack() as unused:
        call, way_home, control = (unused.enter_context(sock) for sock in sockets)
        # A move that was under way has failed, or will in a moment: then the ghost serves again.
        async with process.moves:
            if not _is_down(process, link) or process.agent is None:
                return
            await link.rejoin(control, call, way_home)
            unused.pop_all()
            with contextlib.closing(call):
                _serve_on(process, call)


def _serve_on(process: JobProcess, call: socket.socket) -> None:
    try:
        assert process.agent is not None
        process.agent.renew(call.fileno())
    except (MosixError, OSError) as error:
        if process.tracee is not None and not process.tracee.dying:
            process.lose_at_home(error)


async def _give_up(process: JobProcess, link: RemoteLink, reason: str) -> None:
    async with process.moves:
        if _is_down(process, link):
            link.give_up()
            process.lose(reason)
