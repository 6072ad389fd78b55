"""mosd: the daemon of a node, as a command."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click
from mosix import failpoints
from mosix.cli import mosrun
from mosix.cli.command import Command, version_option
from mosix.config import DEFAULT_GRACE_S, DEFAULT_PEER_PORT, NodeConfig, Paths, load
from mosix.errors import MosixError, PermissionDeniedError, from_code
from mosix.node.accounting import Choice
from mosix.node.mosd import STOP_S, Mosd
from mosix.node.spawning import Programs
from mosix.node.syslog import DEVICE
from mosix.node.tier import Choice as Tier


@click.command("mosd", cls=Command)
@click.option(
    "--config",
    "config_dir",
    metavar="DIR",
    help="Configuration files [default: $MOSIX_CONFIG_DIR or /etc/mosix].",
)
@click.option(
    "--run-dir",
    metavar="DIR",
    help="Socket, lock and log [default: $MOSIX_RUN_DIR or /run/mosix].",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help=f"TCP port of all nodes [default: /etc/mosix/ports, else {DEFAULT_PEER_PORT}].",
)
@click.option(
    "--detach/--foreground",
    default=False,
    help="Go to the background once it is ready, and log to mosd.log in the run directory.",
)
@click.option(
    "--stop-timeout",
    "stop_s",
    type=click.FloatRange(0.1, 3600),
    default=STOP_S,
    metavar="SECONDS",
    help=f"How long a stop may take until everybody is home [default: {STOP_S:.0f}].",
)
@click.option(
    "--grace",
    "grace_s",
    type=click.IntRange(0, 86400),
    envvar="MOSIX_GRACE",
    metavar="SECONDS",
    help="How long jobs of this node that are away wait for a lost connection, before they end "
    f"[default: $MOSIX_GRACE, else /etc/mosix/grace, else {DEFAULT_GRACE_S}].",
)
@click.option(
    "--accounting",
    type=click.Choice(get_args(Choice)),
    default="auto",
    show_default=True,
    help="How the work of jobs at home is counted: auto takes eBPF where it can, proc never does.",
)
@click.option(
    "--tier",
    type=click.Choice(get_args(Tier)),
    default="auto",
    show_default=True,
    help="How calls are intercepted: portable by seccomp, kernel by mosix.ko and eBPF, auto the "
    "latter where the module is loaded.",
)
@click.option(
    "--balance/--no-balance",
    default=True,
    show_default=True,
    help="Whether processes leave this node by themselves, and it asks others for theirs.",
)
@version_option
@click.option("--deputy", default=Programs.deputy, hidden=True)
@click.option("--remote", default=Programs.remote, hidden=True)
# for tests: see node.features, node.syslog, and Launch in wire.mosd_messages
@click.option("--foreign-vdso", is_flag=True, hidden=True)
@click.option("--date-ahead", "date_ahead_s", type=float, default=0.0, hidden=True)
@click.option("--syslog", default=DEVICE, hidden=True)
def main(
    *,
    config_dir: str | None,
    run_dir: str | None,
    port: int | None,
    detach: bool,
    stop_s: float,
    grace_s: int | None,
    accounting: Choice,
    tier: Tier,
    balance: bool,
    deputy: str,
    remote: str,
    foreign_vdso: bool,
    date_ahead_s: float,
    syslog: str,
) -> None:
    """Run MOSIX on this node: its jobs may leave, guests may come.

    On SIGTERM jobs that are away come home and guests are sent to theirs, for at most
    --stop-timeout seconds; jobs at home go on. SIGINT does the same."""
    if os.geteuid() != 0:
        raise PermissionDeniedError("only root runs mosd", "sudo mosd")
    paths = Paths.choose(config_dir, run_dir)
    # Workers, and commands that jobs start, look for the same directories.
    os.environ["MOSIX_CONFIG_DIR"] = str(paths.config_dir)
    os.environ["MOSIX_RUN_DIR"] = str(paths.run_dir)
    os.umask(0o022)
    config = load(paths, port, grace_s)
    failpoints.arm(os.environ.get(failpoints.ENVIRONMENT, ""))
    programs = Programs(deputy, remote)
    daemon = functools.partial(
        Mosd,
        config,
        programs,
        mosrun.parse,
        stop_s=stop_s,
        accounting=accounting,
        tier=tier,
        balance=balance,
        foreign_vdso=foreign_vdso,
        date_ahead_ns=int(date_ahead_s * 1e9),
        syslog=syslog,
    )
    if detach:
        _detached(config, daemon)
        return
    _logging()
    asyncio.run(daemon().run())


def _logging() -> None:
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


def _detached(config: NodeConfig, daemon: Callable[..., Mosd]) -> None:
    """Ends when the daemon is ready; MosixError with its complaint when it is not."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        if said == b"ready":
            return
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        complaint = said.decode("utf-8", "replace")
        if complaint:
            raise from_code(code, complaint)
        raise MosixError("mosd did not start", f"see {config.paths.log}")
    os.close(reader)
    os.setsid()
    os.chdir("/")

    def ready() -> None:
        os.write(writer, b"ready")
        os.close(writer)

    try:
        config.paths.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        _redirect(config.paths.log)
        _logging()
        asyncio.run(daemon(ready=ready).run())
    except MosixError as error:
        logging.getLogger("mosd").error("%s", error.line())
        os.write(writer, error.line().encode())
        os._exit(error.code)
    sys.exit(0)


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o640)
    for target, source in ((0, null), (1, out), (2, out)):
        os.dup2(source, target)
    os.close(null)
    os.close(out)


if __name__ == "__main__":
    main()
