"""What the functions of `id2` return; what is written as JSON has the same fields."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from id2core.estimates.report import EstimateReport as EstimateReport
from id2core.evaluation.comparison import EvaluateReport as EvaluateReport
from id2core.evaluation.comparison import VerdictRate
from id2core.oripid.imports import ImportSummary as ImportSummary
from id2core.reports.facts import ScanSummary as ScanSummary
from id2core.runs.checkup import Finding
from id2core.training.pairs import UnpairedRows
from id2core.verdicts.calibration import Threshold
from id2core.verdicts.channels import Level
from id2core.verdicts.normalization import Normalization


class Result(BaseModel):
    """Base of the results: a frozen model, written as JSON."""

    model_config = ConfigDict(frozen=True)


class StagedJob(Result):
    """A job that a runner starts later.

    Attributes:
        template: where its description was written.
    """

    template: str


class SubmittedJob(Result):
    """A job that runs on without the command that submitted it.

    Attributes:
        job_id: by which its engine or its job server knows it.
        run_id: of the rows that it makes.
    """

    job_id: str
    run_id: str


class EmbedSummary(Result):
    """Objects of the data sets after an embed run.

    Attributes:
        run_id: the run that wrote last: this one, or an earlier one where there was nothing new.
        listed, embedded, rejected: objects.
        encoder_id, transform_id: what the rows were made with.
        transform_from: `none`, `bundled`, or the file of W.
        resumed: True where there was nothing new to do.
    """

    run_id: str
    listed: int
    embedded: int
    rejected: int
    encoder_id: str
    transform_id: str
    transform_from: str
    resumed: bool


class NightlySummary(Result):
    """What a night did.

    Attributes:
        run_id: of the night.
        references, uploads: rows of the corpora after it.
        new_references, new_uploads: rows that it added.
        listed: objects that it listed.
        rejected: objects that it rejected, and that no earlier run had rejected.
        pairs: pairs that it scored, in all channels.
        pairs_stored: pairs of these that it stored.
        verdicts: verdict → uploads of this night's pairs, the strongest verdict of all channels.
        channels: where there are several, channel → verdict → uploads of this night's pairs there.
        back_scan_open: reference segments that some earlier uploads have not met yet, in the channel that has
            most of them.
        report: the report of this night's pairs.
    """

    run_id: str
    references: int
    uploads: int
    new_references: int
    new_uploads: int
    listed: int
    rejected: int
    pairs: int
    pairs_stored: int
    verdicts: dict[str, int]
    channels: dict[str, dict[str, int]] = {}
    back_scan_open: int
    report: str


class TranslateSummary(Result):
    """Objects of the data sets after a translate run.

    Attributes:
        run_id: the run that wrote last: this one, or an earlier one where there was nothing new.
        listed, translated, rejected: originals.
        pictures: translations of them.
        model, revision, recipe_id: what they were made with.
        resumed: True where there was nothing new to do.
        truth: the truth file that says which picture came from which original.
        out: where the data sets are.
    """

    run_id: str
    listed: int
    translated: int
    rejected: int
    pictures: int
    model: str
    revision: str
    recipe_id: str
    resumed: bool
    truth: str
    out: str


class DemoComparison(Result):
    """A kind of upload of the demo, with W and on raw latents.

    Attributes:
        kind: of upload.
        uploads: with an origin, of this kind.
        accuracy_raw, accuracy: share whose best reference is the origin.
        micro_ap_raw, micro_ap: µAP of these and of all uploads without an origin.
    """

    kind: str
    uploads: int
    accuracy_raw: float | None
    accuracy: float | None
    micro_ap_raw: float | None
    micro_ap: float | None


class DemoSummary(ScanSummary):
    """The scan of the demo, and `compared`: what W adds to raw latents, by kind of upload."""

    compared: list[DemoComparison]


class TunedNormalization(Result):
    """µAP of the queries that a normalization was tuned on: of raw scores, and as chosen."""

    micro_ap: float
    raw_micro_ap: float


class RateAtSize(Result):
    """A verdict's threshold for a corpus of some size, its rate there, and the interval of the true rate."""

    threshold: float
    is_out_of_reach: bool = False
    false_positive_rate: float
    low: float
    high: float


class CorpusSize(Result):
    """What a calibration holds for in a corpus of some size.

    Attributes:
        references: the size.
        match, review: thresholds and rates.
    """

    references: int
    match: RateAtSize
    review: RateAtSize


class ChannelShare(Result):
    """What one channel contributes to a joint calibration.

    Attributes:
        calibration_id, encoder_id: of its calibration.
        weight: its share of the rate by the union bound.
        scored: uploads without an origin that it scored; its encoder rejected the others.
        thresholds: `match` and `review` → the score from which on a pair of the channel gets the verdict;
            None where no score is enough.
        reached: `match` and `review` → uploads without an origin that reach it in this channel.
    """

    calibration_id: str
    encoder_id: str
    weight: float
    scored: int
    thresholds: dict[str, float | None]
    reached: dict[str, int]


