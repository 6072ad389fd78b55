"""In a virtual machine: what mosix.ko costs and gains. Arguments: the module, the program calls.

Prints one JSON object: a list of pairs [with or by the module, without] for each name. What is
compared takes turns.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mosix.image.capture import ProcFiles, send_pages
from mosix.image.model import PageRun
from mosix.kernel import intercept as verdicts
from mosix.kernel.device import ORPHAN_NATIVE, Device
from mosix.kernel.intercept import Intercept
from mosix.native.tracee import Tracee

MODULE, CALLS = sys.argv[1:]
PAIRS = 9
BATCHES = 40
OPENAT = 257
FILE = "/tmp/file"
SIZE = 128 << 20


@contextmanager
def looping(kind: str, count: int) -> Iterator[tuple[int, Callable[[], float]]]:
    """The program's PID, and how to measure it, in ns per call."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([CALLS, kind, str(count), FILE], stdin=pipe, stdout=pipe, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def batch() -> float:
        """Of the best of some, each short: on a machine that is not alone most are disturbed."""
        return min(one() for _ in range(BATCHES))

    def one() -> float:
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    try:
        yield process.pid, batch
    finally:
        process.kill()
        process.communicate()


def taking_turns(
    first: Callable[[], float], second: Callable[[], float]
) -> list[tuple[float, float]]:
    pairs = []
    for number in range(PAIRS):
        before = second() if number % 2 else None
        value = first()
        pairs.append((value, second() if before is None else before))
    return pairs


def hooked(batch: Callable[[], float]) -> float:
    """A batch while there is somebody to serve, and so the hooks are there."""
    owner = Device.open()
    owner.own()
    try:
        return batch()
    finally:
        owner.close()


def at_home(intercept: Intercept, pid: int, batch: Callable[[], float]) -> float:
    """A batch as a job at home, of whose opens only those of special files are caught."""
    owner = Device.open()
    intercept.add(pid, 0, owner.own(), ORPHAN_NATIVE)
    try:
        return batch()
    finally:
        intercept.remove(pid)
        owner.close()


@contextmanager
def stopped_memory() -> Iterator[tuple[int, int]]:
    """PID of a stopped process that we trace, and the address of SIZE bytes that it has filled."""
    fill = (
        "import ctypes, sys\n"
        f"b = ctypes.create_string_buffer(b'\\1' * {SIZE}, {SIZE} + 4096)\n"
        "print((ctypes.addressof(b) + 4095) & ~4095, flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", fill], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    address = int(process.stdout.readline())
    tracee = Tracee.seize(process.pid)
    tracee.stop()
    try:
        yield process.pid, address
    finally:
        tracee.detach()
        process.kill()
        process.communicate()


@contextmanager
def sink() -> Iterator[int]:
    """One end of a TCP connection whose other end reads all."""

    def drain() -> None:
        while reader.recv_into(buffer):
            pass

    buffer = bytearray(1 << 20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        writer = socket.create_connection(listener.getsockname())
        reader, _ = listener.accept()
    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield writer.fileno()
    finally:
        writer.close()
        thread.join()
        reader.close()


def capture(send: Callable[[int], int]) -> float:
    """Seconds that it takes to send SIZE bytes, until they have been read."""
    begin = time.monotonic()
    with sink() as fd:
        assert send(fd) == SIZE
    return time.monotonic() - begin


def main() -> None:
    subprocess.run(["insmod", MODULE], check=True)
    with open(FILE, "wb") as file:
        file.write(os.urandom(8192))
    found = {}
    with stopped_memory() as (pid, address):
        device = Device.open()
        files = ProcFiles(mem=os.open(f"/proc/{pid}/mem", os.O_RDONLY))
        found["capture"] = taking_turns(
            lambda: capture(lambda fd: device.send_pages(pid, fd, [(address, SIZE)])),
            lambda: capture(lambda fd: send_pages(pid, fd, [PageRun(address, SIZE)], files)),
        )
        files.close()
        device.close()
    with Intercept() as intercept:
        control = Device.open()
        intercept.attach(control, ["openat", "pread64"])
        intercept.set_actions(0, {OPENAT: verdicts.OWN_PROC_AT})
        intercept.set_special_names(["lock"])
        for name, kind, count in (("bystander", "getpid", 1_000), ("read", "read", 200)):
            with looping(kind, count) as (_, batch):
                found[name] = taking_turns(lambda: hooked(batch), batch)
        with looping("open", 100) as (pid, batch):
            found["home"] = taking_turns(lambda: at_home(intercept, pid, batch), batch)
        control.close()
    subprocess.run(["rmmod", "mosix"], check=True)
    print(json.dumps(found))


main()
