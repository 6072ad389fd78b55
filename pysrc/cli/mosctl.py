"""mosctl: ask about nodes, and about what MOSIX does with system calls; what root may order besides
is in `mosix.cli.administration`."""

from __future__ import annotations

import contextlib
import os
import time

import click
import msgspec
from mosix.cli import administration, calls, columns, command
from mosix.cli.command import Group, paths_for, run_dir_option, version_option
from mosix.config.paths import Paths
from mosix.errors import NodeDownError, NoSuchProcessError, UnknownNodeError, UsageError
from mosix.node import requests
from mosix.node.client import ask
from mosix.node.requests import NodeStatus
from mosix.wire.messages import NodeLoad

_node_argument = click.argument("node", metavar="[NODE|IP|HOST]", default="")
_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")

#: How guests' system calls are caught there.
TIERS = {
    "portable": "caught with seccomp and ptrace, without a kernel module",
    "kernel": "judged by eBPF, redirected by mosix.ko",
}

#: Bits of `mosctl rstatus`: those of MOSIX that say something here.
UNKNOWN, CONFIGURED, UP = 0, 1, 2
OWNER_BITS = {"stay": 4, "lstay": 8, "block": 16, "drain": 16 | 8}


@click.group("mosctl", cls=Group, tells_statuses=True)
@version_option
def main() -> None:
    """Ask about nodes, which everybody may; root says what this node does for others."""


@main.command("whois")
@_node_argument
@_json_option
@run_dir_option
def whois(node: str, as_json: bool, run_dir: str | None) -> None:
    """Number, IP and host name of a node; of this one by default."""
    found = ask(paths_for(run_dir), requests.Whois(node=node), requests.NodeName)
    if as_json:
        _print_json(found)
        return
    click.echo(_name(found))


@main.command("whereami")
@click.argument("pid", required=False, type=command.pid)
@_json_option
@run_dir_option
def whereami(pid: int | None, as_json: bool, run_dir: str | None) -> None:
    """Where a process of a job runs: PID, or the one that calls this command.

    Outside of jobs it tells what this node is. In a job, programs should rather open
    /proc/self/whereami: see mosix(7)."""
    paths = paths_for(run_dir)
    row = _job_process(paths, [pid] if pid else [os.getppid(), os.getpid()])
    if row is None and pid:
        raise NoSuchProcessError(f"process {pid} is not part of a job", "mosps lists those of jobs")
    here = row is None or row.where in ("home", "here")
    place = "" if here or row is None else row.where
    if place == "moving":
        found = requests.NodeName(ip="", number=None, host="")
    else:
        found = ask(paths, requests.Whois(node=place), requests.NodeName)
    which = None if row is None else row.pid
    if as_json:
        where = "moving" if place == "moving" else found.ip
        values = {"pid": which, "where": where, "number": found.number}
        click.echo(msgspec.json.encode(values).decode())
    elif place == "moving":
        click.echo(f"process {which} is moving")
    elif row is None:
        click.echo(f"{_name(found)}: not in a job")
    else:
        home = " (its home)" if row.where == "home" else ""
        click.echo(f"{_name(found)}{home}: process {which}")


def _job_process(paths: Paths, pids: list[int]) -> requests.ProcessRow | None:
    """The first of `pids` that belongs to a job. A parent outside of our PID namespace is 0."""
    for pid in filter(None, pids):
        with contextlib.suppress(NoSuchProcessError):
            return ask(paths, requests.Processes(pid=pid), requests.ProcessList).rows[0]
    return None


def _name(found: requests.NodeName) -> str:
    number = f"node {found.number}" if found.number is not None else "no number"
    return f"{number}, {found.ip}, {found.host or 'no host name'}"


@main.command("status")
@_node_argument
@click.option("--wait", is_flag=True, help="Wait as long for a node that is known to be down.")
@_json_option
@run_dir_option
def status(node: str, wait: bool, as_json: bool, run_dir: str | None) -> None:
    """What a node is and what it does; this one by default.

    A node of which nothing was heard is down: it is given a second."""
    found = ask(paths_for(run_dir), requests.Status(node=node, wait=wait), NodeStatus)
    if as_json:
        _print_json(found)
        return
    _show_status(found)
    _show_known(found)
    _show_counters(found)


@main.command("localstatus")
@_json_option
@run_dir_option
def localstatus(as_json: bool, run_dir: str | None) -> None:
    """This node in detail: as status, with configuration, processes and guests."""
    found = ask(paths_for(run_dir), requests.LocalStatus(), requests.NodeDetails)
    if as_json:
        _print_json(found)
        return
    _show_status(found.status)
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
    stopping = ", stopping" if found.stopping else ""
    click.echo(f"  mosd     process {found.mosd_pid} since {since}{stopping}")
    click.echo(
        f"  CPU      {found.cpu_features} features, {found.xsave_size} bytes of state, "
        f"pages of {found.page_size} bytes"
    )
    click.echo(f"  files    {found.config_dir}: {found.nodes} nodes, {found.numbered} numbers")
    click.echo(f"  port     {found.port}/tcp, {found.port}/udp")
    places = ", ".join(f"{count} {place}" for place, count in found.processes.items())
    click.echo(f"  own      {places}")
    for home, count in sorted(found.guests.items()):
        click.echo(f"  guests   {count} of {home}")
    _show_counters(found.status)


