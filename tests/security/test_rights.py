"""Who may do what: every request of a command, every purpose of a connection between nodes, each as
nobody, owner, another user and root. docs/security.md has the same table for people."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from mosd_nodes import NOBODY, ROOT, Cluster, Node, end, eventually
from mosix.config import Paths, load
from mosix.errors import MosixError, PermissionDeniedError, ProtocolError, RefusedError
from mosix.node import requests
from mosix.node.features import probe
from mosix.node.guests import MAX_EMPTY
from mosix.node.idmaps import FIRST_ID, PAIRS
from mosix.node.peers import PURPOSES, Dialer
from mosix.node.records import GuestRecord, read_all
from mosix.node.requests import Request
from mosix.node.settings import Settings
from mosix.wire.channel import Frames
from mosix.wire.frames import frame
from mosix.wire.messages import encode
from mosix.wire.mosd_messages import PeerMove, PeerMoved

OWNER, OTHER = NOBODY, 1234
DENIED = PermissionDeniedError.code
PAGE = ROOT / "docs" / "security.md"

_ASK = """
import sys
from mosix.config.paths import Paths
from mosix.errors import MosixError
from mosix.node import requests
from mosix.node.client import ask
import msgspec
kind = getattr(requests, sys.argv[1])
request = msgspec.json.decode(sys.argv[2], type=kind)
try:
    ask(Paths.choose(None, None), request, object)
except MosixError as error:
    print(error.code, error.line())
else:
    print(0)
"""


@dataclass(frozen=True)
class Right:
    """`fields` of the request; what owner of the job, another user and root are answered: 0 or
    the code of the error; None: not tried, and why."""

    fields: dict[str, object]
    owner: int | None
    other: int | None
    root: int | None


def rights(pid: int, job: str) -> dict[str, Right]:
    free = (0, 0, 0)
    mine = (0, DENIED, 0)
    roots = (DENIED, DENIED, 0)
    return {
        "Migrate": Right({"pid": pid, "target": "home"}, *mine),
        "MigrateJob": Right({"job": job, "target": "home"}, *mine),
        "Whois": Right({}, *free),
        "Status": Right({}, *free),
        "LocalStatus": Right({}, *free),
        "BestNode": Right({}, *free),
        "Processes": Right({}, *free),
        "Nodes": Right({}, *free),
        "Moves": Right({}, *free),
        "Measure": Right({"node": "2"}, DENIED, DENIED, None),
        "Say": Right({"word": "lstay", "so": False}, *roots),
        "Evacuate": Right({"what": "nodrain"}, *roots),
        "Setpe": Right({}, *roots),
        # and root only of a mosd that was started for tests
        "Failpoints": Right({"spec": ""}, DENIED, DENIED, DENIED),
        # for everybody: tests/node/test_mosrun.py
        "Launch": Right({}, None, None, None),
    }


def code(node: Node, name: str, fields: dict[str, object], uid: int) -> int:
    text = json.dumps({"t": getattr(requests, name).__struct_config__.tag, **fields})
    done = node.run(sys.executable, "-c", _ASK, name, text, uid=uid)
    assert done.status == 0, done
    return int(done.out.split()[0])


@pytest.fixture
def node(cluster: Cluster) -> Node:
    return cluster.node(1)


def test_every_request_is_for_whom_it_is_for(node: Node) -> None:
    job = node.job(uid=OWNER)
    table = rights(job.pid, str(node.row(job.pid)["job"]))
    assert set(table) == {kind.__name__ for kind in get_args(Request)}
    wrong = []
    for name, right in table.items():
        for uid, expected in ((OWNER, right.owner), (OTHER, right.other), (0, right.root)):
            if expected is not None and (found := code(node, name, right.fields, uid)) != expected:
                wrong.append((name, uid, expected, found))
    assert wrong == []
    assert end(job) == 0


def test_the_page_has_every_request_and_every_purpose() -> None:
    text = PAGE.read_text()
    rows = {match[1] for match in re.finditer(r"^\| `(\w+)`", text, re.M)}
    assert {kind.__name__ for kind in get_args(Request)} | PURPOSES <= rows


def test_every_claim_of_the_page_names_a_test_that_exists() -> None:
    named = re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", PAGE.read_text())
    assert len(named) > 40
    for file, test in named:
        text = (ROOT / file).read_text()
        assert not test or re.search(rf"def {test}\(", text), f"{file}::{test}"


# ---- between nodes: with the secret ----


@pytest.fixture
def away(cluster: Cluster) -> Iterator[tuple[Node, Node, Node, int, GuestRecord]]:
    """A job of OWNER whose home is one, that is at two; three only knows the secret."""
    one, two, three = cluster.node(1), cluster.node(2), cluster.node(3, start=False)
    job = one.job(uid=OWNER)
    assert one.mosix("migrate", job.pid, 2, "--wait").status == 0
    (record,) = read_all(two.run_dir / "guests", GuestRecord)
    yield one, two, three, job.pid, record
    end(job)


def dial(at: Node, to: Node, purpose: str, **identity: object) -> str:
    """ "accepted", or the class of the refusal."""

    async def attempt() -> str:
        dialer = Dialer(Settings(load(Paths(at.directory)), at.secret.encode()))
        try:
            sock, _ = await dialer.dial(to.ip, purpose, **identity)
        except MosixError as error:
            return type(error).__name__
        sock.close()
        return "accepted"

    return asyncio.run(attempt())


@pytest.mark.parametrize("purpose", ["call", "home", "control", "drop", "bulk"])
def test_a_guests_connections_are_its_homes(
    purpose: str, away: tuple[Node, Node, Node, int, GuestRecord]
) -> None:
    """Of another node of the cluster, which has got the token, only the image is taken, and
    nobody's job, process or user may be another."""
    _, two, three, _, record = away
    good = {"uid": record.uid, "gid": record.gid, "job": record.job, "pid": record.pid}
    for bad in ({"uid": 0}, {"job": "0" * 16}, {"pid": 1}):
        assert dial(three, two, purpose, **(good | bad), token=record.token) == "RefusedError"
    assert dial(three, two, purpose, **good, token=bytes(16)) == "RefusedError"
    expected = "accepted" if purpose == "bulk" else "RefusedError"
    assert dial(three, two, purpose, **good, token=record.token) == expected
    assert len(two.rows()) == 1


