"""migrate: move a process of a job, or all of them, to another node or home; or a guest out."""

from __future__ import annotations

import click
import msgspec
from mosix.cli import command
from mosix.cli.command import Command, paths_for, run_dir_option, version_option
from mosix.errors import MosixError, UsageError, from_code
from mosix.node import requests
from mosix.node.client import ask

_LATER = ("freeze", "continue", "checkpoint", "chkstop", "chkexit")


@click.command("migrate", cls=Command, options_metavar="[OPTIONS] {PID | -j{JOB}}")
@click.argument("words", metavar="{NODE|IP|HOST|home|out}", nargs=-1)
@click.option("-j", "job", metavar="{JOB}", help="All processes of a job: see JOB of mosps -l.")
@click.option("--wait", is_flag=True, help="Wait until it is there; say why if it is not.")
@click.option("--json", "as_json", is_flag=True, help="With --wait: the result for programs.")
@run_dir_option
@version_option
def main(
    *, words: tuple[str, ...], job: str | None, wait: bool, as_json: bool, run_dir: str | None
) -> None:
    """Move process PID of a job to a node, or home; with -j all processes of job JOB, whose number
    may be cut short as long as it is that of one job.

    Without --wait the move is only ordered: see mosps for what became of it. A process that is
    there already stays as it is: that is no failure. On the node where a process runs as a guest,
    its PID there may be given. out: that guest leaves this node, for its home; root only."""
    pid, target = _what(words, job)
    if target in _LATER:
        raise MosixError(f"{target}: not supported yet", "give a node, home, or out")
    paths, timeout_s = paths_for(run_dir), None if wait else 60.0
    if job is not None:
        order = requests.MigrateJob(job=job, target=target, wait=wait)
        _show_all(ask(paths, order, requests.MigratedJob, timeout_s), wait=wait, as_json=as_json)
        return
    moved = ask(
        paths,
        requests.Migrate(pid=pid, target=target, wait=wait),
        requests.Migrated,
        timeout_s,
    )
    if wait and as_json:
        result = {"freeze_ns": moved.freeze_ns, "page_bytes": moved.page_bytes}
        click.echo(msgspec.json.encode(result).decode())
    elif wait and target == "out":
        click.echo("it has left")
    elif wait and not moved.freeze_ns:
        click.echo("it is there already")
    elif wait:
        size_mb, freeze_ms = moved.page_bytes / 1e6, moved.freeze_ns / 1e6
        click.echo(f"moved: frozen for {freeze_ms:.1f} ms, {size_mb:.1f} MB sent")


def _what(words: tuple[str, ...], job: str | None) -> tuple[int, str]:
    """PID (0: none) and target."""
    if job is not None and len(words) == 1:
        return 0, words[0]
    if job is None and len(words) == 2:
        return command.pid(words[0]), words[1]
    raise UsageError("give a PID, or a job with -j, and where to", "migrate --help explains")


def _show_all(moved: requests.MigratedJob, *, wait: bool, as_json: bool) -> None:
    """The error of the first process that could not move is the command's."""
    failed = [row for row in moved.processes if row.error]
    if as_json:
        click.echo(msgspec.json.encode(moved.processes).decode())
    else:
        for row in moved.processes:
            done = f"moved: frozen for {row.freeze_ns / 1e6:.1f} ms"
            click.echo(
                f"{row.pid}: {row.error or (done if row.freeze_ns else 'it is there already')}"
            )
    if failed:
        count = len(moved.processes)
        of = f"{len(failed)} of {count}" if wait else str(len(failed))
        raise from_code(failed[0].code, f"{of} processes did not move", "mosps --why tells more")


if __name__ == "__main__":
    main()
