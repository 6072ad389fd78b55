"""mosconf: make or change the files under /etc/mosix, asking step by step or told by options.

It asks nothing that it can find out: addresses of this machine come from the kernel, what there is
from the files. Nothing is written before everything is right, and a file that is there is changed
only where somebody says so: a running mosd is never left with half of something.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import IO

import click
from mosix.cli.command import Command, config_option, paths_for, run_dir_option, version_option
from mosix.config import Paths, load_secret, parse_map
from mosix.config.install import Content, install
from mosix.config.node import (
    DEFAULT_MAX_GUESTS,
    DEFAULT_PEER_PORT,
    interface_ips,
    load_max_guests,
    load_port,
    load_speed,
)
from mosix.config.proposal import Wishes, own_candidates, propose, split_lines
from mosix.errors import ConfigError, MosixError, NotRunningError, PermissionDeniedError, UsageError
from mosix.node import requests
from mosix.node.client import ask


@click.command("mosconf", cls=Command)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="'IP|HOST [COUNT [FLAGS]]'",
    help="A range of nodes, a line of mosix.map; these instead of those that are there.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="IP=IP|HOST",
    help="Another address of a node; these instead of those that are there.",
)
@click.option("--ip", metavar="IP", help="This node's address, where it has several of the map.")
@click.option("--numbers/--no-numbers", default=True, help="Number nodes that have no number.")
@click.option("--new-secret", is_flag=True, help="Make another secret, for all nodes.")
@click.option(
    "--secret-file",
    type=click.File("r", encoding="utf-8"),
    metavar="FILE",
    help="The secret that other nodes have, - for standard input.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Of all nodes.")
@click.option("--max-guests", type=click.IntRange(0, 4096), help="How many this node takes.")
@click.option("--speed", type=click.IntRange(1, 10_000_000), help="Instead of measuring it.")
@click.option("--features", metavar="NAME,NAME…", help="Topological features of this node.")
@click.option("--log/--no-log", default=None, help="Log each mosrun and move to the system log.")
@click.option("--yes", "-y", is_flag=True, help="Ask nothing: what no option says stays as it is.")
@click.option("--dry-run", is_flag=True, help="Say which files would be changed.")
@click.option("--setpe/--no-setpe", default=None, help="Have a running mosd take them at once.")
@config_option
@run_dir_option
@version_option
def main(
    *,
    nodes: tuple[str, ...],
    aliases: tuple[str, ...],
    ip: str | None,
    numbers: bool,
    new_secret: bool,
    secret_file: IO[str] | None,
    port: int | None,
    max_guests: int | None,
    speed: int | None,
    features: str | None,
    log: bool | None,
    yes: bool,
    dry_run: bool,
    setpe: bool | None,
    config_dir: str | None,
    run_dir: str | None,
) -> None:
    """Configure this node, step by step: which nodes there are, the secret, limits, logging.

    Without a terminal, or with --yes, only options count; with neither nodes nor a map this node
    becomes a cluster of its own. The secret is made when there is none, and kept when there is
    one. All files are checked before the first of them is changed."""
    if os.geteuid() != 0:
        raise PermissionDeniedError("only root configures a node", "sudo mosconf")
    if new_secret and secret_file is not None:
        raise UsageError("either --new-secret or --secret-file")
    paths = Paths.choose(config_dir, run_dir)
    wishes = Wishes(
        nodes=tuple(map(_line, nodes)) or None,
        aliases=aliases or None,
        ip=ip,
        secret=secret_file.read().strip() if secret_file else "" if new_secret else None,
        numbers=numbers,
        port=port,
        max_guests=max_guests,
        speed=speed,
        features=features,
        log=log,
    )
    guided = not yes and sys.stdin.isatty()
    wishes = _ask_all(paths, wishes) if guided else _without_asking(paths, wishes)
    files = propose(paths, wishes)
    if not files and paths.partners.is_dir() and paths.grid.is_dir():
        click.echo(f"{paths.config_dir}: nothing to change")
        return
    for name, content in sorted(files.items()):
        _show(paths, name, content)
    if dry_run:
        return
    if guided and not click.confirm("Write these?", default=True):
        raise click.Abort
    for finding in install(paths, files):
        click.echo(str(finding))
    click.echo(f"{paths.config_dir}: written")
    _tell_mosd(run_dir, setpe, guided=guided)
    _tell_others(paths, files)


def _line(text: str) -> str:
    """A count of one may be left out."""
    words = text.split()
    return f"{words[0]} 1" if len(words) == 1 else " ".join(words)


def _without_asking(paths: Paths, wishes: Wishes) -> Wishes:
    if wishes.nodes is None and not paths.map.exists():
        wishes = replace(wishes, nodes=(f"{_own_address(wishes.ip)} 1",))
    if wishes.secret is None and not paths.secret.exists():
        wishes = replace(wishes, secret="")
    return wishes


def _own_address(wish: str | None) -> str:
    """The one of this machine's addresses that others can reach. ConfigError: there are several."""
    outside = [ip for ip in interface_ips() if not ip.startswith("127.")]
    if wish is None and len(outside) != 1:
        said = f"its addresses: {', '.join(outside)}" if outside else "it has no address"
        raise ConfigError("which address of this machine is the node's?", f"{said}; say --ip")
    return wish or outside[0]


# ---- step by step ----


def _ask_all(paths: Paths, wishes: Wishes) -> Wishes:
    click.echo("Enter takes what stands in brackets; Ctrl-C leaves everything as it is.\n")
    wishes = _ask_nodes(paths, wishes)
    wishes = _ask_secret(paths, wishes)
    wishes = _ask_guests(paths, wishes)
    if wishes.log is None:
        wishes = replace(
            wishes,
            log=click.confirm(
                "Log each mosrun and migration to the system log?",
                default=paths.log_mosrun.exists(),
            ),
        )
    return _ask_more(paths, wishes)


