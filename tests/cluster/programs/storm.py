"""Sends a process of programs/storm.c its signals while it moves it about; runs in its home node.

Arguments: PID, how many signals, seed. Every signal SIGRTMIN carries its number, and a SIGUSR1
goes with it; the process moves all the time. Prints how many moves were made.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import sys
import threading
import time

from mosix.config import Paths
from mosix.errors import MosixError
from mosix.node import requests
from mosix.node.client import ask


class _Value(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("pointer", ctypes.c_void_p))


def send(pid: int, count: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(count):
        value = _Value(pointer=0)
        value.number = number
        while libc.sigqueue(pid, int(signal.SIGRTMIN), value):
            if ctypes.get_errno() != errno.EAGAIN:  # that is: the queue is full
                return
            time.sleep(0.001)
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            return
        time.sleep(0.001)


def main() -> None:
    pid, count, seed = (int(word) for word in sys.argv[1:])
    choose = random.Random(seed)
    sender = threading.Thread(target=send, args=(pid, count))
    sender.start()
    moves = 0
    while sender.is_alive():
        order = requests.Migrate(pid=pid, target=choose.choice(("2", "3", "home")), wait=True)
        try:
            ask(Paths.choose(), order, requests.Migrated, timeout_s=60)
        except MosixError:
            if sender.is_alive() and os.path.exists(f"/proc/{pid}/exe"):
                raise
            break
        moves += 1
        time.sleep(0.02)
    sender.join()
    print(moves)


if __name__ == "__main__":
    main()
