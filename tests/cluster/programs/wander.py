"""Moves a process at random until a number of moves is reached; runs in its home node.

Arguments: PID, moves, seed, nodes. Orders moves as `migrate --wait` does, without starting Python
each time, every 20 to 500 ms. Prints one JSON list of [target, freeze in ns].
"""

from __future__ import annotations

import json
import random
import sys
import time

from mosix.config import Paths
from mosix.node import requests
from mosix.node.client import ask


def main() -> None:
    pid, moves, seed, nodes = (int(word) for word in sys.argv[1:])
    choose = random.Random(seed)
    where = "home"
    done: list[tuple[str, int]] = []
    while len(done) < moves:
        time.sleep(choose.uniform(0.02, 0.5))
        targets = ["home", *(str(number) for number in range(2, nodes + 1))]
        where = choose.choice([target for target in targets if target != where])
        order = requests.Migrate(pid=pid, target=where, wait=True)
        moved = ask(Paths.choose(), order, requests.Migrated, timeout_s=60)
        done.append((where, moved.freeze_ns))
    print(json.dumps(done))


if __name__ == "__main__":
    main()
