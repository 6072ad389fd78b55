"""Has this node what a body needs? Asked before the body is stopped.

Called by `mosix.remote.main` with what the deputy says (`Needs`). `look` reads what this node's
kernel has to give to a process of ours; `why_not` only compares. Neither takes anything: between
the answer and the image somebody else may take it, and then restoring fails and the body goes on
where it was.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mosix.wire.messages import Needs

#: Mappings that a guest has beside its body's: vdso and the like, the agent, and what is split
#: while it is filled.
_OURS: Final = 256

# /proc/sys/vm/overcommit_memory
_HEURISTIC, _NEVER = 0, 2

#: What a limit is called in limits.conf(5) and ulimit(1), by number.
_NAMES: Final = {
    resource.RLIMIT_CPU: ("CPU time", "LimitCPU"),
    resource.RLIMIT_DATA: ("data", "LimitDATA"),
    resource.RLIMIT_STACK: ("stack", "LimitSTACK"),
    resource.RLIMIT_AS: ("address space", "LimitAS"),
    resource.RLIMIT_MEMLOCK: ("locked memory", "LimitMEMLOCK"),
}


@dataclass(frozen=True)
class Room:
    """`memory`: free bytes. `mappings`: how many one process may have. `promise`: bytes that the
    kernel still promises, `largest`: in one mapping; None: it does not count.
    `rlimits`: hard limits of a guest; -1: none."""

    memory: int
    mappings: int
    promise: int | None = None
    largest: int | None = None
    rlimits: dict[int, int] = field(default_factory=dict)


def look(memory: int, proc: Path = Path("/proc")) -> Room:
    """What there is here, `memory` free bytes among it. `proc`: for tests."""
    vm = proc / "sys" / "vm"
    mode = int((vm / "overcommit_memory").read_text("ascii"))
    info = dict(line.split(":") for line in (proc / "meminfo").read_text("ascii").splitlines())

    def size(*names: str) -> int:
        return sum(int(info[name].split()[0]) for name in names) << 10

    return Room(
        memory=memory,
        mappings=int((vm / "max_map_count").read_text("ascii")),
        promise=size("CommitLimit") - size("Committed_AS") if mode == _NEVER else None,
        largest=size("MemTotal", "SwapTotal") if mode == _HEURISTIC else None,
        rlimits={which: resource.getrlimit(which)[1] for which in _NAMES},
    )


def why_not(needs: Needs, room: Room) -> tuple[str, str]:
    """Reason and hint, or two empty texts. Memory is asked for with 10% more."""
    elsewhere = "choose another node"
    if needs.memory * 11 // 10 > room.memory:
        return (
            f"not enough memory: it needs {_mb(needs.memory)} and 10%, {_mb(room.memory)} are free",
            elsewhere,
        )
    if room.promise is not None and needs.promised * 11 // 10 > room.promise:
        return (
            f"not enough memory: {_mb(needs.promised)} and 10% would have to be promised, "
            f"{_mb(max(room.promise, 0))} can be",
            f"{elsewhere}, or change vm.overcommit_memory there",
        )
    if room.largest is not None and needs.largest > room.largest:
        return (
            f"not enough memory: one of its mappings has {_mb(needs.largest)}, "
            f"memory and swap together {_mb(room.largest)}",
            f"{elsewhere}, or change vm.overcommit_memory there",
        )
    if needs.mappings + _OURS > room.mappings:
        return (
            f"it has {needs.mappings} mappings, and no more than {room.mappings} may be there",
            "raise vm.max_map_count there",
        )
    return _by_limits(needs, room)


def _by_limits(needs: Needs, room: Room) -> tuple[str, str]:
    for which, wanted in sorted(needs.rlimits.items()):
        have = room.rlimits.get(which, -1)
        if which in _NAMES and have != -1 and (wanted == -1 or wanted > have):
            name, directive = _NAMES[which]
            return (
                f"its limit of {name} is {'none' if wanted == -1 else wanted}, mosd's there {have}",
                f"set {directive}=infinity in the unit of mosd there",
            )
    return "", ""


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
