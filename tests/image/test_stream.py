"""What is written is read again; whatever else arrives is refused before anybody acts on it."""

from __future__ import annotations

import os
import threading

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mosix.errors import ProtocolError
from mosix.image import stream
from mosix.image.model import (
    IMAGE_VERSION,
    Header,
    Image,
    MemoryMap,
    PageRun,
    PendingCall,
    Process,
    Rseq,
    Thread,
    Vma,
)

U64 = st.integers(0, (1 << 64) - 1)
NS = st.integers(0, (1 << 63) - 1)


@st.composite
def images(draw: st.DrawFn) -> Image:
    vmas, runs, at = [], [], 16
    for _ in range(draw(st.integers(1, 8))):
        at += draw(st.integers(0, 1000))
        size = draw(st.integers(1, 64))
        kind = draw(
            st.sampled_from(["anon", "file", "shared-file", "heap", "stack", "eof", "vdso"])
        )
        start, end = at << 12, (at + size) << 12
        path = draw(st.text(st.characters(codec="utf-8"), max_size=20))
        vmas.append(Vma(start, end, draw(st.integers(0, 7)), kind, 0, path, ("dd",)))
        if kind not in ("eof", "vdso") and draw(st.booleans()):
            runs.append(PageRun(start, draw(st.integers(1, size)) << 12))
        at += size
    signals = [(n).to_bytes(4, "little") + bytes(124) for n in (10, 12)]
    xsave = draw(st.sampled_from([512, 832, 2440]))
    thread = Thread(
        tid=7,
        registers=draw(st.binary(min_size=216, max_size=216)),
        xstate=bytes(xsave),
        signal_mask=draw(U64),
        pending=signals[: draw(st.integers(0, 2))],
        altstack=bytes(24),
        rseq=draw(st.sampled_from([None, Rseq(4096, 32, 0x53053053)])),
        robust_list=(draw(U64), 24),
        tid_address=draw(U64),
        comm=draw(st.sampled_from([b"", b"xz", b"fifteen letters"])),
        call=draw(st.sampled_from([None, PendingCall(1, (1, 2, 3, 4, 5, 6), 3, 0)])),
    )
    return Image(
        header=Header(IMAGE_VERSION, "6.18", 4096, ("avx", "sse2"), xsave, 3, draw(NS), draw(NS)),
        process=Process(
            pid=7,
            exe="/usr/bin/xz",
            mm=MemoryMap(*(draw(U64) for _ in range(11))),
            auxv=bytes(320),
            sigactions={2: bytes(32), 64: bytes(32)},
            pending=signals,
            itimers=((0, 0), (draw(NS), draw(NS))),
            cpu_ns=(draw(NS), draw(NS)),
            dumpable=1,
            personality=0,
            stopped=draw(st.booleans()),
            rlimits={0: (1, (1 << 64) - 1)},
            ignored=draw(U64),
        ),
        threads=[thread],
        vmas=vmas,
        runs=runs,
    )


def decode(data: bytes) -> tuple[Image, int]:
    """The image at the beginning of `data` and how many bytes it took. EOFError: more wanted."""
    decoder, at = stream.Decoder(), 0
    while decoder.wanted:
        if at + decoder.wanted > len(data):
            raise EOFError
        piece = data[at : at + decoder.wanted]
        at += len(piece)
        decoder.feed(piece)
    return decoder.image, at


@given(images())
def test_what_is_written_is_read(image: Image) -> None:
    data = stream.encode(image)
    assert decode(data + b"first page") == (image, len(data))
    stream.check_end(stream.encode_end(image.page_bytes), image)


