"""`id2 doctor`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

import id2
from flows.commands import console
from id2.requests import DoctorRequest
from id2core import settings
from id2core.errors import OptionError

if TYPE_CHECKING:
    from id2.results import DoctorReport

app = typer.Typer()


def _settings() -> dict[str, object]:
    try:
        return settings.load().model_dump()
    except OptionError as error:
        return {"error": str(error)}


@app.command()
def doctor(
    out: Annotated[
        str, typer.Option(help="Check the data sets of this --out instead: what is damaged, and what to do.")
    ] = "",
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="With --out: build a lost commit of OUT/matches again."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Print what is installed, which devices there are, and whether the model hub can be reached."""
    if rebuild and not out:
        raise typer.BadParameter("--rebuild goes with --out")
    if out:
        _check(out, rebuild, as_json)
        return
    _print_environment(as_json)


def _check(out: str, rebuild: bool, as_json: bool) -> None:
    """Check an `--out`; exit with 1 where something is wrong."""

    def work() -> DoctorReport:
        request = DoctorRequest(out=out, rebuild=rebuild)
        request.check()
        report: DoctorReport = console.flow_or_function(id2.doctor, request, "flows.doctor:doctor")
        return report

    report = console.run(work)
    if as_json:
        console.print_json(report)
    else:
        console.echo_lines(_lines(report))
    if report.findings:
        raise typer.Exit(1)


def _lines(report: DoctorReport) -> Iterator[str]:
    if made := report.rebuilt:
        yield f"built again: {made.searches} searches, {made.files} files; set aside: {len(made.set_aside)}"
    for finding in report.findings:
        yield f"{finding.fault}: {finding.place}: {finding.detail}. What to do: {finding.mend}"
    if report.others_at_work:
        yield "runs are at work there: check again when they have ended"
    yield (
        f"{report.datasets} data sets, {report.files:,} files, {report.rows:,} rows: "
        f"{len(report.findings) or 'no'} finding{'' if len(report.findings) == 1 else 's'}"
    )


def _print_environment(as_json: bool) -> None:
    import json

    from id2core import environment

    facts = {
        "versions": environment.versions(),
        "devices": environment.devices(),
        "faiss": environment.faiss_status(),
        "hub": environment.hub_status(),
        "prefect_api": os.environ.get("PREFECT_API_URL", "none: commands run without Prefect"),
        "settings": _settings(),
    }
    if as_json:
        sys.stdout.write(json.dumps(facts, default=str) + "\n")
        return
    for section, value in facts.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for name, content in rows:
            typer.echo(f"{section:<12} {name:<22} {content}".rstrip())
