"""The agent in real processes: it obeys, leaves no trace, and gives the process back if we die."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mosix.errors import MoveFailedError
from mosix.image.model import PageRun
from mosix.native._native import ffi, lib
from mosix.native.agent import Agent
from mosix.native.blob import mapped
from mosix.native.tracee import Tracee

COUNTER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
/* Copies lines from stdin to stdout with a number computed in vector registers. */
typedef double v4 __attribute__((vector_size(32)));
int main(void)
{
	v4 a = {1, 2, 3, 4};
	char line[100];
	setvbuf(stdout, 0, _IOLBF, 0);
	printf("ready\n");
	while (fgets(line, sizeof(line), stdin)) {
		for (int i = 0; i < 1000; i++)
			a = a * (v4){1.0001, 0.9999, 1.0002, 0.9998} + (v4){1e-3, 1e-3, 1e-3, 1e-3};
		printf("%.12f %s", a[0] + a[1] + a[2] + a[3], line);
	}
	return 7;
}
"""

SPINNER = r"""
#include <signal.h>
#include <stdio.h>
#include <stdint.h>
#include <unistd.h>
/* Computes without end in vector and general registers; says on SIGUSR1 how many laps were
 * right and how many wrong. */
typedef double v4 __attribute__((vector_size(32)));
static volatile sig_atomic_t asked;
static void on(int s) { asked = s; }
static __attribute__((noipa)) uint64_t lap(void)
{
	v4 a = {1, 2, 3, 4};
	unsigned __int128 x = 12345;
	uint64_t h = 0;
	for (int i = 0; i < 20000; i++) {
		a = a * (v4){1.0001, 0.9999, 1.0002, 0.9998} + (v4){1e-3, 1e-3, 1e-3, 1e-3};
		x = x * 6364136223846793005ULL + 1442695040888963407ULL;
		h ^= (uint64_t)(x >> 61) + (h << 7) + (h >> 3);
		h += x > ((unsigned __int128)h << 64);
	}
	return h ^ (uint64_t)(a[0] * 1e6) ^ (uint64_t)(a[3] * 1e9);
}
int main(void)
{
	struct sigaction sa = {.sa_handler = on};
	uint64_t want = lap();
	long right = 0, wrong = 0;
	sigaction(SIGUSR1, &sa, 0);
	dprintf(1, "ready\n");
	for (;;) {
		if (lap() == want)
			right++;
		else
			wrong++;
		if (asked) {
			asked = 0;
			dprintf(1, "%ld %ld\n", right, wrong);
		}
	}
}
"""


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("programs")
    built = {}
    for name, text in (("counter", COUNTER), ("spinner", SPINNER)):
        source = folder / f"{name}.c"
        source.write_text(text)
        built[name] = folder / name
        subprocess.run(
            ["gcc", "-O2", "-mavx", "-w", "-o", built[name], source], check=True, timeout=60
        )
    return built


class Job:
    """A running program with pipes."""

    def __init__(self, *argv: str | Path) -> None:
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, text: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.line()

    def end(self) -> None:
        # Popen's own methods would take a ptrace stop for the end
        if self.process.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitid(os.P_PID, self.pid, os.WEXITED)
            self.process.returncode = -signal.SIGKILL
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def running(*argv: str | Path) -> Iterator[Job]:
    job = Job(*argv)
    try:
        if job.line() != "ready":
            raise RuntimeError("the program did not start")
        yield job
    finally:
        job.end()


@pytest.fixture
def counter(programs: dict[str, Path]) -> Iterator[Job]:
    with running(programs["counter"]) as job:
        yield job


def stopped(job: Job) -> Tracee:
    tracee = Tracee.seize(job.pid)
    assert tracee.stop().quiet
    return tracee


