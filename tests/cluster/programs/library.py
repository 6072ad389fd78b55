"""What Python programs do, by area: library.py AREA. Prints only what is always the same."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import mmap
import multiprocessing
import os
import queue
import selectors
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import types
import zlib
from pathlib import Path


def library() -> None:
    data = Path("/node/material/bytes").read_bytes()
    for name in ("md5", "sha1", "sha256", "sha3_256", "blake2b"):
        print(name, hashlib.new(name, data).hexdigest())
    print(hashlib.pbkdf2_hmac("sha256", b"a", b"b", 100000).hex())
    print(len(zlib.compress(data, 9)))
    text = json.dumps([{str(i): [i / 7] * 20, "s": "é" * i} for i in range(800)])
    print(hashlib.md5(json.dumps(json.loads(text), indent=1).encode()).hexdigest())
    libc = ctypes.CDLL(None)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.POINTER(ctypes.c_int)] * 2)
    numbers = (ctypes.c_int * 5000)(*[(i * 7919) % 5003 for i in range(5000)])
    libc.qsort(numbers, 5000, 4, compare(lambda a, b: a[0] - b[0]))
    print(numbers[0], numbers[4999])


def files() -> None:
    connection = sqlite3.connect("d.db")
    connection.execute("create table t(a, b)")
    for r in range(8):
        rows = [(i, str(i * r)) for i in range(1000)]
        connection.executemany("insert into t values(?, ?)", rows)
        connection.commit()
    connection.execute("pragma journal_mode=wal")
    for r in range(8):
        connection.execute("update t set b=b||? where a%7=?", ("x", r % 7))
        connection.commit()
    print(connection.execute("select count(*), sum(length(b)) from t").fetchall())
    connection.close()
    with open("mapped", "w+b") as file:
        file.write(b"x" * 10000)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as memory:
            memory[5] = 65
            memory.flush()
            print(os.pread(file.fileno(), 8, 0))
    total = 0
    for directory, _, names in os.walk("/usr/lib/python3.11"):
        total += sum(os.lstat(os.path.join(directory, name)).st_size for name in names)
    print(total)
    with tempfile.TemporaryDirectory(dir=".") as directory:
        os.makedirs(os.path.join(directory, "a/b"))
        os.replace(os.path.join(directory, "a/b"), os.path.join(directory, "c"))
        print(sorted(os.listdir(directory)))


def processes() -> None:
    for i in range(12):
        script = f"cat; echo err >&2; exit {i}"
        given = b"x" * i * 9000
        done = subprocess.run(["sh", "-c", script], input=given, capture_output=True, check=False)
        print(len(done.stdout), done.stderr, done.returncode)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _ask(port: int, k: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    total = 0
    for i in range(40):
        sent = bytes((i * k + j) % 256 for j in range(1000))
        writer.write(sent)
        got = await reader.readexactly(1000)
        assert got == sent
        total += sum(got)
        await asyncio.sleep(0.002)
    writer.close()
    return total


async def _network() -> None:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(await asyncio.gather(*(_ask(port, k) for k in range(5))))
    process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    print(await process.communicate(b"hello"))


def sockets() -> None:
    asyncio.run(_network())
    kinds = (selectors.EpollSelector, selectors.PollSelector, selectors.SelectSelector)
    for kind in kinds:
        selector = kind()
        a, b = socket.socketpair()
        selector.register(a, selectors.EVENT_READ)
        total = 0
        for i in range(50):
            b.send(bytes([i]))
            assert len(selector.select(1)) == 1
            total += a.recv(10)[0]
        begin = time.monotonic()
        assert not selector.select(0.15)
        assert 0.149 <= time.monotonic() - begin < 20
        print(kind.__name__, total)


def signals() -> None:
    count = [0, 0]

    def handle(number: int, _: types.FrameType | None) -> None:
        count[number == signal.SIGUSR1] += 1

    signal.signal(signal.SIGALRM, handle)
    signal.signal(signal.SIGUSR1, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    while count[0] < 30:
        time.sleep(0.05)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for i in range(1, 101):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert count[1] == i
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    for _ in range(5):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.SIGUSR1 in signal.sigpending()
        print(signal.sigwait([signal.SIGUSR1]).name, count[1])
    print(signal.sigtimedwait([signal.SIGUSR1], 0.05))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    begin = time.monotonic()
    time.sleep(0.3)
    assert 0.3 <= time.monotonic() - begin < 20
    print("signals")


def threads() -> None:
    """Stay at home while there is more than one, and may leave between."""
    results: list[int] = []
    for _ in range(3):
        work: queue.Queue[int | None] = queue.Queue()

        def run(work: queue.Queue[int | None] = work) -> None:
            while (item := work.get()) is not None:
                results.append(sum(range(item)))

        members = [threading.Thread(target=run) for _ in range(4)]
        for member in members:
            member.start()
        for i in range(400):
            work.put(i)
        for _ in members:
            work.put(None)
        for member in members:
            member.join()
        alone = sum(range(2_000_000))
        print(sum(results), alone)


def _square(number: int) -> int:
    return sum(i * number % 7 for i in range(30000))


def multi() -> None:
    multiprocessing.set_start_method("fork")
    with multiprocessing.Pool(3) as pool:
        print(pool.map(_square, range(30)))


if __name__ == "__main__":
    areas = {
        **{area.__name__: area for area in (library, files, processes, sockets, signals, threads)},
        "multiprocessing": multi,
    }
    areas[sys.argv[1]]()
