"""What mosd says and is told, as msgspec records.

Two conversations: `NodeToWorker`/`WorkerToNode` (mosd ↔ its deputies and remotes, a unix socket
that also carries descriptors), `PeerHello`/`PeerAnswer` and what follows them (mosd ↔ mosd, behind
the handshake). What all messages are made of, and `decode`, is in `mosix.wire.messages`.
This module only describes; it never sends.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from mosix.wire.attributes import JobAttributes
from mosix.wire.messages import (
    Amount,
    CallNumber,
    Epoch,
    Ip,
    JobId,
    NodeFeatures,
    NodeLoad,
    Ns,
    Pid,
    Seconds,
    Size,
    Tagged,
    Text,
    Token,
    Uid,
    Word,
)

#: mosd and workers that one of another build has started leave each other alone, naming both. To be
#: counted up when `NodeToWorker` or `WorkerToNode` change.
WORKER_VERSION = 3

# ---- mosd → deputy or remote (unix SOCK_SEQPACKET, descriptors ride along) ----


class Launch(Tagged, frozen=True, kw_only=True):
    """First message to a deputy; rides with the launching process's pidfd and its stderr, and
    with the listener of its filter and the memory for that, if it has one, or with the file of the
    kernel module that intercepts it.
    `node`: where to send the program at its first instruction."""

    job: JobId
    pid: Pid
    uid: Uid
    gid: Uid
    node: Ip | None = None
    interface: bool = True
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


class Join(Tagged, frozen=True, kw_only=True):
    """A process of the job is about to execute a program as a nested mosrun says. Answered by
    `Joined`."""

    request: int
    pid: Pid
    node: Ip | None = None
    fallback: bool = False
    changes: dict[str, int] = msgspec.field(default_factory=dict)


class Named(Tagged, frozen=True, kw_only=True):
    """Answer to `Name` and `Consider`."""

    request: int
    ip: Ip | None = None
    number: int | None = None


class Automatic(msgspec.Struct, frozen=True, kw_only=True):
    """What the system's order for a move says besides."""

    source: Text
    why: Text


class Move(Tagged, frozen=True, kw_only=True):
    """Move process `pid` of the job; `target` None: home. Answered by `Moved`. By a person, or
    by the system: then only from where it is said to be ("home" or an IP), not if it is
    locked, and `why` is what mosps shows."""

    request: int
    pid: Pid
    target: Ip | None
    automatic: Automatic | None = None


class ComeHome(Tagged, frozen=True, kw_only=True):
    """mosd stops: bring every process home. Answered by `Moved` with pid 0."""

    request: int


class Dialed(Tagged, frozen=True, kw_only=True):
    """Answer to `Dial`; without error the connected sockets ride along, in order of purposes."""

    request: int
    error: Text = ""
    code: int = 1
    hint: Text = ""
    token: Token | None = None


class Welcome(Tagged, frozen=True, kw_only=True):
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


class Attach(Tagged, frozen=True, kw_only=True):
    """A connection with this remote's token arrived; the socket rides along."""

    purpose: Text  # "call", "bulk", "home" or "control"


class Mapped(Tagged, frozen=True, kw_only=True):
    """Answer to `MapIds`."""

    error: Text = ""


class Intercepted(Tagged, frozen=True, kw_only=True):
    """Answer to `Intercept`."""

    error: Text = ""


class Leave(Tagged, frozen=True, kw_only=True):
    """Ask the deputy to take the guest home: mosd of its node stops; `evicted`, the owner of the
    node wants it gone; or, with a reason, there is not enough memory: the guest halts at once, and
    `Halting` says so."""

    reason: Text = ""
    evicted: bool = False


class Arm(Tagged, frozen=True, kw_only=True):
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


class Started(Tagged, frozen=True, kw_only=True):
    """The deputy is ready, the program may be executed."""


class Joined(Tagged, frozen=True, kw_only=True):
    request: int
    error: Text = ""
    code: int = 1
    hint: Text = ""


class Name(Tagged, frozen=True, kw_only=True):
    """Which node is `node`: a number of the user's view, or an IP? Answered by `Named`."""

    request: int
    node: Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,10}(\.[0-9]{1,3}){0,3}\Z")]


class Consider(Tagged, frozen=True, kw_only=True):
    """Where had process `pid` better be, which is at `where` ("home" or an IP) now? Answered by
    `Named`, without an IP: there."""

    request: int
    pid: Pid
    where: Text


class Moved(Tagged, frozen=True, kw_only=True):
    request: int
    pid: int
    error: Text = ""
    code: int = 1
    hint: Text = ""
    freeze_ns: Ns = 0
    page_bytes: Size = 0


class Dial(Tagged, frozen=True, kw_only=True):
    """Connect to `ip` and prove ourselves; purposes of one guest: any of guest, call, bulk, home.
    `token` names the guest for the others when guest is not among the purposes."""

    request: int
    ip: Ip
    purposes: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)]
    pid: Pid
    epoch: Epoch
    token: Token | None = None
    #: of the process: those of class 0 have no guests at outsiders
    job_class: int = 0


class ProcessState(Tagged, frozen=True, kw_only=True):
    """For mosps and the registry: where a process is and why."""

    pid: Pid
    where: Text  # "home", an IP, or "moving"
    nmigs: int
    why: Text  # "home: REASON", or how the last order ended
    epoch: Epoch
    stats: Annotated[dict[Word, int], msgspec.Meta(max_length=64)] = msgspec.field(
        default_factory=dict
    )
    attributes: JobAttributes = JobAttributes()
    ended: bool = False
    #: names the guest there, if it is away: for a mosd that has not made it
    token: Token | None = None
    #: it has just moved from there ("home" or an IP); "": no news of a move
    origin: Text = ""


