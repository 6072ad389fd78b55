"""In a virtual machine: what tests/vm/test_capture.py asks of mosix.ko, one scenario a line.

Argument: the module's file. A line of standard input names a function below and its numbers; the
answer is a line of JSON: null, or what went wrong. What the module says is held against /proc.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from checks import equal, refused
from mosix.image import stream
from mosix.image.capture import ProcFiles, describe, page_runs, send_pages
from mosix.image.maps import Mapping, read_mappings
from mosix.image.model import PAGE_SIZE, PageRun
from mosix.kernel import device as mosix_device
from mosix.kernel.device import FREEZER_GUEST, Device, Told
from mosix.native._native import lib
from mosix.native.tracee import Tracee

MODULE = sys.argv[1]
#: How many pages khugepaged may make up where it puts a huge page: any that it made between two
#: looks at a process would be a difference.
MADE_UP = Path("/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none")
PAGES = 2000
#: VmFlags that the module tells, but that of pages
FLAGS = {name[-2:].lower() for name in dir(lib) if name.startswith("MOSIX_VMA_")} - {"sd"}
NOBODY = 65534


class Target:
    """captured.py, traced by us and standing still but for what it is told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("captured.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.pages = int(self.process.stdout.readline())
        self.pid = self.process.pid
        self.tracee = Tracee.seize(self.pid)
        self.tracee.stop()

    def does(self, *lines: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.tracee.cont()
        for line in lines:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
            assert self.process.stdout.readline() == "done\n"
        self.tracee.stop()

    def read(self, start: int, size: int) -> bytes:
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, start)

    def all(self) -> list[Mapping]:
        return read_mappings(self.pid)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)  # Popen takes a traced child's stop for its end
        self.process.communicate()


@contextlib.contextmanager
def target() -> Iterator[Target]:
    found = Target()
    try:
        yield found
    finally:
        found.end()


def pages_of(runs: list[PageRun]) -> set[int]:
    return {
        address for run in runs for address in range(run.start, run.start + run.size, PAGE_SIZE)
    }


# ---- scenarios ----


def mappings_are_those_of_proc(device: Device) -> None:
    with target() as it:
        by_proc, by_module = it.all(), read_mappings(it.pid, device.fd)
        assert len(by_proc) > 1000
        for expected, found in zip(by_proc, by_module, strict=True):
            equal(found.vma, expected.vma)
            equal(found.flags - {"sd"}, expected.flags & FLAGS)
            equal((found.shared, found.inode), (expected.shared, expected.inode))
            equal((found.device, found.pkey), (expected.device, expected.pkey))
        assert any("\n" in mapping.vma.path for mapping in by_module)


def pages_are_those_of_proc(device: Device) -> None:
    """But those that are the zero page, which older kernels do not tell."""
    with target() as it:
        it.does("write " + " ".join(map(str, range(0, 500, 3))), "read 700 701 702")
        vmas = [mapping.vma for mapping in it.all()]
        by_proc = pages_of(page_runs(it.pid, vmas))
        runs = page_runs(it.pid, vmas, ProcFiles(module=device.fd))
        by_module = pages_of(runs)
        equal(runs, sorted(runs, key=lambda run: run.start))
        equal(len(by_module) * PAGE_SIZE, sum(run.size for run in runs))
        equal(by_module - by_proc, set())
        for address in by_proc - by_module:
            equal(it.read(address, PAGE_SIZE), bytes(PAGE_SIZE))
        there = {it.pages + number * PAGE_SIZE for number in range(PAGES)} & by_module
        equal(there, {it.pages + number * PAGE_SIZE for number in range(0, 500, 3)})


def images_are_those_of_proc(device: Device) -> None:
    """All that is sent before the pages, but the clocks; zero pages may be left out."""
    with target() as it:
        expected = describe(it.tracee, 1)
        found = describe(it.tracee, 1, files=ProcFiles(module=device.fd))
        equal(pages_of(found.runs) - pages_of(expected.runs), set())
        found.runs, found.header = expected.runs, expected.header
        found.process.cpu_ns = expected.process.cpu_ns
        assert stream.encode(found) == stream.encode(expected)
        before = device.counters()["captures"]
        with open(os.devnull, "wb") as null:
            sent = send_pages(it.pid, null.fileno(), found.runs, ProcFiles(module=device.fd))
        equal((sent, device.counters()["captures"]), (found.page_bytes, before + 1))


