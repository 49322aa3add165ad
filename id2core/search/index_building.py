"""Build a compressed index: sample, train, encode, and measure what a search by it finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.errors import RecallError
from id2core.runs import codes
from id2core.runs.codes import Coding, IndexFacts
from id2core.search import compressed, flat, index_strings, scoring, shards
from id2core.search.coded import CodedReferences, CodedShard
from id2core.search.compressed import Model
from id2core.search.index_strings import Compressed
from id2core.store.ahead import in_order
from id2core.store.datasets import Dataset, FileRecord

_SEED: Final = 0
# Rows of each file that a sample takes, so that it comes from many files.
SAMPLE_ROWS_EACH: Final = 512
# References that are asked for their neighbors, and how far noise moves them: half of all translations by
# the bundled models score more with their original. Without noise, an index seems to find more than it does.
MEASURED_QUERIES: Final = 500
_SCORE: Final = np.float32(0.5)
_NEIGHBORS: Final = 10
MEASURED_DEPTHS: Final = (50, 100, 200, 400, 800)
# What it costs to score a candidate exactly, in codes that are scanned in that time.
_SCANNED: Final = 60
# The recall is measured again after this share of the corpus is new.
_NEW: Final = 0.25


def check(coding: Coding, memory: int) -> Compressed:
    """Refuse an index that cannot be built; return it.

    Args:
        coding: what is planned.
        memory: bytes that a worker may take.

    Raises:
        SearchError: see `Compressed.check`.
    """
    form = index_strings.parse(coding.index)
    corpus = coding.corpus
    size = shards.descriptor_size(corpus) if corpus.rows else 0
    if coding.model is None:
        form.check(size, corpus.rows, memory)
    return form


def train(coding: Coding, memory: int) -> FileRecord:
    """Return the file of the model: the present one, that of an earlier attempt, or a new one.

    Raises:
        SearchError: it cannot be built.
        DatasetError: a file of the corpus is gone or damaged.
    """
    form = check(coding, memory)
    if known := coding.model or codes.recorded_model(coding):
        return known
    return codes.leave_model(coding, compressed.train(form, sample(coding.corpus, form.sample)).data)


def load_model(coding: Coding, record: FileRecord) -> Model:
    """Read the model of a file.

    Raises:
        DatasetError: the file is gone, damaged, or of another index.
    """
    data = codes.read_model(coding.uri, record)
    return compressed.load(index_strings.parse(coding.index), shards.descriptor_size(coding.corpus), data)


def sample(corpus: Dataset, count: int) -> NDArray[np.float32]:
    """Return descriptors of a corpus, drawn at random from many files: float32[at most `count`, m]."""
    rng = np.random.default_rng(_SEED)
    files = [corpus.files[i] for i in rng.permutation(len(corpus.files))[: -(-count // SAMPLE_ROWS_EACH)]]
    share = min(1.0, count / sum(file.rows for file in files))
    chosen = [np.sort(rng.permutation(file.rows)[: round(share * file.rows)]) for file in files]
    held = in_order(files, lambda file: _descriptors(corpus, file), shards.READERS)
    return np.concatenate([table[rows] for table, rows in zip(held, chosen, strict=True)])


def _descriptors(corpus: Dataset, file: FileRecord) -> NDArray[np.float32]:
    return shards.load(corpus, [file]).descriptors


def encode(coding: Coding, file: FileRecord, record: FileRecord, model: Model) -> FileRecord:
    """Return the codes of a file of the corpus: those of an earlier attempt, or new ones.

    Args:
        coding: what is planned.
        file: of the corpus.
        record: the file of the model.
        model: what it holds.

    Raises:
        DatasetError: a file is gone or damaged.
    """
    if known := codes.recorded_codes(coding, file, record):
        return known
    made = model.encode(_descriptors(coding.corpus, file))
    buffers = [None, pa.py_buffer(made)]
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(made.shape[1]), len(made), buffers)
    return codes.leave_codes(coding, file, record, column.cast(pa.binary()))


def commit(
    coding: Coding, model: FileRecord, made: Mapping[str, FileRecord], recall: float, memory: int
) -> Dataset:
    """Measure what the codes of all files find, and make them the index of the corpus.

    Args:
        coding: what is planned.
        model: the file of the model.
        made: name of a file of the corpus → its new codes.
        recall: see `facts`.
        memory: see `facts`.

    Raises:
        LostRowsError: a file has no codes.
        RecallError: the index finds too few.
        StoreUnavailableError: another run has committed meanwhile, or references were removed.
    """
    codes.check_present(coding)
    files = codes.files_of(coding, model, made)
    staged = codes.staged(coding, model, files)
    last = codes.facts_of(coding.beside) if coding.beside else None
    new = sum(file.rows for file in coding.todo(model))
    found = facts(CodedReferences(coding.corpus, staged), last, new, recall, memory)
    return codes.commit(coding, model, files, found)


def facts(
    coded: CodedReferences, last: IndexFacts | None, new: int, recall: float, memory: int
) -> IndexFacts:
    """Return what an index finds, and how it has to be searched for that.

    It is measured again once a quarter as many references are new as there were: in place of others, or
    beside them.

    Args:
        coded: the references and their codes.
        last: what the index counted before; None for a new model.
        new: references that were encoded since then.
        recall: share of the 10 best of an exact search that is to be found, at least.
        memory: bytes of descriptors that are searched exactly for it.

    Raises:
        RecallError: the index finds fewer.
    """
    rows = coded.references.rows
    since = last.encoded_since + new if last else rows
    if last and since < _NEW * last.corpus_rows and (last.recall_10 or 0) >= recall:
        return last.model_copy(update={"rows": rows, "encoded_since": since})
    found = _measure(coded, memory)
    good = [point for point in found.points if point.recall_10 >= recall]
    if not good:
        best = max(found.points, key=lambda point: point.recall_10)
        raise RecallError(
            f"index {coded.form.text} finds {best.recall_10:.1%} of the 10 best references, and "
            f"--index-recall asks for {recall:.6g}: take longer codes, such as PQ…np with more groups, or "
            "ask for less. The index that was there before, if any, is unchanged"
        )
    chosen = min(good, key=lambda point: point.cost(found.rows / coded.form.lists))
    return IndexFacts(
        rows=rows,
        trained_on=last.trained_on if last else min(coded.form.sample, rows),
        probes=chosen.probes,
        depth=chosen.depth,
        recall_1=chosen.recall_1,
        recall_10=chosen.recall_10,
        measured_rows=found.rows,
        measured_queries=found.queries,
        corpus_rows=rows,
    )


@dataclass(frozen=True)
class _Point:
    """One way to search, and what it finds."""

    probes: int
    depth: int
    recall_1: float
    recall_10: float

    def cost(self, list_rows: float) -> float:
        """Return the cost of an upload in codes that are scanned."""
        return self.probes * list_rows + self.depth * _SCANNED


@dataclass(frozen=True)
class _Measured:
    points: list[_Point]
    rows: int
    queries: int


def _measure(coded: CodedReferences, memory: int) -> _Measured:
    """Ask a shard for the neighbors of some references with noise, exactly and by codes, in several ways."""
    files = _shard_files(coded.references, memory)
    descriptors = shards.load(coded.references, files).descriptors
    queries = _with_noise(descriptors)
    best, _ = flat.FlatIndex(descriptors).search(queries, min(_NEIGHBORS, len(descriptors)))
    # Copies of a picture score alike, and whichever of them is found is as good.
    least = best - scoring.tolerance(descriptors.shape[1])
    index = CodedShard(coded, files).index
    points = []
    for probes in probes_tried(coded.form.lists):
        _, found = index.search(queries, min(max(MEASURED_DEPTHS), len(descriptors)), probes)
        scores = scoring.pairs(queries, descriptors, found)
        points += [_point(probes, depth, scores[:, :depth], least) for depth in MEASURED_DEPTHS]
    return _Measured(points, len(descriptors), len(queries))


def _with_noise(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw descriptors, and move each to a score of `_SCORE` with itself."""
    rng = np.random.default_rng(_SEED)
    chosen = descriptors[np.sort(rng.permutation(len(descriptors))[:MEASURED_QUERIES])]
    noise = rng.standard_normal(chosen.shape, np.float32)
    noise -= np.vecdot(noise, chosen)[:, None] * chosen
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return np.asarray(_SCORE * chosen + np.sqrt(1 - _SCORE**2, dtype=np.float32) * noise, np.float32)


def _shard_files(references: Dataset, memory: int) -> tuple[FileRecord, ...]:
    """Return files at random, as many as fit in memory, at least one."""
    most = memory // (4 * shards.descriptor_size(references))
    chosen: list[FileRecord] = []
    for number in np.random.default_rng(_SEED).permutation(len(references.files)):
        file = references.files[number]
        if chosen and sum(held.rows for held in chosen) + file.rows > most:
            break
        chosen.append(file)
    return tuple(chosen)


def _point(
    probes: int,
    depth: int,
    scores: NDArray[np.float32],
    least: NDArray[np.float32],
) -> _Point:
    """Return what candidates find that score `scores`, [Q,depth], where the best score `least`, [Q,k]."""
    found = -np.sort(-scores, axis=1)[:, : least.shape[1]]
    all_found = float((found >= least[:, -1:]).sum()) / least.size
    return _Point(probes, depth, float((found[:, 0] >= least[:, 0]).mean()), all_found)


def probes_tried(lists: int) -> Iterator[int]:
    """Yield the numbers of lists that a measurement searches: powers of two, and all."""
    probes = 1
    while probes < lists:
        yield probes
        probes *= 2
    yield lists
