"""Who may do what: owner or root. Used by mosd for every request.

The caller is who the kernel says (SO_PEERCRED), never what a message says.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from mosix.errors import PermissionDeniedError

_UCRED = struct.Struct("3i")


@dataclass(frozen=True)
class Caller:
    """The process at the other end of a unix socket, when it connected."""

    pid: int
    uid: int
    gid: int


def caller_of(sock: socket.socket) -> Caller:
    """`pid` is 0 when the caller lives in a PID namespace that this process cannot see."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Caller(*_UCRED.unpack(data))


def check_owner(uid: int, owner: int, pid: int) -> None:
    """PermissionDeniedError unless `uid` is `owner` or root."""
    if uid not in (0, owner):
        raise PermissionDeniedError(
            f"process {pid} belongs to uid {owner}", "only its owner or root may do this"
        )


def check_root(uid: int, what: str) -> None:
    """PermissionDeniedError unless `uid` is root's. `what`: only root may ..."""
    if uid:
        raise PermissionDeniedError(f"only root may {what}", "it concerns everybody on this node")
