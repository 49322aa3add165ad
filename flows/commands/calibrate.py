"""`id2 calibrate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import CalibrateRequest

if TYPE_CHECKING:
    from id2.results import CalibrateReport, JointReport

app = typer.Typer()


@command(
    app,
    id2.calibrate,
    "flows.calibrate:calibrate",
    epilog="Example: id2 calibrate --reference dataset:originals-id2 "
    "--queries dataset:uploads-id2 --truth truth.csv "
    "--transform w/W.safetensors --match 0.001 --review 0.01 --out w/calibration.json. One verdict of two "
    "encoders, with the calibration that ships with W: id2 calibrate --reference originals --queries "
    "old-uploads --match 0.01 --review 0.1 --calibration auto --also pdq --also-calibration pdq.json "
    "--joint-out joint.json",
)
def show(report: CalibrateReport, request: CalibrateRequest) -> None:
    """Print the thresholds and their rates, and where they are."""
    console.echo_lines(report_lines(report))
    for file in filter(None, (report.out, report.joint and report.joint.out)):
        typer.echo(file)


def report_lines(report: CalibrateReport) -> Iterator[str]:
    """Yield the thresholds as a table, how they follow the corpus, and how scores are normalized."""
    if report.out is None:
        yield f"The calibration {report.calibration_id} was given, and is as it was."
    yield f"From {report.queries:,} uploads without origin, for a corpus of {report.references:,} references."
    columns = ("verdict", "rate asked for", "score from", "reached by", "95% interval", "95% upper bound")
    yield f"| {' | '.join(columns)} |"
    yield "|---|---:|---:|---:|---:|---:|"
    for verdict, t in (("match", report.match), ("review", report.review)):
        yield (
            f"| {verdict} | {t.target:.3%} | {t.score:.4f} | {t.exceedances:,} of {report.queries:,} | "
            f"{t.low:.3%} to {t.high:.3%} | {t.upper:.3%} |"
        )
    yield from _larger_lines(report)
    if normalization := report.normalization:
        yield (
            f"Scores less {normalization.factor:g} × the mean of the {normalization.k} best scores in the "
            f"background {normalization.background_id}."
        )
    yield from console.truth_lines(report.truth_not_found, 0)
    if report.tuned:
        yield (
            f"µAP of the queries tuned on: {report.tuned.raw_micro_ap:.1%} raw, {report.tuned.micro_ap:.1%} "
            "chosen."
        )
    if report.joint:
        yield from _joint_lines(report.joint)


def _joint_lines(joint: JointReport) -> Iterator[str]:
    """Yield the rate of an upload over all channels, and what each channel contributes."""
    names = " and ".join(joint.channels)
    yield (
        f"One verdict of {names}, measured on {joint.queries:,} uploads without origin, for a corpus of "
        f"{joint.references:,} references. Joint calibration {joint.calibration_id}."
    )
    columns = [cell for name in joint.channels for cell in (f"{name} from", f"reached in {name}")]
    yield f"| verdict | rate | reached by | 95% interval of the rate | {' | '.join(columns)} | in several |"
    yield f"|---|---:|---:|---:|{'---:|' * (len(columns) + 1)}"
    for verdict, level in (("match", joint.match), ("review", joint.review)):
        cells = [
            cell
            for own in joint.channels.values()
            for cell in (_score(own.thresholds[verdict]), f"{own.reached[verdict]:,}")
        ]
        yield (
            f"| {verdict} | {level.target:.3%} | {level.exceedances:,} of {joint.queries:,} | "
            f"{level.low:.3%} to {level.high:.3%} | {' | '.join(cells)} | {joint.in_several[verdict]:,} |"
        )
    for name, own in joint.channels.items():
        if lost := joint.queries - own.scored:
            yield f"The channel {name} rejected {lost:,} of them: the others judge these at their own share."


def _score(threshold: float | None) -> str:
    return "–" if threshold is None else f"{threshold:.4f}"


def _larger_lines(report: CalibrateReport) -> Iterator[str]:
    """Yield what holds for larger corpora."""
    if not report.larger:
        yield (
            "These scores have no tail model. Against N times as many references, a scan states N times the "
            "rate."
        )
        return
    if report.for_references:
        yield f"Thresholds are chosen for a corpus of up to {report.for_references:,} references."
    yield "| references | match from | rate, 95% interval | review from | rate, 95% interval |"
    yield "|---:|---:|---:|---:|---:|"
    for size in report.larger:
        cells = " | ".join(
            f"{t.threshold:.4f} | {t.false_positive_rate:.3%}, {t.low:.3%} to {t.high:.3%}"
            for t in (size.match, size.review)
        )
        yield f"| {size.references:,} | {cells} |"
    lost = [size.references for size in report.larger if size.match.is_out_of_reach]
    if lost:
        yield (
            f"No score reaches the match threshold of {min(lost):,} references or more: calibrate on more "
            "references, or ask for a higher rate."
        )
