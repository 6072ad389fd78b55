"""The options of mosrun. Parsed inside mosd (the front is C and only executes): `parse`.

Nothing there may block, print or exit: `Parsed` says what the front has to do. Where no mosd runs
the front executes this module as a program (`main`).
"""

from __future__ import annotations

import os
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import click
from mosix.errors import LAUNCH_FAILED, NOT_EXECUTABLE, NOT_FOUND, NotRunningError
from mosix.wire.attributes import (
    DECAY_RATE,
    ENOSYS,
    ENOSYS_WITH_MESSAGE,
    HIGHEST,
    KILL,
    Changes,
)

_NODE = re.compile(r"-(\d+(?:\.\d+){3}|\d+)")
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

#: Options of the manual that this version refuses by name, and what each of them needs.
LATER = {
    "A": "automatic checkpoints",
    "C": "checkpoints",
    "D": "expected run times",
    "E": "batch jobs",
    "I": "checkpoints",
    "J": "job numbers",
    "M": "batch jobs",
    "N": "checkpoints",
    "O": "checkpoints",
    "P": "the queue",
    "Q": "the queue",
    "R": "checkpoints",
    "S": "command files",
    "X": "private temporary files",
    "i": "batch jobs",
    "q": "the queue",
}
_MAX_NUMBER = 65535
_CLASS = re.compile(r"-G(\d{0,10})")
_UNSUPPORTED = {"u": KILL, "e": ENOSYS, "w": ENOSYS_WITH_MESSAGE}
#: what a plain -G means
_DEFAULT_CLASS = "1"


@dataclass(frozen=True)
class Parsed:
    """`text` not None: print it (to stderr if `status`) and exit with `status`. Else execute
    argv[program]; `node` as the user wrote it, None: home."""

    text: str | None = None
    status: int = 0
    program: int = 0
    node: str | None = None
    #: wherever it is best now
    best: bool = False
    fallback: bool = False
    #: attributes that were given; a mosrun inside a job leaves the others as they are
    changes: Changes = field(default_factory=dict)
    interface: bool = True
    #: the arguments behind the program begin with argv[0]
    own_name: bool = False


