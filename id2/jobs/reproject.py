"""Give the corpora below an `--out` descriptors of another W, beside those in use; then switch to them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from id2.requests import ReprojectRequest
from id2.results import ReprojectedCorpus, ReprojectionState, ReprojectReport
from id2.stages import stage
from id2core.errors import DatasetError, RunInProgressError, TransformError
from id2core.reports import page
from id2core.runs import erasure, leases, leftovers
from id2core.runs.execution import Execution
from id2core.runs.records import at_work, recorded
from id2core.search.looks import Views
from id2core.store import moves, schemas, storage
from id2core.store.datasets import Dataset
from id2core.transforms import reprojection
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from id2core.transforms.reprojection import Reprojection

_log = logging.getLogger("id2")


def run(request: ReprojectRequest) -> ReprojectReport:
    """Project what is not projected yet; switch to it, or drop it, where that is asked for. Safe to repeat.

    Raises:
        DatasetError: `out` holds no corpus with latents, or a file is damaged.
        TransformError: the transform belongs to another encoder.
        RunInProgressError: another run is at work on `out`, and a switch was asked for.
        LostRowsError: a file was not projected; nothing was committed.
    """
    job = _Job(request, storage.normalize(request.out))
    job.check()  # what can be refused is refused before anything is written
    if request.switch and at_work(job.out):
        raise RunInProgressError(
            f"{job.out}: another run is at work, with the transform that is in use. Switch when it has ended"
        )
    with recorded(job.out, "reproject", request.model_dump(exclude={"progress"})) as recorder:
        execution = recorder.execution
        with recorder.stage("reproject"):
            corpora = job.drop(execution) if request.drop else job.project(execution)
        if request.switch:
            corpora = stage("switch", lambda: job.switch(execution, corpora))
        recorder.count(embedded=sum(corpus.projected for corpus in corpora))
    return ReprojectReport(
        run_id=execution.run_id,
        transform_id=job.transform_id,
        corpora=corpora,
        elsewhere=page.corpora_elsewhere(job.out),
        out=job.out,
    )


@dataclass(frozen=True)
class _Job:
    """What was asked for, of the corpora below an `--out`."""

    request: ReprojectRequest
    out: str

    @functools.cached_property
    def _transform(self) -> Transform:
        return load_transform(self.request.transform, self._encoder_id)

    @property
    def transform_id(self) -> str:
        """The id of the W that was asked for."""
        return self._transform.transform_id

    @functools.cached_property
    def _encoder_id(self) -> str:
        return next(iter(self._corpora().values())).ids["encoder_id"]

    def _corpora(self) -> dict[str, Dataset]:
        """Return the embeddings below the `--out` by the name of their corpus."""
        found = {
            name: dataset
            for name, place in zip(leftovers.CORPORA, leftovers.own_corpora(self.out), strict=True)
            if (dataset := Dataset.find_own(storage.join(place, schemas.EMBEDDINGS)))
            and dataset.commit.dataset == schemas.EMBEDDINGS
        }
        if not found:
            raise DatasetError(
                f"{self.out} holds no corpus: give the --out of id2 embed, scan or nightly. A corpus that "
                "was given as dataset: is in the --out of the id2 embed that made it"
            )
        return found

    def _place(self, name: str) -> str:
        return reprojection.place_beside(self.out, name, self.transform_id)

    def check(self) -> None:
        """Refuse a W or a corpus that does not fit; a drop asks for no more than their ids."""
        if not (self.transform_id and self.request.drop):
            self.plan(Execution.begin())
            try:
                Views.of(self._transform, self._encoder_id)
            except TransformError as error:  # whole uploads can be compared with this W all the same
                _log.warning("%s", error)

    def plan(self, execution: Execution) -> dict[str, Reprojection]:
        """Plan the work for each corpus that has other descriptors, or lacks crops and detail."""
        return {
            name: reprojection.plan(dataset, self._place(name), self.request.transform, execution)
            for name, dataset in self._corpora().items()
            if dataset.ids["transform_id"] != self.transform_id
            or reprojection.lacks_rows(dataset, self._transform)
        }

    def project(self, execution: Execution) -> list[ReprojectedCorpus]:
        """Bring what lies beside each corpus up to date."""
        works = self.plan(execution)
        done = []
        for name, dataset in self._corpora().items():
            if (work := works.get(name)) is None:
                done.append(self._described(name, dataset.rows, 0, "in use"))
                continue
            title = f"reproject {name or 'corpus'}"
            made = stage(title, functools.partial(self._project, work))
            done.append(self._described(name, made.rows, sum(file.rows for file in work.todo), "beside"))
        return done

    def _project(self, work: Reprojection) -> Dataset:
        """Project the files of a corpus that are not projected; where none is left, Beam is not loaded."""
        with leases.held(work.place, work.corpus.uri, work.execution):
            if work.is_current and work.beside:
                return work.beside
            with self._without_taken_down(work, work.place):
                if not work.todo:
                    return reprojection.commit(work, ())
                from beam_jobs import reproject

                return reproject.run(work, self.request.beam)

    @contextmanager
    def _without_taken_down(self, work: Reprojection, place: str) -> Iterator[None]:
        """Remove from a place, in the end, what was made there of pictures that were taken down meanwhile.

        A takedown goes to the corpora in use first. Where it has not come to this one yet, it comes to what
        lies beside it later.
        """
        try:
            yield
        finally:
            present = Dataset.find_own(work.corpus.uri)
            if present is None or present.mark != work.corpus.mark:
                erasure.forget_embeddings(self.out, place, work.execution)

    def switch(self, execution: Execution, corpora: list[ReprojectedCorpus]) -> list[ReprojectedCorpus]:
        """Put in use what lies beside, background and uploads first, and remove it there."""
        for work in reversed(self.plan(execution).values()):
            with self._without_taken_down(work, moves.place_of(work.corpus.uri)[0]):
                reprojection.put_in_use(work)
        for name, dataset in self._corpora().items():
            reprojection.match_rejects(dataset, execution)
            reprojection.drop(self._place(name))
        return [self._described(corpus.corpus, corpus.rows, corpus.projected, "in use") for corpus in corpora]

    def drop(self, execution: Execution) -> list[ReprojectedCorpus]:
        """Remove what lies beside each corpus, unless another run adds to it; undo a switch of rejects."""

        def remove() -> list[ReprojectedCorpus]:
            corpora = self._corpora().items()
            for name, dataset in corpora:
                with leases.held(self._place(name), dataset.uri, execution):
                    reprojection.drop(self._place(name))
                reprojection.match_rejects(dataset, execution)
            return [self._described(name, dataset.rows, 0, "dropped") for name, dataset in corpora]

        return stage("drop", remove)

    def _described(self, name: str, rows: int, projected: int, state: ReprojectionState) -> ReprojectedCorpus:
        place = storage.join(self.out, name) if name else self.out
        where = place if state == "in use" else self._place(name)
        return ReprojectedCorpus(corpus=name, rows=rows, projected=projected, state=state, place=where)
