"""Real programs leave their process, live in another, come back, and never notice."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import moved_programs as source
import pytest
from mosix.errors import MoveFailedError
from mosix.image import capture, plans, restore
from mosix.image.model import Image
from mosix.native import vdso
from mosix.native.agent import Agent
from mosix.native.blob import mapped
from mosix.native.tracee import Tracee
from mosix.remote.clock import ClockPage

EXITKILL = 1 << 20


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    paths = {}
    for name, text, flags in (
        ("empty", source.EMPTY, ["-static", "-nostdlib"]),
        ("probe", source.PROBE, ["-mavx"]),
        ("probe-static", source.PROBE, ["-mavx", "-static"]),
        ("probe-low", source.PROBE, ["-mavx", "-static", "-no-pie", "-Wl,-Ttext-segment=0x10000"]),
        ("spinner", source.SPINNER, ["-mavx"]),
    ):
        code = folder / f"{name}.c"
        code.write_text(text)
        paths[name] = folder / name
        command = ["gcc", "-O2", "-w", *flags, "-o", str(paths[name]), str(code)]
        subprocess.run(command, check=True, timeout=60)
    return paths


def end(process: subprocess.Popen[bytes]) -> None:
    """Popen's own methods would take a ptrace stop for the end."""
    if process.returncode is None:
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED)
        process.returncode = -signal.SIGKILL


class Program:
    """A program that answers lines, in its own process (`home`) or in `guest`."""

    def __init__(self, empty: Path, argv: Sequence[str | Path]) -> None:
        self.empty = empty
        their_in, our_out = os.pipe()
        our_in, their_out = os.pipe()
        self.stdio = their_in, their_out
        self.to: IO[str] = os.fdopen(our_out, "w", buffering=1)
        self.back: IO[str] = os.fdopen(our_in, "r")
        self.home = subprocess.Popen(argv, stdin=their_in, stdout=their_out)
        self.guest: subprocess.Popen[bytes] | None = None
        self.vdso: capture.GuestVdso | None = None

    def start_guest(self) -> Tracee:
        stdin, stdout = self.stdio
        self.guest = subprocess.Popen([self.empty], stdin=stdin, stdout=stdout)
        tracee = Tracee.seize(self.guest.pid, EXITKILL)
        assert tracee.stop().quiet
        return tracee

    def line(self) -> str:
        return self.back.readline().strip()

    def say(self, text: str) -> str:
        self.to.write(text + "\n")
        return self.line()

    def end(self) -> None:
        for process in (self.home, self.guest):
            if process is not None:
                end(process)
        for fd in self.stdio:
            os.close(fd)
        for pipe in (self.to, self.back):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def program(built: dict[str, Path], *argv: str | Path) -> Iterator[Program]:
    it = Program(built["empty"], argv)
    try:
        if it.line() != "ready":
            raise RuntimeError("the program did not start")
        yield it
    finally:
        it.end()


def stopped(pid: int) -> Tracee:
    tracee = Tracee.seize(pid)
    assert tracee.stop().quiet
    return tracee


