"""What a report is made from: the places of a scan's data sets, and how they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from id2core.search import matching
from id2core.store import datasets

EXAMPLES = 3


@dataclass(frozen=True)
class ReportInputs:
    """Where the data of a scan are.

    Attributes:
        matches: URI of the matches data set.
        search_run: run_id of the search whose matches are reported.
        reference_embeddings, query_embeddings: URIs of the two embeddings data sets.
        reference_rejects, query_rejects: URIs of rejects data sets, where there are any.
        run: JSON-able facts of the scan: `run_id`, `config`, `seconds` (stage → s), `versions`, `transform`
            (`id` and where it is `from`), `calibration` (`verdicts.facts`).
        truth: absolute query URI → URI of its origin, or None where it has none.
        groups: absolute query URI → the group that it is also counted in.
    """

    matches: str
    search_run: str
    reference_embeddings: str
    query_embeddings: str
    reference_rejects: str | None
    query_rejects: str | None
    run: dict[str, Any]
    truth: dict[str, str | None] | None = None
    groups: dict[str, str] | None = None

    @property
    def rejects(self) -> dict[str, str | None]:
        """Side → URI of its rejects."""
        return {"reference": self.reference_rejects, "queries": self.query_rejects}

    @property
    def origins(self) -> dict[str, str]:
        """The queries of the truth that have an origin → its URI."""
        return {query: origin for query, origin in (self.truth or {}).items() if origin}


def match_tables(inputs: ReportInputs, columns: list[str]) -> Iterator[pa.Table]:
    """The match files of the reported run. A query's ranks all stand in one file."""
    return datasets.iterate(inputs.matches, columns, matching.commit_of(inputs.matches, inputs.search_run))


def among(column: pa.ChunkedArray, wanted: Iterable[str]) -> pa.ChunkedArray:
    """Return, row by row, whether a column's value is one of those wanted."""
    return pc.is_in(column, value_set=pa.array(list(wanted), pa.string()))


def rows_of(uri: str, wanted: set[str], columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of an embeddings or rejects data set whose `uri` is wanted."""
    for table in datasets.iterate(uri, columns) if wanted else ():
        yield from table.filter(among(table["uri"], wanted)).select(columns).to_pylist()


def read_rejects(uri: str | None) -> tuple[Counter[str], dict[str, list[dict[str, str]]]]:
    """Of a rejects data set: reason → count, and reason → its first few rows."""
    counts: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    for table in datasets.iterate(uri, ["uri", "reason", "detail"]) if uri else ():
        counts.update(table["reason"].to_pylist())
        for reason in table["reason"].unique().to_pylist():
            some = examples.setdefault(reason, [])
            rows = table.filter(pc.equal(table["reason"], reason)).slice(0, EXAMPLES - len(some))
            some.extend(rows.to_pylist())
    return counts, examples
