"""The scan: embed references (only what is new), embed uploads, search, judge, report."""

from __future__ import annotations

from dataclasses import dataclass, replace

from id2.corpora import CorpusPair, EmbeddedCorpus
from id2.requests import ReportRequest, ScanRequest
from id2.stages import stage
from id2core import defaults, environment
from id2core.errors import CalibrationError, DatasetError
from id2core.evaluation import truth_files
from id2core.evaluation.truth_files import Truth
from id2core.reports import page
from id2core.reports.facts import ScanConfig, ScanFacts, ScanSummary, TransformFacts
from id2core.reports.inputs import ReportInputs
from id2core.reports.summary import summarize
from id2core.runs.records import Recorder, recorded
from id2core.search import matching
from id2core.search.results import SearchResult
from id2core.store import datasets, storage
from id2core.store.datasets import Dataset
from id2core.transforms.files import source_of
from id2core.verdicts import judging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.judging import Judge

MATCHES = "matches"


def run(request: ScanRequest) -> ScanSummary:
    """Embed what is new, search, judge, and report; what was done for the same corpora is read back.

    Raises:
        StorageError, DatasetError, EncoderError, TransformError, CalibrationError, TruthError: the message
            says what to do.
        LostRowsError: an object or a match is missing; nothing was committed.
    """
    summary, _ = run_with_inputs(request)
    return summary


def run_with_inputs(request: ScanRequest) -> tuple[ScanSummary, ReportInputs]:
    """Run a scan as `run`; return its data sets too, so that a caller that measures more opens none again."""
    scan = _Scan(request)
    config = scan.config.model_dump() | {"beam_arguments": request.beam}
    with recorded(scan.pair.out, "scan", config) as recorder:
        summary, inputs = scan.run(recorder)
        counts = summary.counts
        recorder.count(
            references=counts.references,
            queries=counts.queries,
            listed=scan.listed,
            embedded=counts.references + counts.queries,
            rejected=counts.reference_rejects + counts.query_rejects,
            matches=counts.matches,
        )
    return summary, inputs


@dataclass(frozen=True)
class _EmbeddedCorpora:
    """The corpora of a scan, embedded."""

    references: EmbeddedCorpus
    queries: EmbeddedCorpus
    background: EmbeddedCorpus | None


class _Scan:
    """One scan: everything that can be refused is refused when it is made."""

    def __init__(self, request: ScanRequest) -> None:
        self._request, self._settings = request, request.settings()
        pair = CorpusPair.open(
            request.reference, request.queries, request.background, request.out, request.beam
        )
        self._ids = pair.row_ids(self._settings)
        self._calibration = judging.choose(self._settings.calibration, self._ids)
        self.pair = self._with_background(pair)
        self._truth: Truth | None = pair.truth(request.truth) if request.truth else None
        self._groups = pair.groups(request.truth) if request.truth else {}
        self.listed = 0

    @property
    def config(self) -> ScanConfig:
        """Return the settings and places of the scan, as `summary.json` states them."""
        pair, truth = self.pair, self._request.truth
        return ScanConfig(
            **self._settings.model_dump(),
            reference=pair.reference.spelled,
            queries=pair.queries.spelled,
            out=pair.out,
            background=pair.background.spelled if pair.background else None,
            truth=storage.normalize(truth) if truth else None,
        )

    def run(self, recorder: Recorder) -> tuple[ScanSummary, ReportInputs]:
        """Run the stages, and write the report unless the same scan has written it."""
        corpora = self._embed(recorder)
        judge = self._judge(corpora, recorder)
        with recorder.stage("search"):
            matches = stage("search references", lambda: self._search(corpora, judge, recorder))
        inputs = self._inputs(corpora, matches, judge, recorder)
        return stage("write report", lambda: _write_report(inputs, self.pair.out)), inputs

    def _with_background(self, pair: CorpusPair) -> CorpusPair:
        """Add the background of the calibration; raise where calibration and background do not fit."""
        if pair.background is None:
            pair = pair.with_background(judging.bundled_background(self._calibration))
        background = pair.background
        judging.check_background(self._calibration, background.uri if background else None)
        if self._calibration and background and background.dataset:
            judging.check_background_id(self._calibration, background.dataset)
        return pair

    def _embed(self, recorder: Recorder) -> _EmbeddedCorpora:
        pair, settings = self.pair, self._settings
        references = pair.reference.embed(pair.out, settings, pair.beam, recorder)
        queries = pair.queries.embed(pair.out, settings, pair.beam, recorder)
        self.listed = references.listed + queries.listed
        background = pair.background
        return _EmbeddedCorpora(
            references,
            queries,
            background.embed(pair.out, settings, pair.beam, recorder) if background else None,
        )

    def _judge(self, corpora: _EmbeddedCorpora, recorder: Recorder) -> Judge | None:
        """Return the judge of the matches; with a background, search every upload in it first."""
        calibration = self._calibration
        if calibration is None or corpora.background is None:
            return Judge(calibration) if calibration else None
        background = corpora.background.embeddings
        with recorder.stage("search background"):
            return stage(
                "search background",
                lambda: self._search_background(calibration, background, corpora, recorder),
            )

    def _search_background(
        self, calibration: Calibration, background: Dataset, corpora: _EmbeddedCorpora, recorder: Recorder
    ) -> Judge:
        judging.check_background_id(calibration, background)
        judging.check_disjoint(background, corpora.references.embeddings)
        if calibration.normalization is None:
            raise CalibrationError("this calibration uses no background: leave --background out")
        out = storage.join(self.pair.out, "background", MATCHES)
        depth = calibration.normalization.k
        matches = _search(background, corpora.queries.embeddings, out, depth, self.pair.beam, recorder)
        return Judge(calibration, matches.dataset, matches.run_id)

    def _search(self, corpora: _EmbeddedCorpora, judge: Judge | None, recorder: Recorder) -> SearchResult:
        references, queries = corpora.references.embeddings, corpora.queries.embeddings
        out = storage.join(self.pair.out, MATCHES)
        settings, beam = self._settings, self.pair.beam
        return _search(references, queries, out, settings.top_k, beam, recorder, judge, settings.index)

    def _inputs(
        self, corpora: _EmbeddedCorpora, matches: SearchResult, judge: Judge | None, recorder: Recorder
    ) -> ReportInputs:
        self._spell_truth(corpora)
        settings, transform_id = self._settings, self._ids["transform_id"]
        origin = source_of(settings.transform, transform_id, self._ids["encoder_id"])
        background = corpora.background.embeddings.uri if corpora.background else None
        return ReportInputs(
            matches.dataset,
            matches.run_id,
            corpora.references.embeddings,
            corpora.queries.embeddings,
            corpora.references.rejects,
            corpora.queries.rejects,
            ScanFacts(
                run_id=recorder.execution.run_id,
                plan_id=self._plan_id(corpora, matches, judge),
                config=self.config,
                seconds=recorder.seconds,
                versions=environment.versions(),
                transform=TransformFacts(id=transform_id, origin=origin),
                calibration=judging.facts(
                    self._calibration, settings.calibration, matches.corpus, background
                ),
            ),
            self._truth,
            self._groups,
        )

    def _spell_truth(self, corpora: _EmbeddedCorpora) -> None:
        """Name the objects of the truth as the data sets do, whatever the Unicode form of the file."""
        queries, references = (
            list(filter(None, (corpus.embeddings, corpus.rejects)))
            for corpus in (corpora.queries, corpora.references)
        )
        if self._truth:
            self._truth = truth_files.spelled(self._truth, queries, references)
            self._groups = truth_files.spelled_groups(self._groups, queries)

    def _plan_id(self, corpora: _EmbeddedCorpora, matches: SearchResult, judge: Judge | None) -> str:
        """Return an id of the scan's content: what was used, not how it was asked for."""
        used = {"transform": self._ids["transform_id"], "calibration": judge.identity if judge else None}
        content = [
            [corpus.embeddings.uri, _content(corpus.embeddings), _content(corpus.rejects)]
            for corpus in (corpora.references, corpora.queries)
        ]
        asked = [sorted(answers.items()) for answers in (self._truth or {}, self._groups)]
        return datasets.digest_of(
            matches.plan_id, self.config.model_dump(exclude={"allow_shrink"}) | used, content, *asked
        )


