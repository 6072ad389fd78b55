"""Giving up root's rights for good in a process just forked by the spawner.

Only the spawner's children call this, before any other code of theirs, and mosd `forbid_dumps`.
`capset` and the bounding set have no wrapper in Python's library: ctypes, once per process, never
on a hot path.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_CAPSET = 126  # x86-64
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_LIFTED = (
    resource.RLIMIT_CPU,
    resource.RLIMIT_DATA,
    resource.RLIMIT_AS,
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_SIGPENDING,
)
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Capabilities:
    """Sets as 64-bit masks. The default is none at all."""

    effective: int = 0
    permitted: int = 0
    inheritable: int = 0
    bounding: int = 0


@dataclass(frozen=True)
class Credentials:
    """Who a process is, from /proc/PID/status."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    capabilities: Capabilities


def credentials_of(pid: int) -> Credentials:
    """OSError (ENOENT, ESRCH) when there is no such process."""
    fields: dict[str, list[str]] = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = value.split()
    return Credentials(
        tuple(map(int, fields["Uid"])),
        tuple(map(int, fields["Gid"])),
        tuple(map(int, fields.get("Groups", []))),
        Capabilities(
            effective=int(fields["CapEff"][0], 16),
            permitted=int(fields["CapPrm"][0], 16),
            inheritable=int(fields["CapInh"][0], 16),
            bounding=int(fields["CapBnd"][0], 16),
        ),
    )


def forbid_dumps() -> None:
    """Nobody without CAP_SYS_PTRACE gets at the memory of this process from now on, and no core
    file or handler of cores: it is about to hold the secret. What it executes is not concerned."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def lift_limits() -> None:
    """Takes away the limits that a guest would inherit and that a job of its own home may not
    have. What is not allowed (no CAP_SYS_RESOURCE) stays: `mosix.remote.room` compares it.

    Soft ones too, where it is these that a user namespace is made with; not that of the stack,
    which decides how the address space is laid out."""
    for which in _LIFTED:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    soft, _ = resource.getrlimit(resource.RLIMIT_STACK)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_STACK, (soft, resource.RLIM_INFINITY))


def become(uid: int, gid: int, groups: Sequence[int], keep: Capabilities) -> None:
    """Irrevocably: ids, then capabilities. `keep` only matters for uid 0: any other uid ends
    with none. OSError: the caller must not go on."""
    bounding = keep.bounding if uid == 0 else 0
    _drop_bounding(bounding)
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))
    _capset(keep if uid == 0 else Capabilities())


@functools.cache
def own_bounding() -> int:
    """This process's bounding set as a mask; asked for once, before the first fork."""
    mask = 0
    for capability in range(64):
        present = _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)
        if present < 0:  # EINVAL: behind the kernel's last one
            break
        mask |= present << capability
    return mask


def _drop_bounding(keep: int) -> None:
    drop = own_bounding() & ~keep
    while drop:
        capability = drop.bit_length() - 1
        _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0))
        drop ^= 1 << capability


def _capset(sets: Capabilities) -> None:
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)()
    for word in range(2):
        shift = 32 * word
        data[word].effective = sets.effective >> shift & 0xFFFFFFFF
        data[word].permitted = sets.permitted >> shift & 0xFFFFFFFF
        data[word].inheritable = sets.inheritable >> shift & 0xFFFFFFFF
    _check(_libc.syscall(_SYS_CAPSET, ctypes.byref(header), data))


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
