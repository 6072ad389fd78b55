"""Reading ahead: whatever happens to a file meanwhile, a read returns what it would natively."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mosix.native._native import lib
from mosix.native.blob import take_fd
from served import Kit, native, served
from test_agent_serve import OPEN, READ, RELOC_ARG, REPLY, WRITE, agent, request

BLOCK = 64 << 10


class Ghost:
    """Raw requests to an agent, as a redirector sends them."""

    def __init__(self, sock: socket.socket, host: subprocess.Popen[bytes]) -> None:
        self.sock = sock
        self.host = host

    def open(self, path: Path, flags: int = 0) -> int:
        data = os.fsencode(path) + b"\0"
        self.sock.sendall(request(OPEN, (0, flags), relocs=((RELOC_ARG, 0),), data=data))
        _, flags, result, _ = self.receive()
        assert result >= 0 and not flags
        return result

    def ask(self, fd: int, size: int = BLOCK) -> None:
        ask = (READ, (fd, 0, size))
        self.sock.sendall(
            request(*ask, relocs=((RELOC_ARG | 1, 0),), area=size, out=(0, 0, size, 1), fd_mask=1)
        )

    def receive(self) -> tuple[int, int, int, bytes]:
        size, flags, _, result, _ = REPLY.unpack(self._bytes(REPLY.size))
        return size, flags, result, self._bytes(size)

    def _bytes(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            part = self.sock.recv(size - len(got))
            assert part
            got += part
        return got

    def read_ahead(self, fd: int, size: int = BLOCK) -> bytes:
        """Reads until something is sent ahead: that."""
        for _ in range(4):
            self.ask(fd, size)
            _, flags, result, _ = self.receive()
            assert result == size and not flags
            if self.waiting():
                _, flags, result, data = self.receive()
                assert flags == lib.MX_REP_AHEAD and result == len(data) == size
                return data
        raise AssertionError("nothing was sent ahead")

    def waiting(self) -> bool:
        """Whether more comes than the reply; certain once the agent waits for a request."""
        path = Path(f"/proc/{self.host.pid}/syscall")
        while not path.read_text().startswith("45 "):  # recvfrom
            os.sched_yield()
        return bool(select.select([self.sock], [], [], 0)[0])


@contextmanager
def ghost(kit: Kit) -> Iterator[Ghost]:
    with agent(kit) as (sock, host):
        yield Ghost(sock, host)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(16 * BLOCK))
    return path


def test_a_block_that_is_still_the_same_is_not_sent_again(kit: Kit, file: Path) -> None:
    content = file.read_bytes()
    with ghost(kit) as home:
        fd = home.open(file)
        ahead = home.read_ahead(fd)
        at = content.index(ahead) + BLOCK
        while at < len(content):
            home.ask(fd)
            assert home.receive()[:3] == (0, lib.MX_REP_SAME, BLOCK)
            assert home.receive()[3] == content[at : at + BLOCK]
            at += BLOCK
        home.ask(fd)
        assert home.receive()[:3] == (0, lib.MX_REP_SAME, BLOCK)
        home.ask(fd)
        assert home.receive() == (0, 0, 0, b"")


def test_it_is_kept_while_the_program_writes_elsewhere(kit: Kit, file: Path) -> None:
    with ghost(kit) as home:
        fd = home.open(file)
        home.read_ahead(fd)
        home.sock.sendall(request(WRITE, (77, 0, 4), relocs=((RELOC_ARG | 1, 0),), data=b"else"))
        assert home.receive() == (0, 0, -errno.EBADF, b"")
        home.ask(fd)
        assert home.receive()[:3] == (0, lib.MX_REP_SAME, BLOCK)


def test_what_lies_apart_is_not_read_ahead(kit: Kit, file: Path) -> None:
    with ghost(kit) as home:
        fd = home.open(file)
        shared = take_fd(home.host.pid, fd)
        try:
            for at in (5, 3, 9, 7, 1):
                os.lseek(shared, at * BLOCK, os.SEEK_SET)
                home.ask(fd)
                assert home.receive()[1:3] == (0, BLOCK)
                assert not home.waiting()
        finally:
            os.close(shared)


def _overwrite(file: Path, at: int, _: int) -> None:
    with file.open("r+b") as writer:
        writer.seek(at + BLOCK - 1)
        writer.write(b"new" * 2)


def _cut(file: Path, at: int, _: int) -> None:
    os.truncate(file, at + 100)


def _cut_and_restore(file: Path, at: int, _: int) -> None:
    """Everything is as it was but for holes."""
    os.truncate(file, at)
    os.truncate(file, 16 * BLOCK)


def _seek(_: Path, __: int, fd: int) -> None:
    os.lseek(fd, 100, os.SEEK_SET)


def _read(_: Path, __: int, fd: int) -> None:
    os.read(fd, 1)


@pytest.mark.parametrize("change", [_overwrite, _cut, _cut_and_restore, _seek, _read])
def test_a_read_returns_what_is_there_when_it_is_made(
    kit: Kit, file: Path, change: Callable[[Path, int, int], None]
) -> None:
    """Others write to the file meanwhile, shorten it, or use the same position."""
    with ghost(kit) as home:
        fd = home.open(file)
        at = file.read_bytes().index(home.read_ahead(fd))
        shared = take_fd(home.host.pid, fd)
        try:
            change(file, at, shared)
            position = os.lseek(shared, 0, os.SEEK_CUR)
        finally:
            os.close(shared)
        home.ask(fd)
        expected = file.read_bytes()[position : position + BLOCK]
        assert home.receive() == (len(expected), 0, len(expected), expected)


def test_only_files_that_are_read_on_are_read_ahead(kit: Kit, file: Path, tmp_path: Path) -> None:
    """No pipes, nothing beyond the end, no small reads; and nobody's position is moved."""
    fifo, short = tmp_path / "fifo", tmp_path / "short"
    os.mkfifo(fifo)
    short.write_bytes(bytes(4 * BLOCK - 1))
    feeder = os.open(fifo, os.O_RDWR)
    try:
        with ghost(kit) as home:
            pipe, small, end = home.open(fifo), home.open(file), home.open(short)
            for fd, size in ((pipe, 32 << 10), (small, 4096)):
                for _ in range(6):
                    os.write(feeder, bytes(size))
                    home.ask(fd, size)
                    assert home.receive()[1:3] == (0, size)
                    assert not home.waiting()
            for _ in range(3):
                home.ask(end)
                assert home.receive()[1:3] == (0, BLOCK)
                assert not home.waiting()
            shared = take_fd(home.host.pid, end)
            assert os.lseek(shared, 0, os.SEEK_CUR) == 3 * BLOCK
            os.close(shared)
    finally:
        os.close(feeder)