def _search(
    references: Dataset,
    queries: Dataset,
    out: str,
    top_k: int,
    beam: list[str],
    recorder: Recorder,
    judge: Judge | None = None,
    index: str = defaults.INDEX,
) -> SearchResult:
    """Search, or return the earlier result of the same search without loading Beam."""
    plan = matching.make(references, queries, out, top_k, recorder.execution, judge, index)
    if (before := matching.finished(plan)) is not None:
        return before
    from beam_jobs import search

    return search.run_planned(plan, beam)


def _content(dataset: Dataset | None) -> list[str]:
    """Return what identifies the content of a data set; rejects may differ where embeddings do not."""
    return [dataset.digest, dataset.run_id] if dataset else []


def _write_report(inputs: ReportInputs, out: str) -> ScanSummary:
    """Write report.html and summary.json, unless they are there already for the same scan."""
    earlier = page.read_summary(out)
    same = earlier is not None and earlier.plan_id == inputs.run.plan_id
    if earlier is not None and same and page.is_written(earlier, out):
        return earlier
    return page.save_report(inputs, summarize(inputs), out)


def rewrite_report(request: ReportRequest) -> ScanSummary:
    """Write the report of a finished scan again, for example with more pictures.

    Raises:
        DatasetError: `out` is not the output of a finished scan.
    """
    out = storage.normalize(request.out)
    summary = page.read_summary(out)
    if summary is None:
        raise DatasetError(
            f"{out} has no summary.json that is whole: give the --out of a finished scan, or scan again"
        )
    config = summary.config
    pair = CorpusPair.open(config.reference, config.queries, None, out, [])
    truth = pair.truth(config.truth) if config.truth else None
    groups = pair.groups(config.truth) if config.truth else {}
    inputs = ReportInputs.open(summary.inputs, run=summary.facts)
    queries, references = (
        list(filter(None, side))
        for side in (
            (inputs.query_embeddings, inputs.query_rejects),
            (inputs.reference_embeddings, inputs.reference_rejects),
        )
    )
    if truth:
        truth = truth_files.spelled(truth, queries, references)
        groups = truth_files.spelled_groups(groups, queries)
    inputs = replace(inputs, truth=truth, groups=groups)
    return page.save_report(inputs, summarize(inputs), out, request.max_pairs)
