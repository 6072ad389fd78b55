"""What deputy and remote say to each other, as msgspec records, and what all messages are made of.

Tagged unions: `ToRemote`/`ToDeputy`, on the control connection between two nodes. What mosd says
and is told is in `mosix.wire.mosd_messages`. What a field may hold is checked on decoding
(`decode`), so that nothing unchecked from the network reaches the code behind it. Times in
nanoseconds, sizes in bytes. This module only describes; it never sends.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from mosix.errors import ProtocolError
from mosix.wire.attributes import JobAttributes

#: Peers whose numbers differ refuse each other, naming both.
PROTOCOL_VERSION = 1

Pid = Annotated[int, msgspec.Meta(ge=1, le=2**22)]
Uid = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)]
Ns = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**47)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Ip = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,3}(\.[0-9]{1,3}){3}\Z")]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
Word = Annotated[str, msgspec.Meta(max_length=64)]
CallNumber = Annotated[int, msgspec.Meta(ge=0, le=511)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=86400)]
Token = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
JobId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{16}\Z")]
SigInfo = Annotated[bytes, msgspec.Meta(min_length=128, max_length=128)]


class Tagged(msgspec.Struct, tag_field="t", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record that says in its field `t` which one it is."""


# ---- what a node can run: published by the probe, compared before anything is stopped ----


class NodeFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a node eligible; compared by `mosix.balancer.eligibility.why_not`."""

    kernel: Text
    vdso: Text  # hex digest of the vdso's code: equal digests need no patching
    page_size: int
    cpu_features: Annotated[tuple[Text, ...], msgspec.Meta(max_length=1000)]
    xsave_size: int
    cpus: int  # the highest number of a CPU in use, plus 1
    tier: Text = "portable"


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What `mosix.balancer.measure` found in the last second or so.

    `running`: threads that ran or wanted to, on average; `exported`: the same, falling slowly;
    `cores`: that may be used; `speed`: of one, 10,000 is a 3 GHz Pentium 4; `memory`, `free`:
    bytes, what may be lent; `psi_*`: part of the time in which some task stood still for it;
    `accounting`: how the work of processes is counted."""

    running: Amount
    exported: Amount
    dilation: Amount
    cores: Amount
    speed: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
    memory: Size
    free: Size
    psi_memory: Amount = 0.0
    psi_io: Amount = 0.0
    accounting: Text = ""


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What a body takes of the node it runs on; compared by `mosix.remote.room.why_not`.

    `memory`: bytes of pages that travel; `mappings`: how many it has; `promised`: bytes that a
    kernel which counts commitments must grant it; `largest`: of these the largest mapping;
    `rlimits`: RLIMIT_* → hard limit, for those that count where the body is."""

    memory: Size = 0
    mappings: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    promised: Size = 0
    largest: Size = 0
    rlimits: Annotated[
        dict[int, Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]], msgspec.Meta(max_length=64)
    ] = {}


# ---- deputy → remote ----


class Prepare(Tagged, frozen=True, kw_only=True):
    """Make an empty guest. `needs`: what the body will take; `prefault`: ranges of
    anonymous memory to populate before the freeze. The guest's clocks must not be behind
    home's, which at the arrival of the `Ping` sent at `pinged_ns` were at most
    `monotonic_ns`/`boottime_ns` (when it was sent, and the whole round trip); its date
    then was `date_ns`. `localtime`: dates are those of the node where it runs, else home's."""

    pid: Pid
    comm: Text
    epoch: Epoch
    needs: Needs
    prefault: Annotated[list[tuple[Size, Size]], msgspec.Meta(max_length=1 << 16)] = []
    pinged_ns: Ns
    monotonic_ns: Ns
    boottime_ns: Ns
    date_ns: Ns
    localtime: bool = False
    features: NodeFeatures
    #: how long home will try to make a lost connection again
    grace_s: Seconds
    #: it has the files /proc/self/{special}
    interface: bool = False
    attributes: JobAttributes = JobAttributes()


class Run(Tagged, frozen=True, kw_only=True):
    """The commit: the guest may run as `epoch`. `held`: it is stopped (SIGSTOP)."""

    epoch: Epoch
    held: bool = False


class Signal(Tagged, frozen=True, kw_only=True):
    """A signal that the ghost was given and whose disposition is a handler in the guest."""

    seq: int
    siginfo: SigInfo


class Hold(Tagged, frozen=True, kw_only=True):
    """Stop (True) or continue (False) the guest: job control happened at home."""

    held: bool


class Freeze(Tagged, frozen=True, kw_only=True):
    """Stop the guest for a move. With `target` the image goes straight there over a bulk
    connection that the remote's mosd dials with `token`; without, over the connection that
    home has attached for it."""

    epoch: Epoch
    target: Ip | None = None
    token: Token | None = None


class Resume(Tagged, frozen=True, kw_only=True):
    """The move failed: the source goes on, as `epoch`. `unsupported`: the call for which it
    needed home fails with ENOSYS."""

    epoch: Epoch
    held: bool = False
    unsupported: bool = False