def sent(pid: int, image: Image) -> tuple[socket.socket, threading.Thread]:
    """A socket from which the pages of `pid` come."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with ours, contextlib.suppress(BrokenPipeError):
            capture.send_pages(pid, ours.fileno(), image.runs)

    thread = threading.Thread(target=send)
    thread.start()
    return theirs, thread


def fill_guest(
    image: Image, source_pid: int, guest: Tracee, prefault: bool = False
) -> capture.GuestVdso:
    """`image` into the empty process `guest`, which then stands still as the program."""
    agent = Agent.inject(guest, [], way_back=False)
    agent.obey()
    expected = [(run.start, run.start + run.size) for run in image.runs if prefault]
    ready = restore.prefault(agent, expected)
    bulk, thread = sent(source_pid, image)
    clock = ClockPage(0, localtime=True)
    with bulk:
        numbers = agent.give_fd(bulk.fileno()), agent.give_fd(clock.fd)
        restore.fill_guest(agent, image, numbers[0], ready, clock=numbers[1])
    thread.join()
    agent.finish()
    found = capture.GuestVdso.of(image, guest.vdso)
    clock.call(vdso.node_functions(found.place.start, image.process.vdso, found.place.node[0]))
    clock.close()
    agent.leave(*restore.guest_state(image))
    return found


def go_away(it: Program, prefault: bool = False) -> tuple[Tracee, Agent, Image]:
    """Home → guest: the guest runs, the emptied ghost obeys."""
    guest = it.start_guest()
    home = stopped(it.home.pid)
    image = capture.describe(home, 1)
    agent = Agent.inject(home, plans.body_ranges(image))
    agent.obey()
    it.vdso = fill_guest(image, it.home.pid, guest, prefault)
    restore.empty_ghost(agent, image)
    guest.detach()
    return home, agent, image


def come_home(it: Program, home: Tracee, agent: Agent) -> Image:
    """Guest → ghost, in which `agent` obeys."""
    assert it.guest is not None
    guest = stopped(it.guest.pid)
    image = capture.describe(guest, 2, guest=it.vdso)
    bulk, thread = sent(it.guest.pid, image)
    with bulk:
        restore.fill_ghost(agent, image, agent.give_fd(bulk.fileno()))
    thread.join()
    agent.finish()
    agent.leave(*restore.final_state(home, image))
    end(it.guest)
    it.guest = None
    home.detach()
    return image


def fields(pid: int) -> dict[str, bytes]:
    """What other programs look at, and where the kernel believes things to be."""
    folder = Path(f"/proc/{pid}")
    stat = (folder / "stat").read_bytes().rpartition(b")")[2].split()
    return {
        "cmdline": (folder / "cmdline").read_bytes(),
        "environ": (folder / "environ").read_bytes(),
        "auxv": (folder / "auxv").read_bytes(),
        "comm": (folder / "comm").read_bytes(),
        "mm": b" ".join((*stat[23:26], *stat[42:49])),
    }


def resident(pid: int) -> int:
    """RSS in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


COMMANDS = ("a", "heap", "stack", "altstack", "timer", "clock", "name", "queue", "dequeue", "b")


def expected(built: dict[str, Path], argv: Sequence[str | Path], rounds: int) -> list[str]:
    with program(built, *argv) as undisturbed:
        return [undisturbed.say(command) for _ in range(rounds) for command in COMMANDS]


@pytest.mark.parametrize("name", ["probe", "probe-static", "probe-low"])
@pytest.mark.parametrize("prefault", [False, True])
def test_program_answers_the_same_in_a_guest_and_back_at_home(
    built: dict[str, Path], name: str, prefault: bool
) -> None:
    want = expected(built, [built[name]], 3)
    got: list[str] = []
    with program(built, built[name], "an", "argument") as it:
        got += [it.say(command) for command in COMMANDS]
        before = fields(it.home.pid)
        home, agent, _ = go_away(it, prefault)
        assert it.guest is not None
        assert fields(it.guest.pid) == before
        got += [it.say(command) for command in COMMANDS]
        come_home(it, home, agent)
        got += [it.say(command) for command in COMMANDS]
        after = fields(it.home.pid)
        assert {**after, "mm": b""} == {**before, "mm": b""}
        it.to.close()
        assert it.home.wait(60) == 7
    assert got == want


def test_agent_makes_way_for_memory_that_grew_where_it_is(built: dict[str, Path]) -> None:
    with program(built, built["probe"]) as it:
        home, agent, _ = go_away(it)
        place = agent.blob[0]
        assert it.say(f"map {place & ~0xFFFF:x}") == "mapped 1"
        come_home(it, home, agent)
        assert it.say("mapped") == f"sum {77 * (4 << 20)}"
        assert it.say("altstack") == "altstack 1"


def in_call(pid: int, nr: int) -> None:
    """Waits until `pid` is blocked in system call `nr`."""
    while Path(f"/proc/{pid}/syscall").read_text().split()[0] != str(nr):
        pass


