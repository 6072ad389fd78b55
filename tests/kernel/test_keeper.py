"""The keeper of the kernel tier and mosd's side of it, with real maps and without the module."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosix.errors import KernelError
from mosix.kernel.keeper import OVER, Count
from mosix.kernel.maps import Maps
from mosix.node.tier import KernelTier

_SYS_BPF, _MAP_CREATE, _MAP_LOOKUP = 321, 0, 1
_HASH, _PERCPU_ARRAY = 1, 6
_TASK = struct.Struct("<4IQ")  # struct mx_task
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, 72)
    result = int(_libc.syscall(_SYS_BPF, command, buffer, 72))
    if result < 0:
        raise OSError(ctypes.get_errno(), "bpf")
    return result


def _made(kind: int, value_size: int, entries: int) -> int:
    return _bpf(_MAP_CREATE, struct.pack("<4I", kind, 4, value_size, entries))


def _task(tasks: int, tid: int) -> tuple[int, ...]:
    key, value = ctypes.c_uint32(tid), ctypes.create_string_buffer(_TASK.size)
    places = ctypes.addressof(key), ctypes.addressof(value)
    _bpf(_MAP_LOOKUP, struct.pack("<IIQQQ", tasks, 0, *places, 0))
    return _TASK.unpack(value.raw)


@pytest.fixture
def held() -> Iterator[tuple[int, ...]]:
    """Descriptors as a keeper has: of the device, of the maps of tasks and of counts."""
    null = os.open(os.devnull, os.O_RDWR)
    fds = (null, _made(_HASH, _TASK.size, 2), _made(_PERCPU_ARRAY, 8, 16))
    yield fds
    for fd in fds:
        os.close(fd)


def _pid(tier: KernelTier) -> int:
    """Of its keeper, which is our child."""
    credentials = tier._packets.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def _started(path: Path, held: tuple[int, ...]) -> KernelTier:
    numbers = ",".join(map(str, held))
    tier = KernelTier(path, await KernelTier._started(path, (OVER, numbers, "7,8"), held))
    await tier._greet()
    return tier


def test_another_takes_over_from_a_keeper_that_was_killed(
    held: tuple[int, ...], tmp_path: Path
) -> None:
    async def orders() -> None:
        tier = await _started(tmp_path / "keeper", held)
        try:
            await tier.add(5, 1, 20, 2)
            first = _pid(tier)
            _end(first)
            await tier.add(6, 2, 30, 0)
            assert tier.unhooked == (7, 8)
            assert _pid(tier) != first
            assert (await tier._ask(Count())).counts["redirected"] == 0
        finally:
            _end(_pid(tier))
            tier.close()

    asyncio.run(orders())
    assert _task(held[1], 5) == (1, 20, 2, 0, 0)
    assert _task(held[1], 6) == (2, 30, 0, 0, 0)


def test_what_a_full_map_refuses_is_told(held: tuple[int, ...]) -> None:
    maps = Maps(*held[1:])
    with pytest.raises(KernelError, match=r"task [0-9]+ cannot be intercepted: the map is full"):
        for tid in range(1, 100):  # it has room for a few more than was asked for
            maps.add(tid, 1, 1, 0)