def footprint(pid: int) -> tuple[object, ...]:
    """What of a process is visible from outside and must not change."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return (
        [(at.start, at.end, at.name) for at in mapped(pid)],
        sorted(os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")),
        [line for line in status if line.startswith(("SigP", "SigB", "SigI", "SigC", "Shd"))],
    )


def test_process_is_unchanged_by_agent_that_came_and_went(counter: Job) -> None:
    tracee = stopped(counter)
    before = footprint(counter.pid), tracee.registers, tracee.xstate, tracee.signal_mask
    agent = Agent.inject(tracee, [])
    assert tracee.registers == before[1]
    agent.obey()
    assert agent.call(39) == counter.pid
    agent.abandon()
    assert (footprint(counter.pid), tracee.registers, tracee.xstate, tracee.signal_mask) == before
    tracee.detach()
    assert counter.say("goes on").endswith("goes on")


def test_blob_lies_outside_the_memory_to_come(counter: Job) -> None:
    tracee = stopped(counter)
    avoid = [(0, 0x40000000)]
    agent = Agent.inject(tracee, avoid)
    start, end = agent.blob
    assert start >= 0x40000000
    assert all(
        at.end <= start or end <= at.start for at in mapped(counter.pid) if at.start != start
    )
    agent.abandon()
    tracee.detach()


def test_control_descriptor_is_high_and_closes_on_exec(counter: Job) -> None:
    soft, _ = resource.prlimit(counter.pid, resource.RLIMIT_NOFILE)
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    numbers = sorted(int(n) for n in os.listdir(f"/proc/{counter.pid}/fd"))
    assert numbers[-1] == min(soft, 4096) - 1
    flags = Path(f"/proc/{counter.pid}/fdinfo/{numbers[-1]}").read_text()
    assert int(flags.split("flags:")[1].split()[0], 8) & os.O_CLOEXEC
    agent.abandon()
    tracee.detach()


def test_calls_stop_at_the_first_that_may_not_fail(counter: Job) -> None:
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    agent.obey()
    getpid, bad = (39, (), False), (3, (999999,), False)
    assert agent.calls([getpid, bad, getpid]) == [counter.pid, -errno.EBADF]
    assert agent.calls([(3, (999999,), True), getpid]) == [-errno.EBADF, counter.pid]
    many = agent.calls([(39, (), False)] * 1300)
    assert many == [counter.pid] * 1300
    assert agent.calls([]) == []
    agent.abandon()
    tracee.detach()


def test_arguments_in_memory_reach_the_call(counter: Job) -> None:
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    agent.obey()
    # prctl(PR_SET_NAME), many times, so that scratch memory is used more than once
    names = [f"name{i}".encode().ljust(16, b"\0") for i in range(3000)]
    assert set(agent.calls([(157, (15, name), False) for name in names])) == {0}
    assert Path(f"/proc/{counter.pid}/comm").read_text() == "name2999\n"
    agent.abandon()
    tracee.detach()


def test_fill_receives_many_runs_into_place(counter: Job) -> None:
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    agent.obey()
    area = agent.call(9, 0, 4000 * 4096, 3, 0x22, 2**64 - 1, 0)
    runs = [PageRun(area + i * 8192, 4096) for i in range(2000)]
    content = b"".join(os.urandom(8) * 512 for _ in runs)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = agent.give_fd(theirs.fileno())
        sender = threading.Thread(target=ours.sendall, args=(content,))
        sender.start()
        assert agent.fill(number, runs) == len(content)
        sender.join()
    memory = agent.read(area, 4000 * 4096)
    assert b"".join(memory[i * 8192 : i * 8192 + 4096] for i in range(2000)) == content
    assert not any(memory[4096 + i * 8192 : 8192 + i * 8192] != bytes(4096) for i in range(2000))
    assert agent.call(11, area, 4000 * 4096) == 0
    agent.abandon()
    tracee.detach()


def test_fill_says_when_the_sender_ends_early(counter: Job) -> None:
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    agent.obey()
    area = agent.call(9, 0, 1 << 20, 3, 0x22, 2**64 - 1, 0)
    ours, theirs = socket.socketpair()
    with theirs:
        number = agent.give_fd(theirs.fileno())
        ours.sendall(bytes(10000))
        ours.close()
        with pytest.raises(MoveFailedError, match="ended early"):
            agent.fill(number, [PageRun(area + i * 4096, 4096) for i in range(256)] * 3)
    assert agent.call(39) == counter.pid  # still in step
    agent.call(11, area, 1 << 20)
    agent.abandon()
    tracee.detach()


def test_descriptor_given_to_the_process_works_there(counter: Job) -> None:
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    agent.obey()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = agent.give_fd(theirs.fileno())
        assert agent.call(1, number, b"hello", 5) == 5
        assert ours.recv(10) == b"hello"
    agent.abandon()
    assert str(number) not in os.listdir(f"/proc/{counter.pid}/fd")
    tracee.detach()


def test_signal_waits_until_the_agent_is_gone(programs: dict[str, Path]) -> None:
    with running(programs["spinner"]) as job:
        tracee = stopped(job)
        agent = Agent.inject(tracee, [])
        agent.obey()
        os.kill(job.pid, signal.SIGUSR1)
        assert agent.call(39) == job.pid
        agent.abandon()
        tracee.detach()
        _, wrong = map(int, job.line().split())
        assert wrong == 0


def test_sigstop_does_not_block_the_agent(counter: Job) -> None:
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    agent.obey()
    os.kill(counter.pid, signal.SIGSTOP)
    assert agent.calls([(39, (), False)] * 100) == [counter.pid] * 100
    agent.abandon()
    tracee.detach()
    os.kill(counter.pid, signal.SIGCONT)
    assert counter.say("goes on").endswith("goes on")


def test_sleep_goes_on_after_the_agent(tmp_path: Path) -> None:
    """An interrupted nanosleep keeps its restart block: no call of the agent may replace it."""
    with subprocess.Popen(["sleep", "1.5"]) as sleeper:
        tracee = Tracee.seize(sleeper.pid)
        while Path(f"/proc/{sleeper.pid}/syscall").read_text().split()[0] not in ("230", "35"):
            pass
        assert tracee.stop().quiet
        agent = Agent.inject(tracee, [])
        agent.obey()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            number = agent.give_fd(theirs.fileno())
            area = agent.call(9, 0, 4096, 3, 0x22, 2**64 - 1, 0)
            sender = threading.Timer(0.2, ours.sendall, (bytes(4096),))
            sender.start()
            assert agent.fill(number, [PageRun(area, 4096)]) == 4096
            sender.join()
        agent.call(11, area, 4096)
        agent.abandon()
        tracee.detach()
        assert sleeper.wait(60) == 0


DEATHS = ("injected", "obeying", "in a call", "in a fill", "finished", "abandoned")


def _die(pid: int, where: str) -> None:
    """In a child: traces `pid`, gets as far as `where` and dies without a word."""
    tracee = Tracee.seize(pid)
    tracee.stop()
    agent = Agent.inject(tracee, [])
    if where != "injected":
        agent.obey()
        assert agent.call(39) == pid
        ours, theirs = socket.socketpair()
        number = agent.give_fd(theirs.fileno())
        if where == "in a call":
            agent._send(1, 1, bytes(64))  # read(0, NULL, 0): answered into a closed socket
        elif where == "in a fill":
            ours.sendall(bytes(100))
            area = agent.call(9, 0, 4096, 3, 0x22, 2**64 - 1, 0)
            agent._send(2, 1, area.to_bytes(8, "little") + bytes((0, 16, 0, 0, 0, 0, 0, 0)), number)
        elif where == "finished":
            agent.finish()
        elif where == "abandoned":
            agent.abandon()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("where", DEATHS)
def test_process_goes_on_when_its_deputy_dies(programs: dict[str, Path], where: str) -> None:
    with running(programs["spinner"]) as job:
        mask = footprint(job.pid)[2]
        for _ in range(3):
            child = os.fork()
            if child == 0:
                try:
                    _die(job.pid, where)
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            laps = []
            for _ in range(2):
                os.kill(job.pid, signal.SIGUSR1)
                right, wrong = map(int, job.line().split())
                assert wrong == 0
                laps.append(right)
            assert laps[1] > laps[0]
            assert footprint(job.pid)[2] == mask
            if where not in ("injected",):
                names = [at.name for at in mapped(job.pid)]
                assert all(at.start > 0x100000 for at in mapped(job.pid)), names


def test_blob_moves_out_of_the_way_while_it_obeys(counter: Job) -> None:
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    agent.obey()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = agent.give_fd(theirs.fileno())
        old = agent.blob
        agent.relocate([old])
        assert agent.blob[0] >= old[1]
        assert old[0] not in [at.start for at in mapped(counter.pid)]
        assert agent.call(1, number, b"there", 5) == 5
        assert ours.recv(10) == b"there"
    agent.relocate([old])  # nothing to do
    agent.abandon()
    tracee.detach()
    assert counter.say("goes on").endswith("goes on")


# ---- serving ----


def request(nr: int, *args: int, identity: int = 1, out: int = 0) -> bytes:
    """A redirected call; `out`: its second argument is a buffer of that size to come back."""
    header = ffi.new("struct mx_request *")
    header.nr, header.id = nr, identity
    for i, arg in enumerate(args):
        header.args[i] = arg
    relocs = b""
    if out:
        reloc = ffi.new("struct mx_reloc *", {"at": lib.MX_RELOC_ARG + 1, "to": 0})
        relocs = bytes(ffi.buffer(reloc))
        header.n_relocs, header.area_size = 1, out
        header.out_var, header.out_unit = out, 1
    header.size = len(relocs)
    return bytes(ffi.buffer(header)) + relocs


def reply(sock: socket.socket) -> tuple[int, int, bytes]:
    """Result, flags and data."""
    answer = ffi.new("struct mx_reply *")
    size = ffi.sizeof("struct mx_reply")
    ffi.buffer(answer)[:] = sock.recv(size, socket.MSG_WAITALL)
    data = sock.recv(answer.size, socket.MSG_WAITALL) if answer.size else b""
    return answer.result, answer.flags, data


@pytest.fixture
def ghost(counter: Job) -> Iterator[tuple[Job, Tracee, Agent, socket.socket]]:
    """A process that serves; our end of its call socket."""
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    agent.obey()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            number = agent.give_fd(theirs.fileno())
        agent.finish()
        agent.serve(number, 0, 1 << signal.SIGWINCH - 1)
        yield counter, tracee, agent, ours
        agent.close()


Ghost = tuple[Job, Tracee, Agent, socket.socket]


def blocked_in_call(agent: Agent, pid: int, nr: int) -> None:
    while not agent.state().current_id:
        pass
    while Path(f"/proc/{pid}/syscall").read_text().split()[0] != str(nr):
        pass


def test_ghost_makes_calls_in_its_own_name(ghost: Ghost) -> None:
    job, _, agent, sock = ghost
    for i in range(5):
        sock.sendall(request(39, identity=i + 1))
        assert reply(sock)[:2] == (job.pid, 0)
    assert agent.calls_served() == 5
    status = Path(f"/proc/{job.pid}/status").read_text()
    assert f"SigBlk:\t{1 << signal.SIGWINCH - 1:016x}" in status


def test_paused_ghost_goes_on_with_what_came_meanwhile(ghost: Ghost) -> None:
    job, _, agent, sock = ghost
    sock.sendall(request(39)[:20])
    agent.pause()
    agent.obey()
    assert agent.call(39) == job.pid
    sock.sendall(request(39)[20:])
    agent.unpause()
    assert reply(sock)[:2] == (job.pid, 0)


def test_call_in_flight_survives_a_pause(ghost: Ghost) -> None:
    job, _, agent, sock = ghost
    sock.sendall(request(0, 0, 0, 100, out=100))  # read(0, area, 100)
    blocked_in_call(agent, job.pid, 0)
    for _ in range(3):
        agent.pause()
        agent.obey()
        assert agent.call(39) == job.pid
        agent.finish()
        agent.obey()
        agent.unpause()
    assert job.process.stdin is not None
    job.process.stdin.write("typed\n")
    job.process.stdin.flush()
    assert reply(sock) == (6, 0, b"typed\n")


def test_cancelled_call_is_answered_with_its_code(ghost: Ghost) -> None:
    job, tracee, agent, sock = ghost
    sock.sendall(request(0, 0, 0, 100, out=100))
    blocked_in_call(agent, job.pid, 0)
    assert tracee.stop().quiet
    registers = tracee.get_registers()
    assert registers.rip == agent.call_return and registers.result == -512
    agent.mark_cancelled(-512)
    tracee.cont()
    assert reply(sock) == (-512, lib.MX_REP_CANCELLED, b"")
    sock.sendall(request(39, identity=2))
    assert reply(sock)[:2] == (job.pid, 0)


def test_ghost_serves_the_next_node(ghost: Ghost) -> None:
    job, _, agent, old = ghost
    agent.pause()
    agent.obey()
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            number = agent.give_fd(theirs.fileno())
        agent.finish()
        agent.serve_on(number)
        ours.sendall(request(39))
        assert reply(ours)[:2] == (job.pid, 0)
        assert old.recv(1) == b""


@pytest.mark.parametrize("obeying", [False, True])
def test_ghost_serves_on_after_its_agent_moved(ghost: Ghost, obeying: bool) -> None:
    job, _, agent, sock = ghost
    sock.sendall(request(39))
    assert reply(sock)[0] == job.pid
    agent.pause()
    old = agent.blob
    if obeying:
        agent.obey()
        agent.relocate([old])
    else:
        agent.relocate([old])
        agent.obey()
    assert agent.blob[0] >= old[1]
    assert agent.call(39) == job.pid
    agent.unpause()
    sock.sendall(request(39, identity=2))
    assert reply(sock)[0] == job.pid
    assert agent.calls_served() == 2
    assert old[0] not in [at.start for at in mapped(job.pid)]


def test_signal_met_by_a_pause_is_not_lost(ghost: Ghost) -> None:
    job, tracee, agent, _ = ghost
    os.kill(job.pid, signal.SIGTERM)
    stop = tracee.wait()
    assert stop is not None and stop.kind == "signal"
    agent.pause()
    assert [info[0] for info in tracee.pending(shared=False)] == [signal.SIGTERM]
    agent.obey()
    agent.unpause()
    stop = tracee.wait()
    assert stop is not None and stop.signal == signal.SIGTERM
    info = tracee.siginfo
    assert int.from_bytes(info[16:20], "little") == os.getpid()  # si_pid


def test_ghost_waits_for_orders_when_the_call_socket_ends(ghost: Ghost) -> None:
    job, _, agent, sock = ghost
    sock.shutdown(socket.SHUT_RDWR)
    agent.pause()
    agent.obey()
    assert agent.call(39) == job.pid


def test_filter_is_installed_and_its_listener_taken(counter: Job) -> None:
    tracee = stopped(counter)
    agent = Agent.inject(tracee, [])
    agent.obey()
    allow = (6).to_bytes(2, "little") + bytes(2) + (0x7FFF0000).to_bytes(4, "little")
    listener = agent.install_filter(allow)
    try:
        assert "seccomp" in os.readlink(f"/proc/self/fd/{listener}")
        assert "Seccomp_filters:\t1" in Path(f"/proc/{counter.pid}/status").read_text()
        agent.abandon()
        tracee.detach()
        assert counter.say("goes on").endswith("goes on")
    finally:
        os.close(listener)
