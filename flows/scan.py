"""The scan flow: embed references (only what is new), embed uploads, search, judge, report."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow, task

from beam_jobs import embed as embed_job
from beam_jobs import search as search_job
from beam_jobs.embed import EmbedJob, EmbedMaker
from flows.tasks import RETRY, record_run
from id2core import environment
from id2core.encoders import embedding
from id2core.errors import DatasetError
from id2core.evaluation import truth_files
from id2core.reports.inputs import ReportInputs
from id2core.reports.page import HTML, save_report
from id2core.reports.summary import summarize
from id2core.runs.parts import REJECTS
from id2core.search import shards
from id2core.settings import Settings
from id2core.store import datasets, schemas, storage
from id2core.transforms.files import load_transform, source_of
from id2core.transforms.linear import AUTO, IDENTITY, LATENTS_ONLY
from id2core.verdicts import judging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.judging import Judge


@dataclass(frozen=True)
class Side:
    """One side of a comparison, embedded: its data sets, and what was counted."""

    embeddings: str
    rejects: str | None
    counts: dict[str, Any]
    seconds: float


def find_embeddings(uri: str) -> str | None:
    """The embeddings data set that `uri` is or holds; None when it is a place of images.

    A folder of images whose data set was written into itself is a place of images: it may have new ones.
    """
    for candidate in (uri, storage.join(uri, embedding.EMBEDDINGS)):
        commit = datasets.read_commit(candidate)
        if commit and commit.dataset == embedding.EMBEDDINGS and commit.source != uri:
            return candidate
    return None


def scores_of(reference: str, queries: str, settings: Settings) -> dict[str, str]:
    """The ids (`tables.IDS`) that both sides of a scan will have, known before any work.

    Raises:
        DatasetError: a side is a data set that was made with something else than the scan asks for.
        EncoderError, TransformError: the encoder or the transform cannot be loaded.
    """
    held = [d for d in map(find_embeddings, (reference, queries)) if d]
    if len(held) == 2:
        ids = _ids_of_data_sets(held[0], settings.transform)
    else:
        ids = EmbedMaker(EmbedJob.from_settings(queries, queries, settings)).load()
    for uri in held:
        _check_made_with(uri, ids, settings.transform)
    return ids


def _ids_of_data_sets(uri: str, spec: str) -> dict[str, str]:
    """Nothing is embedded: the transform is asked for only if it is named, or belongs to the encoder."""
    commit = datasets.require_commit(uri)
    ids = {name: commit.ids[name] for name in schemas.IDS}
    chosen = load_transform(spec, ids["encoder_id"])
    chosen.check_encoder(ids["encoder_id"])
    nothing_asked = spec == AUTO and chosen.transform_id == IDENTITY
    searchable = ids["transform_id"] != LATENTS_ONLY
    return ids if nothing_asked and searchable else ids | {"transform_id": chosen.transform_id}


def _check_made_with(uri: str, ids: dict[str, str], spec: str) -> None:
    commit = datasets.require_commit(uri)
    made, asked = commit.ids["transform_id"], ids["transform_id"]
    if made != asked:
        if made == LATENTS_ONLY:
            raise DatasetError(
                f"{uri} holds latents for training, without descriptors: to search it, import it again with "
                f"--transform {spec} into another --out"
            )
        right = "`none`" if made == IDENTITY else "the file it was made with"
        raise DatasetError(
            f"{uri} was embedded with transform_id {made}, this scan asks for {asked} (--transform {spec}): "
            f"embed those images again, or give --transform {right}"
        )
    datasets.check_ids(commit, ids, uri)


def images_of(uri: str) -> str:
    """Where the images of a side are or were: `uri` itself, or what its data set was made from."""
    existing = find_embeddings(uri)
    return datasets.require_commit(existing).source if existing else uri


@task(**RETRY)
def embed_side(source: str, out: str, name: str, settings: Settings, beam_arguments: list[str]) -> Side:
    """Embed a folder of images into `out`/`name`, or take a data set that is embedded already as it is."""
    started = time.monotonic()
    existing = find_embeddings(source)
    if existing:
        rows = datasets.require_commit(existing).rows
        return Side(existing, None, {"listed": rows, "embedded": rows, "rejected": 0}, 0.0)
    place = storage.join(out, name)
    job = EmbedJob.from_settings(source, place, settings, results=out)
    counts = asdict(embed_job.run(job, beam_arguments))
    return Side(
        storage.join(place, embedding.EMBEDDINGS),
        storage.join(place, REJECTS),
        counts,
        time.monotonic() - started,
    )


@task(**RETRY)
def search_references(
    references: Side, queries: Side, out: str, top_k: int, beam_arguments: list[str], judge: Judge | None
) -> tuple[search_job.SearchSummary, float]:
    """Search every upload in every reference and judge what is found; the second number is seconds."""
    started = time.monotonic()
    found = search_job.run(references.embeddings, queries.embeddings, out, top_k, beam_arguments, judge)
    return found, time.monotonic() - started


@task(**RETRY)
def search_background(
    background: Side, references: Side, queries: Side, out: str, chosen: Calibration, arguments: list[str]
) -> tuple[Judge, float]:
    """Search every upload among strangers; the judge that normalizes by what was found, and seconds."""
    started = time.monotonic()
    matches = storage.join(out, "background", "matches")
    judging.check_corpus(chosen, background.embeddings)
    judging.check_disjoint(background.embeddings, references.embeddings)
    depth = chosen.normalization.k if chosen.normalization else 1
    found = search_job.run(background.embeddings, queries.embeddings, matches, depth, arguments)
    return Judge(chosen, matches, found.run_id), time.monotonic() - started


@task(**RETRY)
def write_report(inputs: ReportInputs, out: str) -> dict[str, Any]:
    """Write report.html and summary.json, unless they stand there already for the same run."""
    earlier = read_summary(out)
    same = earlier is not None and earlier["run_id"] == inputs.run["run_id"]
    if earlier is not None and same and storage.exists(storage.join(out, HTML)):
        return earlier
    summary = summarize(inputs)
    counts = summary["counts"]
    counted = {
        "listed": inputs.run["listed"],
        "embedded": counts["references"] + counts["queries"],
        "rejected": counts["reference_rejects"] + counts["query_rejects"],
        "matches": counts["matches"],
    }
    record_run(out, "scan", inputs.run, counted)
    save_report(inputs, summary, out)
    return summary


def read_summary(out: str) -> dict[str, Any] | None:
    """summary.json of a finished scan, or None."""
    try:
        return dict(json.loads(storage.read_bytes(storage.join(out, "summary.json"))))
    except FileNotFoundError:
        return None


@flow(name="scan", flow_run_name="scan {queries}", validate_parameters=True)
def scan(
    reference: str,
    queries: str,
    out: str,
    encoder: str | None = None,
    transform: str | None = None,
    top_k: int | None = None,
    truth_file: str | None = None,
    calibration: str | None = None,
    background: str | None = None,
    beam_arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Find, for every upload, the protected originals nearest to it, and say how sure that is.

    Args:
        reference: folder or bucket of protected images, or an embeddings data set.
        queries: folder or bucket of uploads, or an embeddings data set.
        out: where `reference/`, `queries/`, `matches/`, `report.html` and `summary.json` go.
        encoder, transform, top_k, calibration: override the settings (`ID2_ENCODER`, …).
        truth_file: CSV or Parquet `query_uri,reference_uri[,group]`: adds measures to the report.
        background: images or an embeddings data set that hold no reference, where the calibration
            normalizes scores by one; by default the one that is bundled with the calibration.
        beam_arguments: Beam's own options, e.g. `["--runner=DataflowRunner", …]`.

    Returns:
        What summary.json holds.
    """
    reference, queries, out = (storage.normalize(uri) for uri in (reference, queries, out))
    background = storage.normalize(background) if background else None
    chosen = {"encoder": encoder, "transform": transform, "top_k": top_k, "calibration": calibration}
    settings = Settings(**{k: v for k, v in chosen.items() if v is not None})
    arguments = beam_arguments or []
    _look_before_work(reference, queries, background)
    ids = scores_of(reference, queries, settings)
    judged_by, background = _choose(settings.calibration, ids, background)
    known, groups = _read_truth(truth_file, reference, queries)
    left = embed_side(reference, out, "reference", settings, arguments)
    right = embed_side(queries, out, "queries", settings, arguments)
    seconds = {"embed references": left.seconds, "embed uploads": right.seconds}
    judge = Judge(judged_by) if judged_by else None
    strangers = None
    if judged_by and background:
        strangers = embed_side(background, out, "background", settings, arguments)
        judge, took = search_background(strangers, left, right, out, judged_by, arguments)
        seconds |= {"embed background": strangers.seconds, "search background": took}
    matches = storage.join(out, "matches")
    found, took = search_references(left, right, matches, settings.top_k, arguments, judge)
    config = settings.model_dump() | {"reference": reference, "queries": queries, "out": out}
    # What was really used, and not how it was asked for, makes two runs the same.
    used = {"transform": ids["transform_id"], "calibration": judge.identity if judge else None}
    sides = [[side.embeddings, _run_of(side.embeddings), _run_of(side.rejects)] for side in (left, right)]
    asked = [sorted(answers.items()) for answers in (known or {}, groups)]
    run = {
        "run_id": datasets.digest_of(found.run_id, config | used, sides, *asked),
        "config": config
        | {"background": background, "truth": storage.normalize(truth_file) if truth_file else None},
        "listed": left.counts["listed"] + right.counts["listed"],
        "seconds": {stage: round(s, 2) for stage, s in (seconds | {"search": took}).items()},
        "versions": environment.versions(),
        "transform": {"id": ids["transform_id"], "from": _source(settings.transform, ids)},
        "calibration": judging.facts(
            judged_by, settings.calibration, found.corpus, strangers.embeddings if strangers else None
        ),
    }
    inputs = ReportInputs(
        matches,
        found.run_id,
        left.embeddings,
        right.embeddings,
        left.rejects,
        right.rejects,
        run,
        known,
        groups,
    )
    return write_report(inputs, out)


