"""Bring a lab up, take it down, say how it is: what `mosix-lab` and the tests call.

`up` moves its caller into the lab's cgroups and network, so it is for a process that does nothing
else (the command). Order of `up`: lock · cgroups, joined · switch · per node: cgroup, namespaces,
PID 1, cable · mosds · ``complete``. Whatever moment it is killed at, `down` finds everything by
the names of the cgroups. Never touches what does not belong to the lab.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
from mosix.errors import KernelError, MosixError, PermissionDeniedError, UsageError
from mosix.lab import cgroups, kernel, network, state, vm_enter, vm_nodes
from mosix.lab.kernels import Kernel
from mosix.lab.rootfs import Files, enter_root
from mosix.lab.state import Lab, Node, Process

#: where mosd listens, inside a node
CONTROL = "/run/mosix/control"
_MOSD_DEADLINE_S = 30.0
_ORDER_DEADLINE_S = 45.0
_POLL_S = 0.02
_TIER = re.compile(r"mosd\.tier: tier (\w+)")


class NodeStatus(msgspec.Struct, frozen=True):
    """One row of `mosix-lab status`."""

    name: str
    ip: str
    alive: bool
    init_pid: int
    #: "running", "none", or how it ended
    mosd: str
    #: how its mosd intercepts calls: "portable", "kernel" or, when none runs, ""
    tier: str
    link_up: bool
    memory_bytes: int
    memory_limit_bytes: int
    cpu_s: float
    processes: int
    monotonic_ahead_s: int
    boottime_ahead_s: int
    #: release of a virtual machine's kernel; empty: the host's
    kernel: str = ""


def require_root() -> None:
    if os.geteuid() != 0:
        raise PermissionDeniedError("a lab needs root", hint="sudo mosix-lab …")


def default_mosd(*, balance: bool = False) -> list[str]:
    # Nodes share a kernel: what each of them loads into it would be paid for by all.
    command = [sys.executable, "-m", "mosix.cli.mosd", "--accounting", "proc"]
    return command if balance else [*command, "--no-balance"]


def up(
    name: str,
    nodes: int,
    limits: cgroups.Limits,
    mosd: list[str],
    *,
    configured: bool = True,
    kernels: Sequence[str] = (),
    module: bool = False,
) -> Lab:
    """Bring lab `name` up; MosixError says why not, and then nothing is left of it.

    `mosd` empty: none is started. Not `configured`: nodes have no /etc/mosix. `kernels`: the nodes
    are virtual machines with these kernels ("6.1"), in turn, with mosix.ko if `module`. The caller
    ends up in the lab's cgroups and should exit soon.
    """
    require_root()
    machines: list[Kernel] = []
    if kernels:
        vm_nodes.require_qemu()
        machines = vm_nodes.kernels_of(list(kernels), nodes)
    if not 1 <= nodes <= state.MAX_NODES:
        raise UsageError(f"a lab has 1 to {state.MAX_NODES} nodes, not {nodes}")
    with state.locked(name) as where:
        old = state.load(name)
        if old is not None and old.complete and any(node.init.alive() for node in old.nodes):
            raise MosixError(f"lab {name!r} is up already", hint=f"mosix-lab down --name {name}")
        _clean(name)
        lab = Lab(name, _free_subnet(), mosd)
        cgroups.join(cgroups.create(name, "lab"))
        lab.save()
        try:
            _build(lab, nodes, limits, configured, machines, module=module)
            if mosd:
                _wait_for_mosds(lab)
        except (MosixError, OSError) as error:
            cgroups.leave()
            _clean(name)
            shutil.rmtree(where, ignore_errors=True)
            if isinstance(error, OSError):
                raise KernelError(
                    f"cannot build lab {name!r}: {error}",
                    hint="it needs namespaces (with time), overlayfs, veth, bridge",
                ) from error
            raise
        lab.complete = True
        lab.save()
    return lab


def down(name: str) -> bool:
    """Remove every trace of lab `name`; False if there was none. MosixError if something stays."""
    require_root()
    where = state.directory(name)
    if not where.exists() and name not in cgroups.existing():
        return False
    # First without the lock: an `up` that hangs holds it, and is itself in the lab's cgroups.
    cgroups.kill_all(name)
    with state.locked(name):
        _clean(name)
        shutil.rmtree(where)
    with contextlib.suppress(OSError):
        state.RUN.rmdir()
    return True


def names() -> list[str]:
    """Labs there are, and labs something is left of."""
    return sorted({*state.labs(), *cgroups.existing()})


def status(lab: Lab) -> list[NodeStatus]:
    return [_node_status(lab, node) for node in lab.nodes]


def order_mosd(
    lab: Lab, node: Node, order: str, options: Sequence[str] = (), deadline_s: float | None = None
) -> None:
    """Start (with more options), stop (it brings its jobs home) or kill a node's mosd, and wait
    until that is done."""
    if deadline_s is None:  # in a machine it may have an eBPF program to compile
        deadline_s = _ORDER_DEADLINE_S if node.machine is None else vm_nodes.READY_S
    before = state.read_mosd(lab.name, node.name)
    wanted = order == "start"
    if bool(before.pid) == wanted:
        return
    if wanted and not lab.mosd:
        raise MosixError(f"lab {lab.name!r} was brought up without mosd")
    if wanted:
        state.write_json(lab.directory / node.name / "mosd-options.json", list(options))
    numbers = {"start": signal.SIGUSR1, "stop": signal.SIGHUP, "kill": signal.SIGUSR2}
    _order_init(lab, node, numbers[order])
    if wanted:
        _wait_for_mosd(lab, node, before.starts + 1, time.monotonic() + deadline_s)
        return
    end = time.monotonic() + deadline_s
    while state.read_mosd(lab.name, node.name).pid:
        if time.monotonic() > end:
            raise MosixError(f"mosd of {node.name} does not end within {deadline_s:.0f} s")
        time.sleep(_POLL_S)


def set_link(lab: Lab, node: Node, plugged: bool) -> None:
    if lab.switch is None or not lab.switch.alive():
        raise MosixError(f"the switch of lab {lab.name!r} is dead", hint="mosix-lab down, then up")
    network.set_link(lab.switch.pid, node.name, plugged)


def _order_init(lab: Lab, node: Node, number: int) -> None:
    if node.machine is not None:
        vm_enter.order_init(lab, node, number)
        return
    try:
        fd = node.init.open()
    except ProcessLookupError as error:
        raise MosixError(f"node {node.name} is dead", hint="mosix-lab down, then up") from error
    try:
        signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)


def _clean(name: str) -> None:
    """Processes, cgroups and files; the directory stays, it is the lock."""
    cgroups.kill_all(name)
    cgroups.remove(name)
    for entry in state.directory(name).iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _free_subnet() -> int:
    """Labs cannot see each other's addresses; that they differ is for the reader of a log."""
    taken = {lab.subnet for name in state.labs() if (lab := state.load(name)) is not None}
    free = set(range(256)) - taken
    return min(free) if free else 0


