"""Judge stored pairs anew by a calibration: no search, no picture is read."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from id2 import searching
from id2.channels import joint_of, searched_corpora
from id2.corpora import Corpus
from id2.jobs import scan
from id2.options import flag_of
from id2.requests import JudgeRequest
from id2.results import JudgeReport
from id2.stages import stage
from id2core.defaults import UNION
from id2core.errors import CalibrationError, DatasetError, OptionError
from id2core.reports import page
from id2core.reports.facts import ScanSummary
from id2core.reports.inputs import ReportInputs
from id2core.reports.summary import summarize
from id2core.runs import ledger, leftovers
from id2core.runs.execution import Execution
from id2core.runs.records import recorded
from id2core.search import background_rows, looks, match_rows
from id2core.search.background_rows import Backgrounds
from id2core.search.match_rows import CHANNEL, MATCHES
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Dataset
from id2core.transforms.linear import AUTO
from id2core.verdicts import channel_facts, judging, rejudging
from id2core.verdicts.calibration import Calibration
from id2core.verdicts.channel_judging import AnyJudge, ChannelJudge
from id2core.verdicts.channels import Channels
from id2core.verdicts.judging import CalibrationFacts, Judge
from id2core.verdicts.normalization import Normalization


@dataclass(frozen=True)
class _Channel:
    """A channel whose pairs are judged.

    Attributes:
        name: as its rows in `matches/` have it.
        place: parent of its corpora.
        references, queries: embeddings; the queries are None where they are gone.
        ids: `schemas.ROW_IDS` of its corpora, and `views`.
    """

    name: str
    place: str
    references: Dataset
    queries: Dataset | None
    ids: dict[str, str]

    @property
    def background_option(self) -> str:
        """Return the option that gives its background."""
        return "--background" if self.name == CHANNEL else "--also-background"


@dataclass(frozen=True)
class _Place:
    """An `--out` whose pairs are judged.

    Attributes:
        out: its URI.
        summary: of its last scan; None where there is none.
        matches: the pairs.
        channels: the first first.
    """

    out: str
    summary: ScanSummary | None
    matches: Dataset
    channels: tuple[_Channel, ...]

    @staticmethod
    def open(out: str) -> _Place:
        """Find the data sets by summary.json, else where scans put them.

        Raises:
            DatasetError: there are no matches, or not those of this version, or no references.
        """
        place = storage.normalize(out)
        summary = page.read_summary(place)
        matches = Dataset.open(storage.join(place, MATCHES))
        match_rows.check_layout(matches)
        channels = [
            _open_channel(name, place, corpora, matches)
            for name, corpora in searched_corpora(place, summary).items()
        ]
        return _Place(place, summary, matches, tuple(channels))


def _open_channel(name: str, out: str, corpora: tuple[str, str], matches: Dataset) -> _Channel:
    """Open the embeddings of references and uploads of a channel."""
    references, queries = corpora
    held = Dataset.open(references)
    ids = {name: held.ids[name] for name in schemas.ROW_IDS}
    # All searches of a channel have the same views.
    views = next((event.views for event in ledger.events(matches.commit, ids)), looks.NONE)
    place = out if name == CHANNEL else leftovers.channel_place(out, name)
    return _Channel(name, place, held, Dataset.find(queries), ids | {looks.VIEWS: views})


@dataclass(frozen=True)
class _Rule:
    """What the pairs are judged by.

    Attributes:
        own: the calibration of each channel, the first first.
        joint: how several channels give one verdict; None where there is one.
    """

    own: tuple[Calibration, ...]
    joint: Channels | None = None

    @property
    def calibration_id(self) -> str:
        """Name of what gives the verdicts."""
        return self.joint.joint.calibration_id if self.joint else self.own[0].calibration_id

    def judge(self, channel: _Channel, own: Judge) -> AnyJudge:
        """Return what judges the pairs of a channel."""
        return ChannelJudge(self.joint, channel.name, own) if self.joint else own


def run(request: JudgeRequest) -> JudgeReport:
    """Judge every stored pair, and write the report again where there is one.

    Raises:
        CalibrationError: a calibration is for other scores, reaches below what is stored, or needs a
            background that is not there; or there is no earlier one to go back to.
        DatasetError: `out` holds no matches, or a file is damaged.
        OptionError: a calibration is missing, or given for a channel that is not there.
    """
    place = _Place.open(request.out)
    rule = _rule(request, place)
    each = list(zip(place.channels, rule.own, strict=True))
    for channel, own in each:
        own.check_ids(channel.ids)
        rejudging.check_floor(place.matches, place.out, rule.judge(channel, Judge(own)))
    config = request.model_dump(exclude={"progress"}) | {"calibration_id": rule.calibration_id}
    with recorded(place.out, "judge", config) as recorder:
        execution = recorder.execution
        judges: list[tuple[AnyJudge, int]] = []
        for channel, own in each:
            title = "search background" if channel.name == CHANNEL else f"search background of {channel.name}"
            with recorder.stage(title):
                judge = stage(title, functools.partial(_judge, request, channel, own, execution))
            judges.append((rule.judge(channel, judge), channel.references.rows))
        with recorder.stage("judge"):
            judged = stage("judge", lambda: rejudging.judge(place.matches, place.out, judges, execution))
        pairs = sum(judged.verdicts.values())
        recorder.count(matches=pairs)
        if place.summary:
            stage("write report", lambda: _write_report(place, rule))
    return JudgeReport(
        run_id=execution.run_id,
        calibration_id=judged.calibration_id,
        before=judged.before,
        pairs=pairs,
        verdicts=judged.verdicts,
        skipped=judged.skipped,
        out=place.out,
    )


def _chosen(spec: str, ids: dict[str, str]) -> Calibration:
    """Load a calibration for the scores of a channel.

    Raises:
        CalibrationError: it is missing, damaged, or for other scores, or none ships for these.
    """
    chosen = judging.choose(spec, ids)
    if chosen is None:
        raise CalibrationError(
            f"no calibration ships for the scores of this --out: {spec} finds none, give a file"
        )
    return chosen


def _rule(request: JudgeRequest, place: _Place) -> _Rule:
    """Return what is asked to judge, or what judged before."""
    first, *others = place.channels
    if not others:
        for name in ("also_calibration", "also_background"):
            if getattr(request, name):
                raise OptionError(f"{place.out} has one channel: leave {flag_of(name)} out")
        return _Rule(
            (
                rejudging.earlier(place.matches, place.out, first.ids)
                if request.back
                else _chosen(str(request.calibration), first.ids),
            )
        )
    if len(others) > 1:
        raise DatasetError(f"{place.out} has more than two channels, which no command has made")
    if request.back:
        ids = {channel.name: channel.ids for channel in place.channels}
        joint = rejudging.earlier_channels(place.matches, place.out, ids)
        return _Rule(joint.calibrations, joint)
    [second] = others
    if not request.also_calibration:
        raise OptionError(
            f"{place.out} has a second channel, {second.name}: give its calibration with --also-calibration"
        )
    files = str(request.calibration), request.also_calibration
    own = {c.name: _chosen(file, c.ids) for c, file in zip(place.channels, files, strict=True)}
    both = tuple(own.values())
    return _Rule(both, Channels(joint_of(request.joint_calibration or UNION, own), both))


def _judge(request: JudgeRequest, channel: _Channel, chosen: Calibration, execution: Execution) -> Judge:
    """Return the judge of a channel; uploads that have no background yet are searched in it first."""
    how = chosen.normalization
    given = request.background if channel.name == CHANNEL else request.also_background
    judging.check_background(chosen, (given or "stored") if how or given else None)
    if how is None:
        return Judge(chosen)
    out = storage.join(channel.place, "queries", background_rows.BACKGROUNDS)
    name = background_rows.name_of(channel.references.ids, how.background_id, how.k, chosen.views)
    known = Dataset.find(out)
    searched = background_rows.searched(known.commit, name) if known else set()
    missing = datasets.segments_of(channel.queries).keys() - searched if channel.queries else set()
    if known is None or missing:
        known = _search(channel, given, chosen, how, out, request.beam, execution)
    return Judge(chosen, Backgrounds(known, name))


def _search(
    channel: _Channel,
    given: str | None,
    chosen: Calibration,
    how: Normalization,
    out: str,
    beam: list[str],
    execution: Execution,
) -> Dataset:
    """Search the uploads that have no background."""
    background = _background(channel, given, chosen)
    if background is None or channel.queries is None:
        give = f"give its data set with {channel.background_option}"
        mend = give if channel.queries else "their embeddings are gone, too"
        raise CalibrationError(
            f"{channel.place} lacks what its uploads score in the background {how.background_id} of this "
            f"calibration: {mend}"
        )
    judging.check_background_id(chosen, background)
    judging.check_disjoint(background, channel.references)
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
    plan = background_rows.make(background, channel.queries, out, execution, how.k, views)
    return searching.run_planned(plan, beam)


def _background(channel: _Channel, given: str | None, chosen: Calibration) -> Dataset | None:
    """Find the background: the one given, the bundled one, or the one that a scan has embedded."""
    if given:
        found = Corpus.open("background", given).dataset
        if found is None:
            raise DatasetError(
                f"{channel.background_option} {given}: give dataset: and the --out of id2 embed. This "
                "command embeds no pictures"
            )
        return found
    if bundled := judging.bundled_background(chosen):
        return bundled
    return Dataset.find(storage.join(channel.place, "background", schemas.EMBEDDINGS))


def _write_report(place: _Place, rule: _Rule) -> ScanSummary | None:
    """Write the report of the last scan with the new verdicts."""
    summary = place.summary
    if summary is None:
        return None
    verdicts = Dataset.open(storage.join(place.out, rejudging.VERDICTS))
    run = summary.facts.model_copy(
        update={
            "plan_id": datasets.digest_of(summary.plan_id, rule.calibration_id, verdicts.run_id),
            **_stated(place, summary, rule),
        }
    )
    places = summary.inputs.model_copy(update={"verdicts": verdicts.uri})
    inputs = scan.with_truth(ReportInputs.open(places, run=run))
    return page.save_report(inputs, summarize(inputs), place.out)


def _stated(place: _Place, summary: ScanSummary, rule: _Rule) -> dict[str, Any]:
    """Return what a report states of its verdicts, as fields of its facts."""
    specs = [rejudging.place_of(place.out, own.calibration_id) for own in rule.own]
    before = {CHANNEL: summary.calibration} if summary.calibration else {}
    if summary.joint:
        before |= {name: held.calibration for name, held in summary.joint.channels.items()}
    own = [
        facts
        for channel, chosen, spec in zip(place.channels, rule.own, specs, strict=True)
        if (facts := _facts(channel, chosen, spec, before.get(channel.name)))
    ]
    if rule.joint is None:
        config = summary.config.model_copy(update={"calibration": specs[0]})
        return {"config": config, "calibration": own[0]}
    spec = rejudging.place_of(place.out, rule.calibration_id)
    used = {"calibration": specs[0], "also_calibration": specs[1], "joint_calibration": spec}
    rows = max(channel.references.rows for channel in place.channels)
    return {
        "config": summary.config.model_copy(update=used),
        "joint": channel_facts.facts(rule.joint, spec, rows, own),
    }


def _facts(
    channel: _Channel, chosen: Calibration, spec: str, before: CalibrationFacts | None
) -> CalibrationFacts | None:
    background = before.background if chosen.normalization and before else None
    return judging.facts(chosen, spec, channel.references.rows, background)
