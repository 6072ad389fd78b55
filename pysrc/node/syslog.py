"""/etc/mosix/.log_mosrun: while that file is there, the system log tells of each mosrun and move.

Called by mosd for jobs of this node. syslog(3) would wait for a logger that does not read, which
mosd must not: what finds no room there is lost, and mosd's own log says so once.
"""

from __future__ import annotations

import logging
import os
import socket
import syslog
from collections.abc import Sequence
from pathlib import Path

from mosix.node.registry import Job

_log = logging.getLogger("mosd")

DEVICE = "/dev/log"
_PRIORITY = syslog.LOG_DAEMON | syslog.LOG_INFO
#: Of a program's arguments, characters.
_MAX_COMMAND = 400


class SystemLog:
    """`switch`: the file that says whether anything is logged; looked for each time."""

    def __init__(self, switch: Path, device: str = DEVICE) -> None:
        self._switch = switch
        self._device = device
        self._complained = False

    def launched(self, job: Job, pid: int, command: Sequence[bytes], node: str | None) -> None:
        """`pid`: of the process that will be the program; `command`: that and its arguments;
        `node`: where it starts, None: home."""
        words = b" ".join(command).decode("utf-8", "replace")
        text = "".join(c if c.isprintable() else "?" for c in words)[:_MAX_COMMAND]
        at = f" on node {node}" if node else ""
        self._write(f"mosrun: uid {job.uid}, process {pid}, job {job.id}{at}: {text}")

    def moved(self, job: Job, pid: int, where: str) -> None:
        """`where`: "home" or an IP."""
        place = "home" if where == "home" else f"to node {where}"
        self._write(f"migration: uid {job.uid}, process {pid}, job {job.id} {place}")

    def _write(self, text: str) -> None:
        if not self._switch.exists():
            return
        line = f"<{_PRIORITY}>mosix[{os.getpid()}]: {text}".encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(line, self._device)
        except OSError as error:
            if not self._complained:
                _log.warning("%s wants lines in %s: %s", self._switch, self._device, error.strerror)
            self._complained = True
