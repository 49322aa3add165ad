"""Corpora over given descriptors that grow and shrink by commits, as runs of embed make them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from id2core.search import matching, shards
from id2core.search.matching import QueryBlock, SearchPlan
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, FileRecord, Segment
from tests.descriptor_sets import IDS

NIGHT = "2026-01-{:02d}T00:00:00+00:00"


@dataclass
class Corpus:
    """A corpus whose pictures are named by their descriptor: row i of `vectors` is picture i.

    Attributes:
        place: parent of `embeddings/` and `removals/`.
        vectors: float32[n,m].
        rows: (uri, picture) → the segment that it stands in.
    """

    place: Path
    vectors: np.ndarray
    rows: dict[tuple[str, int], str] = field(default_factory=dict)
    segments: dict[str, Segment] = field(default_factory=dict)
    removals: list[FileRecord] = field(default_factory=list)

    def change(
        self,
        run_id: str,
        add: Iterable[tuple[str, int]],
        remove: Iterable[tuple[str, int]],
        together: int = 1,
    ) -> Dataset:
        """Commit one run that adds rows as a segment of its own and removes others.

        The rows of `together` segments at a time stand in one file.
        """
        uri = str(self.place / "embeddings")
        last = Dataset.find(uri)
        version = last.commit.version + 1 if last else 1
        gone = [(row, self.rows.pop(row)) for row in remove]
        if gone:
            table = pa.Table.from_pylist(
                [
                    {"image_id": image(i), "uri": uri, "generation": "1", "segment": segment}
                    | {"reason": "unlisted", "removed_in": version, "run_id": run_id}
                    for (uri, i), segment in gone
                ],
                schemas.REMOVALS,
            )
            folder = str(self.place / "removals")
            self.removals.append(datasets.write_file(folder, run_id, [table], schemas.REMOVALS))
        if added := list(add):
            self.segments[run_id] = Segment(len(self.segments) + 1, NIGHT.format(1))
            self.rows |= dict.fromkeys(added, run_id)
        runs = sorted(set(self.rows.values()))
        groups = [runs[i : i + together] for i in range(0, len(runs), together)]
        files = [self._file(uri, f"{run_id}-{group[0]}", group) for group in groups]
        commit = Commit(
            "embeddings",
            run_id,
            IDS,
            tuple(files),
            segments=self.segments,
            removals=tuple(self.removals),
            version=version - 1,
        )
        made = datasets.replace_commit(uri, commit, last)
        assert made and made.commit.version == version
        return made

    def _file(self, uri: str, key: str, runs: list[str]) -> FileRecord:
        rows = sorted(row for row, run_id in self.rows.items() if run_id in runs)
        pictures = [i for _, i in rows]
        schema = schemas.embeddings_schema(1, self.vectors.shape[1])
        data = {name: [None] * len(rows) for name in schema.names} | {
            "image_id": list(map(image, pictures)),
            "uri": [uri for uri, _ in rows],
            "generation": ["1"] * len(rows),
            "run_id": [self.rows[row] for row in rows],
            "latent": schemas.vectors_to_array(np.zeros((len(rows), 1), np.float16), 1),
            "descriptor": schemas.vectors_to_array(self.vectors[pictures], self.vectors.shape[1]),
        }
        table = pa.Table.from_pydict(data, schema)
        record = datasets.write_file(uri, key, [table], schema, row_group=3)
        return replace(record, segments=tuple(runs))


def search_here(plan: SearchPlan) -> Dataset:
    """Run a search as its job does, but step by step in this process."""
    if (made := matching.without_work(plan)) is not None:
        return made
    partial: dict[QueryBlock, list[tuple[int, pa.Table]]] = {}
    for files, blocks in matching.tasks(replace(plan, shard_bytes=1)):
        shard = matching.load_shard(plan, files)
        for block, found in zip(blocks, matching.search(plan, blocks, shard), strict=True):
            partial.setdefault(block, []).append(found)
    written = []
    for block, parts in partial.items():
        pairs, tables = zip(*parts, strict=True)
        candidates = shards.merge(list(tables), plan.top_k)
        written.append(matching.write_block(plan, block, sum(pairs), candidates))
    return matching.commit(plan, [matching.write_bin(plan, b) for b in matching.bins(written)])


def image(picture: int) -> str:
    """Return the image_id of a picture."""
    return f"{picture:064x}"