@main.command("rstatus")
@_node_argument
@_json_option
@run_dir_option
def rstatus(node: str, as_json: bool, run_dir: str | None) -> None:
    """Status of a node as a number, for programs; of this one by default.

    The sum of 1 (the node is in mosix.map), 2 (it is up), 4 (stay), 8 (lstay) and 16 (block); a
    drained node says lstay and block. 0 is what nobody knows. A node that
    does not answer is no error here."""
    number = CONFIGURED
    try:
        found = ask(paths_for(run_dir), requests.Status(node=node), NodeStatus)
        number |= UP
        for word in found.owner:
            number |= OWNER_BITS.get(word, 0)
    except UnknownNodeError:
        number = UNKNOWN
    except NodeDownError:
        pass
    click.echo(msgspec.json.encode({"status": number}).decode() if as_json else str(number))


@main.command("syscalls")
@click.argument("names", metavar="[NAME]...", nargs=-1)
@_json_option
def syscalls(names: tuple[str, ...], as_json: bool) -> None:
    """What becomes of each system call while a process is away; needs no mosd.

    \b
    there       executed where the process is, at full speed
    home        executed at home in its name, while it stays where it is
    both        executed at home and where the process is
    waited      waited for where the process is
    counted     answered where it is, with what it used elsewhere added
    comes-home  the process comes home for it, and may leave again

    Where the arguments decide, the last column says what else may happen."""
    known = calls.calls()
    missing = sorted(set(names) - {call.name for call in known})
    if missing:
        raise UsageError(
            f"no system call of the table: {', '.join(missing)}", "without names all are listed"
        )
    found = [call for call in known if not names or call.name in names]
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    rows = [(call.name, str(call.nr), call.where, call.note()) for call in found]
    columns.show(("CALL", "NR", "WHERE", "WHY"), rows, ("NR",))
    if not names:
        click.echo(f"\n{calls.OTHERS}")


def _show_status(found: NodeStatus) -> None:
    number = f" (node {found.number})" if found.number is not None else ""
    click.echo(f"{found.ip}{number}: up")
    click.echo(f"  mosix    {found.version}")
    click.echo(f"  machine  {found.cpus} CPUs, Linux {found.kernel}")
    total = "" if found.load is None else f" of {found.load.memory / 1e6:.0f}"
    click.echo(f"  memory   {found.memory_free / 1e6:.0f}{total} MB free")
    if found.load is not None:
        _show_load(found.load)
    click.echo(f"  jobs     {found.jobs} started here")
    click.echo(f"  guests   {found.guests} from other nodes")
    click.echo(f"  calls    of guests are {TIERS.get(found.tier, found.tier)}")
    if found.owner:
        click.echo(f"  owner    says {', '.join(found.owner)}")
    if found.topology:
        click.echo(f"  features {', '.join(found.topology)}")
    if found.problem:
        click.echo(f"  files    are not what is in force: {found.problem}")
    if found.date_bound_ns is not None:
        click.echo(f"  date     of guests: their home's, within {found.date_bound_ns / 1e6:.1f} ms")


def _show_load(load: NodeLoad) -> None:
    click.echo(
        f"  load     {load.running:.2f} processes run or want to; a second of CPU time takes "
        f"{load.dilation:.2f} s"
    )
    click.echo(f"  cores    {load.cores:.2f}, each of speed {load.speed}")
    click.echo(
        f"  waits    {100 * load.psi_memory:.1f}% of the time for memory, "
        f"{100 * load.psi_io:.1f}% for I/O"
    )
    click.echo(f"  work     of jobs is counted by {load.accounting}")


def _show_known(found: NodeStatus) -> None:
    for node in found.known:
        name = node.ip if node.number is None else f"{node.ip} (node {node.number})"
        if node.state not in ("alive", "suspect"):
            click.echo(f"  knows    {name}: {node.state}")
            continue
        click.echo(
            f"  knows    {name}: {node.state} {node.age_s:.1f} s ago, {node.running:.1f} running "
            f"on {node.cores:g} cores, {node.free_mb:.0f} of {node.memory_mb:.0f} MB free, "
            f"{node.guests:.0f} guests"
        )


def _show_counters(found: NodeStatus) -> None:
    for name, count in sorted(found.counters.items()):
        click.echo(f"  turned away, {name}: {count}")
    if found.decided:
        counts = ", ".join(f"{name} {count}" for name, count in found.decided.items() if count)
        click.echo(f"  kernel   {counts or 'has decided nothing yet'}")
        captures = found.decided.get("module_captures", 0)
        megabytes = found.decided.get("module_sent_bytes", 0) / 1e6
        click.echo(f"  captures {captures} by mosix.ko, {megabytes:.1f} MB")


def _print_json(found: msgspec.Struct) -> None:
    values = msgspec.to_builtins(found)
    values.pop("t", None)
    if isinstance(values.get("status"), dict):
        values["status"].pop("t", None)
    click.echo(msgspec.json.encode(values).decode())


for order in administration.COMMANDS:
    main.add_command(order)


if __name__ == "__main__":
    main()
