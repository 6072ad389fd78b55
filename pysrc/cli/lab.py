"""mosix-lab: a cluster on this machine, for trying and for tests. The work is in `mosix.lab`."""

from __future__ import annotations

import sys
from typing import NoReturn

import click
import msgspec
from mosix.cli import columns
from mosix.cli.command import Group
from mosix.errors import LAUNCH_FAILED, MosixError
from mosix.lab import cgroups, cluster, enter, state, vm_enter

_NAME = click.option("--name", default=state.DEFAULT_NAME, show_default=True, help="Which lab.")
_JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
_NODE_MB, _MACHINE_MB = 4096, 1024


@click.group("mosix-lab", cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def lab() -> None:
    """A cluster on one machine: every node has its own network, processes, mounts, host name,
    IPC, clocks, memory and CPU limits, configuration, /tmp and mosd; with --vm its own kernel."""


@lab.command()
@_NAME
@click.option("--nodes", default=3, show_default=True, help="How many nodes: n1, n2, …")
@click.option(
    "--memory-mb",
    type=int,
    help=f"Memory of a node. [default: {_NODE_MB}; with --vm {_MACHINE_MB}]",
)
@click.option("--cpus", type=float, help="CPU quota of a node, in processors. [default: none]")
@click.option("--mosd/--no-mosd", default=True, help="Start mosd in every node.")
@click.option(
    "--config/--no-config",
    default=True,
    help="Write /etc/mosix in every node. Without, there is none, and mosd is not started.",
)
@click.option(
    "--balance", is_flag=True, help="Let processes move by themselves. [default: only if ordered]"
)
@click.option("--vm", is_flag=True, help="Nodes are virtual machines with stock Debian kernels.")
@click.option(
    "--kernel",
    "kernels",
    default="6.1,6.12",
    show_default=True,
    help="With --vm: kernels of n1, n2, … in turn.",
)
@click.option("--module", is_flag=True, help="With --vm: load mosix.ko, for the kernel tier.")
def up(
    *,
    name: str,
    nodes: int,
    memory_mb: int | None,
    cpus: float | None,
    mosd: bool,
    config: bool,
    balance: bool,
    vm: bool,
    kernels: str,
    module: bool,
) -> None:
    """Bring a lab up; what a killed `up` left behind is cleaned first."""
    memory_mb = memory_mb or (_MACHINE_MB if vm else _NODE_MB)
    limits = cgroups.Limits(memory_bytes=memory_mb << 20, cpus=cpus)
    command = cluster.default_mosd(balance=balance) if mosd and config else []
    series = kernels.split(",") if vm else []
    made = cluster.up(
        name, nodes, limits, command, configured=config, kernels=series, module=module
    )
    _table(made)


@lab.command()
@_NAME
@click.option("--all", "every", is_flag=True, help="All labs.")
def down(name: str, every: bool) -> None:
    """Remove a lab and every trace of it, in whatever state it is."""
    for each in cluster.names() if every else [name]:
        found = cluster.down(each)
        click.echo(f"lab {each!r} is down" if found else f"there is no lab {each!r}")


@lab.command()
@_NAME
@_JSON
def status(name: str, as_json: bool) -> None:
    """Nodes of a lab."""
    cluster.require_root()
    running = state.load_running(name)
    if as_json:
        click.echo(msgspec.json.encode(cluster.status(running)))
    else:
        _table(running)


@lab.command(name="list")
def list_labs() -> None:
    """Names of all labs, one a line."""
    for each in cluster.names():
        click.echo(each)


@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_NAME
@click.option("--user", help="Name or number. [default: root]")
@click.option("--cwd", help="Directory. [default: this one if the node has it, or else /node]")
@click.option("--setsid", is_flag=True, help="In a session of its own on standard input.")
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    *,
    name: str,
    user: str | None,
    cwd: str | None,
    setsid: bool,
    node: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in NODE: same terminal, signals, job control and exit status as without
    mosix-lab; 125 if it could not be started, 126 and 127 as env(1)."""
    try:
        cluster.require_root()
        running = state.load_running(name)
        where = running.node(node)
        _enter(running, where, list(command), user=user, directory=cwd, session=setsid)
    except MosixError as error:
        click.echo(f"mosix-lab: {error.line()}", err=True)
        sys.exit(LAUNCH_FAILED)


@lab.command()
@_NAME
@click.option("--user", help="Name or number. [default: root]")
@click.argument("node")
def shell(name: str, user: str | None, node: str) -> None:
    """A shell in NODE."""
    cluster.require_root()
    running = state.load_running(name)
    _enter(running, running.node(node), ["/bin/bash", "-i"], user=user)


def _enter(
    running: state.Lab,
    node: state.Node,
    command: list[str],
    *,
    user: str | None,
    directory: str | None = None,
    session: bool = False,
) -> NoReturn:
    if node.machine is not None:
        vm_enter.run(running, node, command, user=user, directory=directory)
    enter.run(running, node, command, user=user, directory=directory, session=session)


@lab.command()
@_NAME
@click.argument("node")
@click.argument("state_", metavar="up|down", type=click.Choice(["up", "down"]))
def link(name: str, node: str, state_: str) -> None:
    """Plug or unplug the network cable of NODE."""
    cluster.require_root()
    running = state.load_running(name)
    cluster.set_link(running, running.node(node), state_ == "up")


@lab.command()
@_NAME
@click.argument("node")
@click.argument("order", type=click.Choice(["start", "stop", "kill"]))
@click.option("--option", "options", multiple=True, help="One more option for mosd (start).")
def mosd(name: str, node: str, order: str, options: tuple[str, ...]) -> None:
    """Start, stop or kill the mosd of NODE, and wait until that is done."""
    cluster.require_root()
    running = state.load_running(name)
    cluster.order_mosd(running, running.node(node), order, options)


def _table(running: state.Lab) -> None:
    click.echo(f"lab {running.name}")
    rows = [
        (
            node.name,
            node.ip,
            str(node.init_pid) if node.alive else "dead",
            "up" if node.link_up else "down",
            f"{node.memory_bytes >> 20}/{node.memory_limit_bytes >> 20} MB",
            f"{node.cpu_s:.1f} s",
            str(node.processes),
            f"+{node.monotonic_ahead_s} s",
            node.kernel or "host's",
            node.mosd,
            node.tier or "-",
        )
        for node in cluster.status(running)
    ]
    header = (
        "NODE",
        "ADDRESS",
        "INIT",
        "LINK",
        "MEMORY",
        "CPU",
        "PROCS",
        "CLOCK",
        "KERNEL",
        "MOSD",
        "TIER",
    )
    columns.show(header, rows, ("INIT", "MEMORY", "CPU", "PROCS", "CLOCK"))


def main() -> None:
    lab(prog_name="mosix-lab")


if __name__ == "__main__":
    main()
