"""PID 1 of a lab node: reaps, keeps one mosd, and is the node: when it dies all in it dies.

Started by `cluster` as ``python -m mosix.lab.init NAME GO_FD -- MOSD…``. It waits on GO_FD (a
pipe) for one byte, ``m`` (start mosd) or ``-`` (do not); if the writer dies first, so does the
node. Then signals from the host order it: SIGUSR1 start mosd, SIGHUP stop it (SIGTERM), SIGUSR2
kill it. What mosd does is told in /run/lab/mosd.json, what it says is in /run/lab/mosd.log.
Imports little and never talks to the network.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec
from mosix.lab.state import Mosd, write_json

STATE = Path("/run/lab")
_ORDERS = {signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2}


class Init:
    """The loop of a node's PID 1."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.mosd = Mosd(0)

    def run(self, go_fd: int) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *_ORDERS})
        go = os.read(go_fd, 1)
        os.close(go_fd)
        if not go:
            return 1
        if go == b"m":
            self.start()
        while True:
            number = signal.sigwait({signal.SIGCHLD, *_ORDERS})
            if number == signal.SIGCHLD:
                self.reap()
            elif number == signal.SIGUSR1:
                self.start()
            elif self.mosd.pid:
                stop = signal.SIGTERM if number == signal.SIGHUP else signal.SIGKILL
                os.kill(self.mosd.pid, stop)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.mosd.pid:
                self.tell(Mosd(0, status, self.mosd.starts))

    def start(self) -> None:
        if self.mosd.pid or not self.command:
            return
        pid = os.fork()
        if pid == 0:
            self.become_mosd()
        self.tell(Mosd(pid, None, self.mosd.starts + 1))

    def become_mosd(self) -> None:
        """In the child: exec mosd, in a session of its own, its output in the log."""
        try:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            # Python ignores these; a daemon's children must not inherit that.
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            null = os.open("/dev/null", os.O_RDWR)
            log = os.open(STATE / "mosd.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.dup2(null, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.execvp(self.command[0], [*self.command, *_options()])
        except OSError as error:
            os.write(2, f"{self.command[0]}: {error}\n".encode())
        finally:
            os._exit(127)

    def tell(self, mosd: Mosd) -> None:
        self.mosd = mosd
        write_json(STATE / "mosd.json", mosd)


def _options() -> list[str]:
    """Further options of mosd, as the last `mosix-lab mosd NODE start` gave them."""
    path = STATE / "mosd-options.json"
    return msgspec.json.decode(path.read_bytes(), type=list[str]) if path.exists() else []


if __name__ == "__main__":
    sys.exit(Init(sys.argv[sys.argv.index("--") + 1 :]).run(int(sys.argv[2])))
