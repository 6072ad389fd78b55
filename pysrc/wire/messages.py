"""Every message between the processes of mosix, as msgspec records.

Three conversations, each a tagged union: `ToRemote`/`ToDeputy` (deputy ↔ remote, the control
connection between two nodes), `NodeToWorker`/`WorkerToNode` (mosd ↔ its deputies and remotes, a
unix socket that also carries descriptors), `PeerHello`/`PeerAnswer` (after the handshake between
two mosds). What a field may hold is checked on decoding (`decode`), so that nothing unchecked
from the network reaches the code behind it. Times in nanoseconds, sizes in bytes.
This module only describes; it never sends.
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
Ip = Annotated[str, msgspec.Meta(pattern=r"^\d{1,3}(\.\d{1,3}){3}$")]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
CallNumber = Annotated[int, msgspec.Meta(ge=0, le=511)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=86400)]
Token = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
JobId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]
SigInfo = Annotated[bytes, msgspec.Meta(min_length=128, max_length=128)]


class _Tagged(msgspec.Struct, tag_field="t", frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


# ---- what a node can run: published by the probe, compared before anything is stopped ----


class NodeFeatures(msgspec.Struct, frozen=True, kw_only=True):
    """What makes a node eligible; compared by `mosix.balancer.eligibility.why_not`."""

    kernel: Text
    vdso: Text  # hex digest of the vdso's code: equal digests need no patching
    page_size: int
    cpu_features: tuple[Text, ...]
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
    rlimits: dict[int, Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]] = {}


# ---- deputy → remote ----


class Prepare(_Tagged, frozen=True, kw_only=True):
    """Make an empty guest. `needs`: what the body will take; `prefault`: ranges of
    anonymous memory to populate before the freeze. The guest's clocks must not be behind
    home's, which at the arrival of the `Ping` sent at `pinged_ns` were at most
    `monotonic_ns`/`boottime_ns` (when it was sent, and the whole round trip); its date
    then was `date_ns`. `localtime`: dates are those of the node where it runs, else home's."""

    pid: Pid
    comm: Text
    epoch: Epoch
    needs: Needs
    prefault: list[tuple[int, int]] = []
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


class Run(_Tagged, frozen=True, kw_only=True):
    """The commit: the guest may run as `epoch`. `held`: it is stopped (SIGSTOP)."""

    epoch: Epoch
    held: bool = False


class Signal(_Tagged, frozen=True, kw_only=True):
    """A signal that the ghost was given and whose disposition is a handler in the guest."""

    seq: int
    siginfo: SigInfo


class Hold(_Tagged, frozen=True, kw_only=True):
    """Stop (True) or continue (False) the guest: job control happened at home."""

    held: bool


class Freeze(_Tagged, frozen=True, kw_only=True):
    """Stop the guest for a move. With `target` the image goes straight there over a bulk
    connection that the remote's mosd dials with `token`; without, over the connection that
    home has attached for it."""

    epoch: Epoch
    target: Ip | None = None
    token: Token | None = None


class Resume(_Tagged, frozen=True, kw_only=True):
    """The move failed: the source goes on, as `epoch`. `unsupported`: the call for which it
    needed home fails with ENOSYS."""

    epoch: Epoch
    held: bool = False
    unsupported: bool = False


class Drop(_Tagged, frozen=True, kw_only=True):
    """The body is elsewhere, or its process ended: kill the guest and exit."""


class Cancelled(_Tagged, frozen=True, kw_only=True):
    """Answer to `Cancel` when the agent no longer executed that call (its reply is on its way)."""

    id: int


class Ping(_Tagged, frozen=True, kw_only=True):
    sent_ns: Ns


class Ack(_Tagged, frozen=True, kw_only=True):
    """So many messages have come, see `mosix.wire.lasting`; either side says so."""

    received: Ns


class Rejoin(_Tagged, frozen=True, kw_only=True):
    """First on another connection to the guest that was told to run as `epoch`."""

    epoch: Epoch
    received: Ns


class Told(_Tagged, frozen=True, kw_only=True):
    """Answer to `Ask`: what the open returns, or -errno."""

    result: Annotated[int, msgspec.Meta(ge=-4095, le=2**32 - 1)]


class Date(_Tagged, frozen=True, kw_only=True):
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
)


# ---- remote → deputy ----


class Prepared(_Tagged, frozen=True, kw_only=True):
    pass


class Refused(_Tagged, frozen=True, kw_only=True):
    reason: Text
    hint: Text = ""


class Ready(_Tagged, frozen=True, kw_only=True):
    """The image is complete and restored; nothing runs yet."""

    epoch: Epoch
    received: Size


class Running(_Tagged, frozen=True, kw_only=True):
    """First frame of the new epoch."""

    epoch: Epoch


class Frozen(_Tagged, frozen=True, kw_only=True):
    """The guest stands still; the image follows on the bulk connection."""

    epoch: Epoch
    page_bytes: Size
    stopped_ns: Ns  # CLOCK_MONOTONIC of the guest at the stop


class Sent(_Tagged, frozen=True, kw_only=True):
    """All of the image left this node."""

    epoch: Epoch


