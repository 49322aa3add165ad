"""Models of `summary.json`: the facts of a scan."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from id2core import defaults
from id2core.evaluation.metrics import Evaluation
from id2core.evaluation.streaming import GroupMeasures
from id2core.verdicts.channel_facts import JointFacts
from id2core.verdicts.judging import CalibrationFacts

Verdicts = dict[str, int]


class Facts(BaseModel):
    """Base of the models in `summary.json`: frozen, with JSON names as aliases."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)


class TransformFacts(Facts):
    """The transform that a scan used.

    Attributes:
        id: transform_id.
        origin: `none`, `bundled`, `data set`, or the file it was read from; `from` in JSON.
    """

    id: str
    origin: str = Field(alias="from")


class ScanConfig(Facts):
    """What a scan was asked for: the settings that held, and its places.

    Attributes:
        reference, queries, out: URIs; a data set's begins with `dataset:`.
        background, truth: URIs, where they were given or are bundled.
        also, also_calibration, also_background, joint_calibration, also_reference, also_queries: of a second
            channel, where there is one.
    """

    encoder: str
    transform: str
    views: str = "none"
    calibration: str
    also: str | None = None
    also_calibration: str | None = None
    also_background: str | None = None
    joint_calibration: str | None = None
    also_reference: str | None = None
    also_queries: str | None = None
    index: str
    top_k: int
    device: str
    dtype: str
    part_size: int
    max_bytes: int
    max_pixels: int
    max_memory: int = defaults.MAX_MEMORY
    max_seconds: float = defaults.MAX_SECONDS
    allow_shrink: bool = False
    reference: str
    queries: str
    out: str
    background: str | None
    truth: str | None


class ScanFacts(Facts):
    """Facts of a scan that are not in its data sets.

    Attributes:
        run_id: the execution that made the report.
        plan_id: names what was compared and how: equal names, equal reports.
        config: what was asked for.
        seconds: stage → s.
        versions: package → version.
        transform: the one in use.
        calibration: what the verdicts hold for; None where there are none, or several channels.
        joint: what the verdicts of several channels hold for; None where there is one.
    """

    run_id: str
    plan_id: str
    config: ScanConfig
    seconds: dict[str, float]
    versions: dict[str, str]
    transform: TransformFacts | None = None
    calibration: CalibrationFacts | None = None
    joint: JointFacts | None = None


class ScanCounts(Facts):
    """How many pictures, files without a row, and pairs a scan has."""

    references: int
    queries: int
    reference_rejects: int
    query_rejects: int
    queries_with_match: int
    matches: int


class Quantiles(Facts):
    """Count, extremes and the 5, 50 and 95% quantiles of scores; None where there are none."""

    n: int
    min: float | None
    p5: float | None
    p50: float | None
    p95: float | None
    max: float | None


class Histogram(Facts):
    """Counts of scores in bins of equal width from `low` up, by series."""

    low: float
    width: float
    series: dict[str, list[int]]


class GroupFacts(GroupMeasures):
    """A group of uploads: its measures, and how many uploads have which verdict."""

    verdicts: Verdicts


class ChannelPlaces(Facts):
    """Where the corpora of a further channel are."""

    reference_embeddings: str
    query_embeddings: str
    reference_rejects: str | None
    query_rejects: str | None


class Places(Facts):
    """Where the data sets of a scan are; `search_run` is the last run that searched.

    Attributes:
        only_run: whether only what this run found is reported.
        unfinished: run_ids of killed runs whose finds are reported with it.
        verdicts: later verdicts of the pairs, where there are any.
        channels: of further channels, by name.
    """

    matches: str
    search_run: str
    reference_embeddings: str
    query_embeddings: str
    reference_rejects: str | None
    query_rejects: str | None
    only_run: bool = False
    unfinished: tuple[str, ...] = ()
    verdicts: str | None = None
    channels: dict[str, ChannelPlaces] = {}


