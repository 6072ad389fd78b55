"""The words in which `mosix.syscalls.table` describes system calls.

A row says how each argument reaches into memory, so that a call can be executed in another
process: which bytes go along (IN), which come back (OUT), how long they are. Used by the table,
by `filter` (who is allowed, who is notified) and by `descriptors` (what the C marshaller is
given; its numbers are those of redirect.h). Only data: nothing here touches the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Class(IntEnum):
    """Where a call is executed."""

    LOCAL = 0  # in the guest, never notified
    HOME = 1  # in the ghost, by the agent
    BOTH = 2  # in the ghost, and when that succeeds in the guest too
    WAIT = 3  # waited for by the redirector
    AT_HOME = 4  # the body comes home for it
    HERE = 5  # answered by the redirector: the body's CPU time with what it used elsewhere


class OnCancel(IntEnum):
    """What a move does with a call that is being executed in the ghost."""

    RESTART = 0  # did nothing yet: issued again
    PARTIAL = 1  # bytes were moved: the rest is issued, the sum returned
    REMAINING = 2  # has a relative timeout: issued again with what is left of it
    UNCANCELLABLE = 3  # short by nature, or irrevocable: the move waits


class Kind(IntEnum):
    """How an argument reaches into memory. The numbers are MX_ARG_* of redirect.h."""

    VALUE = 0
    FD = 1
    PATH = 2
    OPEN_PATH = 3
    STRING = 4
    IN = 5
    OUT = 6
    OUT_RESULT = 7
    INOUT = 8
    OUT_LENGTH_AT = 9


class Special(IntEnum):
    """Calls whose memory cannot be described by `Shape`s: MX_SPECIAL_* of redirect.h."""

    NONE = 0
    READV = 1
    WRITEV = 2
    SENDMSG = 3
    RECVMSG = 4
    SENDMMSG = 5
    RECVMMSG = 6
    SELECT = 7
    PSELECT = 8
    NANOSLEEP = 9
    CLOCK_NANOSLEEP = 10
    PAUSE = 11
    TRANSFER = 12
    PRLIMIT = 13
    SETPRIORITY = 14
    CPU_CLOCK = 15
    RUSAGE = 16
    TIMES = 17
    IOCTL = 18
    DATE = 19
    #: what it has written is there also when it fails: all its memory is updated
    ON_ERROR = 20
    #: says what CPU time the body has used
    EXIT = 21


class Timeout(IntEnum):
    """How a relative timeout is written: MX_TIMEOUT_* of redirect.h."""

    NONE = 0
    MILLISECONDS = 1
    TIMESPEC = 2
    TIMEVAL = 3


#: `Shape.length_arg` of a buffer whose size does not depend on an argument.
NO_ARG = 255


@dataclass(frozen=True, slots=True)
class Shape:
    """One argument. A buffer has `size` + `unit` * args[`length_arg`] bytes (the second term only
    when there is a length_arg; for OUT_LENGTH_AT that argument points to the 32-bit length).
    OUT_RESULT: `size` bytes, and `unit` for each that the call's result counts.
    STRING: `size` is the longest allowed, terminator included."""

    kind: Kind
    size: int = 0
    length_arg: int = NO_ARG
    unit: int = 0


value = Shape(Kind.VALUE)
fd = Shape(Kind.FD)
path = Shape(Kind.PATH, 4096)
#: A path that is opened: /proc/self/maps and its like cannot be the ghost's.
open_path = Shape(Kind.OPEN_PATH, 4096)
#: A 32-bit length in memory that goes both ways.
length = Shape(Kind.INOUT, 4)


def string(longest: int) -> Shape:
    return Shape(Kind.STRING, longest)


def reads(size: int) -> Shape:
    """`size` bytes that the call reads."""
    return Shape(Kind.IN, size)


def reads_n(length_arg: int, unit: int = 1, plus: int = 0) -> Shape:
    return Shape(Kind.IN, plus, length_arg, unit)


def writes(size: int) -> Shape:
    """`size` bytes, all of which a successful call has written."""
    return Shape(Kind.OUT, size)


def writes_n(length_arg: int) -> Shape:
    """args[length_arg] bytes, all of which a successful call has written."""
    return Shape(Kind.OUT, 0, length_arg, 1)


def writes_result(length_arg: int, unit: int = 1, plus: int = 0) -> Shape:
    """A buffer for args[length_arg] units, of which the call fills as many as it returns."""
    return Shape(Kind.OUT_RESULT, plus, length_arg, unit)


def updates(size: int) -> Shape:
    """`size` bytes of which the call may write some, none or all."""
    return Shape(Kind.INOUT, size)


def updates_n(length_arg: int, unit: int) -> Shape:
    return Shape(Kind.INOUT, 0, length_arg, unit)


def writes_length_at(length_arg: int) -> Shape:
    """A buffer whose capacity, and afterwards length, is in memory at args[length_arg]."""
    return Shape(Kind.OUT_LENGTH_AT, 0, length_arg, 1)


MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF
#: Stands in `Test.value` for the PID of the process at home; only the C side knows it.
HOME_PID = "home pid"


@dataclass(frozen=True, slots=True)
class Test:
    """(args[arg] & mask) == value, or != when `differs`."""

    __test__ = False  # not a pytest class

    arg: int
    mask: int
    value: int | str
    differs: bool = False

    def holds(self, args: tuple[int, ...], home_pid: int = 0) -> bool:
        wanted = home_pid if isinstance(self.value, str) else self.value
        return ((args[self.arg] & self.mask) == wanted) != self.differs


def is_(arg: int, number: int | str) -> Test:
    """A 32-bit argument equals `number`."""
    return Test(arg, MASK32, number & MASK32 if isinstance(number, int) else number)


def is_not(arg: int, number: int | str) -> Test:
    return Test(arg, MASK32, number & MASK32 if isinstance(number, int) else number, True)


def bits(arg: int, mask: int, number: int) -> Test:
    return Test(arg, mask, number)


def has(arg: int, mask: int) -> Test:
    """Any bit of `mask` is set."""
    return Test(arg, mask, 0, True)


def null(arg: int) -> Test:
    return Test(arg, MASK64, 0)


def given(arg: int) -> Test:
    return Test(arg, MASK64, 0, True)


@dataclass(frozen=True, slots=True)
class Rule:
    """When all `tests` hold, `then` (and `reason`) replace the row's class."""

    tests: tuple[Test, ...]
    then: Class
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One system call. `rules`: the first that holds decides, else `cls`. `variants`: for
    ioctl, fcntl and the like the shapes by the value of 32-bit argument `key_arg`; a value that
    is not among them comes home unless `cls` has shapes of its own. `reason`: what mosps
    shows when the body comes home for it."""

    nr: int
    name: str
    cls: Class
    args: tuple[Shape, ...] = ()
    on_cancel: OnCancel = OnCancel.UNCANCELLABLE
    rules: tuple[Rule, ...] = ()
    variants: dict[int, tuple[Shape, ...]] = field(default_factory=dict)
    key_arg: int = NO_ARG
    special: Special = Special.NONE
    timeout: Timeout = Timeout.NONE
    timeout_arg: int = 0
    reason: str = ""

    def decide(self, args: tuple[int, ...], home_pid: int = 0) -> tuple[Class, str]:
        """Class and reason for these arguments, as far as the arguments alone decide."""
        for rule in self.rules:
            if all(test.holds(args, home_pid) for test in rule.tests):
                return rule.then, rule.reason or self.reason
        return self.cls, self.reason
