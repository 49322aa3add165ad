"""The scan: embed references (only what is new), embed uploads, search, judge, report."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from id2 import channels, indexing, searching
from id2.channels import SecondChannel
from id2.corpora import CorpusPair, embed_corpora
from id2.requests import ReportRequest, ScanRequest
from id2.searching import EmbeddedCorpora, Searcher
from id2.stages import stage
from id2core.encoders.embed_job import Feed
from id2core.errors import DatasetError
from id2core.evaluation import truth_files
from id2core.evaluation.truth_files import Truth
from id2core.reports import page
from id2core.reports.facts import ScanConfig, ScanSummary
from id2core.reports.inputs import ReportInputs
from id2core.reports.summary import summarize
from id2core.runs.records import Recorder, recorded
from id2core.search.results import SearchResult
from id2core.store import datasets, storage
from id2core.store.datasets import Dataset
from id2core.verdicts import judging


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
    return summary, inputs


class _Scan:
    """One scan: everything that can be refused is refused when it is made."""

    def __init__(self, request: ScanRequest) -> None:
        self._request, self._settings = request, request.settings()
        pair = CorpusPair.open(
            request.reference, request.queries, request.background, request.out, request.beam
        )
        self._ids = pair.row_ids(self._settings)
        indexing.preflight(self._settings, pair.reference.dataset, pair.out)
        earlier = searching.find_matches(pair.out)
        views, self._calibration = searching.choose(self._settings, self._ids, earlier)
        self.pair = self._with_background(pair)
        self._second = SecondChannel.open(request, pair.out, self._calibration) if request.also else None
        if self._second:
            self._second.check_sources(pair)
        channels.check_same(pair.out, self._second.name if self._second else None)
        self._truth: Truth | None = pair.truth(request.truth) if request.truth else None
        self._groups = pair.groups(request.truth) if request.truth else {}
        self._searcher = Searcher(
            self.pair.out,
            self._settings,
            self._ids,
            self._calibration,
            self.pair.beam,
            keep_all=self._truth is not None,
            views=views,
            joint=self._second.joint if self._second else None,
        )
        self._searcher.preflight(earlier, pair.reference.dataset, pair.queries.dataset)
        if self._second:
            self._other = self._second.searcher(keep_all=self._truth is not None)
            self._other.preflight(earlier, *(corpus.dataset for corpus in self._second.of_pair(pair)))

    @property
    def config(self) -> ScanConfig:
        """Return the settings and places of the scan, as `summary.json` states them."""
        pair, truth = self.pair, self._request.truth
        return ScanConfig(
            **self._settings.model_dump(),
            **self._request.second_channel,
            reference=pair.reference.spelled,
            queries=pair.queries.spelled,
            out=pair.out,
            background=pair.background.spelled if pair.background else None,
            truth=storage.normalize(truth) if truth else None,
        )

    def run(self, recorder: Recorder) -> tuple[ScanSummary, ReportInputs]:
        """Run the stages, and write the report unless the same scan has written it."""
        corpora = self._embed(recorder)
        second = self._second.embed(self.pair, self._feeds, recorder) if self._second else None
        judge = self._searcher.judge(corpora, recorder)
        matches = self._searcher.search(corpora, judge, recorder)
        searched = {"": (corpora, judge)}
        if self._second and second:
            other = self._other.judge(second, recorder)
            matches = self._other.search(second, other, recorder, f"search references by {self._second.name}")
            searched[self._second.folder] = second, other
        searching.finish(self.pair.out, matches.dataset, searched, recorder)
        inputs = self._inputs(corpora, second, matches, recorder)
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

    @property
    def _feeds(self) -> tuple[Feed, Feed]:
        """Return what is said of the sources of references and uploads."""
        feed = self._request.feed
        return {"night": feed["night"], "add_source": feed["add_source"]}, feed

    def _embed(self, recorder: Recorder) -> EmbeddedCorpora:
        pair = self.pair
        asked = list(zip((pair.reference, pair.queries), self._feeds, strict=True))
        if pair.background:
            asked.append((pair.background, {}))
        references, queries, *background = embed_corpora(asked, pair.out, self._settings, pair.beam, recorder)
        corpora = EmbeddedCorpora(references, queries, background[0] if background else None)
        corpora.count(recorder)
        return corpora

    def _inputs(
        self,
        corpora: EmbeddedCorpora,
        second: EmbeddedCorpora | None,
        matches: SearchResult,
        recorder: Recorder,
    ) -> ReportInputs:
        self._truth, self._groups = _spelled(
            self._truth,
            self._groups,
            *((corpus.embeddings, corpus.rejects) for corpus in (corpora.queries, corpora.references)),
        )
        plan_id = self._plan_id(corpora, second, matches)
        inputs = self._searcher.report_inputs(
            corpora, matches.dataset, matches.run_id, plan_id, self.config, recorder
        )
        if self._second and second:
            inputs = self._second.reported(inputs, second, corpora, self._settings.calibration)
        return replace(inputs, truth=self._truth, groups=self._groups)

    def _plan_id(
        self, corpora: EmbeddedCorpora, second: EmbeddedCorpora | None, matches: SearchResult
    ) -> str:
        """Return an id of the scan's content: what was used, not how it was asked for."""
        chosen = self._calibration.calibration_id if self._calibration else None
        if self._second:
            chosen = self._second.joint.joint.calibration_id
        used = {"transform": self._ids["transform_id"], "calibration": chosen}
        content = [
            [corpus.embeddings.uri, _content(corpus.embeddings), _content(corpus.rejects)]
            for both in filter(None, (corpora, second))
            for corpus in (both.references, both.queries)
        ]
        asked = [sorted(answers.items()) for answers in (self._truth or {}, self._groups)]
        return datasets.digest_of(
            _content(matches.dataset),
            self.config.model_dump(exclude={"allow_shrink"}) | used,
            content,
            *asked,
        )


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


