"""The evaluate flow: how good one or more transforms are, from images or from stored latents."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from prefect import flow, task

from flows.progress import reporter
from flows.sides import Sides, digests
from flows.tasks import RETRY, record_run
from id2core import environment
from id2core.errors import CalibrationError
from id2core.evaluation import comparison, metrics
from id2core.evaluation.comparison import System
from id2core.evaluation.truth_files import Truth
from id2core.search import exact
from id2core.settings import Settings
from id2core.store import datasets, storage
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from id2core.verdicts import judging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.normalization import normalize_matches
from id2core.verdicts.rates import verdict_rates


@dataclass(frozen=True)
class Question:
    """What is measured.

    Attributes:
        references, queries: embeddings data sets.
        truth: which query has which origin.
        transforms: specs, as `transform.load` takes them.
        k: references per query.
        calibration: whose rates are measured, for the transform that it is for.
        background: embeddings data set, where the calibration needs one.
    """

    references: str
    queries: str
    truth: Truth
    transforms: tuple[str, ...]
    k: int
    calibration: Calibration | None = None
    background: str | None = None

    def load(self) -> dict[str, Transform]:
        """The transforms by their specs."""
        encoder_id = datasets.require_commit(self.references).ids["encoder_id"]
        return {spec: load_transform(spec, encoder_id) for spec in self.transforms}

    def judged(self) -> str:
        """The transform that the calibration is for; CalibrationError when it is for none of those given."""
        found, chosen = self.calibration, self.load()
        assert found
        for spec, w in chosen.items():
            if w.transform_id == found.transform_id:
                return spec
        raise CalibrationError(
            f"calibrated for transform {found.transform_id}, which is none of those measured "
            f"({', '.join(f'{spec}: {w.transform_id}' for spec, w in chosen.items())}): give its W as well"
        )


# What is found: the systems, and the rates of the calibration's verdicts.
Found = tuple[list[System], dict[str, Any] | None]


@task(**RETRY)
def answer(question: Question) -> Found:
    """Look every query up under every transform, and set what is found against the truth."""
    q, chosen = question, question.load()
    found = exact.search(q.references, q.queries, list(chosen.values()), q.k, progress=reporter())
    ids = comparison.origin_ids(q.references, q.truth)
    matches = dict(zip(chosen, found, strict=True))
    systems = {
        spec: System(spec, w.transform_id, metrics.read(matches[spec], q.truth, image_ids=ids))
        for spec, w in chosen.items()
    }
    if q.calibration is None:
        return list(systems.values()), None
    judged = q.judged()
    table, w = matches[judged], chosen[judged]
    if q.calibration.normalization:
        table, name = _normalized(q, table, w), f"{judged}, normalized"
        systems[name] = System(name, w.transform_id, metrics.read(table, q.truth, image_ids=ids))
        judged = name
    references = datasets.require_commit(q.references).rows
    return list(systems.values()), verdict_rates(
        table, systems[judged].answers, q.truth, q.calibration, references
    )


def _normalized(question: Question, matches: pa.Table, w: Transform) -> pa.Table:
    """Matches with scores normalized as the calibration says, by the background that it was made with."""
    q, found = question, question.calibration
    assert found and found.normalization and q.background
    judging.check_corpus(found, q.background)
    judging.check_disjoint(q.background, q.references)
    [strangers] = exact.search(q.background, q.queries, [w], found.normalization.k, progress=reporter())
    return normalize_matches(matches, strangers, found.normalization)


@task(**RETRY)
def write(question: Question, found: Found, out: str, run: dict[str, Any]) -> dict[str, Any]:
    """Measure, and write the files and the row of the run."""
    systems, rates = found
    left, right = (datasets.require_commit(uri) for uri in (question.references, question.queries))
    held = comparison.origin_ids(question.references, question.truth)
    facts = run | {
        "references": left.rows,
        "encoder_id": left.ids["encoder_id"],
        # Their queries cannot be answered.
        "origins_not_in_reference": sum(1 for o in question.truth.values() if o and o not in held),
        "verdicts": rates,
    }
    written = comparison.write(comparison.measure(systems), out, facts, left.rows)
    record_run(out, "evaluate", run, {"listed": left.rows + right.rows})
    return written


@flow(name="evaluate", flow_run_name="evaluate {queries}", validate_parameters=True)
def evaluate(
    reference: str,
    queries: str,
    truth_file: str,
    out: str,
    transforms: list[str] | None = None,
    encoder: str | None = None,
    background: str | None = None,
    calibration_file: str | None = None,
    top_k: int | None = None,
    beam_arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Measure mAP, Acc, recall@k, µAP and R@P90 of transforms, with intervals and paired differences.

    Args:
        reference: folder or bucket of protected images, or an embeddings data set.
        queries: folder or bucket of uploads, or an embeddings data set.
        truth_file: CSV or Parquet `query_uri,reference_uri`; uploads that it does not name do not count.
        out: where `metrics.json`, `metrics.parquet`, `metrics.md` and, of images, the data sets go.
        transforms: files of W, `auto` or `none`; by default the setting's.
        encoder, top_k: override the settings.
        background: images or embeddings of the corpus that the calibration was made with; by default the
            one that is bundled with it.
        calibration_file: thresholds, whose rates are measured for the transform that they are for; `auto`
            for those that ship with the package, `none` for none.
        beam_arguments: Beam's own options, for embedding.

    Returns:
        What metrics.json holds, and whether it was there before (`resumed`).
    """
    found = judging.load(calibration_file)
    background = background or judging.bundled_background(found)
    judging.check_background(found, background)
    sides = Sides.of(reference, queries, background, out, beam_arguments)
    settings = Settings(**{k: v for k, v in {"encoder": encoder, "top_k": top_k}.items() if v is not None})
    if found:
        found.check_ids(sides.ids(settings))
    known = sides.truth(truth_file)
    started = time.monotonic()
    left, right = sides.embed(settings)
    comparison.check_truth(known, right)
    specs = tuple(dict.fromkeys(transforms or [settings.transform]))
    question = Question(left, right, known, specs, settings.top_k, found)
    if found:
        strangers = sides.embed_background(settings, question.judged())
        question = replace(question, background=strangers)
    config = {
        "reference": sides.reference,
        "queries": sides.queries,
        "background": sides.background,
        "truth": storage.normalize(truth_file),
        "transforms": {spec: w.transform_id for spec, w in question.load().items()},
        "calibration_id": found.calibration_id if found else None,
        "top_k": settings.top_k,
    }
    run_id = datasets.digest_of(config, digests(left, right, question.background), sorted(known.items()))
    earlier = comparison.read_json(sides.out)
    if earlier and earlier["run_id"] == run_id:
        return earlier | {"resumed": True}
    embedded = time.monotonic()
    answers = answer(question)
    seconds = {"embed": round(embedded - started, 2), "search": round(time.monotonic() - embedded, 2)}
    run = {"run_id": run_id, "config": config, "seconds": seconds, "versions": environment.versions()}
    return write(question, answers, sides.out, run) | {"resumed": False}


def table(out: str) -> str:
    """The table of a finished evaluation, as Markdown."""
    return storage.read_bytes(storage.join(storage.normalize(out), comparison.MARKDOWN)).decode()
