"""The redirector that works everywhere: seccomp user notification and a C loop in a thread.

Made by the remote for its guest, with the listener of the filter `mosix.syscalls.filter.program`
and the call socket. The loop (native/redirect.c) runs without the GIL and returns for whatever
is not a plain call; this module turns that into `mosix.remote.redirector` events. It must never
touch the C structure while the loop runs, except by the two calls that allow it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from mosix.failpoints import Fault
from mosix.image.model import PendingCall
from mosix.native._native import ffi, lib
from mosix.native.orders import FAULTS
from mosix.remote.clock import ClockPage
from mosix.remote.redirector import (
    Args,
    Asks,
    Call,
    Cancelled,
    CancelWanted,
    Counter,
    Event,
    Gone,
    LinkBroken,
    NeedsHome,
    Redirector,
    Sleeping,
    Stopped,
)
from mosix.syscalls.descriptors import CALLS, packed
from mosix.syscalls.table import REASONS

_NR_OPENAT = 257
_M32 = (1 << 32) - 1
_POINTS = {
    "redirect.request": lib.MX_FP_REQUEST,
    "redirect.half_sent": lib.MX_FP_HALF_SENT,
    "redirect.sent": lib.MX_FP_SENT,
    "redirect.half_reply": lib.MX_FP_HALF_REPLY,
    "redirect.reply": lib.MX_FP_REPLY,
}


def arm_redirectors(faults: dict[str, Fault]) -> None:
    """Tests only: one point of the C loop at the most."""
    lib.mx_redirect_arm(0, 0, 0, 0)
    for name, fault in faults.items():
        lib.mx_redirect_arm(_POINTS[name], FAULTS[fault.kind], fault.value, fault.hits)


class _Order(Enum):
    RUN = 1
    RUN_FOR_TRACER = 2
    END = 3


class NotifyRedirector(Redirector):
    """`pid`: the guest as seen from here; `home_pid`: its number at home. The offsets are the
    guest's clocks minus ours, the carried times what its body used on other nodes (ns).
    `interface`: it has the files /proc/self/{special}. `clock`: makes its dates; None: they are
    this node's. `device`: `listener` is a file of /dev/mosix (`mosix.remote.module`)."""

    def __init__(
        self,
        listener: int,
        call_fd: int,
        pid: int,
        home_pid: int,
        *,
        monotonic_offset_ns: int = 0,
        boottime_offset_ns: int = 0,
        carried_ns: tuple[int, int] = (0, 0),
        interface: bool = False,
        clock: ClockPage | None = None,
        device: bool = False,
    ) -> None:
        table = packed()
        self._c = lib.mx_redirect_new(listener, call_fd, pid, home_pid, table, len(table))
        if self._c == ffi.NULL:
            raise OSError(ffi.errno, "redirector")
        self._c.monotonic_offset_ns = monotonic_offset_ns
        self._c.boottime_offset_ns = boottime_offset_ns
        self._c.interface = interface
        self._c.device = device
        self._clock = clock  # kept as long as we read it
        self._c.clock = clock.c if clock is not None else ffi.NULL
        self._c.carried_user_ns, self._c.carried_system_ns = carried_ns
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._still = threading.Event()
        self._still.set()
        self._traced_event = 0
        self._thread: threading.Thread | None = None

    def body_begins(self, used_ns: int) -> None:
        """So much CPU time has the guest used already, which is not its body's."""
        self._must_stand_still()
        self._c.before_ns = used_ns

    def cpu_ns(self) -> tuple[int, int]:
        """User and system time of the body on all nodes. OSError: the guest is gone."""
        self._must_stand_still()
        used = ffi.new("uint64_t[2]")
        if lib.mx_redirect_cpu(self._c, used):
            raise ProcessLookupError("the guest is gone")
        return int(used[0]), int(used[1])

    def start(self, *, still: bool = False) -> None:
        self._thread = threading.Thread(target=self._serve, name="redirector", daemon=True)
        self._thread.start()
        if not still:
            self.resume()

    def attach(self, call_fd: int) -> None:
        self._must_stand_still()
        self._c.call_fd = call_fd

    def renew(self, call_fd: int) -> None:
        lib.mx_redirect_renew(self._c, call_fd)

    @property
    def renewed(self) -> bool:
        return bool(lib.mx_redirect_renewed(self._c))

    def request_stop(self) -> bool:
        if self._still.is_set():
            return False
        lib.mx_redirect_stop(self._c)
        return True

    def resume(self) -> None:
        self._must_stand_still()
        lib.mx_redirect_forget_stop(self._c)
        self._still.clear()
        self._orders.put(_Order.RUN)

    def answer(self, result: int) -> bool:
        self._must_stand_still()
        return bool(lib.mx_redirect_answer(self._c, result) == 0)

    def finish(self) -> bool:
        self._must_stand_still()
        return bool(lib.mx_redirect_finish(self._c) == 0)

    def take_undelivered(self) -> int | None:
        self._must_stand_still()
        result = ffi.new("int64_t *")
        return int(result[0]) if lib.mx_redirect_take_undelivered(self._c, result) else None

    def prime(self, call: PendingCall) -> None:
        self._must_stand_still()
        args = ffi.new("uint64_t[6]", call.args)
        lib.mx_redirect_prime(self._c, call.nr, args, call.done, call.deadline_ns)

    def given(self, signals: int) -> None:
        self._must_stand_still()
        self._c.signals = signals

    @contextmanager
    def injecting(self) -> Iterator[None]:
        self._must_stand_still()
        lib.mx_redirect_forget_stop(self._c)
        lib.mx_redirect_inject(self._c, 1)
        self._still.clear()
        self._orders.put(_Order.RUN_FOR_TRACER)
        try:
            yield
        finally:
            lib.mx_redirect_stop(self._c)
            self._still.wait()
            lib.mx_redirect_inject(self._c, 0)
            if self._traced_event != lib.MX_EV_STOP:
                self.events.put_nowait(self._event(self._traced_event))

    def counters(self) -> dict[int, Counter]:
        rows = self._c.counters
        return {
            nr: Counter(rows[nr].calls, rows[nr].sent, rows[nr].received)
            for nr in range(CALLS)
            if rows[nr].calls
        }

    @property
    def calls(self) -> int:
        return int(self._c.total_calls)

    @property
    def bytes(self) -> int:
        return int(self._c.total_bytes)

    def close(self) -> None:
        if self._c == ffi.NULL:
            return
        if self._thread is not None:
            self._orders.put(_Order.END)
            lib.mx_redirect_stop(self._c)
            while self._thread.is_alive():
                # It may have been told to run again by an event that nobody read.
                lib.mx_redirect_stop(self._c)
                self._thread.join(0.05)
        lib.mx_redirect_free(self._c)
        self._c = ffi.NULL

    # ---- the thread ----

    def _serve(self) -> None:
        while (order := self._orders.get()) is not _Order.END:
            number = lib.mx_redirect_run(self._c)
            if order is _Order.RUN_FOR_TRACER:
                self._traced_event = number
                self._still.set()
                continue
            while number == lib.MX_EV_CANCEL_WANTED and self._orders.empty():
                self._tell(CancelWanted(int(self._c.id)))
                number = lib.mx_redirect_run(self._c)
            event = self._event(number)
            self._still.set()
            self._tell(event)

    def _tell(self, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:
            return  # the loop was closed: nobody listens any more

    # ---- helpers ----

    def _must_stand_still(self) -> None:
        if not self._still.is_set():
            raise RuntimeError("the redirector is serving")

    def _call(self) -> Call:
        a = self._c.args
        args: Args = (int(a[0]), int(a[1]), int(a[2]), int(a[3]), int(a[4]), int(a[5]))
        return Call(int(self._c.nr), args)

    def _asks(self) -> Asks:
        call = self._call()
        at = 2 if call.nr == _NR_OPENAT else 1
        name = ffi.string(self._c.asked).decode("ascii")
        return Asks(name, call.args[at] & _M32, call.args[at + 1] & _M32)

    def _event(self, number: int) -> Event:
        c = self._c
        if number == lib.MX_EV_HOME:
            return NeedsHome(self._call(), REASONS[c.reason])
        if number == lib.MX_EV_ASKS:
            return self._asks()
        if number == lib.MX_EV_CANCELLED:
            return Cancelled(
                id=int(c.id),
                call=self._call(),
                result=int(c.result),
                done=int(c.done),
                deadline_ns=int(c.deadline_ns),
                completed=bool(c.completed),
                owed=int(c.owed),
            )
        if number == lib.MX_EV_SLEEPING:
            return Sleeping(self._call(), int(c.deadline_ns))
        if number == lib.MX_EV_LINK:
            return LinkBroken(self._call(), int(c.error))
        if number == lib.MX_EV_MISUSE:
            raise RuntimeError("resumed while a call is held")
        return Gone() if number == lib.MX_EV_GONE else Stopped()
