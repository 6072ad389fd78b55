"""Nodes of a lab that are virtual machines: started for `cluster`, on the lab's own switch.

Called inside the lab's network namespace and cgroups. A machine's directory
(/run/mosix-lab/NAME/nN) is shared with it, as a namespace node's is: mosd's log and state lie
there. What the machine must not touch (its console, its status) lies beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from mosix.errors import KernelError
from mosix.lab import cgroups, network, vm
from mosix.lab.kernels import Kernel, kernel
from mosix.lab.programs import built_module
from mosix.lab.rootfs import Files
from mosix.lab.state import Lab, Machine, Node, Process
from mosix.lab.vm_init import Guest

#: booting takes 3 s on an idle host; hosts are not always idle
READY_S = 240.0


def kernels_of(series: list[str], nodes: int) -> list[Kernel]:
    """One kernel for each node, the given ones in turn."""
    found = {each: kernel(each) for each in series}
    return [found[series[number % len(series)]] for number in range(nodes)]


def host_address(lab: Lab) -> str:
    return f"10.78.{lab.subnet}.254"


def make_control_network(lab: Lab) -> None:
    network.make_control_switch(host_address(lab))


def start(
    lab: Lab,
    files: Files,
    made: Kernel,
    *,
    memory_mb: int,
    environment: dict[str, str],
    module: bool = False,
) -> Node:
    """Start the machine of the next node, with mosix.ko if `module`; `wait` says when it is up."""
    number = len(lab.nodes) + 1
    where = lab.directory / files.hostname
    where.mkdir()
    control = f"10.78.{lab.subnet}.{number}"
    loaded = str(built_module(made)) if module else ""
    guest = Guest(files, lab.mosd, control, host_address(lab), loaded)
    secret = where / "guest.json"
    secret.touch(mode=0o600)
    secret.write_bytes(msgspec.json.encode(guest))
    first = [_python(environment), "-m", "mosix.lab.vm_init"]
    vm.prepare(where, made, first, environment)
    devices = []
    for kind, name, address in ((0, files.hostname, files.own), (1, f"c{number}", control)):
        network.plug_tap(name, network.CONTROL_BRIDGE if kind else network.BRIDGE)
        devices.append(vm.Device(name, f"52:54:00:00:{kind:02x}:{number:02x}", f"{address}/24"))
    line = vm.command(where, made, vm.acceleration(made), memory_mb, devices)
    process = _launch(lab, files.hostname, line)
    return Node(number, files.own, process, 0, 0, Machine(made.release, control))


def _python(environment: dict[str, str]) -> str:
    """The interpreter of PID 1: the first of the PATH that a node is given."""
    return f"{environment['PATH'].split(':')[0]}/python3"


def _launch(lab: Lab, name: str, line: list[str]) -> Process:
    groups = cgroups.create(lab.name, name, cgroups.Limits(memory_bytes=1 << 40))
    said = lab.directory / f"{name}.qemu"
    pid = os.fork()
    if pid == 0:
        try:
            cgroups.join(groups)
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            log = os.open(said, os.O_WRONLY | os.O_CREAT, 0o644)
            for target, fd in ((0, null), (1, null), (2, log)):
                os.dup2(fd, target)
            os.execvp(line[0], line)
        except OSError as error:
            said.write_text(f"{line[0]}: {error.strerror}\n")
        finally:
            os._exit(1)
    return Process.of(pid)


def wait(lab: Lab) -> None:
    """Until every machine of the lab is up. KernelError or MachineLostError with its last words."""
    for node in lab.nodes:
        if node.machine is not None:
            watch(lab, node).wait_until_ready(READY_S)


def watch(lab: Lab, node: Node) -> vm.Watch:
    """The machine of `node`, seen from outside."""
    return vm.Watch(lab.directory / node.name, node.init)


def require_qemu() -> None:
    """KernelError unless machines can be started here."""
    paths = os.environ.get("PATH", "").split(":")
    if not any((Path(path) / vm.QEMU).exists() for path in paths):
        raise KernelError(f"{vm.QEMU} is not installed", hint="scripts/setup installs it")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise KernelError("no /dev/net/tun, which machines need as their network cable",
                          hint="modprobe tun")  # fmt: skip
