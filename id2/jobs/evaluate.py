"""Evaluate: how good one or more transforms are, from images or from stored latents."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from id2.corpora import CorpusPair
from id2.requests import EvaluateRequest
from id2.stages import stage
from id2core import environment
from id2core.errors import CalibrationError
from id2core.evaluation import comparison, metrics
from id2core.evaluation.comparison import EvaluateReport, System, VerdictRate
from id2core.evaluation.truth_files import Truth
from id2core.runs.progress import into_tally
from id2core.runs.records import Recorder, recorded
from id2core.search import exact, looks
from id2core.search.looks import Views
from id2core.store import datasets, storage
from id2core.store.datasets import Dataset
from id2core.transforms.files import load_transform
from id2core.transforms.linear import NONE, Transform
from id2core.verdicts import judging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.normalization import normalize_matches
from id2core.verdicts.rates import verdict_rates


@dataclass(frozen=True)
class _Measurement:
    """Corpora, transforms and thresholds that an evaluation compares.

    Attributes:
        references, queries: embeddings.
        truth: which query has which origin.
        not_found: how many of these queries are not there.
        transforms: by their specs.
        k: references per query.
        calibration: whose rates are measured.
        judged: spec of the transform that the calibration is for.
        background: embeddings, where the calibration needs one.
        with_views: whether queries are looked at under more views than the whole.
    """

    references: Dataset
    queries: Dataset
    truth: Truth
    not_found: int
    transforms: dict[str, Transform]
    k: int
    calibration: Calibration | None
    judged: str
    background: Dataset | None
    with_views: bool


def run(request: EvaluateRequest) -> EvaluateReport:
    """Embed what is not embedded, search under every transform, and measure; a finished one is read back.

    Raises:
        CalibrationError: the calibration is for none of the transforms.
        TruthError, StorageError, DatasetError, TransformError: the message says what to do.
    """
    settings = request.settings()
    calibration = judging.load(request.calibration, views=settings.views)
    pair = CorpusPair.open(request.reference, request.queries, request.background, request.out, request.beam)
    if pair.background is None:
        pair = pair.with_background(judging.bundled_background(calibration))
    judging.check_background(calibration, pair.background.uri if pair.background else None)
    if calibration:
        calibration.check_ids(pair.latent_ids(settings))
    truth = pair.truth(request.truth)
    with recorded(pair.out, "evaluate", request.model_dump()) as recorder:
        measurement = _embed(request, pair, truth, calibration, recorder)
        recorder.count(references=measurement.references.rows, queries=measurement.queries.rows)
        return _measure(request, pair, measurement, recorder)


def table(out: str) -> str:
    """Read the table of a finished evaluation, as Markdown."""
    return storage.read_bytes(storage.join(storage.normalize(out), comparison.MARKDOWN)).decode()


def _embed(
    request: EvaluateRequest,
    pair: CorpusPair,
    truth: Truth,
    calibration: Calibration | None,
    recorder: Recorder,
) -> _Measurement:
    settings = request.settings()
    reference, query = pair.embed_latents(settings, recorder)
    references, queries = reference.embeddings, query.embeddings
    truth, not_found = comparison.spelled_truth(truth, queries, query.rejects, references)
    specs = dict.fromkeys(request.transform or [settings.transform])
    transforms = {spec: load_transform(spec, references.ids["encoder_id"]) for spec in specs}
    judged = _judged(calibration, transforms) if calibration else ""
    if calibration:
        w, encoder_id = transforms[judged], references.ids["encoder_id"]
        views = Views.of(w, encoder_id).id if settings.views != NONE else looks.NONE
        calibration.check_ids({looks.VIEWS: views})
    background = pair.embed_background(settings, judged, recorder) if calibration else None
    return _Measurement(
        references,
        queries,
        truth,
        not_found,
        transforms,
        settings.top_k,
        calibration,
        judged,
        background,
        settings.views != NONE,
    )


def _judged(calibration: Calibration, transforms: dict[str, Transform]) -> str:
    """The spec of the transform that a calibration is for."""
    for spec, w in transforms.items():
        if w.transform_id == calibration.transform_id:
            return spec
    raise CalibrationError(
        f"calibrated for transform {calibration.transform_id}, which is none of those measured "
        f"({', '.join(f'{spec}: {w.transform_id}' for spec, w in transforms.items())}): give its W as well"
    )


def _measure(
    request: EvaluateRequest, pair: CorpusPair, measurement: _Measurement, recorder: Recorder
) -> EvaluateReport:
    m = measurement
    config = {
        "reference": pair.reference.uri,
        "queries": pair.queries.uri,
        "background": pair.background.uri if pair.background else None,
        "truth": storage.normalize(request.truth),
        "transforms": {spec: w.transform_id for spec, w in m.transforms.items()},
        "calibration_id": m.calibration.calibration_id if m.calibration else None,
        "top_k": m.k,
        "views": m.with_views,
    }
    content = [dataset.digest for dataset in (m.references, m.queries, m.background) if dataset]
    plan_id = datasets.digest_of(config, content, sorted(m.truth.items()))
    earlier = comparison.read_report(pair.out)
    if earlier and earlier.plan_id == plan_id:
        return earlier.model_copy(update={"resumed": True})
    with recorder.stage("search"):
        systems, rates = stage("search", lambda: _search(m))
    held = comparison.origin_ids(m.references, m.truth)
    facts = comparison.EvaluationFacts(
        run_id=recorder.execution.run_id,
        plan_id=plan_id,
        config=config,
        seconds=recorder.seconds,
        versions=environment.versions(),
        references=m.references.rows,
        encoder_id=m.references.ids["encoder_id"],
        # Their queries cannot be answered.
        origins_not_in_reference=sum(1 for o in m.truth.values() if o and o not in held),
        queries_not_found=m.not_found,
        verdicts=rates,
    )
    return stage("write metrics", lambda: comparison.write(comparison.measure(systems), pair.out, facts))


def _search(m: _Measurement) -> tuple[list[System], dict[str, VerdictRate] | None]:
    """Search every query under every transform, and set the matches against the truth."""
    tables = exact.search(
        m.references,
        m.queries,
        list(m.transforms.values()),
        m.k,
        with_views=m.with_views,
        progress=into_tally(),
    )
    ids = comparison.origin_ids(m.references, m.truth)
    matches = dict(zip(m.transforms, tables, strict=True))
    systems = {
        spec: System(spec, w.transform_id, metrics.read(matches[spec], m.truth, image_ids=ids))
        for spec, w in m.transforms.items()
    }
    if m.calibration is None:
        return list(systems.values()), None
    judged, w = m.judged, m.transforms[m.judged]
    judged_matches = matches[judged]
    if m.calibration.normalization:
        judged_matches, judged = _normalized(m, m.calibration, judged_matches, w), f"{judged}, normalized"
        answers = metrics.read(judged_matches, m.truth, image_ids=ids)
        systems[judged] = System(judged, w.transform_id, answers)
    rates = verdict_rates(judged_matches, systems[judged].answers, m.truth, m.calibration, m.references.rows)
    return list(systems.values()), rates


def _normalized(m: _Measurement, calibration: Calibration, matches: pa.Table, w: Transform) -> pa.Table:
    """Matches with scores normalized as the calibration says, by the background that it was made with."""
    assert calibration.normalization and m.background
    judging.check_background_id(calibration, m.background)
    judging.check_disjoint(m.background, m.references)
    [beside] = exact.search(
        m.background,
        m.queries,
        [w],
        calibration.normalization.k,
        with_views=m.with_views,
        is_background=True,
        progress=into_tally(),
    )
    return normalize_matches(matches, beside, calibration.normalization)
