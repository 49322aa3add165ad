"""A night: embed what is new, search what no night has searched, judge, and report what was found."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from id2 import channels, indexing, searching
from id2.channels import SecondChannel
from id2.corpora import Corpus, EmbeddedCorpus, embed_corpora, embed_images
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
from id2core.runs import channel_datasets, ledger, records
from id2core.runs.execution import Execution
from id2core.runs.ledger import Span
from id2core.runs.records import Recorder, Status, recorded
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


@dataclass(frozen=True)
class _Channel:
    """A channel of a night.

    Attributes:
        folder: of its corpora below the `--out`; empty for the first channel.
        searcher: compares its uploads with its references.
        background: of its calibration, where it has one.
    """

    folder: str
    searcher: Searcher
    background: Corpus | None

    @property
    def place(self) -> str:
        """Parent of its corpora."""
        return self.searcher.place or self.searcher.out

    @property
    def suffix(self) -> str:
        """What titles of its stages end with."""
        return f" by {self.searcher.settings.encoder}" if self.folder else ""


@dataclass
class _Search:
    """A channel on its way through a night: what was embedded, what judges, and what was searched."""

    channel: _Channel
    corpora: EmbeddedCorpora
    judge: PlannedJudge
    results: list[SearchResult] = field(default_factory=list)

    def run(self, recorder: Recorder, title: str, span: Span) -> Dataset:
        """Search the uploads of some segments; return the matches of all channels."""
        title += self.channel.suffix
        result = self.channel.searcher.search(self.corpora, self.judge, recorder, title, span)
        self.results.append(result)
        return result.dataset


class _Night:
    """One night: everything that can be refused is refused when it is made."""

    def __init__(self, request: NightlyRequest) -> None:
        self._request, self._settings = request, request.settings()
        self.out = storage.normalize(request.out)
        self._began = time.monotonic()
        ids = EmbedJob(".", ".", self._settings.encoder, self._settings.transform).identify()
        indexing.preflight(self._settings, None, self.out)
        earlier = searching.find_matches(self.out)
        views, calibration = searching.choose(self._settings, ids, earlier)
        background = self._find_background(calibration)
        judging.check_background(calibration, background.uri if background else None)
        self._second = SecondChannel.open(request, self.out, calibration) if request.also else None
        channels.check_same(self.out, self._second.name if self._second else None)
        joint = self._second.joint if self._second else None
        searcher = Searcher(
            self.out, self._settings, ids, calibration, request.beam, views=views, joint=joint
        )
        self._channels = [_Channel("", searcher, background)]
        if second := self._second:
            self._channels.append(_Channel(second.folder, second.searcher(), second.background))
        for channel in self._channels:
            channel.searcher.preflight(earlier)

    def _find_background(self, calibration: Calibration | None) -> Corpus | None:
        if self._request.background:
            return Corpus.open("background", self._request.background)
        bundled = judging.bundled_background(calibration)
        return Corpus("background", bundled.uri, bundled) if bundled else None

    def run(self, recorder: Recorder) -> NightlySummary:
        """Run the stages in the order of what matters: new uploads first, then earlier ones."""
        embedded = [self._embed(channel, recorder) for channel in self._channels]
        embedded[0].count(recorder)
        searches = [
            _Search(channel, corpora, channel.searcher.judge(corpora, recorder))
            for channel, corpora in zip(self._channels, embedded, strict=True)
        ]
        matches = self._search(searches, recorder)
        judged = {search.channel.folder: (search.corpora, search.judge) for search in searches}
        searching.finish(self.out, matches, judged, recorder)
        if self._request.canary:
            self._check_canary(recorder.execution.run_id)
        stage("compact", lambda: compact_if_needed(self.out))
        report = stage("write report", lambda: self._report(embedded, matches, recorder))
        return self._summary(searches, matches, report, recorder)

    def _check_canary(self, run_id: str) -> None:
        canary.run(self._settings, self.out, run_id, self._request.background)
        if second := self._second:
            behind = self._request.also_background
            canary.run(second.settings, self.out, run_id, behind, name=f"last-{second.name}")

    def _embed(self, channel: _Channel, recorder: Recorder) -> EmbeddedCorpora:
        """Embed every source of references and uploads, the first of both as one job, and the background.

        Each later source of a corpus adds a segment of its own.
        """
        if channel.folder:
            channel_datasets.keep(self.out, channel.searcher.channel, {})  # they are sources of images
        sources = {"reference": self._request.reference, "queries": self._request.queries}
        feeds = {name: self._feed(channel.place, name, own) for name, own in sources.items()}
        settings, beam = channel.searcher.settings, self._request.beam
        made: dict[str, EmbeddedCorpus] = {}
        for i in range(max(map(len, sources.values()))):
            names = [name for name, own in sources.items() if i < len(own)]
            execution = recorder.execution if not i else Execution.begin()
            jobs = [
                EmbedJob.from_settings(
                    sources[name][i], storage.join(channel.place, name), settings, self.out, **feeds[name]
                )
                for name in names
            ]
            title = f"embed {', '.join(names)}{f', source {i + 1}' if i else ''}{channel.suffix}"
            with recorder.stage(title):
                results = stage(title, functools.partial(embed_images, jobs, execution, beam))
            for name, result in zip(names, results, strict=True):
                one = EmbeddedCorpus.of(result, execution.run_id)
                made[name] = made[name].then(one) if name in made else one
        background = None
        if channel.background:
            within = self.out if channel.folder else None
            asked: list[tuple[Corpus, Feed]] = [(channel.background, {})]
            [background] = embed_corpora(asked, channel.place, settings, beam, recorder, within)
        return EmbeddedCorpora(made["reference"], made["queries"], background)

    def _feed(self, place: str, name: str, sources: list[str]) -> Feed:
        """Return what is said of the sources of a corpus.

        Args:
            place: parent of the corpus.
            name: of the corpus.
            sources: that it has in this night.
        """
        feed = self._request.feed
        if name == "reference":
            feed["mode"] = None
        # A source beside one that the corpus has is asked for; one in place of all others may be mistyped.
        held = Dataset.find_own(storage.join(place, name, EMBEDDINGS))
        known = held.commit.sources if held else {}
        feed["add_source"] |= not known or any(registry.parse(source).uri in known for source in sources)
        return feed

    def _search(self, searches: list[_Search], recorder: Recorder) -> Dataset:
        """Search new uploads in all references, then new references in earlier uploads, newest first.

        Every channel searches its new uploads before any searches earlier ones.

        Returns:
            The matches of all runs and channels.
        """
        spans = [self._spans(search) for search in searches]
        for search, (new, _) in zip(searches, spans, strict=True):
            matches = search.run(recorder, "search new uploads", new)
        # Uploads are not new because a second channel joins: it has touched no segment yet.
        joined = [i for i, ((first, _), _) in enumerate(spans) if first > 1] or range(len(spans))
        # What a killed night has searched by one channel is not new: those matches are not of this run.
        is_new = {first <= last for (first, last), _ in (spans[i] for i in joined)}
        self._count_first([searches[i] for i in joined] if len(is_new) == 1 else [], matches, recorder)
        for search, (_, earlier) in zip(searches, spans, strict=True):
            for span in earlier:
                if self._is_late:
                    return matches
                several = f", segments {span[0]} to {span[1]}" if len(earlier) > 1 else ""
                matches = search.run(recorder, f"search earlier uploads{several}", span)
        return matches

    def _count_first(self, searches: list[_Search], matches: Dataset, recorder: Recorder) -> None:
        """Count the uploads that were searched for the first time, and those with a match in any channel.

        An encoder may reject uploads, so the channel counts that searched most of them.

        Args:
            searches: of the channels in which uploads are new; without any, none is.
            matches: of all runs.
            recorder: of the run.
        """
        results = [search.results[0] for search in searches]
        searched = max((result.searched for result in results), default=0)
        recorder.count(first_searched=searched)
        if all(search.judge.judge for search in searches):
            files = [file for result in results for file in result.files]
            recorder.count(first_matched=min(searched, judging.matched(matches, files)))

    def _spans(self, search: _Search) -> tuple[Span, list[Span]]:
        """Return the segments that no search has touched, and the others in parts, newest first."""
        queries, encoder_id = search.corpora.queries.embeddings, search.channel.searcher.ids["encoder_id"]
        matches = Dataset.find(storage.join(self.out, MATCHES))
        # An upload that was searched with another transform is not new: it waits for those that are.
        events = ledger.events(matches.commit) if matches else []
        own = [event for event in events if event.ids["encoder_id"] == encoder_id]
        segments = datasets.segments_of(queries)
        last = max((s.number for s in segments.values()), default=0)
        touched = max((event.queries[1] for event in own), default=0)
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

    def _report(self, embedded: list[EmbeddedCorpora], matches: Dataset, recorder: Recorder) -> ScanSummary:
        """Write the report of what this night found, also in runs of it that were killed."""
        run_id, first = recorder.execution.run_id, self._channels[0]
        config = ScanConfig(
            **self._settings.model_dump(),
            **self._request.second_channel,
            reference=", ".join(self._request.reference),
            queries=", ".join(self._request.queries),
            out=self.out,
            background=first.background.spelled if first.background else None,
            truth=None,
        )
        inputs = first.searcher.report_inputs(embedded[0], matches, run_id, run_id, config, recorder)
        if self._second:
            inputs = self._second.reported(inputs, embedded[1], embedded[0], self._settings.calibration)
        before = records.unfinished(records.read(self.out), recorder.run)
        ended = tuple(run.run_id for run in before if run.status is not Status.RUNNING)
        inputs = replace(inputs, only_run=True, unfinished=ended)
        return page.save_report(inputs, summarize(inputs), self.out)

    def _summary(
        self, searches: list[_Search], matches: Dataset, report: ScanSummary, recorder: Recorder
    ) -> NightlySummary:
        references, queries = searches[0].corpora.references, searches[0].corpora.queries
        results = [result for search in searches for result in search.results]
        return NightlySummary(
            run_id=recorder.execution.run_id,
            references=references.embeddings.rows,
            uploads=queries.embeddings.rows,
            new_references=references.made.added,
            new_uploads=queries.made.added,
            listed=references.listed + queries.listed,
            rejected=references.made.rejected + queries.made.rejected,
            pairs=sum(result.pairs for result in results),
            pairs_stored=sum(result.matches for result in results),
            verdicts=report.verdicts,
            channels=report.channels,
            back_scan_open=max(_open_segments(search, matches) for search in searches),
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


def _open_segments(search: _Search, matches: Dataset) -> int:
    """Count the reference segments of a channel that some query segment has not met."""
    events = ledger.events(matches.commit, search.channel.searcher.ids)
    queries, references = search.corpora.queries.embeddings, search.corpora.references.embeddings
    met = ledger.met(events, datasets.segment_names(queries), datasets.segment_names(references))
    return int((~met).any(axis=0).sum())
