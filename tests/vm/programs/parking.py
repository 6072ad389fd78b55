"""In a virtual machine: what tests/vm/test_module.py asks of mosix.ko, one scenario a line.

Arguments: the module's file, the program caller. A line of standard input names a function below
and its numbers; the answer is a line of JSON: null, or what went wrong. Compiling the eBPF program
takes long, so one process does it for all scenarios.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator

from checks import equal, refused
from mosix.kernel import device as mosix_device
from mosix.kernel import intercept as mosix_intercept
from mosix.kernel.device import ORPHAN_EIO, ORPHAN_KILL, ORPHAN_NATIVE, Device, Request
from mosix.kernel.intercept import Intercept
from mosix.native.tracee import Tracee

GETPPID, GETCWD, PREAD, PAUSE, GETPGID, OPENAT, UMASK = 110, 79, 17, 34, 121, 257, 95
CALLS = ("getppid", "getcwd", "pread64", "pause", "getpgid", "openat", "umask", "fsync")
SA_RESTART = 0x10000000
ERESTARTSYS, ERESTARTNOINTR = 512, 513
POLICY = 1
DEADLINE_MS = 30_000
MODULE, CALLER = sys.argv[1:]


class Caller:
    """The program that makes the calls."""

    def __init__(self, user: int | None = None) -> None:
        self.process = subprocess.Popen(
            [CALLER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self.line()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def poke(self, address: int, data: bytes) -> None:
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(data)

    def state(self) -> str:
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0]

    def end(self) -> None:
        if self.process.returncode is None:
            os.kill(self.pid, signal.SIGKILL)  # Popen takes a traced child's stop for its end
        self.process.communicate()


class Bench:
    """The module with its program, one owner, and a caller in its hands."""

    def __init__(self, intercept: Intercept, control: Device) -> None:
        self.intercept = intercept
        self.control = control
        self.owner = Device.open()
        self.number = self.owner.own()
        self.callers: list[Caller] = []

    def caller(self, orphan: int = ORPHAN_EIO) -> Caller:
        caller = Caller()
        self.callers.append(caller)
        self.intercept.add(caller.pid, POLICY, self.number, orphan)
        return caller

    def next(self) -> Request:
        """The next request; never more than one is there in these scenarios."""
        requests = self.maybe(DEADLINE_MS)
        assert requests, "no request came"
        assert len(requests) == 1, requests
        return requests[0]

    def maybe(self, timeout_ms: int) -> list[Request]:
        poll = select.poll()
        poll.register(self.owner.fd, select.POLLIN)
        return self.owner.requests() if poll.poll(timeout_ms) else []

    def close_owner(self) -> None:
        self.owner.close()
        self.owner = Device.open()
        self.number = self.owner.own()

    def close(self) -> None:
        for caller in self.callers:
            caller.end()
        self.owner.close()


def wait_for(what: str, look: Callable[[], bool]) -> None:
    for _ in range(DEADLINE_MS // 10):
        if look():
            return
        select.select([], [], [], 0.01)
    raise AssertionError(f"never: {what}")


# ---- scenarios ----


def results_and_data_are_the_servers(bench: Bench) -> None:
    caller = bench.caller()
    caller.say("call 79 buf 64")
    request = bench.next()
    equal((request.nr, request.args[1], request.tid), (GETCWD, 64, caller.pid))
    caller.poke(request.args[0], b"/far/away\0")
    assert bench.owner.answer(request, 10)
    equal(caller.line(), '10 0 0 "/far/away"')
    for result, line in ((0, "0 0"), (-errno.EBADF, f"-1 {errno.EBADF}"), (-4095, "-1 4095")):
        caller.say("call 17 77 buf 64 0")
        assert bench.owner.answer(bench.next(), result)
        equal(caller.line(), f'{line} 0 ""')


def others_and_other_calls_are_left_alone(bench: Bench) -> None:
    caller, stranger = bench.caller(), Caller()
    bench.callers.append(stranger)
    stranger.say("call 110")
    equal(stranger.line(), f'{os.getpid()} 0 0 ""')
    caller.say("call 102")  # getuid is not hooked
    equal(caller.line(), '0 0 0 ""')
    caller.say("call 95 18")  # umask is hooked, but native
    caller.line()
    equal(bench.maybe(0), [])


def signal_interrupts_a_call_that_was_read(bench: Bench, flags: int) -> None:
    """Its server is told, and says what was done: nothing. Then the kernel decides."""
    caller = bench.caller()
    caller.say(f"handler {flags}")
    equal(caller.line(), "ok")
    caller.say("call 17 77 buf 64 0")
    request = bench.next()
    os.kill(caller.pid, signal.SIGUSR1)
    cancel = bench.next()
    equal((cancel.id, cancel.cancel, request.cancel), (request.id, True, False))
    equal(bench.maybe(0), [])
    assert bench.owner.answer(request, -ERESTARTSYS)
    if flags & SA_RESTART:
        again = bench.next()
        equal((again.nr, again.args[:4]), (request.nr, request.args[:4]))
        assert again.id != request.id
        assert bench.owner.answer(again, 7)
        equal(caller.line(), '7 0 1 ""')
    else:
        equal(caller.line(), f'-1 {errno.EINTR} 1 ""')


def signal_does_not_take_away_what_was_done(bench: Bench) -> None:
    caller = bench.caller()
    caller.say("handler 0")
    caller.line()
    caller.say("call 17 77 buf 64 0")
    request = bench.next()
    os.kill(caller.pid, signal.SIGUSR1)
    assert bench.next().cancel
    assert bench.owner.answer(request, 64)
    equal(caller.line(), '64 0 1 ""')


def signal_before_anybody_read_comes_before_the_call(bench: Bench) -> None:
    caller = bench.caller()
    caller.say("handler 0")
    caller.line()
    before = bench.control.counters()["interrupted"]
    caller.say("call 17 77 buf 64 0")
    wait_for("it is parked", lambda: bench.control.counters()["parked"] == 1)
    os.kill(caller.pid, signal.SIGUSR1)
    wait_for("it is interrupted", lambda: bench.control.counters()["interrupted"] > before)
    assert bench.owner.answer(bench.next(), 5)
    equal(caller.line(), '5 0 1 ""')


def restart_code_never_reaches_the_program(bench: Bench) -> None:
    caller = bench.caller()
    caller.say("call 17 77 buf 64 0")
    for code in (ERESTARTSYS, ERESTARTNOINTR, 514):
        assert bench.owner.answer(bench.next(), -code)
    assert bench.owner.answer(bench.next(), 3)
    equal(caller.line(), '3 0 0 ""')


def children_inherit_and_exec_keeps(bench: Bench) -> None:
    caller = bench.caller()
    caller.say("fork")
    request = bench.next()
    assert request.tid != caller.pid
    assert bench.owner.answer(request, 42)
    equal(caller.line(), "42")
    wait_for("the child is forgotten", lambda: set(bench.intercept.tasks()) == {caller.pid})
    caller.say("exec")
    equal(caller.line(), "ready")
    caller.say("call 110")
    request = bench.next()
    equal(request.tid, caller.pid)
    assert bench.owner.answer(request, 43)
    equal(caller.line(), '43 0 0 ""')
    caller.end()
    wait_for("all are forgotten", lambda: bench.intercept.tasks() == {})


def threads_call_at_once(bench: Bench, threads: int, calls: int) -> None:
    caller = bench.caller()
    caller.say(f"threads {threads} {calls}")
    served: dict[int, int] = {}
    while sum(served.values()) < threads * calls:
        for request in bench.maybe(DEADLINE_MS):
            equal(request.tgid, caller.pid)
            served[request.tid] = served.get(request.tid, 0) + 1
            assert bench.owner.answer(request, 42)
    equal(caller.line(), str(threads * calls))
    equal(sorted(served.values()), [calls] * threads)


def sigkill_while_parked(bench: Bench, read: int) -> None:
    caller = bench.caller()
    caller.say("call 17 77 buf 64 0")
    if read:
        request = bench.next()
    else:
        wait_for("it is parked", lambda: bench.control.counters()["parked"] == 1)
    caller.process.kill()
    equal(caller.process.wait(), -signal.SIGKILL)
    equal(bench.control.counters()["parked"], 0)
    if read:
        assert not bench.owner.answer(request, 1)
        assert not bench.owner.run_natively(request)
    equal([each for each in bench.maybe(0) if not each.cancel], [])


def stop_and_continue_while_parked(bench: Bench) -> None:
    caller = bench.caller()
    caller.say("call 17 77 buf 64 0")
    request = bench.next()
    os.kill(caller.pid, signal.SIGSTOP)
    assert bench.next().cancel
    assert bench.owner.answer(request, -ERESTARTSYS)
    wait_for("it is stopped", lambda: caller.state() == "T")
    os.kill(caller.pid, signal.SIGCONT)
    assert bench.owner.answer(bench.next(), 9)
    equal(caller.line(), '9 0 0 ""')


def death_of_the_server(bench: Bench, orphan: int) -> None:
    """Calls that wait, read or not, and calls that come later go on as their verdict says."""
    for read in (True, False):
        caller = bench.caller(orphan)
        caller.say("call 110")
        if read:
            bench.next()
        else:
            wait_for("it is parked", lambda: bench.control.counters()["parked"] == 1)
        bench.close_owner()
        if orphan == ORPHAN_KILL:
            equal(caller.process.wait(), -signal.SIGKILL)
            continue
        expected = {ORPHAN_EIO: f"-1 {errno.EIO}", ORPHAN_NATIVE: f"{os.getpid()} 0"}[orphan]
        equal(caller.line(), f'{expected} 0 ""')
        caller.say("call 110")
        equal(caller.line(), f'{expected} 0 ""')


def call_is_made_natively_when_asked(bench: Bench) -> None:
    """Even one that lasts: meanwhile nothing can unload the module."""
    caller = bench.caller()
    caller.say("call 110")
    assert bench.owner.run_natively(bench.next())
    equal(caller.line(), f'{os.getpid()} 0 0 ""')
    caller.say("handler 0")
    caller.line()
    caller.say("call 34")
    assert bench.owner.run_natively(bench.next())
    wait_for("it sleeps", lambda: caller.state() == "S")
    os.kill(caller.pid, signal.SIGUSR1)
    equal(caller.line(), f'-1 {errno.EINTR} 1 ""')


def module_stays_while_it_is_used(bench: Bench) -> None:
    equal(subprocess.run(["rmmod", "mosix"], capture_output=True, check=False).returncode, 1)


def denied_and_killed(bench: Bench) -> None:
    caller = bench.caller()
    bench.intercept.set_actions(POLICY, {UMASK: mosix_intercept.DENY})
    caller.say("call 95 0")
    equal(caller.line(), f'-1 {errno.ENOSYS} 0 ""')
    bench.intercept.set_actions(POLICY, {UMASK: mosix_intercept.KILL})
    caller.say("call 95 0")
    equal(caller.process.wait(), -signal.SIGKILL)
    bench.intercept.set_actions(POLICY, {UMASK: mosix_intercept.NATIVE})


def only_special_files_are_caught(bench: Bench) -> None:
    caller = bench.caller()
    for path in ("/proc/self/status", "/proc/self/locks", "/proc/selves/lock", "/etc/passwd", "/p"):
        caller.say(f"call 257 -100 text:{path} 0")
        assert caller.line().split()[0] in ("3", "4", "5", "6", "-1")
    equal(bench.maybe(0), [])
    caller.say("call 257 -100 text:/proc/self/lock 0")
    assert bench.owner.answer(bench.next(), -errno.EACCES)
    equal(caller.line(), f'-1 {errno.EACCES} 0 ""')


def local_descriptors_are_native(bench: Bench) -> None:
    caller = bench.caller()
    bench.intercept.set_local(caller.pid, 99, True)
    caller.say("call 74 99")  # fsync
    equal(caller.line(), f'-1 {errno.EBADF} 0 ""')
    bench.intercept.set_local(caller.pid, 99, False)
    caller.say("call 74 99")
    assert bench.owner.answer(bench.next(), 0)
    equal(caller.line(), '0 0 0 ""')


def pages_are_sent_as_they_are(bench: Bench) -> None:
    """Through a TCP connection, a unix socket, a pipe and into a file; of its tracer only."""
    caller = bench.caller()
    with open(f"/proc/{caller.pid}/maps", encoding="ascii") as maps:
        lines = [line.split() for line in maps if "[v" not in line]
    runs = []
    for fields in lines:
        start, _, end = fields[0].partition("-")
        runs.append((int(start, 16), int(end, 16) - int(start, 16)))
    heap = next(fields[0] for fields in lines if fields[-1] == "[heap]")
    runs.append((int(heap.partition("-")[0], 16), 4096))
    with refused(errno.EPERM):  # nobody traces it
        bench.owner.send_pages(caller.pid, 1, runs)
    tracee = Tracee.seize(caller.pid)
    tracee.stop()
    with open(f"/proc/{caller.pid}/mem", "rb", buffering=0) as memory:
        expected = b"".join(os.pread(memory.fileno(), size, start) for start, size in runs)
    for kind in ("tcp", "unix", "pipe", "file"):
        with ends(kind) as (reader, writer):
            received: list[bytes] = []
            thread = threading.Thread(target=lambda: received.append(read_all(reader)))  # noqa: B023
            if kind != "file":
                thread.start()
            equal(bench.owner.send_pages(caller.pid, writer, runs), len(expected))
            os.close(writer)
            if kind == "file":
                os.lseek(reader, 0, os.SEEK_SET)
                thread.start()
            thread.join()
            assert received == [expected], f"other bytes came through the {kind}"
    reader, broken = os.pipe()
    os.close(reader)
    for error, fd, wrong in (
        (errno.EFAULT, 1, [(4096, 4096)]),
        (errno.EINVAL, 1, [(runs[0][0] + 1, 4096)]),
        (errno.EINVAL, 1, [(runs[0][0], 0)]),
        (errno.EINVAL, 1, [(1 << 63, 4096)]),
        (errno.EBADF, 999, runs),
        (errno.EPIPE, broken, runs),
    ):
        with refused(error):
            bench.owner.send_pages(caller.pid, fd, wrong)
    os.close(broken)
    with refused(errno.EPERM):
        bench.owner.send_pages(1, 1, runs)
    with refused(errno.ESRCH):
        bench.owner.send_pages(1 << 21, 1, runs)
    tracee.detach()
    caller.say("call 102")
    equal(caller.line(), '0 0 0 ""')


@contextlib.contextmanager
def ends(kind: str) -> Iterator[tuple[int, int]]:
    """A reading end, and a writing end that is closed inside."""
    if kind == "pipe":
        reader, writer = os.pipe()
    elif kind == "file":
        reader = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
        writer = os.dup(reader)
    elif kind == "unix":
        reader, writer = (end.detach() for end in socket.socketpair())
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            writer = socket.create_connection(listener.getsockname()).detach()
            reader = listener.accept()[0].detach()
    try:
        yield reader, writer
    finally:
        os.close(reader)


def read_all(fd: int) -> bytes:
    return b"".join(iter(lambda: os.read(fd, 65536), b""))


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def strangers_may_nothing_but_serve(bench: Bench) -> None:
    spare = Device.open()
    with as_nobody():
        for attempt in (spare.own, lambda: spare.hook("getuid"), lambda: spare.decide_by(0)):
            try:
                attempt()
            except PermissionError:
                continue
            raise AssertionError("nobody may set up redirection")
        try:
            os.open(mosix_device.PATH, os.O_RDWR)
        except PermissionError:
            pass
        else:
            raise AssertionError("nobody may open the device")
    spare.close()
    caller = bench.caller()
    caller.say("call 110")
    with as_nobody():
        assert bench.owner.answer(bench.next(), 8)
    equal(caller.line(), '8 0 0 ""')


def nonsense_does_no_harm(bench: Bench, rounds: int) -> None:
    """Random ioctls, writes and reads, by root and by nobody, on files in every state."""
    seed = random.randrange(1 << 32)
    choose = random.Random(seed)
    numbers = [mosix_device._VERSION, mosix_device._HOOK, mosix_device._COUNTERS]
    numbers += [mosix_device._SEND_PAGES, mosix_device._WAITS]
    caller = bench.caller()
    caller.say("call 17 77 buf 64 0")
    request = bench.next()
    spare = Device.open()

    def attempt() -> None:
        fd = choose.choice((bench.owner.fd, spare.fd))
        what = choose.randrange(4)
        if what == 0:
            number = choose.choice((*numbers, choose.getrandbits(32)))
            if number != mosix_device._PROGRAM or fd != spare.fd:
                fcntl.ioctl(fd, number, choose.randbytes(choose.randrange(1, 200)))
        elif what == 1:
            number = choose.choice((*numbers, mosix_device._PROGRAM, mosix_device._OWN))
            if (number, fd) != (mosix_device._OWN, spare.fd):
                fcntl.ioctl(fd, number, choose.getrandbits(choose.choice((3, 31))))
        elif what == 2:
            words = [
                choose.choice((choose.getrandbits(64), request.id + 1)),
                choose.getrandbits(64),
            ]
            data = b"".join(word.to_bytes(8, "little") for word in words) + choose.randbytes(8)
            os.write(fd, data[: choose.choice((24, 24, choose.randrange(25)))])
        else:
            os.read(fd, choose.randrange(400))

    for _ in range(rounds):
        with (
            as_nobody() if choose.randrange(2) else contextlib.nullcontext(),
            contextlib.suppress(OSError),
        ):
            attempt()
    spare.close()
    assert bench.owner.answer(request, 6), f"seed {seed}"
    equal(caller.line(), '6 0 0 ""')


def calls_under_random_signals(bench: Bench, calls: int) -> None:
    """Each call is made again until it was answered once with a result; none is lost or doubled."""
    seed = random.randrange(1 << 32)
    choose = random.Random(seed)
    caller = bench.caller()
    caller.say(f"handler {SA_RESTART}")
    caller.line()
    caller.say(f"threads 2 {calls // 2}")
    results = 0
    while results < calls // 2 * 2:
        if choose.randrange(3) == 0:
            os.kill(caller.pid, signal.SIGUSR1)
        for request in bench.maybe(DEADLINE_MS):
            if request.cancel:
                continue
            again = choose.randrange(4) == 0
            assert bench.owner.answer(request, -ERESTARTSYS if again else 42), f"seed {seed}"
            results += not again
    equal(caller.line(), str(calls // 2 * 2))


def main() -> None:
    subprocess.run(["insmod", MODULE], check=True)
    with Intercept() as intercept:
        control = Device.open()
        where = mosix_device.addresses()
        calls = [*CALLS, "no_such_call"]
        equal(intercept.attach(control, calls[:2]), [])  # found by their names
        equal(intercept.attach(control, calls[2:], where=where), ["no_such_call"])
        assert not control.hook("getuid", 0, where["getppid"])  # that is not where it is
        intercept.decide(control)
        equal(control.counters()["hooks"], 0)
        redirected = dict.fromkeys(
            (GETPPID, GETCWD, PREAD, PAUSE, GETPGID), mosix_intercept.REDIRECT
        )
        intercept.set_actions(
            POLICY, {**redirected, OPENAT: mosix_intercept.OWN_PROC_AT, 74: mosix_intercept.BY_FD}
        )
        intercept.set_special_names(["lock", "where"])
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            name, *numbers = line.split()
            said = None
            bench = Bench(intercept, control)
            try:
                globals()[name](bench, *map(int, numbers))
            except (AssertionError, OSError):
                said = traceback.format_exc()
            finally:
                bench.close()
            wait_for("no owner is left", lambda: control.counters()["owners"] == 0)
            left = {name: control.counters()[name] for name in ("parked", "hooks")}
            print(json.dumps(said or (left if any(left.values()) else None)), flush=True)
        control.close()
    subprocess.run(["rmmod", "mosix"], check=True)
    print(json.dumps("unloaded"), flush=True)


main()
