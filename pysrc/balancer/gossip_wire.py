"""Datagrams of gossip as bytes: layout, seal, and the window against replay.

Called by `gossip`, which says what is in them and what follows from them. Nothing here knows a
node's state, and nothing that arrives makes it fail otherwise than by `RefusedDatagram`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from mosix.balancer.vectors import ENTRY

# magic, kind, entries, sender, receiver, session, echo, sequence, argument
_HEADER: Final = struct.Struct("<4sBBIIQQQQ")
_MAGIC: Final = b"mxg2"
_MAC_BYTES: Final = 16
#: Fits an Ethernet frame: a window of more entries goes in several datagrams.
MAX_DATAGRAM: Final = 1400
PER_DATAGRAM: Final = (MAX_DATAGRAM - _HEADER.size - _MAC_BYTES) // ENTRY.itemsize
#: Datagrams of one sender may overtake so many others.
_REORDER: Final = 64


class Kind(IntEnum):
    """What a datagram is for, and its argument."""

    PUSH = 1  # entries
    PULL = 2  # own entry; answered by PUSH
    #: own entry and the receiver's. Argument: the sequence number it answers; in place of its
    #: own: the receiver's newest session known
    HELLO = 3
    ASK = 4  # own entry; argument: the node that is to be pulled from and passed on


_KINDS: Final = frozenset(Kind)


class Packet(NamedTuple):
    """`echo`: the receiver's session, as the sender knows it (0: not yet)."""

    kind: Kind
    sender: int
    receiver: int
    session: int
    echo: int
    sequence: int
    argument: int
    entries: bytes


class RefusedDatagram(Exception):
    """`args[0]`: why, a word or two for a counter."""


class Seal:
    """Signs and checks with the cluster's secret."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"mosix gossip 1", hashlib.sha256)

    def mac(self, body: bytes | memoryview) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_MAC_BYTES]

    def pack(self, packet: Packet) -> bytes:
        count = len(packet.entries) // ENTRY.itemsize
        header = _HEADER.pack(_MAGIC, packet.kind, count, *packet[1:-1])
        body = header + packet.entries
        return body + self.mac(body)

    def unpack(self, data: bytes) -> Packet:
        """RefusedDatagram if it is not one, whole and sealed."""
        if not _HEADER.size + _MAC_BYTES <= len(data) <= MAX_DATAGRAM:
            raise RefusedDatagram("size")
        body = data[:-_MAC_BYTES]
        if not hmac.compare_digest(self.mac(body), data[-_MAC_BYTES:]):
            raise RefusedDatagram("forged")
        magic, kind, count, sender, receiver, *numbers = _HEADER.unpack_from(body)
        entries = body[_HEADER.size :]
        if magic != _MAGIC or kind not in _KINDS or len(entries) != count * ENTRY.itemsize:
            raise RefusedDatagram("malformed")
        session, echo, sequence, argument = numbers
        return Packet(Kind(kind), sender, receiver, session, echo, sequence, argument, entries)


@dataclass(slots=True)
class Peer:
    """What is known of one node's datagrams. Sessions are 0 until proved."""

    session: int = 0
    #: greatest sequence number received; bit k of `seen`: highest - k was
    highest: int = 0
    seen: int = 0
    sent: int = 0
    hello_for: int = 0
    last_sent: tuple[Kind, int] = (Kind.PUSH, 0)

    def begin(self, session: int) -> bool:
        """Whether this session is newer than the known one, which then ends."""
        if session <= self.session:
            return False
        self.session, self.highest, self.seen = session, 0, 0
        return True

    def fresh(self, sequence: int) -> bool:
        """Whether this number was not received yet in the session; notes that it is now."""
        ahead = sequence - self.highest
        if ahead > 0:
            seen = self.seen << ahead if ahead < _REORDER else 0
            self.seen = (seen | 1) & ((1 << _REORDER) - 1)
            self.highest = sequence
            return True
        bit = 1 << min(-ahead, _REORDER)
        if bit >> _REORDER or self.seen & bit:
            return False
        self.seen |= bit
        return True
