"""A night: embed what is new, search what no night has searched, judge, and report what was found."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from id2 import indexing, searching
from id2.corpora import Corpus, EmbeddedCorpus, embed_images
from id2.jobs import canary
from id2.jobs.compact import compact_if_needed
from id2.requests import NightlyRequest
from id2.results import NightlySummary
from id2.searching import EmbeddedCorpora, PlannedJudge, Searcher
from id2.stages import stage
from id2core.encoders.embed_job import EmbedJob, Feed
from id2core.reports import page
from id2core.reports.facts import ScanConfig, ScanSummary
from id2core.reports.summary import summarize
from id2core.runs import ledger, leftovers
from id2core.runs.execution import Execution
from id2core.runs.ledger import Event, Span
from id2core.runs.records import Recorder, recorded
from id2core.search.match_rows import MATCHES
from id2core.search.results import SearchResult
from id2core.sources import registry
from id2core.store import datasets, storage
from id2core.store.datasets import Dataset
from id2core.store.schemas import EMBEDDINGS
from id2core.verdicts import judging
from id2core.verdicts.calibration import Calibration

# Uploads that one back-scan takes at a time where a deadline may end the night in between.
BACK_SCAN_UPLOADS = 100_000


def run(request: NightlyRequest) -> NightlySummary:
    """Embed, search, judge and report; safe to repeat, and whatever a night leaves is the next one's.

    Raises:
        StorageError, DatasetError, EncoderError, TransformError, CalibrationError: the message says what to
            do.
        LostRowsError: an object or a match is missing; nothing was committed.
    """
    night = _Night(request)
    with recorded(night.out, "nightly", request.model_dump(mode="json")) as recorder:
        return night.run(recorder)


class _Night:
    """One night: everything that can be refused is refused when it is made."""

    def __init__(self, request: NightlyRequest) -> None:
        self._request, self._settings = request, request.settings()
        self.out = storage.normalize(request.out)
        leftovers.check_one_channel(self.out, "id2 nightly")
        self._began = time.monotonic()
        self._ids = EmbedJob(".", ".", self._settings.encoder, self._settings.transform).identify()
        indexing.preflight(self._settings, None, self.out)
        views, calibration = searching.choose(self._settings, self._ids, self.out)
        self._background = self._find_background(calibration)
        background = self._background
        judging.check_background(calibration, background.uri if background else None)
        self._searcher = Searcher(self.out, self._settings, self._ids, calibration, request.beam, views=views)

    def _find_background(self, calibration: Calibration | None) -> Corpus | None:
        if self._request.background:
            return Corpus.open("background", self._request.background)
        bundled = judging.bundled_background(calibration)
        return Corpus("background", bundled.uri, bundled) if bundled else None

    def run(self, recorder: Recorder) -> NightlySummary:
        """Run the stages in the order of what matters: new uploads first, then earlier ones."""
        references, queries = self._embed(recorder)
        background = (
            self._background.embed(self.out, self._settings, self._request.beam, recorder)
            if self._background
            else None
        )
        corpora = EmbeddedCorpora(references, queries, background)
        corpora.count(recorder)
        judge = self._searcher.judge(corpora, recorder)
        searches = self._search(corpora, judge, recorder)
        matches = searches[-1].dataset
        self._searcher.finish(corpora, matches, judge, recorder)
        if self._request.canary:
            canary.run(self._settings, self.out, recorder.execution.run_id, self._request.background)
        stage("compact", lambda: compact_if_needed(self.out))
        report = stage("write report", lambda: self._report(corpora, matches, recorder))
        return self._summary(corpora, searches, report, recorder)

    def _embed(self, recorder: Recorder) -> tuple[EmbeddedCorpus, EmbeddedCorpus]:
        """Embed every source of references and uploads; the first of both as one job.

        Each later source of a corpus adds a segment of its own.
        """
        sources = {"reference": self._request.reference, "queries": self._request.queries}
        feeds = {name: self._feed(name, own) for name, own in sources.items()}
        made: dict[str, EmbeddedCorpus] = {}
        for i in range(max(map(len, sources.values()))):
            names = [name for name, own in sources.items() if i < len(own)]
            execution = recorder.execution if not i else Execution.begin()
            jobs = [
                EmbedJob.from_settings(
                    sources[name][i], storage.join(self.out, name), self._settings, self.out, **feeds[name]
                )
                for name in names
            ]
            title = f"embed {', '.join(names)}{f', source {i + 1}' if i else ''}"
            with recorder.stage(title):
                results = stage(title, functools.partial(embed_images, jobs, execution, self._request.beam))
            for name, result in zip(names, results, strict=True):
                one = EmbeddedCorpus.of(result, execution.run_id)
                made[name] = made[name].then(one) if name in made else one
        return made["reference"], made["queries"]

    def _feed(self, name: str, sources: list[str]) -> Feed:
        """Return what is said of the sources of a corpus."""
        feed = self._request.feed
        if name == "reference":
            feed["mode"] = None
        # A source beside one that the corpus has is asked for; one in place of all others may be mistyped.
        held = Dataset.find_own(storage.join(self.out, name, EMBEDDINGS))
        known = held.commit.sources if held else {}
        feed["add_source"] |= not known or any(registry.parse(source).uri in known for source in sources)
        return feed

    def _search(
        self, corpora: EmbeddedCorpora, judge: PlannedJudge, recorder: Recorder
    ) -> list[SearchResult]:
        """Search new uploads in all references, then new references in earlier uploads, newest first."""
        queries = corpora.queries.embeddings
        matches = Dataset.find(storage.join(self.out, MATCHES))
        # An upload that was searched with another transform is not new: it waits for those that are.
        events = ledger.events(matches.commit) if matches else []
        new, earlier = self._spans(queries, events)
        searches = [self._searcher.search(corpora, judge, recorder, "search new uploads", new, are_new=True)]
        for span in earlier:
            if self._is_late:
                break
            title = "search earlier uploads"
            title += f", segments {span[0]} to {span[1]}" if len(earlier) > 1 else ""
            searches.append(self._searcher.search(corpora, judge, recorder, title, span))
        return searches

    def _spans(self, queries: Dataset, events: list[Event]) -> tuple[Span, list[Span]]:
        """Return the segments that no search has touched, and the others in parts, newest first."""
        segments = datasets.segments_of(queries)
        last = max((s.number for s in segments.values()), default=0)
        touched = max((event.queries[1] for event in events), default=0)
        days = self._request.back_scan_days
        oldest = datetime.now(UTC) - timedelta(days=days) if days is not None else None
        rows = queries.rows_by_segment()
        numbers = sorted(
            (s.number, rows[run_id])
            for run_id, s in segments.items()
            if s.number <= touched and (oldest is None or datetime.fromisoformat(s.added_at) >= oldest)
        )
        most = BACK_SCAN_UPLOADS if self._request.deadline_hours else None
        return (touched + 1, last), _parts(numbers, most)

    @property
    def _is_late(self) -> bool:
        hours = self._request.deadline_hours
        return hours is not None and time.monotonic() - self._began > hours * 3600

    def _report(self, corpora: EmbeddedCorpora, matches: Dataset, recorder: Recorder) -> ScanSummary:
        """Write the report of what this night found."""
        run_id = recorder.execution.run_id
        config = ScanConfig(
            **self._settings.model_dump(),
            reference=", ".join(self._request.reference),
            queries=", ".join(self._request.queries),
            out=self.out,
            background=self._background.spelled if self._background else None,
            truth=None,
        )
        inputs = self._searcher.report_inputs(corpora, matches, run_id, run_id, config, recorder)
        inputs = replace(inputs, only_run=True)
        return page.save_report(inputs, summarize(inputs), self.out)

    def _summary(
        self,
        corpora: EmbeddedCorpora,
        searches: list[SearchResult],
        report: ScanSummary,
        recorder: Recorder,
    ) -> NightlySummary:
        references, queries = corpora.references, corpora.queries
        events = ledger.events(searches[-1].dataset.commit, self._ids)
        return NightlySummary(
            run_id=recorder.execution.run_id,
            references=references.embeddings.rows,
            uploads=queries.embeddings.rows,
            new_references=references.made.added,
            new_uploads=queries.made.added,
            listed=references.listed + queries.listed,
            rejected=references.made.rejected + queries.made.rejected,
            pairs=sum(search.pairs for search in searches),
            pairs_stored=sum(search.matches for search in searches),
            verdicts=report.verdicts,
            back_scan_open=_open_segments(queries.embeddings, references.embeddings, events),
            report=storage.join(self.out, page.HTML),
        )


def _parts(numbers: list[tuple[int, int]], most: int | None) -> list[Span]:
    """Cut segments with their rows into spans of about `most` rows (None: one span), the newest first."""
    spans: list[Span] = []
    rows = 0
    for number, held in reversed(numbers):
        if spans and (most is None or rows + held <= most):
            spans[-1] = (number, spans[-1][1])
            rows += held
        else:
            spans.append((number, number))
            rows = held
    return spans


def _open_segments(queries: Dataset, references: Dataset, events: list[Event]) -> int:
    """Count the reference segments that some query segment has not met."""
    met = ledger.met(events, datasets.segment_names(queries), datasets.segment_names(references))
    return int((~met).any(axis=0).sum())
