"""The compressed index of a corpus as a data set beside it: a trained model, and codes file by file.

    OUT/reference/embeddings/part-…   descriptors
    OUT/reference/index/model-…       what all codes depend on, trained on a sample of them
    OUT/reference/index/codes-…       the code of each row of one of these files, in its order

A corpus has one index at most. It is brought up to date file by file: a file is encoded once. This module
knows what belongs together, and nothing of what codes are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import pyarrow as pa
from pydantic import BaseModel, Field

from id2core import defaults
from id2core.errors import DatasetError, LostRowsError, StoreUnavailableError
from id2core.runs import units
from id2core.runs.execution import Execution
from id2core.runs.units import Record
from id2core.store import datasets, moves, schemas, storage
from id2core.store.datasets import Commit, Dataset, FileRecord

INDEX: Final = "index"
# What the ids of the data set have beside those of the corpus.
STRING: Final = "index"
_MODEL, _CODES = "model-", "codes-"


class IndexFacts(BaseModel):
    """What a commit of the data set counts.

    Attributes:
        rows: references that have a code.
        trained_on: of which the model is trained.
        probes: lists that are searched for each upload.
        depth: best codes of an upload that are scored exactly.
        recall_1, recall_10: share of the exact search's best, and of its 10 best, that a search finds.
        measured_rows, measured_queries: references in the shard where this was measured, and how many of them
            were asked for their neighbors, with noise.
        corpus_rows: references of the corpus then.
        encoded_since: references that were encoded since.
    """

    rows: int = 0
    trained_on: int = 0
    probes: int = Field(0, ge=0, le=defaults.MOST_PROBES)
    depth: int = Field(0, ge=0, le=defaults.MOST_CANDIDATES)
    recall_1: float | None = None
    recall_10: float | None = None
    measured_rows: int = 0
    measured_queries: int = 0
    corpus_rows: int = 0
    encoded_since: int = 0


@dataclass(frozen=True)
class Coding:
    """A corpus, and the index that is made beside it.

    Attributes:
        corpus: its embeddings, as they were when this was planned.
        index: the index, by its string.
        execution: who makes it.
        beside: the data set as it was; None for one that was not there, or that is to be replaced.
        last: the data set as it was, whatever it holds.
        salt: tells a model that is trained anew from one of the same references, which may be damaged.
    """

    corpus: Dataset
    index: str
    execution: Execution
    beside: Dataset | None
    last: Dataset | None
    salt: str = ""

    @property
    def place(self) -> str:
        """Parent of both data sets."""
        return moves.place_of(self.corpus.uri)[0]

    @property
    def uri(self) -> str:
        """URI of the data set that is made."""
        return storage.join(self.place, INDEX)

    @property
    def ids(self) -> dict[str, str]:
        """The ids of the data set: those of the corpus, and the string of the index."""
        return ids_of(self.corpus, self.index)

    @cached_property
    def model(self) -> FileRecord | None:
        """The file of the model that is trained already."""
        return model_of(self.beside) if self.beside else None

    def todo(self, model: FileRecord | None) -> tuple[FileRecord, ...]:
        """Return the files of the corpus that have no codes of a model, None for one to be trained."""
        return tuple(file for file in self.corpus.files if not self.has_codes(file, model))

    def has_codes(self, file: FileRecord, model: FileRecord | None) -> bool:
        """Return whether a file of the corpus has codes of a model in the data set as it was."""
        return model is not None and key_of(file, model) in self._made

    @cached_property
    def _made(self) -> dict[str, FileRecord]:
        return coded(self.beside, self.model) if self.beside and self.model else {}

    @property
    def is_current(self) -> bool:
        """Whether the data set has the codes of exactly these files."""
        if self.beside is None or self.todo(self.model):
            return False
        return len(self.beside.files) == len(self.corpus.files) + 1

    def unit_of_model(self) -> str:
        """Return the key of the unit of work that the training is."""
        return datasets.digest_of(INDEX, self.index, self.corpus.digest, self.ids, self.salt)


def ids_of(corpus: Dataset, index: str) -> dict[str, str]:
    """Return the ids of the data set that has an index of a corpus."""
    return {key: corpus.ids[key] for key in schemas.ROW_IDS} | {STRING: index}


def plan(corpus: Dataset, index: str, execution: Execution, *, anew: bool = False) -> Coding:
    """Plan the index of a corpus.

    Args:
        corpus: its embeddings.
        index: the string.
        execution: who makes it.
        anew: whether a new model is trained.

    Raises:
        DatasetError: the data set beside the corpus is something else.
    """
    last = find(corpus)
    is_same = last is not None and last.ids == ids_of(corpus, index) and model_of(last) is not None
    salt = execution.run_id if anew else ""
    return Coding(corpus, index, execution, last if is_same and not anew else None, last, salt)


def find(corpus: Dataset) -> Dataset | None:
    """Return the index beside a corpus; None where there is none.

    Raises:
        DatasetError: the data set beside the corpus is something else.
    """
    index = Dataset.find_own(storage.join(moves.place_of(corpus.uri)[0], INDEX))
    if index and (index.commit.dataset != INDEX or STRING not in index.ids):
        raise DatasetError(f"{index.uri} is not the index of a corpus: move it elsewhere")
    return index


def key_of(file: FileRecord, model: FileRecord) -> str:
    """Return the name, without the hash of its bytes, of the codes of a file by a model."""
    return _key_of(file, model.name)


def _key_of(file: FileRecord, model: str) -> str:
    return _CODES + datasets.digest_of(file.name, file.rows, model)


def model_of(index: Dataset) -> FileRecord | None:
    """Return the file of the model of an index."""
    return next((file for file in index.files if file.name.startswith(_MODEL)), None)


def coded(index: Dataset, model: FileRecord) -> dict[str, FileRecord]:
    """Return the files with codes of an index by their `key_of`."""
    return {file.key: file for file in index.files if file != model}


def facts_of(index: Dataset) -> IndexFacts:
    """Return what the last commit of an index counts."""
    return index.commit.counts_of(index.run_id, IndexFacts)


def read_model(uri: str, file: FileRecord) -> bytes:
    """Return the bytes of a model of the data set at a URI.

    Raises:
        DatasetError: its file is gone or damaged.
    """
    table = datasets.read_file(uri, file)  # whole, so that its SHA-256 is checked
    if len(table) != 1 or (data := table["model"][0].as_py()) is None:
        raise DatasetError(f"{uri}/{file.name} holds no model: build the index again")
    return bytes(data)


def leave_model(coding: Coding, data: bytes) -> FileRecord:
    """Write a model and its record; return its file."""
    table = pa.table({"code": pa.nulls(1, pa.binary()), "model": pa.array([data], pa.large_binary())})
    key = coding.unit_of_model()
    return _leave(coding, key, _MODEL + key, table.cast(schemas.INDEX))


def leave_codes(coding: Coding, file: FileRecord, model: FileRecord, codes: pa.Array) -> FileRecord:
    """Write the codes of a file of the corpus and their record; return their file."""
    table = pa.table({"code": codes, "model": pa.nulls(len(codes), pa.large_binary())})
    return _leave(coding, _unit_of(file, model), key_of(file, model), table.cast(schemas.INDEX))


def _leave(coding: Coding, unit: str, name: str, table: pa.Table) -> FileRecord:
    made = datasets.write_file(coding.uri, name, [table], schemas.INDEX)
    units.leave(coding.place, Record(unit, coding.execution.run_id, coding.ids, made.rows, INDEX, made))
    return made


def recorded_model(coding: Coding) -> FileRecord | None:
    """Return the file of the model that an earlier attempt has recorded; None where there is none."""
    return _recorded(coding, coding.unit_of_model())


def recorded_codes(coding: Coding, file: FileRecord, model: FileRecord) -> FileRecord | None:
    """Return the file of codes that an earlier attempt has recorded; None where there is none."""
    return _recorded(coding, _unit_of(file, model))


def _recorded(coding: Coding, unit: str) -> FileRecord | None:
    record = units.find(coding.place, unit)
    return record.rows if record and record.ids == coding.ids else None


def _unit_of(file: FileRecord, model: FileRecord) -> str:
    return key_of(file, model).removeprefix(_CODES)


def files_of(coding: Coding, model: FileRecord, made: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
    """Return the codes of every file of the corpus by its name.

    Args:
        coding: what was planned.
        model: of the codes.
        made: name of a file of the corpus → what was made of it.

    Raises:
        LostRowsError: a file has no codes.
    """
    kept = coding._made
    own = {file.name: made.get(file.name) or kept.get(key_of(file, model)) for file in coding.corpus.files}
    files = {name: codes for name, codes in own.items() if codes}
    missing = [file.name for file in coding.corpus.files if file.name not in files]
    if missing:
        raise LostRowsError(f"{len(missing)} files have no codes, {missing[0]} among them; run again")
    return files


def staged(coding: Coding, model: FileRecord, files: Mapping[str, FileRecord]) -> Dataset:
    """Return the data set as it will be, of which the new files are staged; nobody else sees it yet."""
    return Dataset(coding.uri, _next(coding, model, files, IndexFacts()))


def _next(coding: Coding, model: FileRecord, files: Mapping[str, FileRecord], facts: IndexFacts) -> Commit:
    run_id = coding.execution.run_id
    base = coding.last.commit if coding.last else Commit(INDEX, run_id, coding.ids)
    return replace(
        base,
        run_id=run_id,
        ids=coding.ids,
        files=tuple(sorted((model, *files.values()), key=lambda file: file.name)),
        runs=base.runs | {run_id: facts.model_dump(mode="json")},
    )


def commit(coding: Coding, model: FileRecord, files: Mapping[str, FileRecord], facts: IndexFacts) -> Dataset:
    """Make the data set beside the corpus have the codes of exactly its files. Safe to repeat.

    Files that left the corpus meanwhile, as by a takedown, have left the data set, too, when this returns.

    Args:
        coding: what was planned.
        model: of the codes.
        files: what `files_of` returns.
        facts: what the commit counts.

    Raises:
        StoreUnavailableError: another run has committed meanwhile.
    """
    committed = datasets.replace_commit(coding.uri, _next(coding, model, files, facts), coding.last)
    if committed is None:
        committed = Dataset.open(coding.uri)
        if committed.run_id != coding.execution.run_id:
            raise StoreUnavailableError(f"{coding.uri}: run {committed.run_id} has committed; run again")
    units.delete(units.record_uri(coding.place, key) for key in _units(coding, model))
    if corpus := _changed(coding):
        forget(corpus, coding.execution)
        committed = Dataset.open(coding.uri)
    return committed


def check_present(coding: Coding) -> None:
    """Raise StoreUnavailableError where files left the corpus since the index was planned."""
    if _changed(coding):
        raise StoreUnavailableError(
            f"{coding.corpus.uri}: references were removed while their index was made. Run again"
        )


def _changed(coding: Coding) -> Dataset | None:
    """Return the corpus as it is, if files have left it since."""
    corpus = Dataset.find_own(coding.corpus.uri)
    return corpus if corpus and not set(coding.corpus.files) <= set(corpus.files) else None


def _units(coding: Coding, model: FileRecord) -> Iterable[str]:
    yield coding.unit_of_model()
    for file in coding.corpus.files:
        yield _unit_of(file, model)


def forget(corpus: Dataset, execution: Execution) -> int:
    """Remove the codes of files that a corpus no longer lists, as after a takedown; return how many.

    Codes that a build has left, and not committed, go, too. Those of present files stay: a build may commit
    them.

    Raises:
        StoreUnavailableError: another run has committed to the index meanwhile.
    """
    removed = _uncommit(corpus, execution)
    place = moves.place_of(corpus.uri)[0]
    uri = storage.join(place, INDEX)
    folders = uri, moves.staged(uri), moves.superseded(uri)
    there = [entry.uri for folder in folders for entry in storage.entries(folder)]
    names = {entry: entry.rpartition("/")[2] for entry in there}
    models = {name for name in names.values() if name.startswith(_MODEL)}
    own = {_key_of(file, model) for file in corpus.files for model in models}
    gone = {entry: name for entry, name in names.items() if name.startswith(_CODES) and _key(name) not in own}
    for entry in gone:
        storage.delete(entry)
    units.delete(units.record_uri(place, _key(name).removeprefix(_CODES)) for name in set(gone.values()))
    return removed


def _key(name: str) -> str:
    return name.rpartition("-")[0]


def _uncommit(corpus: Dataset, execution: Execution) -> int:
    """Commit an index without codes of files that its corpus no longer lists; return how many these are."""
    index = find(corpus)
    model = model_of(index) if index else None
    if index is None or model is None:
        return 0
    own = {key_of(file, model) for file in corpus.files}
    kept = tuple(file for file in index.files if file == model or file.key in own)
    if len(kept) < len(index.files):
        facts = facts_of(index).model_copy(update={"rows": sum(file.rows for file in kept) - model.rows})
        runs = index.runs | {execution.run_id: facts.model_dump(mode="json")}
        changed = replace(index.commit, run_id=execution.run_id, files=kept, runs=runs)
        if datasets.replace_commit(index.uri, changed, index) is None:
            raise StoreUnavailableError(f"{index.uri}: another run has committed to it; run again")
    return len(index.files) - len(kept)
