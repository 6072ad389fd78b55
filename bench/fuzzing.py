"""bench/fuzz: throws frames at a live mosd in a lab, and looks what that has done to it.

The frames are `mosix.lab.fuzz`'s. Exit status 1: it died, its memory or its descriptors grew, a
connection was not closed in time, or a good client was not served afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from mosix.errors import MosixError
from mosix.lab import drive
from mosix.lab.drive import Cluster, NodeHandle

#: Parts of all frames that go to each door: datagrams are cheap.
SHARES = {"gossip": 0.30, "peer": 0.25, "proved": 0.05, "control": 0.25, "workers": 0.15}
#: What is thrown before the first look, so that whatever is made once is there.
WARM_UP = 0.02
#: Growth that is none: fragments, and what Python keeps for the next time.
ALLOWED_KB = 16 << 10
_PEER_PORT = 249
_LIMIT_S = 3600


@dataclass(frozen=True)
class Look:
    """mosd's memory and descriptors. Sizes in kB."""

    rss_kb: int
    data_kb: int
    descriptors: int

    @classmethod
    def at(cls, pid: int) -> Look:
        """FileNotFoundError: it is dead."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines if "kB" in line}
        return cls(int(sizes["VmRSS"]), int(sizes["VmData"]), len(os.listdir(f"/proc/{pid}/fd")))

    def __str__(self) -> str:
        return f"RSS {self.rss_kb} kB, data {self.data_kb} kB, {self.descriptors} descriptors"


@contextmanager
def lab() -> Iterator[Cluster]:
    """n1 is attacked; n2's mosd is stopped, and its address the attacker's."""
    name = f"fuzz-{os.getpid()}"
    cluster = Cluster.up(name, 2)
    try:
        cluster[2].mosd("stop")
        yield cluster
    finally:
        cluster.down()


def throw(cluster: Cluster, door: str, frames: int, seed: int) -> dict[str, float]:
    """Outcome of the connections."""
    target = cluster[1]
    at = cluster[1 if door in ("control", "workers") else 2]
    where = f"{target.ip}:{_PEER_PORT}"
    if door in ("control", "workers"):
        where = f"/run/mosix/{door}"
    command = [sys.executable, "-m", "mosix.lab.fuzz", door, f"--frames={frames}"]
    command += [f"--seed={seed}", f"--own={at.ip}", f"--target={where}"]
    if door == "proved":
        command.append("--secret=/etc/mosix/secret")
    return dict(json.loads(at.check(command, timeout_s=_LIMIT_S)))


def mosd_of(node: NodeHandle) -> int:
    """Its PID, as this process calls it."""
    status = json.loads(node.check(["mosctl", "localstatus", "--json"]))
    return node.host_pid(int(status["mosd_pid"]))


def serves(cluster: Cluster) -> list[str]:
    """What a good client does not get."""
    wrong = []
    try:
        cluster[2].mosd("start")
        cluster[2].check(["mosctl", "status", "1"])
        # For n1 it was down until now; who is taken for down is given a second to prove itself.
        ask = ["mosctl", "status", "2"]
        drive.wait_for("n1 to see n2", lambda: cluster[1].run(ask).returncode == 0)
        cluster[1].check(["mosrun", "-2", "-F", "true"], user="nobody")
        cluster[1].check(["mosrun", "-2", "sh", "-c", "exit 0"], user="nobody")
    except MosixError as error:
        wrong.append(error.line())
    except subprocess.TimeoutExpired as error:
        wrong.append(f"not in {error.timeout:.0f} s: {error.cmd}")
    return wrong


@click.command("bench/fuzz")
@click.option("--frames", type=click.IntRange(100), default=1_000_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(frames: int, seed: int) -> None:
    """Throw FRAMES frames at a live mosd of a lab: peer port, gossip port, control socket and the
    socket for returning workers. Prints its memory before and after."""
    drive.end_in_order()
    with lab() as cluster:
        pid = mosd_of(cluster[1])
        for door, share in SHARES.items():
            throw(cluster, door, max(int(frames * share * WARM_UP), 10), seed)
        before = Look.at(pid)
        click.echo(f"before: {before}")
        wrong = []
        thrown = 0
        for door, share in SHARES.items():
            many = int(frames * share)
            outcome = throw(cluster, door, many, seed + 1)
            seconds = outcome.pop("seconds")
            told = ", ".join(f"{int(count)} {how}" for how, count in sorted(outcome.items()))
            click.echo(f"{door}: {many} frames in {seconds:.0f} s: {told}; {Look.at(pid)}")
            thrown += int(sum(outcome.values()))
            if outcome.get("not closed"):
                wrong.append(f"{door}: {int(outcome['not closed'])} connections were not closed")
        after = Look.at(pid)
        click.echo(f"after {thrown} frames: {after}")
        counters = json.loads(cluster[1].check(["mosctl", "status", "--json"]))["counters"]
        click.echo("mosctl status: " + ", ".join(f"{k}: {n}" for k, n in sorted(counters.items())))
        click.echo(f"lines in its log: {len(cluster[1].log().splitlines())}")
        if mosd_of(cluster[1]) != pid:
            wrong.append("mosd died and was started again")
        if after.rss_kb > before.rss_kb + ALLOWED_KB:
            wrong.append(f"its memory grew by {after.rss_kb - before.rss_kb} kB")
        if after.descriptors > before.descriptors + 2:
            wrong.append(f"{after.descriptors - before.descriptors} descriptors more")
        wrong += serves(cluster)
    for line in wrong:
        click.echo(f"bench/fuzz: {line}", err=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
