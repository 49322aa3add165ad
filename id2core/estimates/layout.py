"""How a search is cut up: shards of the references, parts of the uploads, tasks, blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from id2core import defaults
from id2core.search import cuts
from id2core.store import schemas

# Rows of a block of uploads: a row group of embeddings/.
BLOCK_ROWS: Final = schemas.ROW_GROUP


def ceil_div(count: int, each: int) -> int:
    """Return how many units of a size hold a count, exactly for integers of any size."""
    return -(-count // each)


@dataclass(frozen=True)
class SearchLayout:
    """The tasks of one search: each brings a shard and a part of the uploads together.

    Attributes:
        queries, references: rows that meet.
        shards: of the references, of about equal size.
        parts: of the uploads. Each loads every shard once.
    """

    queries: int
    references: int
    shards: int
    parts: int

    @classmethod
    def of(
        cls, queries: int, references: int, row_bytes: int, shard_bytes: int, workers: int
    ) -> SearchLayout:
        """Cut a search up.

        Args:
            queries, references: rows that meet.
            row_bytes: of a reference in a shard.
            shard_bytes: of references that a worker holds at once.
            workers: each gets some tasks, so far as tasks are not too small then.
        """
        shards, parts = cuts.counts(references, queries, row_bytes, shard_bytes, cuts.spread(workers))
        return cls(queries, references, shards, parts)

    @property
    def shard_rows(self) -> int:
        """Return the references of a shard."""
        return ceil_div(self.references, self.shards)

    @property
    def part_rows(self) -> int:
        """Return the uploads of a part."""
        return ceil_div(self.queries, self.parts)

    @property
    def tasks(self) -> int:
        """Return how many units of work the search has."""
        return self.shards * self.parts

    @property
    def blocks(self) -> int:
        """Return how many blocks of uploads are merged."""
        return ceil_div(self.queries, BLOCK_ROWS)

    @property
    def meetings(self) -> int:
        """Return how many pairs of a reference file and an upload file meet, files of one part each."""
        return ceil_div(self.references, defaults.PART_SIZE) * ceil_div(self.queries, defaults.PART_SIZE)

    def candidates(self, top_k: int) -> int:
        """Return how many candidates the search leaves, at most."""
        return self.queries * min(self.shards * top_k, self.references)
