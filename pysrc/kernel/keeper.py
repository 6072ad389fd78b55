"""The keeper of the kernel tier: a process that holds the eBPF program and feeds its maps.

Started by mosd (`mosix.node.tier`) as ``python -m mosix.kernel.keeper SOCKET``, and not part of it:
bcc brings a compiler along, and jobs and guests must stay intercepted when mosd dies. The next mosd
finds the keeper at its socket, which is there once the program decides. It takes orders from one
mosd at a time, and ends some time after that is gone if nobody owns tasks any more. Should it be
killed, its mosd, which has been given copies of all its descriptors, starts another that takes over
with those: nothing is compiled then and nothing has been missed. Without a mosd the module keeps
the program for those who own tasks, but none can be added. It never serves a call.
"""

from __future__ import annotations

import hashlib
import os
import select
import signal
import socket
import struct
import sys
from pathlib import Path

import msgspec
from mosix.errors import KernelError, MosixError, ProtocolError
from mosix.kernel import policies
from mosix.kernel.device import Device, addresses
from mosix.kernel.headers import KERNEL
from mosix.kernel.intercept import Intercept
from mosix.kernel.maps import Maps
from mosix.wire.messages import decode, encode

#: How long it waits for a mosd before it looks whether it is needed at all (seconds): one that is
#: started again need not have the program compiled again.
_PATIENCE_S = 30.0
_MAX_ORDER_BYTES = 4096
_UCRED = struct.Struct("3i")
#: What the program and the module say to each other, and what this package says to both.
_SOURCES = ("bpf/intercept.bpf.c", "bpf/intercept.h", "module/mosix_uapi.h")


class Greet(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """mosd → keeper, first. `version`: as `version()` says."""

    version: str


class Add(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """mosd → keeper: intercept this task and all that it will start."""

    tid: int
    policy: int
    owner: int
    orphan: int


class Count(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """mosd → keeper: what the program has decided so far."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """keeper → mosd: the answer to each. `unhooked`: to `Greet`, the numbers of calls of guests
    that this kernel does not have, and with it go the descriptors of `take_over`; `counts`: to
    `Count`."""

    error: str = ""
    unhooked: tuple[int, ...] = ()
    counts: dict[str, int] = {}


Order = Greet | Add | Count


def version() -> str:
    """Of all that a keeper and a mosd must agree about."""
    content = b"".join((KERNEL / name).read_bytes() for name in _SOURCES)
    content += repr((policies.home_actions(), policies.guest_actions())).encode()
    return hashlib.sha256(content).hexdigest()[:16]


class Keeper:
    """The program, attached to the module. `attached`: what else must stay open."""

    def __init__(
        self, device: Device, maps: Maps, attached: tuple[int, ...], unhooked: tuple[int, ...]
    ) -> None:
        self.device = device
        self.unhooked = unhooked
        self._maps = maps
        #: for whoever may have to start another one
        self.held = (device.fd, *maps.fds, *attached)

    def obey(self, order: Order) -> Done:
        try:
            match order:
                case Greet():
                    if order.version != version():
                        return Done(error="the keeper of the kernel tier is of another version")
                    return Done(unhooked=self.unhooked)
                case Add():
                    self._maps.add(order.tid, order.policy, order.owner, order.orphan)
                case Count():
                    return Done(counts=self._maps.counts())
        except MosixError as error:
            return Done(error=error.line())
        return Done()

    def serve(self, listener: socket.socket) -> None:
        """Until nobody needs it any more."""
        while True:
            if not select.select([listener], [], [], _PATIENCE_S)[0]:
                if not self.device.counters()["owners"]:
                    return
                continue
            sock, _ = listener.accept()
            with sock:
                _, uid, _ = _UCRED.unpack(
                    sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
                )
                if uid == 0:
                    self._serve(sock)

    def _serve(self, sock: socket.socket) -> None:
        """One mosd, until it is gone."""
        try:
            while data := sock.recv(_MAX_ORDER_BYTES):
                order: Order = decode(data, Order)
                done = self.obey(order)
                greeted = isinstance(order, Greet) and not done.error
                socket.send_fds(sock, [encode(done)], self.held if greeted else ())
        except (OSError, ProtocolError):
            return


def load(names: tuple[str, ...]) -> Keeper:
    """Compile the program, hook and let it decide. `names`: of the special files. KernelError: it
    cannot be."""
    device = Device.open()
    intercept = Intercept()
    for policy, actions in (
        (policies.HOME, policies.home_actions()),
        (policies.GUEST, policies.guest_actions()),
    ):
        intercept.set_actions(policy, actions)
    intercept.set_special_names(names)
    unhooked = _hook(intercept, device)
    try:
        intercept.decide(device)
    except OSError as error:
        raise KernelError(
            f"the module does not take the program: {os.strerror(error.errno or 0).lower()}",
            hint="what an earlier mosd intercepted may still be there",
        ) from error
    return Keeper(device, intercept.maps, intercept.attached, unhooked)


def _hook(intercept: Intercept, device: Device) -> tuple[int, ...]:
    """Numbers of the calls that the kernel does not have."""
    where = addresses() or None
    groups = (policies.HOME_HOOKS, policies.GUEST_HOOKS)
    missing = [
        calls[name]
        for group, calls in zip(groups, policies.hooks(), strict=True)
        for name in intercept.attach(device, calls, group=group, where=where)
    ]
    if policies.EVERY_KERNELS.intersection(missing):
        raise KernelError("the kernel does not tell where its system calls are")
    return tuple(missing)


def take_over(held: tuple[int, ...], unhooked: tuple[int, ...]) -> Keeper:
    """A keeper in place of one that was killed, with its `held` descriptors."""
    device, tasks, counts, *attached = held
    return Keeper(Device(device), Maps(tasks, counts), tuple(attached), unhooked)


#: Precedes the descriptors and the numbers of unhooked calls, both with commas.
OVER = "--take-over"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",") if each)


def main() -> None:
    """argv: the socket, and either the names of the special files or what `OVER` says. Why it
    cannot be is the last line of standard error."""
    path, *names = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()
    try:
        if names[0] == OVER:
            keeper = take_over(_numbers(names[1]), _numbers(names[2]))
        else:
            keeper = load(tuple(names))
    except MosixError as error:
        sys.exit(error.line())
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        Path(path).unlink(missing_ok=True)
        os.umask(0o077)
        listener.bind(path)
        listener.listen(1)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (1, 2):  # whoever reads ours may be gone
            os.dup2(null, fd)
        os.close(null)
        keeper.serve(listener)


if __name__ == "__main__":
    main()
