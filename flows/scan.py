"""The scan flow: embed references (only what is new), embed uploads, search, report."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow, task

from beam_jobs import embed as embed_job
from beam_jobs import search as search_job
from beam_jobs.embed import EmbedJob
from flows.tasks import RETRY, record_run
from id2core import datasets, embedding, environment, index, reports, storage, truth
from id2core.parts import REJECTS
from id2core.settings import Settings


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
    references: Side, queries: Side, out: str, top_k: int, beam_arguments: list[str]
) -> tuple[search_job.SearchSummary, float]:
    """Search every upload in every reference; the second number is seconds."""
    started = time.monotonic()
    found = search_job.run(references.embeddings, queries.embeddings, out, top_k, beam_arguments)
    return found, time.monotonic() - started


@task(**RETRY)
def write_report(inputs: reports.ReportInputs, out: str) -> dict[str, Any]:
    """Write report.html and summary.json, unless they stand there already for the same run."""
    earlier = read_summary(out)
    same = earlier is not None and earlier["run_id"] == inputs.run["run_id"]
    if earlier is not None and same and storage.exists(storage.join(out, reports.HTML)):
        return earlier
    summary = reports.summarize(inputs)
    counts = summary["counts"]
    counted = {
        "listed": inputs.run["listed"],
        "embedded": counts["references"] + counts["queries"],
        "rejected": counts["reference_rejects"] + counts["query_rejects"],
        "matches": counts["matches"],
    }
    record_run(out, "scan", inputs.run, counted)
    reports.write(inputs, summary, out)
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
    beam_arguments: list[str] | None = None,
) -> dict[str, Any]:
    """Find, for every upload, the protected originals nearest to it.

    Args:
        reference: folder or bucket of protected images, or an embeddings data set.
        queries: folder or bucket of uploads, or an embeddings data set.
        out: where `reference/`, `queries/`, `matches/`, `report.html` and `summary.json` go.
        encoder, transform, top_k: override the settings (`ID2_ENCODER`, …).
        truth_file: CSV or Parquet `query_uri,reference_uri`: adds accuracy to the report.
        beam_arguments: Beam's own options, e.g. `["--runner=DataflowRunner", …]`.

    Returns:
        What summary.json holds.
    """
    reference, queries, out = (storage.normalize(uri) for uri in (reference, queries, out))
    chosen = {"encoder": encoder, "transform": transform, "top_k": top_k}
    settings = Settings(**{k: v for k, v in chosen.items() if v is not None})
    arguments = beam_arguments or []
    _look_before_work(reference, queries)
    known = _read_truth(truth_file, reference, queries)
    left = embed_side(reference, out, "reference", settings, arguments)
    right = embed_side(queries, out, "queries", settings, arguments)
    matches = storage.join(out, "matches")
    found, seconds = search_references(left, right, matches, settings.top_k, arguments)
    config = settings.model_dump() | {"reference": reference, "queries": queries, "out": out}
    sides = [[side.embeddings, _run_of(side.embeddings), _run_of(side.rejects)] for side in (left, right)]
    run = {
        "run_id": datasets.digest_of(found.run_id, config, sides, sorted((known or {}).items())),
        "config": config | {"truth": storage.normalize(truth_file) if truth_file else None},
        "listed": left.counts["listed"] + right.counts["listed"],
        "seconds": {
            "embed references": round(left.seconds, 2),
            "embed uploads": round(right.seconds, 2),
            "search": round(seconds, 2),
        },
        "versions": environment.versions(),
    }
    inputs = reports.ReportInputs(
        matches, found.run_id, left.embeddings, right.embeddings, left.rejects, right.rejects, run, known
    )
    return write_report(inputs, out)


def _look_before_work(reference: str, queries: str) -> None:
    """Fail at once, and not after hours, for a place that is not there or a search that cannot run."""
    storage.require(reference)
    storage.require(queries)
    index.require()


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
        raise datasets.DatasetError(f"{out} has no summary.json: it is not the --out of a finished scan")
    config = summary["config"]
    run = {key: summary[key] for key in ("run_id", "config", "seconds", "versions")}
    known = _read_truth(config["truth"], config["reference"], config["queries"])
    inputs = reports.ReportInputs(**summary["inputs"], run=run, truth=known)
    fresh = reports.summarize(inputs)
    reports.write(inputs, fresh, out, max_pairs)
    return fresh


def _read_truth(uri: str | None, reference: str, queries: str) -> truth.Truth | None:
    """The truth; relative URIs in it belong to the images, also where a side is a data set of them."""
    if uri is None:
        return None
    return truth.read(storage.normalize(uri), images_of(reference), images_of(queries))
