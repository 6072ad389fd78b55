"""mosctl: ask about nodes."""

from __future__ import annotations

import click
import msgspec
from mosix.cli.command import Group, paths_for, run_dir_option
from mosix.node import requests
from mosix.node.client import ask

_node_argument = click.argument("node", metavar="[NODE|IP|HOST]", default="")
_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.group("mosctl", cls=Group)
def main() -> None:
    """Ask about this node and others."""


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
    number = f"node {found.number}" if found.number is not None else "no number"
    click.echo(f"{number}, {found.ip}, {found.host or 'no host name'}")


@main.command("status")
@_node_argument
@_json_option
@run_dir_option
def status(node: str, as_json: bool, run_dir: str | None) -> None:
    """What a node is and what it does; this one by default."""
    found = ask(paths_for(run_dir), requests.Status(node=node), requests.NodeStatus)
    if as_json:
        _print_json(found)
        return
    number = f" (node {found.number})" if found.number is not None else ""
    click.echo(f"{found.ip}{number}: up")
    click.echo(f"  mosix    {found.version}, tier {found.tier}")
    click.echo(f"  machine  {found.cpus} CPUs, Linux {found.kernel}")
    click.echo(f"  memory   {found.memory_free >> 20} MiB can be used")
    click.echo(f"  jobs     {found.jobs}")
    click.echo(f"  guests   {found.guests}")
    for name, count in sorted(found.counters.items()):
        click.echo(f"  turned away, {name}: {count}")


def _print_json(found: msgspec.Struct) -> None:
    values = msgspec.to_builtins(found)
    values.pop("t", None)
    click.echo(msgspec.json.encode(values).decode())


if __name__ == "__main__":
    main()