def test_the_rest_of_what_the_socket_did_not_take_comes_before_the_reply(
    kit: Kit, file: Path
) -> None:
    size = lib.MX_AHEAD_MAX
    with ghost(kit) as home:
        home.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        fd = home.open(file)
        for _ in range(3):
            home.ask(fd, size)
            assert home.receive()[1] == 0
        home.ask(fd, size)
        assert home.receive()[1:3] == (lib.MX_REP_AHEAD, size)
        assert home.receive()[:3] == (0, lib.MX_REP_SAME, size)


@pytest.mark.parametrize("killable", [True, False], ids=["killable", "without"])
async def test_a_program_that_reads_a_file_sees_nothing_of_it(
    kit: Kit, tmp_path: Path, killable: bool
) -> None:
    binary = kit.build("read_on", static=False)
    content = struct.pack("<1000000I", *range(1_000_000))
    where = tmp_path / "home"
    where.mkdir()
    file = where / "file"
    file.write_bytes(content)
    status, expected = native([binary, "file"], where)
    assert status == 0
    file.write_bytes(content)
    with (
        (tmp_path / "out").open("w+b") as out,
        served(kit, [binary, "file"], where, stdout=out.fileno(), killable=killable) as pair,
    ):
        assert await pair.serve() == 0
        assert pair.homes == []
        out.seek(0)
        outputs = out.read().decode().splitlines()
    assert outputs == expected.decode().splitlines()
