"""What this node can run: the `NodeFeatures` that it publishes.

Called by mosd at start. It must not depend on where the caller was started: only the kernel, the
CPU and the number of CPUs count.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

from mosix.native.cpu import cpu_features, vdso_digest, xsave_size
from mosix.wire.messages import NodeFeatures


def probe(*, tier: str = "portable", foreign_vdso: bool = False) -> NodeFeatures:
    """What this node offers. `foreign_vdso`: as if its kernel had another vdso than those of all
    other nodes, so that what is done then can be seen without a second kernel."""
    vdso = vdso_digest()
    if foreign_vdso:
        vdso = hashlib.sha256(vdso.encode() + b" foreign").hexdigest()
    return NodeFeatures(
        kernel=os.uname().release,
        vdso=vdso,
        page_size=mmap.PAGESIZE,
        cpu_features=cpu_features(),
        xsave_size=xsave_size(),
        cpus=highest_cpu() + 1,
        tier=tier,
    )


def highest_cpu(online: Path = Path("/sys/devices/system/cpu/online")) -> int:
    """The highest number that a process can find itself on: with a CPU switched off there are
    fewer CPUs than numbers. `online`: ranges, as "0-3,6"."""
    try:
        return max(int(last) for last in online.read_text("ascii").replace(",", "-").split("-"))
    except FileNotFoundError:  # no /sys
        return (os.cpu_count() or 1) - 1
