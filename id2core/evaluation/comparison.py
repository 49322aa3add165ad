"""Several systems measured on the same queries: their figures side by side, and their paired differences."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from id2core.errors import TruthError
from id2core.evaluation import metrics
from id2core.evaluation.metrics import Answers, Comparison, Evaluation, Measure
from id2core.evaluation.truth_files import Truth
from id2core.store import datasets, schemas, storage

JSON, PARQUET, MARKDOWN = "metrics.json", "metrics.parquet", "metrics.md"
LABELS = {"mean_ap": "mAP", "accuracy": "Acc", "micro_ap": "µAP", "recall_at_p90": "R@P90"}
# One row per system and measure.
SCHEMA = pa.schema(
    [
        ("system", pa.string()),
        ("transform_id", pa.string()),
        ("score", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("per_query", pa.int64()),
        ("pairs", pa.int64()),
        ("with_origin", pa.int64()),
        ("without_origin", pa.int64()),
    ],
    metadata={"id2.dataset": "metrics", "id2.schema_version": schemas.SCHEMA_VERSION},
)


@dataclass(frozen=True)
class System:
    """What is measured: a name for tables, the transform it ranks with, and its answers."""

    name: str
    transform_id: str
    answers: Answers


@dataclass(frozen=True)
class Results:
    """The figures of one or more systems.

    Attributes:
        systems: what was measured.
        evaluations: of each, in their order.
        differences: (first, second) → measure → first − second, for every two systems.
    """

    systems: tuple[System, ...]
    evaluations: tuple[Evaluation, ...]
    differences: dict[tuple[str, str], dict[str, Measure]]


def measure(systems: Sequence[System], *, resamples: int = metrics.RESAMPLES, seed: int = 0) -> Results:
    """Measure systems that were asked the same; the bootstrap resamples all alike.

    Raises:
        ValueError: they were not read against the same truth.
    """
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    compared: dict[tuple[str, str], Comparison] = {
        (a.name, b.name): metrics.compare(a.answers, b.answers, **options)
        for a, b in combinations(systems, 2)
    }
    return Results(
        tuple(systems),
        tuple(metrics.measure(system.answers, **options) for system in systems),
        {names: comparison.difference for names, comparison in compared.items()},
    )


def measures(evaluation: Evaluation) -> dict[str, Measure]:
    """By name, in the order of tables: mean_ap, accuracy, recall@k, micro_ap, recall_at_p90."""
    recall = {f"recall@{k}": found for k, found in evaluation.recall.items() if k > 1}  # recall@1 is Acc
    return {
        "mean_ap": evaluation.mean_ap,
        "accuracy": evaluation.accuracy,
        **recall,
        "micro_ap": evaluation.micro_ap,
        "recall_at_p90": evaluation.recall_at_p90,
    }


def check_truth(truth: Truth, queries: str) -> None:
    """Raise TruthError when a truth names none of the queries of an embeddings data set."""
    asked = pa.array(list(truth), pa.string())
    example = ""
    for table in datasets.iterate(queries, ["uri"]):
        if pc.any(pc.is_in(table["uri"], value_set=asked)).as_py():
            return
        example = example or str(table["uri"][0])
    raise TruthError(
        f"the truth names {len(truth)} queries ({next(iter(truth), 'none')} …), and none of them is in "
        f"{queries} ({example or 'empty'} …): give URIs as they stand there, or relative ones"
    )


def origin_ids(references: str, truth: Truth) -> dict[str, str]:
    """URI → image_id of the origins in a truth that an embeddings data set of references holds."""
    origins = pa.array([uri for uri in truth.values() if uri], pa.string())
    found: dict[str, str] = {}
    for table in datasets.iterate(references, ["uri", "image_id"]):
        rows = table.filter(pc.is_in(table["uri"], value_set=origins))
        found.update(zip(rows["uri"].to_pylist(), rows["image_id"].to_pylist(), strict=True))
    return found


def to_dict(results: Results) -> dict[str, Any]:
    """JSON-able: `systems`, each with its name and `Evaluation.to_dict`, and `differences`."""
    return {
        "systems": [
            {"name": system.name, "transform_id": system.transform_id} | evaluation.to_dict()
            for system, evaluation in zip(results.systems, results.evaluations, strict=True)
        ],
        "differences": [
            {"first": first, "second": second} | {name: asdict(m) for name, m in found.items()}
            for (first, second), found in results.differences.items()
        ],
    }


def to_table(results: Results) -> pa.Table:
    """A table of `SCHEMA`."""
    rows = [
        {
            "system": system.name,
            "transform_id": system.transform_id,
            "score": evaluation.score,
            "measure": name,
            **asdict(found),
            **asdict(evaluation.budget),
            "with_origin": evaluation.counts.with_origin,
            "without_origin": evaluation.counts.without_origin,
        }
        for system, evaluation in zip(results.systems, results.evaluations, strict=True)
        for name, found in measures(evaluation).items()
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def to_markdown(
    results: Results, references: int, rates: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """The figures in %, with their 95 % intervals, and what they stand on, as Markdown.

    Args:
        results: to show.
        references: size of the corpus.
        rates: what `verdict_rates` gives, where a calibration was measured.
    """
    first = results.evaluations[0]
    counts = first.counts
    told = [
        f"{counts.with_origin:,} queries with an origin and {counts.without_origin:,} without, among "
        f"{references:,} references; at most {first.budget.per_query} references per query. In %, with the "
        f"95 % interval of {first.resamples:,} bootstrap resamples of the queries."
    ]
    if counts.without_matches or counts.not_in_truth:
        told.append(
            f"{counts.without_matches:,} queries of the truth have no match and count as not found; "
            f"{counts.not_in_truth:,} queries are not in the truth and do not count."
        )
    values = {
        system.name: measures(evaluation)
        for system, evaluation in zip(results.systems, results.evaluations, strict=True)
    }
    blocks = [*told, "\n".join(_lines("system", values, sign=""))]
    if results.differences:
        differences = {f"{a} − {b}": found for (a, b), found in results.differences.items()}
        blocks += ["Paired differences, in points:", "\n".join(_lines("systems", differences, sign="+"))]
    if rates:
        head = "False positives of the calibration's verdicts, in %, and how many of the origins they find:"
        blocks += [head, "\n".join(_rate_lines(rates))]
    return "\n\n".join(blocks) + "\n"


def _rate_lines(rates: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| verdict | stated | measured | uploads without origin | origins found |"
    yield "|---|---:|---:|---:|---:|"
    for verdict, rate in rates.items():
        stated = Measure(rate["stated"], rate["stated_low"], rate["stated_high"])
        measured = Measure(rate["measured"], rate["low"], rate["high"])
        found = Measure(rate["origins_found"])
        cells = (_cell(stated, "", 2), _cell(measured, "", 2), f"{rate['queries']:,}", _cell(found, ""))
        yield f"| {verdict} | " + " | ".join(cells) + " |"


def _lines(head: str, rows: Mapping[str, Mapping[str, Measure]], sign: str) -> Iterator[str]:
    names = [name for name in next(iter(rows.values())) if name != "recall@1"]
    yield f"| {head} | " + " | ".join(LABELS.get(name, name) for name in names) + " |"
    yield "|---|" + "---:|" * len(names)
    for title, found in rows.items():
        yield f"| {title} | " + " | ".join(_cell(found.get(name), sign) for name in names) + " |"


def _cell(found: Measure | None, sign: str, digits: int = 1) -> str:
    if found is None or found.value is None:
        return "–"
    text, *ends = (
        None if value is None else f"{100 * value:{sign}.{digits}f}"
        for value in (found.value, found.low, found.high)
    )
    return f"{text} [{', '.join(map(str, ends))}]" if all(ends) else str(text)


def write(results: Results, out: str, facts: Mapping[str, Any], references: int) -> dict[str, Any]:
    """Write `metrics.parquet`, `metrics.md` and, last, `metrics.json`; its content, `facts` included.

    `facts["verdicts"]` are the rates for `to_markdown`.
    """
    with (
        storage.replacing(storage.join(out, PARQUET)) as path,
        schemas.parquet_writer(path, SCHEMA) as writer,
    ):
        writer.write_table(to_table(results))
    storage.write_bytes(
        storage.join(out, MARKDOWN), to_markdown(results, references, facts.get("verdicts")).encode()
    )
    whole = {**facts, **to_dict(results)}
    storage.write_bytes(storage.join(out, JSON), json.dumps(whole, indent=1, ensure_ascii=False).encode())
    return whole


def read_json(out: str) -> dict[str, Any] | None:
    """What `write` left in `metrics.json`, or None."""
    try:
        return dict(json.loads(storage.read_bytes(storage.join(out, JSON))))
    except (FileNotFoundError, ValueError):
        return None
