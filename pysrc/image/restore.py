"""Putting a body into a process: into an empty guest, or back into its own ghost.

Called by `mosix.remote` (guest) and `mosix.deputy` (ghost) with an `Agent` that obeys inside it.
What has to be done is planned by pure functions (`mosix.image.plans`); the drivers
`empty_ghost`, `prefault`, `fill_guest`, `fill_ghost` only carry the plans out. They use the
agent's socket and process_vm_*, never ptrace, and block: run them in an executor thread.
They must never leave a ghost without its arguments and environment (ps shows them) or its vdso
(injection needs it), and never let the process run: `Agent.leave(*final_state(image))` does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import time
from collections.abc import Iterable, Iterator, Sequence

from mosix.errors import MoveFailedError
from mosix.image import plans
from mosix.image.model import Image
from mosix.image.pending import reissue
from mosix.native import vdso
from mosix.native.agent import Agent
from mosix.native.blob import find_hole, mapped
from mosix.native.stops import Registers
from mosix.native.tracee import Tracee

Range = tuple[int, int]  # start, end

#: what the agent takes of a limit on memory: its blob, in bytes, and some more
_AGENT_ROOM = 128 << 10


def is_data_limited(pid: int) -> bool:
    """Memory that is writable only while it is filled might exceed RLIMIT_DATA of `pid`."""
    return resource.prlimit(pid, resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def _run(agent: Agent, calls: Sequence[plans.Call]) -> list[int]:
    """All of `calls`; MoveFailedError names the one that failed."""
    results = agent.calls([(call.nr, call.args, call.may_fail) for call in calls])
    for call, result in zip(calls, results, strict=False):
        if -4095 <= result < 0 and not call.may_fail:
            raise MoveFailedError(f"{call.what}: {os.strerror(-result).lower()}", _hint(-result))
    return results


def _hint(number: int) -> str:
    if number == errno.ENOMEM:
        return "the node, its cgroup or RLIMIT_AS is short of memory"
    return ""


def _removal(agent: Agent, keep: Iterable[Range]) -> list[plans.Call]:
    """Takes away all that is in the process but the agent and `keep`; to be carried out next."""
    agent.forget_host()
    agent.forget_area()
    return plans.plan_removal(mapped(agent.pid), [agent.blob, *keep])


def empty_ghost(agent: Agent, image: Image) -> None:
    """The body is elsewhere: gives its memory back, all but arguments, environment and vdso.

    Also after a `fill_ghost` that failed. `image` is the body that was here or came."""
    removal = _removal(agent, [plans.arguments_range(image.process.mm)])
    _run(agent, [*plans.plan_unregister(image), *removal])


def prefault(agent: Agent, ranges: Iterable[Range]) -> list[Range]:
    """Empties the guest and populates memory that a body will need, while that still runs
    elsewhere: page faults are most of the time of a fill. `ranges` is a guess; what does not
    fit is left out. Returns what was mapped, for `fill_guest`."""
    # The guest's own program goes. It has no rseq area and no robust list: the kernel would
    # write into memory that is gone.
    _run(agent, [*_removal(agent, ()), *plans.plan_default_sigactions()])
    wanted = sorted(plans.page_range(*range_) for range_ in ranges)
    results = _run(agent, plans.plan_prefault(wanted))
    return [range_ for range_, got in zip(wanted, results, strict=True) if got == range_[0]]


def fill_guest(
    agent: Agent,
    image: Image,
    bulk: int,
    prefaulted: Sequence[Range],
    *,
    clock: int,
) -> Range | None:
    """Puts the body into the confined, empty process in which `agent` obeys.

    `bulk`: number in that process of the descriptor from which the pages come, in the order of
    ``image.runs``; closed when the agent leaves. `prefaulted`: what `prefault` has returned.
    `clock`: number there of the clock page, which is closed.
    Returns the place that is kept free for an agent, if memory is limited.
    MoveFailedError; the guest is then good for nothing but killing."""
    process = image.process
    ready = plans.usable_prefault(image, prefaulted)
    agent.relocate(plans.body_ranges(image))
    with _empty_file(agent, image) as empty:
        plan = plans.plan_mapping(image, premapped=ready, empty_file=empty, locks_may_fail=True)
        useless = plans.subtract(prefaulted, ready)
        # vdso and data pages, before anything is mapped where they have to go
        moved = plans.plan_vdso(mapped(agent.pid), image, clock)
        _run(agent, [*(plans.plan_munmap(*range_) for range_ in useless), *moved, *plan.before])
    _write_vdso(agent, image)
    _receive(agent, image, bulk)
    _run(
        agent,
        [
            *plan.after,
            plans.plan_mm(process),
            *plans.plan_thread(image.threads[0]),
            *plans.plan_sigactions(process.sigactions),
            *plans.plan_itimers(process),
            # last what would have been in the way: READ_IMPLIES_EXEC, then limits of memory
            plans.plan_personality(process),
        ],
    )
    room = _reserve(agent, image)
    before_ns = time.clock_gettime_ns((~agent.pid << 3) | 2)
    limits = _current_limits(agent.pid, process.rlimits)
    _run(agent, plans.plan_rlimits(process, limits, before_ns))
    _requeue(agent, image)
    return room


def _write_vdso(agent: Agent, image: Image) -> None:
    """Into the memory of `plan_vdso`, which then becomes readable and executable."""
    content = vdso.guest_vdso(image.process.vdso)
    begin = plans.vdso_range(image)[1] - len(content)
    agent.write(begin, content)
    _run(agent, [plans.plan_vdso_protection(begin, len(content))])


def _reserve(agent: Agent, image: Image) -> Range | None:
    """A body may use all that RLIMIT_AS and RLIMIT_DATA allow, and still it must be possible to
    capture it, and at home to have an agent beside it: that much is kept from it."""
    if not plans.is_memory_limited(image.process):
        return None
    start = find_hole(_AGENT_ROOM, [(at.start, at.end) for at in mapped(agent.pid)])
    room = start, start + _AGENT_ROOM
    _run(agent, [plans.Call(*plans.reservation(room), "room for the agent")])
    return room


def fill_ghost(agent: Agent, image: Image, bulk: int | None, ours: int = -1) -> None:
    """Puts the body back into its emptied ghost, in which `agent` obeys. `bulk` None: the pages
    come from `ours`, a descriptor of this process, and not straight into memory: because the
    ghost has no descriptor left, or `is_data_limited`.

    MoveFailedError: `empty_ghost` makes it a ghost again. Dispositions, limits, personality are
    the ghost's own: it executed the calls that set them."""
    agent.relocate(plans.body_ranges(image))
    kept = plans.arguments_range(image.process.mm)
    arguments = agent.read(kept[0], kept[1] - kept[0])
    removal = _removal(agent, [kept])
    with _empty_file(agent, image) as empty:
        plan = plans.plan_mapping(image, replace=[kept], empty_file=empty, poured=bulk is None)
        _run(agent, [*removal, *plan.before])
    # The stack has to be one mapping that grows, so the kept pages were mapped over; ps and a
    # second emptying need what was in them, whatever becomes of the fill.
    agent.write(kept[0], arguments)
    _receive(agent, image, bulk, ours)
    _run(
        agent,
        [
            *plan.after,
            plans.plan_mm(image.process),
            *plans.plan_thread(image.threads[0]),
            *plans.plan_itimers(image.process),
        ],
    )
    _requeue(agent, image)


