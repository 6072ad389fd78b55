"""What a program says to mosix by opening /proc/self/{special}: mosix(7), "Interface for programs".

A question comes from the job's listener when the process is at home, and from the remote when it
is away; the deputy has both answered here. `value_of` is what an open returns: at least 0, or
-errno. `migrate` may last, and `localtime`, which is set at home, where a guest's clock is chosen:
the process is stopped in its open to be moved, and opens again where it then is, so that only a
failure has to be remembered for it.
Nothing here moves a process itself.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from pathlib import Path
from typing import Protocol

import msgspec
from mosix.deputy.process import JobProcess, Place
from mosix.errors import (
    MosixError,
    NodeDownError,
    NotRunningError,
    PermissionDeniedError,
    UnknownNodeError,
)
from mosix.wire.attributes import HIGHEST, JobAttributes, attribute_of, changed
from mosix.wire.messages import Attributes

READ = os.O_RDONLY
WRITE = os.O_WRONLY | os.O_CREAT
EXCHANGE = os.O_RDWR | os.O_CREAT

MIGRATE = "migrate"
LOCALTIME = "localtime"
CLEAR = "clear"
_READ_ONLY = ("whereami", "nmigs")
_CONSIDER = 2**32 - 1
#: Numbers of userview.map end here; above are IP addresses.
_HIGHEST_NUMBER = 65535


class Orders(Protocol):
    """What a program may have done to itself (`mosix.deputy.main.Deputy`)."""

    def settle(self) -> None: ...

    async def node_of(self, name: str) -> tuple[str | None, int | None]:
        """IP and number of a node; (None, None): there is none, or nobody can tell."""
        ...

    async def consider(self, process: JobProcess) -> str | None:
        """IP of the node where it had better be; None: where it is."""
        ...

    async def send_to(self, process: JobProcess, ip: str | None) -> None:
        """Moves it (None: home) with its lock held; MosixError."""
        ...

    async def come_home(self, process: JobProcess) -> None:
        """The same, but it is still wanted elsewhere."""
        ...


async def value_of(orders: Orders, process: JobProcess, name: str, flags: int, value: int) -> int:
    """What the open of any file but migrate returns."""
    if name in _READ_ONLY:
        if flags != READ:
            return -errno.EACCES
        return process.nmigs if name == "nmigs" else await _where(orders, process)
    if name == CLEAR:
        if flags != WRITE:
            return -errno.EACCES
        cleared = process.attributes.cleared + 1
        _set(orders, process, msgspec.structs.replace(process.attributes, cleared=cleared))
        return 0
    return _attribute(orders, process, name, flags, value)


def _attribute(orders: Orders, process: JobProcess, name: str, flags: int, value: int) -> int:
    attribute = attribute_of(name)
    if attribute is None:
        return -errno.ENOENT
    old: int = getattr(process.attributes, attribute)
    if flags == READ:
        return old
    try:
        attributes = changed(process.attributes, {attribute: value})
    except ValueError:
        return -errno.EINVAL
    _set(orders, process, attributes)
    return old if flags == EXCHANGE else 0


def _set(orders: Orders, process: JobProcess, attributes: JobAttributes) -> None:
    orders.settle()
    process.attributes = attributes
    process.report()
    if process.link is not None:
        process.link.post(Attributes(attributes=attributes))


async def _where(orders: Orders, process: JobProcess) -> int:
    link = process.link
    if process.place is Place.HOME or link is None:
        return 0
    _, number = await orders.node_of(link.ip)
    return number or int(ipaddress.IPv4Address(link.ip))


async def migrate(
    orders: Orders, process: JobProcess, flags: int, value: int, *, again: bool
) -> int | None:
    """What the open of migrate returns; None: it is too late to answer, since a newer question
    of the process has overtaken this one. `again`: it was stopped in the same open before."""
    if flags != WRITE:
        return -errno.EACCES
    asks = process.asks
    ip = await _target(orders, process, value)
    async with process.moves:
        if asks != process.asks or process.place is Place.ENDED:
            return None
        failed, process.failed_migrate = process.failed_migrate, 0
        if failed and again:
            return -failed
        try:
            if ip is None and value == _CONSIDER:
                return 0
            if ip is None and value:
                raise UnknownNodeError(f"there is no node {value}")
            await orders.send_to(process, ip)
        except MosixError as error:
            process.say_why_not(error)
            process.failed_migrate = _errno(error)
            return -process.failed_migrate
    return 0


async def go_home_for(
    orders: Orders, process: JobProcess, value: int, *, again: bool
) -> int | None:
    """What is set only at home is asked away: as `migrate`. It goes back by itself."""
    if value > HIGHEST[LOCALTIME]:
        return -errno.EINVAL
    asks = process.asks
    async with process.moves:
        if asks != process.asks or process.place is not Place.AWAY:
            return None
        failed, process.failed_migrate = process.failed_migrate, 0
        if failed and again:
            return -failed
        try:
            await orders.come_home(process)
        except MosixError as error:
            process.failed_migrate = _errno(error)
            return -process.failed_migrate
    process.go_back_later()
    return None


async def _target(orders: Orders, process: JobProcess, value: int) -> str | None:
    """Where to; None: home, or nowhere."""
    if value == _CONSIDER:
        return await orders.consider(process)
    if not value:
        return None
    name = str(value if value <= _HIGHEST_NUMBER else ipaddress.IPv4Address(value))
    return (await orders.node_of(name))[0]


def _errno(error: MosixError) -> int:
    if isinstance(error, NodeDownError | NotRunningError):
        return errno.EHOSTUNREACH
    if isinstance(error, UnknownNodeError):
        return errno.EINVAL
    if isinstance(error, PermissionDeniedError):
        return errno.EPERM
    return errno.EAGAIN


_PARENT_FIELD, _START_FIELD = 1, 19  # of /proc/PID/stat behind the name


def birth(pid: int) -> tuple[int, int]:
    """(parent, when it was started) of a process; (0, 0) when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0, 0
    return int(fields[_PARENT_FIELD]), int(fields[_START_FIELD])


def process_of(tid: int) -> int:
    """PID of the process that thread `tid` belongs to; 0 when it is gone."""
    try:
        status = Path(f"/proc/{tid}/status").read_text(errors="replace")
    except OSError:
        return 0
    return int(status.partition("\nTgid:")[2].split(None, 1)[0])