def test_a_node_moves_a_process_only_for_its_owner_or_root(
    away: tuple[Node, Node, Node, int, GuestRecord],
) -> None:
    one, _, three, pid, record = away
    said = {"job": record.job, "pid": pid}
    assert dial(three, one, "move", **said, uid=OTHER) == "PermissionDeniedError"
    assert dial(three, one, "move", **said, uid=OWNER) == "accepted"
    assert dial(three, one, "move", **said, uid=0) == "accepted"
    assert dial(three, one, "move", job="0" * 16, pid=pid, uid=0) == "NoSuchProcessError"
    assert dial(three, one, "move", job=record.job, pid=os.getpid(), uid=0) == "NoSuchProcessError"


def test_only_root_of_a_node_drains_another(
    away: tuple[Node, Node, Node, int, GuestRecord],
) -> None:
    one, _, three, _, _ = away
    assert dial(three, one, "evacuate", uid=OTHER) == "PermissionDeniedError"
    assert dial(three, one, "evacuate", uid=0) == "accepted"


def test_everybody_of_the_cluster_may_ask_and_nobody_invents_a_purpose(cluster: Cluster) -> None:
    one, three = cluster.node(1), cluster.node(3, start=False)
    assert dial(three, one, "status") == "accepted"
    assert dial(three, one, "measure", uid=OTHER) == "accepted"
    assert dial(three, one, "balance", uid=OTHER) in ("accepted", "RefusedError")
    for purpose in ("", "guests", "root", "x" * 2000):
        assert dial(three, one, purpose) == "RefusedError"
    assert dial(three, one, "guest") in (ProtocolError.__name__, "NodeDownError")


