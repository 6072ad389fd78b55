"""What processes do is counted: by eBPF where the kernel allows it, else by /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosix.balancer import account
from mosix.balancer.account import BpfCounter, ProcCounter, Totals, Use
from mosix.errors import KernelError

#: Reads 1000 bytes for each byte of its input, and is done when it says so.
READER = """
import os, sys
zero = os.open('/dev/zero', os.O_RDONLY)
print(flush=True)
while True: os.read(zero, 1000)
"""


@pytest.fixture
def reader() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", READER], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def needs_bpf() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    if account.why_not():
        pytest.skip(account.why_not())


async def test_ebpf_counts_calls_bytes_and_cpu_time_of_the_chosen_only(
    reader: subprocess.Popen[bytes],
) -> None:
    needs_bpf()
    counter = await BpfCounter.start()
    try:
        first = (await counter.totals([reader.pid]))[reader.pid]
        while True:  # until it has run in a window, and left its CPU
            second = (await counter.totals([reader.pid]))[reader.pid]
            if second.calls > first.calls and second.ran_ns > first.ran_ns:
                break
        read = second.read_bytes - first.read_bytes
        assert read == pytest.approx(1000 * (second.calls - first.calls), abs=1000)
        assert second.written_bytes == 0
        assert 0 < second.watched_s - first.watched_s < second.at - first.at
        assert list(await counter.totals([os.getpid()])) == [os.getpid()]
        assert await counter.totals([]) == {}
        assert (await counter.totals([reader.pid]))[reader.pid].calls < second.calls  # anew
    finally:
        await counter.close()
    with pytest.raises(KernelError, match="ended"):
        await counter.totals([reader.pid])


async def test_what_the_map_has_no_room_for_is_told() -> None:
    needs_bpf()
    counter = await BpfCounter.start()
    try:
        many = range(1 << 22, (1 << 22) + 5000)  # of no process; the map has room for 4096
        assert len(await counter.totals(many)) == 4096
        assert counter.failures == 5000 - 4096
        assert len(await counter.totals([1])) == 1
        assert counter.failures == 5000 - 4096
    finally:
        await counter.close()


async def test_a_refusal_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", str(tmp_path))
    assert account.headers() is None
    with pytest.raises(KernelError, match=r"no kernel headers|bcc is not installed"):
        await BpfCounter.start()
    (tmp_path / "include").mkdir()  # headers without a header
    with pytest.raises(KernelError, match=r"refuses|ended"):
        await BpfCounter.start()


async def test_proc_counts_reading_and_writing_calls(reader: subprocess.Popen[bytes]) -> None:
    counter = ProcCounter()
    first = (await counter.totals([reader.pid]))[reader.pid]
    while (second := (await counter.totals([reader.pid]))[reader.pid]).calls < first.calls + 100:
        pass
    assert second.read_bytes - first.read_bytes >= 99_000
    reader.kill()
    reader.wait()
    assert await counter.totals([reader.pid]) == {}


def test_calls_are_per_second_of_the_windows_and_cpu_of_the_whole_time() -> None:
    before = Totals(at=10.0, watched_s=0.1, ran_ns=0, calls=5, read_bytes=0, written_bytes=7)
    after = Totals(at=12.0, watched_s=0.14, ran_ns=10**9, calls=9, read_bytes=400, written_bytes=7)
    use = after.since(before)
    assert (use.cpu, use.written_bytes) == (0.5, 0.0)
    assert (use.calls, use.read_bytes) == (pytest.approx(100), pytest.approx(10_000))
    assert before.since(before) == Use()