class _Option(click.Option):
    """Shown in the help as the manual writes it: `shown`."""

    def __init__(self, *names: Any, shown: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self._shown = shown

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return self._shown, self.help or ""


class _Command(click.Command):
    """Accepts -{node}, -{a.b.c.d} and -G[{class}], which click has no word for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rewritten = list(args)
        for index, argument in enumerate(args):
            if argument == "--" or not argument.startswith("-") or argument == "-":
                break
            found = _NODE.fullmatch(argument)
            if found:
                rewritten[index] = f"--node={found[1]}"
            found = _CLASS.fullmatch(argument)
            if found:
                rewritten[index] = f"--class={found[1] or _DEFAULT_CLASS}"
        return super().parse_args(ctx, rewritten)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(
            "mosrun",
            "[-h | -r{host} | -{node} | -{a.b.c.d} | -j{n1-n2[,n3-n4]...}] [-F] [-L | -l] "
            "[-t | -T] [-G[{class}]] [-m{mb}] [-d{0-10000}] [-c | -n] [-z] [-e | -u | -w] "
            "program [args]...",
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(
            "These options of MOSIX are not supported yet and are refused: "
            + " ".join(f"-{letter}" for letter in LATER)
            + "."
        )
        formatter.write_paragraph()
        formatter.write_text(
            f"The exit status is the program's own; {LAUNCH_FAILED} if it could not be "
            f"launched, {NOT_EXECUTABLE} if it was found but is not executable, {NOT_FOUND} if it "
            "was not found."
        )


@click.command(
    cls=_Command,
    context_settings={"allow_interspersed_args": False, "help_option_names": ["--help"]},
    help="Run a program whose processes can move to other nodes while they run. It starts on "
    "this node, its home, unless a node is given.",
)
@click.option("-h", "home", is_flag=True, help="Start on the home node (the default).")
@click.option("-b", "best", is_flag=True, help="Start on the node that is best now.")
@click.option("-r", "host", metavar="{host}", help="Start on this node, given by host name.")
@click.option(
    "--node",
    cls=_Option,
    shown="-{node}, -{a.b.c.d}",
    metavar="NODE",
    help="Start on this node, given by number or IP.",
)
@click.option(
    "-j",
    "ranges",
    metavar="{n1-n2[,n3-n4]...}",
    help="Start on a node chosen at random among these numbers.",
)
@click.option("-F", "fallback", is_flag=True, help="Run at home if that node is not available.")
@click.option("-L", "lock", is_flag=True, help="Only you move it, never the system.")
@click.option("-l", "unlock", is_flag=True, help="The system may move it (the default).")
@click.option("-t", "localtime", is_flag=True, help="Date and time are those of where it runs.")
@click.option("-T", "home_time", is_flag=True, help="They are those of its home (the default).")
@click.option(
    "--class",
    "job_class",
    cls=_Option,
    shown="-G[{class}]",
    metavar="CLASS",
    type=click.IntRange(0, HIGHEST["job_class"]),
    help="Its class; -G alone is class 1. Class 0, the default, stays in the cluster.",
)
@click.option(
    "-m",
    "needmem",
    metavar="{mb}",
    type=click.IntRange(0, HIGHEST["needmem"]),
    help="The system moves it only to nodes with so much free memory.",
)
@click.option(
    "-d",
    "decayrate",
    metavar="{0-10000}",
    type=click.IntRange(0, HIGHEST["decayrate"]),
    help=f"How much of its statistics is kept each second (default {DECAY_RATE}).",
)
@click.option("-c", "cpujob", is_flag=True, help="Its system calls and I/O keep it from no node.")
@click.option("-n", "no_cpujob", is_flag=True, help="They do (the default).")
@click.option("-e", "unsupported", flag_value="e", help="ENOSYS where the way home is missing.")
@click.option("-w", "unsupported", flag_value="w", help="The same, with a message on stderr.")
@click.option("-u", "unsupported", flag_value="u", help="The process is killed (the default).")
@click.option("-z", "own_name", is_flag=True, help="Its arguments begin with argv[0], its name.")
@click.option(
    "--no-interface",
    is_flag=True,
    help="Without the files /proc/self/{migrate,lock,...} for the program.",
)
@click.option("--version", is_flag=True, expose_value=False, help="Show the version and exit.")
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
def command(
    *,
    home: bool,
    best: bool,
    host: str | None,
    node: str | None,
    ranges: str | None,
    fallback: bool,
    lock: bool,
    unlock: bool,
    localtime: bool,
    home_time: bool,
    job_class: int | None,
    needmem: int | None,
    decayrate: int | None,
    cpujob: bool,
    no_cpujob: bool,
    unsupported: str | None,
    own_name: bool,
    no_interface: bool,
    program: tuple[str, ...],
) -> Parsed:
    if (home, best, host is not None, node is not None, ranges is not None).count(True) > 1:
        raise click.UsageError("only one of -h, -b, -r{host}, -{node} and -j can be given")
    if ranges is not None:
        node = _any_of(ranges)
    if lock and unlock:
        raise click.UsageError("only one of -L and -l can be given")
    if localtime and home_time:
        raise click.UsageError("only one of -t and -T can be given")
    if cpujob and no_cpujob:
        raise click.UsageError("only one of -c and -n can be given")
    changes = {
        "lock": 1 if lock else 0 if unlock else None,
        "job_class": job_class,
        "needmem": needmem,
        "decayrate": decayrate,
        "cpujob": 1 if cpujob else 0 if no_cpujob else None,
        "localtime": 1 if localtime else 0 if home_time else None,
        "unsupportok": None if unsupported is None else _UNSUPPORTED[unsupported],
    }
    if not program:
        raise click.UsageError("which program? Nothing to run was given")
    if own_name and len(program) == 1:
        raise click.UsageError("-z: behind the program its argv[0] is missing")
    return Parsed(
        program=len(program),
        node=host if host is not None else node,
        best=best,
        fallback=fallback,
        changes={name: value for name, value in changes.items() if value is not None},
        interface=not no_interface,
        own_name=own_name,
    )


def _any_of(ranges: str) -> str:
    """A node number out of "1-3,5,7-9", each with the same chance."""
    spans: list[range] = []
    for part in ranges.split(","):
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last <= _MAX_NUMBER:
            raise click.UsageError(f"-j{ranges}: '{part}' is not a range of node numbers")
        spans.append(range(first, last + 1))
    numbers = sorted(set().union(*spans))
    return str(random.choice(numbers))


def parse(argv: Sequence[bytes], columns: int) -> Parsed:
    """`argv` without the name of mosrun itself; `columns`: width for help. `Parsed.program` is an
    index into `argv`."""
    # Only for options and complaints: the front executes the bytes that it has.
    words = [word.decode("utf-8", "replace") for word in argv]
    try:
        with click.Context(
            command,
            info_name="mosrun",
            terminal_width=columns,
            max_content_width=columns,
            allow_interspersed_args=False,
            help_option_names=["--help"],
        ) as ctx:
            # `--help` prints and exits in click; here it must come back as text.
            asked = _asked(words)
            if asked == "--help":
                return Parsed(text=command.get_help(ctx) + "\n")
            if asked == "--version":
                return Parsed(text=f"mosrun {metadata.version('mosix')}\n")
            command.parse_args(ctx, words)
            parsed: Parsed = ctx.invoke(command, **ctx.params)
    except click.NoSuchOption as error:
        return _failure(_unknown(error))
    except click.ClickException as error:
        return _failure(error.format_message())
    return Parsed(
        program=len(words) - parsed.program,
        node=parsed.node,
        best=parsed.best,
        fallback=parsed.fallback,
        changes=parsed.changes,
        interface=parsed.interface,
        own_name=parsed.own_name,
    )


def _asked(words: list[str]) -> str:
    """--help or --version, whatever else is wanted."""
    for word in words:
        if word in ("--help", "--version"):
            return word
        if word == "--" or not word.startswith("-"):
            break
    return ""


def _unknown(error: click.NoSuchOption) -> str:
    letter = error.option_name.lstrip("-")[:1]
    if not error.option_name.startswith("--") and letter in LATER:
        return f"option -{letter}: {LATER[letter]}: not supported yet"
    return f"no such option: {error.option_name}"


def _failure(message: str) -> Parsed:
    text = " ".join(message.split()).rstrip(".")
    return Parsed(text=f"mosrun: {text} (mosrun --help lists the options)\n", status=LAUNCH_FAILED)


def main() -> None:
    """argv: the terminal's width, why there is no mosd, and mosrun's own arguments."""
    columns, why, *argv = sys.argv[1:]
    parsed = parse([os.fsencode(word) for word in argv], int(columns))
    if parsed.text is not None:
        print(parsed.text, end="", file=sys.stderr if parsed.status else sys.stdout)
        sys.exit(parsed.status)
    absent = NotRunningError(f"mosd does not run here: {why}", "start it as root: mosd --detach")
    print(f"mosrun: {absent.line()}", file=sys.stderr)
    sys.exit(LAUNCH_FAILED)


if __name__ == "__main__":
    main()
