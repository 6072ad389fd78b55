"""Runs a command under mosrun and moves every process of the job at random until it ends.

Runs in the job's home node, on whose terminal or pipes the command then is.
Arguments: file for the report, seed, number of nodes, shortest and longest pause in ms, command…
The report is JSON: status (as subprocess has it), moves made, refusals by their text.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from mosix.config import Paths
from mosix.errors import MosixError
from mosix.node import requests
from mosix.node.client import ask


class Roamer:
    def __init__(self, seed: int, nodes: int, pauses_ms: tuple[int, int]) -> None:
        self.choose = random.Random(seed)
        self.targets = ["home", *(str(number) for number in range(2, nodes + 1))]
        self.pauses_ms = pauses_ms
        self.paths = Paths.choose()
        self.moves = 0
        self.refused: Counter[str] = Counter()
        self.why: Counter[str] = Counter()

    def drive(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            try:
                process.wait(self.choose.uniform(*self.pauses_ms) / 1000)
            except subprocess.TimeoutExpired:
                self.step(process.pid)

    def step(self, root: int) -> None:
        rows = ask(self.paths, requests.Processes(), requests.ProcessList).rows
        jobs = {row.job for row in rows if row.pid == root and not row.origin_pid}
        mine = [row for row in rows if row.job in jobs and not row.origin_pid]
        if not mine:
            return
        row = self.choose.choice(mine)
        self.why[row.why] += 1
        target = self.choose.choice(self.targets)
        order = requests.Migrate(pid=row.pid, target=target, wait=True)
        try:
            ask(self.paths, order, requests.Migrated, timeout_s=60)
            self.moves += 1
        except MosixError as error:
            self.refused[error.message.replace(str(row.pid), "PID")] += 1


def main() -> None:
    report, seed, nodes, shortest, longest, *command = sys.argv[1:]
    roamer = Roamer(int(seed), int(nodes), (int(shortest), int(longest)))
    begin = time.monotonic()
    process = subprocess.Popen(["mosrun", *command])
    roamer.drive(process)
    said = {
        "status": process.returncode,
        "seconds": time.monotonic() - begin,
        "moves": roamer.moves,
        "refused": roamer.refused,
        "why": roamer.why,
    }
    Path(report).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
