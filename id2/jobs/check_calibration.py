"""Check that a calibration still holds, on uploads whose origin is known."""

from __future__ import annotations

from importlib import resources
from tempfile import TemporaryDirectory

from id2.jobs import evaluate
from id2.requests import CheckCalibrationRequest, EvaluateRequest
from id2.results import CalibrationCheck
from id2core.errors import CalibrationError
from id2core.evaluation.comparison import EvaluateReport, VerdictRate
from id2core.runs.records import recorded
from id2core.store import datasets, storage, strict_json

FILE = "check.json"


def run(request: CheckCalibrationRequest) -> CalibrationCheck:
    """Embed, search and measure labeled uploads; write OUT/check.json where the calibration holds.

    Raises:
        CalibrationError: the calibration does not hold, or belongs to another encoder or transform.
    """
    out = storage.normalize(request.out)
    with recorded(out, "check-calibration", request.model_dump()) as recorder:
        with recorder.stage("measure"):
            report, pairs = _measure(request)
        last = read_last(out)
        before = last.accuracy if last and last.pairs == pairs else None
        accuracy = report.systems[-1].accuracy.value
        check = CalibrationCheck(
            run_id=recorder.execution.run_id,
            pairs=pairs,
            calibration_id=str(report.config["calibration_id"]),
            accuracy=accuracy,
            accuracy_before=before,
            verdicts=report.verdicts or {},
            problems=problems(report.verdicts or {}, accuracy, before),
        )
        if check.problems:
            # What passed last stays in the file: the next check must not compare with a failure.
            raise CalibrationError(
                f"calibration {check.calibration_id} does not hold: {'; '.join(check.problems)}. Check that "
                "encoder, W and calibration are those that were deployed. If they are, calibrate again"
            )
        storage.write_bytes(storage.join(out, FILE), check.model_dump_json(indent=2).encode())
    return check


def read_last(out: str) -> CalibrationCheck | None:
    """Return the last check that passed; None where there is none that can be read."""
    try:
        raw = strict_json.parse_object(storage.read_bytes(storage.join(out, FILE)))
        return CalibrationCheck.model_validate(raw)
    except (FileNotFoundError, ValueError):
        return None


def problems(verdicts: dict[str, VerdictRate], accuracy: float | None, before: float | None) -> list[str]:
    """Return why a calibration does not hold.

    A measured rate has an interval of its own, wide where few uploads have no origin. It contradicts the
    stated rate where the two intervals have nothing in common.
    """
    found = [
        f"the false-positive rate of {verdict} is {100 * rate.measured:.3g}% (95% interval "
        f"{100 * rate.low:.3g} to {100 * rate.high:.3g}%), stated are {100 * rate.stated_low:.3g} to "
        f"{100 * rate.stated_high:.3g}%"
        for verdict, rate in verdicts.items()
        if rate.measured is not None
        and rate.low is not None
        and rate.high is not None
        and rate.stated_low is not None
        and rate.stated_high is not None
        and (rate.low > rate.stated_high or rate.high < rate.stated_low)
    ]
    if accuracy is not None and before is not None and accuracy < before:
        found.append(f"Acc is {accuracy:.1%}, below the {before:.1%} of the last check")
    return found


def _measure(request: CheckCalibrationRequest) -> tuple[EvaluateReport, str]:
    """Measure the labeled uploads; return the figures, and a name of these uploads."""
    data = resources.files("id2core") / "data" / "demo"
    with TemporaryDirectory(prefix="id2-check-") as folder, resources.as_file(data) as demo:
        reference = request.reference or str(demo / "references")
        queries = request.queries or str(demo / "uploads")
        truth = request.truth or str(demo / "truth.csv")
        settings = request.settings()
        report = evaluate.run(
            EvaluateRequest(
                reference=reference,
                queries=queries,
                truth=truth,
                out=folder,
                transform=[settings.transform],
                encoder=settings.encoder,
                background=request.background,
                calibration=settings.calibration,
            )
        )
        labels = storage.read_bytes(storage.normalize(truth))
    named = [request.reference, request.queries, labels.hex(), report.references]
    return report, datasets.digest_of(named)