def clock_offsets(number: int) -> tuple[int, int]:
    """Seconds CLOCK_MONOTONIC and CLOCK_BOOTTIME of node `number` are ahead: neither rising nor
    falling with the number, so that moves go to clocks that are behind as well as ahead."""
    monotonic = (number * 7 % 5 + 1) * 10_000 + number
    return monotonic, monotonic + 500 * number


def _build(
    lab: Lab,
    nodes: int,
    limits: cgroups.Limits,
    configured: bool,
    machines: list[Kernel],
    *,
    module: bool,
) -> None:
    kernel.unshare(kernel.CLONE_NEWNET)
    network.make_switch()
    lab.switch = _hold_switch(lab)
    lab.save()
    ips = tuple(f"10.77.{lab.subnet}.{number}" for number in range(1, nodes + 1))
    secret = secrets.token_hex(16)
    if machines:
        vm_nodes.make_control_network(lab)
    go: list[int] = []
    for number, ip in enumerate(ips, 1):
        files = Files(f"n{number}", ips, ip, secret, configured)
        if machines:
            machine = vm_nodes.start(
                lab,
                files,
                machines[number - 1],
                memory_mb=limits.memory_bytes >> 20,
                environment=_node_environment(),
                module=module,
            )
            lab.nodes.append(machine)
            lab.save()
            continue
        node, go_fd = _start_node(lab, number, files, limits)
        go.append(go_fd)
        network.connect(node.init.pid, node.name, ip)
        lab.nodes.append(node)
        lab.save()
    for fd in go:
        os.write(fd, b"m" if lab.mosd else b"-")
        os.close(fd)
    vm_nodes.wait(lab)


def _hold_switch(lab: Lab) -> Process:
    """A process that keeps the switch's network namespace."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _silence()
            os.execv("/bin/sleep", [f"lab-switch-{lab.name}", "infinity"])
        finally:
            os._exit(1)
    return Process.of(pid)


def _silence() -> None:
    """Standard descriptors to /dev/null: whoever reads our output must see its end."""
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def _start_node(lab: Lab, number: int, files: Files, limits: cgroups.Limits) -> tuple[Node, int]:
    """A node's PID 1, and the pipe on which it waits for its network to be there."""
    (lab.directory / files.hostname).mkdir()
    groups = cgroups.create(lab.name, files.hostname, limits)
    offsets = clock_offsets(number)
    go_read, go_write = os.pipe()
    told_read, told_write = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        os.close(told_read)
        os.close(go_write)
        try:
            _launch(lab, files, groups, offsets, go_read=go_read, told=told_write)
        except OSError as error:
            os.write(told_write, f"error {error}".encode())
        finally:
            os._exit(1)
    os.close(told_write)
    os.close(go_read)
    try:
        os.waitpid(launcher, 0)
        # PID, then nothing more when the exec has closed the pipe, or an error.
        told = b"".join(iter(lambda: os.read(told_read, 4096), b"")).decode()
    finally:
        os.close(told_read)
    first, _, failure = told.partition("\n")
    if failure or not first.isdecimal():
        os.close(go_write)
        why = (failure or first).removeprefix("error ") or "it died"
        raise KernelError(f"cannot make node {files.hostname}: {why}")
    return Node(number, files.own, Process.of(int(first)), *offsets), go_write


