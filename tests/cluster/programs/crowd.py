"""Starts many jobs of programs/ledger.c at once and moves a third of them; runs in their home node.

Arguments: how many, the program. Prints as JSON: exit statuses, moves made, complaints.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from mosix.config import Paths
from mosix.errors import MosixError
from mosix.node import requests
from mosix.node.client import ask

_ROUNDS = 6
_MOVERS = 4
_PAUSE_US = 100_000
_STATUS = 7


def move(pids: list[int], seed: int, made: list[int], complaints: list[str]) -> None:
    choose = random.Random(seed)
    for _ in range(_ROUNDS):
        for pid in pids:
            target = choose.choice(("2", "3", "home"))
            order = requests.Migrate(pid=pid, target=target, wait=True)
            try:
                ask(Paths.choose(), order, requests.Migrated, timeout_s=120)
                made.append(pid)
            except MosixError as error:
                complaints.append(error.line())


def main() -> None:
    count, program = int(sys.argv[1]), sys.argv[2]
    stop = Path("/node/crowd-stop")
    stop.unlink(missing_ok=True)
    jobs = []
    for number in range(count):
        file = Path(f"/node/crowd-{number}")
        file.unlink(missing_ok=True)
        with file.with_suffix(".out").open("wb") as output:
            command = ["mosrun", program, str(file), str(stop), str(_STATUS), str(_PAUSE_US)]
            jobs.append(subprocess.Popen(command, stdout=output))
    while len(ask(Paths.choose(), requests.Processes(), requests.ProcessList).rows) < count:
        time.sleep(0.05)
    moved = [job.pid for job in jobs[::3]]
    made: list[int] = []
    complaints: list[str] = []
    movers = [
        threading.Thread(target=move, args=(moved[n::_MOVERS], n, made, complaints))
        for n in range(_MOVERS)
    ]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.join()
    stop.touch()
    print(json.dumps([[job.wait() for job in jobs], len(made), complaints]))


if __name__ == "__main__":
    main()
