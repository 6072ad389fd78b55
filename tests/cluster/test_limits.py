"""A program at its resource limits finds the same ones away as at home."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
from jobs import PROGRAMS, PYTHON, Job
from mosix.lab import cgroups, drive
from mosix.lab.drive import Cluster
from mosix.lab.programs import built

_CAP_SYS_RESOURCE = 24


def limited(limit: str, *words: str) -> list[str]:
    """Command line of programs/limits.c, or of mosrun with it, under a limit."""
    return ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", *words]


def program(*modes: str) -> list[str]:
    return [str(built(PROGRAMS / "limits.c")), *modes]


@pytest.mark.parametrize("user", [None, "games"])
@pytest.mark.parametrize(
    ("limit", "mode"),
    [
        ("-n 12", "descriptors"),
        ("-n 1024", "descriptors"),
        ("-v 100000", "memory"),
        ("-d 50000", "memory"),
        ("-s 512", "stack"),
    ],
)
def test_limits_are_the_same_away(limit: str, mode: str, user: str | None, lab: Cluster) -> None:
    """All descriptors are the program's own, though the agent has some, too."""
    plain = lab[1].run(limited(limit, *program(mode)), user=user)
    away = lab[1].run(limited(limit, "mosrun", "-2", *program(mode)), user=user)
    assert (away.returncode, away.stdout, away.stderr) == (plain.returncode, plain.stdout, "")


@pytest.mark.parametrize(
    ("limit", "mode"), [("-v 100000", "memory"), ("-d 50000", "memory"), ("-s 512", "stack")]
)
def test_program_at_its_limit_still_moves(limit: str, mode: str, lab: Cluster) -> None:
    process = lab[1].popen(
        limited(limit, "mosrun", "-2", *program(mode, "wait", mode)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        pid = lab[1].pid_of(process)
        for target in ("home", "3", "2", "home"):
            lab[1].migrate(pid, target)
        output, complaint = process.communicate("\n", timeout=60)
    finally:
        drive.kill_command(process)
        process.communicate()
    second = "mapped 0, then Cannot allocate memory\n" if mode == "memory" else first
    assert (process.returncode, output, complaint) == (0, f"{second}end\n", "")


def test_limits_of_mosd_are_not_those_of_a_guest(lab: Cluster) -> None:
    """A service has small ones: they are lifted for guests or, where that is not allowed
    (CAP_SYS_RESOURCE), a program whose own are larger is refused."""
    spawners = faults.spawners(lab[2])
    capabilities = Path(f"/proc/{spawners[0]}/status").read_text().split("CapEff:")[1].split()[0]
    resource.prlimit(spawners[0], resource.RLIMIT_STACK, (8 << 20, 16 << 20))
    try:
        plain = lab[1].run(limited("-s 65536", *program("stack")))
        away = lab[1].run(limited("-s 65536", "mosrun", "-2", *program("stack")))
    finally:
        faults.kill(spawners)
        drive.wait_for("another spawner", lambda: faults.spawners(lab[2]) not in ([], spawners))
    if int(capabilities, 16) >> _CAP_SYS_RESOURCE & 1:
        assert (away.returncode, away.stdout, away.stderr) == (0, plain.stdout, "")
    else:
        assert (away.returncode, away.stdout) == (125, "")
        assert "its limit of stack is 67108864, mosd's there 16777216" in away.stderr
        assert "LimitSTACK=infinity" in away.stderr and len(away.stderr.splitlines()) == 1


def test_program_with_too_many_mappings_is_refused_before_it_is_stopped(
    lab: Cluster, start: Callable[..., Job]
) -> None:
    """A guest needs some more than its body has."""
    most = int(Path("/proc/sys/vm/max_map_count").read_text())
    if most > 1 << 18:
        pytest.skip(f"vm.max_map_count is {most}: it would take too long to use them up")
    code = (
        "import mmap, sys\n"
        f"keep = [mmap.mmap(-1, 4096, flags=2, prot=1 + n % 2 * 2) for n in range({most - 150})]\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin: print(line, end='', flush=True)\n"
    )
    job = start([PYTHON, "-c", code])
    assert job.line() == "ready"
    order = faults.order(job, "2")
    traced = False
    while order.poll() is None:
        traced |= "TracerPid:\t0\n" not in Path(f"/proc/{job.outer}/status").read_text()
    _, complaint = order.communicate()
    assert order.returncode == 8, complaint
    assert "mappings, and no more than" in complaint and "vm.max_map_count" in complaint
    assert len(complaint.splitlines()) == 1
    assert not traced
    job.write("on\n")
    assert (job.line(), job.where(), job.row()["nmigs"]) == ("on", "home", 0)


def test_node_without_processes_left_is_refused(lab: Cluster, start: Callable[..., Job]) -> None:
    """Its cgroup may have no more (pids): no guest can be made, and the job goes on."""
    job = start(["cat"])
    found = cgroups.hierarchies()
    root = found.v2 if found.unified else found.v1["pids"]
    assert root is not None
    file = root / cgroups.TOP / lab.name / "n2" / "pids.max"
    before = file.read_text()
    file.write_text((file.parent / "pids.current").read_text())
    try:
        done = lab[1].run(["migrate", "--wait", str(job.pid), "2"])
    finally:
        file.write_text(before)
    assert done.returncode == 12, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Resource temporarily unavailable" in done.stderr and "pids.max" in done.stderr
    assert job.where() == "home"
    job.move("2")


def test_program_without_a_free_descriptor_comes_home(lab: Cluster) -> None:
    """Away, it opens all that it may; at home, where it must be, there is no number for us."""
    code = (
        "import os, sys\n"
        "found = []\n"
        "try:\n"
        "    while True: found.append(os.dup(0))\n"
        "except OSError as error: os.write(1, b'%d %d\\n' % (len(found), error.errno))\n"
        "pid = os.fork()\n"
        "if not pid: os._exit(5)\n"
        "os.write(1, b'%d\\n' % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    command = ["/usr/bin/python3", "-c", code]
    plain = lab[1].check(limited("-n 40", *command))
    assert lab[1].check(limited("-n 40", "mosrun", "-2", *command)) == plain
