"""The calibrate flow: thresholds of verdicts for stated false-positive rates, from uploads without origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from prefect import flow, task

from flows.progress import reporter
from flows.sides import Sides
from flows.tasks import RETRY
from id2core.errors import CalibrationError
from id2core.evaluation import comparison as measured
from id2core.evaluation import metrics
from id2core.evaluation.truth_files import Truth
from id2core.search import exact, shards
from id2core.settings import Settings
from id2core.store import datasets, schemas, storage
from id2core.training.pairs import held_out
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from id2core.verdicts import calibration, judging, normalization
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.normalization import Normalization, Tuning, normalize_matches

# Of the queries, for the choice of factor and k; no threshold is made of their scores.
TUNING_SHARE = 0.3
# References kept per query: µAP, which is tuned, is of all of them.
DEPTH = 10


@dataclass(frozen=True)
class Question:
    """What is calibrated.

    Attributes:
        references, queries: embeddings data sets.
        transform: spec, as `transform.load` takes it.
        match, review: false-positive rates.
        truth: which queries have an origin; None where none has.
        background: embeddings data set with descriptors of this transform; None for raw scores.
        factor, k: of the normalization; what is None is tuned.
    """

    references: str
    queries: str
    transform: str
    match: float
    review: float
    truth: Truth | None = None
    background: str | None = None
    factor: float | None = None
    k: int | None = None

    def load(self) -> Transform:
        """The transform."""
        return load_transform(self.transform, datasets.require_commit(self.references).ids["encoder_id"])


@task(**RETRY)
def answer(question: Question) -> tuple[Calibration, Tuning | None]:
    """Look up, normalize, and take the thresholds of the uploads that have no origin."""
    q, w = question, question.load()
    [matches] = exact.search(q.references, q.queries, [w], DEPTH, progress=reporter())
    known = dict.fromkeys(matches["query_uri"].unique().to_pylist()) if q.truth is None else q.truth
    tuning = normalization = None
    if q.background:
        strangers, name = _background(q, w)
        normalization, tuning, known = _normalization(q, matches, strangers, name, known)
        if normalization:
            matches = normalize_matches(matches, strangers, normalization)
    commit = datasets.require_commit(q.references)
    column = "normalized_score" if normalization else "score"
    found = calibration.calibrate(
        calibration.best_scores(matches, known, column),
        match=q.match,
        review=q.review,
        references=commit.rows,
        ids={name: commit.ids[name] for name in schemas.IDS} | {"transform_id": w.transform_id},
        normalization=normalization,
        tuned_on=TUNING_SHARE if tuning else 0.0,
    )
    return found, tuning


def _background(question: Question, w: Transform) -> tuple[pa.Table, str]:
    """What the queries find in the background, and the name by which a scan knows it."""
    q, uri = question, question.background or ""
    commit = datasets.require_commit(uri)
    if commit.ids["transform_id"] != w.transform_id:
        raise CalibrationError(
            f"{uri} was embedded with transform {commit.ids['transform_id']}, this calibration is for "
            f"{w.transform_id}; a scan would not know the background again: give its images, or embed them "
            f"with --transform {q.transform}"
        )
    judging.check_disjoint(uri, q.references)
    [found] = exact.search(uri, q.queries, [w], q.k or max(normalization.KS), progress=reporter())
    return found, shards.index_id(commit)


def _normalization(
    question: Question, matches: pa.Table, strangers: pa.Table, name: str, known: Truth
) -> tuple[Normalization | None, Tuning | None, Truth]:
    """How to normalize, how it was tuned where it was, and the truth of queries that were not tuned on."""
    q = question
    if q.factor is not None and q.k is not None:
        return Normalization(factor=q.factor, k=q.k, background_id=name), None, known
    seen = matches.filter(pc.equal(matches["rank"], 1))
    uris, ids = (seen[column].to_pylist() for column in ("query_uri", "query_id"))
    tuned_on = {uri for uri, chosen in zip(uris, held_out(ids, TUNING_SHARE).tolist(), strict=True) if chosen}
    answers = metrics.read(
        matches,
        {query: origin for query, origin in known.items() if query in tuned_on},
        score="score",
        image_ids=measured.origin_ids(q.references, known),
    )
    found = normalization.tune(
        answers,
        strangers,
        name,
        normalization.FACTORS if q.factor is None else (q.factor,),
        normalization.KS if q.k is None else (q.k,),
    )
    return found.normalization, found, {u: origin for u, origin in known.items() if u not in tuned_on}


@flow(name="calibrate", flow_run_name="calibrate {out}", validate_parameters=True)
def calibrate(
    reference: str,
    queries: str,
    out: str,
    match: float,
    review: float,
    transform: str | None = None,
    truth_file: str | None = None,
    background: str | None = None,
    factor: float | None = None,
    k: int | None = None,
    encoder: str | None = None,
    beam_arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Find the scores that a stated share of uploads without origin reaches, and write them to a file.

    Args:
        reference: folder or bucket of protected images, or an embeddings data set.
        queries: folder or bucket of uploads, or an embeddings data set.
        out: the JSON file; images are embedded into a folder beside it, `NAME-data`.
        match, review: false-positive rates of the two verdicts.
        transform: file of W, `auto` or `none`; by default the setting's.
        truth_file: which uploads have an origin; without one, none has.
        background: images or embeddings of strangers, by which scores are normalized.
        factor, k: of the normalization; what is not given is tuned on 30 % of the queries.
        encoder: of images; overrides the setting.
        beam_arguments: Beam's own options, for embedding.

    Returns:
        What the file holds, and how the normalization was `tuned`.

    Raises:
        CalibrationError: there are too few uploads without origin for a rate, or settings do not fit.
    """
    _check(match, review, background, factor, k)
    sides = Sides.of(reference, queries, background, f"{out.removesuffix('.json')}-data", beam_arguments)
    chosen = {"encoder": encoder, "transform": transform}
    settings = Settings(**{name: v for name, v in chosen.items() if v is not None})
    known = sides.truth(truth_file) if truth_file else None
    _check_origins(known, background, factor, k)
    left, right = sides.embed(settings)
    if known is not None:
        measured.check_truth(known, right)
    strangers = sides.embed_background(settings, settings.transform)
    question = Question(left, right, settings.transform, match, review, known, strangers, factor, k)
    found, tuning = answer(question)
    found.save(out)
    return {
        **found.model_dump(mode="json"),
        "calibration_id": found.calibration_id,
        "tuned": {"micro_ap": tuning.micro_ap, "raw_micro_ap": tuning.raw_micro_ap} if tuning else None,
        "out": storage.normalize(out),
    }


def _check(match: float, review: float, background: str | None, factor: float | None, k: int | None) -> None:
    """What can be refused before any work."""
    if not 0 < match <= review < 1:
        raise CalibrationError(f"the rates must be 0 < match ≤ review < 1, not {match} and {review}")
    if background is None and (factor is not None or k is not None):
        raise CalibrationError("factor and k are for normalizing scores by a background: give --background")
    if (factor is not None and factor <= 0) or (k is not None and k < 1):
        raise CalibrationError(f"factor {factor} and k {k}: choose more than 0, and 1 or more")


def _check_origins(known: Truth | None, background: str | None, factor: float | None, k: int | None) -> None:
    tuned = background is not None and (factor is None or k is None)
    if tuned and not any((known or {}).values()):
        raise CalibrationError(
            "factor and k are tuned on uploads with an origin, and none is known: give a --truth that names "
            "some, or --factor and --k"
        )
