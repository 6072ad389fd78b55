"""A lab's network: one bridge in a network namespace of its own, one veth pair per node.

Called by `cluster`. The host's interfaces, routes and sysctls are never touched: everything is
made inside the switch's namespace and pushed from there into the nodes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mosix.lab import kernel

if TYPE_CHECKING:
    from pyroute2 import IPRoute

BRIDGE = "br0"
#: a second one, for the commands of `mosix-lab run` in virtual machines
CONTROL_BRIDGE = "br1"


def _route() -> IPRoute:
    # Imported here: it takes longer than all the rest of `mosix-lab run`.
    from pyroute2 import IPRoute  # noqa: PLC0415

    return IPRoute()


@contextlib.contextmanager
def inside(pid: int) -> Iterator[None]:
    """Be in the network namespace of `pid` for a while."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(other, kernel.CLONE_NEWNET)
        finally:
            os.close(other)
        try:
            yield
        finally:
            kernel.setns(own, kernel.CLONE_NEWNET)
    finally:
        os.close(own)


def _set_up(route: IPRoute, name: str, **attributes: int) -> None:
    index = route.link_lookup(ifname=name)[0]
    route.link("set", index=index, state="up", **attributes)


def make_switch() -> None:
    """The bridge, in the caller's (new) network namespace."""
    with _route() as route:
        _set_up(route, "lo")
        route.link("add", ifname=BRIDGE, kind="bridge")
        _set_up(route, BRIDGE)


def make_control_switch(address: str, prefix: int = 24) -> None:
    """The bridge of virtual machines' agents, with the host at `address` on it."""
    with _route() as route:
        route.link("add", ifname=CONTROL_BRIDGE, kind="bridge")
        index = route.link_lookup(ifname=CONTROL_BRIDGE)[0]
        route.addr("add", index=index, address=address, prefixlen=prefix)
        _set_up(route, CONTROL_BRIDGE)


def plug_tap(name: str, bridge: str) -> None:
    """A tap device that QEMU, in this network namespace, may use as its end of a cable."""
    with _route() as route:
        route.link("add", ifname=name, kind="tuntap", mode="tap")
        _set_up(route, name, master=route.link_lookup(ifname=bridge)[0])


def connect(pid: int, name: str, address: str, prefix: int = 24) -> None:
    """Wire the node whose init is `pid` to the switch; the caller is in the switch's namespace."""
    with _route() as route:
        peer = {"ifname": "eth0", "net_ns_pid": pid}
        route.link("add", ifname=name, kind="veth", peer=peer)
        _set_up(route, name, master=route.link_lookup(ifname=BRIDGE)[0])
    with inside(pid), _route() as route:
        _set_up(route, "lo")
        index = route.link_lookup(ifname="eth0")[0]
        route.addr("add", index=index, address=address, prefixlen=prefix)
        _set_up(route, "eth0")


def set_link(switch: int, name: str, up: bool) -> None:
    """Plug (or unplug) the cable of node `name`; `switch`: a process in the switch's namespace."""
    with inside(switch), _route() as route:
        index = route.link_lookup(ifname=name)[0]
        route.link("set", index=index, state="up" if up else "down")


def link_is_up(switch: int, name: str) -> bool:
    with inside(switch), _route() as route:
        index = route.link_lookup(ifname=name)[0]
        return bool(route.get_links(index)[0]["flags"] & 1)  # IFF_UP
