"""A real deputy whose bodies are not what they should be: HOSTILE in the job's environment says
how. mosd is told `--deputy hostile_images:run`. And remotes that send such bodies home."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
from mosix.deputy import main
from mosix.image import stream
from mosix.image.model import PAGE_SIZE, Image, PageRun, Vma
from mosix.remote import main as remote

_USER_END = (1 << 47) - PAGE_SIZE
_REGISTERS = 27  # of 8 bytes: struct user_regs_struct
_RIP, _CS, _FLAGS, _RSP, _SS, _FS_BASE = 16, 17, 18, 19, 20, 21
_SIGKILL = 9


def _set_register(image: Image, number: int, value: int) -> None:
    words = list(struct.unpack(f"<{_REGISTERS}Q", image.threads[0].registers))
    words[number] = value
    image.threads[0].registers = struct.pack(f"<{_REGISTERS}Q", *words)


def _without_pages(image: Image) -> None:
    image.runs = []


def _kernel_half(image: Image) -> None:
    image.vmas.append(Vma((1 << 64) - (1 << 30), (1 << 64) - (1 << 29), 7, "anon"))


def _vsyscall_for_all(image: Image) -> None:
    """That kind may lie where the kernel is."""
    end = image.vmas[-1].end
    image.vmas = [vma for vma in image.vmas if vma.kind != "vsyscall"]
    image.vmas.append(Vma(min(end, _USER_END) + PAGE_SIZE, (1 << 64) - PAGE_SIZE, 7, "vsyscall"))


def _everything(image: Image) -> None:
    """No place is left for agent, vdso or stack of the guest."""
    image.vmas = [Vma(1 << 16, _USER_END, 0, "anon")]
    image.runs = []


def _around_the_vdso(image: Image) -> None:
    image.vmas = [
        msgspec.structs.replace(vma, start=vma.start - (4 << 20), end=vma.end)
        if vma.kind == "vdso"
        else vma
        for vma in image.vmas
        if vma.kind != "vvar"
    ]


def _memory_over_the_vdso(image: Image) -> None:
    image.vmas = [
        msgspec.structs.replace(vma, kind="anon") if vma.kind in ("vdso", "vvar") else vma
        for vma in image.vmas
    ]


def _many_mappings(image: Image) -> None:
    first = image.vmas[0]
    at = 1 << 32
    image.vmas = [first] if first.end < at else []
    image.vmas += [
        Vma(at + 2 * n * PAGE_SIZE, at + (2 * n + 1) * PAGE_SIZE, 3, "anon")
        for n in range(stream.MAX_VMAS - 1)
    ]
    image.runs = []


def _too_many_mappings(image: Image) -> None:
    _many_mappings(image)
    image.vmas += [Vma(_USER_END - PAGE_SIZE, _USER_END, 3, "anon")] * 5


def _huge_pages(image: Image) -> None:
    """More than the node has."""
    image.vmas = [Vma(1 << 32, 1 << 46, 3, "anon")]
    image.runs = [PageRun(1 << 32, (1 << 46) - (1 << 32))]


def _runs_outside(image: Image) -> None:
    image.runs = [PageRun(_USER_END - PAGE_SIZE, PAGE_SIZE)]


def _xstate(image: Image) -> None:
    """Reserved bits set in the header of the extended state, and a mask of the SSE state."""
    state = bytearray(image.threads[0].xstate)
    state[24:28] = b"\xff\xff\xff\xff"
    state[512:576] = b"\xff" * 64
    image.threads[0].xstate = bytes(state)


def _small_xstate(image: Image) -> None:
    image.threads[0].xstate = bytes(512)
    image.header = msgspec.structs.replace(image.header, xsave_size=512)


def _large_xstate(image: Image) -> None:
    image.threads[0].xstate = bytes(16384)
    image.header = msgspec.structs.replace(image.header, xsave_size=16384)


def _kernel_registers(image: Image) -> None:
    for number, value in ((_CS, 0x10), (_SS, 0x18), (_RIP, 0xFFFFFFFF81000000), (_FLAGS, 0x3202)):
        _set_register(image, number, value)


def _fs_base(image: Image) -> None:
    _set_register(image, _FS_BASE, 0xFFFF888000000000)


def _sigkill(image: Image) -> None:
    image.process.pending = [struct.pack("<3i", _SIGKILL, 0, 0) + bytes(116)]


def _handlers(image: Image) -> None:
    image.process.sigactions = {n: b"\xff" * 32 for n in range(1, 65)}


def _attributes(image: Image) -> None:
    image.process.personality = 0xFFFFFFFF
    image.process.dumpable = 2
    image.process.rlimits = {n: (2**64 - 1, 2**64 - 1) for n in range(16)}
    image.process.itimers = ((2**62, 2**62), (2**62, 2**62))


def _mm(image: Image) -> None:
    image.process.mm = msgspec.structs.replace(
        image.process.mm, start_brk=2**63, brk=1, arg_start=2**64 - 1, arg_end=0
    )


def _vdso_bytes(image: Image) -> None:
    """A vdso that is an ELF file up to its first tables."""
    whole = bytearray(image.process.vdso)
    chance = os.urandom(len(whole))
    whole[64:] = chance[64:]
    image.process.vdso = bytes(whole)


def _no_vdso(image: Image) -> None:
    image.process.vdso = bytes(1 << 18)


def _rseq(image: Image) -> None:
    image.threads[0].robust_list = (2**64 - 8, 24)
    image.threads[0].tid_address = 2**64 - 8


def _many_threads(image: Image) -> None:
    image.threads = image.threads * 50


def _epoch(image: Image) -> None:
    image.header = msgspec.structs.replace(image.header, epoch=2**31 - 1)


def _clocks(image: Image) -> None:
    """The guest would wait for hundreds of years."""
    image.header = msgspec.structs.replace(image.header, monotonic_ns=2**63 - 1)


MUTATIONS: dict[str, Callable[[Image], None]] = {
    name.removeprefix("_"): mutation
    for name, mutation in list(globals().items())
    if callable(mutation)
    and name.startswith("_")
    and getattr(mutation, "__module__", "") == __name__
    and name != "_set_register"
}

_write_image = stream.write_image


def _write_hostile(fd: int, image: Image, packed: bool = False) -> None:
    environ = Path(f"/proc/{image.process.pid}/environ").read_bytes().split(b"\0")
    wanted = [entry[8:].decode() for entry in environ if entry.startswith(b"HOSTILE=")]
    if wanted:
        MUTATIONS[wanted[0]](image)
    _write_image(fd, image, packed)


def run(sock: socket.socket) -> None:
    stream.write_image = _write_hostile
    main.run(sock)


warm_up = main.warm_up


def _remote(name: str) -> Callable[[socket.socket], None]:
    def run_remote(sock: socket.socket) -> None:
        def write(fd: int, image: Image, packed: bool = False) -> None:
            MUTATIONS[name](image)
            _write_image(fd, image, packed)

        stream.write_image = write
        remote.run(sock)

    return run_remote


#: `--remote hostile_images:remote_NAME`: what goes home is so
globals().update({f"remote_{name}": _remote(name) for name in MUTATIONS})
