"""Several systems measured on the same queries: their figures side by side, and their paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, JsonValue

from id2core.errors import TruthError
from id2core.evaluation import metrics, truth_files
from id2core.evaluation.metrics import Answers, Comparison, Evaluation, Measure
from id2core.evaluation.truth_files import Truth
from id2core.store import schemas, storage, strict_json
from id2core.store.datasets import Dataset

JSON, PARQUET, MARKDOWN = "metrics.json", "metrics.parquet", "metrics.md"
LABELS = {"mean_ap": "mAP", "accuracy": "Acc", "micro_ap": "µAP", "recall_at_p90": "R@P90"}
# One row per system and measure.
SCHEMA = schemas.table_schema(
    "metrics",
    1,
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
)


class VerdictRate(BaseModel):
    """How often a threshold is reached by queries whose origin is known.

    Attributes:
        threshold: the score.
        stated, stated_low, stated_high: rate that the calibration states, with its interval.
        measured, low, high: share of the queries without origin that reach it, with its Clopper–Pearson
            interval; None without such queries.
        queries: without origin.
        origins_found: share of the origins that reach it; None without origins.
    """

    model_config = ConfigDict(frozen=True)

    threshold: float
    stated: float | None
    stated_low: float | None
    stated_high: float | None
    measured: float | None
    low: float | None
    high: float | None
    queries: int
    origins_found: float | None


class EvaluationFacts(BaseModel):
    """What an evaluation says of itself besides its figures.

    Attributes:
        run_id: the execution that measured.
        plan_id: names what was measured and how: equal names, equal figures.
        config: what was asked for.
        seconds: stage → s.
        versions: package → version.
        references: size of the corpus.
        encoder_id: of the latents.
        queries_not_found: queries of the truth that are neither embedded nor rejected: no figure counts them.
        origins_not_in_reference: queries whose origin the corpus does not hold: they cannot be answered.
        verdicts: `match` and `review` → rates of a calibration, where one was measured.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    plan_id: str
    config: dict[str, JsonValue]
    seconds: dict[str, float]
    versions: dict[str, str]
    references: int
    encoder_id: str
    origins_not_in_reference: int
    queries_not_found: int = 0
    verdicts: dict[str, VerdictRate] | None = None


class _SystemNames(BaseModel):
    name: str
    transform_id: str


class SystemReport(Evaluation, _SystemNames):  # in JSON, the names come first
    """The measures of one system, its name, and the transform that it ranks with."""


class Difference(BaseModel):
    """First − second system, by measure: beside the names, one field for each measure that both have."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Measure]

    first: str
    second: str


class EvaluateReport(EvaluationFacts):
    """What `metrics.json` holds.

    Attributes:
        systems: the figures of each.
        differences: of every two systems, on the same queries.
        resumed: True where the report was read back; not in the file.
    """

    systems: list[SystemReport]
    differences: list[Difference]
    resumed: bool = False


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
    compared: dict[tuple[str, str], Comparison] = {
        (a.name, b.name): metrics.compare(a.answers, b.answers, resamples=resamples, seed=seed)
        for a, b in combinations(systems, 2)
    }
    return Results(
        tuple(systems),
        tuple(metrics.measure(system.answers, resamples=resamples, seed=seed) for system in systems),
        {names: comparison.difference for names, comparison in compared.items()},
    )


def measures(evaluation: Evaluation) -> dict[str, Measure]:
    """Return the measures by name, in the order of tables: mean_ap, accuracy, recall@k, …"""
    recall = {
        f"recall@{k}": estimate for k, estimate in evaluation.recall.items() if k > 1
    }  # recall@1 is Acc
    return {
        "mean_ap": evaluation.mean_ap,
        "accuracy": evaluation.accuracy,
        **recall,
        "micro_ap": evaluation.micro_ap,
        "recall_at_p90": evaluation.recall_at_p90,
    }


def spelled_truth(
    truth: Truth, queries: Dataset, query_rejects: Dataset | None, references: Dataset
) -> tuple[Truth, int]:
    """Return a truth with URIs as the data sets spell them, and how many of its queries are in none of them.

    Raises:
        TruthError: none of the queries is embedded, or two spellings of one have different origins.
    """
    both = list(filter(None, (queries, query_rejects)))
    truth = truth_files.spelled(truth, both, [references])
    if not truth_files.spellings(truth, [queries]):
        example = next((str(table["uri"][0]) for table in queries.tables(["uri"])), "empty")
        raise TruthError(
            f"the truth names {len(truth)} queries ({next(iter(truth), 'none')} …), and none of them is in "
            f"{queries.uri} ({example} …): give the URIs of that data set, or relative ones"
        )
    return truth, len(truth) - len(truth_files.spellings(truth, both))


def origin_ids(references: Dataset, truth: Truth) -> dict[str, str]:
    """Map the URIs of a truth's origins to their image_ids, where the references hold them."""
    origins = pa.array([uri for uri in truth.values() if uri], pa.string())
    ids: dict[str, str] = {}
    for table in references.tables(["uri", "image_id"]):
        rows = table.filter(pc.is_in(table["uri"], value_set=origins))
        ids.update(zip(rows["uri"].to_pylist(), rows["image_id"].to_pylist(), strict=True))
    return ids


