"""`id2 experiment`: the tables and figures of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

import id2
from flows.commands import console, import_oripid
from flows.commands.options import command
from id2.requests import ExperimentDataRequest, ExperimentRequest

if TYPE_CHECKING:
    from id2.results import ExperimentData, ExperimentReport

RUN = "run"


class _RunByDefault(TyperGroup):
    """`id2 experiment t3 …` is `id2 experiment run t3 …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `run` in front where the first word is no command."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [RUN, *args]
        return super().parse_args(ctx, args)


experiments = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Measure what the paper measures, on OriPID or on a small one that the bundled models made.",
    epilog="`run` is the default: id2 experiment t3 open --data bench --out results.",
)
app = typer.Typer()
app.add_typer(experiments, name="experiment")


@experiments.command("list")
def list_names() -> None:
    """List the experiments."""
    from id2core.experiments import registry

    for name, title in registry.titles().items():
        typer.echo(f"{name:<10} {title}")


@command(
    experiments,
    id2.experiment,
    "flows.experiment:experiment",
    name=RUN,
    epilog="Example: id2 experiment all --data bench --out results --page results.md runs all that can run.",
)
def show(report: ExperimentReport, request: ExperimentRequest) -> None:
    """Print the tables."""
    for text in report.tables.values():
        typer.echo(text)


@command(
    experiments,
    id2.experiment_data,
    "flows.experiment:experiment_data",
    name="data",
    epilog="Examples: id2 experiment data --photos photos --data bench makes a small OriPID with the "
    "bundled models. id2 experiment data --oripid OriPID --data bench lays out the real one.",
)
def show_data(made: ExperimentData, request: ExperimentDataRequest) -> None:
    """Print what the data was made of, and what to run next."""
    console.echo_lines(
        [*data_lines(made), f"{request.data} is ready: id2 experiment all --data {request.data}"]
    )


def data_lines(made: ExperimentData) -> Iterator[str]:
    """Yield what OriPID's parts gave, a line each; nothing for data that was made from photos."""
    if made.training:
        yield from (f"train: {line}" for line in import_oripid.summary_lines(made.training))
    if made.photos:
        yield "references: " + ", ".join(f"{count:,} {role}" for role, count in made.photos.items())
    for role, counts in made.queries.items():
        lost = {**counts.dropped, "whose reference could not be read": counts.without_reference}
        notes = ", ".join(f"{count:,} {why}" for why, count in lost.items() if count)
        yield f"{role}: {counts.queries:,} queries{f' ({notes})' if notes else ''}"