def _source(spec: str, ids: dict[str, str]) -> str:
    return source_of(spec, ids["transform_id"], ids["encoder_id"])


def _choose(spec: str, ids: dict[str, str], background: str | None) -> tuple[Calibration | None, str | None]:
    """The calibration of the scan and its background; fails at once when they do not go together."""
    chosen = judging.choose(spec, ids)
    background = background or judging.bundled_background(chosen)
    judging.check_background(chosen, background)
    held = find_embeddings(background) if background else None
    if chosen and held:
        judging.check_corpus(chosen, held)
    return chosen, background


def _look_before_work(reference: str, queries: str, background: str | None) -> None:
    """Fail at once, and not after hours, for a place that is not there or a search that cannot run."""
    for place in filter(None, (reference, queries, background)):
        storage.require(place)
    shards.require()


def _run_of(dataset: str | None) -> list[Any]:
    """What identifies the content of a data set: rejects may differ where embeddings do not."""
    commit = datasets.require_commit(dataset) if dataset else None
    return [commit.digest, commit.run_id] if commit else []


def rewrite_report(out: str, max_pairs: int = 200) -> dict[str, Any]:
    """Write the report of a finished scan again, for example with more pictures.

    Raises:
        DatasetError: `out` is not the output of a finished scan.
    """
    out = storage.normalize(out)
    summary = read_summary(out)
    if summary is None:
        raise DatasetError(f"{out} has no summary.json: it is not the --out of a finished scan")
    config = summary["config"]
    facts = ("run_id", "config", "seconds", "versions", "transform", "calibration")
    run = {key: summary.get(key) for key in facts}
    known, groups = _read_truth(config["truth"], config["reference"], config["queries"])
    inputs = ReportInputs(**summary["inputs"], run=run, truth=known, groups=groups)
    fresh = summarize(inputs)
    save_report(inputs, fresh, out, max_pairs)
    return fresh


def _read_truth(
    uri: str | None, reference: str, queries: str
) -> tuple[truth_files.Truth | None, dict[str, str]]:
    """The truth and its groups; relative URIs belong to the images, also of a side that is a data set."""
    if uri is None:
        return None, {}
    file, uploads = storage.normalize(uri), images_of(queries)
    return truth_files.read(file, images_of(reference), uploads), truth_files.read_groups(file, uploads)
