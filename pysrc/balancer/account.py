"""What processes at home do: CPU time, system calls, bytes; counted by eBPF, else read from /proc.

`ProcCounter` and `BpfCounter` are asked by mosd (`mosix.node.accounting`) once a second. The eBPF
program is in a process of its own (`mosix.balancer.accountant`), so that its compiler is never in
mosd's memory. Must never load anything into the kernel itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosix.errors import KernelError
from mosix.native.kept import KeptFiles

#: The program is compiled first, on a loaded machine (s).
_LOAD_S: Final = 60.0
_ANSWER_S: Final = 10.0
_MAX_ANSWER: Final = 1 << 20

_TREE: Final = Path(__file__).resolve().parents[2]
PROGRAM: Final = _TREE / "kernel" / "bpf" / "account.bpf.c"
#: Made by scripts/setup where the running kernel has no headers of its own.
_HEADERS: Final = _TREE / "build" / "kernel-headers"


@dataclass(frozen=True)
class Use:
    """Of one process, per second: CPU in seconds, calls, bytes."""

    cpu: float = 0.0
    calls: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0


@dataclass(frozen=True)
class Totals:
    """Of one process since it was begun to be counted; the calls in `watched_s` seconds."""

    at: float
    watched_s: float
    ran_ns: int
    calls: int
    read_bytes: int
    written_bytes: int

    def since(self, before: Totals) -> Use:
        seconds = max(self.at - before.at, 1e-6)
        watched = max(self.watched_s - before.watched_s, 1e-6)
        return Use(
            max(0, self.ran_ns - before.ran_ns) / 1e9 / seconds,
            max(0, self.calls - before.calls) / watched,
            max(0, self.read_bytes - before.read_bytes) / watched,
            max(0, self.written_bytes - before.written_bytes) / watched,
        )


class ProcCounter:
    """From /proc: of the calls only those that read and write, threads of a process together."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._files = KeptFiles()

    async def totals(self, pids: Iterable[int]) -> dict[int, Totals]:
        """Of those that are still there."""
        found, read = {}, set[str]()
        for pid in pids:
            names = f"{self._proc}/{pid}/schedstat", f"{self._proc}/{pid}/io"
            with contextlib.suppress(OSError, ValueError):
                found[pid] = self._of(*names)
                read.update(names)
        self._files.keep(read)
        return found

    def _of(self, schedstat: str, io: str) -> Totals:
        ran = int(self._files.read(schedstat).split(maxsplit=1)[0])
        # rchar: N, wchar: N, syscr: N, syscw: N, and four lines of disks
        read, written, reads, writes = map(int, self._files.read(io).split()[1:8:2])
        now = time.monotonic()
        return Totals(now, now, ran, reads + writes, read, written)


def why_not() -> str:
    """Why eBPF cannot count here, as far as that can be seen without trying; "" if it may."""
    if importlib.util.find_spec("bcc") is None:
        return "bcc is not installed"
    if not PROGRAM.exists():
        return "the eBPF program is not installed"
    if headers() is None:
        return "there are no kernel headers"
    return ""


def headers() -> Path | None:
    """What bcc compiles with: those it is told, the running kernel's, or those of scripts/setup."""
    told = os.environ.get("BCC_KERNEL_SOURCE")
    places = [Path(told)] if told else [Path(f"/lib/modules/{os.uname().release}/build"), _HEADERS]
    return next((place for place in places if (place / "include").is_dir()), None)


class BpfCounter:
    """The program in its own process, which `close` ends."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        #: map operations that failed so far: so much is missing from what was counted
        self.failures = 0

    @classmethod
    async def start(cls) -> BpfCounter:
        """KernelError: it cannot be loaded, and why."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "mosix.balancer.accountant",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_MAX_ANSWER,
            start_new_session=True,  # a terminal's Ctrl-C is for mosd
        )
        counter = cls(process)
        try:
            said = await counter._line(_LOAD_S)
            if "error" in said:
                raise KernelError(str(said["error"]))
        except BaseException:
            await counter.close()
            raise
        return counter

    async def totals(self, pids: Iterable[int]) -> dict[int, Totals]:
        """Of those that are still there; takes a window's time. KernelError: it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(list(pids)).encode() + b"\n")
            await self._process.stdin.drain()
        except OSError as error:
            raise KernelError("the accounting process ended") from error
        said = await self._line(_ANSWER_S)
        self.failures = said["failures"]
        return {
            int(pid): Totals(said["at"], said["watched_s"], *counts)
            for pid, counts in said["uses"].items()
        }

    async def _line(self, limit_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                said = json.loads(await self._process.stdout.readline())
        except (TimeoutError, OSError, ValueError) as error:
            raise KernelError("the accounting process ended or stands still") from error
        return dict(said)

    async def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
