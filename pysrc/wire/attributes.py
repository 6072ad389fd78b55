"""What a job's user may say about one of its processes: `JobAttributes`.

The options of mosrun write it, a mosrun inside a job and the files /proc/self/{special} change
it, children inherit it. Their effects live where they belong: this module only says which values
there are, and carries them between mosrun, mosd and deputy.
"""

from __future__ import annotations

import msgspec

#: The fraction of a statistic that is kept, in 1/10000 a second: half of it after 27 s.
DECAY_RATE = 9750

KILL, ENOSYS, ENOSYS_WITH_MESSAGE = 0, 1, 2


class JobAttributes(msgspec.Struct, frozen=True, kw_only=True):
    """Of one process. Named as in mosix(7), but `job_class`, which is the file glob."""

    #: 1: only people and the process itself move it
    lock: int = 0
    #: processes of class 0 do not leave the cluster
    job_class: int = 0
    #: MB that a node must have free, for the balancer
    needmem: int = 0
    #: what happens before a call that only home can do, when there is no way home
    unsupportok: int = KILL
    #: 1: system calls and I/O do not count for the balancer
    cpujob: int = 0
    decayrate: int = DECAY_RATE
    #: 1: dates are those of the node where it runs; else home's
    localtime: int = 0
    #: signal to be sent after each move; 0: none
    sigmig: int = 0
    #: how often its statistics were cleared: whoever keeps them forgets when this changes
    cleared: int = 0


#: Highest value of each.
HIGHEST = {
    "lock": 1,
    "job_class": 2**31 - 1,
    "needmem": 262143,
    "unsupportok": ENOSYS_WITH_MESSAGE,
    "cpujob": 1,
    "decayrate": 10000,
    "localtime": 1,
    "sigmig": 64,
}

#: What mosrun's options have set; a mosrun inside a job leaves the others as they are.
Changes = dict[str, int]


def changed(attributes: JobAttributes, changes: Changes) -> JobAttributes:
    """`attributes` with `changes` made. ValueError: no such attribute, or out of range."""
    for name, value in changes.items():
        if not 0 <= value <= HIGHEST.get(name, -1):
            raise ValueError(f"{name} {value}")
    return msgspec.structs.replace(attributes, **changes)


def attribute_of(file: str) -> str | None:
    """The attribute behind /proc/self/{file}; None: there is none."""
    name = "job_class" if file == "glob" else file
    return name if name in HIGHEST else None