@given(images(), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_truncated_image_never_becomes_one(image: Image, data: st.DataObject) -> None:
    whole = stream.encode(image)
    with pytest.raises(EOFError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(images(), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_flipped_bit_is_noticed(image: Image, data: st.DataObject) -> None:
    whole = bytearray(stream.encode(image))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises((ProtocolError, EOFError)):
        decoded, _ = decode(bytes(whole) + bytes(64))
        assert decoded != image  # only the flag of packed pages may change alone
        raise ProtocolError("noticed")


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_are_refused(junk: bytes, plausible: bool) -> None:
    with pytest.raises((ProtocolError, EOFError)):
        decode((stream.MAGIC + b"\x01\0\0\0" if plausible else b"") + junk)


def _small() -> Image:
    return Image(
        header=Header(IMAGE_VERSION, "6.18", 4096, ("sse2",), 512, 1, 0, 0),
        process=Process(
            pid=1,
            exe="/bin/true",
            mm=MemoryMap(*range(11)),
            auxv=b"",
            sigactions={},
            pending=[],
            itimers=((0, 0), (0, 0)),
            cpu_ns=(0, 0),
            dumpable=1,
            personality=0,
            stopped=False,
            rlimits={},
        ),
        threads=[
            Thread(1, bytes(216), bytes(512), 0, [], bytes(24), None, (0, 0), 0, b"true", None)
        ],
        vmas=[Vma(0x10000, 0x20000, 3, "anon"), Vma(0x20000, 0x30000, 3, "eof")],
        runs=[PageRun(0x11000, 0x2000)],
    )


REPLACE = msgspec.structs.replace
VMA, RUN = Vma(0x10000, 0x20000, 3, "anon"), PageRun(0x10000, 0x1000)


@pytest.mark.parametrize(
    "change",
    [
        lambda i: REPLACE(i, header=REPLACE(i.header, page_size=65536)),
        lambda i: REPLACE(i, header=REPLACE(i.header, xsave_size=1024)),
        lambda i: REPLACE(i, header=REPLACE(i.header, epoch=-1)),
        lambda i: REPLACE(i, process=REPLACE(i.process, pid=0)),
        lambda i: REPLACE(i, process=REPLACE(i.process, sigactions={65: bytes(32)})),
        lambda i: REPLACE(i, process=REPLACE(i.process, sigactions={1: bytes(31)})),
        lambda i: REPLACE(i, process=REPLACE(i.process, pending=[bytes(128)])),
        lambda i: REPLACE(i, process=REPLACE(i.process, rlimits={99: (0, 0)})),
        lambda i: REPLACE(i, process=REPLACE(i.process, auxv=bytes(8192))),
        lambda i: REPLACE(i, threads=[]),
        lambda i: REPLACE(i, threads=[REPLACE(i.threads[0], registers=bytes(8))]),
        lambda i: REPLACE(i, threads=[REPLACE(i.threads[0], comm=b"sixteen letters!")]),
        lambda i: REPLACE(i, vmas=[]),
        lambda i: REPLACE(i, vmas=[VMA, VMA]),
        lambda i: REPLACE(i, vmas=[REPLACE(VMA, start=0x10001)], runs=[]),
        lambda i: REPLACE(i, vmas=[REPLACE(VMA, end=1 << 48)]),
        lambda i: REPLACE(i, vmas=[REPLACE(VMA, kind="other")]),
        lambda i: REPLACE(i, vmas=[REPLACE(VMA, prot=8)]),
        lambda i: REPLACE(i, runs=[PageRun(0x1F000, 0x2000)]),
        lambda i: REPLACE(i, runs=[PageRun(0x20000, 0x1000)]),
        lambda i: REPLACE(i, runs=[PageRun(0x40000, 0x1000)]),
        lambda i: REPLACE(i, runs=[PageRun(0x10000, 0)]),
        lambda i: REPLACE(i, runs=[PageRun(0x10000, -4096), PageRun(0x11000, 8192)]),
        lambda i: REPLACE(i, runs=[PageRun(0x10000, 12)]),
        lambda i: REPLACE(i, runs=[RUN, RUN]),
    ],
)
def test_an_impossible_image_is_refused(change: object) -> None:
    small = _small()
    assert decode(stream.encode(small))[0] == small
    with pytest.raises(ProtocolError, match="impossible"):
        decode(stream.encode(change(small)))  # type: ignore[operator]


def test_another_version_is_named() -> None:
    data = bytearray(stream.encode(_small()))
    data[8] = IMAGE_VERSION + 1
    with pytest.raises(ProtocolError, match=f"version {IMAGE_VERSION + 1}") as caught:
        decode(bytes(data))
    assert "same version" in caught.value.hint


def test_a_huge_section_is_refused_before_it_is_read() -> None:
    head = stream.encode(_small())[:12]
    with pytest.raises(ProtocolError, match="bytes"):
        decode(head + b"\x01\0\0\0\xff\xff\xff\xff")


def test_the_end_belongs_to_its_image() -> None:
    with pytest.raises(ProtocolError, match="end"):
        stream.check_end(stream.encode_end(4096), _small())


@given(st.binary(max_size=3_000_000), st.data())
@settings(max_examples=20, deadline=None)
def test_packed_pages_come_back_and_damage_is_noticed(raw: bytes, data: st.DataObject) -> None:
    packed = _through(lambda i, o: stream.pack_pages(i, o, len(raw)), raw)
    assert _through(lambda i, o: stream.unpack_pages(i, o, len(raw)), packed) == raw
    if packed:
        broken = bytearray(packed)
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= 1
        with pytest.raises((ProtocolError, EOFError)):
            assert _through(lambda i, o: stream.unpack_pages(i, o, len(raw)), bytes(broken)) == raw
            raise ProtocolError("the damage was in bits that mean nothing to LZ4")


def _through(step: object, data: bytes) -> bytes:
    """What `step` writes to a descriptor when it reads `data` from another."""
    source = os.memfd_create("source")
    target = os.memfd_create("target")
    try:
        stream.write_all(source, data)
        os.lseek(source, 0, os.SEEK_SET)
        step(source, target)  # type: ignore[operator]
        os.lseek(target, 0, os.SEEK_SET)
        with open(target, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(source)
        os.close(target)


def test_reading_stops_before_the_first_page() -> None:
    image = _small()
    source, sink = os.pipe()
    writer = threading.Thread(target=stream.write_image, args=(sink, image))
    writer.start()
    assert stream.read_image(source) == image
    writer.join()
    os.write(sink, b"p" * 64 + stream.encode_end(image.page_bytes))
    assert os.read(source, 64) == b"p" * 64
    stream.read_end(source, image)
    os.close(sink)
    with pytest.raises(EOFError):
        stream.read_end(source, image)
    os.close(source)
