"""Structures and numbers that C and Python share, taken from the C headers themselves.

Used by `mosix.kernel.device` and `mosix.kernel.intercept`. Never runs a C compiler: cffi parses
what lies between the lines ``cffi: begin`` and ``cffi: end`` of a header.
"""

from __future__ import annotations

from pathlib import Path

import mosix
from cffi import FFI
from mosix.errors import KernelError

#: the source tree's directory of what runs in the kernel
KERNEL = Path(mosix.__file__).resolve().parent.parent / "kernel"


def shared(*names: str) -> FFI:
    """An FFI that knows what the headers `names` (below kernel/) share. KernelError."""
    ffi = FFI()
    for name in names:
        try:
            text = (KERNEL / name).read_text()
        except FileNotFoundError as error:
            raise KernelError(f"{KERNEL / name} is missing", hint="reinstall mosix") from error
        _, _, rest = text.partition("/* cffi: begin */")
        ffi.cdef(rest.partition("/* cffi: end */")[0])
    return ffi


def constants(ffi: FFI, prefix: str) -> dict[str, int]:
    """The integer constants whose names begin with `prefix`, without it."""
    values = ffi.dlopen(None)
    return {
        name.removeprefix(prefix): int(getattr(values, name))
        for name in dir(values)
        if name.startswith(prefix)
    }
