"""The redirector of nodes whose kernel has mosix.ko: the module parks the guest's calls.

Made by `mosix.remote.guest` instead of `NotifyRedirector`, whose loop and marshaller it shares:
only where calls come from and how they are answered differs. The guest's filter is then a second
wall (`mosix.syscalls.filter.wall`): what the module cannot take stops there for the tracer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mosix.remote.notify import NotifyRedirector


@dataclass(frozen=True)
class Module:
    """What a remote was given: the file of /dev/mosix, the numbers of calls that are not hooked,
    and how to have a process's calls redirected (MoveFailedError)."""

    fd: int
    unhooked: frozenset[int]
    intercept: Callable[[int], Awaitable[None]]


class ModuleRedirector(NotifyRedirector):
    """As its base; `device` is the file that the guest's calls come through. The guest must be
    intercepted for it before it may run."""

    def __init__(self, device: int, *args: Any, **options: Any) -> None:
        super().__init__(device, *args, device=True, **options)
