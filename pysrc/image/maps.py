"""The address space of a process as the kernel lists it: /proc/PID/smaps, or mosix.ko → `Vma`.

Used by eligibility (flags), capture and the agent (holes). Only reads; judges nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

from mosix.errors import NoSuchProcessError
from mosix.image.model import Vma
from mosix.native._native import ffi, lib

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4

#: VmFlags that a restore must repeat: by MAP_GROWSDOWN, mlock2, MAP_NORESERVE, MAP_DROPPABLE or
#: madvise (sequential, random, don't fork, don't dump, wipe on fork, huge, no huge, mergeable).
RESTORED_FLAGS = frozenset(
    ("gd", "lo", "lf", "nr", "dp", "sr", "rr", "dc", "dd", "wf", "hg", "nh", "mg")
)

_KERNEL_KINDS = {
    "[vdso]": "vdso",
    "[vvar]": "vvar",
    "[vvar_vclock]": "vvar",
    "[vsyscall]": "vsyscall",
    "[heap]": "heap",
    "[stack]": "stack",
}


_PROTECTION = ((PROT_READ, "rd"), (PROT_WRITE, "wr"), (PROT_EXEC, "ex"))
_VMA = "MOSIX_VMA_"
#: bit → VmFlag, as mosix.ko tells them
_FLAG_NAMES = [
    (int(getattr(lib, name)), name.removeprefix(_VMA).lower())
    for name in dir(lib)
    if name.startswith(_VMA)
]
#: what mosix.ko is asked for at once: mappings, bytes of their names
_AT_ONCE, _NAMES_BYTES = 512, 64 << 10


@dataclass(frozen=True, slots=True)
class Mapping:
    """A VMA with all the kernel says about it. `vma` has only the flags that travel."""

    vma: Vma
    flags: frozenset[str]
    shared: bool
    inode: int
    device: str
    pkey: int


def read_mappings(pid: int, module: int = -1) -> list[Mapping]:
    """All mappings in address order. `module`: a file of /dev/mosix, by which those of a process
    that we trace are found sooner, since nothing is counted. NoSuchProcessError if the process has
    no memory (gone, zombie); PermissionError if it may not be looked at."""
    try:
        if module >= 0:
            return _from_module(pid, module)
    except PermissionError:
        pass  # it is not dumpable: /proc may be open to us all the same
    except ProcessLookupError as error:
        raise NoSuchProcessError(f"process {pid} does not exist") from error
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            data = file.read()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NoSuchProcessError(f"process {pid} does not exist") from error
    return parse_smaps(data)


def _from_module(pid: int, module: int) -> list[Mapping]:
    vmas = ffi.new("struct mosix_vma[]", _AT_ONCE)
    names = ffi.new("char[]", _NAMES_BYTES)
    order = ffi.new("struct mosix_vmas *")
    order.pid = pid
    order.vmas, order.names = (int(ffi.cast("uintptr_t", at)) for at in (vmas, names))
    result: list[Mapping] = []
    while True:
        order.count, order.names_size = _AT_ONCE, _NAMES_BYTES
        error = lib.mx_module_vmas(module, order)
        if error < 0:
            raise OSError(-error, f"mappings of process {pid}: {os.strerror(-error)}")
        result += [_from_kernel(vmas[i], names) for i in range(order.count)]
        if not order.next:
            gate = vsyscall()
            return [*result, gate] if gate else result


def _from_kernel(vma: ffi.CData, names: ffi.CData) -> Mapping:
    flags = _flags(vma.flags)
    path = ffi.string(names + vma.name).decode("utf-8", "replace")
    device = f"{vma.major:02x}:{vma.minor:02x}"
    prot = sum(bit for bit, name in _PROTECTION if name in flags)
    shared = "ms" in flags
    kind = _kind(path, vma.inode, shared=shared)
    travels = tuple(sorted(flags & RESTORED_FLAGS))
    found = Vma(vma.start, vma.end, prot, kind, vma.offset, path, travels)
    return Mapping(found, flags, shared, vma.inode, device, vma.key)


@cache
def _flags(bits: int) -> frozenset[str]:
    return frozenset(name for bit, name in _FLAG_NAMES if bits >> bit & 1)


@cache
def vsyscall() -> Mapping | None:
    """Where it is not off, every process of a kernel has the same at its end. Asked for by the
    spawner, since its workers may not look at their own memory any more."""
    try:
        found = read_mappings(os.getpid())
    except PermissionError:
        return None
    return next((mapping for mapping in found if mapping.vma.kind == "vsyscall"), None)


def parse_smaps(data: bytes) -> list[Mapping]:
    """The content of a smaps file, parsed."""
    result = []
    # one chunk per mapping, that ends where its VmFlags begin
    chunks = data.split(b"\nVmFlags:")
    for number in range(len(chunks) - 1):
        chunk = chunks[number]
        begin = chunk.index(b"\n") + 1 if number else 0
        line_end = chunk.index(b"\n", begin)
        fields = chunk[begin:line_end].split(None, 5)
        after = chunks[number + 1]
        flags = frozenset(after[: after.index(b"\n")].decode().split())
        key_at = chunk.rfind(b"\nProtectionKey:")
        key = int(chunk[key_at + 15 :].split(None, 1)[0]) if key_at >= 0 else 0
        path = fields[5].decode("utf-8", "replace") if len(fields) > 5 else ""
        result.append(_mapping(fields, _unescape(path), flags, key))
    return result


def _mapping(fields: list[bytes], path: str, flags: frozenset[str], key: int) -> Mapping:
    start, end = fields[0].split(b"-")
    perms = fields[1]
    prot = (perms[0:1] == b"r") | (perms[1:2] == b"w") << 1 | (perms[2:3] == b"x") << 2
    shared = perms[3:4] == b"s"
    inode = int(fields[4])
    kind = _kind(path, inode, shared=shared)
    vma = Vma(
        int(start, 16),
        int(end, 16),
        prot,
        kind,
        int(fields[2], 16),
        path,
        tuple(sorted(flags & RESTORED_FLAGS)),
    )
    return Mapping(vma, flags, shared, inode, fields[3].decode(), key)


def _kind(path: str, inode: int, *, shared: bool) -> str:
    kernels = _KERNEL_KINDS.get(path)
    if kernels:
        return kernels
    if shared:
        return "shared-file"
    return "file" if inode and path != "/dev/zero" else "anon"


def _unescape(path: str) -> str:
    return path.replace("\\012", "\n") if "\\" in path else path


def find_hole(vmas: list[Vma], size: int, lowest: int = 0x100000) -> int:
    """Start of `size` bytes that no mapping uses, as low as possible and away from what grows
    (heap upwards, stack downwards). ValueError if there is none below the stack."""
    at = lowest
    for vma in vmas:
        if vma.start >= at + size and not (vma.kind == "stack" or "gd" in vma.vm_flags):
            return at
        if vma.kind != "vsyscall":
            at = max(at, vma.end + ((16 << 20) if vma.kind == "heap" else 0))
    raise ValueError("no hole in the address space")
