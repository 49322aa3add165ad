"""Calibrate: thresholds of verdicts for stated false-positive rates, from uploads without an origin."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from id2.corpora import CorpusPair
from id2.requests import CalibrateRequest
from id2.results import CalibrateReport, CorpusSize, RateAtSize, TunedNormalization
from id2.stages import stage
from id2core.errors import CalibrationError
from id2core.evaluation import comparison, metrics
from id2core.evaluation.truth_files import Truth
from id2core.runs.progress import into_tally
from id2core.runs.records import Recorder, recorded
from id2core.search import exact, looks, shards
from id2core.search.looks import Views
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.training.pairs import held_out
from id2core.transforms.files import load_transform
from id2core.transforms.linear import NONE, Transform
from id2core.verdicts import calibration, content, judging, normalization, tails
from id2core.verdicts.calibration import Calibration, Verdict
from id2core.verdicts.normalization import Normalization, Tuning, normalize_matches

# References kept per query of which µAP, which is tuned, is measured. Tail models want more.
DEPTH = 10
# Share of the queries on which factor and k are tuned; no threshold is made of their scores.
TUNING_SHARE = 0.3
# Larger corpora that the report shows, in times the references; verdicts that have a threshold.
LARGER = (1, 10, 100, 1000)
SHOWN = (Verdict.MATCH, Verdict.REVIEW)


@dataclass(frozen=True)
class _Corpora:
    """Embedded corpora and the truth of the queries; no truth: no query has an origin.

    Attributes:
        not_found: queries of the truth that are not there.
    """

    references: Dataset
    queries: Dataset
    background: Dataset | None
    truth: Truth | None
    not_found: int = 0


def run(request: CalibrateRequest) -> CalibrateReport:
    """Embed what is not embedded, search, take the thresholds, and write them.

    Raises:
        CalibrationError: there are too few uploads without origin for a rate, or options do not fit.
    """
    folder = storage.normalize(f"{request.out.removesuffix('.json')}-data")
    pair = CorpusPair.open(request.reference, request.queries, request.background, folder, request.beam)
    truth = pair.truth(request.truth) if request.truth else None
    _check_origins(request, truth)
    with recorded(folder, "calibrate", request.model_dump()) as recorder:
        corpora = _embed(request, pair, truth, recorder)
        with recorder.stage("calibrate"):
            chosen, tuning = stage("calibrate", lambda: _calibrate(request, corpora))
        chosen.save(request.out)
        recorder.count(references=corpora.references.rows, queries=corpora.queries.rows)
    return CalibrateReport(
        run_id=recorder.execution.run_id,
        calibration_id=chosen.calibration_id,
        tuned=TunedNormalization(micro_ap=tuning.micro_ap, raw_micro_ap=tuning.raw_micro_ap)
        if tuning
        else None,
        larger=_larger(chosen),
        truth_not_found=corpora.not_found,
        out=storage.normalize(request.out),
        **{name: getattr(chosen, name) for name in Calibration.model_fields},
    )


def _larger(chosen: Calibration) -> list[CorpusSize]:
    """Return thresholds and rates for larger corpora, where they follow from a tail model."""
    if chosen.rates_from != calibration.TAIL_MODEL:
        return []
    sizes = {factor * chosen.references for factor in LARGER} | {chosen.for_references or chosen.references}
    return [CorpusSize(references=n, **{v.value: _at(chosen, v, n) for v in SHOWN}) for n in sorted(sizes)]


def _at(chosen: Calibration, verdict: Verdict, references: int) -> RateAtSize:
    rate, ends = chosen.false_positive_rate(verdict, references), chosen.interval(verdict, references)
    assert rate is not None and ends is not None  # both verdicts have a threshold
    return RateAtSize(
        threshold=chosen.threshold(verdict, references),
        is_out_of_reach=chosen.is_out_of_reach(verdict, references),
        false_positive_rate=rate,
        low=ends[0],
        high=ends[1],
    )


def _embed(request: CalibrateRequest, pair: CorpusPair, truth: Truth | None, recorder: Recorder) -> _Corpora:
    settings = request.settings()
    references, queries = pair.embed_latents(settings, recorder)
    background = pair.embed_background(settings, settings.transform, recorder)
    not_found = 0
    if truth is not None:
        truth, not_found = comparison.spelled_truth(
            truth, queries.embeddings, queries.rejects, references.embeddings
        )
    return _Corpora(references.embeddings, queries.embeddings, background, truth, not_found)


def _check_origins(request: CalibrateRequest, truth: Truth | None) -> None:
    tuned = request.background is not None and (request.factor is None or request.k is None)
    if tuned and not any((truth or {}).values()):
        raise CalibrationError(
            "factor and k are tuned on uploads with an origin, and none is known: give a --truth that names "
            "some, or --factor and --k"
        )


def _calibrate(request: CalibrateRequest, corpora: _Corpora) -> tuple[Calibration, Tuning | None]:
    """Search, normalize, and take the thresholds from the uploads that have no origin."""
    ids = corpora.references.ids
    w = load_transform(request.settings().transform, ids["encoder_id"])
    with_views = request.settings().views != NONE
    [matches] = exact.search(
        corpora.references,
        corpora.queries,
        [w],
        tails.DEPTH,
        with_views=with_views,
        progress=into_tally(),
    )
    views = Views.of(w, ids["encoder_id"]).id if with_views else looks.NONE
    truth = corpora.truth
    if truth is None:
        truth = dict.fromkeys(matches["query_uri"].unique().to_pylist())
    chosen, tuning = None, None
    if corpora.background:
        background_matches = _search_background(request, corpora, corpora.background, w)
        chosen, tuning, truth = _normalization(request, corpora, matches, background_matches, truth)
        if chosen:
            matches = normalize_matches(matches, background_matches, chosen)
    column = "normalized_score" if chosen else "score"
    made = calibration.calibrate(
        calibration.best_scores(matches, truth, column),
        match=request.match,
        review=request.review,
        references=corpora.references.rows,
        ids={name: ids[name] for name in schemas.ROW_IDS}
        | {"transform_id": w.transform_id, looks.VIEWS: views},
        normalization=chosen,
        tuned_on=TUNING_SHARE if tuning else 0.0,
        content=_content(corpora),
        pairs=calibration.best_pairs(matches, truth, column, corpora.references.rows),
        for_references=round(request.for_references) if request.for_references else None,
    )
    return made, tuning


def _content(corpora: _Corpora) -> float | None:
    """The least information of a picture with content: by the background, else by the references."""
    for honest in filter(None, (corpora.background, corpora.references)):
        column = honest.read(schemas.embeddings_schema(1, 1), ["information"])["information"]
        least = content.threshold(honest.ids["encoder_id"], column.to_numpy())
        if least is not None:
            return least
    return None


def _normalization(
    request: CalibrateRequest,
    corpora: _Corpora,
    matches: pa.Table,
    background_matches: pa.Table,
    truth: Truth,
) -> tuple[Normalization | None, Tuning | None, Truth]:
    """How to normalize, how it was tuned where it was, and the truth of queries that were not tuned on."""
    assert corpora.background
    background_id = shards.index_id(corpora.background)
    if request.factor is not None and request.k is not None:
        return Normalization(factor=request.factor, k=request.k, background_id=background_id), None, truth
    best = matches.filter(pc.equal(matches["rank"], 1))
    uris, ids = (best[column].to_pylist() for column in ("query_uri", "query_id"))
    tuned_on = {uri for uri, held in zip(uris, held_out(ids, TUNING_SHARE).tolist(), strict=True) if held}
    answers = metrics.read(
        matches.filter(pc.less_equal(matches["rank"], DEPTH)),
        {query: origin for query, origin in truth.items() if query in tuned_on},
        score="score",
        image_ids=comparison.origin_ids(corpora.references, truth),
    )
    tuning = normalization.tune(
        answers,
        background_matches,
        background_id,
        normalization.FACTORS if request.factor is None else (request.factor,),
        normalization.KS if request.k is None else (request.k,),
    )
    rest = {query: origin for query, origin in truth.items() if query not in tuned_on}
    return tuning.normalization, tuning, rest


def _search_background(
    request: CalibrateRequest, corpora: _Corpora, background: Dataset, w: Transform
) -> pa.Table:
    """What the queries score in the background, deep enough for every k that may be chosen."""
    made_with = background.ids["transform_id"]
    if made_with != w.transform_id:
        raise CalibrationError(
            f"{background.uri} was embedded with transform {made_with}, this calibration is for "
            f"{w.transform_id}; a scan would not know the background again: give its images, or embed them "
            f"with --transform {request.settings().transform}"
        )
    judging.check_disjoint(background, corpora.references)
    depth = request.k or max(normalization.KS)
    with_views = request.settings().views != NONE
    [matches] = exact.search(
        background,
        corpora.queries,
        [w],
        depth,
        with_views=with_views,
        is_background=True,
        progress=into_tally(),
    )
    return matches