class Failed(_Tagged, frozen=True, kw_only=True):
    """Receiving, restoring or sending failed; the guest (if there was one) stands still."""

    epoch: Epoch
    reason: Text


class Cancel(_Tagged, frozen=True, kw_only=True):
    """Interrupt request `id` in the ghost: a signal or a freeze waits behind it."""

    id: int


class Ask(_Tagged, frozen=True, kw_only=True):
    """The guest has opened /proc/self/{name} with these flags and third argument, and waits for
    `Told`. `again`: it did so before, and stopped before it was told."""

    name: Text
    flags: int
    value: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    again: bool = False


class NeedHome(_Tagged, frozen=True, kw_only=True):
    """The guest made a call that only home can do; it stands before it, rewound."""

    reason: Text
    nr: int


class GuestDied(_Tagged, frozen=True, kw_only=True):
    """The guest is gone without an exit call. `status` as of waitpid."""

    status: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]


class Pong(_Tagged, frozen=True, kw_only=True):
    sent_ns: Ns


class CallsLost(_Tagged, frozen=True, kw_only=True):
    """The connection for calls has ended here: all of them have to be made again. Unless the
    guest has exited, which home knows."""


class Rejoined(_Tagged, frozen=True, kw_only=True):
    """Answer to `Rejoin`."""

    received: Ns


class AskDate(_Tagged, frozen=True, kw_only=True):
    """What is the date at home? `asked_ns`: the remote's own CLOCK_MONOTONIC."""

    asked_ns: Ns


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
)


# ---- mosd → deputy or remote (unix SOCK_SEQPACKET, descriptors ride along) ----


class Launch(_Tagged, frozen=True, kw_only=True):
    """First message to a deputy; rides with the launching process's pidfd and its stderr, and
    with the listener of its filter and the memory for that, if it has one, or with the file of the
    kernel module that intercepts it.
    `node`: where to send the program at its first instruction."""

    job: JobId
    pid: Pid
    uid: Uid
    gid: Uid
    node: Ip | None = None
    fallback: bool = False  # -F
    attributes: JobAttributes = JobAttributes()
    #: for tests: what guests are told of home's date is so much later than it is
    date_ahead_ns: int = 0
    cgroup: str
    #: this node's own IP, and its features
    home: Ip
    features: NodeFeatures
    #: how long a lost connection is tried to be made again
    grace_s: Seconds
    #: where the next mosd listens for its workers
    adoption: Text


class Join(_Tagged, frozen=True, kw_only=True):
    """A process of the job is about to execute a program as a nested mosrun says. Answered by
    `Joined`."""

    request: int
    pid: Pid
    node: Ip | None = None
    fallback: bool = False
    changes: dict[str, int] = {}


class Named(_Tagged, frozen=True, kw_only=True):
    """Answer to `Name`."""

    request: int
    ip: Ip | None = None
    number: int | None = None


class Move(_Tagged, frozen=True, kw_only=True):
    """Move process `pid` of the job; `target` None: home. Answered by `Moved`."""

    request: int
    pid: Pid
    target: Ip | None
    #: ordered by a person: -L does not forbid it
    manual: bool = True


class ComeHome(_Tagged, frozen=True, kw_only=True):
    """mosd stops: bring every process home. Answered by `Moved` with pid 0."""

    request: int


class Dialed(_Tagged, frozen=True, kw_only=True):
    """Answer to `Dial`; without error the connected sockets ride along, in order of purposes."""

    request: int
    error: Text = ""
    code: int = 1
    hint: Text = ""
    token: Token | None = None


class Welcome(_Tagged, frozen=True, kw_only=True):
    """First message to a remote; rides with the connected control socket."""

    job: JobId
    uid: Uid
    gid: Uid
    pid: Pid
    epoch: Epoch
    home: Ip
    here: Ip
    cgroup: str
    outer_uid: Uid  # G
    #: where the next mosd listens for its workers
    adoption: Text
    features: NodeFeatures
    memory_limit: Size
    #: the module takes the guest's calls, but those of these numbers; its file rides along
    unhooked: tuple[CallNumber, ...] | None = None


class Attach(_Tagged, frozen=True, kw_only=True):
    """A connection with this remote's token arrived; the socket rides along."""

    purpose: Text  # "call", "bulk", "home" or "control"


class Mapped(_Tagged, frozen=True, kw_only=True):
    """Answer to `MapIds`."""

    error: Text = ""


class Intercepted(_Tagged, frozen=True, kw_only=True):
    """Answer to `Intercept`."""

    error: Text = ""


class Leave(_Tagged, frozen=True, kw_only=True):
    """mosd of a guest's node stops: ask the deputy to take the guest home."""


class Arm(_Tagged, frozen=True, kw_only=True):
    """Tests only (`mosix.failpoints`). Answered by `Armed`."""

    spec: Text


NodeToWorker = (
    Launch
    | Join
    | Move
    | ComeHome
    | Dialed
    | Named
    | Welcome
    | Attach
    | Mapped
    | Intercepted
    | Leave
    | Arm
)


# ---- deputy or remote → mosd ----


