"""Can a body from one node run on another? Pure comparison of what both published.

Called by the deputy before anything is stopped, by mosd for its answers, and by the balancer for
each candidate. It must never ask a machine anything.
"""

from __future__ import annotations

from mosix.wire.messages import NodeFeatures

_NAMED = 6


def why_not(home: NodeFeatures, target: NodeFeatures) -> str | None:
    """Why a body with the features of `home` cannot run at `target`; None if it can.

    Programs and libraries choose their code by what the CPU had when they started: each feature
    of the source must exist at the target. XSAVE areas lie in signal frames, so sizes must agree;
    rseq and sched_getcpu number CPUs, and arrays in the program have as many entries as home has
    CPUs. Another kernel's vdso is no obstacle: see `mosix.native.vdso`."""
    if home.page_size != target.page_size:
        return f"pages have {home.page_size} bytes at home and {target.page_size} there"
    missing = sorted(set(home.cpu_features) - set(target.cpu_features))
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        return f"its CPU lacks {', '.join(missing[:_NAMED])}{more}"
    if home.xsave_size != target.xsave_size:
        return (
            f"its CPU saves {target.xsave_size} bytes of extended state, home's {home.xsave_size}"
        )
    if target.cpus > home.cpus:
        return f"it numbers {target.cpus} CPUs, home only {home.cpus}"
    return None
