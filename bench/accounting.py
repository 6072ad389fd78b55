"""What everybody pays for the eBPF accounting of somebody's job."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness import Goal, Measured, benchmark, pairs, program, running
from mosix.balancer.account import BpfCounter, why_not
from mosix.errors import KernelError, MosixError
from mosix.lab.drive import Cluster

_PERIOD_S = 1.0


@contextmanager
def _counted(pid: int) -> Iterator[None]:
    """Process `pid` is counted meanwhile, as mosd does it: asked for once a second."""
    begun = threading.Event()
    failure: list[MosixError] = []

    async def count() -> None:
        counter = await BpfCounter.start()
        try:
            while not over.is_set():
                await counter.totals([pid])
                begun.set()
                await asyncio.sleep(_PERIOD_S)
        finally:
            await counter.close()

    def run() -> None:
        try:
            asyncio.run(count())
        except MosixError as error:
            failure.append(error)
        finally:
            begun.set()

    over = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        over.set()
        thread.join()
        if failure:
            raise failure[0]


@benchmark("account_cost", "ns", goal=Goal(1.05))
def account_cost(cluster: Cluster) -> Measured:
    """CPU time of a getpid while another process is counted with eBPF against without it."""
    if reason := why_not():
        raise KernelError(f"no accounting with eBPF: {reason}", "scripts/setup")
    home = cluster[1]
    with running(home, [program("getpid"), "3000"]) as loop:
        loop.batch()

        def while_counted() -> float:
            with _counted(os.getpid()):
                return loop.batch()

        value, baseline, ratio = pairs(while_counted, loop.batch, 7)
    return Measured(value, baseline, ratio)
