"""What programs/states.c does, in Python."""

from __future__ import annotations

import hashlib
import os
import signal
import time

signals = 0


def count(*_: object) -> None:
    global signals  # noqa: PLW0603
    signals += 1


def lap() -> str:
    digest, sum_ = hashlib.sha256(), 1.0
    for i in range(1, 5000):
        sum_ = sum_ * 1.0000001 + 1 / i
        digest.update(f"{sum_}{[i] * 3}".encode())
    return digest.hexdigest()


def compute() -> None:
    wanted, before, wrong = lap(), signals, 0
    print("computing", flush=True)
    while signals == before:
        wrong += lap() != wanted
    print("computed wrong" if wrong else "computed right", flush=True)


def rest() -> None:
    print("sleeping", flush=True)
    begin = time.monotonic()
    time.sleep(0.7)
    print("slept" if time.monotonic() - begin >= 0.7 else "slept too little", flush=True)


signal.signal(signal.SIGUSR1, count)
print("ready", flush=True)
while byte := os.read(0, 1).decode():
    if byte == "c":
        compute()
    elif byte == "s":
        rest()
    else:
        print(f"read {byte}", flush=True)
print(f"end, {signals} signals")
