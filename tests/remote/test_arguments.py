"""Whatever arguments a call is given, it ends as it would at home: with the same result, the same
error out of several, the same bytes in memory; or the body goes home for it, where it does."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from mosix.remote.redirector import Event, NeedsHome
from mosix.syscalls.shapes import Class, Kind, Row, Special
from mosix.syscalls.table import TABLE
from served import ENOSYS, Kit, native, served

BASE, PAGE, PAGES = 0x200000000, 4096, 8
NUMBER, DESCRIPTOR, ADDRESS = range(3)
CALL, RESULT = struct.Struct("<13Q"), struct.Struct("<qqQ")

#: They end the program, wait, change the machine or the identity, cannot be compared (time, and
#: who it is), or take away what later calls of the same run are made with.
_LEFT_OUT = """
exit exit_group kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo rt_sigaction rt_sigprocmask
rt_sigtimedwait rt_sigsuspend alarm setitimer timer_create pause nanosleep flock close
close_range shutdown ioctl sync syncfs fallocate setrlimit prlimit64 vhangup pivot_root sysfs
acct syslog settimeofday clock_settime adjtimex clock_adjtime umount2 swapon swapoff sethostname
setdomainname delete_module setuid setgid setreuid setregid setresuid setresgid setfsuid
setfsgid setgroups capset setsid setpgid sched_setparam sched_setscheduler sched_setaffinity
sched_setattr setpriority ioprio_set semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
mq_open mq_unlink fanotify_init open_tree move_mount fsopen fsmount fspick mount_setattr
pidfd_open getpid gettid getppid getpgrp getpgid getsid times time prctl clock_gettime
clock_getres gettimeofday
"""
LEFT_OUT = frozenset(_LEFT_OUT.split())
#: What they write is another thing every time: only their results are compared.
_CHANGING = """
stat fstat lstat newfstatat statx statfs fstatfs getdents getdents64 recvmsg recvmmsg
getsockname getpeername sysinfo getrusage
"""
CHANGING = frozenset(_CHANGING.split())
#: argument → the only values that do not wait for ever
TIMES: dict[str, tuple[int, list[int]]] = {
    "poll": (2, [0, 1]),
    "epoll_wait": (3, [0, 1]),
    "epoll_pwait": (3, [0, 1]),
    "select": (4, [BASE + PAGE * 7, BASE + PAGE * 9, 1 << 63]),
    "pselect6": (4, [BASE + PAGE * 7, BASE + PAGE * 9, 1 << 63]),
    "ppoll": (2, [BASE + PAGE * 7, BASE + PAGE * 9, 1 << 63]),
    "epoll_pwait2": (3, [BASE + PAGE * 7, BASE + PAGE * 9, 1 << 63]),
}
#: fcntl: not what lets a descriptor wait, nor what brings signals
FCNTLS = [0, 1, 2, 3, 9, 11, 1025, 1030, 1032, 1034, 5, 36, 6, 15, 16, 37, 1035, 1036, 5000]

ADDRESSES = [
    0,
    1,
    BASE,
    BASE + PAGE,  # "small"
    *(BASE + PAGE + 64 * i for i in range(1, 8)),  # the other names
    BASE + 3 * PAGE + 4000,  # a long name, which ends
    BASE + 2 * PAGE,  # one that is too long
    BASE + 5 * PAGE,  # buffers
    BASE + 5 * PAGE + 48,  # one that leads out of memory
    BASE + 6 * PAGE,
    BASE + 6 * PAGE + 3,
    BASE + PAGES * PAGE - 4,  # ends in memory that cannot be written
    BASE + PAGES * PAGE,  # cannot be written
    BASE + (PAGES + 1) * PAGE - 4,  # ends where nothing is
    BASE + (PAGES + 1) * PAGE,
    0x7FFFFFFFF000 - 4,
    1 << 63,
    2**64 - 4096,
]
SIZES = [0, 1, 2, 3, 4, 8, 16, 24, 100, 4096, 5000, 2**31 - 1, 2**31, 2**32 - 1, 2**32 + 8]
SIZES += [0x7FFFF7000000, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = [0, 0, 1, 2, 3, 4, 8, 16, 0x40, 0x800, 2**31 - 1, 2**32 - 1, 2**64 - 1]


@dataclass(frozen=True)
class Made:
    name: str
    nr: int
    kinds: tuple[int, ...]
    values: tuple[int, ...]

    def __str__(self) -> str:
        words = (
            f"fd{v}" if k == DESCRIPTOR else f"{v:#x}"
            for k, v in zip(self.kinds, self.values, strict=True)
        )
        return f"{self.name}({', '.join(words)})"


def served_rows() -> list[Row]:
    return [
        row
        for row in TABLE
        if row.cls in (Class.HOME, Class.BOTH)
        and row.name not in LEFT_OUT
        and row.special not in (Special.CPU_CLOCK, Special.DATE)
    ]


def make_call(chance: random.Random, row: Row) -> Made:
    shapes, fixed = row.args, {}
    if row.name == "fcntl":
        command = chance.choice(FCNTLS)
        shapes, fixed = row.variants.get(command, shapes), {1: (NUMBER, command)}
    if row.name in TIMES:
        at, values = TIMES[row.name]
        fixed[at] = ADDRESS, chance.choice(values)
    sizes = {shape.length_arg for shape in shapes}
    kinds, values = [], []
    for i in range(6):
        kind = shapes[i].kind if i < len(shapes) else Kind.VALUE
        pointer = kind >= Kind.PATH or is_pointer(row, i)
        if i in fixed:
            kind_, value = fixed[i]
        elif kind == Kind.FD:
            kind_, value = DESCRIPTOR, chance.randrange(16)
        elif pointer:
            kind_, value = ADDRESS, chance.choice(ADDRESSES)
        elif i in sizes or (row.special == Special.TRANSFER and i == 2):
            kind_, value = NUMBER, chance.choice(SIZES)
        else:
            kind_, value = NUMBER, chance.choice(NUMBERS)
        if row.special in (Special.SENDMMSG, Special.RECVMMSG) and i == 2:
            value = min(value & 0xFFFFFFFF, 15)  # more at a time are cut
        kinds.append(kind_)
        values.append(value)
    return Made(row.name, row.nr, tuple(kinds), tuple(values))


def is_pointer(row: Row, arg: int) -> bool:
    """Arguments of calls that no shape describes."""
    match row.special:
        case Special.READV | Special.WRITEV | Special.SENDMSG | Special.RECVMSG:
            return arg == 1
        case Special.SENDMMSG | Special.RECVMMSG:
            return arg == 1 or (row.name == "recvmmsg" and arg == 4)
        case Special.SELECT | Special.PSELECT:
            return 1 <= arg <= 3 or arg == 5
    return row.name in ("ppoll", "epoll_pwait", "epoll_pwait2") and arg == (
        3 if row.name == "ppoll" else 4
    )


def fill(where: Path) -> Path:
    where.mkdir()
    (where / "small").write_text("a few words\n")
    (where / "big").write_bytes(bytes(range(256)) * 2000)
    (where / "sub").mkdir()
    (where / "sub" / "file1").write_text("one")
    (where / "link").symlink_to("small")
    return where


def results(path: Path) -> list[tuple[int, int, int]]:
    return list(RESULT.iter_unpack(path.read_bytes()))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_any_arguments_end_a_call_as_they_would_at_home(
    kit: Kit, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    rows = served_rows()
    made = [make_call(chance, chance.choice(rows)) for _ in range(4000)]
    (tmp_path / "calls").write_bytes(b"".join(CALL.pack(m.nr, *m.kinds, *m.values) for m in made))
    none = tmp_path / "none"
    none.write_bytes(bytes(len(made)))
    homes: list[int] = []
    binary = kit.build("wrong_calls", static=True)
    here, there = fill(tmp_path / "home"), tmp_path / "results_away"
    with served(kit, [binary, tmp_path / "calls", there, none], here) as pair:

        def on_event(event: Event) -> bool:
            if not isinstance(event, NeedsHome):
                return False
            homes.append(event.call.nr)
            pair.redirector.answer(-ENOSYS)
            pair.redirector.resume()
            return True

        assert await pair.serve(on_event) == 0
    away = results(there)
    went_home = bytes(error == ENOSYS for _, error, _ in away)
    (tmp_path / "skipped").write_bytes(went_home)
    here.rename(tmp_path / "home_before")
    fill(here)
    home_file = tmp_path / "results_home"
    status, _ = native([binary, tmp_path / "calls", home_file, tmp_path / "skipped"], here)
    assert status == 0
    at_home = results(home_file)
    wrong = [
        f"{i}: {m}: {a} away, {h} at home"
        for i, (m, a, h) in enumerate(zip(made, away, at_home, strict=True))
        if (a[:2] != h[:2] or (m.name not in CHANGING and a[2] != h[2]))
    ]
    assert not wrong, "\n".join(wrong[:40]) + f"\n… {len(wrong)}"
    # Nobody goes home for what is right.
    assert sum(went_home) < len(made) // 2
