"""Whatever comes in at a door of mosd costs its sender a connection, and mosd nothing lasting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mosd_nodes import NOBODY, ROOT, Cluster, Node, end, eventually
from mosix.errors import ProtocolError
from mosix.image import stream
from mosix.image.model import PAGE_SIZE
from mosix.lab.fuzz import DOORS, Maker, Thrower
from mosix.node.control import MAX_PER_USER, ControlServer, Handlers
from mosix.node.listening import Budget, Complaints
from mosix.node.requests import Answer, Processes, ProcessList, ProcessRow, Request
from mosix.node.rights import Caller
from mosix.wire.frames import frame
from mosix.wire.messages import encode

HERE = Path(__file__).resolve().parent
#: What is no growth: fragments, pages that were shared before, kB.
_NOISE_KB = 12 << 10


def rss_kb(node: Node) -> int:
    assert node.process is not None
    text = Path(f"/proc/{node.process.pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0])


def counters(node: Node) -> dict[str, int]:
    counted: dict[str, int] = json.loads(node.mosix("mosctl", "status", "--json").out)["counters"]
    return counted


@pytest.fixture
def node(cluster: Cluster) -> Node:
    made = cluster.node(1)
    assert made.mosix("mosctl", "status").status == 0
    return made


def serves(node: Node) -> None:
    assert node.mosix("mosctl", "status", uid=NOBODY).status == 0
    assert node.mosrun("true").status == 0


@pytest.mark.parametrize("door", DOORS)
def test_what_is_thrown_at_a_door_is_turned_away_and_counted(door: str, node: Node) -> None:
    """A short run of bench/fuzz."""
    address: object = (node.ip, node.port)
    if door in ("control", "workers"):
        address = str(node.run_dir / door)
    thrower = Thrower(
        door, Maker(3, "127.0.0.3", node.ip), address, node.secret.encode(), "127.0.0.3"
    )
    asyncio.run(thrower.throw(100))
    before, open_before = rss_kb(node), node.descriptors()
    asyncio.run(thrower.throw(400))
    assert not thrower.outcome["not closed"], thrower.outcome
    eventually(lambda: node.descriptors() <= open_before)
    assert rss_kb(node) < before + _NOISE_KB
    kinds = {
        "peer": {"malformed", "refused"},
        "proved": {"malformed"},
        "control": {"malformed request"},
        "workers": {"no worker"},
        "gossip": {"gossip size"},
    }
    eventually(lambda: kinds[door] <= set(counters(node)))
    # once per peer and minute
    assert node.log().count("malformed:") <= 1
    assert node.log().count("no worker:") <= 1
    assert node.log().count("gossip:") <= 1
    serves(node)


def test_arbitrary_bytes_at_every_stream_door_end_their_connection(node: Node) -> None:
    doors = {
        "peer": ((node.ip, node.port), socket.AF_INET, socket.SOCK_STREAM),
        "control": (str(node.control), socket.AF_UNIX, socket.SOCK_STREAM),
        "workers": (str(node.run_dir / "workers"), socket.AF_UNIX, socket.SOCK_SEQPACKET),
    }

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(doors)), st.binary(min_size=1, max_size=3000), st.booleans())
    def thrown(door: str, data: bytes, framed: bool) -> None:
        address, family, kind = doors[door]
        with socket.socket(family, kind) as sock:
            sock.settimeout(15)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, OSError):
                sock.connect(address)
                sock.sendall(struct.pack("<I", len(data)) + data if framed else data)
                sock.shutdown(socket.SHUT_WR)
            try:
                while sock.recv(1 << 16):
                    pass
            except (ConnectionResetError, OSError) as error:
                assert not isinstance(error, TimeoutError), (door, data)

    thrown()
    serves(node)


def test_thousands_of_connections_take_nothing_from_others(node: Node) -> None:
    """A user holds all the connections he may have, none of which says anything."""
    before = node.descriptors()
    code = (
        "import socket, sys\n"
        "held = []\n"
        "for n in range(int(sys.argv[2])):\n"
        "    held.append(socket.socket(socket.AF_UNIX)); held[-1].connect(sys.argv[1])\n"
        "    held[-1].send(b'\\x05')\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", code, str(node.control), str(MAX_PER_USER + 400)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        user=NOBODY,
        cwd="/",
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert node.descriptors() <= before + MAX_PER_USER + 8
        assert node.mosix("mosctl", "status", uid=1234).status == 0
        assert counters(node)["too many commands"] >= 1
    finally:
        process.communicate()
    eventually(lambda: node.descriptors() <= before)
    assert node.mosix("mosctl", "status", uid=NOBODY).status == 0


def test_requests_that_are_only_begun_are_held_up_to_a_limit(node: Node) -> None:
    """256 KiB in each of 500 connections would be 128 MiB."""
    code = (
        "import socket, struct, sys\n"
        "held = []\n"
        "for n in range(500):\n"
        "    sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1]); held.append(sock)\n"
        "    try: sock.sendall(struct.pack('<I', 256 << 10) + bytes(200 << 10))\n"
        "    except OSError: pass\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    before = rss_kb(node)
    process = subprocess.Popen(
        ["/usr/bin/python3", "-c", code, str(node.control)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=NOBODY,
        cwd="/",
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert rss_kb(node) < before + (32 << 10)
        assert node.mosrun("true", "x" * (100 << 10), uid=1234).status == 0
    finally:
        process.communicate()
    serves(node)


_MUTE = """
import socket, sys
from mosix.node.requests import Processes, Failure
from mosix.wire.frames import frame
from mosix.wire.messages import encode
held = []
for n in range(40):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    sock.sendall(frame(encode(Processes()), 1000))
    sock.settimeout(20)
    head = sock.recv(4)
    held.append((int.from_bytes(head, "little"), sock))
