"""The address space of a process as the kernel lists it: /proc/PID/smaps → `Vma`.

Used by eligibility (flags), capture and the agent (holes). Only reads; judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from mosix.errors import NoSuchProcessError
from mosix.image.model import Vma

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


@dataclass(frozen=True, slots=True)
class Mapping:
    """A VMA with all the kernel says about it. `vma` has only the flags that travel."""

    vma: Vma
    flags: frozenset[str]
    shared: bool
    inode: int
    device: str
    pkey: int


def read_mappings(pid: int) -> list[Mapping]:
    """All mappings in address order. NoSuchProcessError if the process has no memory (gone,
    zombie); PermissionError if it may not be looked at."""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            data = file.read()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NoSuchProcessError(f"process {pid} does not exist") from error
    return parse_smaps(data)


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
    kind = _KERNEL_KINDS.get(path, "")
    if not kind:
        if shared:
            kind = "shared-file"
        elif inode and path != "/dev/zero":
            kind = "file"
        else:
            kind = "anon"
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