class ScanSummary(ScanFacts):
    """The content of `summary.json`: ids, counts, verdicts and scores of a scan.

    Scores (normalized ones where there are some, as `scores_are` says) and verdicts are summed up over each
    query's best reference (rank 1). Where there are several channels, a query's verdict is the strongest of
    its best references in each, and scores are those of the first channel.

    Attributes:
        scanned_at: time of the search, ISO 8601, UTC.
        counts: pictures, files and pairs.
        rejects: side → reason → how many; a side of a further channel has the channel's name before it.
        verdicts: verdict → queries; empty where nothing was judged. A query without a stored pair has `none`,
            but in the summary of a night.
        verdict_reasons: reason of a verdict → queries, where it is not the score.
        views: view under which a query scored best → queries.
        channels: where there are several, channel → verdict → queries, of their best reference there.
        scores_are: the column that scores are from.
        encoder_id, transform_id, preprocess_id, index_id: of the rows compared.
        top_k: references kept per query.
        score_quantiles, histogram: of the best scores.
        inputs: where the data sets are.
        accuracy: with a truth, share of the `accuracy_of` scanned queries with an origin whose best
            reference is that origin.
        measures: with a truth, all measures with their intervals.
        groups: with a truth, those of each group of queries.
        truth_not_scanned: queries of the truth that this scan never saw.
        truth_origins_not_held: with a truth, scanned queries whose origin is not among the references: it
            cannot be found.
        origin_scores, no_origin_scores: with a truth, best scores of queries with and without an origin.
        verdicts_of: with a truth, the verdicts of queries with and without an origin.
        channel_measures: with a truth, where there are several channels, the measures of each. `accuracy`,
            `measures`, and those of `groups` are of the first.
        origins_found: likewise, verdict → queries whose origin is the best reference in a channel, by the
            strongest verdict that it gets there.
        report_sha256: of `report.html`.
        checksum: SHA-256 of all the rest, by which damage is noticed.
    """

    scanned_at: str
    counts: ScanCounts
    rejects: dict[str, dict[str, int]]
    verdicts: Verdicts
    scores_are: str
    encoder_id: str | None
    transform_id: str | None
    preprocess_id: str | None
    index_id: str | None
    top_k: int | None
    score_quantiles: Quantiles
    histogram: Histogram | None
    inputs: Places
    accuracy: float | None = None
    accuracy_of: int | None = None
    measures: Evaluation | None = None
    groups: dict[str, GroupFacts] = {}
    truth_not_scanned: int | None = None
    truth_origins_not_held: int | None = None
    origin_scores: Quantiles | None = None
    no_origin_scores: Quantiles | None = None
    verdicts_of: dict[str, Verdicts] = {}
    verdict_reasons: dict[str, int] = {}
    views: dict[str, int] = {}
    channels: dict[str, Verdicts] = {}
    channel_measures: dict[str, Evaluation] = {}
    origins_found: Verdicts = {}
    report_sha256: str = ""
    checksum: str = ""

    def sealed(self, page: bytes) -> ScanSummary:
        """Return the summary with the hash of its page and with its own checksum."""
        known = self.model_copy(update={"report_sha256": hashlib.sha256(page).hexdigest()})
        return known.model_copy(update={"checksum": known._digest()})

    @property
    def is_whole(self) -> bool:
        """Whether what was read fits the checksum; True where an earlier version wrote none."""
        return self.checksum in ("", self._digest(read=True))

    def _digest(self, *, read: bool = False) -> str:
        """Return the hash of all the rest, of what was `read` without fields that its version lacked."""
        rest = self.model_dump_json(by_alias=True, exclude={"checksum"}, exclude_unset=read)
        return hashlib.sha256(rest.encode()).hexdigest()

    def found_at(self, out: str) -> ScanSummary:
        """Return the summary of the same scan in a folder that was moved or copied to `out`."""
        before = f"{self.config.out}/"

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: moved(one) for key, one in value.items()}
            is_inside = isinstance(value, str) and value.startswith(before)
            return f"{out}/{value.removeprefix(before)}" if is_inside else value

        inputs = Places.model_validate(moved(self.inputs.model_dump()))
        config = self.config.model_copy(update={"out": out})
        return self.model_copy(update={"inputs": inputs, "config": config})

    @property
    def with_truth(self) -> bool:
        """True where the scan was compared with a truth file."""
        return self.measures is not None

    @property
    def facts(self) -> ScanFacts:
        """What is known of the scan besides its data sets."""
        return ScanFacts(**{name: getattr(self, name) for name in ScanFacts.model_fields})
