"""Search, background, and verdicts of two embedded corpora, for every function that compares uploads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from id2.corpora import EmbeddedCorpus
from id2.indexing import Indexer
from id2.stages import stage
from id2core import environment
from id2core.errors import CalibrationError, DatasetError
from id2core.reports.facts import ScanConfig, ScanFacts, TransformFacts
from id2core.reports.inputs import ReportInputs
from id2core.runs import ledger, public_tables
from id2core.runs.ledger import Span
from id2core.runs.records import Recorder
from id2core.search import background_rows, indexes, looks, match_rows, matching, viewed_rows
from id2core.search.background_rows import Backgrounds
from id2core.search.coded import CodedReferences
from id2core.search.indexes import FLAT
from id2core.search.looks import ViewPlan
from id2core.search.match_rows import CHANNEL, MATCHES, MatchRows
from id2core.search.matching import SearchPlan
from id2core.search.results import SearchResult
from id2core.settings import Settings
from id2core.store import storage
from id2core.store.datasets import Dataset
from id2core.store.schemas import EMBEDDINGS
from id2core.transforms.files import source_of
from id2core.transforms.linear import AUTO, NONE
from id2core.verdicts import judging, rejudging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.channel_judging import AnyJudge, ChannelJudge
from id2core.verdicts.channels import Channels
from id2core.verdicts.judging import Judge

_log = logging.getLogger("id2")


@dataclass(frozen=True)
class EmbeddedCorpora:
    """The corpora of a scan, embedded."""

    references: EmbeddedCorpus
    queries: EmbeddedCorpus
    background: EmbeddedCorpus | None

    def count(self, recorder: Recorder) -> None:
        """Count what this run added to references and uploads, and what stands, in the row of the run."""
        both = self.references, self.queries
        recorder.count(
            references=self.references.embeddings.rows,
            queries=self.queries.embeddings.rows,
            new_references=self.references.made.added,
            new_queries=self.queries.made.added,
            listed=sum(corpus.listed for corpus in both),
            embedded=sum(corpus.made.added for corpus in both),
            rejected=sum(corpus.made.rejected for corpus in both),
        )


@dataclass
class PlannedJudge:
    """The judge of a run, and the search that it waits for.

    Attributes:
        judge: gives the verdicts; None for none.
        background: scores uploads that have no background yet; None where every upload has its own.
    """

    judge: AnyJudge | None
    background: SearchPlan | None = None

    def search(self, plan: SearchPlan, beam: list[str]) -> Dataset:
        """Run a search that was planned with this judge, in one job with that of the background."""
        if self.background is None or not plan.has_work:
            return run_planned(plan, beam)
        from beam_jobs import search

        backgrounds, made = search.run_both(self.background, plan, beam)
        self.settle(backgrounds)
        return made

    def search_background(self, beam: list[str]) -> None:
        """Run the search of the background by itself."""
        if self.background:
            self.settle(run_planned(self.background, beam))

    def settle(self, backgrounds: Dataset) -> None:
        """Look uploads up in a data set that has all of them."""
        self.judge = self.judge and self.judge.after(backgrounds)
        self.background = None


@dataclass(frozen=True)
class Searcher:
    """Compares the uploads of an `--out` with its references.

    Attributes:
        out: parent of `matches/`.
        settings: top_k, index, what is kept.
        ids: `schemas.ROW_IDS` of both corpora.
        calibration: of the verdicts; None for none.
        beam: Beam's arguments.
        keep_all: whether every pair is stored, also below the floor.
        views: under which uploads are looked at; None for the whole alone.
        channel: of the rows.
        joint: how several channels give one verdict; None where there is one.
        place: parent of the corpora of the channel; `out` by default.
    """

    out: str
    settings: Settings
    ids: Mapping[str, str]
    calibration: Calibration | None
    beam: list[str]
    keep_all: bool = False
    views: ViewPlan | None = None
    channel: str = CHANNEL
    joint: Channels | None = None
    place: str = ""

    @property
    def floor(self) -> float | None:
        """Least score of a pair that is stored; None for all."""
        if self.calibration is None or self.keep_all or self.settings.keep == "all":
            return None
        return self._judge_of(Judge(self.calibration)).lowest - self.settings.floor_margin

    def _judge_of(self, own: Judge) -> AnyJudge:
        """Return what gives the verdicts: a judge of its own, or as one of several channels."""
        return ChannelJudge(self.joint, self.channel, own) if self.joint else own

    def preflight(
        self, matches: Dataset | None, references: Dataset | None = None, queries: Dataset | None = None
    ) -> None:
        """Refuse a search that cannot follow the earlier ones, before anything is embedded.

        Args:
            matches: what `find_matches` returned.
            references, queries: data sets that are given; by default those that earlier runs have embedded.

        Raises:
            DatasetError: the earlier searches were of other corpora, under other views, or stored fewer pairs
                than are asked for; or the references have no rows for these views.
        """
        views, top_k = looks.id_of(self.views), self.settings.top_k
        events = match_rows.events_to_follow(matches, self.ids, views, top_k, self.floor) if matches else ()
        held = references or self._embedded("reference")
        if matches and events:
            asked = queries or self._embedded("queries")
            if held is None or asked is None:
                side, name = ("uploads", "queries") if held else ("references", "reference")
                raise DatasetError(
                    f"{matches.uri} keeps matches of other {side} than those in {self._place_of(name)}, "
                    "where none are embedded: give them as before, or scan into another --out"
                )
            match_rows.check_corpora(matches.uri, events, asked, held)
        if held and held.ids.items() >= self.ids.items():  # others are refused when they are embedded
            match_rows.check_rows(held, self.views, self.settings.index)

    def _place_of(self, name: str) -> str:
        """Return where runs of this channel embed a corpus."""
        return storage.join(self.place or self.out, name, EMBEDDINGS)

    def _embedded(self, name: str) -> Dataset | None:
        """Open a corpus that earlier runs have embedded; None where there is none."""
        return Dataset.find_own(self._place_of(name))

    def judge(self, corpora: EmbeddedCorpora, recorder: Recorder) -> PlannedJudge:
        """Return the judge of the matches, with the search of the background that it waits for, if any."""
        if self.views:
            viewed_rows.warn_of_other_looks(corpora.queries.embeddings)
        calibration = self.calibration
        if calibration is None:
            return PlannedJudge(None)
        judge = self._judge_of(Judge(calibration))
        _warn_of_reach(judge, corpora.references.embeddings.rows)
        if corpora.background is None:
            return PlannedJudge(judge)
        background = corpora.background.embeddings
        judging.check_background_id(calibration, background)
        judging.check_disjoint(background, corpora.references.embeddings)
        if calibration.normalization is None:
            raise CalibrationError("this calibration uses no background: leave --background out")
        with recorder.stage("plan background"):
            return stage(
                "plan background",
                lambda: self._judge_with(calibration, background, corpora.queries.embeddings, recorder),
            )

    def _judge_with(
        self, calibration: Calibration, background: Dataset, queries: Dataset, recorder: Recorder
    ) -> PlannedJudge:
        """Return the judge that looks uploads up in a background; some may be unknown there yet."""
        if calibration.normalization is None:
            raise ValueError("a calibration without normalization has no background")
        out = storage.join(self.place or self.out, "queries", background_rows.BACKGROUNDS)
        k = calibration.normalization.k
        plan = self._sized(background_rows.make(background, queries, out, recorder.execution, k, self.views))
        planned = PlannedJudge(self._judge_of(Judge(calibration, Backgrounds.before(plan))), plan)
        if not plan.has_work:
            planned.search_background(self.beam)
        return planned

    def _sized(self, plan: SearchPlan) -> SearchPlan:
        settings = self.settings
        return replace(plan, record_seconds=settings.record_seconds, shard_bytes=settings.shard_bytes)

    def _coded(self, references: Dataset, recorder: Recorder) -> CodedReferences | None:
        """Return references with codes, brought up to date; None without a compressed index."""
        if indexes.is_built_at_once(self.settings.index):
            return None
        indexer = Indexer(self.settings, recorder.execution, self.beam)
        with recorder.stage("index"):
            return stage("index references", lambda: indexer.for_search(references, self.out))

    def search(
        self,
        corpora: EmbeddedCorpora,
        planned: PlannedJudge,
        recorder: Recorder,
        title: str = "search references",
        span: Span | None = None,
    ) -> SearchResult:
        """Score the pairs of some query segments, by default all, that no search has scored.

        Where uploads have no background yet, it is searched in the same job. What is stored is counted in the
        row of the run.
        """
        references = corpora.references.embeddings
        coded = self._coded(references, recorder)
        plan = self._sized(
            match_rows.make(
                references,
                corpora.queries.embeddings,
                storage.join(self.out, MATCHES),
                recorder.execution,
                self.settings.top_k,
                planned.judge,
                self.settings.index,
                self.floor,
                span,
                coded,
                self.views,
                self.channel,
            )
        )
        _warn_of_other_indexes(plan)
        if planned.background and not plan.has_work:
            with recorder.stage("search background"):
                stage("search background", lambda: planned.search_background(self.beam))
        with recorder.stage("search"):
            made = stage(title, lambda: match_rows.result(plan, planned.search(plan, self.beam)))
        recorder.count(matches=made.matches)
        if planned.judge:
            tally = judging.tally(made.dataset, made.files)
            recorder.count(match_pairs=tally.match_pairs, review_pairs=tally.review_pairs)
        return made

    def report_inputs(
        self,
        corpora: EmbeddedCorpora,
        matches: Dataset,
        search_run: str,
        plan_id: str,
        config: ScanConfig,
        recorder: Recorder,
    ) -> ReportInputs:
        """Return what a report is made from, without a truth.

        Args:
            corpora: embedded.
            matches: of all runs.
            search_run: the last run that searched.
            plan_id: names the content of what is reported.
            config: settings and places.
            recorder: of the run that reports.
        """
        transform_id = self.ids["transform_id"]
        origin = source_of(self.settings.transform, transform_id, self.ids["encoder_id"])
        background = corpora.background.embeddings.uri if corpora.background else None
        references = corpora.references.embeddings
        return ReportInputs(
            matches,
            search_run,
            references,
            corpora.queries.embeddings,
            corpora.references.rejects,
            corpora.queries.rejects,
            ScanFacts(
                run_id=recorder.execution.run_id,
                plan_id=plan_id,
                config=config,
                seconds=recorder.seconds,
                versions=environment.versions(),
                transform=TransformFacts(id=transform_id, origin=origin),
                calibration=judging.facts(
                    None if self.joint else self.calibration,
                    self.settings.calibration,
                    references.rows,
                    background,
                ),
            ),
            verdicts=Dataset.find(storage.join(self.out, rejudging.VERDICTS)),
        )


def finish(
    out: str,
    matches: Dataset,
    channels: Mapping[str, tuple[EmbeddedCorpora, PlannedJudge]],
    recorder: Recorder,
) -> None:
    """Judge what was judged by another calibration or for a smaller corpus; write what was searched.

    Args:
        out: parent of `matches/`.
        matches: of all runs.
        channels: folder of a channel's corpora below `out` → the corpora, and their judge.
        recorder: of the run.
    """
    judges = [(p.judge, c.references.embeddings) for c, p in channels.values() if p.judge]
    for judge, _ in judges:
        rejudging.keep(judge, out)
    if not all(rejudging.is_judged(matches, out, judge, references) for judge, references in judges):
        sized = [(judge, references.rows) for judge, references in judges]
        stage("judge", lambda: rejudging.judge(matches, out, sized, recorder.execution))
    held = {
        f"{folder}/{name}".lstrip("/"): corpus.embeddings
        for folder, (corpora, _) in channels.items()
        for name, corpus in (("reference", corpora.references), ("queries", corpora.queries))
    }
    public_tables.write(out, recorder.execution.run_id, matches, held)


def _warn_of_reach(judge: AnyJudge, references: int) -> None:
    if references and judge.is_out_of_reach(references):
        _log.warning(
            "for %s references, the calibration %s has a match threshold that no score reaches: none is a "
            "match. Calibrate on more references than %s",
            f"{references:,}",
            judge.calibration.calibration_id,
            f"{judge.calibration.references:,}",
        )


def _warn_of_other_indexes(plan: SearchPlan) -> None:
    """Say which earlier searches missed pairs that this one does not search again."""
    if not isinstance(plan.product, MatchRows):
        return
    others = {event.index_kind for event in plan.product.known} - {plan.index, FLAT}
    if others:
        _log.warning(
            "earlier searches below %s were by %s, which misses some pairs. Pairs that they searched are not "
            "searched again by %s: for that, scan into another --out",
            plan.out,
            ", ".join(sorted(others)),
            plan.index,
        )


def run_planned(plan: SearchPlan, beam: list[str]) -> Dataset:
    """Search; where nothing is left to do, Beam is not loaded."""
    if (made := matching.without_work(plan)) is not None:
        return made
    from beam_jobs import search

    return search.run_planned(plan, beam)


def find_matches(out: str) -> Dataset | None:
    """Return the pairs that earlier runs have stored below an `--out`; None where there are none."""
    return Dataset.find_own(storage.join(out, MATCHES))


def choose(
    settings: Settings, ids: Mapping[str, str], matches: Dataset | None
) -> tuple[ViewPlan | None, Calibration | None]:
    """Return the views under which uploads are looked at, None for the whole alone, and the calibration.

    `auto` goes on as the matches were searched before, and follows a calibration of whole uploads,
    also the bundled one where there is no other.

    Args:
        settings: which views, where W is from, and which calibration.
        ids: `schemas.ROW_IDS` of the descriptors.
        matches: what `find_matches` returned.

    Raises:
        CalibrationError: the calibration is missing or damaged, or is for other scores.
    """
    views = looks.plan(settings.views, settings.transform, ids["encoder_id"], ids["transform_id"])
    if views and (reason := _only_whole(settings, ids, matches)):
        _log.warning("whole uploads are searched, under no other views: %s", reason)
        views = None
    chosen = judging.choose(settings.calibration, {**ids, looks.VIEWS: looks.id_of(views)})
    if views and chosen is None and settings.calibration == AUTO:
        whole = judging.choose(AUTO, {**ids, looks.VIEWS: looks.NONE})
        if whole is None:
            return views, None
        _log.warning(
            "whole uploads are searched, under no other views: this file of W has another cohort than that "
            "which ships, or none. Give --transform auto, or a --calibration that was made with this file"
        )
        return None, whole
    return views, chosen


def _only_whole(settings: Settings, ids: Mapping[str, str], matches: Dataset | None) -> str:
    """Return why no other views than the whole are possible; empty where they are."""
    if settings.calibration not in (AUTO, NONE):
        chosen = judging.load(settings.calibration)
        if chosen and chosen.views == looks.NONE:
            return f"{settings.calibration} was calibrated on them"
    events = ledger.events(matches.commit, ids) if matches else []
    if matches and events and events[-1].views == looks.NONE:
        return f"{matches.uri} keeps their scores. Another --out gets all views"
    return ""
