"""The tables `ledger/` and `segments/`, from which dashboards see what has been searched, and when.

What counts stands in the commits of `matches/` and `embeddings/`. These tables are written from it after each
run, and the next run adds what a killed one left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import pyarrow as pa

from id2core.runs import ledger
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Dataset

LEDGER, SEGMENTS = "ledger", "segments"


def write(out: str, run_id: str, matches: Dataset, corpora: Mapping[str, Dataset]) -> None:
    """Add what the tables lack.

    Args:
        out: parent of the tables.
        run_id: the run that writes.
        matches: the matches data set.
        corpora: name of a corpus, `reference` and `queries` first → its embeddings.
    """
    key = ["run_id", "encoder_id", "query_from", "query_to", "reference_to"]
    _add(out, LEDGER, run_id, _events(matches), key)
    _add(out, SEGMENTS, run_id, _segments(corpora), ["corpus", "segment"])


def _events(matches: Dataset) -> pa.Table:
    rows = []
    for run_id in matches.runs:
        for event in ledger.events_of(matches.commit, run_id):
            facts = event.model_dump(include={"query_version", "reference_version", "pairs", "index_id"})
            facts |= {"searched_at": event.searched_at, "top_k": event.top_k, "floor": event.floor}
            facts["views"] = event.views
            spans = {"query_from": event.queries[0], "query_to": event.queries[1]}
            spans |= {"reference_from": event.references[0], "reference_to": event.references[1]}
            rows.append({"run_id": run_id, **event.ids, **facts, **spans})
    return pa.Table.from_pylist(rows, schemas.LEDGER)


def _segments(corpora: Mapping[str, Dataset]) -> pa.Table:
    rows = []
    for name, dataset in corpora.items():
        counts = dataset.rows_by_segment()
        rows += [
            {"corpus": name, "segment": run_id, "number": segment.number}
            | {"added_at": datetime.fromisoformat(segment.added_at)}
            | {"rows": counts[run_id]}
            for run_id, segment in datasets.segments_of(dataset).items()
        ]
    return pa.Table.from_pylist(rows, schemas.SEGMENTS)


def _add(out: str, name: str, run_id: str, table: pa.Table, key: Iterable[str]) -> None:
    """Add the rows whose key the data set does not have yet."""
    uri = storage.join(out, name)
    last = Dataset.find_own(uri)
    names = list(key)
    known = {tuple(row.values()) for t in (last.tables(names) if last else ()) for row in t.to_pylist()}
    new = [i for i, row in enumerate(table.select(names).to_pylist()) if tuple(row.values()) not in known]
    if not new and last:
        return
    file = datasets.write_file(uri, f"{run_id}-{datasets.digest_of(new)}", [table.take(new)], table.schema)
    datasets.add_files(uri, name, run_id, run_id, [file], {"rows": file.rows}, last)