def to_table(results: Results) -> pa.Table:
    """Return one row per system and measure, a table of `SCHEMA`."""
    rows = [
        {
            "system": system.name,
            "transform_id": system.transform_id,
            "score": evaluation.score,
            "measure": name,
            **asdict(estimate),
            **asdict(evaluation.budget),
            "with_origin": evaluation.counts.with_origin,
            "without_origin": evaluation.counts.without_origin,
        }
        for system, evaluation in zip(results.systems, results.evaluations, strict=True)
        for name, estimate in measures(evaluation).items()
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def to_markdown(results: Results, references: int, rates: Mapping[str, VerdictRate] | None = None) -> str:
    """Render the figures in %, with their 95% intervals, and the counts behind them, as Markdown.

    Args:
        results: to show.
        references: size of the corpus.
        rates: what `verdict_rates` gives, where a calibration was measured.
    """
    first = results.evaluations[0]
    counts = first.counts
    lines = [
        f"{counts.with_origin:,} queries with an origin and {counts.without_origin:,} without, among "
        f"{references:,} references; at most {first.budget.per_query} references per query. In %, with the "
        f"95% interval of {first.resamples:,} bootstrap resamples of the queries."
    ]
    if counts.without_matches or counts.not_in_truth:
        lines.append(
            f"{counts.without_matches:,} queries of the truth have no match and count as not found; "
            f"{counts.not_in_truth:,} queries are not in the truth and do not count."
        )
    values = {
        system.name: measures(evaluation)
        for system, evaluation in zip(results.systems, results.evaluations, strict=True)
    }
    blocks = [*lines, "\n".join(_lines("system", values, sign=""))]
    if results.differences:
        differences = {f"{a} − {b}": difference for (a, b), difference in results.differences.items()}
        blocks += ["Paired differences, in points:", "\n".join(_lines("systems", differences, sign="+"))]
    if rates:
        head = "False positives of the calibration's verdicts, in %, and how many of the origins they find:"
        blocks += [head, "\n".join(_rate_lines(rates))]
    return "\n\n".join(blocks) + "\n"


def _rate_lines(rates: Mapping[str, VerdictRate]) -> Iterator[str]:
    yield "| verdict | stated | measured | uploads without origin | origins found |"
    yield "|---|---:|---:|---:|---:|"
    for verdict, rate in rates.items():
        stated = Measure(rate.stated, rate.stated_low, rate.stated_high)
        measured = Measure(rate.measured, rate.low, rate.high)
        origins_found = Measure(rate.origins_found)
        cells = (_cell(stated, "", 2), _cell(measured, "", 2), f"{rate.queries:,}", _cell(origins_found, ""))
        yield f"| {verdict} | " + " | ".join(cells) + " |"


def _lines(head: str, rows: Mapping[str, Mapping[str, Measure]], sign: str) -> Iterator[str]:
    names = [name for name in next(iter(rows.values())) if name != "recall@1"]
    yield f"| {head} | " + " | ".join(LABELS.get(name, name) for name in names) + " |"
    yield "|---|" + "---:|" * len(names)
    for title, measured in rows.items():
        yield f"| {title} | " + " | ".join(_cell(measured.get(name), sign) for name in names) + " |"


def _cell(estimate: Measure | None, sign: str, digits: int = 1) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    text, *ends = (
        None if value is None else f"{100 * value:{sign}.{digits}f}"
        for value in (estimate.value, estimate.low, estimate.high)
    )
    return f"{text} [{', '.join(map(str, ends))}]" if all(ends) else str(text)


def write(results: Results, out: str, facts: EvaluationFacts) -> EvaluateReport:
    """Write `metrics.parquet`, `metrics.md` and, last, `metrics.json`; return what that holds."""
    with (
        storage.replacing(storage.join(out, PARQUET)) as path,
        schemas.parquet_writer(path, SCHEMA) as writer,
    ):
        writer.write_table(to_table(results))
    text = to_markdown(results, facts.references, facts.verdicts)
    storage.write_bytes(storage.join(out, MARKDOWN), text.encode())
    report = EvaluateReport(
        **dict(facts),
        systems=[
            SystemReport(name=system.name, transform_id=system.transform_id, **dict(evaluation))
            for system, evaluation in zip(results.systems, results.evaluations, strict=True)
        ],
        differences=[
            Difference(first=first, second=second, **measures)
            for (first, second), measures in results.differences.items()
        ],
    )
    text = report.model_dump_json(indent=1, exclude={"resumed"})
    storage.write_bytes(storage.join(out, JSON), text.encode())
    return report


def read_report(out: str) -> EvaluateReport | None:
    """Read `metrics.json`; None where there is none, one that an older program wrote, or a damaged one."""
    return strict_json.read_derived(storage.join(out, JSON), EvaluateReport)