class JointReport(Result):
    """A joint calibration as it was written; `verdicts.channels.JointCalibration` says what its fields mean.

    Attributes:
        match, review: the rate of an upload over all channels, and the interval of the true rate.
        channels: name → what it contributes.
        in_several: `match` and `review` → uploads without an origin that reach it in more than one channel.
        out: the file.
    """

    calibration_id: str
    match: Level
    review: Level
    references: int
    queries: int
    confidence: float
    channels: dict[str, ChannelShare]
    in_several: dict[str, int]
    out: str


class CalibrateReport(Result):
    """A calibration as it was written; `verdicts.calibration.Calibration` says what its fields mean.

    Attributes:
        run_id: the run that made it.
        tuned: how its normalization was tuned, where it was.
        larger: thresholds for larger corpora; empty without a tail model.
        truth_not_found: uploads that the truth file names and that are not there.
        joint: the joint calibration with a second channel, where it was asked for.
        out: the file; None where the calibration was given.
    """

    run_id: str
    calibration_id: str
    version: str
    match: Threshold
    review: Threshold
    references: int
    queries: int
    confidence: float
    encoder_id: str
    transform_id: str
    preprocess_id: str
    normalization: Normalization | None
    for_references: int | None = None
    content: float | None
    tuned: TunedNormalization | None
    larger: list[CorpusSize] = []
    truth_not_found: int = 0
    joint: JointReport | None = None
    out: str | None


class CalibrationCheck(Result):
    """What a check of a calibration measured; check.json has the same fields.

    Attributes:
        run_id: of the check.
        pairs: names the labeled uploads: Acc is compared with that of the same ones only.
        calibration_id: what was checked.
        accuracy: share of the uploads with an origin whose best reference it is.
        accuracy_before: that of the last check that passed; None where there is none.
        verdicts: `match` and `review` → rates as stated and as measured.
        problems: why the calibration does not hold; empty where it does.
    """

    run_id: str
    pairs: str
    calibration_id: str
    accuracy: float | None
    accuracy_before: float | None
    verdicts: dict[str, VerdictRate]
    problems: list[str]


class JudgeReport(Result):
    """What `id2 judge` did.

    Attributes:
        run_id: the run that judged.
        calibration_id: by what the pairs are judged now.
        before: by what they were; None for nothing.
        pairs: how many got a verdict.
        verdicts: verdict → pairs.
        skipped: pairs that keep the verdict they had: their upload is gone, and nothing was kept of what it
            scores in the background.
        out: where the pairs are.
    """

    run_id: str
    calibration_id: str
    before: str | None
    pairs: int
    verdicts: dict[str, int]
    skipped: int
    out: str


# Whether a scan uses the descriptors, or they lie beside those that it uses.
ReprojectionState = Literal["beside", "in use", "dropped"]


class ReprojectedCorpus(Result):
    """A corpus with the descriptors of another W.

    Attributes:
        corpus: its folder below the --out; empty where the --out is the corpus.
        rows: how many it has.
        projected: how many of them this run gave descriptors.
        state: `beside` what is in use, `in use`, or `dropped`.
        place: URI of the folder that has its `embeddings/`.
    """

    corpus: str
    rows: int
    projected: int
    state: ReprojectionState
    place: str


class ReprojectReport(Result):
    """What `id2 reproject` did.

    Attributes:
        run_id: the run.
        transform_id: of the other W.
        corpora: each that has latents below the --out.
        elsewhere: corpora of the last scan that lie in other places.
        out: where they are.
    """

    run_id: str
    transform_id: str
    corpora: list[ReprojectedCorpus]
    elsewhere: list[str]
    out: str


class IndexReport(Result):
    """What `id2 index` made.

    Attributes:
        run_id: the run.
        index: the string.
        place: URI of the data set.
        rows: references that have a code.
        encoded: how many of them this run gave one.
        code_bytes: of a reference, with the number of its list.
        memory_bytes: of a reference in a worker.
        flat_bytes: the same in an exact search.
        trained_on: references that the model was trained on.
        probes: lists that are searched for each upload.
        depth: best codes of an upload that are scored exactly.
        recall_1, recall_10: share of an exact search's best, and of its 10 best, that a search finds,
            measured in a shard of `measured_rows` references by `measured_queries` of them, with noise.
        out: the --out.
    """

    run_id: str
    index: str
    place: str
    rows: int
    encoded: int
    code_bytes: int
    memory_bytes: int
    flat_bytes: int
    trained_on: int
    probes: int
    depth: int
    recall_1: float | None
    recall_10: float | None
    measured_rows: int
    measured_queries: int
    out: str


class CompactedDataset(Result):
    """A data set before and after a compaction.

    Attributes:
        dataset: where it is, below the --out.
        files_before, files_after, bytes_before, bytes_after: of the files that it lists.
        merged: files that were merged.
    """

    dataset: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    merged: int


