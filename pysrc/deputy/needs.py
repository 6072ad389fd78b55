"""What a body will take of the node that it is to run on: the `Needs` that go ahead of it.

Called by `mosix.deputy.moves` before anything is stopped, and again once it stands still, for
the moves that follow. Only adds up what /proc says; what is too much is for the other node to
say (`mosix.remote.room`).
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Sequence

from mosix.image.maps import Mapping
from mosix.image.model import PageRun
from mosix.wire.messages import Needs

#: Limits that the kernel of the guest's node enforces. The others count at home, where whatever
#: they limit is done: descriptors, files, processes, locks, queues of messages.
ENFORCED_THERE = (
    resource.RLIMIT_CPU,
    resource.RLIMIT_DATA,
    resource.RLIMIT_STACK,
    resource.RLIMIT_AS,
    resource.RLIMIT_MEMLOCK,
)
_KERNEL_KINDS = frozenset(("vdso", "vvar", "vsyscall"))


def needs_of(pid: int, mappings: Sequence[Mapping], runs: Iterable[PageRun]) -> Needs:
    """What process `pid` would take, with these mappings and the pages that would travel.

    ProcessLookupError: it has ended."""
    promised = [mapping for mapping in mappings if _is_promised(mapping)]
    return Needs(
        memory=sum(run.size for run in runs),
        mappings=len(mappings),
        promised=sum(mapping.vma.size for mapping in promised),
        largest=max((m.vma.size for m in promised if "nr" not in m.flags), default=0),
        rlimits={which: resource.prlimit(pid, which)[1] for which in ENFORCED_THERE},
    )


def _is_promised(mapping: Mapping) -> bool:
    """Whether a kernel that counts commitments counts it in a guest: what may be written, and
    what is filled and so has to be writable for a moment. Mappings of files become memory."""
    return mapping.vma.kind not in _KERNEL_KINDS and (
        bool(mapping.vma.prot) or "ac" in mapping.flags
    )
