"""bestnode: the node where one more process had better start, for scripts."""

from __future__ import annotations

import time

import click
import msgspec
from mosix.cli.command import Command, paths_for, run_dir_option, version_option
from mosix.errors import RefusedError, UsageError
from mosix.node.client import ask
from mosix.node.requests import BestNode, NodeName

#: How often a node is looked for by -w, seconds.
_PAUSE_S = 1.0
_MOST_MB = 262143


@click.command("bestnode", cls=Command)
@click.option(
    "-m",
    "need_mb",
    metavar="{mb}",
    type=click.IntRange(0, _MOST_MB),
    default=0,
    help="Only a node with so much free memory.",
)
@click.option("-w", "wait", is_flag=True, help="Wait until there is one.")
@click.option("-G", "grid", is_flag=True, help="Other clusters too (none can be joined yet).")
@click.option("-u", "ip", is_flag=True, help="Print its IP address.")
@click.option("-n", "number", is_flag=True, help="Print its number, or its IP if it has none.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@run_dir_option
@version_option
def main(
    *,
    need_mb: int,
    wait: bool,
    grid: bool,
    ip: bool,
    number: bool,
    as_json: bool,
    run_dir: str | None,
) -> None:
    """Print the node that is best for one more process: its host name, or its IP if it has none.

    It is the one where `mosrun -b` would start it now. No place is kept there."""
    if ip and number:
        raise UsageError("only one of -u and -n can be given")
    paths = paths_for(run_dir)
    while True:
        try:
            found = ask(paths, BestNode(need_mb=need_mb), NodeName)
            break
        except RefusedError:
            if not wait:
                raise
        time.sleep(_PAUSE_S)
    if as_json:
        record = {"ip": found.ip, "number": found.number, "host": found.host}
        click.echo(msgspec.json.encode(record).decode())
    elif ip:
        click.echo(found.ip)
    elif number:
        click.echo(found.ip if found.number is None else str(found.number))
    else:
        click.echo(found.host or found.ip)


if __name__ == "__main__":
    main()
