"""bench/simulate: every strategy in simulated time, as a table, losses included."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click
from mosix.balancer.compare import SCENARIOS, STRATEGIES, Figure, compare
from mosix.balancer.simulate import Outcome
from mosix.balancer.strategies import Balanced
from mosix.errors import MosixError
from rich.console import Console
from rich.table import Table

_GRADED = [name for name, scenario in SCENARIOS.items() if scenario.nodes <= 100]


@click.command("bench/simulate")
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(1))
@click.option("--strategy", "strategies", multiple=True, type=click.Choice(tuple(STRATEGIES)))
@click.option(
    "--processes",
    default=os.cpu_count() or 1,
    show_default=True,
    type=click.IntRange(1),
    help="Seeds simulated at once.",
)
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the jobs from a log in Standard Workload Format (.swf, .swf.gz).",
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures there.")
@click.argument("scenarios", nargs=-1, type=click.Choice(tuple(SCENARIOS)))
def main(
    *,
    scenarios: tuple[str, ...],
    seeds: int,
    strategies: tuple[str, ...],
    processes: int,
    trace: Path | None,
    file: Path | None,
) -> None:
    """Simulate SCENARIOS (all but n10000 unless named) with every strategy, or those given."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    document = {}
    for name in scenarios or _GRADED:
        chosen = strategies or tuple(STRATEGIES)
        workers = min(processes, seeds)
        figures = compare(
            SCENARIOS[name],
            range(seeds),
            chosen,
            trace=trace,
            clairvoyant=name in _GRADED,
            workers=workers,
            tell=_tell,
        )
        document[name] = [asdict(figure) for figure in figures]
        console.print(_table(name, seeds, figures))
    if file is not None:
        file.write_text(json.dumps(document, indent=1) + "\n")


def _tell(scenario: str, seed: int, strategy: str, ratio: float, result: Outcome) -> None:
    """A line as soon as it is known: large scenarios take hours."""
    click.echo(
        f"{scenario}, seed {seed}, {strategy}: {ratio:.3f}, p99 {result.p99:.2f}, "
        f"makespan {result.makespan_ratio:.3f}, {result.moves_per_job:.2f} moves a job, "
        f"{result.over_memory_s:.0f} s over memory",
        err=True,
    )


def _table(name: str, seeds: int, figures: list[Figure]) -> Table:
    title = f"{name}: mean slowdown / ideal sharing, {seeds} seeds, 95% interval"
    table = Table(title=title, title_justify="left")
    columns = ("strategy", "ratio", "interval", "p99", "makespan", "moves", "frozen", "over memory")
    for column in (*columns, ""):
        justify = "left" if column in ("strategy", "") else "right"
        table.add_column(column, justify=justify)
    ours = next((f.ratio for f in figures if f.strategy == Balanced.name), None)
    for figure in figures:
        better = ours is not None and figure.ratio < ours and "ideal" not in figure.strategy
        table.add_row(
            figure.strategy,
            f"{figure.ratio:.3f}",
            f"{figure.low:.3f}…{figure.high:.3f}",
            f"{figure.p99:.2f}",
            f"{figure.makespan_ratio:.3f}",
            f"{figure.moves_per_job:.2f}",
            f"{figure.frozen_part:.2%}",
            f"{figure.over_memory_s:.0f} s",
            "beats ours" if better else "",
        )
    return table


if __name__ == "__main__":
    try:
        main()
    except MosixError as error:
        click.echo(f"bench: {error.line()}", err=True)
        sys.exit(error.code)
