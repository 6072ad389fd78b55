"""migrate: move a process of a job to another node, or home."""

from __future__ import annotations

import click
import msgspec
from mosix.cli import command
from mosix.cli.command import Command, paths_for, run_dir_option, version_option
from mosix.errors import MosixError
from mosix.node import requests
from mosix.node.client import ask

_LATER = ("out", "freeze", "continue", "checkpoint", "chkstop", "chkexit")


@click.command("migrate", cls=Command)
@click.argument("pid", type=command.pid)
@click.argument("target", metavar="{NODE|IP|HOST|home}")
@click.option("--wait", is_flag=True, help="Wait until it is there; say why if it is not.")
@click.option("--json", "as_json", is_flag=True, help="With --wait: the result for programs.")
@run_dir_option
@version_option
def main(*, pid: int, target: str, wait: bool, as_json: bool, run_dir: str | None) -> None:
    """Move process PID of a job to a node, or home.

    Without --wait the move is only ordered: see mosps for what became of it. A process that is
    there already stays as it is: that is no failure. On the node where a process runs as a guest,
    its PID there may be given."""
    if target in _LATER:
        raise MosixError(f"{target}: not supported yet", "give a node, or home")
    moved = ask(
        paths_for(run_dir),
        requests.Migrate(pid=pid, target=target, wait=wait),
        requests.Migrated,
        timeout_s=None if wait else 60.0,
    )
    if wait and as_json:
        result = {"freeze_ns": moved.freeze_ns, "page_bytes": moved.page_bytes}
        click.echo(msgspec.json.encode(result).decode())
    elif wait and not moved.freeze_ns:
        click.echo("it is there already")
    elif wait:
        size_mb, freeze_ms = moved.page_bytes / 1e6, moved.freeze_ns / 1e6
        click.echo(f"moved: frozen for {freeze_ms:.1f} ms, {size_mb:.1f} MB sent")


if __name__ == "__main__":
    main()
