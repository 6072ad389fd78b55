"""What every command has in common: errors on one line, exit codes, where mosd is.

`Command` replaces click.Command; the commands themselves raise MosixError and return nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from mosix.config.paths import Paths
from mosix.errors import EXIT_CODES, MosixError, UsageError

#: A command that the user interrupts, as shells report SIGINT.
_INTERRUPTED = 130


class _Behaviour(click.Command):
    """Runs a click command the way all commands of mosix end."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        """`args` without the program's name; sys.argv by default."""
        name = str(extra.get("prog_name") or self.name)
        try:
            super().main(
                list(sys.argv[1:] if args is None else args),
                prog_name=name,
                standalone_mode=False,
            )
        except MosixError as error:
            _fail(name, error.line(), error.code)
        except click.exceptions.Exit as error:
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(_INTERRUPTED)
        except click.ClickException as error:
            text = " ".join(error.format_message().split()).rstrip(".")
            _fail(name, f"{text} ({name} --help explains)", UsageError.code)
        except BrokenPipeError:
            sys.stderr.close()  # else the interpreter complains about stdout at exit
            sys.exit(0)
        sys.exit(0)

    #: whether its help tells all about the exit status, or where that is to be found
    tells_statuses = False

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit status"):
            if self.tells_statuses:
                codes = ((str(code), text) for code, text in EXIT_CODES.items())
                formatter.write_dl([("0", "done"), *codes])
            else:
                formatter.write_text("0: done. mosctl --help lists the others.")


class Command(_Behaviour):
    """One command."""


class Group(_Behaviour, click.Group):
    """A command with subcommands."""

    command_class = Command

    def __init__(self, *args: Any, tells_statuses: bool = False, **attributes: Any) -> None:
        self.tells_statuses = tells_statuses
        # Else click complains with all of the help.
        super().__init__(*args, **{"no_args_is_help": False, **attributes})


def _fail(name: str, text: str, code: int) -> NoReturn:
    print(f"{name}: {text}", file=sys.stderr)
    sys.exit(code)


def pid(text: str) -> int:
    """A process id, as the type of a click argument."""
    if not (text.isascii() and text.isdigit()) or not 0 < len(text) < 8 or int(text) == 0:
        raise click.BadParameter(f"'{text}' is not a process id")
    return int(text)


version_option = click.version_option(package_name="mosix", message="%(prog)s %(version)s")

run_dir_option = click.option(
    "--run-dir",
    metavar="DIR",
    help="Where mosd's socket is [default: $MOSIX_RUN_DIR or /run/mosix].",
)


config_option = click.option(
    "--config",
    "config_dir",
    metavar="DIR",
    help="Configuration files [default: $MOSIX_CONFIG_DIR or /etc/mosix].",
)


def paths_for(run_dir: str | None) -> Paths:
    return Paths.choose(run_dir=run_dir)
