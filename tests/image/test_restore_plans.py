"""Restore plans, carried out on a model of an address space: any image fits into any process."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mosix.errors import MoveFailedError
from mosix.image import plans
from mosix.image.model import Header, Image, MemoryMap, PageRun, Process, Thread, Vma
from mosix.native.blob import Mapped

PAGE = 4096
MAP_FIXED, MAP_NOREPLACE = 0x10, 0x100000


def image_of(vmas: list[Vma], runs: list[PageRun] | None = None) -> Image:
    thread = Thread(
        tid=1,
        registers=bytes(216),
        xstate=b"",
        signal_mask=0,
        pending=[],
        altstack=bytes(24),
        rseq=None,
        robust_list=(0, 24),
        tid_address=0,
        comm=b"x",
    )
    process = Process(
        pid=1,
        exe="",
        mm=MemoryMap(*range(11)),
        auxv=bytes(32),
        sigactions={},
        pending=[],
        itimers=((0, 0), (0, 0)),
        cpu_ns=(0, 0),
        dumpable=1,
        personality=0,
        stopped=False,
        rlimits={},
    )
    header = Header(1, "", PAGE, (), 0, 1, 0, 0)
    return Image(header, process, [thread], vmas, runs or [])


@st.composite
def layouts(draw: st.DrawFn, first: int = 0x10, count: int = 12) -> list[tuple[int, int]]:
    """Page-aligned ranges without overlaps; some touch."""
    ranges, at = [], first
    for _ in range(draw(st.integers(0, count))):
        at += draw(st.integers(0, 5))
        size = draw(st.integers(1, 9))
        ranges.append((at * PAGE, (at + size) * PAGE))
        at += size
    return ranges


@st.composite
def images(draw: st.DrawFn) -> Image:
    vmas = []
    for start, end in draw(layouts()):
        flags = draw(st.sets(st.sampled_from(("gd", "nr", "dd", "hg", "lo"))))
        prot = draw(st.sampled_from((0, 1, 3, 5, 7)))
        vmas.append(Vma(start, end, prot, "anon", 0, "", tuple(sorted(flags))))
    runs = []
    for vma in vmas:
        for page in range(vma.start, vma.end, PAGE):
            if draw(st.booleans()):
                runs.append(PageRun(page, PAGE))
    return image_of(vmas, runs)


def pages(ranges: list[tuple[int, int]]) -> set[int]:
    return {page for start, end in ranges for page in range(start, end, PAGE)}


class Memory:
    """Pages with their protection, as mmap, munmap, mprotect, mremap leave them."""

    def __init__(self, ranges: list[tuple[int, int]]) -> None:
        self.prot = dict.fromkeys(pages(ranges), 3)

    def carry_out(self, calls: list[plans.Call]) -> None:
        for call in calls:
            args = [arg for arg in call.args if isinstance(arg, int)]
            if call.nr == 9:
                start, size, prot, flags = args[:4]
                new = pages([(start, start + size)])
                assert size > 0
                if flags & MAP_NOREPLACE:
                    assert not new & self.prot.keys(), call.what
                else:
                    assert flags & MAP_FIXED
                self.prot.update(dict.fromkeys(new, prot))
            elif call.nr == 11:
                for page in pages([(args[0], args[0] + args[1])]):
                    self.prot.pop(page, None)
            elif call.nr == 10:
                for page in pages([(args[0], args[0] + args[1])]):
                    assert page in self.prot
                    self.prot[page] = args[2]
            elif call.nr == 25:
                old, size, _, _, new_start = args
                moved = pages([(old, old + size)])
                target = pages([(new_start, new_start + size)])
                assert moved <= self.prot.keys() and not target & moved, call.what
                assert not target & self.prot.keys(), call.what
                for page in moved:
                    self.prot[page - old + new_start] = self.prot.pop(page)
            else:
                assert call.nr in (3, 28, 325)


@given(layouts(), layouts())
def test_removal_leaves_exactly_what_is_kept(
    current: list[tuple[int, int]], keep: list[tuple[int, int]]
) -> None:
    memory = Memory(current)
    mapped = [Mapped(*range_, "") for range_ in current]
    memory.carry_out(plans.plan_removal(mapped, keep))
    assert memory.prot.keys() == pages(current) & pages(keep)


@given(layouts(), st.integers(0, 11))
def test_removal_spares_what_the_kernel_made(current: list[tuple[int, int]], which: int) -> None:
    names = [
        "[vdso]" if i == which else "[vvar_vclock]" if i == which + 1 else "" for i in range(99)
    ]
    mapped = [Mapped(*range_, name) for range_, name in zip(current, names, strict=False)]
    memory = Memory(current)
    memory.carry_out(plans.plan_removal(mapped, []))
    assert memory.prot.keys() == pages([(at.start, at.end) for at in mapped if at.name])


@settings(max_examples=200)
@given(images(), layouts(), layouts(), layouts(count=2))
def test_any_image_fits_around_what_was_prefaulted(
    image: Image,
    program: list[tuple[int, int]],
    prefaulted: list[tuple[int, int]],
    kept: list[tuple[int, int]],
) -> None:
    ready = plans.usable_prefault(image, prefaulted)
    memory = Memory([*program, *prefaulted, *kept])
    mapped = [Mapped(p, p + PAGE, "") for p in sorted(memory.prot)]
    memory.carry_out(plans.plan_removal(mapped, [*ready, *kept]))
    body = pages(plans.body_ranges(image))
    assert memory.prot.keys() - pages(kept) <= body
    plan = plans.plan_mapping(image, premapped=ready, replace=kept)
    memory.carry_out(plan.before)
    for run in image.runs:
        assert memory.prot[run.start] & 2, "a page comes where nothing can be written"
    memory.carry_out(plan.after)
    for vma in image.vmas:
        for page in pages([(vma.start, vma.end)]):
            assert memory.prot.pop(page) == vma.prot
    assert memory.prot.keys() <= pages(kept)


def test_reservation_without_pages_is_never_writable() -> None:
    image = image_of([Vma(0x10000, 1 << 40, 0, "anon")])
    (call,) = plans.plan_mapping(image).before
    assert call.args[2] == 0


VDSO = [(0, 4, "[vvar]"), (4, 6, "[vvar_vclock]"), (6, 8, "[vdso]")]


@given(st.integers(20, 80), st.integers(20, 80), layouts(first=100))
def test_the_nodes_vdso_moves_as_a_whole_out_of_the_way_of_homes(
    here: int, there: int, others: list[tuple[int, int]]
) -> None:
    current = [Mapped((here + a) * PAGE, (here + b) * PAGE, name) for a, b, name in VDSO]
    vmas = [
        Vma((there + a) * PAGE, (there + b) * PAGE, 1, "vdso" if name == "[vdso]" else "vvar")
        for a, b, name in VDSO
    ]
    image = image_of([*vmas, *(Vma(*range_, 3, "anon") for range_ in others)])
    image.process.vdso = bytes(2 * PAGE)
    memory = Memory([(at.start, at.end) for at in current])
    memory.carry_out(plans.plan_vdso(current, image, 5))
    home = pages([(v.start, v.end) for v in vmas])
    assert home < memory.prot.keys()
    rest = memory.prot.keys() - home
    assert len(rest) == 8 and max(rest) - min(rest) == 7 * PAGE
    assert not rest & pages(others)


def test_the_nodes_vdso_moves_out_of_the_way_of_a_stack_that_may_grow() -> None:
    current = [Mapped(0x90000, 0x94000, "[vvar]"), Mapped(0x94000, 0x96000, "[vdso]")]
    vmas = [
        *(Vma(0x900000, 0x904000, 1, "vvar"), Vma(0x904000, 0x906000, 5, "vdso")),
        Vma(0x800000, 0x810000, 3, "stack"),
    ]
    image = image_of(vmas)
    image.process.vdso = bytes(2 * PAGE)
    image.process.rlimits = {3: (7 << 20, 7 << 20)}
    moved = [call for call in plans.plan_vdso(current, image, 5) if call.nr == 25]
    assert len(moved) == 2
    image.process.rlimits = {3: (4 << 20, 7 << 20)}
    assert all(call.nr != 25 for call in plans.plan_vdso(current, image, 5))


def test_a_vdso_whose_data_are_elsewhere_is_refused() -> None:
    current = [Mapped(0, 0x4000, "[vvar]"), Mapped(0x4000, 0x6000, "[vdso]")]
    image = image_of([Vma(0, 0x2000, 1, "vvar"), Vma(0x4000, 0x6000, 5, "vdso")])
    image.process.vdso = bytes(0x2000)
    with pytest.raises(MoveFailedError, match="vdso"):
        plans.plan_vdso(current, image, 5)


def test_limits_of_a_guest_are_only_lowered() -> None:
    image = image_of([])
    image.process.rlimits = {7: (100, -1), 0: (50, 60), 3: (8 << 20, 16 << 20)}
    image.process.cpu_ns = (20 * 10**9, 10**9)
    calls = plans.plan_rlimits(image.process, {7: (1024, 4096), 0: (-1, -1), 3: (1 << 20, 2 << 20)})
    limits = {call.args[1]: struct.unpack("<QQ", bytes(call.args[2])) for call in calls}  # type: ignore[arg-type]
    assert limits == {7: (100, 4096), 0: (29, 40), 3: (2 << 20, 2 << 20)}


def test_altstack_is_registered_as_it_was_before_it_was_used() -> None:
    in_use = struct.pack("<QiIQ", 0x1000, 1, 0, 8192)
    assert struct.unpack("<QiIQ", plans.altstack_to_set(in_use)) == (0x1000, 0, 0, 8192)
    disarmed = struct.pack("<QiIQ", 0, 2, 0, 0)
    assert plans.altstack_to_set(disarmed) == disarmed
