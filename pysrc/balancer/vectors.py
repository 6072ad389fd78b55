"""What a node tells about itself, and a table of what all nodes have told, one array per field.

Called by `gossip` (which fills it), by the policy (which reads columns), by mosd (its own row).
Whatever enters is checked and clamped here, so that a damaged or lying value is neither used nor
passed on. Versions decide which of two entries is newer, never clocks. Must never do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]


class Status(IntEnum):
    """At equal versions the greater one wins; any newer version of a node refutes a claim."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    #: said by the node itself, at its last version
    LEFT = 3


class Flags(IntFlag):
    """What a node's owner has said (mosctl), as far as it concerns others."""

    BLOCK = 1  # takes no guests
    STAY = 2  # its processes do not leave by themselves
    LOCAL_STAY = 4  # only its own processes do not leave by themselves
    NO_BRING = 8
    DRAIN = 16  # takes no guests and its guests are to leave
    KERNEL_TIER = 32
    EBPF = 64


@dataclass(frozen=True)
class Field:
    """A column of the table: the range that a value is clamped to, and what stands for nonsense."""

    name: str
    low: float
    high: float
    default: float


_MANY = 1e5
_MAX_MB = float(1 << 30)

FIELDS: Final = (
    # processes that run or want to, as exported: rises at once, falls slowly
    Field("running", 0, _MANY, _MANY),
    Field("guests", 0, _MANY, 0),
    # promised places whose guests have not arrived
    Field("inbound", 0, _MANY, 0),
    # cores that may really be used: affinity, quota, steal
    Field("cores", 0.01, 8192, 0.01),
    # of one core; 10,000 is a 3 GHz Pentium 4
    Field("speed", 100, 1e7, 100),
    Field("memory_mb", 0, _MAX_MB, 0),
    # available, less what is promised
    Field("free_mb", 0, _MAX_MB, 0),
    # parts of the last window in which tasks stood still for it
    Field("psi_memory", 0, 1, 0),
    Field("psi_io", 0, 1, 0),
    # wall time of a runnable process for a second of CPU
    Field("dilation", 1, 1e4, 1),
    Field("guest_limit", 0, _MANY, 0),
    # private files of guests
    Field("private_mb", 0, _MAX_MB, 0),
    # lower is better
    Field("priority", 0, 65535, 65535),
    # processes there that stand still: guests, and its own at home
    Field("frozen", 0, _MANY, 0),
)
NAMES: Final = tuple(field.name for field in FIELDS)
COLUMN: Final = {name: index for index, name in enumerate(NAMES)}
_LOW: Final = np.array([field.low for field in FIELDS], np.float32)
_HIGH: Final = np.array([field.high for field in FIELDS], np.float32)
_DEFAULT: Final = np.array([field.default for field in FIELDS], np.float32)

#: One entry on the wire. `age_ms`: how old the values were when the datagram left, so that no
#: receiver needs the clock of another machine. `features`: digest of NodeFeatures; who does not
#: know it yet asks the node once.
ENTRY: Final = np.dtype(
    [
        ("node", "<u4"),
        ("version", "<u8"),
        ("age_ms", "<u4"),
        ("status", "u1"),
        ("flags", "<u4"),
        ("features", "<u8"),
        ("loads", "<f4", (len(FIELDS),)),
    ]
)
#: Versions begin at the wall clock (ms << 16): a greater one is nonsense and could not be refuted.
MAX_VERSION: Final = 1 << 63
_MAX_AGE_MS: Final = (1 << 32) - 1
_ALL_FLAGS: Final = sum(Flags)


def checked_loads(loads: Floats) -> Floats:
    """A copy of `loads` (…, fields) with every value in its range; NaN becomes the field's
    least inviting value."""
    values = np.where(np.isnan(loads), _DEFAULT, loads)
    np.clip(values, _LOW, _HIGH, out=values)
    free, total = COLUMN["free_mb"], COLUMN["memory_mb"]
    np.minimum(values[..., free], values[..., total], out=values[..., free])
    checked: Floats = values.astype(np.float32, copy=False)
    return checked


def pack_loads(**values: float) -> Floats:
    """One row, by names of FIELDS; what is not given has its default. Already checked."""
    row = _DEFAULT.copy()
    for name, value in values.items():
        row[COLUMN[name]] = value
    return checked_loads(row)


def decode_entries(data: bytes | memoryview) -> NDArray[np.void]:
    """Entries of the wire form, clamped; those with an impossible version or status are left out.
    ValueError if `data` is not a whole number of entries."""
    entries = np.frombuffer(data, ENTRY)
    possible = (
        (entries["version"] > 0)
        & (entries["version"] < MAX_VERSION)
        & (entries["status"] <= max(Status))
    )
    entries = entries[possible]  # a copy, so it may be written
    entries["loads"] = checked_loads(entries["loads"])
    entries["flags"] &= _ALL_FLAGS
    return entries


