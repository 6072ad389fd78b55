"""What the kernel tier's parts cost and gain, in a virtual machine with a stock kernel."""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from harness import PROGRAMS, Goal, Measured, benchmark, program
from mosix.lab import drive
from mosix.lab.drive import Cluster
from mosix.lab.kernels import kernel
from mosix.lab.programs import built, built_module

_KERNEL = "6.12"


_TREE = Path(__file__).resolve().parents[1]
_REMOTE = _TREE / "tests" / "remote" / "programs"
_NATIVE = _TREE / "pysrc" / "native"

Pairs = list[tuple[float, float]]


@functools.cache
def _said(script: str, *programs: str) -> Any:
    """What programs/SCRIPT says in a machine of its own, which takes its time to boot."""
    name = f"bench-{os.getpid()}-vm"
    try:
        machine = Cluster.up(name, 1, "--vm", f"--kernel={_KERNEL}", "--no-mosd")[1]
        module = str(built_module(kernel(_KERNEL)))
        command = [sys.executable, str(PROGRAMS / script), module, *programs]
        return json.loads(machine.check(command, timeout_s=400))
    finally:
        drive.down(name)


def _medians(values: Pairs, scale: float = 1.0) -> Measured:
    return Measured(
        statistics.median(value for value, _ in values) * scale,
        statistics.median(baseline for _, baseline in values) * scale,
        statistics.median(value / baseline for value, baseline in values),
    )


def _measured(name: str, scale: float = 1.0) -> Measured:
    return _medians(_said("kernel_costs.py", program("calls", "-static"))[name], scale)


@benchmark("kernel_redirect", "µs", Goal(1.0), lab=False)
def kernel_redirect() -> Measured:
    """A forwarded lseek of a guest: by way of mosix.ko / of a seccomp listener."""
    include = f"-I{_NATIVE}"
    serve = str(_NATIVE / "agent_serve.c")
    host = built(_REMOTE / "agent_host.c", "-static", "-no-pie", "-DMX_HOSTED", include, serve)
    seek = program("seek", "-static", "-pthread", str(_REMOTE / "guest_preload.c"))
    return _medians(_said("kernel_redirect.py", str(host), seek), 1e-3)


@benchmark("kernel_capture", "ms", Goal(1.0), lab=False)
def kernel_capture() -> Measured:
    """128 MiB of a stopped process into a TCP connection: by the module / by the portable tier."""
    return _measured("capture", 1e3)


@benchmark("kernel_bystander", "ns", Goal(1.02), lab=False)
def kernel_bystander() -> Measured:
    """An unhooked call of a process of no job: with the hooks / without."""
    return _measured("bystander")


@benchmark("kernel_read", "ns", Goal(1.15), lab=False)
def kernel_read() -> Measured:
    """A hooked read of 4 KiB by a process of no job: with the hooks / without."""
    return _measured("read")


@benchmark("kernel_home", "ns", Goal(1.10), lab=False)
def kernel_home() -> Measured:
    """open+read+close of a job at home, whose opens are looked at in the kernel / natively."""
    return _measured("home")
