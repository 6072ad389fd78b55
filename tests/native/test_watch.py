"""Stops of traced processes in a loop: nothing is lost, and nothing is said, in a storm of them."""

from __future__ import annotations

import subprocess
import sys

_STORM = """
import asyncio, signal
from mosix.native.watch import Watch

async def main():
    polls = 0
    watch = Watch()
    def poll():
        nonlocal polls
        polls += 1
    watch.poll = poll
    watch.start()
    # The loop does not get to read its pipe meanwhile, which has room for some hundreds.
    for _ in range(5000):
        signal.raise_signal(signal.SIGCHLD)
    while not polls:
        await asyncio.sleep(0)

asyncio.run(main())
"""


def test_more_signals_than_the_loop_can_take_note_of_are_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STORM], check=True, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("", "")