class VectorTable:
    """Of `nodes` (IPv4 addresses as integers, ascending) everything they told, by index.

    `version` 0: nothing was heard yet. `born`: the local monotonic time at which the values were
    true, in seconds. Columns are contiguous: `table.column("running")` is a view."""

    def __init__(self, nodes: NDArray[np.uint32]) -> None:
        self.nodes = np.unique(nodes)
        n = len(self.nodes)
        self.version = np.zeros(n, np.uint64)
        self.status = np.full(n, Status.DEAD, np.uint8)
        self.born = np.full(n, -np.inf)
        self.flags = np.zeros(n, np.uint32)
        self.features = np.zeros(n, np.uint64)
        self.loads = np.repeat(_DEFAULT[:, None], n, axis=1)

    def __len__(self) -> int:
        return len(self.nodes)

    def column(self, name: str) -> Floats:
        column: Floats = self.loads[COLUMN[name]]
        return column

    def index(self, node: int) -> int:
        """KeyError if it is not a node of this cluster."""
        found = int(self.nodes.searchsorted(np.uint32(node)))
        if found == len(self.nodes) or int(self.nodes[found]) != node:
            raise KeyError(node)
        return found

    def alive(self) -> NDArray[np.bool_]:
        """Nodes that are not known to be dead: a suspect may still answer."""
        return (self.version > 0) & (self.status <= Status.SUSPECT)

    def ages(self, now: float) -> NDArray[np.float64]:
        """Seconds; infinite where nothing was heard."""
        return now - self.born

    def entries(self, indices: Indices, now: float) -> NDArray[np.void]:
        """ENTRY records of these nodes, as they leave at `now`."""
        entries = np.empty(len(indices), ENTRY)
        entries["node"] = self.nodes[indices]
        entries["version"] = self.version[indices]
        age_ms = np.clip((now - self.born[indices]) * 1e3, 0, _MAX_AGE_MS)
        entries["age_ms"] = age_ms.astype(np.uint32)
        entries["status"] = self.status[indices]
        entries["flags"] = self.flags[indices]
        entries["features"] = self.features[indices]
        entries["loads"] = self.loads[:, indices].T
        return entries

    def merge(self, entries: NDArray[np.void], now: float) -> Indices:
        """Take what is newer; indices of the rows that changed in more than their age.

        Each row becomes the greatest of what it was and what came, in the order version, status,
        values, birth: whatever the order and repetition of datagrams, the result is the same."""
        where = self.nodes.searchsorted(entries["node"])
        np.minimum(where, len(self.nodes) - 1, out=where)
        known = self.nodes[where] == entries["node"]
        if not known.all():
            entries, where = entries[known], where[known]
        if len(set(where.tolist())) < len(where):
            # fancy assignment below needs each row once
            once = [self.merge(entries[k : k + 1], now) for k in range(len(where))]
            return np.unique(np.concatenate(once))
        version, status = self.version[where], self.status[where]
        newer = entries["version"] > version
        same = entries["version"] == version
        newer |= same & (entries["status"] > status)
        same &= entries["status"] == status
        born = now - entries["age_ms"] / 1e3
        if same.any():
            alike = same & (entries["loads"] == self.loads[:, where].T).all(axis=1)
            alike &= self.flags[where] == entries["flags"]
            alike &= self.features[where] == entries["features"]
            np.maximum.at(self.born, where[alike], born[alike])
            # Only a node that contradicts itself gets here.
            for k in np.flatnonzero(same & ~alike):
                newer[k] = _said(entries[k]) > self._said(int(where[k]))
        changed = where[newer]
        if len(changed):
            taken = entries[newer]
            self.version[changed] = taken["version"]
            self.status[changed] = taken["status"]
            self.born[changed] = born[newer]
            self.flags[changed] = taken["flags"]
            self.features[changed] = taken["features"]
            self.loads[:, changed] = taken["loads"].T
        return changed

    def _said(self, index: int) -> bytes:
        return (
            int(self.flags[index]).to_bytes(4, "big")
            + int(self.features[index]).to_bytes(8, "big")
            + self.loads[:, index].tobytes()
        )


def _said(entry: np.void) -> bytes:
    """The values as something that is in order; which order does not matter."""
    values: bytes = entry["loads"].tobytes()
    return (
        int(entry["flags"]).to_bytes(4, "big") + int(entry["features"]).to_bytes(8, "big") + values
    )
