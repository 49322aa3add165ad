"""Take pictures down: remove what was made of them, and refuse them from now on; or admit them again."""

from __future__ import annotations

from collections.abc import Iterable

from id2.jobs import scan
from id2.requests import ReportRequest, TakedownRequest
from id2.results import TakedownReport
from id2.stages import stage
from id2core.errors import DatasetError, ID2Error
from id2core.reports import page
from id2core.runs import erasure, takedowns
from id2core.runs.erasure import Erased
from id2core.runs.execution import Execution
from id2core.runs.records import RUNS, at_work, recorded
from id2core.store import storage
from id2core.store.datasets import SUCCESS, Dataset


def run(request: TakedownRequest) -> TakedownReport:
    """Take pictures down or admit them again. Safe to repeat: what a killed run left is completed.

    Raises:
        DatasetError: no picture is known by a URI, or a data set is damaged.
        StoreUnavailableError: other runs keep committing to a data set.
    """
    out = storage.normalize(request.out)
    pictures = _pictures(out, request)
    config = request.model_dump(exclude={"progress"}) | {"image_ids": sorted(pictures)}
    busy = at_work(out)
    reports: dict[str, str] = {}
    with recorded(out, "takedown", config) as recorder:
        execution = recorder.execution
        erased = Erased.nothing()
        if request.reinstate:
            stage("reinstate", lambda: takedowns.reinstate(out, pictures, execution))
        else:
            stage("refuse", lambda: takedowns.add(out, pictures, request.reason, execution))
            erased = stage("erase", lambda: _erase(out, pictures, execution))
            reports = stage("write reports", lambda: _renew_reports(out))
    return TakedownReport(
        run_id=execution.run_id,
        reinstated=request.reinstate,
        pictures={image_id: sorted(uris) for image_id, uris in sorted(pictures.items())},
        rows=dict(erased.rows),
        files=erased.files,
        translations=erased.pictures,
        reports=reports,
        elsewhere=_elsewhere(out, pictures),
        others_at_work=busy,
        out=out,
    )


def _pictures(out: str, request: TakedownRequest) -> dict[str, set[str]]:
    """Return the pictures that are meant: image_id → where they are known to be."""
    uris = {storage.normalize(uri) for uri in request.uri} | set(request.uri)
    known = erasure.find(out, uris) if uris else {}
    rows = takedowns.read(out)
    for row in rows:
        if at := uris.intersection(row.uris):
            known.setdefault(row.image_id, set()).update(at)
    found = {uri for own in known.values() for uri in own}
    unknown = [uri for uri in request.uri if not found & {uri, storage.normalize(uri)}]
    if unknown:
        raise DatasetError(
            f"{out} knows no picture at {unknown[0]}: give the URI as matches/ or embeddings/ have it, or "
            "--image-id with the SHA-256 of the file"
        )
    every = erasure.places(out, {*known, *(image_id.lower() for image_id in request.image_id)})
    refused = {row.image_id for row in rows if row.reinstated_at is None}
    if request.reinstate and (others := every.keys() - refused):
        raise DatasetError(f"{out}: the picture {min(others)} is not taken down, so there is nothing to undo")
    for row in rows:
        if row.image_id in every:
            every[row.image_id].update(row.uris)
    return every


def _erase(out: str, pictures: Iterable[str], execution: Execution) -> Erased:
    """Remove reports first, whose thumbnails show pictures, then what data sets hold."""
    for folder in _report_folders(out):
        storage.delete(storage.join(folder, page.HTML))
    return erasure.erase(out, pictures, execution)


def _report_folders(out: str) -> list[str]:
    """Return the folders below an `--out` that have a report, or had one: a run is recorded beside each.

    Files of other programs may bear these names.
    """
    names = (f"/{page.HTML}", f"/{page.SUMMARY}")
    folders = sorted({e.uri.rpartition("/")[0] for e in storage.entries(out) if e.uri.endswith(names)})
    return [folder for folder in folders if storage.exists(storage.join(folder, RUNS, SUCCESS))]


def _renew_reports(out: str) -> dict[str, str]:
    """Write reports again, without the pictures; one that cannot be made again stays deleted."""
    done = {}
    for folder in _report_folders(out):
        try:
            scan.rewrite_report(ReportRequest(out=folder))
            done[folder] = "written again"
        except ID2Error as error:
            if error.transient:
                raise
            storage.delete(storage.join(folder, page.SUMMARY))
            done[folder] = "deleted"
    return done


def _elsewhere(out: str, pictures: Iterable[str]) -> list[str]:
    """Return the corpora of the last scan that lie in other places and still have such a picture."""
    found = map(Dataset.find, page.corpora_elsewhere(out))
    return [dataset.uri for dataset in found if dataset and erasure.holds(dataset, pictures)]