def _receive(agent: Agent, image: Image, bulk: int | None, ours: int = -1) -> None:
    got = agent.pour(ours, image.runs) if bulk is None else agent.fill(bulk, image.runs)
    if got != image.page_bytes:
        raise MoveFailedError(f"{got} of {image.page_bytes} bytes of memory arrived")


@contextlib.contextmanager
def _empty_file(agent: Agent, image: Image) -> Iterator[int]:
    """Number of an empty file in the process, if the image needs one (else -1)."""
    if all(vma.kind != "eof" for vma in image.vmas):
        yield -1
        return
    (number,) = _run(agent, [plans.plan_empty_file()])
    yield number
    _run(agent, [plans.plan_close(number)])


def _requeue(agent: Agent, image: Image) -> None:
    if image.process.pending or image.threads[0].pending:
        pid, tid = _run(agent, plans.plan_identity())
        _run(agent, plans.plan_pending(image, pid, tid))


def _current_limits(pid: int, which: Iterable[int]) -> dict[int, tuple[int, int]]:
    return {limit: resource.prlimit(pid, limit) for limit in which}


# ---- the last step: registers, and a call that is not finished ----


def guest_state(image: Image) -> tuple[bytes, bytes, int]:
    """Registers, XSTATE and signal mask of a guest, for `Agent.leave`. An interrupted call
    (`Thread.call`) is finished by the redirector: the registers stand before it."""
    thread = image.threads[0]
    return thread.registers, thread.xstate, thread.signal_mask


def final_state(tracee: Tracee, image: Image) -> tuple[bytes, bytes, int]:
    """The same for a body at home, where nobody stands in for an interrupted call: a stub in
    the vdso makes the rest of it (`mosix.image.pending.reissue`). The process stands still."""
    registers, xstate, mask = guest_state(image)
    call = image.threads[0].call
    if call is not None:
        now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        reissue(tracee, Registers.unpack(registers), call, now_ns)
        registers = tracee.registers
    return registers, xstate, mask
