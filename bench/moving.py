"""Benchmarks of moves and of forwarded calls: what a job pays for being away.

See `harness`. The floors are what the same two nodes can do over plain TCP.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from harness import Batches, Goal, Measured, benchmark, pairs, program, running
from mosix.errors import MosixError
from mosix.lab.drive import Cluster
from mosix.native._native import ffi

_CALLS = 20_000
_PORT = 7001
_FILE_MIB = 256
_READ_KIB = "128"


def _message_sizes() -> tuple[int, int]:
    """Bytes of a forwarded lseek and of its answer on the call socket."""
    return ffi.sizeof("struct mx_request"), ffi.sizeof("struct mx_reply")


@benchmark("forward_rtt", "µs", goal=Goal(1.6))
def forward_rtt(cluster: Cluster) -> Measured:
    """A forwarded lseek, unpinned, as it comes, against a ping-pong of messages of its sizes."""
    home, away = cluster[1], cluster[2]
    request, reply = (str(size) for size in _message_sizes())
    pingpong = program("pingpong")
    serve = [pingpong, "serve", str(_PORT), request, reply]
    ask = [pingpong, "ask", home.ip, str(_PORT), request, reply, str(_CALLS)]
    seek = ["mosrun", program("seek"), "/node/name", str(_CALLS)]
    with running(home, serve) as server:
        server.line()
        with running(away, ask) as floor, running(home, seek) as forwarded:
            pid = _send_away(cluster, forwarded)
            floor.batch()
            value, baseline, ratio = pairs(forwarded.batch, floor.batch, 15)
            _require(cluster, pid, away.ip)
    return Measured(value / 1e3, baseline / 1e3, ratio)


def _send_away(cluster: Cluster, job: Batches) -> int:
    """Move a job to n2 once its first batch shows that it has begun; its PID."""
    pid = job.is_a_job()
    job.batch()
    cluster[1].migrate(pid, "2")
    job.batch()  # warm
    _require(cluster, pid, cluster[2].ip)
    return pid


def _require(cluster: Cluster, pid: int, ip: str) -> None:
    """A benchmark of something that has gone home measures nothing."""
    row = cluster[1].job(pid)
    if row is None or row["where"] != ip:
        raise MosixError(f"the measured process is not on {ip} but {row and row['where']}: {row}")


@benchmark("read_stream", "MiB/s", goal=Goal(0.5, "≥"))
def read_stream(cluster: Cluster) -> Measured:
    """A guest's reads of 128 KiB of a cached file at home against the same bytes over raw TCP."""
    home, away = cluster[1], cluster[2]
    raw, size = program("raw"), str(_FILE_MIB)
    file = "/node/read_stream"
    home.check(["head", "-c", f"{size}M", "/dev/urandom"], stdout=home.path(file).open("wb"))
    try:
        with (
            running(home, ["mosrun", program("stream"), file, _READ_KIB]) as job,
            running(home, [raw, "send", str(_PORT), size]) as sender,
            running(away, [raw, "receive", home.ip, str(_PORT), size, _READ_KIB]) as floor,
        ):
            sender.line()
            pid = _send_away(cluster, job)
            floor.batch()
            value, baseline, ratio = pairs(job.batch, floor.batch, 9)
            _require(cluster, pid, away.ip)
    finally:
        home.path(file).unlink()
    per_second = _FILE_MIB * 1e9
    return Measured(per_second / value, per_second / baseline, 1 / ratio)


@benchmark("freeze_512m", "ms", goal=Goal(1.2))
def freeze_512m(cluster: Cluster) -> Measured:
    """The freeze of a move of 512 MiB against the same bytes over one raw TCP connection."""
    home, away = cluster[1], cluster[2]
    raw = program("raw")
    with (
        running(home, ["mosrun", program("hold"), "512"]) as job,
        running(home, [raw, "send", str(_PORT), "512"]) as sender,
        running(away, [raw, "receive", home.ip, str(_PORT), "512"]) as floor,
    ):
        job.line()
        sender.line()
        pid = job.is_a_job()
        expected = job.batch()

        def move() -> float:
            frozen = home.migrate(pid, "2")["freeze_ns"]
            home.migrate(pid, "home")
            return float(frozen)

        value, baseline, ratio = pairs(move, floor.batch, 5)
        if job.batch() != expected:
            raise MosixError("memory differs after the moves")
    return Measured(value / 1e6, baseline / 1e6, ratio)


@benchmark("freeze_2m", "ms")
def freeze_2m(cluster: Cluster) -> Measured:
    """Median freeze of 30 moves of 2 MiB there and back."""
    home = cluster[1]
    with running(home, ["mosrun", program("hold"), "2"]) as job:
        job.line()
        pid = job.is_a_job()
        frozen = [
            home.migrate(pid, target)["freeze_ns"] for _ in range(15) for target in ("2", "home")
        ]
    return Measured(statistics.median(frozen) / 1e6)


def _steps(cluster: Cluster) -> str:
    """Millions of steps of `spin` that take at least half a second here."""
    with running(cluster[2], [program("spin"), "100"]) as probe:
        quickest = min(probe.batch() for _ in range(3))
    return str(max(100, int(100 * 0.6e9 / quickest)))


@benchmark("cpu_guest", "ms", goal=Goal(1.005))
def cpu_guest(cluster: Cluster) -> Measured:
    """User time of a computing loop as a guest against the same natively on that node."""
    home, away = cluster[1], cluster[2]
    spin = [program("spin"), _steps(cluster)]
    with running(home, ["mosrun", *spin]) as guest, running(away, spin) as native:
        pid = _send_away(cluster, guest)
        native.batch()
        value, baseline, ratio = pairs(guest.batch, native.batch, 60)
        _require(cluster, pid, away.ip)
    return Measured(value / 1e6, baseline / 1e6, ratio)


@benchmark("cpu_home", "ms", goal=Goal(1.005))
def cpu_home(cluster: Cluster) -> Measured:
    """User time of a computing loop as a job at home against the same natively."""
    home = cluster[1]
    spin = [program("spin"), _steps(cluster)]
    with running(home, ["mosrun", *spin]) as job, running(home, spin) as native:
        job.is_a_job()
        value, baseline, ratio = pairs(job.batch, native.batch, 60)
    return Measured(value / 1e6, baseline / 1e6, ratio)


def machine() -> str:
    """The processor, for the table's title."""
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown processor"
