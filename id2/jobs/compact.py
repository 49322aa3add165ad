"""Compact the data sets below an `--out`: merge small files, and drop what no reader needs any longer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from id2.requests import CompactRequest
from id2.results import CompactedDataset, CompactReport
from id2.stages import stage
from id2core import settings
from id2core.runs import compaction, leftovers
from id2core.runs.compaction import Compacted
from id2core.runs.records import at_work, recorded
from id2core.store import moves, storage
from id2core.store.datasets import Dataset


def run(request: CompactRequest) -> CompactReport:
    """Merge small files of all data sets, and remove files that were superseded a grace period ago.

    Raises:
        DatasetError: a file is gone or damaged; nothing was changed in its data set.
        LostRowsError: a merged file has other rows than its parts; nothing was committed.
    """
    out = storage.normalize(request.out)
    before = {dataset.uri: _size(dataset) for dataset in _datasets(out)}
    config = request.model_dump(exclude={"progress"})
    with recorded(out, "compact", config) as recorder, recorder.stage("compact"):
        done = stage("compact", lambda: compact_all(out, before, everything=request.everything))
    if not at_work(out):
        leftovers.sweep(out, time.time() - settings.load().leftover_hours * 3600)
    listed = [_described(uri, out, before[uri], done[uri]) for uri in before]
    return CompactReport(
        run_id=recorder.execution.run_id,
        files_before=sum(d.files_before for d in listed),
        files_after=sum(d.files_after for d in listed),
        bytes_before=sum(d.bytes_before for d in listed),
        bytes_after=sum(d.bytes_after for d in listed),
        kept_files=sum(_kept(uri) for uri in before),
        datasets=listed,
        out=out,
    )


def compact_all(out: str, uris: Iterable[str], *, everything: bool) -> dict[str, Compacted]:
    """Compact data sets; return what was done by URI."""
    return {uri: compaction.compact(uri, everything=everything) for uri in uris}


def compact_if_needed(out: str) -> dict[str, Compacted]:
    """Compact the data sets below an `--out` in which enough small files have come together.

    Safe beside other runs. What is superseded goes when the run that calls this ends, see `leftovers`.

    Args:
        out: a normalized place.

    Returns:
        URI of each data set that was compacted → what was done.
    """
    due = [dataset.uri for dataset in _datasets(out) if compaction.needed(dataset)]
    return compact_all(out, due, everything=False)


def _datasets(out: str) -> Iterator[Dataset]:
    """Yield the data sets below an `--out` that can be compacted."""
    for place in leftovers.corpora(out):
        for name in compaction.ORDERS:
            dataset = Dataset.find_own(storage.join(place, name))
            if dataset and dataset.commit.dataset == name:
                yield dataset


def _size(dataset: Dataset) -> tuple[int, int]:
    """Return how many files a data set has, and their bytes."""
    return len(dataset.files), sum(file.bytes for file in dataset.files)


def _kept(uri: str) -> int:
    """Return how many files were superseded lately."""
    return len(storage.entries(moves.superseded(uri)))


def _described(uri: str, out: str, before: tuple[int, int], done: Compacted) -> CompactedDataset:
    files, size = _size(Dataset.open(uri))
    return CompactedDataset(
        dataset=uri.removeprefix(f"{out}/"),
        files_before=before[0],
        files_after=files,
        bytes_before=before[1],
        bytes_after=size,
        merged=done.merged,
    )