def _ask_nodes(paths: Paths, wishes: Wishes) -> Wishes:
    while True:
        lines, aliases = split_lines(paths)
        lines = list(wishes.nodes or lines)
        if not lines:
            own = [ip for ip in interface_ips() if not ip.startswith("127.")]
            click.echo(f"This machine's addresses: {', '.join(own) or 'none'}.")
        else:
            click.echo("The nodes of the cluster are now:")
            for line in lines:
                click.echo(f"  {line}")
        if not lines or click.confirm("Change them?", default=False):
            lines = _ask_lines()
        wishes = replace(wishes, nodes=tuple(lines))
        try:
            text = "".join(f"{line}\n" for line in [*lines, *(wishes.aliases or aliases)])
            nodes = parse_map(text, paths.map)
            return replace(wishes, ip=_ask_ip(own_candidates(nodes), wishes.ip))
        except MosixError as error:
            click.echo(f"{error.line()}\n")
            wishes = replace(wishes, nodes=None)


def _ask_lines() -> list[str]:
    click.echo(
        "Which machines? One line for each, or for each range of consecutive addresses:\n"
        "  IP-or-name [COUNT [FLAGS]]    flags: p, a fast network; o, an outsider\n"
        "An empty line ends."
    )
    lines: list[str] = []
    while True:
        text = click.prompt(f"{len(lines) + 1}", default="", show_default=False).strip()
        if text:
            lines.append(_line(text))
        elif lines:
            return lines


def _ask_ip(candidates: list[str], wish: str | None) -> str | None:
    if wish is not None or len(candidates) == 1:
        return wish
    if not candidates:
        raise ConfigError(
            "none of these nodes is this machine", f"its addresses: {', '.join(interface_ips())}"
        )
    which: str = click.prompt(
        "Several of these are this machine; which one is this node?",
        type=click.Choice(candidates),
        default=candidates[0],
    )
    return which


def _ask_secret(paths: Paths, wishes: Wishes) -> Wishes:
    if wishes.secret is not None:
        return wishes
    try:
        load_secret(paths)
    except ConfigError as error:
        click.echo(f"There is no secret that can be used: {error.line()}.")
    else:
        click.echo(f"The secret in {paths.secret} is kept.")
        return wishes
    secret: str = click.prompt(
        "The secret that other nodes have (Enter: a new one is made)",
        default="",
        show_default=False,
        hide_input=True,
    )
    return replace(wishes, secret=secret.strip())


def _ask_guests(paths: Paths, wishes: Wishes) -> Wishes:
    if wishes.max_guests is not None:
        return wishes
    try:
        now = load_max_guests(paths)
    except ConfigError as error:
        click.echo(f"{error.line()}")
        now = DEFAULT_MAX_GUESTS
    number = click.prompt(
        "How many processes of other nodes at once?", type=click.IntRange(0, 4096), default=now
    )
    return wishes if number == now else replace(wishes, max_guests=number)


def _ask_more(paths: Paths, wishes: Wishes) -> Wishes:
    """What hardly anybody changes."""
    if not click.confirm("Port, speed and features, too?", default=False):
        return wishes
    port = _now(load_port, paths) or DEFAULT_PEER_PORT
    asked = click.prompt("Port of all nodes", type=click.IntRange(1, 65535), default=port)
    if asked != port:
        wishes = replace(wishes, port=asked)
    speed = _now(load_speed, paths) or 0
    asked = click.prompt(
        "Speed of a processor, where 10000 is a Pentium 4 of 3 GHz (0: it is measured)",
        type=click.IntRange(0, 10_000_000),
        default=speed,
    )
    if asked and asked != speed:
        wishes = replace(wishes, speed=asked)
    own = ""
    if paths.own_features.exists():
        own = paths.own_features.read_text(encoding="utf-8").strip()
    said = click.prompt("Features of this node, with commas in between", default=own).strip()
    return wishes if said == own else replace(wishes, features=said)


def _now(load: Callable[[Paths], int | None], paths: Paths) -> int | None:
    try:
        return load(paths)
    except ConfigError:
        return None


# ---- what is said in the end ----


def _show(paths: Paths, name: str, content: Content) -> None:
    path = paths.config_dir / name
    if content.text is None:
        click.echo(f"{path}: removed")
        return
    click.echo(f"{path}: {'changed' if path.exists() else 'new'}, mode {content.mode:o}")
    if content.mode & 0o077 and content.text.strip():
        click.echo("".join(f"    {line}\n" for line in content.text.splitlines()), nl=False)


def _tell_mosd(run_dir: str | None, setpe: bool | None, *, guided: bool) -> None:
    paths = paths_for(run_dir)
    try:
        ask(paths, requests.Whois(), requests.NodeName)
    except NotRunningError:
        click.echo("mosd does not run here: start it with mosd --detach, or by systemd")
        return
    if setpe is None and guided:
        setpe = click.confirm("mosd runs here. Shall it take them now?", default=True)
    if not setpe:
        click.echo("mosd runs here with what was before: setpe has it take them")
        return
    ask(paths, requests.Setpe(), requests.Configured, timeout_s=None)
    click.echo("mosd has taken them")


def _tell_others(paths: Paths, files: dict[str, Content]) -> None:
    shared = (paths.map.name, paths.userview.name, paths.secret.name, paths.ports.name)
    same = [str(paths.config_dir / name) for name in shared if name in files]
    if same:
        click.echo(f"the same on all nodes: {' '.join(same)}; then setpe or mosd there")


if __name__ == "__main__":
    main()
