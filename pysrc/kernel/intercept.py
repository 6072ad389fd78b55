"""The eBPF program that decides about system calls: loaded with bcc, fed through its maps.

`Intercept` is what a node's daemon has one of. Who is in the map of tasks is intercepted, with all
its descendants. bcc compiles against the running kernel's headers, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from mosix.errors import KernelError
from mosix.kernel.device import Device
from mosix.kernel.headers import KERNEL, constants, shared
from mosix.kernel.maps import Maps

_ffi = shared("bpf/intercept.h")
_C = constants(_ffi, "MX_")
NATIVE, REDIRECT, DENY, KILL = (
    _C[f"ACT_{name}"] for name in ("NATIVE", "REDIRECT", "DENY", "KILL")
)
BY_FD, OWN_PROC, OWN_PROC_AT = (_C[f"ACT_{name}"] for name in ("BY_FD", "OWN_PROC", "OWN_PROC_AT"))
_BY_TESTS = _C["ACT_TESTS"]
_SOURCE = KERNEL / "bpf" / "intercept.bpf.c"


@dataclass(frozen=True, slots=True)
class Condition:
    """(args[argument] & mask) == value, or != when `differs`."""

    argument: int
    mask: int
    value: int
    differs: bool = False


@dataclass(frozen=True, slots=True)
class ByArguments:
    """The action of the first of `rules` all of whose conditions hold, or else `otherwise`."""

    rules: tuple[tuple[tuple[Condition, ...], int], ...]
    otherwise: int

    @property
    def size(self) -> int:
        return sum(len(conditions) for conditions, _ in self.rules)


#: How many conditions one may have in all.
MAX_CONDITIONS = _C["MAX_TESTS"]


class Intercept:
    """The loaded program and its maps. KernelError says why it cannot be loaded."""

    def __init__(self) -> None:
        try:
            from bcc import BPF  # noqa: PLC0415 - slow, and not on every machine
        except ImportError as error:
            raise KernelError("bcc is not installed", hint="apt install python3-bpfcc") from error
        include = [f"-I{KERNEL / 'bpf'}", f"-I{KERNEL / 'module'}"]
        self._n_tests = 0
        try:
            self._bpf: Any = BPF(
                text=_SOURCE.read_text(), cflags=[*include, "-Duint32_t=__u32", "-Duint64_t=__u64",
                                                  "-Dint32_t=__s32", "-Dint64_t=__s64",
                                                  "-Wno-ignored-attributes"]
            )  # fmt: skip
            self._verdict = self._bpf.load_func("verdict", BPF.RAW_TRACEPOINT)
        except Exception as error:  # bcc has no other
            raise KernelError(
                f"the eBPF program cannot be loaded: {error}",
                hint="it needs root, BPF events and this kernel's headers",
            ) from error
        self.maps = Maps(self._bpf["tasks"].map_fd, self._bpf["counts"].map_fd)
        #: what is attached to the kernel's tracepoints, as long as they are open somewhere
        self.attached: tuple[int, ...] = tuple(self._bpf.tracepoint_fds.values())

    def __enter__(self) -> Intercept:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Unload; whoever holds the program by `attach` keeps it."""
        self._bpf.cleanup()

    def attach(
        self,
        device: Device,
        calls: Iterable[str],
        *,
        group: int = 0,
        where: Mapping[str, int] | None = None,
    ) -> list[str]:
        """Hook these system calls, in the set `group`. `where` their functions are; without, they
        are looked for one by one. Names that the kernel does not know are left out and returned."""
        if where is None:
            return [name for name in calls if not device.hook(name, group)]
        return [
            name for name in calls if name not in where or not device.hook(name, group, where[name])
        ]

    def decide(self, device: Device) -> None:
        """Let the program decide about what is hooked, as long as `device` is open and as long as
        anybody owns tasks. OSError."""
        device.decide_by(self._verdict.fd)

    def set_actions(self, policy: int, actions: Mapping[int, int | ByArguments]) -> None:
        """What is done with calls (by number) of tasks with this policy; others: native."""
        table = self._bpf["actions"]
        for nr, action in actions.items():
            if isinstance(action, ByArguments):
                leaf = table.Leaf(_BY_TESTS, action.otherwise, self._n_tests, action.size, 0)
                self._add_tests(action)
            else:
                leaf = table.Leaf(action)
            table[table.Key(policy * _C["CALLS"] + nr)] = leaf

    def _add_tests(self, action: ByArguments) -> None:
        table = self._bpf["tests"]
        if action.size > MAX_CONDITIONS or self._n_tests + action.size > _C["TESTS"]:
            raise ValueError("too many conditions")
        for conditions, then in action.rules:
            for each in conditions:
                flags = _C["TEST_DIFFERS"] if each.differs else 0
                flags |= _C["TEST_AND"] if each is not conditions[-1] else 0
                leaf = table.Leaf(each.mask, each.value, each.argument, flags, then)
                table[table.Key(self._n_tests)] = leaf
                self._n_tests += 1

    def set_special_names(self, names: Iterable[str]) -> None:
        """Files below /proc/self whose opening is redirected (`OWN_PROC`)."""
        table = self._bpf["special_names"]
        for name in names:
            encoded = name.encode()
            if len(encoded) >= _C["NAME_SIZE"]:
                raise ValueError(f"{name!r} is too long")
            table[table.Key(encoded)] = table.Leaf(1)

    def add(self, tid: int, policy: int, owner: int, orphan: int, epoch: int = 0) -> None:
        """Intercept this task and all that it will start. KernelError when the map is full."""
        self.maps.add(tid, policy, owner, orphan, epoch)

    def remove(self, tid: int) -> None:
        """Leave this task alone (its descendants are not touched)."""
        table = self._bpf["tasks"]
        table.pop(table.Key(tid), None)

    def tasks(self) -> dict[int, tuple[int, int, int, int]]:
        """Policy, owner, orphan policy and epoch of each intercepted task, by its PID."""
        return {
            key.value: (leaf.policy, leaf.owner, leaf.orphan, leaf.epoch)
            for key, leaf in self._bpf["tasks"].items()
        }

    def set_local(self, tgid: int, fd: int, local: bool) -> None:
        """Whether calls of process `tgid` on descriptor `fd` are native (`BY_FD`)."""
        table = self._bpf["local_fds"]
        key = table.Key(tgid, fd)
        if local:
            table[key] = table.Leaf(1)
        else:
            table.pop(key, None)
