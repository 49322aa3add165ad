"""Judge stored pairs anew by a calibration: no search, no picture is read."""

from __future__ import annotations

from dataclasses import dataclass

from id2 import searching
from id2.corpora import Corpus
from id2.jobs import scan
from id2.requests import JudgeRequest
from id2.results import JudgeReport
from id2.stages import stage
from id2core.errors import CalibrationError, DatasetError
from id2core.reports import page
from id2core.reports.facts import ScanSummary
from id2core.reports.inputs import ReportInputs
from id2core.reports.summary import summarize
from id2core.runs import ledger, leftovers
from id2core.runs.execution import Execution
from id2core.runs.records import recorded
from id2core.search import background_rows, looks, match_rows
from id2core.search.background_rows import Backgrounds
from id2core.search.match_rows import MATCHES
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Dataset
from id2core.transforms.linear import AUTO
from id2core.verdicts import calibration, judging, rejudging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.judging import Judge
from id2core.verdicts.normalization import Normalization


@dataclass(frozen=True)
class _Place:
    """An `--out` whose pairs are judged.

    Attributes:
        out: its URI.
        summary: of its last scan; None where there is none.
        references, queries: embeddings; the queries are None where they are gone.
        matches: the pairs.
    """

    out: str
    summary: ScanSummary | None
    references: Dataset
    queries: Dataset | None
    matches: Dataset

    @staticmethod
    def open(out: str) -> _Place:
        """Find the data sets by summary.json, else where scans put them.

        Raises:
            DatasetError: there are no matches, or not those of this version, or no references.
        """
        place = storage.normalize(out)
        leftovers.check_one_channel(place, "id2 judge")
        summary = page.read_summary(place)
        references, queries = (
            (summary.inputs.reference_embeddings, summary.inputs.query_embeddings)
            if summary
            else (storage.join(place, side, schemas.EMBEDDINGS) for side in ("reference", "queries"))
        )
        matches = Dataset.open(storage.join(place, MATCHES))
        match_rows.check_layout(matches)
        return _Place(place, summary, Dataset.open(references), Dataset.find(queries), matches)


def run(request: JudgeRequest) -> JudgeReport:
    """Judge every stored pair, and write the report again where there is one.

    Raises:
        CalibrationError: the calibration is for other scores, reaches below what is stored, or needs a
            background that is not there; or there is no earlier one to go back to.
        DatasetError: `out` holds no matches, or a file is damaged.
    """
    place = _Place.open(request.out)
    ids = {name: place.references.ids[name] for name in schemas.ROW_IDS}
    ids[looks.VIEWS] = _views(place, ids)
    chosen = (
        rejudging.earlier(place.matches, place.out, ids)
        if request.back
        else calibration.load(str(request.calibration))
    )
    chosen.check_ids(ids)
    rejudging.check_floor(place.matches, place.out, Judge(chosen))
    config = request.model_dump(exclude={"progress"}) | {"calibration_id": chosen.calibration_id}
    with recorded(place.out, "judge", config) as recorder:
        execution = recorder.execution
        with recorder.stage("search background"):
            judge = stage("search background", lambda: _judge(request, place, chosen, execution))
        with recorder.stage("judge"):
            judges = [(judge, place.references.rows)]
            judged = stage("judge", lambda: rejudging.judge(place.matches, place.out, judges, execution))
        pairs = sum(judged.verdicts.values())
        recorder.count(matches=pairs)
        if place.summary:
            stage("write report", lambda: _write_report(request, place, chosen))
    return JudgeReport(
        run_id=execution.run_id,
        calibration_id=judged.calibration_id,
        before=judged.before,
        pairs=pairs,
        verdicts=judged.verdicts,
        skipped=judged.skipped,
        out=place.out,
    )


def _views(place: _Place, ids: dict[str, str]) -> str:
    """Return the id of the views of the stored scores; all searches of a place have the same."""
    return next((event.views for event in ledger.events(place.matches.commit, ids)), looks.NONE)


def _judge(request: JudgeRequest, place: _Place, chosen: Calibration, execution: Execution) -> Judge:
    """Return the judge; uploads that have no background yet are searched in it first."""
    how = chosen.normalization
    judging.check_background(chosen, (request.background or "stored") if how or request.background else None)
    if how is None:
        return Judge(chosen)
    out = storage.join(place.out, "queries", background_rows.BACKGROUNDS)
    name = background_rows.name_of(place.references.ids, how.background_id, how.k, chosen.views)
    known = Dataset.find(out)
    searched = background_rows.searched(known.commit, name) if known else set()
    missing = datasets.segments_of(place.queries).keys() - searched if place.queries else set()
    if known is None or missing:
        known = _search(request, place, chosen, how, out, execution)
    return Judge(chosen, Backgrounds(known, name))


def _search(
    request: JudgeRequest,
    place: _Place,
    chosen: Calibration,
    how: Normalization,
    out: str,
    execution: Execution,
) -> Dataset:
    """Search the uploads that have no background."""
    background = _background(request, place, chosen)
    if background is None or place.queries is None:
        mend = "give its data set with --background" if place.queries else "their embeddings are gone, too"
        raise CalibrationError(
            f"{place.out} lacks what its uploads score in the background {how.background_id} of this "
            f"calibration: {mend}"
        )
    judging.check_background_id(chosen, background)
    judging.check_disjoint(background, place.references)
    views = looks.plan(
        looks.NONE if chosen.views == looks.NONE else AUTO,
        AUTO,
        chosen.encoder_id,
        chosen.transform_id,
    )
    if looks.id_of(views) != chosen.views:
        raise CalibrationError(
            f"uploads have to be searched under the views {chosen.views} of this calibration, which needs "
            "the W of the corpora: run id2 scan or id2 nightly with this --calibration and --transform"
        )
    plan = background_rows.make(background, place.queries, out, execution, how.k, views)
    return searching.run_planned(plan, request.beam)


def _background(request: JudgeRequest, place: _Place, chosen: Calibration) -> Dataset | None:
    """Find the background: the one given, the bundled one, or the one that a scan has embedded."""
    if request.background:
        given = Corpus.open("background", request.background).dataset
        if given is None:
            raise DatasetError(
                f"--background {request.background}: give dataset: and the --out of id2 embed. This command "
                "embeds no pictures"
            )
        return given
    if bundled := judging.bundled_background(chosen):
        return bundled
    return Dataset.find(storage.join(place.out, "background", schemas.EMBEDDINGS))


def _write_report(request: JudgeRequest, place: _Place, chosen: Calibration) -> ScanSummary | None:
    """Write the report of the last scan with the new verdicts."""
    summary = place.summary
    if summary is None:
        return None
    verdicts = Dataset.open(storage.join(place.out, rejudging.VERDICTS))
    spec = rejudging.place_of(place.out, chosen.calibration_id)
    background = None
    if chosen.normalization and summary.calibration:
        background = summary.calibration.background
    run = summary.facts.model_copy(
        update={
            "plan_id": datasets.digest_of(summary.plan_id, chosen.calibration_id, verdicts.run_id),
            "config": summary.config.model_copy(update={"calibration": spec}),
            "calibration": judging.facts(chosen, spec, place.references.rows, background),
        }
    )
    places = summary.inputs.model_copy(update={"verdicts": verdicts.uri})
    inputs = scan.with_truth(ReportInputs.open(places, run=run))
    return page.save_report(inputs, summarize(inputs), place.out)
