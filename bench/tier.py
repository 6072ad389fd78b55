"""What the kernel tier's parts cost and gain, in a virtual machine with a stock kernel."""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys

from harness import PROGRAMS, Goal, Measured, benchmark, program
from mosix.lab import drive
from mosix.lab.drive import Cluster
from mosix.lab.kernels import kernel
from mosix.lab.programs import built_module

_KERNEL = "6.12"


@functools.cache
def _costs() -> dict[str, list[tuple[float, float]]]:
    """All of programs/kernel_costs.py at once: a machine takes its time to boot."""
    name = f"bench-{os.getpid()}-vm"
    try:
        machine = Cluster.up(name, 1, "--vm", f"--kernel={_KERNEL}", "--no-mosd")[1]
        module = str(built_module(kernel(_KERNEL)))
        script = str(PROGRAMS / "kernel_costs.py")
        arguments = [module, program("calls", "-static")]
        said = machine.check([sys.executable, script, *arguments], timeout_s=400)
        return dict(json.loads(said))
    finally:
        drive.down(name)


def _measured(name: str, scale: float = 1.0) -> Measured:
    values = _costs()[name]
    return Measured(
        statistics.median(value for value, _ in values) * scale,
        statistics.median(baseline for _, baseline in values) * scale,
        statistics.median(value / baseline for value, baseline in values),
    )


@benchmark("kernel_capture", "ms", Goal(1.0))
def kernel_capture(_: Cluster) -> Measured:
    """128 MiB of a stopped process into a TCP connection: by the module / by the portable tier."""
    return _measured("capture", 1e3)


@benchmark("kernel_bystander", "ns", Goal(1.02))
def kernel_bystander(_: Cluster) -> Measured:
    """An unhooked call of a process of no job: with the hooks / without."""
    return _measured("bystander")


@benchmark("kernel_read", "ns", Goal(1.15))
def kernel_read(_: Cluster) -> Measured:
    """A hooked read of 4 KiB by a process of no job: with the hooks / without."""
    return _measured("read")


@benchmark("kernel_home", "ns", Goal(1.10))
def kernel_home(_: Cluster) -> Measured:
    """open+read+close of a job at home, whose opens are looked at in the kernel / natively."""
    return _measured("home")
