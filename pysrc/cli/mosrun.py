"""The options of mosrun. Parsed inside mosd (the front is C and only executes): `parse`.

Nothing here may block, print or exit: `Parsed` says what the front has to do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import click
from mosix.errors import LAUNCH_FAILED, NOT_EXECUTABLE, NOT_FOUND

_NODE = re.compile(r"-(\d+(?:\.\d+){3}|\d+)")

#: Options of the manual that are parsed in later versions, and what they are for.
_LATER = {
    "A": "automatic checkpoints",
    "C": "checkpoints",
    "D": "expected run time",
    "E": "batch jobs",
    "G": "process classes",
    "I": "checkpoints",
    "J": "job numbers",
    "M": "batch jobs",
    "N": "checkpoints",
    "O": "checkpoints",
    "P": "the queue",
    "Q": "the queue",
    "R": "checkpoints",
    "S": "command files",
    "T": "time of the home node (which is the only one now)",
    "X": "private temporary files",
    "b": "choosing the best node",
    "c": "automatic balancing",
    "d": "automatic balancing",
    "e": "unsupported calls (all are served at home now)",
    "i": "batch jobs",
    "j": "choosing among nodes",
    "m": "automatic balancing",
    "n": "automatic balancing",
    "q": "the queue",
    "t": "time of the current node",
    "u": "unsupported calls (all are served at home now)",
    "w": "unsupported calls (all are served at home now)",
    "z": "argument lists",
}


@dataclass(frozen=True)
class Parsed:
    """`text` not None: print it (to stderr if `status`) and exit with `status`. Else execute
    argv[program]; `node` as the user wrote it, None: home."""

    text: str | None = None
    status: int = 0
    program: int = 0
    node: str | None = None
    fallback: bool = False
    lock: bool = False
    interface: bool = True


class _Command(click.Command):
    """Accepts -{node} and -{a.b.c.d}, which click has no word for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rewritten = list(args)
        for index, argument in enumerate(args):
            if argument == "--" or not argument.startswith("-") or argument == "-":
                break
            found = _NODE.fullmatch(argument)
            if found:
                rewritten[index] = f"--node={found[1]}"
        return super().parse_args(ctx, rewritten)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(
            "mosrun", "[-h | -r{host} | -{node} | -{a.b.c.d}] [-F] [-L | -l] program [args]..."
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
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
@click.option("-r", "host", metavar="{host}", help="Start on this node, given by host name.")
@click.option("--node", metavar="NODE", help="The same as -NODE: by number or IP.")
@click.option("-F", "fallback", is_flag=True, help="Run at home if that node is not available.")
@click.option("-L", "lock", is_flag=True, help="Only you move it, never the system.")
@click.option("-l", "unlock", is_flag=True, help="The system may move it (the default).")
@click.option(
    "--no-interface",
    is_flag=True,
    help="Without the files /proc/self/{migrate,lock,...} for the program.",
)
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
def _command(
    *,
    home: bool,
    host: str | None,
    node: str | None,
    fallback: bool,
    lock: bool,
    unlock: bool,
    no_interface: bool,
    program: tuple[str, ...],
) -> Parsed:
    if (home, host is not None, node is not None).count(True) > 1:
        raise click.UsageError("only one of -h, -r{host} and -{node} can be given")
    if lock and unlock:
        raise click.UsageError("only one of -L and -l can be given")
    if not program:
        raise click.UsageError("which program? Nothing to run was given")
    return Parsed(
        program=len(program),
        node=host if host is not None else node,
        fallback=fallback,
        lock=lock,
        interface=not no_interface,
    )


def parse(argv: Sequence[bytes], columns: int) -> Parsed:
    """`argv` without the name of mosrun itself; `columns`: width for help. `Parsed.program` is an
    index into `argv`."""
    # Only for options and complaints: the front executes the bytes that it has.
    words = [word.decode("utf-8", "replace") for word in argv]
    try:
        with click.Context(
            _command,
            info_name="mosrun",
            terminal_width=columns,
            max_content_width=columns,
            allow_interspersed_args=False,
            help_option_names=["--help"],
        ) as ctx:
            # `--help` prints and exits in click; here it must come back as text.
            if _wants_help(words):
                return Parsed(text=_command.get_help(ctx) + "\n")
            _command.parse_args(ctx, words)
            parsed: Parsed = ctx.invoke(_command, **ctx.params)
    except click.NoSuchOption as error:
        return _failure(_unknown(error))
    except click.ClickException as error:
        return _failure(error.format_message())
    return Parsed(
        program=len(words) - parsed.program,
        node=parsed.node,
        fallback=parsed.fallback,
        lock=parsed.lock,
        interface=parsed.interface,
    )


def _wants_help(words: list[str]) -> bool:
    for word in words:
        if word == "--help":
            return True
        if word == "--" or not word.startswith("-"):
            return False
    return False


def _unknown(error: click.NoSuchOption) -> str:
    letter = error.option_name.lstrip("-")[:1]
    if not error.option_name.startswith("--") and letter in _LATER:
        return f"option -{letter}: {_LATER[letter]}: not supported yet"
    return f"no such option: {error.option_name}"


def _failure(message: str) -> Parsed:
    text = " ".join(message.split()).rstrip(".")
    return Parsed(text=f"mosrun: {text} (mosrun --help lists the options)\n", status=LAUNCH_FAILED)
