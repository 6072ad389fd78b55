"""A service manager that wants to be told that mosd is well is told so, as long as it is."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from mosd_nodes import Cluster, Node

_INTERVAL_US = 400_000


class Manager:
    """What systemd is for mosd: a datagram socket that it writes to."""

    def __init__(self, node: Node, **environment: str) -> None:
        self.path = node.directory / "manager"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(self.path))
        self.sock.settimeout(20)
        self.process = subprocess.Popen(
            node.command(),
            env={**node.environment, "NOTIFY_SOCKET": str(self.path), **environment},
            stderr=(node.directory / "log").open("ab"),
            stdin=subprocess.DEVNULL,
        )

    def said(self) -> str:
        return self.sock.recv(100).decode()

    def forget(self) -> None:
        """What was said until now."""
        self.sock.setblocking(False)
        try:
            while True:
                self.sock.recv(100)
        except BlockingIOError:
            self.sock.settimeout(20)

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        assert self.process.wait(40) == 0
        self.sock.close()


@pytest.fixture
def node(cluster: Cluster) -> Node:
    return cluster.node(1, start=False)


def test_it_is_said_again_and_again_and_not_by_a_mosd_that_stands_still(node: Node) -> None:
    manager = Manager(node, WATCHDOG_USEC=str(_INTERVAL_US))
    try:
        first = {manager.said() for _ in range(4)}
        assert first == {"READY=1", "WATCHDOG=1"}
        assert manager.said() == "WATCHDOG=1"
        manager.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, manager.process.pid, os.WSTOPPED | os.WNOWAIT)
        manager.forget()
        manager.sock.settimeout(4 * _INTERVAL_US / 1e6)
        with pytest.raises(TimeoutError):
            manager.said()
        manager.sock.settimeout(20)
        manager.process.send_signal(signal.SIGCONT)
        assert manager.said() == "WATCHDOG=1"
    finally:
        manager.end()


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "400000", "WATCHDOG_PID": "1"}])
def test_nobody_is_told_who_has_not_asked(node: Node, environment: dict[str, str]) -> None:
    """Or has asked another process."""
    manager = Manager(node, **environment)
    try:
        assert manager.said() == "READY=1"
        deadline = time.monotonic() + 3 * _INTERVAL_US / 1e6
        manager.sock.settimeout(0.1)
        while time.monotonic() < deadline:
            with pytest.raises(TimeoutError):
                manager.said()
    finally:
        manager.end()


def how_it_dies(process: subprocess.Popen[bytes]) -> int:
    """By SIGABRT: CLD_KILLED, or CLD_DUMPED if there was a core."""
    process.send_signal(signal.SIGABRT)
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    process.wait()
    return ended.si_code


def test_its_memory_gets_into_no_core(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the secret, and a watchdog ends a daemon by a signal that makes a core."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        other = subprocess.Popen(["sleep", "60"])
        if how_it_dies(other) != os.CLD_DUMPED:
            pytest.skip("no process leaves a core here")
        node.start()
        assert node.process is not None
        assert how_it_dies(node.process) == os.CLD_KILLED
        node.process = None
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