def _launch(
    lab: Lab, files: Files, groups: list[Path], offsets: tuple[int, int], *, go_read: int, told: int
) -> NoReturn:
    """In the launcher: new namespaces, then a child that becomes PID 1."""
    cgroups.join(groups)
    kernel.unshare(kernel.NODE_NAMESPACES)
    # Must be written before the first process enters the time namespace.
    Path("/proc/self/timens_offsets").write_text(
        f"monotonic {offsets[0]} 0\nboottime {offsets[1]} 0\n"
    )
    pid = os.fork()
    if pid != 0:
        os.write(told, f"{pid}\n".encode())
        os._exit(0)
    try:
        os.setsid()
        enter_root(lab.directory / files.hostname, files)
        _silence()
        os.set_inheritable(go_read, True)
        command = [sys.executable, "-m", "mosix.lab.init", files.hostname, str(go_read), "--"]
        os.execve(sys.executable, [*command, *lab.mosd], _node_environment())
    except OSError as error:
        os.write(told, f"error {error}".encode())
    finally:
        os._exit(1)


def _node_environment() -> dict[str, str]:
    """What mosd is started with: little, as by a service manager."""
    path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LANG", "LC_ALL")
        or name.startswith("MOSIX_")
    }
    return {"PATH": f"{path}:/sbin:/bin", "HOME": "/root", **kept}


def _wait_for_mosds(lab: Lab) -> None:
    for node in lab.nodes:
        deadline_s = _MOSD_DEADLINE_S if node.machine is None else vm_nodes.READY_S
        _wait_for_mosd(lab, node, 1, time.monotonic() + deadline_s)


def _wait_for_mosd(lab: Lab, node: Node, starts: int, end: float) -> None:
    """Until mosd answers on its control socket."""
    while True:
        mosd = state.read_mosd(lab.name, node.name)
        ended = mosd.starts >= starts and not mosd.pid
        if ended or time.monotonic() > end or not node.init.alive():
            log = lab.directory / node.name / "mosd.log"
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            what = "ended at once" if ended else "does not listen"
            raise MosixError(
                f"mosd of {node.name} {what}: {lines[-1] if lines else 'it said nothing'}"
            )
        if mosd.pid and mosd.starts >= starts and _listens(lab, node):
            return
        time.sleep(_POLL_S)


def _listens(lab: Lab, node: Node) -> bool:
    """Whether something accepts connections on the node's control socket, seen from outside."""
    if node.machine is not None:
        return vm_enter.listens(lab, node, CONTROL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        try:
            control.connect(f"/proc/{node.init.pid}/root{CONTROL}")
        except OSError:
            return False
    return True


def _node_status(lab: Lab, node: Node) -> NodeStatus:
    alive = node.init.alive()
    mosd = state.read_mosd(lab.name, node.name)
    usage = cgroups.usage(lab.name, node.name)
    switch = lab.switch
    plugged = alive and switch is not None and switch.alive()
    return NodeStatus(
        name=node.name,
        ip=node.ip,
        alive=alive,
        init_pid=node.init.pid,
        mosd=_mosd_word(mosd, alive),
        tier=_tier(lab, node) if mosd.pid and alive else "",
        link_up=plugged and switch is not None and network.link_is_up(switch.pid, node.name),
        memory_bytes=usage.memory_bytes,
        memory_limit_bytes=usage.memory_limit_bytes,
        cpu_s=round(usage.cpu_s, 3),
        processes=usage.processes,
        monotonic_ahead_s=node.monotonic_s,
        boottime_ahead_s=node.boottime_s,
        kernel=node.machine.kernel if node.machine else "",
    )


def _tier(lab: Lab, node: Node) -> str:
    """What mosd has said of it last; to ask a machine's would take seconds."""
    log = lab.directory / node.name / "mosd.log"
    said = _TIER.findall(log.read_text(errors="replace")) if log.exists() else []
    return str(said[-1]) if said else ""


def _mosd_word(mosd: state.Mosd, alive: bool) -> str:
    if mosd.pid and alive:
        return "running"
    if mosd.status is None:
        return "none"
    code = os.waitstatus_to_exitcode(mosd.status)
    return f"exited {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
