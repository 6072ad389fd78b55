"""A user of a node against what is not his: jobs, guests and the processes of mosix, their memory,
sockets, cgroups and files; also against his own job's deputy, which knows more than he may."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from faults import guests, mosd, spawners, stubs, workers
from jobs import PYTHON, Job
from mosix.lab import cgroups
from mosix.lab.drive import Cluster, NodeHandle

PROGRAMS = Path(__file__).resolve().parent / "programs"
OWNER, STRANGER = "games", "nobody"


def inside(pid: int) -> str:
    """What the node calls the host's process `pid`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("NSpid:")).split()[2]


def gets(node: NodeHandle, user: str, *targets: str) -> list[str]:
    found = node.check([PYTHON, str(PROGRAMS / "peek.py"), *targets], user=user)
    return list(json.loads(found))


def job_away(start: Callable[..., Job]) -> Job:
    job = start(["cat"], user=OWNER)
    job.move("2")
    return job


def test_a_stranger_gets_at_no_process_of_mosix_or_of_a_job(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    job = job_away(start)
    for node in lab.nodes[:2]:
        pids = {*mosd(node), *spawners(node), *workers(node), *stubs(node), *guests(node)}
        if node is lab[1]:
            pids.add(job.outer)
        assert len(pids) >= 4
        assert gets(node, STRANGER, "-k", *map(inside, sorted(pids))) == []
    job.write("untouched\n")
    assert job.line() == "untouched"


def test_the_owner_of_a_job_gets_at_no_process_that_serves_it(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    """Who held his deputy in his hands could tell other nodes what he likes, as mosd's client.
    On the guest's node he is a stranger, though he has the same number there."""
    job = job_away(start)
    (deputy,) = workers(lab[1])
    status = Path(f"/proc/{deputy}/status").read_text()
    assert "\nUid:\t5\t5\t5\t5\n" in status
    for line in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert f"\n{line}:\t0000000000000000\n" in status
    assert gets(lab[1], OWNER, inside(deputy)) == []
    at_home = [*mosd(lab[1]), *spawners(lab[1])]
    assert gets(lab[1], OWNER, "-k", *map(inside, at_home)) == []
    there = [*workers(lab[2]), *stubs(lab[2]), *guests(lab[2])]
    assert len(there) == 3
    assert gets(lab[2], OWNER, "-k", *map(inside, there)) == []
    job.write("untouched\n")
    assert job.line() == "untouched"


def test_nobody_writes_to_the_cgroups_and_files_of_mosix(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    """But a job's owner may put his own processes into its cgroup, where there are no limits."""
    job = job_away(start)
    files = ["/run/mosix", "/run/mosix/jobs", "/run/mosix/guests", "/run/mosix/mosd.log"]
    files += ["/etc/mosix", "/etc/mosix/secret", "/etc/mosix/mosix.map"]
    (guest,) = guests(lab[2])
    groups = []
    for line in Path(f"/proc/{guest}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for top in ("/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in names.split(","))):
            where = Path(top + path)
            if "mosixd" in path and where.is_dir():
                groups += [str(where), *(str(file) for file in where.iterdir())]
    assert len(groups) > 20
    for user in (OWNER, STRANGER):
        # The host's paths: a cgroup's files are the same everywhere.
        done = subprocess.run(
            [PYTHON, str(PROGRAMS / "peek.py"), *groups],
            user=user,
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
        assert json.loads(done.stdout) == []
        for node in lab.nodes[:2]:
            assert gets(node, user, *files) == []
    assert cgroups.TOP
    assert job.where() == job.ip("2")


def test_who_says_that_he_comes_back_as_a_worker_is_asked_by_the_kernel(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    """The socket is open to all; being let in takes being a recorded process."""
    job = job_away(start)
    claim = (
        "import socket\n"
        "with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:\n"
        "    sock.connect('/run/mosix/workers'); sock.settimeout(20)\n"
        "    try: sock.send(bytes.fromhex('81a174a852657475726e6564')); print(sock.recv(100))\n"
        "    except (BrokenPipeError, ConnectionResetError): print(b'')\n"
    )
    for user in (OWNER, STRANGER):
        assert lab[1].check([PYTHON, "-c", claim], user=user) == "b''\n"
    assert len(workers(lab[1])) == 1
    assert job.where() == job.ip("2")


def test_jobs_of_root_are_nobody_away(lab: Cluster, start: Callable[..., Job]) -> None:
    """Root is root at home; on another node it is a number without rights."""
    job = start(["cat"])
    job.move("2")
    (guest,) = guests(lab[2])
    status = Path(f"/proc/{guest}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert len(set(uids)) == 1
    assert int(uids[0]) >= 0x70000000
    for line in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert f"\n{line}:\t0000000000000000\n" in status
    assert Path(f"/proc/{guest}/uid_map").read_text().split() == ["0", uids[0], "1"]