class Started(_Tagged, frozen=True, kw_only=True):
    """The deputy is ready, the program may be executed."""


class Joined(_Tagged, frozen=True, kw_only=True):
    request: int
    error: Text = ""
    code: int = 1
    hint: Text = ""


class Name(_Tagged, frozen=True, kw_only=True):
    """Which node is `node`: a number of the user's view, or an IP? Answered by `Named`."""

    request: int
    node: Annotated[str, msgspec.Meta(pattern=r"^\d{1,10}(\.\d{1,3}){0,3}$")]


class Moved(_Tagged, frozen=True, kw_only=True):
    request: int
    pid: int
    error: Text = ""
    code: int = 1
    hint: Text = ""
    freeze_ns: Ns = 0
    page_bytes: Size = 0


class Dial(_Tagged, frozen=True, kw_only=True):
    """Connect to `ip` and prove ourselves; purposes of one guest: any of guest, call, bulk, home.
    `token` names the guest for the others when guest is not among the purposes."""

    request: int
    ip: Ip
    purposes: tuple[Text, ...]
    pid: Pid
    epoch: Epoch
    token: Token | None = None


class ProcessState(_Tagged, frozen=True, kw_only=True):
    """For mosps and the registry: where a process is and why."""

    pid: Pid
    where: Text  # "home", an IP, or "moving"
    nmigs: int
    why: Text  # "home: REASON", or how the last order ended
    epoch: Epoch
    stats: dict[str, int] = {}
    attributes: JobAttributes = JobAttributes()
    ended: bool = False


class MapIds(_Tagged, frozen=True, kw_only=True):
    """Write uid_map and gid_map of `carrier` (a child of the sender) and put it into the
    guest's cgroup."""

    carrier: Pid


class Intercept(_Tagged, frozen=True, kw_only=True):
    """Let the kernel module redirect the calls of process `pid`, which is in the guest's cgroup, to
    the file that came with `Welcome`."""

    pid: Pid


class GuestState(_Tagged, frozen=True, kw_only=True):
    """For mosps and the registry of the guest's node: its PID here."""

    outer_pid: Pid
    pid: Pid
    frozen: bool = False
    #: how far its date may be from home's; None: it has this node's
    date_bound_ns: Ns | None = None


class Armed(_Tagged, frozen=True, kw_only=True):
    pass


class Forsaken(_Tagged, frozen=True, kw_only=True):
    """The guest of process `pid` that `token` names at node `ip` could not be told that it is not
    wanted any more."""

    ip: Ip
    pid: Pid
    token: Token


class Returned(_Tagged, frozen=True, kw_only=True):
    """First word of a worker to a mosd that has not started it (`mosix.wire.adoption`). A deputy's
    rides with the job's stderr."""


WorkerToNode = (
    Started
    | Joined
    | Name
    | Moved
    | Dial
    | ProcessState
    | MapIds
    | Intercept
    | GuestState
    | Forsaken
    | Armed
    | Returned
)


# ---- mosd ↔ mosd, behind the handshake (mosix.wire.handshake) ----


class PeerHello(_Tagged, frozen=True, kw_only=True):
    """What a connection is for. The handshake's proof covers all of it.

    `purpose`: guest (a new guest; becomes the control connection), call, bulk, home (`token`;
    the image comes in over bulk and goes home over home, which is made beforehand: a guest must
    be able to go home when a mosd has died), control (`token`; instead of a lost one),
    drop (`token`; its deputy has died),
    status (answer with `PeerStatus`, then closed), move (a guest's node asks home to move process
    `pid` of `job` on behalf of user `uid`: after Accept `PeerMove` and `PeerMoved` follow)."""

    version: int
    sender: Ip
    receiver: Ip
    purpose: Text
    uid: Uid = 0
    gid: Uid = 0
    job: JobId | None = None
    pid: Pid | None = None
    epoch: Epoch = 0
    token: Token | None = None
    features: NodeFeatures | None = None


class PeerAccept(_Tagged, frozen=True, kw_only=True):
    token: Token | None = None
    features: NodeFeatures | None = None


#: Why a connection to a guest is refused for good.
GUEST_GONE = "that guest is not here any more"


class PeerRefuse(_Tagged, frozen=True, kw_only=True):
    reason: Text
    hint: Text = ""
    code: int = 8


class PeerStatus(_Tagged, frozen=True, kw_only=True):
    """What `mosctl rstatus` and `mosctl status` show of another node."""

    features: NodeFeatures
    guests: int
    jobs: int
    memory_free: Size
    version: Text
    date_bound_ns: Ns | None = None
    load: NodeLoad | None = None  # mosd has only just been started


PeerAnswer = PeerAccept | PeerRefuse | PeerStatus


class PeerMove(_Tagged, frozen=True, kw_only=True):
    """What is asked for on a connection of purpose move. `target` None: home; `wait`: answer
    when the move is over, else as soon as it is ordered."""

    target: Ip | None
    wait: bool


class PeerMoved(_Tagged, frozen=True, kw_only=True):
    error: Text = ""
    code: int = 1
    hint: Text = ""
    freeze_ns: Ns = 0
    page_bytes: Size = 0


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