class MapIds(Tagged, frozen=True, kw_only=True):
    """Write uid_map and gid_map of `carrier` (a child of the sender) and put it into the
    guest's cgroup."""

    carrier: Pid


class Intercept(Tagged, frozen=True, kw_only=True):
    """Let the kernel module redirect the calls of process `pid`, which is in the guest's cgroup, to
    the file that came with `Welcome`."""

    pid: Pid


class GuestState(Tagged, frozen=True, kw_only=True):
    """For mosps and the registry of the guest's node: its PID here; for the balancer: whether it
    has begun to run, the CPU time that its body used before it came, and how many calls and bytes
    have gone home since."""

    outer_pid: Pid
    pid: Pid
    frozen: bool = False
    runs: bool = False
    cpu_before_ns: Ns = 0
    calls: Ns = 0
    call_bytes: Ns = 0
    attributes: JobAttributes = JobAttributes()
    #: how far its date may be from home's; None: it has this node's
    date_bound_ns: Ns | None = None


class Halting(Tagged, frozen=True, kw_only=True):
    """The guest was told to stop for a `Leave`: given some more memory, it will do nothing else."""


class Armed(Tagged, frozen=True, kw_only=True):
    pass


class Unruly(Tagged, frozen=True, kw_only=True):
    """The remote on node `ip` does what none of ours does."""

    ip: Ip
    what: Text


class Forsaken(Tagged, frozen=True, kw_only=True):
    """The guest of process `pid` that `token` names at node `ip` could not be told that it is not
    wanted any more."""

    ip: Ip
    pid: Pid
    token: Token


class Returned(Tagged, frozen=True, kw_only=True):
    """First word of a worker to a mosd that has not started it (`mosix.wire.adoption`). A deputy's
    rides with the job's stderr, the listener of its filter and the memory for that, if it has
    one. It must stay as it is in every version, so that any two can name theirs."""

    version: int = 0


WorkerToNode = (
    Started
    | Joined
    | Name
    | Consider
    | Moved
    | Dial
    | ProcessState
    | MapIds
    | Intercept
    | GuestState
    | Halting
    | Forsaken
    | Unruly
    | Armed
    | Returned
)


# ---- mosd ↔ mosd, behind the handshake (mosix.wire.handshake) ----


class PeerHello(Tagged, frozen=True, kw_only=True):
    """What a connection is for. The handshake's proof covers all of it.

    `purpose`: guest (a new guest; becomes the control connection), call, bulk, home (`token`;
    the image comes in over bulk and goes home over home, which is made beforehand: a guest must
    be able to go home when a mosd has died), control (`token`; instead of a lost one),
    drop (`token`; its deputy has died),
    status (answer with `PeerStatus`, then closed), move (a guest's node asks home to move process
    `pid` of `job` on behalf of user `uid`: after Accept `PeerMove` and `PeerMoved` follow),
    balance (after Accept the conversation of `mosix.wire.bargain`), evacuate (user `uid`, root:
    after Accept `PeerEvacuate` and `PeerEvacuated` follow)."""

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


class PeerAccept(Tagged, frozen=True, kw_only=True):
    token: Token | None = None
    features: NodeFeatures | None = None


#: Why a connection to a guest is refused for good.
GUEST_GONE = "that guest is not here any more"


class PeerRefuse(Tagged, frozen=True, kw_only=True):
    reason: Text
    hint: Text = ""
    code: int = 8


class PeerStatus(Tagged, frozen=True, kw_only=True):
    """What `mosctl rstatus` and `mosctl status` show of another node."""

    features: NodeFeatures
    guests: int
    jobs: int
    memory_free: Size
    version: Text
    date_bound_ns: Ns | None = None
    load: NodeLoad | None = None  # mosd has only just been started
    #: what its owner has said, and its topological features
    owner: tuple[Text, ...] = ()
    topology: tuple[Text, ...] = ()


PeerAnswer = PeerAccept | PeerRefuse | PeerStatus


class PeerMove(Tagged, frozen=True, kw_only=True):
    """What is asked for on a connection of purpose move. `target` None: home; `wait`: answer
    when the move is over, else as soon as it is ordered. `automatic`: nobody has asked for it
    but the balancer of the guest's node."""

    target: Ip | None
    wait: bool
    automatic: Automatic | None = None


class PeerMoved(Tagged, frozen=True, kw_only=True):
    error: Text = ""
    code: int = 1
    hint: Text = ""
    freeze_ns: Ns = 0
    page_bytes: Size = 0


class PeerEvacuate(Tagged, frozen=True, kw_only=True):
    """What is asked for on a connection of purpose evacuate: drain the node, for at most
    `deadline_s` seconds (None: until it is done), or, `undo`, let guests come again."""

    undo: bool = False
    deadline_s: Amount | None = None


class PeerEvacuated(Tagged, frozen=True, kw_only=True):
    """How many guests and own processes are where they belong now, and, in words, who is not."""

    guests: int = 0
    own: int = 0
    seconds: Amount = 0.0
    left: tuple[Text, ...] = ()
    error: Text = ""
    code: int = 1
    hint: Text = ""
