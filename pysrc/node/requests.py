"""What commands and mosd say to each other on the control socket (msgpack in frames).

One request per connection, one answer; before that of a launch may come PREPARE. mosrun's front is
C and decodes `LaunchAnswer` by hand: it is an array and must stay so. Used by `control.py`,
`client.py` and native/front.c.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from mosix.wire.messages import NodeLoad

#: Largest request and answer, bytes.
MAX_REQUEST = 256 << 10
MAX_ANSWER = 64 << 20

Name = Annotated[str, msgspec.Meta(max_length=300)]


class _Tagged(msgspec.Struct, tag_field="t", frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Launch(_Tagged, frozen=True, kw_only=True, tag="launch"):
    """From mosrun's front; its stderr rides along. `argv` may be cut behind the options."""

    argv: list[bytes]
    columns: int = 80


class Migrate(_Tagged, frozen=True, kw_only=True, tag="migrate"):
    """`target`: number, IP, host name, "home" or, for a guest, "out"."""

    pid: int
    target: Name
    wait: bool = False


class MigrateJob(_Tagged, frozen=True, kw_only=True, tag="migratejob"):
    """As `Migrate`, for all processes of a job: `job`: its id, or the beginning of it."""

    job: Name
    target: Name
    wait: bool = False


class Whois(_Tagged, frozen=True, kw_only=True, tag="whois"):
    """`node` "": this one."""

    node: Name = ""


class Status(_Tagged, frozen=True, kw_only=True, tag="status"):
    """`node` "": this one. `wait`: for longer, if it is known to be down."""

    node: Name = ""
    wait: bool = False


class LocalStatus(_Tagged, frozen=True, kw_only=True, tag="localstatus"):
    """This node, in detail."""


class Nodes(_Tagged, frozen=True, kw_only=True, tag="nodes"):
    """What this node knows of all, itself included; nobody is asked for it."""


class Measure(_Tagged, frozen=True, kw_only=True, tag="measure"):
    """The link to that node; root only."""

    node: Name


class BestNode(_Tagged, frozen=True, kw_only=True, tag="bestnode"):
    """For one more process with so many MB. Answered by `NodeName`."""

    need_mb: Annotated[int, msgspec.Meta(ge=0, le=2**30)] = 0


class Processes(_Tagged, frozen=True, kw_only=True, tag="processes"):
    """`pid` 0: all. `why`: with what the balancer says of each."""

    pid: int = 0
    why: bool = False


class Moves(_Tagged, frozen=True, kw_only=True, tag="moves"):
    """The last moves of this node's jobs; with both numbers of the last `MoveList` those since."""

    since: Annotated[int, msgspec.Meta(ge=0)] = 0
    began_ns: int = 0


class Failpoints(_Tagged, frozen=True, kw_only=True, tag="failpoints"):
    """Root only, of a mosd that was started for it: see `mosix.failpoints`."""

    spec: Annotated[str, msgspec.Meta(max_length=1000)]


class Say(_Tagged, frozen=True, kw_only=True, tag="say"):
    """Root only. `word` as in `mosix.node.owner.OwnerFlags`: it is so from now on, or is not."""

    word: Literal["block", "stay", "lstay", "logmap"]
    so: bool


class Evacuate(_Tagged, frozen=True, kw_only=True, tag="evacuate"):
    """Root only, answered when it is done or `deadline_s` is over. `what`: expel (guests leave),
    bring (own processes come home), shutdown (both, then mosd ends), drain (both, and nothing new
    comes or goes), nodrain. `node`: of drain and nodrain; "": this one."""

    what: Literal["expel", "bring", "shutdown", "drain", "nodrain"]
    node: Name = ""
    deadline_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None


class Setpe(_Tagged, frozen=True, kw_only=True, tag="setpe"):
    """Root only: read the files again. `off`: leave the cluster."""

    off: bool = False


Request = (
    Launch
    | Migrate
    | MigrateJob
    | Whois
    | Status
    | LocalStatus
    | Processes
    | Say
    | Evacuate
    | Setpe
    | BestNode
    | Nodes
    | Measure
    | Moves
    | Failpoints
)

EXECUTE = 0
TO_STDOUT = 1
TO_STDERR = 2
PREPARE = 3
EXECUTE_AS = 4


class LaunchAnswer(msgspec.Struct, frozen=True, array_like=True):
    """`what` EXECUTE: execute argv[number], `deputy` may trace it. EXECUTE_AS: the same, but its
    arguments begin behind that with its own name (-z). TO_STDOUT, TO_STDERR: print
    `text` there and exit with `number`. PREPARE: try to join the cgroup whose directory rides
    along, if one does; install the filter of the interface, if `number` is 1; say so with one
    byte, with which rides the filter's listener, and wait for the next answer."""

    what: int
    number: int
    deputy: int = 0
    text: str = ""


class Failure(_Tagged, frozen=True, kw_only=True, tag="failure"):
    code: int
    message: str
    hint: str = ""


class Migrated(_Tagged, frozen=True, kw_only=True, tag="migrated"):
    """`freeze_ns`, `page_bytes`: only when waited for; 0 when it was there already."""

    freeze_ns: int = 0
    page_bytes: int = 0


class MigratedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """`error`: why it did not move; of class `code`."""

    pid: int
    freeze_ns: int = 0
    page_bytes: int = 0
    error: str = ""
    code: int = 0


