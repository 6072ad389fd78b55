"""Compiles the small C programs of tests and benchmarks, once for each content.

Results lie in build/programs of the source tree, which lab nodes see too.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from mosix.errors import MosixError

_BUILT = Path(__file__).resolve().parents[2] / "build" / "programs"
#: mosix.h
_INCLUDE = Path(__file__).resolve().parents[1] / "include"


def built(source: Path, *flags: str) -> Path:
    """The program that `source` gives with `flags` (-static, …); MosixError with gcc's words."""
    content = source.read_bytes() + b"".join(
        header.read_bytes()
        for directory in (source.parent, _INCLUDE)
        for header in sorted(directory.glob("*.h"))
    )
    digest = hashlib.sha256(content + repr(flags).encode()).hexdigest()[:12]
    program = _BUILT / f"{source.stem}-{digest}"
    if program.exists():
        return program
    _BUILT.mkdir(parents=True, exist_ok=True)
    new = program.with_name(f".{program.name}.{os.getpid()}")
    strict = ["-I", str(_INCLUDE), "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        ["gcc", *strict, *flags, "-o", str(new), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MosixError(f"{source.name} does not compile: {done.stderr}")
    new.replace(program)
    return program
