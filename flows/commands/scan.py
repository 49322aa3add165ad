"""`id2 scan`, and how the summary of a scan is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

import id2
from flows.commands import console
from flows.commands.options import command
from id2.requests import ScanRequest

if TYPE_CHECKING:
    from id2.results import ScanSummary
    from id2core.evaluation.metrics import Evaluation
    from id2core.verdicts.channel_facts import JointFacts
    from id2core.verdicts.judging import CalibrationFacts

app = typer.Typer()
NO_VERDICTS = "calibration: none, so there are scores and no verdicts"
NO_PAIRS = (
    "no pair is stored: no upload scores near the review threshold. To see the scores, scan into another "
    "--out with --keep all"
)


@command(
    app,
    id2.scan,
    "flows.scan:scan",
    epilog="Examples: id2 scan --reference originals --queries uploads --out results. The same in four "
    "worker processes: add `-- --direct_running_mode=multi_processing --direct_num_workers=4` at the end.",
)
def show(summary: ScanSummary, request: ScanRequest) -> None:
    """Print the summary, and where the report is."""
    announce(summary, request.out)


def announce(summary: ScanSummary, out: str) -> None:
    """Print the summary of a scan on stderr, and the place of its report on stdout."""
    console.echo_lines(summary_lines(summary))
    typer.echo(f"{out.rstrip('/')}/report.html")


def summary_lines(summary: ScanSummary) -> Iterator[str]:
    """Yield what a scan counted, judged and measured, a line each."""
    yield from _count_lines(summary)
    if used := summary.transform:
        yield f"transform: {used.id} ({used.origin})" if used.origin != "none" else "transform: none"
    if summary.joint:
        yield from _joint_lines(summary, summary.joint)
    elif summary.calibration:
        yield _verdict_line(summary.verdicts, summary.calibration)
    else:
        yield NO_VERDICTS
    if empty := summary.verdict_reasons.get("no_content"):
        yield f"none includes {empty} with no_content: the upload, or its best reference, shows nothing"
    lost = {side: reasons.get("not_encodable", 0) for side, reasons in summary.rejects.items()}
    if any(lost.values()):
        counted = ", ".join(f"{count} of {side}" for side, count in lost.items() if count)
        yield f"pictures lost because their latents are not finite: {counted}"
    yield from _measure_lines(summary)


def _count_lines(summary: ScanSummary) -> Iterator[str]:
    counts = summary.counts
    yield (
        f"{counts.queries} uploads compared with {counts.references} originals; "
        f"{counts.query_rejects + counts.reference_rejects} files rejected{_reasons(summary.rejects, '')}"
    )
    for name in summary.inputs.channels:
        if reasons := _reasons(summary.rejects, f"{name}/"):
            yield f"channel {name} rejected{reasons}"
    if not counts.references:
        yield "warning: no reference could be read, so nothing was compared. Check --reference"
    if not counts.queries:
        yield "warning: no upload could be read, so nothing was compared. Check --queries"


def _measure_lines(summary: ScanSummary) -> Iterator[str]:
    if summary.accuracy is not None and summary.measures:
        channels = summary.channel_measures or {"": summary.measures}
        for name, own in channels.items():
            yield (f"channel {name}: " if name else "") + _measured(own, summary.accuracy_of)
        if summary.joint and (found := summary.origins_found):
            yield f"origins found in first place, by verdict: {_counts(found)}"
    elif summary.truth_not_scanned is not None:
        yield "no Acc: the truth file names no upload of this scan that has an origin"
    yield from console.truth_lines(summary.truth_not_scanned, summary.truth_origins_not_held)


def _measured(own: Evaluation, uploads: int | None) -> str:
    measures = (("mAP", own.mean_ap.value), ("µAP", own.micro_ap.value))
    shown = [f"Acc {own.accuracy.value:.1%} of {uploads} uploads with an origin"]
    return ", ".join(shown + [f"{name} {value:.3f}" for name, value in measures if value is not None])


def _reasons(rejects: dict[str, dict[str, int]], channel: str) -> str:
    """Return how often each reason occurs in both corpora, the most frequent first; empty without rejects.

    Args:
        rejects: side → reason → how many.
        channel: what stands before the sides of a channel.
    """
    total: Counter[str] = Counter()
    for side in ("reference", "queries"):
        total.update(rejects.get(f"{channel}{side}", {}))
    return f" ({', '.join(f'{count} {reason}' for reason, count in total.most_common())})" if total else ""


def _joint_lines(summary: ScanSummary, joint: JointFacts) -> Iterator[str]:
    rate = joint.verdicts["match"]
    yield (
        f"{_verdict_counts(summary.verdicts)}; false-positive rate of a match over "
        f"{len(joint.channels)} channels "
        f"{console.percent(rate.false_positive_rate)} by the rule {joint.rule} "
        f"({console.interval(joint.confidence, rate.low, rate.high)}), calibration {joint.calibration_id}"
    )
    for name, verdicts in summary.channels.items():
        yield f"channel {name}: {_counts(verdicts)}"


def _verdict_counts(verdicts: dict[str, int]) -> str:
    """Return how many have which verdict; without any, what that means."""
    return _counts(verdicts) or NO_PAIRS


def _counts(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())


def _verdict_line(verdicts: dict[str, int], calibration: CalibrationFacts) -> str:
    rate = calibration.verdicts["match"]
    counts = _verdict_counts(verdicts)
    if rate.false_positive_rate is None or rate.low is None or rate.high is None:
        return counts
    return (
        f"{counts}; false-positive rate of a match {console.percent(rate.false_positive_rate)} "
        f"({console.interval(calibration.confidence, rate.low, rate.high)}), "
        f"calibration {calibration.calibration_id} ({calibration.origin})"
    )