class Drop(Tagged, frozen=True, kw_only=True):
    """The body is elsewhere, or its process ended: kill the guest and exit. The answer is
    `Dropped`."""


class Cancelled(Tagged, frozen=True, kw_only=True):
    """Answer to `Cancel` when the agent no longer executed that call (its reply is on its way)."""

    id: int


class Ping(Tagged, frozen=True, kw_only=True):
    sent_ns: Ns


class Ack(Tagged, frozen=True, kw_only=True):
    """So many messages have come, see `mosix.wire.lasting`; either side says so."""

    received: Ns


class Rejoin(Tagged, frozen=True, kw_only=True):
    """First on another connection to the guest that was told to run as `epoch`."""

    epoch: Epoch
    received: Ns


class Attributes(Tagged, frozen=True, kw_only=True):
    """What the guest's user says of it has changed; for the node's balancer."""

    attributes: JobAttributes


class Told(Tagged, frozen=True, kw_only=True):
    """Answer to `Ask`: what the open returns, or -errno."""

    result: Annotated[int, msgspec.Meta(ge=-4095, le=2**32 - 1)]


class Date(Tagged, frozen=True, kw_only=True):
    """Answer to `AskDate`: home's CLOCK_REALTIME. `asked_ns` as it was asked."""

    asked_ns: Ns
    date_ns: Ns


ToRemote = (
    Prepare
    | Run
    | Signal
    | Hold
    | Freeze
    | Resume
    | Drop
    | Cancelled
    | Ping
    | Ack
    | Rejoin
    | Date
    | Told
    | Attributes
)


# ---- remote → deputy ----


class Prepared(Tagged, frozen=True, kw_only=True):
    pass


class Refused(Tagged, frozen=True, kw_only=True):
    reason: Text
    hint: Text = ""


class Ready(Tagged, frozen=True, kw_only=True):
    """The image is complete and restored; nothing runs yet."""

    epoch: Epoch
    received: Size


class Running(Tagged, frozen=True, kw_only=True):
    """First frame of the new epoch."""

    epoch: Epoch


class Frozen(Tagged, frozen=True, kw_only=True):
    """The guest stands still; the image follows on the bulk connection."""

    epoch: Epoch
    page_bytes: Size
    stopped_ns: Ns  # CLOCK_MONOTONIC of the guest at the stop


class Sent(Tagged, frozen=True, kw_only=True):
    """All of the image left this node."""

    epoch: Epoch


class Failed(Tagged, frozen=True, kw_only=True):
    """Receiving, restoring or sending failed; the guest (if there was one) stands still."""

    epoch: Epoch
    reason: Text


class Cancel(Tagged, frozen=True, kw_only=True):
    """Interrupt request `id` in the ghost: a signal or a freeze waits behind it."""

    id: int


class Ask(Tagged, frozen=True, kw_only=True):
    """The guest has opened /proc/self/{name} with these flags and third argument, and waits for
    `Told`. `again`: it did so before, and stopped before it was told."""

    name: Text
    flags: int
    value: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    again: bool = False


class NeedHome(Tagged, frozen=True, kw_only=True):
    """The guest made a call that only home can do; it stands before it, rewound. `nr` -1: it made
    none, and runs. `evicted`: its node's owner wants it gone, so it does not go back there."""

    reason: Text
    nr: int
    evicted: bool = False


class GuestDied(Tagged, frozen=True, kw_only=True):
    """The guest is gone without an exit call. `status` as of waitpid."""

    status: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class Pong(Tagged, frozen=True, kw_only=True):
    sent_ns: Ns


class CallsLost(Tagged, frozen=True, kw_only=True):
    """The connection for calls has ended here: all of them have to be made again. Unless the
    guest has exited, which home knows."""


class Rejoined(Tagged, frozen=True, kw_only=True):
    """Answer to `Rejoin`."""

    received: Ns


class AskDate(Tagged, frozen=True, kw_only=True):
    """What is the date at home? `asked_ns`: the remote's own CLOCK_MONOTONIC."""

    asked_ns: Ns


class Used(Tagged, frozen=True, kw_only=True):
    """User and system time of the body so far, on all nodes: said now and then, for the case that
    it is killed."""

    cpu_ns: tuple[Ns, Ns]


class Dropped(Tagged, frozen=True, kw_only=True):
    """The guest is about to be killed, and the connection to end."""


ToDeputy = (
    Prepared
    | Refused
    | Ready
    | Running
    | Frozen
    | Sent
    | Failed
    | Cancel
    | Ask
    | NeedHome
    | GuestDied
    | Pong
    | Ack
    | CallsLost
    | Rejoined
    | AskDate
    | Used
    | Dropped
)


T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes | memoryview, kind: type[T] | Any) -> T:
    """The message in `data`; ProtocolError unless it is exactly one of `kind`."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(data)  # type: ignore[no-any-return]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed message: {error}") from error
