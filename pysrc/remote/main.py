"""A remote: the process that owns one guest. Forked by the spawner with a reserved uid.

It speaks with the deputy (control connection) and with its own mosd (id maps, bulk connections
to other nodes). It treats the deputy as hostile: every message is checked on decoding, sizes are
bounded by the guest's cgroup, and the job's uid comes from mosd, never from the wire.
It ends with the guest, or when the deputy was not heard of for its grace and some more: home
makes lost connections again, and the guest computes or waits until then.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures.thread  # noqa: F401 - asyncio imports it with the first transfer
import contextlib
import logging
import socket
import time
from collections.abc import Iterator

from mosix import failpoints
from mosix.errors import MosixError, MoveFailedError, ProtocolError
from mosix.native.blob import load_blob
from mosix.native.cpu import cpu_features
from mosix.native.watch import Watch
from mosix.remote import room
from mosix.remote.cgroup import Cgroups
from mosix.remote.confine import GuestShell
from mosix.remote.guest import Guest
from mosix.remote.homedate import INTERVAL_S, HomeDate
from mosix.remote.module import Module
from mosix.remote.notify import arm_redirectors
from mosix.syscalls import descriptors
from mosix.syscalls import filter as syscall_filter
from mosix.wire.adoption import returned
from mosix.wire.attributes import JobAttributes
from mosix.wire.channel import Packets
from mosix.wire.dialer import STALL, Dialer, make_blocking
from mosix.wire.lasting import Lasting
from mosix.wire.messages import (
    AskDate,
    Attributes,
    Cancelled,
    Date,
    Drop,
    Dropped,
    Failed,
    Freeze,
    Frozen,
    Hold,
    NeedHome,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Ready,
    Refused,
    Resume,
    Run,
    Running,
    Sent,
    Signal,
    ToDeputy,
    Told,
    ToRemote,
    Used,
)
from mosix.wire.mosd_messages import (
    Arm,
    Armed,
    Attach,
    Dialed,
    GuestState,
    Halting,
    Intercept,
    Intercepted,
    Leave,
    MapIds,
    Mapped,
    NodeToWorker,
    Welcome,
    WorkerToNode,
)

log = logging.getLogger("mosix.remote")

#: How long mosd may take to answer (seconds).
_MOSD = 30
#: The same for a connection that it makes: its own limits for one, and some more.
_DIAL = 40
#: From the prepared guest to the connections over which its body comes: at another node a call
#: that cannot be interrupted may be waited for (seconds).
_ATTACH = 600
#: By so much more than home said its clock may be that of a body, which has had some round trips.
_MOST_BEHIND_NS = 30 * 10**9
#: Orders that wait for the one before them: signals and job control, which are somebody's at home,
#: and those of the deputy itself.
_MAX_SIGNALS = 65536
_MAX_ORDERS = 64
#: A guest that home does not want any more is killed so much later than home gives up (seconds).
_LEASE = 10
#: How often it is looked whether a guest has made many calls since (seconds), and how many calls
#: or bytes that is.
_COUNT_EVERY_S = 1.0
_MANY_CALLS, _MANY_BYTES = 20, 1 << 17
#: For the answer to a `Drop`: home may be gone (seconds).
_LAST_WORD = 5
#: A guest that is not run ends, whatever else is said: so long until it is asked for (home's mosd
#: makes four connections meanwhile), then until its body is here, then until it runs (seconds).
_UNUSED = {"asked for": 180, "filled": 3600, "run": 60}


def warm_up() -> None:
    """Computes once, in the spawner, what a move would otherwise have to wait for."""
    load_blob()
    cpu_features()
    syscall_filter.program()
    descriptors.packed()


def run(sock: socket.socket) -> None:
    """Entry of the forked process; `sock` leads to mosd. Returns when the guest is gone."""
    asyncio.run(Remote(sock).main())


class Remote:
    def __init__(self, sock: socket.socket) -> None:
        self._node: Packets[NodeToWorker] = Packets(sock, NodeToWorker)
        self._watch = Watch()
        self._guest: Guest | None = None
        self._welcome: Welcome | None = None
        self._control: Lasting[ToRemote] | None = None
        self._attached: dict[str, asyncio.Queue[socket.socket]] = {
            "call": asyncio.Queue(),
            "bulk": asyncio.Queue(),
            "home": asyncio.Queue(),
            "control": asyncio.Queue(),
        }
        #: that home has said the guest shall run as; None: it has not
        self._epoch: int | None = None
        self._grace_s = 0
        #: what mosd is to be told; None: the guest's state, of which only the newest counts
        self._to_node: asyncio.Queue[WorkerToNode | None] = asyncio.Queue()
        self._state: GuestState | None = None
        self._dialer = Dialer(self._to_node.put_nowait)
        self._mapped: asyncio.Queue[Mapped] = asyncio.Queue()
        #: the module's file, if that takes the guest's calls
        self._device = -1
        self._intercepted: asyncio.Queue[Intercepted] = asyncio.Queue()
        self._orders: asyncio.Queue[ToRemote] = asyncio.Queue()
        self._own_orders = 0
        self._receiving: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        #: what mosd was told last of the calls and bytes that went home
        self._told = (0, 0)
        self._attributes = JobAttributes()
        self._date_bound_ns: int | None = None
        self._date = HomeDate()
        self._broken = asyncio.Event()
        self._steps = {step: asyncio.Event() for step in _UNUSED}
        #: of the last pings: home's clock when they were sent, ours when they came
        self._pings: collections.deque[tuple[int, int]] = collections.deque(maxlen=8)

    @property
    def welcome(self) -> Welcome:
        assert self._welcome is not None
        return self._welcome

    @property
    def guest(self) -> Guest:
        if self._guest is None:
            raise ProtocolError("there is no guest yet")
        return self._guest

    async def main(self) -> None:
        message, fds = await self._node.receive()
        if not isinstance(message, Welcome) or len(fds) != (1 if message.unhooked is None else 2):
            raise ProtocolError("the first message to a remote must be Welcome")
        self._device = fds[1] if fds[1:] else -1
        self._welcome = message
        self._control = Lasting(socket.socket(fileno=fds[0]), ToRemote)
        self._watch.start()
        arm_redirectors(failpoints.taken("redirect."))
        workers = [
            asyncio.create_task(self._listen_to_node()),
            asyncio.create_task(self._write_to_node()),
        ]
        listening = asyncio.create_task(self._converse())
        obeying = asyncio.create_task(self._obey())
        losing = asyncio.create_task(self._without_calls())
        using = asyncio.create_task(self._unused())
        tasks = (listening, obeying, losing, using)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except EOFError:
            log.warning("guest %d: the deputy is gone", message.pid)
        except OSError as error:
            log.error("guest %d: %s", message.pid, _why(error))
        except MosixError as error:
            log.warning("guest %d: %s", message.pid, error.line())
        finally:
            begun = (self._receiving, self._asking, self._counting)
            await _end(*tasks, *(task for task in begun if task is not None))
            if self._guest is not None:
                await self._guest.destroy()
            await _end(*workers)
            self._control.close()
            self._node.close()

    async def _without_calls(self) -> None:
        """A call of the guest can never be finished."""
        await self._broken.wait()
        raise MoveFailedError("the connection for system calls is no good")

    async def _unused(self) -> None:
        """Whoever sends guests must run them: what is only held takes the place of others."""
        for step, limit_s in _UNUSED.items():
            try:
                async with asyncio.timeout(limit_s):
                    await self._steps[step].wait()
            except TimeoutError as error:
                raise MoveFailedError(f"it was not {step} within {limit_s} s") from error
        await asyncio.get_running_loop().create_future()

    def _hit(self, name: str, *more: socket.socket) -> None:
        assert self._control is not None
        failpoints.hit(name, self._control.sock, *more)

    def _say(self, message: ToDeputy) -> None:
        assert self._control is not None
        self._control.say(message)

    async def _converse(self) -> None:
        """With the deputy, over as many connections as it takes, until `Drop`. EOFError: it is
        gone; MoveFailedError: it was not heard of for so long that it has given up."""
        assert self._control is not None
        while True:
            writing = asyncio.create_task(self._control.write())
            reading = asyncio.create_task(self._listen_to_deputy())
            try:
                await asyncio.wait((writing, reading), return_when=asyncio.FIRST_COMPLETED)
                for task in (reading, writing):
                    if task.done():
                        task.result()
                        return
            except (EOFError, OSError) as error:
                if self._epoch is None:
                    raise EOFError from error
            finally:
                await _end(writing, reading)
            await self._rejoined()

    async def _rejoined(self) -> None:
        """Waits until home has made the connections again."""
        assert self._control is not None
        assert self._epoch is not None
        lease_s = self._grace_s + _LEASE
        log.warning("guest %d: connection lost, waits up to %d s", self.welcome.pid, lease_s)
        try:
            async with asyncio.timeout(lease_s):
                while True:
                    sock = await self._attached["control"].get()
                    with contextlib.suppress(EOFError, OSError, TimeoutError, ProtocolError):
                        await self._control.rejoined(sock, self._epoch)
                        self.guest.renew(await self._attached["call"].get())
                        return
        except TimeoutError as error:
            raise MoveFailedError(f"home was not heard of for {lease_s} s") from error

    async def _write_to_node(self) -> None:
        while True:
            message = await self._to_node.get()
            if message is None:
                message, self._state = self._state, None
                assert message is not None
            with contextlib.suppress(OSError):  # it is gone; its successor is told what counts
                await self._node.send(message)

    # ---- the deputy ----

    async def _listen_to_deputy(self) -> None:
        """Takes orders until `Drop`. What cannot wait for the order before it is done at once."""
        assert self._control is not None
        while True:
            message = await self._control.receive()
            match message:
                case Ping():
                    self._pings.append((message.sent_ns, time.monotonic_ns()))
                    self._say(Pong(sent_ns=message.sent_ns))
                case Date():
                    self._date_told(message.asked_ns, message.date_ns, time.monotonic_ns())
                case Cancelled():
                    self.guest.cancel_was_early()
                case Told():
                    self.guest.told(message.result)
                case Attributes():
                    self._attributes = message.attributes
                    self._tell_node()
                case Drop():
                    self._say(Dropped())
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._control.drained(), _LAST_WORD)
                    return
                case _:
                    self._own_orders += not isinstance(message, Signal | Hold)
                    if self._own_orders > _MAX_ORDERS or self._orders.qsize() >= _MAX_SIGNALS:
                        raise ProtocolError("more orders than anybody can carry out")
                    self._orders.put_nowait(message)

    async def _obey(self) -> None:
        """Carries out orders, one after the other: a freeze never overtakes a signal."""
        while True:
            message = await self._orders.get()
            self._own_orders -= not isinstance(message, Signal | Hold)
            match message:
                case Prepare():
                    self._steps["asked for"].set()
                    await self._prepare(message)
                case Run():
                    self._steps["run"].set()
                    self._hit("remote.run")
                    self._epoch = message.epoch
                    self._tell_node()
                    self._say(Running(epoch=message.epoch))
                    self.guest.resume(held=message.held)
                    self._hit("remote.running")
                    self._counting = asyncio.create_task(self._count())
                case Signal():
                    self._hit("remote.signal")
                    await self.guest.deliver(message.siginfo)
                    self._hit("remote.signalled")
                case Hold():
                    self.guest.hold(message.held)
                case Freeze():
                    await self._freeze(message)
                case Resume():
                    self.guest.resume(held=message.held, unsupported=message.unsupported)

    async def _prepare(self, order: Prepare) -> None:
        welcome = self.welcome
        if self._guest is not None:
            raise ProtocolError("a second Prepare")
        self._grace_s = order.grace_s
        self._attributes = order.attributes
        reason, hint = room.why_not(order.needs, room.look(self._memory()))
        if reason:
            self._say(Refused(reason=reason, hint=hint))
            return
        arrived_ns = dict(self._pings).get(order.pinged_ns)
        if arrived_ns is None:
            raise ProtocolError("Prepare names a ping that never came")
        try:
            # From the ping on, and not from this order: that may have waited for anything.
            since_ns = time.monotonic_ns() - arrived_ns
            self._hit("remote.prepare")
            shell = await GuestShell.create(
                home_pid=welcome.pid,
                uid=welcome.uid,
                gid=welcome.gid,
                monotonic_ns=order.monotonic_ns + since_ns,
                boottime_ns=order.boottime_ns + since_ns,
                map_ids=self._map_ids,
                comm=order.comm,
            )
            self._guest = Guest(
                shell,
                self._watch,
                self._say,
                self._broken.set,
                interface=order.interface,
                foreign_vdso=order.features.vdso != welcome.features.vdso,
                localtime=order.localtime,
                module=self._module(),
            )
            self._guest.prepare()
            await asyncio.to_thread(self._guest.prefault, order.prefault)
        except OSError as error:
            self._say(Refused(reason=_why(error)))
            return
        except MosixError as error:
            self._say(Refused(reason=error.message[:2000], hint=error.hint[:2000]))
            return
        self._tell_node()
        if not order.localtime:
            # The ping told it like an answer does: to a question of a round trip before.
            round_trip_ns = order.monotonic_ns - order.pinged_ns
            self._date_told(arrived_ns - round_trip_ns, order.date_ns, arrived_ns)
        self._asking = asyncio.create_task(self._keep_telling(ask_date=not order.localtime))
        self._hit("remote.prepared")
        self._say(Prepared())
        self._receiving = asyncio.create_task(self._receive(order.epoch))

    async def _keep_telling(self, *, ask_date: bool) -> None:
        """As long as there is a guest."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            if (used_ns := self.guest.cpu_ns()) is not None:
                self._say(Used(cpu_ns=used_ns))
            if ask_date:
                self._say(AskDate(asked_ns=time.monotonic_ns()))

    def _date_told(self, asked_ns: int, date_ns: int, now_ns: int) -> None:
        estimate = self._date.answered(asked_ns, date_ns, now_ns)
        ahead_ns = self.guest.clock.set_date(estimate.offset_ns)
        # until the next answer comes
        self._date_bound_ns = estimate.bound_ns(now_ns + int(INTERVAL_S * 1e9)) + ahead_ns
        self._tell_node()

    async def _count(self) -> None:
        """As long as the guest runs: what goes home is counted by mosd, which decides by it where
        the guest should be. Of one that only computes it hears nothing more."""
        self._tell_node()
        while True:
            await asyncio.sleep(_COUNT_EVERY_S)
            calls, size = self.guest.went_home()
            if calls - self._told[0] >= _MANY_CALLS or size - self._told[1] >= _MANY_BYTES:
                self._tell_node()

    def _tell_node(self) -> None:
        """How the guest is, for mosd."""
        self._told = self.guest.went_home()
        if self._state is None:
            self._to_node.put_nowait(None)
        self._state = GuestState(
            outer_pid=self.guest.shell.pid,
            pid=self.welcome.pid,
            runs=self._epoch is not None,
            cpu_before_ns=self.guest.cpu_before_ns,
            calls=self._told[0],
            call_bytes=self._told[1],
            attributes=self._attributes,
            date_bound_ns=self._date_bound_ns,
        )

    def _memory(self) -> int:
        """Bytes a guest may take: the node's free memory, and its cgroup's limit."""
        return min(Cgroups.detect().own.available(), self.welcome.memory_limit)

    async def _receive(self, epoch: int) -> None:
        """Waits for the image and fills the guest with it."""
        try:
            async with asyncio.timeout(_ATTACH):
                call = await self._attached["call"].get()
                bulk = await self._attached["bulk"].get()
            with _ending(bulk):
                self._hit("remote.image", call, bulk)
                image = await asyncio.to_thread(self.guest.restore, bulk, self._memory())
            self._hit("remote.restored", call)
            await self.guest.confine(image, call)
            self._hit("remote.ready")
            behind = image.header.monotonic_ns - self.guest.clock_ns()
            if behind > _MOST_BEHIND_NS:
                raise ProtocolError(f"its clock is {behind // 10**9} s ahead of its home's")
            if behind > 0:  # the new clock is never behind the old one's last reading
                await asyncio.sleep(behind / 1e9)
            self._steps["filled"].set()
            self._say(Ready(epoch=epoch, received=image.page_bytes))
        except (OSError, EOFError) as error:
            self._say(Failed(epoch=epoch, reason=f"receiving the image failed: {_why(error)}"))
        except MosixError as error:
            self._say(Failed(epoch=epoch, reason=error.line()[:2000]))

    async def _freeze(self, order: Freeze) -> None:
        guest = self.guest
        try:
            self._hit("remote.freeze")
            image = await guest.describe(order.epoch)
            self._hit("remote.frozen")
            self._say(
                Frozen(
                    epoch=order.epoch,
                    page_bytes=image.page_bytes,
                    stopped_ns=image.header.monotonic_ns,
                )
            )
            if order.target is None:
                async with asyncio.timeout(_MOSD):
                    bulk = await self._attached["home"].get()
            else:
                _, (bulk,) = await self._dialer.dial(
                    order.target,
                    ("bulk",),
                    self.welcome.pid,
                    order.epoch,
                    order.token,
                    limit_s=_DIAL,
                )
            with _ending(bulk):
                await asyncio.to_thread(guest.send, image, bulk)
            self._hit("remote.sent")
            self._say(Sent(epoch=order.epoch))
        except OSError as error:
            self._failed_to_freeze(order, f"sending the image failed: {_why(error)}")
        except MosixError as error:
            self._failed_to_freeze(order, error.line()[:2000])

    def _failed_to_freeze(self, order: Freeze, reason: str) -> None:
        # Home does not use that connection a second time.
        while order.target is None and not self._attached["home"].empty():
            self._attached["home"].get_nowait().close()
        self._say(Failed(epoch=order.epoch, reason=reason))

    # ---- mosd ----

    async def _listen_to_node(self) -> None:
        while True:
            with contextlib.suppress(EOFError, OSError):
                await self._hear_node()
            # mosd is gone: the guest stays, and can still go home.
            self._dialer.fail_all()
            self._mapped.put_nowait(Mapped(error="mosd does not run there any more"))
            self._intercepted.put_nowait(Intercepted(error="mosd does not run there any more"))
            self._node.close()
            self._node = Packets(await returned(self.welcome.adoption), NodeToWorker)
            self._dialer.back()
            if self._guest is not None:
                self._tell_node()

    async def _hear_node(self) -> None:
        while True:
            message, fds = await self._node.receive()
            if isinstance(message, Attach) and len(fds) == 1:
                self._attach(message.purpose, socket.socket(fileno=fds[0]))
            elif isinstance(message, Mapped):
                self._mapped.put_nowait(message)
            elif isinstance(message, Intercepted):
                self._intercepted.put_nowait(message)
            elif isinstance(message, Dialed):
                self._dialer.answered(message, fds)
            elif isinstance(message, Arm):
                failpoints.arm(message.spec)
                arm_redirectors(failpoints.taken("redirect."))
                self._to_node.put_nowait(Armed())
            elif isinstance(message, Leave):
                self._leave(message)

    def _leave(self, order: Leave) -> None:
        if not order.reason:
            what = "is wanted by its owner" if order.evicted else "stops"
            reason = f"node {self.welcome.here} {what}"
            self._say(NeedHome(reason=reason, nr=-1, evicted=order.evicted))
            return
        if self._guest is not None:
            # Its task is begun, and so the guest told to stop, before the message goes out.
            self._guest.leave(order.reason)
        self._to_node.put_nowait(Halting())

    def _attach(self, purpose: str, sock: socket.socket) -> None:
        queue = self._attached.get(purpose)
        if queue is None:
            sock.close()
            return
        while not queue.empty():  # of an attempt that has failed
            queue.get_nowait().close()
        if purpose == "call":
            sock.setblocking(True)  # a call may take for ever
        elif purpose != "control":
            make_blocking(sock)
        queue.put_nowait(sock)
        if purpose == "control" and self._control is not None:
            # The old connection is dead for home, whatever our kernel knows of it.
            with contextlib.suppress(OSError):
                self._control.sock.shutdown(socket.SHUT_RDWR)

    def _module(self) -> Module | None:
        unhooked = self.welcome.unhooked
        if unhooked is None:
            return None
        return Module(self._device, frozenset(unhooked), self._intercept)

    async def _intercept(self, pid: int) -> None:
        while not self._intercepted.empty():  # of a mosd that has died
            self._intercepted.get_nowait()
        self._to_node.put_nowait(Intercept(pid=pid))
        async with asyncio.timeout(_MOSD):
            answer = await self._intercepted.get()
        if answer.error:
            raise MoveFailedError(f"redirecting its calls: {answer.error}")

    async def _map_ids(self, carrier: int) -> None:
        self._to_node.put_nowait(MapIds(carrier=carrier))
        async with asyncio.timeout(_MOSD):
            answer = await self._mapped.get()
        if answer.error:
            raise MoveFailedError(f"mapping ids: {answer.error}")


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _ending(sock: socket.socket) -> Iterator[None]:
    """Closes `sock` afterwards; a thread that is still in a call on it is woken, since the number
    of the descriptor will be somebody else's."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


def _why(error: OSError | EOFError) -> str:
    if isinstance(error, BlockingIOError):
        return f"no byte moved for {STALL} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or "no connection came"
