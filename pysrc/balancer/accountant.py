"""The process that counts with eBPF: loads kernel/bpf/account.bpf.c with bcc and reads its maps.

Started by `mosix.balancer.account.BpfCounter`. A line of JSON with the PIDs to count comes in, one
with what they have done goes out; it ends with its input. The program at sys_exit is attached for
`WINDOW_S` of an order, never longer: everybody on the machine pays for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from mosix.balancer.account import PROGRAM, headers, why_not
from mosix.errors import KernelError

#: In seconds: a program at every exit of a call makes a trivial call about twice as slow.
WINDOW_S: Final = 0.02
#: Of the first PID namespace (PROC_PID_INIT_INO).
_FIRST_NAMESPACE: Final = 0xEFFFFFFC


class Programs:
    """The loaded programs and their maps. Every method may raise KernelError."""

    def __init__(self) -> None:
        source = headers()
        if source is None:
            raise KernelError(why_not())
        os.environ["BCC_KERNEL_SOURCE"] = str(source)
        options = ["-w", f"-I{PROGRAM.parent}"]
        namespace = os.stat("/proc/self/ns/pid")
        if namespace.st_ino != _FIRST_NAMESPACE:
            options += [
                f"-DACCOUNT_NS_DEVICE={namespace.st_dev}",
                f"-DACCOUNT_NS_INODE={namespace.st_ino}",
            ]
        with _bcc_errors():
            # Nobody else needs the compiler, which takes its time to load.
            from bcc import BPF  # noqa: PLC0415

            self._bpf: Any = BPF(src_file=str(PROGRAM), cflags=options)
            for function in ("account_switch", "account_exit"):
                self._bpf.load_func(function, BPF.RAW_TRACEPOINT)
        self._uses = self._bpf["account_use"]
        self._counted: set[int] = set()
        self._watched_s = 0.0
        #: processes for which the map had no room
        self._refused = 0
        with self._calls():
            pass  # a kernel that does not want it says so now

    def order(self, pids: set[int]) -> dict[str, Any]:
        """Counts these from now on and no others; what they have done so far."""
        if pids and not self._counted:
            self._attach("sched_switch", "account_switch")
        elif self._counted and not pids:
            self._detach("sched_switch")
        self._choose(pids)
        if pids:
            with self._calls():
                time.sleep(WINDOW_S)
        return {
            "at": time.monotonic(),
            "watched_s": self._watched_s,
            "uses": {pid: counts for pid in pids if (counts := self._counts(pid)) is not None},
            "failures": self._failures() + self._refused,
        }

    def _choose(self, pids: set[int]) -> None:
        for pid in self._counted - pids:
            with contextlib.suppress(KeyError):
                del self._uses[self._uses.Key(pid)]
        taken = self._counted & pids
        for pid in pids - self._counted:
            try:
                with _bcc_errors():
                    self._uses[self._uses.Key(pid)] = self._uses.Leaf()
                taken.add(pid)
            except KernelError:
                self._refused += 1
        self._counted = taken

    def _counts(self, pid: int) -> list[int] | None:
        try:
            use = self._uses[self._uses.Key(pid)]
        except KeyError:
            return None
        return [use.ran_ns, use.calls, use.read_bytes, use.written_bytes]

    def _failures(self) -> int:
        counts = self._bpf["account_failures"]
        return sum(sum(each_cpu) for each_cpu in counts.values())

    @contextlib.contextmanager
    def _calls(self) -> Iterator[None]:
        """System calls are counted meanwhile."""
        self._attach("sys_exit", "account_exit")
        begin = time.monotonic()
        try:
            yield
        finally:
            self._detach("sys_exit")
            self._watched_s += time.monotonic() - begin

    def _attach(self, tracepoint: str, function: str) -> None:
        with _bcc_errors():
            self._bpf.attach_raw_tracepoint(tp=tracepoint, fn_name=function)

    def _detach(self, tracepoint: str) -> None:
        with _bcc_errors():
            self._bpf.detach_raw_tracepoint(tp=tracepoint)


@contextlib.contextmanager
def _bcc_errors() -> Iterator[None]:
    try:
        yield
    except (KernelError, KeyError):
        raise
    except Exception as error:  # bcc raises nothing more special
        raise KernelError(f"the kernel or bcc refuses: {error}") from error


def main() -> None:
    """Until standard input ends."""
    try:
        programs = Programs()
    except KernelError as error:
        print(json.dumps({"error": error.line()}), flush=True)
        return
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        print(json.dumps(programs.order(set(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