def test_rest_of_a_blocked_write_is_written_at_home(built: dict[str, Path]) -> None:
    with program(built, sys.executable, "-S", "-c", source.WRITER) as it:
        home, agent, _ = go_away(it)
        assert it.guest is not None
        it.to.write("go\n")
        in_call(it.guest.pid, 1)
        image = come_home(it, home, agent)
        assert image.threads[0].call is not None and image.threads[0].call.done > 0
        block = it.back.buffer.read(1 << 20)  # type: ignore[attr-defined]
        assert block == bytes(range(256)) * 4096
        assert it.home.wait(60) == 0


def test_sleep_is_slept_to_its_end_at_home(built: dict[str, Path]) -> None:
    with program(built, built["probe"]) as it:
        home, agent, _ = go_away(it)
        assert it.guest is not None
        it.to.write("sleep\n")
        in_call(it.guest.pid, 230)
        image = come_home(it, home, agent)
        assert image.threads[0].call is not None and image.threads[0].call.deadline_ns > 0
        assert it.line() == "sleep 0 1"
        assert it.say("altstack") == "altstack 1"


def test_pending_signals_travel_in_order(built: dict[str, Path]) -> None:
    with program(built, built["probe"]) as it:
        assert it.say("queue") == "queued"
        go_away(it)
        # SIGUSR2, then three of SIGRTMIN with their values
        assert it.say("dequeue") == "dequeued 1112233"


def test_pending_signals_of_the_guest_come_home(built: dict[str, Path]) -> None:
    with program(built, built["probe"]) as it:
        home, agent, _ = go_away(it)
        assert it.say("queue") == "queued"
        come_home(it, home, agent)
        assert it.say("dequeue") == "dequeued 1112233"


def test_page_behind_the_end_of_a_file_still_raises_sigbus(built: dict[str, Path]) -> None:
    with program(built, built["probe"]) as it:
        go_away(it)
        assert it.say("bus") == "first page x"
        assert it.line() == "bus error"
        assert it.guest is not None and it.guest.wait(60) == 9


def test_ghost_gives_memory_back_but_keeps_its_name(built: dict[str, Path]) -> None:
    with program(built, sys.executable, "-S", "-c", source.PYTHON) as it:
        it.say("fill some memory")
        before = fields(it.home.pid)
        full = resident(it.home.pid)
        home, agent, image = go_away(it)
        assert resident(it.home.pid) < 200 << 10 < full
        names = [at for at in mapped(it.home.pid) if not at.name.startswith("[v")]
        assert sum(at.end - at.start for at in names) < 300 << 10
        after = fields(it.home.pid)
        assert after["cmdline"] == before["cmdline"] and len(after["cmdline"]) > 100
        assert after["environ"] == before["environ"]
        come_home(it, home, agent)
        assert resident(it.home.pid) > image.page_bytes // 2


def test_cpython_goes_there_and_back_three_times(built: dict[str, Path]) -> None:
    argv = (sys.executable, "-S", "-c", source.PYTHON)
    lines = [f"line {i}" for i in range(7)]
    with program(built, *argv) as undisturbed:
        want = [undisturbed.say(line) for line in lines]
    with program(built, *argv) as it:
        got = [it.say(lines[0])]
        for i in range(1, 7, 2):
            home, agent, _ = go_away(it)
            got.append(it.say(lines[i]))
            come_home(it, home, agent)
            got.append(it.say(lines[i + 1]))
    assert got == want


def test_vector_registers_survive_in_the_middle_of_a_computation(built: dict[str, Path]) -> None:
    with program(built, built["spinner"]) as it:
        for _ in range(5):
            home, agent, _ = go_away(it)
            assert it.guest is not None
            os.kill(it.guest.pid, signal.SIGUSR1)
            assert it.line().endswith(" 0")
            come_home(it, home, agent)
            os.kill(it.home.pid, signal.SIGUSR1)
            assert it.line().endswith(" 0")


def working(process: subprocess.Popen[bytes]) -> int:
    """Its status once it has ended, however little of a busy machine it gets. TimeoutExpired: it
    stands still."""
    while True:
        before = cpu_ns(process.pid)
        try:
            return process.wait(10)
        except subprocess.TimeoutExpired:
            if cpu_ns(process.pid) == before:
                raise


