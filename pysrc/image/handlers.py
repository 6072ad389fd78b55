"""Signal handlers that a stopped process is in: which signals only they block.

The kernel keeps no list of them; it is found again from the frames it has put on the stack
(struct rt_sigframe, arch/x86/include/asm/sigframe.h). Used by the deputy when a body leaves: the
mask that the ghost takes over must not contain what a handler's end unblocks, for rt_sigreturn is
executed where the body is and the ghost never hears of it.
"""

from __future__ import annotations

import struct

from mosix.image.model import Image
from mosix.native.stops import Registers
from mosix.native.tracee import Tracee

# From the frame's first byte, which is what rsp was when the handler began: the address of the
# restorer, then struct ucontext: flags, link, stack_t, sigcontext, mask.
_UC_FLAGS, _UC_LINK, _RSP, _CS, _MASK, _SIZE = 8, 16, 168, 192, 304, 312
_KNOWN_FLAGS = 7
_USER_CS = 0x33
_U64 = struct.Struct("<Q")
_U16 = struct.Struct("<H")
_RESTORER = struct.Struct("<16xQ")  # of struct kernel_sigaction
_SEARCHED = 1 << 20
_PIECE = 64 << 10
_MAX_NESTED = 64


def mask_outside(tracee: Tracee, image: Image) -> int:
    """The signal mask without what is blocked only until handlers that run now return."""
    mask = image.threads[0].signal_mask
    restorers = {
        action[16:24]
        for signal, action in image.process.sigactions.items()
        if _RESTORER.unpack_from(action)[0]
    }
    if not restorers or not any(mask >> signal - 1 & 1 for signal in image.process.sigactions):
        return mask
    rsp = Registers.unpack(image.threads[0].registers).rsp
    for _ in range(_MAX_NESTED):
        frame = _next_frame(tracee, rsp & ~7, restorers)
        if frame is None:
            break
        mask &= _U64.unpack_from(frame, _MASK)[0]
        (rsp,) = _U64.unpack_from(frame, _RSP)
    return mask


def _next_frame(tracee: Tracee, start: int, restorers: set[bytes]) -> bytes | None:
    """The innermost frame at or above `start`, on the same stack."""
    for piece in range(start, start + _SEARCHED, _PIECE):
        data = _read_up_to(tracee, piece, _PIECE + _SIZE)
        found = [
            at
            for restorer in restorers
            for at in _places(data, restorer)
            if _is_frame(data[at : at + _SIZE])
        ]
        if found:
            return data[min(found) : min(found) + _SIZE]
        if len(data) < _PIECE + _SIZE:
            break
    return None


def _places(data: bytes, word: bytes) -> list[int]:
    places, at = [], data.find(word)
    while at >= 0:
        if at % 8 == 0:
            places.append(at)
        at = data.find(word, at + 1)
    return places


def _is_frame(data: bytes) -> bool:
    return (
        len(data) == _SIZE
        and _U64.unpack_from(data, _UC_FLAGS)[0] <= _KNOWN_FLAGS
        and _U64.unpack_from(data, _UC_LINK)[0] == 0
        and _U16.unpack_from(data, _CS)[0] == _USER_CS
    )


def _read_up_to(tracee: Tracee, address: int, size: int) -> bytes:
    """As much of it as there is."""
    try:
        return tracee.read(address, size)
    except OSError:
        end = (address | 0xFFF) + 1
        data = b""
        while len(data) < size:
            try:
                data += tracee.read(address + len(data), min(end - address, size) - len(data))
            except OSError:
                break
            end += 0x1000
        return data