class CompactReport(Result):
    """What `id2 compact` did.

    Attributes:
        run_id: the run.
        files_before, files_after, bytes_before, bytes_after: of all data sets.
        kept_files: superseded files that stay until their grace period ends.
        datasets: each of them.
        out: where they are.
    """

    run_id: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    kept_files: int
    datasets: list[CompactedDataset]
    out: str


class TakedownReport(Result):
    """What `id2 takedown` did.

    Attributes:
        run_id: the run.
        reinstated: whether the pictures were admitted again.
        pictures: image_id → URIs at which it is or was.
        rows: data set → rows that were removed.
        files: superseded and staged files that held such rows and were deleted.
        translations: translations that were deleted.
        reports: folder of a report → `written again` or `deleted`.
        elsewhere: corpora of the last scan in other places that still have such a picture.
        others_at_work: whether other runs were at work there: repeat the command when they have ended.
        out: where it was done.
    """

    run_id: str
    reinstated: bool
    pictures: dict[str, list[str]]
    rows: dict[str, int]
    files: int
    translations: int
    reports: dict[str, str]
    elsewhere: list[str]
    others_at_work: bool
    out: str


class RebuiltLedger(Result):
    """A commit of matches/ that was built again.

    Attributes:
        searches: that it knows of.
        files: of pairs.
        set_aside: files whose pairs are searched again.
    """

    searches: int
    files: int
    set_aside: list[str]


class DoctorReport(Result):
    """What `id2 doctor --out` found.

    Attributes:
        datasets, files, rows: how many were checked.
        findings: what is wrong; empty where all is well.
        rebuilt: what was built again, where it was.
        others_at_work: whether runs were at work there, whose commits may have been half moved.
        out: the place.
    """

    datasets: int
    files: int
    rows: int
    findings: list[Finding]
    rebuilt: RebuiltLedger | None
    others_at_work: bool
    out: str


class DroppedQueries(Result):
    """Queries of one role of OriPID.

    Attributes:
        queries: that are asked.
        dropped: why others are not → how many.
        without_reference: queries whose reference could not be read.
    """

    queries: int
    dropped: dict[str, int]
    without_reference: int


class ExperimentData(Result):
    """What the experiments are measured on.

    Attributes:
        data: the folder.
        photos: role → references; empty for data that was made from photos.
        queries: role → its queries.
        training: how OriPID's training latents were imported, where they were.
    """

    data: str
    photos: dict[str, int] = {}
    queries: dict[str, DroppedQueries] = {}
    training: ImportSummary | None = None


class ExperimentReport(Result):
    """Tables of the experiments that ran, and where they were written.

    Attributes:
        tables: name → Markdown.
        out: where tables and plots are.
        page: the page that joins them, where one was asked for.
    """

    tables: dict[str, str]
    out: str
    page: str | None


class MissingPictures(Result):
    """Pictures that the data sets name and that are gone."""

    origins: int
    translations: int


class FinetuneReport(Result):
    """The report of a trained backbone.

    Attributes:
        run_id: the run that trained it, or found it trained.
        encoder: the directory that `--encoder` takes.
        pictures, origins: what it was trained on.
        left_out: what it could not be trained on.
        report: the file that has options and seconds.
    """

    run_id: str
    encoder: str
    pictures: int
    origins: int
    left_out: MissingPictures
    report: str


class MethodValidation(Result):
    """A transform on the held-out origins: mAP, and separation (a mean difference of cosines)."""

    mean_ap: float
    separation: float


class Validation(Result):
    """Scores of transforms on held-out origins.

    Attributes:
        origins, queries: held out, and their translations.
        methods: `raw` and each method → its figures.
    """

    origins: int
    queries: int
    methods: dict[str, MethodValidation]


class TrainingData(Result):
    """What W was trained on.

    Attributes:
        encoder_id, preprocess_id: of the latents.
        digest: names the pairs.
        latents, latent_size, origins: how many latents, of how many numbers, of how many origins.
        left_out: rows that did not count.
    """

    encoder_id: str
    preprocess_id: str
    digest: str
    latents: int
    latent_size: int
    origins: int
    left_out: UnpairedRows


class TrainReport(Result):
    """A trained W; report.json has the same fields but `resumed`.

    Attributes:
        run_id: the run that trained it.
        plan_id: names options and latents: a training with the same name is read back.
        config: the options.
        seconds: stage → s.
        versions: package → version.
        W: the file of the weights.
        transform_id: names the weights.
        transforms: method → transform_id and metadata of what it gave.
        validation: None where no origin was held out.
        data: what it was trained on.
        resumed: True where it was read back.
    """

    run_id: str
    plan_id: str
    config: dict[str, JsonValue]
    seconds: dict[str, float]
    versions: dict[str, str]
    W: str
    transform_id: str
    transforms: dict[str, dict[str, JsonValue]]
    validation: Validation | None
    data: TrainingData
    resumed: bool = False
