"""What every upload scores in the background: searched once, kept, and looked up by judges."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue

from id2core.errors import DatasetError, NormalizationError
from id2core.runs.execution import Execution
from id2core.runs.keys import KEY, row_keys
from id2core.search import looks, matching, scope, shards
from id2core.search.indexes import FLAT
from id2core.search.looks import ViewPlan
from id2core.search.matching import SearchPlan
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, FileRecord

BACKGROUNDS = "backgrounds"


class _Searched(BaseModel):
    """The query segments that a run searched in one background."""

    background: str
    segments: tuple[str, ...]


class _Counts(BaseModel):
    """What a run says in the commit."""

    searched: tuple[_Searched, ...] = ()


def name_of(ids: dict[str, str], background_id: str, k: int, views: str = looks.NONE) -> str:
    """Return what names the scores of one W in one background.

    Args:
        ids: `schemas.ROW_IDS` of the descriptors.
        background_id: index_id of the background.
        k: background scores that are averaged.
        views: id of the views under which uploads are looked at.
    """
    others = [] if views == looks.NONE else [views]
    return datasets.digest_of({name: ids[name] for name in schemas.ROW_IDS}, background_id, k, *others)


@dataclass(frozen=True)
class BackgroundRows:
    """Rows of `backgrounds/`: for each upload the mean of its k best scores in the background.

    Attributes:
        name: of the scores, see `name_of`.
        segments: run_ids of the query segments that are searched.
        background_id: index_id of the background.
    """

    name: str
    segments: tuple[str, ...]
    background_id: str

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows."""
        return schemas.BACKGROUNDS

    @property
    def folder(self) -> str:
        """A partition for each background."""
        return _folder(self.name)

    def rows(self, plan: SearchPlan, queries: pa.Table, candidates: pa.Table) -> pa.Table:
        """Return the rows of a block.

        Raises:
            NormalizationError: the background has fewer than k pictures.
        """
        asked = np.unique(candidates["query_row"].to_numpy())
        scores = candidates["score"].to_numpy()
        if len(scores) != len(asked) * plan.top_k:
            raise NormalizationError(
                f"{plan.references.uri} has {plan.references.rows} pictures, fewer than the {plan.top_k} "
                "that the calibration averages: give the background that it was made with"
            )
        means = background_means(scores.reshape(-1, plan.top_k), plan.top_k)
        uploads = queries.take(pa.array(asked))
        known = {
            **{name: uploads[name] for name in ("image_id", "uri", "generation")},
            "background": pa.array(means.astype(np.float32)),
        }
        constant = plan.ids | {
            "background_id": self.background_id,
            "k": plan.top_k,
            "run_id": plan.execution.run_id,
        }
        arrays = [
            known[f.name] if f.name in known else pa.repeat(pa.scalar(constant[f.name], f.type), len(asked))
            for f in self.schema
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def sorted(self, rows: pa.Table) -> pa.Table:
        """Return rows ordered by URI."""
        return rows.sort_by([("uri", "ascending"), ("generation", "ascending")])

    def after(self, backgrounds: Dataset) -> BackgroundRows:
        """Return the product: no row of it depends on another search."""
        return self

    def is_in(self, commit: Commit) -> bool:
        """Return whether uploads of some segments have their scores."""
        return bool(searched(commit, self.name).intersection(self.segments))

    def commit(self, plan: SearchPlan, files: tuple[FileRecord, ...]) -> Dataset:
        """Add the files, unless another run has searched the same uploads meanwhile."""
        run_id = plan.execution.run_id
        own = tuple(replace(file, segments=self.segments) for file in files)
        new = _Searched(background=self.name, segments=self.segments).model_dump(mode="json")

        def add(present: Commit | None) -> Commit:
            base = present or Commit(BACKGROUNDS, run_id, {})
            if self.is_in(base):
                return base
            known = base.runs.get(run_id, {}).get("searched", [])
            earlier: list[JsonValue] = known if isinstance(known, list) else []
            runs = base.runs | {run_id: {"searched": [*earlier, new]}}
            return replace(base, run_id=run_id, files=(*base.files, *own), runs=runs)

        return datasets.update_commit(plan.out, add, plan.last)


def _folder(name: str) -> str:
    return f"background={name}/"


def background_means(scores: NDArray[np.floating], k: int) -> NDArray[np.float64]:
    """Return the mean of the k best background scores of each query.

    Args:
        scores: float[Q,K] in any order along K.
        k: at most K.

    Returns:
        float64[Q].

    Raises:
        NormalizationError: there are fewer than k scores per query.
    """
    depth = scores.shape[1]
    if not 1 <= k <= depth:
        raise NormalizationError(
            f"{depth} background scores per query, k is {k}: search the background deeper"
        )
    best = np.partition(scores.astype(np.float64), depth - k, axis=1)[:, depth - k :]
    return np.asarray(best.mean(axis=1))


def searched(commit: Commit, name: str) -> set[str]:
    """Return the query segments whose uploads have their scores in one background."""
    every = (one for run_id in commit.runs for one in commit.counts_of(run_id, _Counts).searched)
    return {segment for one in every if one.background == name for segment in one.segments}


def make(
    background: Dataset,
    queries: Dataset,
    out: str,
    execution: Execution,
    k: int,
    views: ViewPlan | None = None,
) -> SearchPlan:
    """Find the uploads that have no background score yet.

    Args:
        background, queries: embeddings.
        out: the data set of backgrounds.
        execution: gives new rows their run_id.
        k: background scores that are averaged.
        views: under which uploads are looked at; None for the whole alone.

    Raises:
        DatasetError: the two cannot be compared.
    """
    ids = matching.check_comparable(background, queries, k, FLAT)
    background_id = shards.index_id(background)
    name = name_of(ids, background_id, k, looks.id_of(views))
    last = Dataset.find_own(out)
    known = searched(last.commit, name) if last else set()
    missing = tuple(sorted(datasets.segments_of(queries).keys() - known))
    return SearchPlan(
        references=background,
        queries=queries,
        out=out,
        last=last,
        scope=scope.every_row(background, queries, missing),
        top_k=k,
        index=FLAT,
        plan_id=datasets.digest_of(queries.digest, name, missing),
        execution=execution,
        product=BackgroundRows(name, missing, background_id),
        views=views,
        is_background=True,
    )


@dataclass(frozen=True)
class Backgrounds:
    """Background scores that judges look up.

    Attributes:
        dataset: of backgrounds.
        name: of the scores that are looked up, see `name_of`.
    """

    dataset: Dataset
    name: str

    @staticmethod
    def before(plan: SearchPlan) -> Backgrounds:
        """Return the scores that are known before a search of the background."""
        if not isinstance(plan.product, BackgroundRows):
            raise ValueError("a search of the background makes its rows")
        nothing = Commit(BACKGROUNDS, plan.execution.run_id, {})
        return Backgrounds(plan.last or Dataset(plan.out, nothing), plan.product.name)

    def of(
        self, uris: pa.ChunkedArray, generations: pa.ChunkedArray, segments: Iterable[str] | None
    ) -> NDArray[np.float32]:
        """Return the background of uploads, float32[n].

        Args:
            uris, generations: of the uploads.
            segments: run_ids of the query segments that they are of; None where that is not known.

        Raises:
            DatasetError: an upload has none.
        """
        found = self._find(uris, generations, segments)
        if missing := int(np.isnan(found).sum()):
            raise DatasetError(f"{self.dataset.uri} lacks the background of {missing} uploads: run again")
        return found

    def know(self, uris: pa.ChunkedArray, generations: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Return which uploads have a background, bool[n]."""
        return ~np.isnan(self._find(uris, generations, None))

    def _find(
        self, uris: pa.ChunkedArray, generations: pa.ChunkedArray, segments: Iterable[str] | None
    ) -> NDArray[np.float32]:
        """Return the background of uploads, float32[n]; NaN where it is not known."""
        wanted, upload_of = _distinct(uris, generations)
        found = np.full(len(wanted), np.nan, np.float32)
        chosen = None if segments is None else set(segments)
        for file in self.dataset.files:
            if not file.name.startswith(_folder(self.name)):
                continue
            if chosen is not None and chosen.isdisjoint(file.segments):
                continue
            keys, values = _read(self.dataset.uri, file)
            places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            hit = keys[places] == wanted
            found[hit] = values[places[hit]]
        return found[upload_of]


def _distinct(
    uris: pa.ChunkedArray, generations: pa.ChunkedArray
) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
    """Return the keys of n uploads, each once, and int64[n], which of them each row is of."""
    if not len(uris):
        return np.empty(0, KEY), np.empty(0, np.int64)
    uri, generation = (pa.concat_arrays(c.chunks).dictionary_encode() for c in (uris, generations))
    codes = uri.indices.to_numpy().astype(np.int64) * len(generation.dictionary)
    _, first, upload_of = np.unique(
        codes + generation.indices.to_numpy(), return_index=True, return_inverse=True
    )
    uploads = pa.table({"uri": uris, "generation": generations}).take(pa.array(first))
    return row_keys(uploads), upload_of


@functools.lru_cache(maxsize=16)
def _read(uri: str, file: FileRecord) -> tuple[NDArray[np.bytes_], NDArray[np.float32]]:
    """Return keys of uploads in their order, and their background: 20 bytes an upload."""
    table = datasets.read_file(uri, file, ["uri", "generation", "background"])
    keys = row_keys(table.select(["uri", "generation"]))
    order = np.argsort(keys)
    return keys[order], table["background"].to_numpy()[order]
