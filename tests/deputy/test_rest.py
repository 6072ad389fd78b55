"""What a deputy notices while nobody wants anything of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosix.deputy.rest import rest


@pytest.fixture
def mosd() -> Iterator[tuple[socket.socket, socket.socket]]:
    """mosd's and the deputy's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        yield sleeping
        sleeping.kill()


def _members(directory: Path, *pids: int) -> str:
    """A file of the kernel's form: what is asked of a cgroup here is only who is in it."""
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return str(directory)


def no_other() -> None:
    """The next mosd has not come."""


def test_a_message_ends_it_and_is_left_for_the_event_loop(
    tmp_path: Path,
    mosd: tuple[socket.socket, socket.socket],
    process: subprocess.Popen[bytes],
) -> None:
    mosd[0].send(b"message")
    cgroup = _members(tmp_path, process.pid)
    node, pidfd = rest(mosd[1], [], os.pidfd_open(process.pid), cgroup, no_other)
    assert node is mosd[1]
    assert mosd[1].recv(100) == b"message"
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    os.close(pidfd)


def test_the_job_is_over_when_the_last_process_is(
    tmp_path: Path,
    mosd: tuple[socket.socket, socket.socket],
    process: subprocess.Popen[bytes],
) -> None:
    with subprocess.Popen(["true"]) as first:
        pidfd = os.pidfd_open(first.pid)
        first.wait()
        cgroup = _members(tmp_path, first.pid, process.pid)
        ended: list[int] = []
        thread = threading.Thread(
            target=lambda: ended.append(rest(mosd[1], [], pidfd, cgroup, no_other)[1])
        )
        thread.start()
        assert ended == []  # the second one goes on
        _members(tmp_path)
        process.kill()
        thread.join(60)
        assert ended == [-1]


def test_without_mosd_the_job_goes_on(
    tmp_path: Path,
    mosd: tuple[socket.socket, socket.socket],
    process: subprocess.Popen[bytes],
) -> None:
    mosd[0].close()
    process.send_signal(signal.SIGKILL)
    pidfd = os.pidfd_open(process.pid)
    assert rest(mosd[1], [], pidfd, _members(tmp_path), no_other) == (mosd[1], -1)


def test_another_mosd_is_told_from_the_one_that_ended(
    tmp_path: Path,
    mosd: tuple[socket.socket, socket.socket],
    process: subprocess.Popen[bytes],
) -> None:
    mosd[0].close()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(b"message")
        cgroup = _members(tmp_path, process.pid)
        node, pidfd = rest(mosd[1], [], os.pidfd_open(process.pid), cgroup, lambda: theirs)
        os.close(pidfd)
        assert node is theirs
        assert theirs.recv(100) == b"message"