def rounds_of_dirty_pages_miss_nothing(device: Device, rounds: int) -> None:
    """A copy that is kept by what each round says is what the process has in the end."""
    seed = random.randrange(1 << 32)
    choose = random.Random(seed)
    files = ProcFiles(module=device.fd)
    with target() as it:

        def look(*, dirty: bool) -> set[int]:
            vmas = [mapping.vma for mapping in read_mappings(it.pid, device.fd)]
            anonymous = [vma for vma in vmas if vma.kind in ("anon", "heap", "stack")]
            return pages_of(page_runs(it.pid, anonymous, files, dirty=dirty))

        copy = {address: it.read(address, PAGE_SIZE) for address in look(dirty=False)}
        for _ in range(rounds):
            Path(f"/proc/{it.pid}/clear_refs").write_text("4\n", encoding="ascii")
            equal(look(dirty=True), set())
            written = choose.sample(range(PAGES), 40)
            dropped = set(choose.sample(range(PAGES), 40)) - set(written)
            it.does(
                *(f"{what} " + " ".join(map(str, which))
                  for what, which in (("write", written), ("drop", dropped), ("read", dropped))),
                "map",
            )  # fmt: skip
            there, dirty = look(dirty=False), look(dirty=True)
            equal(dirty - there, set())
            own = {it.pages + number * PAGE_SIZE for number in range(PAGES)}
            equal(dirty & own, {it.pages + number * PAGE_SIZE for number in written})
            copy = {address: data for address, data in copy.items() if address in there}
            copy.update({address: it.read(address, PAGE_SIZE) for address in dirty})
        equal(copy.keys() ^ look(dirty=False), set())
        for address, data in copy.items():
            assert it.read(address, PAGE_SIZE) == data, f"page {address:#x}, seed {seed}"


def signals_do_not_cut_what_is_sent(device: Device) -> None:
    with target() as it:
        it.does("write " + " ".join(map(str, range(PAGES))))
        run = PageRun(it.pages, PAGES * PAGE_SIZE)
        expected = it.read(run.start, run.size)
        before = device.counters()
        reader, writer = socket.socketpair()
        result: list[int] = []
        sender = threading.Thread(
            target=lambda: result.append(
                send_pages(it.pid, writer.fileno(), [run], ProcFiles(module=device.fd))
            )
        )
        signal.signal(signal.SIGUSR1, lambda *_: None)
        sender.start()
        received = b""
        while len(received) < len(expected):
            signal.pthread_kill(sender.ident or 0, signal.SIGUSR1)
            received += reader.recv(60_001)
        sender.join()
        reader.close()
        writer.close()
        equal(result, [len(expected)])
        assert received == expected
        equal(device.counters()["sent_bytes"] - before["sent_bytes"], len(expected))


