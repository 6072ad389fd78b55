"""Describes the cffi extension `mosix.native._native`: which C files, which declarations.

Each unit has a .h whose part between ``/* cffi: begin */`` and ``/* cffi: end */`` is what Python
may call; that is the only list of declarations. A unit is one .c of the same name, or several
whose names begin with it.
"""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
UNITS = (
    "tracee",
    "inject",
    "pages",
    "module",
    "clock",
    "redirect",
    "cputime",
    "listener",
    "decide",
    "spin",
    "proctimes",
)
#: what mosix.ko and we agree on
_MODULE = HERE.parent.parent / "kernel" / "module" / "mosix_uapi.h"
SOURCES = sorted(path for unit in UNITS for path in HERE.glob(f"{unit}*.c"))


def _declarations(header: Path) -> str:
    text = header.read_text(encoding="utf-8")
    parts = re.findall(r"/\* cffi: begin \*/(.*?)/\* cffi: end \*/", text, re.S)
    return "\n".join(parts)


def _abi() -> str:
    """abi.h in the subset of C that cffi parses."""
    text = (HERE / "abi.h").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"^#(ifndef|endif|include).*$", "", text, flags=re.M)
    return re.sub(r"^#define (\w+).*$", r"#define \1 ...", text, flags=re.M).replace(
        "#define MOSIX_ABI_H ...", ""
    )


ffi = FFI()
ffi.cdef(
    _abi()
    + _declarations(_MODULE)
    + "\n".join(_declarations(HERE / f"{unit}.h") for unit in (*UNITS, "failpoint"))
)
ffi.set_source(
    "mosix.native._native",
    '#include "abi.h"\n#include "failpoint.h"\n'
    + "\n".join(f'#include "{unit}.h"' for unit in UNITS),
    sources=[str(path.relative_to(HERE.parent.parent)) for path in SOURCES],
    include_dirs=["pysrc/native", "kernel/module"],
    depends=[
        "kernel/module/mosix_uapi.h",
        *(str(header.relative_to(HERE.parent.parent)) for header in HERE.glob("*.h")),
    ],
    extra_compile_args=[
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-D_GNU_SOURCE",
        "-fvisibility=hidden",
        "-pthread",
        "-Wno-error=unused-parameter",
        "-Wno-missing-field-initializers",
    ],
    py_limited_api=False,
)
