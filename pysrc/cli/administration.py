"""What root says with mosctl: stay, block, expel, drain and their like; `mosctl config check`.

`COMMANDS` are put into mosctl's group. mosd checks who may; `config check` needs no mosd.
"""

from __future__ import annotations

from typing import Any

import click
import msgspec
from mosix.cli.command import Command, Group, config_option, paths_for, run_dir_option
from mosix.config import check as checking
from mosix.config.paths import Paths
from mosix.errors import ConfigError, MoveFailedError
from mosix.node import requests
from mosix.node.client import ask

#: Word of mosctl: what of `OwnerFlags` it sets, and to what, and its help.
_SAYINGS: dict[str, tuple[Any, bool, str]] = {
    "stay": ("stay", True, "No process leaves this node by itself; people may still move them."),
    "nostay": ("stay", False, "Processes may leave this node (undoes stay)."),
    "lstay": ("lstay", True, "As stay, but only for processes whose home is here."),
    "nolstay": ("lstay", False, "They may leave (undoes lstay)."),
    "block": ("block", True, "No guest comes to this node; those that are here stay."),
    "noblock": ("block", False, "Guests may come (undoes block)."),
    "logmap": ("logmap", True, "mosd logs when nodes come and go (the default)."),
    "nologmap": ("logmap", False, "It does not (undoes logmap)."),
}

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
deadline_option = click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Wait no longer, and say who is left [default: until it is done].",
)
node_argument = click.argument("node", metavar="[NODE|IP|HOST]", default="")


def _saying(word: str) -> click.Command:
    flag, so, text = _SAYINGS[word]

    def say(as_json: bool, run_dir: str | None) -> None:
        said = ask(paths_for(run_dir), requests.Say(word=flag, so=so), requests.Said)
        if as_json:
            click.echo(msgspec.json.encode({"owner": said.words, "new": said.new}).decode())
        elif not said.new:
            click.echo("it was said already")

    command = click.command(word, cls=Command, help=f"{text} Root only.")
    return command(json_option(run_dir_option(say)))


def _evacuate(run_dir: str | None, request: requests.Evacuate, as_json: bool) -> None:
    done = ask(paths_for(run_dir), request, requests.Evacuated, timeout_s=None)
    show(done, as_json=as_json)


def show(done: requests.Evacuated, *, as_json: bool) -> None:
    """MoveFailedError when somebody is not where he belongs."""
    if as_json:
        values = msgspec.to_builtins(done)
        del values["t"]
        click.echo(msgspec.json.encode(values).decode())
    else:
        click.echo(
            f"{_many(done.guests, 'guest')} left, {_many(done.own, 'own process')} came home, "
            f"in {done.seconds:.1f} s"
        )
    if done.left:
        raise MoveFailedError(
            f"not where they belong: {'; '.join(done.left)}",
            "they run on; mosps --why at home tells more",
        )


def _many(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "es" if what.endswith("s") else "s")


@click.command("expel", cls=Command)
@deadline_option
@json_option
@run_dir_option
def expel(deadline_s: float | None, as_json: bool, run_dir: str | None) -> None:
    """All guests leave this node, and this waits until they are gone. Root only.

    They go to their homes, and do not come back by themselves. New ones may come unless the node
    says block: an owner who wants his machine back says `mosctl block; mosctl expel`."""
    _evacuate(run_dir, requests.Evacuate(what="expel", deadline_s=deadline_s), as_json)


@click.command("bring", cls=Command)
@deadline_option
@json_option
@run_dir_option
def bring(deadline_s: float | None, as_json: bool, run_dir: str | None) -> None:
    """All processes whose home is this node come home, and this waits until they are here. Root
    only.

    They may be sent away again unless the node says stay or lstay."""
    _evacuate(run_dir, requests.Evacuate(what="bring", deadline_s=deadline_s), as_json)


@click.command("shutdown", cls=Command)
@deadline_option
@json_option
@run_dir_option
def shutdown(deadline_s: float | None, as_json: bool, run_dir: str | None) -> None:
    """expel and bring, then mosd ends. Root only.

    If somebody cannot go where he belongs mosd goes on, drained, and who it is is said: nothing is
    lost. (Stopping mosd by SIGTERM does not wait for longer than its --stop-timeout.)"""
    _evacuate(run_dir, requests.Evacuate(what="shutdown", deadline_s=deadline_s), as_json)


@click.command("drain", cls=Command)
@node_argument
@deadline_option
@json_option
@run_dir_option
def drain(node: str, deadline_s: float | None, as_json: bool, run_dir: str | None) -> None:
    """Empty a node, this one by default, before work on it: all guests leave, its own processes
    come home, and nothing comes or goes any more. Root only.

    This waits until the node is empty, and says so. Whoever could not go by the deadline is named,
    and is asked again and again as long as the node is drained, also by its next mosd. nodrain
    undoes it."""
    request = requests.Evacuate(what="drain", node=node, deadline_s=deadline_s)
    _evacuate(run_dir, request, as_json)


@click.command("nodrain", cls=Command)
@node_argument
@run_dir_option
def nodrain(node: str, run_dir: str | None) -> None:
    """The node takes and sends processes again (undoes drain). Root only."""
    request = requests.Evacuate(what="nodrain", node=node)
    ask(paths_for(run_dir), request, requests.Evacuated)


@click.group("config", cls=Group)
def config() -> None:
    """The files under /etc/mosix."""


@config.command("check")
@config_option
@json_option
def config_check(config_dir: str | None, as_json: bool) -> None:
    """Look for mistakes in all files; needs no mosd.

    Each is told as FILE:LINE: what is wrong (what to do about it). A line with `note:` is no
    mistake, but may surprise. Status 11 if there is a mistake."""
    paths = Paths.choose(config_dir)
    findings = checking.check(paths)
    wrong = [finding for finding in findings if finding.wrong]
    if as_json:
        click.echo(msgspec.json.encode(findings).decode())
    else:
        for finding in findings:
            click.echo(str(finding))
    if wrong:
        mistakes = "a mistake" if len(wrong) == 1 else f"{len(wrong)} mistakes"
        raise ConfigError(f"{mistakes} in {paths.config_dir}", "a running mosd is not disturbed")
    if not as_json:
        files = checking.files_in(paths)
        click.echo(f"{paths.config_dir}: right: {', '.join(files)}")


COMMANDS: tuple[click.Command, ...] = (
    *map(_saying, _SAYINGS),
    expel,
    bring,
    drain,
    nodrain,
    shutdown,
    config,
)
