"""A terminal for tests: a pty whose other side is a command's standard descriptors."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator
from typing import Any

from mosix.lab.drive import kill_command


class Terminal:
    """What a person at a terminal does: type, read, wait for the end."""

    def __init__(self, master: int, process: subprocess.Popen[Any]) -> None:
        self.master = master
        self.process = process
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str, deadline_s: float = 20.0) -> str:
        """Everything up to and including `text`, which must come; it is taken from the screen."""
        end = time.monotonic() + deadline_s
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise AssertionError(f"{text!r} did not come; on the screen: {self.seen!r}")
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError as error:  # EIO: nobody has the other side open any more
                raise AssertionError(f"ended without {text!r}: {self.seen!r}") from error
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def prompt(self) -> None:
        """Give a shell a prompt that no echo of what is typed contains, and wait for it."""
        self.type("PS1=rea; PS1=${PS1}dy:\n")
        self.expect("ready:")

    def wait(self) -> int:
        return self.process.wait(20)


@contextlib.contextmanager
def terminal(argv: list[str], controlling: bool = False) -> Iterator[Terminal]:
    """Run `argv` on a new terminal. `controlling`: as leader of a session on it, as a shell is
    by its terminal emulator; otherwise argv makes a session itself."""
    master, slave = os.openpty()
    if controlling:
        argv = ["setsid", "--ctty", "--wait", *argv]
    try:
        process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave)
    finally:
        os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        if process.poll() is None:
            kill_command(process)
            process.kill()
            process.wait()
        os.close(master)
