"""The agent's serving half against requests that no redirector would send."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import Kit

OPEN = 2
GO_HOME = 2
REQUEST = struct.Struct("<IHHQQ6QIIIIIHBB")
REPLY = struct.Struct("<IIQqQ")
GETPID, READ, WRITE, CLOSE_RANGE, FSTAT = 39, 0, 1, 436, 5
GAVE_UP = 90
RELOC_ARG = 0x80000000


@contextmanager
def agent(kit: Kit) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    near, far = socket.socketpair()
    near.settimeout(60)
    host = subprocess.Popen([kit.host, str(far.fileno())], pass_fds=[far.fileno()])
    far.close()
    try:
        yield near, host
    finally:
        near.close()
        host.wait(60)


def request(
    nr: int,
    args: tuple[int, ...] = (),
    *,
    relocs: tuple[tuple[int, int], ...] = (),
    data: bytes = b"",
    area: int = 0,
    out: tuple[int, int, int, int] = (0, 0, 0, 0),
    fd_mask: int = 0,
    flags: int = 0,
    signals: int = 0,
    size: int | None = None,
) -> bytes:
    tail = b"".join(struct.pack("<II", *reloc) for reloc in relocs) + data
    full = (*args, 0, 0, 0, 0, 0, 0)[:6]
    offset, fixed, var, unit = out
    return (
        REQUEST.pack(
            len(tail) if size is None else size,
            nr,
            flags,
            1,
            signals,
            *full,
            len(data),
            max(area, len(data)),
            offset,
            fixed,
            var,
            unit,
            len(relocs),
            fd_mask,
        )
        + tail
    )


def reply(sock: socket.socket) -> tuple[int, bytes]:
    head = sock.recv(REPLY.size, socket.MSG_WAITALL)
    size, _, number, result, _ = REPLY.unpack(head)
    assert number == 1
    return result, sock.recv(size, socket.MSG_WAITALL) if size else b""


def test_it_executes_in_its_own_process(kit: Kit) -> None:
    with agent(kit) as (sock, host):
        sock.sendall(request(GETPID))
        assert reply(sock) == (host.pid, b"")


def test_a_large_area_is_given_back_behind_the_call(kit: Kit) -> None:
    with agent(kit) as (sock, host), open("/dev/zero", "rb"):
        size = 32 << 20
        maps = f"/proc/{host.pid}/statm"
        sock.sendall(request(GETPID))
        reply(sock)
        with open(maps, encoding="ascii") as file:
            before = int(file.read().split()[0])
        data = os.urandom(1 << 20) * 32
        ask = request(WRITE, (77, 0, size), relocs=((RELOC_ARG | 1, 0),), data=data)
        sock.sendall(ask)
        assert reply(sock) == (-9, b"")
        sock.sendall(request(GETPID))
        reply(sock)
        with open(maps, encoding="ascii") as file:
            assert int(file.read().split()[0]) == before


def test_its_own_descriptor_is_out_of_reach(kit: Kit) -> None:
    with agent(kit) as (sock, _):
        sock.sendall(request(FSTAT, (900,), relocs=((RELOC_ARG | 1, 0),), area=144, fd_mask=1))
        assert reply(sock) == (-9, b"")
        sock.sendall(request(CLOSE_RANGE, (3, 2**32 - 1)))
        assert reply(sock) == (0, b"")
        sock.sendall(request(CLOSE_RANGE, (900, 900)))
        assert reply(sock) == (0, b"")
        sock.sendall(request(CLOSE_RANGE, (9, 3)))
        assert reply(sock) == (-22, b"")


def test_a_request_in_small_pieces_is_one_request(kit: Kit) -> None:
    with agent(kit) as (sock, host):
        for byte in request(GETPID, data=b"0123456789", out=(0, 5, 0, 0)):
            sock.sendall(bytes([byte]))
        assert reply(sock) == (host.pid, b"01234")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    relocs=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 200), st.integers(0, 9).map(lambda n: RELOC_ARG | n)),
            st.integers(0, 2**32 - 1) | st.integers(0, 100),
        ),
        max_size=70,
    ),
    data=st.binary(max_size=100),
    area=st.integers(0, 2**32 - 1) | st.integers(0, 200),
    out=st.tuples(
        st.integers(0, 2**32 - 1) | st.integers(0, 100),
        st.integers(0, 2**32 - 1) | st.integers(0, 100),
        st.integers(0, 2**32 - 1) | st.integers(0, 100),
        st.integers(0, 2**16 - 1),
    ),
    size=st.none() | st.integers(0, 2**32 - 1),
)
def test_a_malformed_request_ends_serving_and_never_crashes(
    kit: Kit,
    *,
    relocs: list[tuple[int, int]],
    data: bytes,
    area: int,
    out: tuple[int, int, int, int],
    size: int | None,
) -> None:
    with agent(kit) as (sock, host):
        sock.sendall(
            request(GETPID, relocs=tuple(relocs), data=data, area=area, out=out, size=size)
        )
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 20):
            pass
        assert host.wait(60) == GAVE_UP


def test_relative_path_to_its_own_maps_opens_nothing(kit: Kit) -> None:
    """What describes the ghost instead of the body is sent back, whatever path led there."""
    with agent(kit) as (sock, host):
        path = b"/proc/self/task/../maps\0"
        sock.sendall(request(GETPID))
        assert reply(sock)[0] == host.pid  # it serves
        before = os.listdir(f"/proc/{host.pid}/fd")
        sock.sendall(request(OPEN, relocs=((RELOC_ARG, 0),), data=path))
        head = sock.recv(REPLY.size, socket.MSG_WAITALL)
        assert REPLY.unpack(head)[1] == GO_HOME
        assert os.listdir(f"/proc/{host.pid}/fd") == before
        sock.sendall(request(OPEN, relocs=((RELOC_ARG, 0),), data=b"/proc/self/task/../limits\0"))
        assert reply(sock)[0] >= 0