def only_the_tracer_may_look(device: Device) -> None:
    own = os.getpid()
    with target() as it:
        vmas = [mapping.vma for mapping in it.all()]
        ask = (
            "import sys; from mosix.image.maps import _from_module\n"
            "from mosix.image.capture import _find_by_module, read_mappings\n"
            "fd, pid = map(int, sys.argv[1:])\n"
            "try: _from_module(pid, fd)\n"
            "except PermissionError: print('refused')\n"
            "vmas = [each.vma for each in read_mappings(pid)]\n"
            "print(_find_by_module(pid, vmas, fd, dirty=False))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", ask, str(device.fd), str(it.pid)],
            pass_fds=[device.fd],
            capture_output=True,
            text=True,
            check=True,
        )
        equal(done.stdout, "refused\nNone\n")  # root, but not the tracer
        order = mosix_device._SEND.pack(it.pid, 1, 0, 0, 0, 0)
        equal(fcntl.ioctl(device.fd, mosix_device._SEND_PAGES, order), order)
        assert page_runs(it.pid, vmas, ProcFiles(module=device.fd))
    with refused(errno.EPERM):
        fcntl.ioctl(
            device.fd, mosix_device._SEND_PAGES, mosix_device._SEND.pack(own, 1, 0, 0, 0, 0)
        )


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def nonsense_about_memory_does_no_harm(device: Device, rounds: int) -> None:
    """Random orders about a process that may be looked at, by root and by nobody."""
    seed = random.randrange(1 << 32)
    choose = random.Random(seed)
    sizes = {5: 32, 8: 40, 9: 40, 10: 48, 11: 0}
    with target() as it, open(os.devnull, "wb") as null:
        edges = [mapping.vma.start for mapping in it.all()] + [
            0,
            1 << 47,
            1 << 63,
            (1 << 64) - 4096,
        ]

        def word() -> bytes:
            some = (it.pid, it.pid | null.fileno() << 32, choose.choice(edges), 4096, 1 << 20)
            return choose.choice((*some, choose.getrandbits(64), 0)).to_bytes(8, "little")

        for _ in range(rounds):
            number = choose.choice(list(sizes))
            size = sizes[number]
            data = b"".join(word() for _ in range(size // 8))
            if choose.randrange(2):
                data = it.pid.to_bytes(4, "little") + data[4:]
            direction = mosix_device._WRITE | (mosix_device._READ if number < 10 else 0)
            command = mosix_device._ioctl_number(direction if size else 0, number, size)
            with (
                as_nobody() if choose.randrange(2) else contextlib.nullcontext(),
                contextlib.suppress(OSError),
            ):
                fcntl.ioctl(device.fd, command, data if size else choose.getrandbits(31))
        device.forget(it.pid)
        it.does("write 1 2 3")


def everyone_reads_what_root_has_told(device: Device) -> None:
    equal(Path("/proc/mosix/version").read_text(), "0.1.0\n")
    child = subprocess.Popen(["sleep", "1000"])
    directory = Path(f"/proc/mosix/{child.pid}")

    def read() -> dict[str, str]:
        with as_nobody():
            return {file.name: file.read_text() for file in directory.iterdir()}

    assert not directory.exists()
    assert device.tell(Told(child.pid, 7, 1234, FREEZER_GUEST, home="10.0.0.1", where="0"))
    expected = {"from": "10.0.0.1\n", "where": "0\n", "class": "7\n", "origipid": "1234\n"}
    equal(read(), {**expected, "origpid": "1234\n", "freezer": "-66\n"})
    for file in directory.iterdir():
        equal(file.stat().st_mode & 0o777, 0o444)
    assert device.tell(Told(child.pid, 0, 0, 3, home="0", where="10.0.0.2"))
    expected = {"from": "0\n", "where": "10.0.0.2\n", "class": "0\n", "origipid": "0\n"}
    equal(read(), {**expected, "origpid": "0\n", "freezer": "3\n"})
    for wrong in (
        Told(child.pid, 0, 0, 4, home="0", where="0"),
        Told(child.pid, 0, -1, 0, home="0", where="0"),
        Told(child.pid, 0, 0, 0, home="", where="0"),
        Told(child.pid, 0, 0, 0, home="0", where="x"),
        Told(child.pid, 0, 0, 0, home="0", where="1" * 16),
    ):
        with refused(errno.EINVAL):
            device.tell(wrong)
    with as_nobody(), refused(errno.EPERM):
        device.tell(Told(child.pid, 0, 0, 0, home="0", where="0"))
    equal(read()["freezer"], "3\n")
    with open(directory / "from", encoding="ascii") as open_one:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        wait_for("a dead process is gone", lambda: not directory.exists())  # not reaped yet
        with contextlib.suppress(OSError):
            equal(open_one.read(), "")
    child.wait()
    assert not device.tell(Told(child.pid, 0, 0, 0, home="0", where="0"))
    assert device.tell(Told(os.getpid(), 0, 0, 0, home="0", where="0"))
    equal({each.name for each in Path("/proc/mosix").iterdir()}, {"version", str(os.getpid())})
    device.forget(os.getpid())
    equal([each.name for each in Path("/proc/mosix").iterdir()], ["version"])


def wait_for(what: str, look: Callable[[], bool]) -> None:
    for _ in range(3000):
        if look():
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"never: {what}")


def main() -> None:
    as_before = MADE_UP.read_text(encoding="ascii")
    MADE_UP.write_text("0\n", encoding="ascii")
    subprocess.run(["insmod", MODULE], check=True)
    device = Device.open()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        name, *numbers = line.split()
        said = None
        try:
            globals()[name](device, *map(int, numbers))
        except (AssertionError, OSError, ValueError):
            said = traceback.format_exc()
        print(json.dumps(said), flush=True)
    device.tell(Told(os.getpid(), 0, 0, 0, home="0", where="0"))
    device.close()
    subprocess.run(["rmmod", "mosix"], check=True)
    assert not Path("/proc/mosix").exists()
    MADE_UP.write_text(as_before, encoding="ascii")
    print(json.dumps("unloaded"), flush=True)


main()
