"""The image stream: a body on a socket or in a file.

    magic, version, flags
    section header, process, threads, vmas, runs       each: type, length, MessagePack
    section pages: number of raw bytes that follow, digest of everything before
    raw pages, runs in order (packed in files: see `pack_pages`)
    section end: number of page bytes

Written by the node that has the body, read by the one that gets it, which believes nothing: every
length, count, order and range is checked (`ProtocolError`) before anybody acts on it. `encode`,
`Decoder` and `check_end` only turn bytes into records and back; the functions around them move
the bytes over blocking descriptors and are called from executor threads. Reading stops exactly
before the first page byte, so that pages can go straight into the memory of a process.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from typing import Annotated, Any

import lz4.block
import msgspec
from mosix.errors import ProtocolError
from mosix.image.model import (
    IMAGE_VERSION,
    PAGE_SIZE,
    Header,
    Image,
    PageRun,
    Process,
    Thread,
    Vma,
)

MAGIC = b"MOSIXIMG"
_PREFIX = struct.Struct("<8sHH")
_SECTION = struct.Struct("<II")
_PAGES = struct.Struct("<Q16s")
_END = struct.Struct("<Q")
_CHUNK = struct.Struct("<III")  # raw size, packed size, CRC-32 of the raw bytes

#: flag of the prefix: pages are packed
PACKED = 1

_HEADER, _PROCESS, _THREADS, _VMAS, _RUNS, _PAGES_TYPE, _END_TYPE = range(1, 8)
MAX_VMAS = 1 << 17
MAX_RUNS = 1 << 22
MAX_THREADS = 1 << 12
#: section → (its type in Python, most bytes it may have); a list that is too long is refused
#: before its first item takes any memory
_CONTENT: dict[int, tuple[Any, int]] = {
    _HEADER: (Header, 64 << 10),
    _PROCESS: (Process, 4 << 20),
    _THREADS: (Annotated[list[Thread], msgspec.Meta(max_length=MAX_THREADS)], 16 << 20),
    _VMAS: (Annotated[list[Vma], msgspec.Meta(max_length=MAX_VMAS)], 64 << 20),
    _RUNS: (Annotated[list[PageRun], msgspec.Meta(max_length=MAX_RUNS)], 128 << 20),
}
#: of one page run, bytes
_MOST_OF_A_RUN = 24
_ORDER = (_HEADER, _PROCESS, _THREADS, _VMAS, _RUNS)
_DECODERS = {kind: msgspec.msgpack.Decoder(content) for kind, (content, _) in _CONTENT.items()}
_ENCODER = msgspec.msgpack.Encoder()

MAX_PENDING = 1 << 12
_USER_END = (1 << 47) - PAGE_SIZE
#: The only mapping beyond them, in every process at the same place (uapi/asm/vsyscall.h).
_VSYSCALL = (0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000)
_KINDS_WITH_PAGES = frozenset(("anon", "file", "shared-file", "heap", "stack"))
_KINDS = _KINDS_WITH_PAGES | {"vdso", "vvar", "vsyscall", "eof"}
_U64 = 1 << 64
_CHUNK_BYTES = 1 << 20
_MAX_VDSO = 1 << 18


def encode(image: Image, packed: bool = False) -> bytes:
    """The stream up to the first page byte."""
    contents = (image.header, image.process, image.threads, image.vmas, image.runs)
    parts = [_PREFIX.pack(MAGIC, IMAGE_VERSION, PACKED if packed else 0)]
    for kind, content in zip(_ORDER, contents, strict=True):
        payload = _ENCODER.encode(content)
        parts += [_SECTION.pack(kind, len(payload)), payload]
    head = b"".join(parts)
    pages = _PAGES.pack(image.page_bytes, _digest(head))
    return head + _SECTION.pack(_PAGES_TYPE, len(pages)) + pages


def encode_end(page_bytes: int) -> bytes:
    return _SECTION.pack(_END_TYPE, _END.size) + _END.pack(page_bytes)


#: bytes of the end section
END_SIZE = _SECTION.size + _END.size


def check_end(data: bytes, image: Image) -> None:
    """ProtocolError unless `data` is the end of `image`."""
    if data != encode_end(image.page_bytes):
        raise ProtocolError("the image's end is damaged")


class Decoder:
    """Bytes → Image. Feed it exactly `wanted` bytes again and again until that is 0; then
    `image` is there, checked, and the next byte of the stream is the first of the pages.
    `room`: bytes that the pages may have: as long as nobody has looked, a list of more costs."""

    def __init__(self, room: int = _USER_END) -> None:
        self._most_runs = (room // PAGE_SIZE + 4) * _MOST_OF_A_RUN
        self.wanted = _PREFIX.size
        self.packed = False
        self._image: Image | None = None
        self._hash = hashlib.blake2b(digest_size=16)
        self._contents: list[Any] = []
        self._kind = 0
        self._step = self._prefix

    @property
    def image(self) -> Image:
        if self._image is None:
            raise ProtocolError("the image is not complete")
        return self._image

    def feed(self, data: bytes | bytearray) -> None:
        """ProtocolError: this is not an image, or one that must not be trusted."""
        if len(data) != self.wanted:
            raise ValueError(f"{self.wanted} bytes are wanted")
        self._step(bytes(data))

    def _prefix(self, data: bytes) -> None:
        magic, version, flags = _PREFIX.unpack(data)
        if magic != MAGIC:
            raise ProtocolError("this is not an image")
        if version != IMAGE_VERSION:
            raise ProtocolError(
                f"image version {version}, {IMAGE_VERSION} is understood here",
                "run the same version of mosix on all nodes",
            )
        if flags & ~PACKED:
            raise ProtocolError(f"unknown flags {flags:#x} in an image")
        self.packed = bool(flags & PACKED)
        self._hash.update(data)
        self._next(self._section, _SECTION.size)

    def _next(self, step: Any, wanted: int) -> None:
        self._step, self.wanted = step, wanted

    def _section(self, data: bytes) -> None:
        kind, size = _SECTION.unpack(data)
        if len(self._contents) == len(_ORDER):
            if kind != _PAGES_TYPE or size != _PAGES.size:
                raise ProtocolError("pages were expected in an image")
            self._next(self._pages, size)
            return
        if kind != _ORDER[len(self._contents)]:
            raise ProtocolError(f"section {kind} in the wrong place of an image")
        most = _CONTENT[kind][1]
        if not 0 < size <= (min(most, self._most_runs) if kind == _RUNS else most):
            raise ProtocolError(f"section {kind} of an image has {size} bytes")
        self._hash.update(data)
        self._kind = kind
        self._next(self._payload, size)

    def _payload(self, data: bytes) -> None:
        self._hash.update(data)
        try:
            self._contents.append(_DECODERS[self._kind].decode(data))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"section {self._kind} of an image: {error}") from error
        self._next(self._section, _SECTION.size)

    def _pages(self, data: bytes) -> None:
        page_bytes, digest = _PAGES.unpack(data)
        if digest != self._hash.digest():
            raise ProtocolError("an image was damaged on its way")
        image = Image(*self._contents)
        check(image)
        if page_bytes != image.page_bytes:
            raise ProtocolError(f"an image announces {page_bytes} bytes of pages and lists others")
        self._image = image
        self._next(self._pages, 0)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


# ---- what an image may say ----


def check(image: Image) -> None:
    """ProtocolError unless `image` is sound: sizes right, ranges ordered and inside each other."""
    header = image.header
    _require(header.version == IMAGE_VERSION, "version")
    _require(header.page_size == PAGE_SIZE, "page size")
    _require(0 <= header.epoch < 1 << 31, "epoch")
    _require(0 <= header.monotonic_ns < 1 << 63 and 0 <= header.boottime_ns < 1 << 63, "clocks")
    _require(0 <= header.date_ns < 1 << 63, "date")
    _require(len(header.cpu_features) < 1024 and len(header.kernel) < 256, "header")
    _check_process(image.process)
    _require(0 < len(image.threads) <= MAX_THREADS, "number of threads")
    for thread in image.threads:
        _check_thread(thread, header.xsave_size)
    _check_vmas(image.vmas)
    _check_runs(image.runs, image.vmas)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ProtocolError(f"an image has an impossible {what}")


def _u64(*values: int) -> bool:
    return all(0 <= value < _U64 for value in values)


def _check_process(process: Process) -> None:
    _require(0 < process.pid <= 1 << 22, "pid")
    _require(len(process.exe) <= PAGE_SIZE and "\0" not in process.exe, "path")
    _require(_u64(*msgspec.structs.astuple(process.mm)), "memory map")
    _require(len(process.auxv) <= PAGE_SIZE and len(process.auxv) % 16 == 0, "auxv")
    for number, action in process.sigactions.items():
        _require(0 < number <= 64 and len(action) == 32, "disposition")
    _check_pending(process.pending)
    for timer in process.itimers:
        _require(all(0 <= ns < 1 << 63 for ns in timer), "timer")
    _require(all(0 <= ns < 1 << 63 for ns in process.cpu_ns), "CPU time")
    _require(0 <= process.dumpable <= 2 and 0 <= process.personality < 1 << 32, "attribute")
    for number, limits in process.rlimits.items():
        _require(0 <= number < 16 and _u64(*limits), "limit")
    _require(_u64(process.ignored), "mask")
    _require(len(process.vdso) <= _MAX_VDSO and len(process.vdso) % PAGE_SIZE == 0, "vdso")


def _check_thread(thread: Thread, xsave_size: int) -> None:
    _require(0 < thread.tid <= 1 << 22, "thread")
    _require(len(thread.registers) == 216, "register set")
    _require(512 <= len(thread.xstate) <= 16384 and len(thread.xstate) == xsave_size, "state size")
    _require(_u64(thread.signal_mask, thread.tid_address, *thread.robust_list), "address")
    _check_pending(thread.pending)
    _require(len(thread.altstack) == 24, "alternate stack")
    _require(len(thread.comm) < 16 and b"\0" not in thread.comm, "name")
    if thread.rseq is not None:
        rseq = thread.rseq
        _require(rseq.address < _USER_END and 0 <= rseq.size < PAGE_SIZE, "rseq")
        _require(rseq.address >= 0 and 0 <= rseq.signature < 1 << 32, "rseq")
    if thread.call is not None:
        call = thread.call
        _require(0 <= call.nr < 1024 and _u64(*call.args), "pending call")
        _require(call.code in (0, -512, -514), "pending call")
        _require(0 <= call.done < 1 << 31 and 0 <= call.deadline_ns < 1 << 63, "pending call")


def _check_pending(pending: list[bytes]) -> None:
    _require(len(pending) <= MAX_PENDING, "number of signals")
    for info in pending:
        _require(len(info) == 128, "signal")
        _require(0 < int.from_bytes(info[:4], "little") <= 64, "signal")


def _check_vmas(vmas: list[Vma]) -> None:
    _require(0 < len(vmas) <= MAX_VMAS, "number of mappings")
    end = 0
    for vma in vmas:
        _require(vma.kind in _KINDS, "kind of mapping")
        _require(vma.start % PAGE_SIZE == 0 and vma.end % PAGE_SIZE == 0, "mapping")
        _require(end <= vma.start < vma.end, "mapping")
        if vma.kind == "vsyscall":
            _require((vma.start, vma.end) == _VSYSCALL, "mapping")
        else:
            _require(vma.end <= _USER_END, "mapping")
        _require(0 <= vma.prot <= 7 and 0 <= vma.offset < 1 << 63, "mapping")
        _require(len(vma.path) <= 2 * PAGE_SIZE and len(vma.vm_flags) <= 64, "mapping")
        end = vma.end


def _check_runs(runs: list[PageRun], vmas: list[Vma]) -> None:
    _require(len(runs) <= MAX_RUNS, "number of page runs")
    at = 0
    end = 0
    for run in runs:
        _require(run.size > 0 and run.start % PAGE_SIZE == 0 == run.size % PAGE_SIZE, "page run")
        _require(run.start >= end, "page run")
        end = run.start + run.size
        covered = run.start
        while covered < end:  # a run may span mappings that touch
            while at < len(vmas) and vmas[at].end <= covered:
                at += 1
            inside = at < len(vmas) and vmas[at].start <= covered
            _require(inside and vmas[at].kind in _KINDS_WITH_PAGES, "page run")
            covered = vmas[at].end


# ---- descriptors ----


def write_all(fd: int, data: bytes) -> None:
    """All of `data` to a blocking descriptor. OSError as of write(2)."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_exactly(fd: int, size: int) -> bytes:
    """`size` bytes from a blocking descriptor. EOFError: it ended before."""
    parts: list[bytes] = []
    left = size
    while left:
        data = os.read(fd, min(left, _CHUNK_BYTES))
        if not data:
            raise EOFError("the image ended early")
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def write_image(fd: int, image: Image, packed: bool = False) -> None:
    """All but the pages; they must follow, then `write_end`."""
    write_all(fd, encode(image, packed))