print(sum(size > 1 << 20 for size, _ in held), sum(size < 1000 for size, _ in held), flush=True)
"""


async def test_answers_that_nobody_reads_are_held_up_to_a_limit(tmp_path: Path) -> None:
    """Each of them has some MiB: of a user with many processes."""
    row = ProcessRow(
        pid=1, uid=1, where="home", home="x", nmigs=0, why="", job="", command="x" * 90
    )
    many = ProcessList(rows=[row] * 20_000)

    async def launch(*_: object) -> object:
        raise AssertionError

    async def request(caller: Caller, request: Request) -> Answer:
        assert caller.uid == NOBODY
        assert isinstance(request, Processes)
        return many

    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.owner() == "root" and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    complaints = Complaints()
    served = ControlServer(
        tmp_path / "control",
        Handlers(launch, request),  # type: ignore[arg-type]
        complaints,
        "10.0.0.1",
    )
    served.listen()
    serving = asyncio.create_task(served.serve())
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _MUTE,
            str(tmp_path / "control"),
            env={"PYTHONPATH": f"{ROOT}/build/typed"},
            stdout=asyncio.subprocess.PIPE,
            user=NOBODY,
        )
        out, _ = await process.communicate()
        whole, refused = map(int, out.split())
        size = len(frame(encode(many), 64 << 20))
        assert 1 <= whole <= (8 << 20) // size + 1
        assert refused == 40 - whole
        assert complaints.counters["too much at once"] == refused
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await served.close()


def test_a_budget_is_of_one_user_and_of_all_and_never_roots() -> None:
    budget = Budget(100, 250)
    with contextlib.ExitStack() as held:

        def hold(uid: int, size: int) -> bool:
            return held.enter_context(budget.holding(uid, size))

        assert hold(1, 120)  # one thing of any size
        assert not hold(1, 1)
        assert [hold(2, 60), hold(2, 40), hold(2, 1)] == [True, True, False]
        assert [hold(3, 30), hold(3, 1)] == [True, False]
        assert hold(0, 1000)
        assert not hold(4, 1)
    with budget.holding(4, 250) as allowed:
        assert allowed


def test_complaints_of_invented_peers_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    complaints = Complaints(lambda: now)
    for n in range(5000):
        complaints.note("malformed", f"10.0.{n >> 8}.{n & 255}", "x")
    assert complaints.counters["malformed"] == 5000
    assert len(caplog.records) == 301
    now = 61.0
    complaints.note("malformed", "10.0.0.1", "x")
    assert len(caplog.records) == 302


# ---- a deputy and a remote ----


def hostile(cluster: Cluster, number: int, **workers: str) -> Node:
    node = cluster.node(number, start=False)
    node.options = [f"--{kind}=hostile_workers:{name}" for kind, name in workers.items()]
    node.extra = {"PYTHONPATH": f"{node.environment['PYTHONPATH']}:{HERE}"}
    node.start()
    return node


def test_a_deputy_that_floods_mosd_is_heard_slowly_and_believed_nothing(cluster: Cluster) -> None:
    node = hostile(cluster, 1, deputy="flooding_deputy")
    before = rss_kb(node)
    job = node.job(uid=NOBODY)
    eventually(lambda: node.row(job.pid)["why"] == "said", 40)
    assert [row["pid"] for row in node.rows()] == [job.pid]
    assert rss_kb(node) < before + 2 * _NOISE_KB
    serves(node)
    assert end(job) == 0


def test_a_deputy_that_wants_what_a_remote_may_is_killed(cluster: Cluster) -> None:
    node = hostile(cluster, 1, deputy="deputy_of_others")
    job = node.job(uid=NOBODY)
    eventually(lambda: "a deputy sent MapIds; killed" in node.log() or "killed" in node.log())
    eventually(lambda: node.rows() == [])
    assert end(job) == 0  # at home it goes on


def test_a_remote_that_wants_a_guest_elsewhere_is_killed(cluster: Cluster) -> None:
    one = cluster.node(1)
    two = hostile(cluster, 2, remote="remote_of_others")
    job = one.job(uid=NOBODY)
    assert one.mosix("migrate", job.pid, 2, "--wait").status != 0
    eventually(lambda: "a remote dials for ('guest',)" in two.log())
    assert one.row(job.pid)["where"] == "home"
    assert two.rows() == []
    assert end(job) == 0


# ---- images ----


def section(kind: int, size: int) -> bytes:
    return struct.pack("<II", kind, size)


def test_a_list_that_is_too_long_is_refused_before_it_takes_memory() -> None:
    for kind, most in ((3, stream.MAX_THREADS), (4, stream.MAX_VMAS), (5, stream.MAX_RUNS)):
        decoder = stream._DECODERS[kind]
        with pytest.raises(Exception, match="length <="):
            decoder.decode(b"\xdd" + struct.pack(">I", most + 1))


def test_page_runs_take_no_more_than_there_is_room_for_pages() -> None:
    room = 100 * PAGE_SIZE
    decoder = stream.Decoder(room)
    decoder._contents = [None] * 4
    decoder._section(section(5, 2400))
    decoder = stream.Decoder(room)
    decoder._contents = [None] * 4
    with pytest.raises(ProtocolError, match="section 5 of an image has 1048576 bytes"):
        decoder._section(section(5, 1 << 20))
