"""Compiles the small C programs of tests and benchmarks, and mosix.ko, once for each content.

Results lie in build/ of the source tree, which lab nodes see too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from mosix.errors import MosixError
from mosix.lab.kernels import Kernel

_TREE = Path(__file__).resolve().parents[2]
_BUILT = _TREE / "build" / "programs"
_MODULE = _TREE / "kernel" / "module"
#: mosix.h
_INCLUDE = _TREE / "pysrc" / "include"


def built(source: Path, *flags: str) -> Path:
    """The program that `source` gives with `flags` (-static, more sources, …); MosixError with
    gcc's words."""
    content = source.read_bytes() + b"".join(
        header.read_bytes()
        for directory in (source.parent, _INCLUDE)
        for header in sorted(directory.glob("*.h"))
    )
    content += b"".join(Path(flag).read_bytes() for flag in flags if flag.endswith(".c"))
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


def built_module(kernel: Kernel) -> Path:
    """mosix.ko for `kernel`, made with W=1 and sparse; MosixError with what they say."""
    sources = sorted(path for path in _MODULE.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    where = _TREE / "build" / "module" / f"{kernel.release}-{digest}"
    module = where / "mosix.ko"
    if module.exists():
        return module
    new = where.with_name(f".{where.name}.{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(_MODULE, new)
    make = ["make", "-s", f"-j{os.cpu_count()}", "-C", str(kernel.headers), f"M={new}"]
    done = subprocess.run(
        [*make, "W=1", "C=2", "modules"],
        capture_output=True,
        text=True,
        check=False,
    )
    # Without the kernel's own vmlinux there are no types for eBPF in the module: none are needed.
    said = [line for line in done.stderr.splitlines() if not line.startswith("Skipping BTF")]
    if done.returncode or said:
        raise MosixError(f"mosix.ko for {kernel.release} is not built cleanly: {said}")
    for old in where.parent.glob(f"{kernel.release}-*"):
        shutil.rmtree(old)
    new.rename(where)
    return module