def test_a_connection_is_good_for_its_purpose_only(
    away: tuple[Node, Node, Node, int, GuestRecord],
) -> None:
    """Behind the proof for one thing another cannot be asked for: it would be for nobody."""
    one, _, three, pid, _ = away
    order = frame(encode(PeerMove(target=None, wait=True)), 1 << 16)

    async def say(purpose: str) -> bytes:
        dialer = Dialer(Settings(load(Paths(three.directory)), three.secret.encode()))
        sock, _ = await dialer.dial(one.ip, purpose)
        loop = asyncio.get_running_loop()
        with sock, contextlib.suppress(ConnectionError):
            async with asyncio.timeout(30):
                await loop.sock_sendall(sock, order * 100)
                return await loop.sock_recv(sock, 1000)
        return b""

    for purpose in ("status", "measure"):
        assert asyncio.run(say(purpose)).strip(b"x") == b""
    assert one.row(pid)["where"] != "home"
    assert dial(three, one, "status") == "accepted"


def test_a_home_holds_few_guests_that_do_not_run(cluster: Cluster) -> None:
    """Even if it knows the secret: the places are for others, too."""
    two, three = cluster.node(2), cluster.node(3, start=False)
    features = probe()

    async def hold() -> tuple[int, str]:
        dialer = Dialer(Settings(load(Paths(three.directory)), three.secret.encode()))
        held = []
        try:
            for pid in range(100, 100 + MAX_EMPTY + 5):
                sock, _ = await dialer.dial(
                    two.ip, "guest", uid=OWNER, gid=OWNER, job="0" * 16, pid=pid, features=features
                )
                held.append(sock)
        except RefusedError as error:
            return len(held), error.line()
        finally:
            for sock in held:
                sock.close()
        return len(held), ""

    held, complaint = asyncio.run(hold())
    assert held == MAX_EMPTY
    assert "are there already that do not run yet" in complaint
    eventually(lambda: not list((two.run_dir / "guests").iterdir()), 30)


# ---- files ----


def test_guests_have_ids_that_nobody_else_has(
    away: tuple[Node, Node, Node, int, GuestRecord],
) -> None:
    record = away[4]
    assert FIRST_ID <= record.owner < record.outer < FIRST_ID + 2 * PAIRS
    ids = {int(line.split(":")[2]) for line in Path("/etc/passwd").read_text().splitlines()}
    assert not ids & {record.owner, record.outer}


@pytest.mark.parametrize("uid", [OWNER, OTHER])
def test_nobody_but_root_reads_what_mosd_keeps(
    uid: int, away: tuple[Node, Node, Node, int, GuestRecord]
) -> None:
    """Secret, records with the tokens of guests, its log, its memory and that of its workers."""
    one, two = away[:2]
    look = (
        "import os, sys\n"
        "for path in sys.argv[1:]:\n"
        "    try: os.listdir(path) if os.path.isdir(path) else open(path, 'rb').read(1)\n"
        "    except PermissionError: continue\n"
        "    print(path)\n"
    )
    paths = [str(n.directory / "secret") for n in (one, two)]
    paths += [str(n.run_dir / part) for n in (one, two) for part in ("jobs", "guests")]
    for pid in {*one.processes(), *two.processes()}:
        paths += [f"/proc/{pid}/{part}" for part in ("mem", "environ", "maps", "fd", "syscall")]
    assert len(paths) > 20
    done = one.run("/usr/bin/python3", "-c", look, *paths, uid=uid)
    assert (done.status, done.out) == (0, ""), done


def test_a_move_asked_for_by_a_node_tells_nobody_else_what_became_of_it(
    away: tuple[Node, Node, Node, int, GuestRecord],
) -> None:
    """With the secret alone, for root: the answer goes to who has asked."""
    one, _, three, pid, record = away

    async def ask() -> PeerMoved:
        dialer = Dialer(Settings(load(Paths(three.directory)), three.secret.encode()))
        sock, _ = await dialer.dial(one.ip, "move", uid=0, job=record.job, pid=pid)
        with sock:
            await Frames[PeerMoved](sock, PeerMoved).send(PeerMove(target="10.9.9.9", wait=True))
            return await Frames[PeerMoved](sock, PeerMoved).receive()

    moved = asyncio.run(ask())
    assert "10.9.9.9" in moved.error
    assert one.row(pid)["where"] != "home"
