"""Build a compressed index of the references below an `--out`, or bring it up to date."""

from __future__ import annotations

from id2.indexing import Indexer
from id2.requests import IndexRequest
from id2.results import IndexReport
from id2.stages import stage
from id2core.errors import DatasetError
from id2core.runs import codes
from id2core.runs.records import recorded
from id2core.search import cuts, shards
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset

# Where the references below an `--out` are: those of a scan, or of `id2 embed`.
_CORPORA = ("reference", "")


def run(request: IndexRequest) -> IndexReport:
    """Encode what has no code yet, train a model where there is none, and measure. Safe to repeat.

    Raises:
        DatasetError: `out` holds no references, or a file is damaged.
        SearchError: the index cannot be built, or finds too few.
        RunInProgressError: another run builds it.
    """
    out = storage.normalize(request.out)
    references = _references(out)
    settings = request.settings().model_copy(update={"index": request.index})
    with recorded(out, "index", request.model_dump(exclude={"progress"})) as recorder:
        indexer = Indexer(settings, recorder.execution, request.beam)
        before = codes.find(references)
        with recorder.stage("index"):
            coded = stage("index", lambda: indexer.make(references, anew=request.anew))
        known = {file.name for file in before.files} if before else set()
        encoded = sum(file.rows for file in coded.code_files if file.name not in known)
        recorder.count(references=references.rows)
    size = shards.descriptor_size(references)
    return IndexReport(
        run_id=recorder.execution.run_id,
        index=request.index,
        place=coded.index.uri,
        encoded=encoded,
        code_bytes=coded.form.stored_bytes(size),
        memory_bytes=coded.row_bytes(size),
        flat_bytes=cuts.row_bytes(size),
        out=out,
        **coded.facts.model_dump(exclude={"corpus_rows"}),
    )


def _references(out: str) -> Dataset:
    for name in _CORPORA:
        place = storage.join(out, name) if name else out
        found = Dataset.find_own(storage.join(place, schemas.EMBEDDINGS))
        if found and found.commit.dataset == schemas.EMBEDDINGS and found.rows:
            return found
    raise DatasetError(
        f"{out} holds no references: give the --out of id2 scan, nightly, or embed. References that were "
        "given as dataset: are in the --out of the id2 embed that made them"
    )