def write_end(fd: int, image: Image) -> None:
    write_all(fd, encode_end(image.page_bytes))


def read_image(fd: int, room: int = _USER_END) -> Image:
    """The image whose raw pages follow, for which there are `room` bytes. ProtocolError: not to be
    trusted; EOFError: ended."""
    decoder = read_control(fd, room)
    if decoder.packed:
        raise ProtocolError("packed pages where raw ones were expected")
    return decoder.image


def read_control(fd: int, room: int = _USER_END) -> Decoder:
    """As `read_image`, for files: tells also whether the pages are packed."""
    decoder = Decoder(room)
    while decoder.wanted:
        decoder.feed(read_exactly(fd, decoder.wanted))
    return decoder


def read_end(fd: int, image: Image) -> None:
    """What follows the pages. ProtocolError unless it is `image`'s end."""
    check_end(read_exactly(fd, END_SIZE), image)


# ---- pages in files: compressed and checksummed pieces ----


def pack_pages(source: int, target: int, page_bytes: int) -> int:
    """`page_bytes` raw bytes from `source` as checked LZ4 pieces to `target`; bytes written."""
    written = 0
    left = page_bytes
    while left:
        raw = read_exactly(source, min(left, _CHUNK_BYTES))
        packed = lz4.block.compress(raw, store_size=False)
        write_all(target, _CHUNK.pack(len(raw), len(packed), zlib.crc32(raw)) + packed)
        written += _CHUNK.size + len(packed)
        left -= len(raw)
    return written


def unpack_pages(source: int, target: int, page_bytes: int) -> None:
    """The reverse. ProtocolError: damaged; EOFError: ended early."""
    left = page_bytes
    while left:
        size, packed_size, crc = _CHUNK.unpack(read_exactly(source, _CHUNK.size))
        if not 0 < size <= min(left, _CHUNK_BYTES) or not 0 < packed_size <= 2 * _CHUNK_BYTES:
            raise ProtocolError("a piece of pages has an impossible size")
        try:
            raw = lz4.block.decompress(read_exactly(source, packed_size), uncompressed_size=size)
        except lz4.block.LZ4BlockError as error:
            raise ProtocolError("a piece of pages is damaged") from error
        if len(raw) != size or zlib.crc32(raw) != crc:
            raise ProtocolError("a piece of pages is damaged")
        write_all(target, raw)
        left -= size
