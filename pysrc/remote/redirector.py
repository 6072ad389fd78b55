"""What every redirector offers: the thing that turns a guest's system calls into requests.

Used by the remote's state machine (`mosix.remote`); implemented by `mosix.remote.notify`
(seccomp notification) and later by others. A redirector executes plain calls by itself and tells
the rest as events; it never decides whether a guest moves, stops or dies.

All methods are called from the event loop's thread. After every event except `CancelWanted` the
redirector stands still until `resume`. An event that holds a call (`NeedsHome`, `Asks`,
`Cancelled`, `Sleeping`) wants `answer` or `finish` before `resume`; while it is held the guest's
thread waits in the kernel, and comes to a pending ptrace stop only when it is answered.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass

from mosix.image.model import PendingCall
from mosix.image.pending import pending_call
from mosix.native.stops import ERESTARTNOHAND

#: The kernel's code for "make this call again": right as an answer only when a stop is pending.
ERESTARTSYS = 512

Args = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Call:
    nr: int
    args: Args


@dataclass(frozen=True, slots=True)
class Stopped:
    """A stop was asked for and no call is held. The guest computes, waits to be noticed with
    its next call, or has just been given a result."""


@dataclass(frozen=True, slots=True)
class NeedsHome:
    """The call can only be made at home. Answer with -ERESTARTSYS when a stop is pending."""

    call: Call
    reason: str


@dataclass(frozen=True, slots=True)
class Asks:
    """The guest has opened /proc/self/{name}, one of those through which it speaks to mosix.
    Answer with what the deputy says, or as `NeedsHome`, to be asked again."""

    name: str
    flags: int
    value: int


@dataclass(frozen=True, slots=True)
class CancelWanted:
    """A stop was asked for while request `id` is at the agent: the deputy must cancel it
    (`mosix.wire.messages.Cancel`). `Cancelled` or `Stopped` follows."""

    id: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The call was interrupted in the ghost. `result`: a restart code or -EINTR; when
    `completed`, the call's own result (a signal came while it was made). `done`: bytes it had
    moved. `deadline_ns`: when its relative timeout ends on the guest's CLOCK_MONOTONIC, 0: none.

    `owed`: how many signals the guest must have been given before it sees the result.

    For a signal: `finish`. For a move: `finish` when `completed`, else answer -ERESTARTSYS
    and keep `pending` in the image."""

    id: int
    call: Call
    result: int
    done: int
    deadline_ns: int
    completed: bool
    owed: int = 0

    def pending(self) -> PendingCall | None:
        """What the image must say about the call that will be made again."""
        if self.completed:
            return None
        call = self.call
        return pending_call(call.nr, call.args, self.done, self.deadline_ns, self.result)


@dataclass(frozen=True, slots=True)
class Sleeping:
    """A stop was asked for in a sleep or pause. As `Cancelled`; `resume` alone sleeps on."""

    call: Call
    deadline_ns: int

    def pending(self) -> PendingCall | None:
        call = self.call
        return pending_call(call.nr, call.args, 0, self.deadline_ns, ERESTARTNOHAND)


@dataclass(frozen=True, slots=True)
class LinkBroken:
    """The call socket ended (`error`: errno) during `call`, which goes on with `resume` after
    `renew`; after exit or exit_group that is the natural end. With EPROTO or ENOMEM it spoke
    nonsense, or there is no memory for the reply: the call is held and cannot go on."""

    call: Call
    error: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The listener has no guest any more."""


Event = Stopped | NeedsHome | Asks | CancelWanted | Cancelled | Sleeping | LinkBroken | Gone


@dataclass(frozen=True, slots=True)
class Counter:
    """Of one system call number; bytes on the call socket, headers included."""

    calls: int
    sent: int
    received: int


class Redirector(ABC):
    """Of one guest thread."""

    events: asyncio.Queue[Event]

    @abstractmethod
    def start(self, *, still: bool = False) -> None:
        """Serve; the guest may run. `still`: not before `resume`."""

    @abstractmethod
    def attach(self, call_fd: int) -> None:
        """Use this call socket from the next call on (only while standing still)."""

    @abstractmethod
    def renew(self, call_fd: int) -> None:
        """Go on over another connection to the same agent, at any time; the descriptor becomes
        the redirector's. What was asked over the old one without a reply is asked again."""

    @property
    @abstractmethod
    def renewed(self) -> bool:
        """Whether such a connection has come and is not used yet."""

    @abstractmethod
    def request_stop(self) -> bool:
        """Ask for a standstill; False when it stands already (or its event is on its way)."""

    @abstractmethod
    def resume(self) -> None:
        """Serve again after an event."""

    @abstractmethod
    def answer(self, result: int) -> bool:
        """End the held call with `result` (-errno, or -ERESTARTSYS before a pending stop).
        False: the guest no longer waits for it."""

    @abstractmethod
    def finish(self) -> bool:
        """End the held call as natively a signal delivered now would: EINTR or the kernel's
        restart code, the bytes moved so far, the rest of a sleep. False as in `answer`."""

    @abstractmethod
    def take_undelivered(self) -> int | None:
        """The result of a call that was made, in which the guest stopped before it got it (only
        with listeners that are not killable-only, before Linux 5.19). A guest that moves now must
        get it as rax, the call being over; one that goes on here gets it by itself."""

    @abstractmethod
    def prime(self, call: PendingCall) -> None:
        """The body arrived with an unfinished call: continue it when it comes."""

    @abstractmethod
    def given(self, signals: int) -> None:
        """The guest has been given so many signals since it began. Only while standing still."""

    @abstractmethod
    def injecting(self) -> AbstractContextManager[None]:
        """Inside, every call of the guest runs natively: the tracer makes it issue calls.
        Only while standing still, and the tracer must not be waiting for a held call."""

    @abstractmethod
    def counters(self) -> dict[int, Counter]:
        """By system call number, those that were made."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """Calls redirected so far."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Bytes of those on the call socket, headers included."""

    @abstractmethod
    def close(self) -> None:
        """End the thread and release memory; descriptors stay the caller's."""
