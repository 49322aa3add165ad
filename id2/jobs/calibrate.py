"""Calibrate: thresholds of verdicts for stated false-positive rates, from uploads without an origin."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from id2 import joint
from id2.channels import ChannelCorpora
from id2.corpora import CorpusPair
from id2.requests import CalibrateRequest
from id2.results import CalibrateReport, CorpusSize, JointReport, RateAtSize, TunedNormalization
from id2.searching import EmbeddedCorpora
from id2.stages import stage
from id2core.errors import CalibrationError
from id2core.evaluation import comparison, metrics
from id2core.evaluation.truth_files import Truth
from id2core.runs.progress import into_tally
from id2core.runs.records import Recorder, recorded
from id2core.search import exact, looks, shards
from id2core.search.looks import Views
from id2core.search.match_rows import CHANNEL
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.training.pairs import held_out
from id2core.transforms.files import load_transform
from id2core.transforms.linear import AUTO, NONE, Transform
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


@dataclass(frozen=True)
class _Scored:
    """The uploads and their scores, as they are calibrated.

    Attributes:
        matches: of `schemas.MATCHES`, normalized where `normalization` says so.
        truth: of the uploads that were not tuned on.
        ids: `schemas.ROW_IDS` of the scores, and `views`.
        normalization: of the scores; None where they are raw.
        tuning: how it was tuned, where it was.
    """

    matches: pa.Table
    truth: Truth
    ids: dict[str, str]
    normalization: Normalization | None
    tuning: Tuning | None


def run(request: CalibrateRequest) -> CalibrateReport:
    """Embed what is not embedded, search, take the thresholds, and write them.

    Raises:
        CalibrationError: there are too few uploads without origin for a rate, or options do not fit.
    """
    folder = storage.normalize(request.data)
    pair = CorpusPair.open(request.reference, request.queries, request.background, folder, request.beam)
    settings = request.settings()
    given = _given(request, pair) if request.calibration else None
    second = None
    if request.also:
        encoder_id = pair.latent_ids(settings)["encoder_id"]
        second = ChannelCorpora.open_corpora(request, pair.out, encoder_id)
        second.check_sources(pair)
        joint.check_shares(given, second, request.match, request.weights)
    if given:
        pair = _with_background(given, pair)
    truth = pair.truth(request.truth) if request.truth else None
    if given is None:
        _check_origins(request, truth)
    with recorded(folder, "calibrate", request.model_dump()) as recorder:
        corpora = _embed(request, pair, truth, recorder)
        others = second.embed(pair, ({}, {}), recorder) if second else None
        with recorder.stage("calibrate"):
            chosen, scored = stage("calibrate", lambda: _calibrate(request, corpora, given))
        both: JointReport | None = None
        if second and others:
            with recorder.stage("calibrate jointly"):
                both = stage(
                    "calibrate jointly", lambda: _joint(request, corpora, chosen, scored, second, others)
                )
        if request.out:
            chosen.save(request.out)
        recorder.count(references=corpora.references.rows, queries=corpora.queries.rows)
    tuning = scored.tuning
    return CalibrateReport(
        run_id=recorder.execution.run_id,
        calibration_id=chosen.calibration_id,
        tuned=TunedNormalization(micro_ap=tuning.micro_ap, raw_micro_ap=tuning.raw_micro_ap)
        if tuning
        else None,
        larger=_larger(chosen),
        truth_not_found=corpora.not_found,
        joint=both,
        out=storage.normalize(request.out) if request.out else None,
        **{name: getattr(chosen, name) for name in Calibration.model_fields},
    )


def _given(request: CalibrateRequest, pair: CorpusPair) -> Calibration:
    """Load the calibration that is taken as it is, and check that it is for these scores."""
    settings, spec = request.settings(), str(request.calibration)
    ids = pair.latent_ids(settings)
    w = load_transform(settings.transform, ids["encoder_id"])
    ids["transform_id"] = w.transform_id
    views = Views.of(w, ids["encoder_id"]).id if settings.views != NONE else looks.NONE
    chosen = judging.choose(AUTO, ids | {looks.VIEWS: views}) if spec == AUTO else calibration.load(spec)
    if chosen is None:
        raise CalibrationError(
            f"no calibration ships with the encoder {ids['encoder_id']} and the transform {w.transform_id}: "
            "leave --calibration out, and give --out for a new one"
        )
    chosen.check_ids(ids | {looks.VIEWS: views if chosen.views != looks.NONE else looks.NONE})
    return chosen


def _with_background(given: Calibration, pair: CorpusPair) -> CorpusPair:
    """Return the pair with the background of a calibration; raise where the two do not fit."""
    pair = pair.with_background(judging.bundled_background(given))
    background = pair.background
    judging.check_background(given, background.uri if background else None)
    if background and background.dataset:
        judging.check_background_id(given, background.dataset)
    return pair


def _joint(
    request: CalibrateRequest,
    corpora: _Corpora,
    chosen: Calibration,
    scored: _Scored,
    second: ChannelCorpora,
    others: EmbeddedCorpora,
) -> JointReport:
    """Score the same uploads in the second channel, and write the joint calibration."""
    matches = {CHANNEL: scored.matches, second.name: joint.scored(second, others)}
    truth = scored.truth if corpora.truth else None
    sizes = corpora.references.rows, others.references.embeddings.rows
    rates = request.match, request.review
    made = str(request.joint_out)
    return joint.calibrate(chosen, second, matches, truth, sizes, rates, request.weights, made)


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


def _calibrate(
    request: CalibrateRequest, corpora: _Corpora, given: Calibration | None
) -> tuple[Calibration, _Scored]:
    """Score the uploads, and take the thresholds from those that have no origin, unless they are given."""
    scored = _score(request, corpora, given)
    if given:
        return given, scored
    column = "normalized_score" if scored.normalization else "score"
    made = calibration.calibrate(
        calibration.best_scores(scored.matches, scored.truth, column),
        match=request.match,
        review=request.review,
        references=corpora.references.rows,
        ids=scored.ids,
        normalization=scored.normalization,
        tuned_on=TUNING_SHARE if scored.tuning else 0.0,
        content=_content(corpora),
        pairs=calibration.best_pairs(scored.matches, scored.truth, column, corpora.references.rows),
        for_references=round(request.for_references) if request.for_references else None,
    )
    return made, scored


def _score(request: CalibrateRequest, corpora: _Corpora, given: Calibration | None) -> _Scored:
    """Search, and normalize: as a calibration that is given says, else as the request does."""
    ids = corpora.references.ids
    w = load_transform(request.settings().transform, ids["encoder_id"])
    with_views = request.settings().views != NONE and (given is None or given.views != looks.NONE)
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
    how, tuning = given.normalization if given else None, None
    if corpora.background:
        depth = how.k if how else request.k or max(normalization.KS)
        behind = _search_background(request, corpora, corpora.background, w, depth, with_views)
        if given:
            judging.check_background_id(given, corpora.background)
        else:
            how, tuning, truth = _normalization(request, corpora, matches, behind, truth)
        if how:
            matches = normalize_matches(matches, behind, how)
    made_with = {name: ids[name] for name in schemas.ROW_IDS}
    return _Scored(
        matches, truth, made_with | {"transform_id": w.transform_id, looks.VIEWS: views}, how, tuning
    )


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
    request: CalibrateRequest,
    corpora: _Corpora,
    background: Dataset,
    w: Transform,
    depth: int,
    with_views: bool,
) -> pa.Table:
    """What the queries score in the background, `depth` deep."""
    made_with = background.ids["transform_id"]
    if made_with != w.transform_id:
        raise CalibrationError(
            f"{background.uri} was embedded with transform {made_with}, this calibration is for "
            f"{w.transform_id}; a scan would not know the background again: give its images, or embed them "
            f"with --transform {request.settings().transform}"
        )
    judging.check_disjoint(background, corpora.references)
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