def cpu_ns(pid: int) -> int:
    """What its only thread has used."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def test_xz_compresses_to_the_same_bytes_wherever_it_runs(
    built: dict[str, Path], tmp_path: Path
) -> None:
    original = tmp_path / "original"
    content = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    original.write_bytes(content[: 3 << 20])
    want = subprocess.run(["xz", "-9", "-c", original], capture_output=True, check=True).stdout
    output = tmp_path / "output"
    with open(original, "rb") as stdin, open(output, "wb") as stdout:
        home = subprocess.Popen(["xz", "-9", "-T1", "-c"], stdin=stdin, stdout=stdout)
        process = home
        guests = []
        there: capture.GuestVdso | None = None
        ghost: tuple[Tracee, Agent] | None = None
        try:
            while os.lseek(stdin.fileno(), 0, os.SEEK_CUR) == 0:
                pass  # still being loaded: a guest cannot map a library of home
            for round_ in range(6):
                source_ = stopped(process.pid)
                image = capture.describe(source_, round_, guest=there)
                if ghost is None:
                    agent = Agent.inject(source_, plans.body_ranges(image))
                    agent.obey()
                    ghost = source_, agent
                    process = subprocess.Popen([built["empty"]], stdin=stdin, stdout=stdout)
                    guests.append(process)
                    guest = Tracee.seize(process.pid, EXITKILL)
                    assert guest.stop().quiet
                    there = fill_guest(image, home.pid, guest)
                    restore.empty_ghost(agent, image)
                    guest.detach()
                else:
                    tracee, agent = ghost
                    bulk, thread = sent(process.pid, image)
                    with bulk:
                        restore.fill_ghost(agent, image, agent.give_fd(bulk.fileno()))
                    thread.join()
                    agent.finish()
                    agent.leave(*restore.final_state(tracee, image))
                    end(process)
                    tracee.detach()
                    process, ghost, there = home, None, None
            assert working(home) == 0
        finally:
            for one in (home, *guests):
                end(one)
    assert output.read_bytes() == want


def test_ghost_is_empty_again_after_a_failed_homecoming(built: dict[str, Path]) -> None:
    with program(built, built["probe"], "argument") as it:
        before = fields(it.home.pid)
        home, agent, _ = go_away(it)
        it.say("a")
        assert it.guest is not None
        guest = stopped(it.guest.pid)
        image = capture.describe(guest, 2, guest=it.vdso)
        ours, theirs = socket.socketpair()
        with theirs:
            ours.sendall(bytes(100_000))
            ours.close()
            with pytest.raises(MoveFailedError, match="ended early"):
                restore.fill_ghost(agent, image, agent.give_fd(theirs.fileno()))
        restore.empty_ghost(agent, image)
        assert resident(it.home.pid) < 200 << 10
        after = fields(it.home.pid)
        assert after["cmdline"] == before["cmdline"] and after["environ"] == before["environ"]
        guest.detach()
        answer = it.say("b")
        come_home(it, home, agent)
        assert it.say("b").split()[1] == answer.split()[1]


def test_limits_and_dispositions_reach_the_guest(built: dict[str, Path]) -> None:
    with program(built, built["probe"]) as it:
        resource.prlimit(it.home.pid, resource.RLIMIT_STACK, (1 << 20, 2 << 20))
        home, agent, image = go_away(it)
        assert it.guest is not None
        guest_pid = it.guest.pid
        assert resource.prlimit(guest_pid, resource.RLIMIT_STACK) == (1 << 20, 2 << 20)

        def signals(pid: int) -> list[str]:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            return [line for line in lines if line.startswith(("SigCgt", "SigIgn", "SigBlk"))]

        agent.finish()
        tracee = stopped(guest_pid)
        assert tracee.rseq() is not None
        assert image.threads[0].rseq is not None
        assert tracee.rseq() == (
            image.threads[0].rseq.address,
            image.threads[0].rseq.size,
            image.threads[0].rseq.signature,
        )
        agent.obey()
        want = signals(it.home.pid)[1:]
        assert signals(guest_pid)[1:] == want
        tracee.detach()
        come_home(it, home, agent)