def read_matches(out: str) -> pa.Table:
    """Read the matches of what stands in the corpora of a scan, ordered by upload and rank.

    Raises:
        DatasetError: `out` is not the output of a finished scan.
    """
    summary = _summary(storage.normalize(out))
    inputs = ReportInputs.open(summary.inputs, run=summary.facts)
    return replace(inputs, only_run=False).current.read()


def _summary(out: str) -> ScanSummary:
    summary = page.read_summary(out)
    if summary is None:
        raise DatasetError(
            f"{out} has no summary.json that is whole: give the --out of a finished scan, or scan again"
        )
    return summary


def rewrite_report(request: ReportRequest) -> ScanSummary:
    """Write the report of a finished scan again, for example with more pictures.

    Raises:
        DatasetError: `out` is not the output of a finished scan.
    """
    out = storage.normalize(request.out)
    summary = _summary(out)
    inputs = with_truth(ReportInputs.open(summary.inputs, run=summary.facts))
    return page.save_report(inputs, summarize(inputs), out, request.max_pairs)


def with_truth(inputs: ReportInputs) -> ReportInputs:
    """Return what a report is made from, with the truth that its scan was given."""
    config = inputs.run.config
    pair = CorpusPair.open(config.reference, config.queries, None, config.out, [])
    truth = pair.truth(config.truth) if config.truth else None
    groups = pair.groups(config.truth) if config.truth else {}
    truth, groups = _spelled(
        truth,
        groups,
        (inputs.query_embeddings, inputs.query_rejects),
        (inputs.reference_embeddings, inputs.reference_rejects),
    )
    return replace(inputs, truth=truth, groups=groups)


def _spelled(
    truth: Truth | None,
    groups: dict[str, str],
    queries: tuple[Dataset | None, ...],
    references: tuple[Dataset | None, ...],
) -> tuple[Truth | None, dict[str, str]]:
    """Name the objects of a truth as the data sets do, whatever the Unicode form of its file."""
    if not truth:
        return truth, groups
    asked, held = (list(filter(None, side)) for side in (queries, references))
    return truth_files.spelled(truth, asked, held), truth_files.spelled_groups(groups, asked)
