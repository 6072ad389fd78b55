"""Jobs sent about between the two machines: what tests of each tier do with them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from jobs import PROGRAMS, PYTHON, Job
from mosix.lab.drive import Cluster, NodeHandle

#: of tests/cluster/programs/library.py and its like
FAMILIES = (
    *("pipes", "signals", "timers", "memory", "at_files", "appending", "locks", "watching"),
    *("multiplexing", "special", "messages", "network", "clocks", "sleeping", "storm"),
    *("restarting", "identity", "children", "exec", "shared", "vectors", "proc"),
)


def in_each(lab: Cluster, work: Callable[[NodeHandle], None]) -> None:
    """What takes a machine long, done by both at the same time."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(work, lab.nodes))


def other(home: NodeHandle) -> str:
    """Number of the machine that is not `home`."""
    return str(3 - home.node.number)


def round_trip(home: NodeHandle) -> None:
    """There, home and there again; what is computed is the same."""
    command = [PYTHON, str(PROGRAMS / "checksum.py")]
    with Job(home, [*command, "until", "/node/stop"]) as job:
        for target in (other(home), "home", other(home)):
            job.move(target)
            job.line()
        home.check(["touch", "/node/stop"])
        status, output, complaints = job.finish()
    home.check(["rm", "/node/stop"])
    assert (status, complaints) == (0, "")
    rounds = output.rpartition("rounds ")[2].split()[0]
    plain = home.check([*command, "rounds", rounds], timeout_s=300)
    assert output == plain[-len(output) :]
