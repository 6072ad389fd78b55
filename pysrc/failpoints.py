"""Named points at which a test makes a process of mosix die, lose a connection or run short.

Called in every step of a job's life (`hit`); each name is in `POINTS`. Off, which is always but in
tests, a point costs a call of an empty function. A process may be armed only if mosd was started
with MOSIX_FAILPOINTS in its environment: its value, or what root says on the control socket
(`mosix.node.requests.Failpoints`), is what the points do, in mosd and in every worker of it.

    NAME=FAULT[@HITS][,…]   FAULT: kill, cut, half-open, stall:MILLISECONDS or an error (ENOSPC)

`kill`: SIGKILL for the process itself. `cut`: the connections that are in use there end.
`half-open`: they do, and the other side does not hear of it, as when a router between the two died.
`stall`: the process stands still for so long. An error: as if the next system call said so.
With HITS the first HITS - 1 are let pass. A point acts once for each arming of a process.
This module must never act in a process that was not armed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import time
from dataclasses import dataclass

from mosix.errors import UsageError

ENVIRONMENT = "MOSIX_FAILPOINTS"

#: Every point: what has just been done, or is about to be, when it is hit.
POINTS: dict[str, str] = {
    # launch
    "mosd.launch": "the job is recorded, its deputy not yet asked for",
    "mosd.launched": "the deputy has started, mosrun is not told yet",
    "spawner.fork": "about to fork a worker",
    "deputy.launch": "the deputy knows its job, mosd not that it has started",
    "deputy.exec": "-{node}: the program has been executed and stands at its first instruction",
    # connections between nodes
    "mosd.dial": "about to connect to another node",
    "mosd.dialed": "the other node has proved itself and accepted",
    "mosd.guest": "a guest is asked for and has its reservation, no remote yet",
    "mosd.welcome": "the remote is there and not told of its guest",
    "mosd.attach": "a connection of a guest has come and is about to be passed on",
    "mosd.move": "a move is ordered and not passed to the deputy yet",
    # leaving home
    "deputy.dialed": "the connections to the target are made",
    "deputy.prepared": "the target has an empty guest, the process still runs",
    "deputy.stopped": "the process is stopped",
    "deputy.described": "it is described; its pages are about to be sent",
    "deputy.sending": "the description is sent, the pages are not",
    "deputy.injected": "the agent is in the process",
    "deputy.ready": "the target is ready, it is not told to run",
    "deputy.committed": "the body runs at the target, the ghost is not one yet",
    "deputy.emptied": "the ghost has given back its memory and does not serve yet",
    "deputy.away": "the ghost serves",
    # the target of a body
    "remote.prepare": "a guest is to be prepared",
    "remote.prepared": "the empty guest is there, home does not know yet",
    "remote.image": "the connections for the body have come",
    "remote.restored": "the guest is filled",
    "remote.ready": "it is confined, home does not know yet",
    "remote.run": "home has said that it shall run",
    "remote.running": "it runs",
    # a redirected call (C)
    "redirect.request": "a call is about to be sent home",
    "redirect.half_sent": "half of the request is sent",
    "redirect.sent": "the request is sent",
    "redirect.half_reply": "half of the reply has come",
    "redirect.reply": "the reply has come, the guest does not have it yet",
    "agent.request": "the request has come, the call is not made",
    "agent.executed": "the call is made, its reply not sent",
    "agent.half_reply": "half of the reply is sent",
    # a signal
    "deputy.signal": "a signal was taken from the ghost and is not sent yet",
    "remote.signal": "the signal has come to the remote",
    "remote.halted": "the guest is halted for it",
    "remote.signalled": "it is in the guest's queue, the guest still stands",
    # coming home and moving on: the source
    "remote.freeze": "the guest is to be frozen",
    "remote.frozen": "it is, and is described",
    "remote.sending": "the description is sent, the pages are not",
    "remote.sent": "everything is sent, home does not know yet",
    # coming home
    "deputy.freeze": "about to order the freeze",
    "deputy.frozen": "the ghost is paused, the image comes",
    "deputy.filled": "the ghost has its body back, the agent is still in it",
    "deputy.home": "the body is home, the guest is not dropped yet",
    # moving on
    "deputy.next_prepared": "the next node has an empty guest",
    "deputy.next_frozen": "the guest is frozen, its image on the way to the next node",
    "deputy.transferred": "the next node is ready",
    "deputy.moved": "the body runs at the next node, the ghost serves nobody yet",
    "deputy.served": "the ghost serves the next node, the old one is not dropped yet",
}

_ERRORS = ("ENOSPC", "ENOMEM", "EMFILE")


@dataclass
class Fault:
    """What happens at a point. `value`: milliseconds of a stall, errno of an error."""

    kind: str
    value: int = 0
    hits: int = 1


_armed: dict[str, Fault] = {}
#: what was armed, as it was said
_said: dict[str, str] = {}


def parse(spec: str) -> dict[str, Fault]:
    """By name. UsageError."""
    found: dict[str, Fault] = {}
    for part in filter(None, spec.split(",")):
        name, _, action = part.partition("=")
        action, _, hits = action.partition("@")
        kind, _, value = action.partition(":")
        if name not in POINTS:
            raise UsageError(f"there is no failpoint {name!r}")
        if kind in _ERRORS and not value:
            fault = Fault("error", getattr(errno, kind))
        elif kind in ("kill", "cut", "half-open") and not value:
            fault = Fault(kind)
        elif kind == "stall" and value.isdecimal():
            fault = Fault(kind, int(value))
        else:
            raise UsageError(
                f"{action!r} is no fault", "kill, cut, half-open, stall:MS or an error's name"
            )
        if hits and not hits.isdecimal():
            raise UsageError(f"{hits!r} is no number of hits")
        fault.hits = int(hits or 1)
        found[name] = fault
    return found


def allowed() -> bool:
    """Whether this mosd was started so that it may be armed."""
    return ENVIRONMENT in os.environ


def arm(spec: str) -> None:
    """From now on the points of `spec`, and no others, act in this process. UsageError."""
    faults = parse(spec)
    _armed.clear()
    _armed.update(faults)
    _said.clear()
    for part in filter(None, spec.split(",")):
        name, _, action = part.partition("=")
        _said[name] = action


def armed() -> str:
    """What this process was armed with, for the workers it makes."""
    return ",".join(f"{name}={fault}" for name, fault in _said.items())


def spent(prefix: str) -> None:
    """Whoever had the points of `prefix` died: its successor is not armed with them."""
    for name in list(taken(prefix)):
        _armed.pop(name)
        _said.pop(name)


def taken(prefix: str) -> dict[str, Fault]:
    """The armed points of `prefix`, for code that cannot call `hit`."""
    return {name: fault for name, fault in _armed.items() if name.startswith(prefix)}


def hit(name: str, *connections: socket.socket) -> None:
    """Point `name` is reached; `connections` are in use there. OSError: the armed error."""
    if _armed:
        _act(name, connections)


def _act(name: str, connections: tuple[socket.socket, ...]) -> None:
    fault = _armed.get(name)
    if fault is None:
        return
    fault.hits -= 1
    if fault.hits > 0:
        return
    del _armed[name]
    os.write(2, f"failpoint {name}: {fault.kind}\n".encode())
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "cut" | "half-open":
            for connection in connections:
                with contextlib.suppress(OSError):
                    if fault.kind == "half-open":
                        # What goes out through the loopback device gets nowhere, and what comes
                        # in through another finds no socket.
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
                    connection.shutdown(socket.SHUT_RDWR)
        case "stall":
            time.sleep(fault.value / 1000)
        case _:
            raise OSError(fault.value, os.strerror(fault.value))
