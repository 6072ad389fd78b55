"""bench/run: runs benchmarks on a lab of two nodes, prints a table, writes JSON."""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import accounting  # noqa: F401 - registers its benchmarks
import balancing  # noqa: F401 - registers its benchmarks
import click
import failing  # noqa: F401 - registers its benchmarks
import jobs  # noqa: F401 - registers its benchmarks
import moving
import owner  # noqa: F401 - registers its benchmarks
import spreading
import tier  # noqa: F401 - registers its benchmarks
from harness import REGISTRY, Result, evaluate, pair_of_nodes
from mosix.errors import MosixError
from mosix.lab import drive
from rich.console import Console
from rich.table import Table


@click.command("bench/run")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the results there.")
@click.option("--strict", is_flag=True, help="Exit status 1 if a goal is missed.")
@click.option("--quick", is_flag=True, help="live_spread: one pair of 8 s jobs.")
@click.option("--list", "only_list", is_flag=True, help="Names and goals.")
@click.argument("names", nargs=-1)
def main(
    *, names: tuple[str, ...], file: Path | None, strict: bool, quick: bool, only_list: bool
) -> None:
    """Measure NAMES, or everything. What misses its goal is printed as a miss."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    if only_list:
        for bench in REGISTRY.values():
            goal = "reported" if bench.goal is None else f"{bench.goal.of} {bench.goal}"
            summary = (bench.measure.__doc__ or "").partition("\n")[0]
            console.print(f"{bench.name}: {goal}. {summary}", highlight=False)
        return
    unknown = [name for name in names if name not in REGISTRY]
    if unknown:
        known = ", ".join(REGISTRY)
        raise click.UsageError(f"no benchmark {', '.join(unknown)}; there are {known}")
    if quick:
        os.environ[spreading.QUICK] = "1"
    drive.end_in_order()
    results: list[Result] = []
    failed = False
    with ExitStack() as stack:
        lab = functools.cache(lambda: stack.enter_context(pair_of_nodes()))
        for name in names or REGISTRY:
            with console.status(name):
                try:
                    results.append(evaluate(REGISTRY[name], lab))
                except MosixError as error:
                    failed = True
                    click.echo(f"bench: {name}: {error.line()}", err=True)
    console.print(_table(results))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        document = {"results": [asdict(result) for result in results]}
        file.write_text(json.dumps(document, indent=1) + "\n")
    missed = any(not result.met() for result in results)
    sys.exit(1 if failed or (strict and missed) else 0)


def _table(results: list[Result]) -> Table:
    title = f"{moving.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}"
    table = Table(title=title, title_justify="left")
    for column in ("benchmark", "measured", "baseline", "ratio", "goal", ""):
        table.add_column(column, justify="left" if column in ("benchmark", "") else "right")
    for result in results:
        table.add_row(
            result.name,
            f"{result.value:.2f} {result.unit}",
            "–" if result.baseline is None else f"{result.baseline:.2f} {result.unit}",
            "–" if result.ratio is None else f"{result.ratio:.3f}",
            "reported" if result.goal is None else str(result.goal),
            "" if result.goal is None else ("met" if result.met() else "MISSED"),
        )
    return table


if __name__ == "__main__":
    try:
        main()
    except MosixError as error:
        click.echo(f"bench: {error.line()}", err=True)
        sys.exit(error.code)
