"""Import: OriPID's published training features become the data sets that training takes."""

from __future__ import annotations

from id2.requests import ImportOripidRequest
from id2.stages import stage
from id2core.oripid import imports
from id2core.oripid.imports import ImportSummary
from id2core.runs.planning import Made
from id2core.runs.progress import into_tally
from id2core.runs.records import recorded
from id2core.store import storage
from id2core.store.datasets import Dataset
from id2core.store.schemas import EMBEDDINGS
from id2core.transforms.files import load_transform


def run(request: ImportOripidRequest) -> ImportSummary:
    """Import the files that were not imported yet, and pair them by name.

    Raises:
        ReaderError: the folder holds something else.
        StorageError, DatasetError, TransformError: the message says what to do.
    """
    w = load_transform(request.transform, request.encoder_id) if request.transform else None
    with recorded(storage.normalize(request.out), "import-oripid", request.model_dump()) as recorder:
        with recorder.stage("import"):
            summary = stage(
                "import features",
                lambda: imports.import_training(
                    request.features,
                    request.out,
                    request.encoder_id,
                    w,
                    latent_size=request.latent_size,
                    progress=into_tally(),
                    execution=recorder.execution,
                    allow_shrink=request.settings().allow_shrink,
                ),
            )
        counts = Made.by(recorder.execution.run_id, Dataset.open(storage.join(summary.out, EMBEDDINGS)))
        recorder.count(listed=summary.listed, embedded=counts.added, rejected=counts.rejected)
    return summary
