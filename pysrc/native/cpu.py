"""What this machine's CPU and kernel offer to programs: instruction sets, state size, vdso.

Used by `mosix.node.features` (what a node publishes) and by capture (header of an image). Asked of
the machine itself, never derived from version numbers or names of models.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import re
import struct

from mosix.errors import KernelError
from mosix.native._native import ffi, lib

_AT_SYSINFO_EHDR = 33

#: Flags of /proc/cpuinfo whose instructions a program may use; the others (power, virtualisation,
#: mitigations, the kernel's own) may differ between nodes.
_FOR_PROGRAMS = re.compile(
    r"fpu|cx8|cx16|cmov|mmx|mmxext|3dnow\w*|fxsr|fxsr_opt|sse\w*|pni|ssse3|misalignsse|popcnt|abm"
    r"|lahf_lm|movbe|aes|pclmulqdq|vaes|vpclmulqdq|gfni|sha_ni|sha512|sm3|sm4|avx\w*|amx\w*|apx\w*"
    r"|fma|fma4|xop|tbm|f16c|bmi1|bmi2|adx|rdrand|rdseed|rdpid|rdpru|tsc|rdtscp|fsgsbase|clflush"
    r"|clflushopt|clwb|clzero|cldemote|xsave|xsaveopt|xsavec|xgetbv1|erms|fsrm|fsrs|fsrc|fzrm|lwp"
    r"|hle|rtm|tsxldtrk|serialize|movdiri|movdir64b|enqcmd|waitpkg|mwaitx|ptwrite|mpx|pku|ospke"
    r"|cmpccxadd|prefetchi|raoint|uintr|user_shstk"
)


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """Flags of the first CPU that matter to programs, sorted."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("flags"):
                flags = frozenset(line.partition(":")[2].split())
                return tuple(sorted(filter(_FOR_PROGRAMS.fullmatch, flags)))
    raise KernelError("/proc/cpuinfo names no flags", "only x86-64 is supported")


def xsave_size() -> int:
    """Bytes of the extended state that the kernel enabled (size of NT_X86_XSTATE)."""
    # CPUID leaf 0xd, subleaf 0, EBX; needs machine code, which is mapped for the one call
    code = bytes.fromhex("53b80d00000031c90fa289d85bc3")  # push rbx; cpuid(0xd, 0); eax = ebx; ret
    with mmap.mmap(
        -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ) as page:
        page.write(code)
        view = ffi.from_buffer(page)
        function = ffi.cast("uint32_t (*)(void)", view)
        size = int(function())
        ffi.release(view)
    return size


@functools.cache
def own_vdso() -> bytes:
    """The vdso that this kernel gives to programs. Kept: a process that has become another user
    cannot read its own maps."""
    with open("/proc/self/auxv", "rb") as file:
        auxv = file.read()
    value = dict(struct.iter_unpack("<QQ", auxv)).get(_AT_SYSINFO_EHDR)
    if value is None:
        raise KernelError("this kernel gives programs no vdso", "boot without vdso=0")
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            start, _, rest = line.partition("-")
            if int(start, 16) == value:
                size = int(rest.split()[0], 16) - value
                return bytes(ffi.buffer(ffi.cast("char *", value), size))
    raise KernelError("the vdso is not among the mappings")


def vdso_digest() -> str:
    """SHA-256 of our own vdso: equal digests mean that a body can use ours as its own."""
    return hashlib.sha256(own_vdso()).hexdigest()


def spin_ns(rounds: int) -> int:
    """CPU time in ns of that many rounds of a fixed chain of dependent instructions."""
    return int(lib.mx_spin(rounds))
