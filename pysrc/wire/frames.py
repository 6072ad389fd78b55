"""Length-prefixed frames without sockets: bytes in, whole frames out.

`FrameDecoder` says how many bytes it wants next, so that a reader never takes bytes that belong
to whoever gets the socket afterwards. Used by `mosix.wire.channel.Frames`, the handshake and the
control socket. Nothing here may ever hold more than one frame.
"""

from __future__ import annotations

import struct

from mosix.errors import ProtocolError

_LENGTH = struct.Struct("<I")


def frame(data: bytes, limit: int) -> bytes:
    """`data` with its length before it; ProtocolError when it is empty or above `limit`."""
    if not 0 < len(data) <= limit:
        raise ProtocolError(f"frame of {len(data)} bytes")
    return _LENGTH.pack(len(data)) + data


class FrameDecoder:
    """Takes bytes as they come; `limit`: the largest frame allowed, in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._size: int | None = None

    @property
    def wanted(self) -> int:
        """Bytes still missing from the length or the frame being received; never 0."""
        return (_LENGTH.size if self._size is None else self._size) - len(self._buffer)

    @property
    def begun(self) -> bool:
        """True in the middle of a frame: the end of the stream here is an error."""
        return self._size is not None or bool(self._buffer)

    @property
    def sized(self) -> bool:
        """How large the frame being received will be is known: `wanted` tells."""
        return self._size is not None

    def feed(self, data: bytes) -> bytes | None:
        """At most `wanted` bytes; a frame when it is complete. ProtocolError."""
        if len(data) > self.wanted:
            raise ValueError("more bytes than wanted")
        self._buffer += data
        if self.wanted:
            return None
        done = bytes(self._buffer)
        self._buffer.clear()
        if self._size is None:
            (size,) = _LENGTH.unpack(done)
            if not 0 < size <= self._limit:
                raise ProtocolError(f"frame of {size} bytes")
            self._size = size
            return None
        self._size = None
        return done