class MigratedJob(_Tagged, frozen=True, kw_only=True, tag="migratedjob"):
    """`processes`: by PID; without `wait` only those whose move could not be ordered are told."""

    processes: list[MigratedProcess]


class Said(_Tagged, frozen=True, kw_only=True, tag="said"):
    """`words`: all that the owner has said; `new`: it was not so before."""

    words: list[str]
    new: bool


class Evacuated(_Tagged, frozen=True, kw_only=True, tag="evacuated"):
    """How many guests and own processes are where they belong now, and, in words, who is not."""

    guests: int = 0
    own: int = 0
    seconds: float = 0.0
    left: list[str] = []


class Configured(_Tagged, frozen=True, kw_only=True, tag="configured"):
    """What the files say: `nodes` in the map, of which `added` are new; `removed` are no more in
    it. `moved`: who had to go home for that."""

    nodes: int
    added: int
    removed: int
    off: bool
    moved: Evacuated


class NodeName(_Tagged, frozen=True, kw_only=True, tag="whois"):
    ip: str
    number: int | None
    host: str


class KnownNode(msgspec.Struct, frozen=True, kw_only=True):
    """What gossip brought of a node. `state`: "alive", "suspect", "dead", "left" (it said
    goodbye), "unheard" (of which the rest is 0, too). `age_s`: how old the rest is. `speed`:
    10,000 is a 3 GHz Pentium 4. `dilation`: wall time that a second of CPU time takes there;
    `frozen`: processes that stand still; `owner`: what its owner has said: "block" and so on."""

    ip: str
    number: int | None
    state: str
    age_s: float
    running: float
    cores: float
    speed: float
    memory_mb: float
    free_mb: float
    guests: float
    frozen: float = 0.0
    dilation: float = 1.0
    psi_memory: float = 0.0
    psi_io: float = 0.0
    owner: list[str] = []


class NodeList(_Tagged, frozen=True, kw_only=True, tag="nodes"):
    """By address; `own`: this node's."""

    own: str
    nodes: list[KnownNode]


class NodeStatus(_Tagged, frozen=True, kw_only=True, tag="status"):
    """`counters`: connections refused, malformed requests and the like; `known`: what it knows of
    the other nodes; `decided`: by the kernel tier, so far; all only of this node. `load`: None in
    mosd's first second."""

    ip: str
    number: int | None
    version: str
    kernel: str
    tier: str
    cpus: int
    memory_free: int
    jobs: int
    guests: int
    #: how far a guest's date may be from that of its home
    date_bound_ns: int | None = None
    counters: dict[str, int] = {}
    decided: dict[str, int] = {}
    load: NodeLoad | None = None
    known: list[KnownNode] = []
    #: what its owner has said, and its topological features
    owner: list[str] = []
    topology: list[str] = []
    #: why the files are not what is in force; only of this node
    problem: str = ""


class NodeDetails(_Tagged, frozen=True, kw_only=True, tag="localstatus"):
    """`since`: when mosd was started, seconds since 1970. `processes`: of own jobs, by "home",
    "away" and "moving". `guests`: by the IP of their home."""

    status: NodeStatus
    mosd_pid: int
    since: float
    stopping: bool
    config_dir: str
    port: int
    nodes: int
    numbered: int
    cpu_features: int
    xsave_size: int
    page_size: int
    processes: dict[str, int] = {}
    guests: dict[str, int] = {}


class ProcessRow(msgspec.Struct, frozen=True, kw_only=True):
    """`where`: "home", "here" (a guest of this node), "moving" or an IP. `origin_pid`: the home
    PID of a guest."""

    pid: int
    uid: int
    where: str
    where_number: int | None = None
    home: str
    home_number: int | None = None
    nmigs: int
    why: str
    job: str
    origin_pid: int = 0
    job_class: int = 0
    command: str
    stats: dict[str, int] = {}
    #: why the balancer leaves it there, when that was asked for
    balance: str = ""


class ProcessList(_Tagged, frozen=True, kw_only=True, tag="processes"):
    rows: list[ProcessRow]


class LinkMeasured(_Tagged, frozen=True, kw_only=True, tag="measure"):
    """`turn_ns`: there and back; `mb_s`: MB (10**6 bytes) a second of bare TCP."""

    turn_ns: int
    mb_s: float


class PastMove(msgspec.Struct, frozen=True, kw_only=True):
    """A move that is over. `at_s`: when it was, seconds since 1970. `origin`, `target`: "home" or
    the IP of a node. `freeze_ns`: how long it stood still; `page_bytes`: what of it travelled."""

    number: int
    at_s: float
    pid: int
    uid: int
    job: str
    origin: str
    target: str
    why: str
    nmigs: int
    freeze_ns: int
    page_bytes: int


class MoveList(_Tagged, frozen=True, kw_only=True, tag="moves"):
    """Oldest first. `last`: the newest number there is; `began_ns`: names this mosd, whose numbers
    these are."""

    moves: list[PastMove]
    last: int
    began_ns: int


class Armed(_Tagged, frozen=True, kw_only=True, tag="failpoints"):
    """This mosd and all of its workers are."""


Answer = (
    Failure
    | Migrated
    | MigratedJob
    | Said
    | Evacuated
    | Configured
    | NodeName
    | NodeList
    | NodeStatus
    | NodeDetails
    | ProcessList
    | LinkMeasured
    | MoveList
    | Armed
)
