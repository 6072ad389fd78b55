"""setpe: have the running mosd read its files again, or leave the cluster."""

from __future__ import annotations

import click
import msgspec
from mosix.cli.administration import json_option, show
from mosix.cli.command import Command, paths_for, run_dir_option, version_option
from mosix.node import requests
from mosix.node.client import ask


@click.command("setpe", cls=Command)
@click.option("-off", "--off", "off", is_flag=True, help="Leave the cluster: see below.")
@json_option
@run_dir_option
@version_option
def main(off: bool, as_json: bool, run_dir: str | None) -> None:
    """Have mosd take what the files under /etc/mosix say now: mosix.map and userview.map, secret,
    maxguests, grace, speed, features. Root only; kill -HUP of mosd does the same.

    Guests of nodes that are not in the map any more go home, own processes come home from there,
    and this waits for them. Files with a mistake change nothing: mosd goes on with the last ones
    that were right, and `mosctl status` says so. The node's own address and port cannot be changed
    while mosd runs.

    With -off this node belongs to no cluster any more, until setpe is said again: guests leave,
    own processes come home, jobs go on and new ones run here. Also its next mosd keeps to that."""
    done = ask(paths_for(run_dir), requests.Setpe(off=off), requests.Configured, timeout_s=None)
    if as_json:
        values = msgspec.to_builtins(done)
        for part in (values, values["moved"]):
            part.pop("t", None)
        click.echo(msgspec.json.encode(values).decode())
    elif off:
        click.echo("off: this node is alone; setpe brings it back")
    else:
        click.echo(f"{done.nodes} nodes in the map: {done.added} added, {done.removed} removed")
    if done.moved.guests or done.moved.own or done.moved.left:
        show(done.moved, as_json=as_json)


if __name__ == "__main__":
    main()
