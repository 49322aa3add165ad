"""Requests: the options of each function, command and flow, and their cheap checks. No torch is loaded."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from id2 import checks
from id2.options import BeamRequest, OneJobRequest, Request, flag_of, option, setting
from id2core import defaults
from id2core.errors import (
    CalibrationError,
    ExperimentError,
    FinetuneError,
    OptionError,
    TrainError,
    TransformError,
    TranslatorError,
)
from id2core.store import storage
from id2core.store.base import Mode
from id2core.training.config import FinetuneConfig, GradientConfig, Shrinkage
from id2core.translation.config import TranslationConfig

if TYPE_CHECKING:
    from id2core.encoders.embed_job import Feed  # loads Parquet
    from id2core.translation.models import Overrides

OUT_HELP = "Where results go: a folder or gs:// prefix. Re-run with the same place to resume."
_DATE = "{date} in it is the date of the run, as in 2026-11-25"
_SOURCE = f"a folder or gs:// prefix, tar:PLACE, parquet:PLACE or list:FILE; {_DATE}"
_IMAGES_OR_DATASET = f"{_SOURCE}. Or dataset: and the --out of id2 embed"
REFERENCE_HELP = f"Protected originals: {_IMAGES_OR_DATASET}."
QUERIES_HELP = f"Uploads: {_IMAGES_OR_DATASET}."
BACKGROUND_HELP = (
    f"Pictures that are neither references nor copies of them: {_IMAGES_OR_DATASET}. ID² subtracts a share "
    "of an upload's scores against them from its scores against the references."
)
SCAN_BACKGROUND_HELP = f"{BACKGROUND_HELP} A calibration that was made with a background needs the same one."
TRANSLATIONS_HELP = (
    "Data set of id2 translate, or its --out. It says which picture is a translation of which."
)
ADD_SOURCE_HELP = (
    "Add this source beside others. Without it, a run stops if --out has rows of other sources only."
)
TRUTH_HELP = (
    "Truth file: CSV or Parquet with columns query_uri and reference_uri. An empty reference means that the "
    "upload has no origin."
)


class SourceRequest(BeamRequest):
    """A request that adds images of a source to a corpus."""

    mode: Literal["mirror", "append"] | None = option(
        "What happens to rows whose image the source no longer lists: mirror drops them, append keeps them. "
        "In id2 scan and nightly it applies to uploads. References take the default.",
        None,
        unset="append for a source with {date}, else mirror",
    )
    date: str | None = option(
        "Date of a source with {date}, also called the night.",
        None,
        unset="today in ID2_TIME_ZONE",
        example="2026-11-25",
    )
    late_days: int | None = setting("late_days")
    retention_days: float | None = setting("retention_days")
    credentials: str | None = setting("credentials")
    add_source: bool = option(ADD_SOURCE_HELP, False)

    @property
    def feed(self) -> Feed:
        """What is said of the source."""
        return {"mode": self.mode and Mode(self.mode), "night": self._night, "add_source": self.add_source}

    @property
    def _night(self) -> datetime.date | None:
        try:
            return datetime.date.fromisoformat(self.date) if self.date else None
        except ValueError:
            raise OptionError(f"date is {self.date!r}: give one such as 2026-11-25") from None

    def check(self) -> None:
        """Refuse a date that is none."""
        super().check()
        _ = self._night


class ChannelRequest(BeamRequest):
    """A request that may compare by a second encoder, in a channel of its own."""

    also: str | None = option(
        "A second encoder, with a channel of its own: as --encoder. Both channels give one verdict at one "
        "false-positive rate. Needs --also-calibration.",
        None,
        unset="one channel",
        example="pdq",
        min_length=1,
    )
    also_calibration: str | None = option(
        "The calibration of the second channel: a file that id2 calibrate wrote with its encoder, "
        "--transform none, and --views none. It needs a tail model, or thresholds at the channel's share of "
        "the rate: half of it, or its share in --joint-calibration.",
        None,
        example="pdq/calibration.json",
        needs="also",
    )
    also_background: str | None = option(
        "The background of the second channel, where its calibration was made with one: "
        f"{_IMAGES_OR_DATASET}.",
        None,
        needs="also",
    )

    def _check_channel(self, out: str, corpora: Mapping[str, str]) -> None:
        """Refuse options that do not fit a second channel.

        Args:
            out: where images are embedded to.
            corpora: `reference` and `queries` → those of the first channel that the second shares.
        """
        if self.also is None:
            return
        if self.also_calibration in (None, defaults.NONE, defaults.AUTO):
            raise OptionError("--also needs --also-calibration, a file that id2 calibrate wrote")
        for name, uri in corpora.items():
            if uri.startswith("dataset:"):
                raise OptionError(
                    f"--also embeds the pictures by another encoder, and {uri} has none. Give --also-{name}: "
                    f"the place of the images, or dataset: and the --out of id2 embed --encoder {self.also} "
                    "--transform none --views none"
                )
        checks.require_file(self.also_calibration, "also-calibration", CalibrationError, "")
        checks.require_corpus(self.also_background, "also-background", out)


class ChannelCorporaRequest(ChannelRequest):
    """A request that names the corpora of a second channel, where they are not those of the first."""

    also_reference: str | None = option(
        "References of the second channel, where --reference is a data set of the first: their images, or "
        "dataset: and the --out of id2 embed by the second encoder.",
        None,
        unset="--reference",
        example="dataset:originals-pdq",
        needs="also",
    )
    also_queries: str | None = option(
        "Uploads of the second channel: as --also-reference.",
        None,
        unset="--queries",
        example="dataset:uploads-pdq",
        needs="also",
    )

    @property
    def also_corpora(self) -> dict[str, str]:
        """Return `reference` and `queries` → the corpora that are of the second channel alone."""
        given = {"reference": self.also_reference, "queries": self.also_queries}
        return {name: uri for name, uri in given.items() if uri is not None}

    def _channel_corpora(self, reference: str, queries: str, out: str) -> dict[str, str]:
        """Return the corpora that the second channel shares, and refuse places that are not there.

        Args:
            reference, queries: of the first channel.
            out: where images are embedded to.
        """
        for name, uri in self.also_corpora.items():
            checks.require_corpus(uri, f"also-{name}", out)
        shared = {"reference": reference, "queries": queries}
        return {name: uri for name, uri in shared.items() if name not in self.also_corpora}


class SearchRequest(SourceRequest, ChannelRequest):
    """A request that searches uploads in references and judges the pairs."""

    joint_calibration: str | None = option(
        "How both channels give one verdict: union (the union bound, at the rates of the first channel's "
        "calibration) or a file that id2 calibrate --also wrote.",
        None,
        unset=defaults.UNION,
        example="joint.json",
        needs="also",
    )

    @property
    def joint_rule(self) -> str:
        """Return how both channels give one verdict: union, or a file."""
        return self.joint_calibration or defaults.UNION

    @property
    def second_channel(self) -> dict[str, str | None]:
        """Return the options of the second channel, by name; empty where there is none."""
        names = {"also", "also_calibration", "also_background"}
        names |= {"also_reference", "also_queries"}  # id2 nightly has no such options
        given = self.model_dump(include=names) | {"joint_calibration": self.joint_rule}
        return given if self.also else {}

    def _check_channels(self, out: str, corpora: Mapping[str, str]) -> None:
        """Refuse what `_check_channel` refuses, and a joint calibration that is not there."""
        self._check_channel(out, corpora)
        _require_joint(self.joint_calibration)


def _require_joint(spec: str | None) -> None:
    """Refuse a joint calibration that is not there."""
    if spec != defaults.UNION:
        checks.require_file(spec, "joint-calibration", CalibrationError, " (or union, which needs none)")


class EmbedRequest(SourceRequest, OneJobRequest):
    """Embed images into OUT/embeddings and OUT/rejects. Images that have a row are not read again."""

    images: str = option(f"Images: {_SOURCE}.", example="gs://corpus/originals")
    out: str = option(OUT_HELP, example="gs://corpus/id2")
    encoder: str | None = setting("encoder")
    transform: str | None = setting("transform")
    views: str | None = setting("views")
    part_size: int | None = setting("part_size")
    allow_shrink: bool | None = setting("allow_shrink")

    def check(self) -> None:
        """Refuse a missing source and a place that cannot be written."""
        super().check()
        checks.require_source(self.images, "images", self.out, self.out, self.mode)
        checks.require_writable(self.out)


class TranslateRequest(OneJobRequest, TranslationConfig):
    """Translate originals with a diffusion model; write OUT/pictures, OUT/translations and OUT/truth.csv."""

    images: str = option("Originals: a folder or gs:// prefix of images.", example="originals")
    model: str = option(
        "Diffusion model. Bundled: mini-a, mini-b. From the model hub: sd2, sdxl, opendalle, colorfulxl, "
        "kandinsky3, sd3, kolors, instruct-pix2pix, ip-adapter, edict, plug-and-play. Or a directory that "
        "diffusers saved, or a hub id owner/name[@revision].",
        example="mini-a",
    )
    out: str = option(OUT_HELP, example="translated")
    strength: float | None = option(
        "How strongly a picture is changed: the share of noise that is added.",
        None,
        unset="the paper's where it gives one, else 0.8",
        gt=0,
        le=1,
    )
    prompts: str | None = option(
        "Source of prompts. A .csv, .parquet or .jsonl file has columns uri and prompt. A .txt file has one "
        "prompt per line. captions reads captions.csv in or beside the images. endpoint asks a vision model "
        "(ID2_PROMPT_BASE_URL, ID2_PROMPT_MODEL, ID2_PROMPT_API_KEY). empty uses no words.",
        None,
        unset="captions",
        example="prompts.txt",
    )
    guidance: float | None = option(
        "Classifier-free guidance scale.", None, unset="the model's, mostly 7.5", ge=1
    )
    steps: int | None = option("Denoising steps at strength 1.", None, unset="the model's", ge=1)
    size: int | None = option("Side of the translated square, in pixels.", None, unset="the model's", ge=8)
    source: str | None = option("Hub id or directory of other weights for the model.", None)
    revision: str | None = option("Hub revision to pin.", None, unset="the revision pinned for the model")
    part_size: int | None = option(
        "Originals per part. A worker makes one part at a time.", None, unset="512 / --per-image", ge=1
    )
    allow_shrink: bool | None = setting("allow_shrink")
    add_source: bool = option(ADD_SOURCE_HELP, False)

    @property
    def overrides(self) -> Overrides:
        """Options that override the model's row of the table; None where they do not."""
        return {
            "source": self.source,
            "revision": self.revision,
            "strength": self.strength,
            "guidance": self.guidance,
            "steps": self.steps,
            "size": self.size,
        }

    def check(self) -> None:
        """Refuse an unknown model, what is missing (folder, package, prompts), and an unwritable place."""
        from id2core.translation import models

        super().check()
        try:
            models.find(self.model, **self.overrides)
        except TranslatorError as error:
            raise OptionError(str(error)) from error
        checks.require_packages("translate", "transformers")
        checks.require_images(self.images, "images", self.out)
        checks.require_prompts(self.prompts, self.images, self.out)
        checks.require_writable(self.out)


class ScanRequest(SearchRequest, ChannelCorporaRequest):
    """Compare uploads with protected originals; write OUT/report.html, OUT/summary.json and OUT/matches.

    With a calibration every pair gets a verdict: match, review or none. The false-positive rate beside it is
    the share of uploads without an origin that reach that verdict or a stronger one; none has no rate.
    """

    reference: str = option(REFERENCE_HELP, example="gs://corpus/originals")
    queries: str = option(QUERIES_HELP, example="gs://inbox/2026-11")
    out: str = option(OUT_HELP, example="gs://results/2026-11")
    encoder: str | None = setting("encoder")
    transform: str | None = setting("transform")
    views: str | None = setting("views")
    top_k: int | None = setting("top_k")
    calibration: str | None = setting("calibration")
    background: str | None = option(
        SCAN_BACKGROUND_HELP,
        None,
        unset="the one that ships with the calibration",
    )
    truth: str | None = option(
        f"{TRUTH_HELP} The report then has Acc, mAP, µAP and R@P90. A column group adds them for each kind "
        "of upload. With --also, it has them for each channel, and how many origins the one verdict finds.",
        None,
        example="truth.csv",
    )
    index: str | None = setting("index")
    keep: str | None = setting("keep")
    floor_margin: float | None = setting("floor_margin")
    allow_shrink: bool | None = setting("allow_shrink")

    def check(self) -> None:
        """Refuse a missing or empty folder, a bad truth file, and an `out` within a folder of images."""
        super().check()
        checks.require_index(self.settings().index)
        checks.require_faiss()
        checks.require_corpus(self.reference, "reference", self.out)
        checks.require_corpus(self.queries, "queries", self.out, self.mode)
        checks.require_corpus(self.background, "background", self.out)
        checks.require_truth(self.truth)
        checks.require_file(self.calibration, "calibration", CalibrationError)
        self._check_channels(self.out, self._channel_corpora(self.reference, self.queries, self.out))
        checks.require_writable(self.out)


class NightlyRequest(SearchRequest):
    """Scan what a night brings: new uploads, and earlier uploads against new references.

    Each pair of an upload and a reference is scored once, over any number of nights. Re-run to resume.
    """

    reference: list[str] = option(
        "Source of protected originals. Repeat the option for more sources.",
        example=["gs://corpus/originals"],
        min_length=1,
    )
    queries: list[str] = option(
        f"Source of uploads. {_DATE}. Repeat the option for more sources.",
        example=["gs://inbox/{date}"],
        min_length=1,
    )
    out: str = option(OUT_HELP, example="gs://results/nightly")
    encoder: str | None = setting("encoder")
    transform: str | None = setting("transform")
    views: str | None = setting("views")
    top_k: int | None = setting("top_k")
    calibration: str | None = setting("calibration")
    background: str | None = option(
        SCAN_BACKGROUND_HELP,
        None,
        unset="the one that ships with the calibration",
    )
    index: str | None = setting("index")
    keep: str | None = setting("keep")
    floor_margin: float | None = setting("floor_margin")
    back_scan_days: float | None = option(
        "Compare new references with earlier uploads of at most this many days ago.",
        None,
        unset="all",
        ge=0,
        le=defaults.MOST_DAYS,
        example=365.0,
    )
    canary: bool = option(
        "Check that known pairs are found with the settings of the night, in each channel. If they are not, "
        "the night fails.",
        True,
    )
    deadline_hours: float | None = option(
        "Hours after which no further part of the back-scan (new references against earlier uploads) begins. "
        "The next night continues it.",
        None,
        unset="none",
        gt=0,
        example=6.0,
    )
    allow_shrink: bool | None = setting("allow_shrink")

    def check(self) -> None:
        """Refuse a missing folder, and a place that cannot be written."""
        super().check()
        checks.require_index(self.settings().index)
        checks.require_faiss()
        for name, sources, mode in (
            ("reference", self.reference, None),
            ("queries", self.queries, self.mode),
        ):
            for source in sources:
                checks.require_source(source, name, self.out, storage.join(self.out, name), mode)
        checks.require_corpus(self.background, "background", self.out)
        checks.require_file(self.calibration, "calibration", CalibrationError)
        self._check_channels(self.out, {})  # they are sources of images
        checks.require_writable(self.out)


class DemoRequest(Request):
    """Scan the bundled demo: 260 uploads, 100 of them AI translations, against 200 protected tiles.

    The bundled W was trained on translations by mini-a and has never seen one by mini-b.
    """

    out: str = option(OUT_HELP, example="out/demo")

    def check(self) -> None:
        """Refuse a place that cannot be written."""
        checks.require_faiss()
        checks.require_writable(self.out)


class ReportRequest(Request):
    """Write report.html and summary.json of a finished scan again, from its data sets."""

    out: str = option("The --out of a finished scan.", positional=True, example="results")
    max_pairs: int = option("Uploads shown with pictures.", 200, ge=1)

    def check(self) -> None:
        """Refuse a place that holds no finished scan."""
        checks.require_dataset(self.out, "out", "matches")


class JudgeRequest(BeamRequest):
    """Judge the pairs in OUT/matches anew, without a search. Earlier verdicts stay in OUT/verdicts."""

    out: str = option("The --out of a finished scan.", example="results")
    calibration: str | None = option(
        "Calibration to judge by: a file that id2 calibrate wrote, or auto for the bundled one.",
        None,
        unset="needed, unless --back is given",
        example="w/calibration.json",
    )
    back: bool = option("Judge by the calibration before the present one.", False)
    background: str | None = option(
        "Background of the calibration: dataset: and the --out of id2 embed. Needed if some uploads have "
        "never been searched in it.",
        None,
        unset="the one that ships with the calibration, or that of the last scan",
        example="dataset:background-id2",
    )

    also_calibration: str | None = option(
        "Where --out has a second channel, the calibration of that channel: a file that id2 calibrate wrote.",
        None,
        example="pdq.json",
    )
    also_background: str | None = option(
        "Background of the second channel: as --background.",
        None,
        unset="that of the last scan",
        example="dataset:background-pdq",
    )
    joint_calibration: str | None = option(
        "How both channels give one verdict: union (the union bound, at the rates of --calibration) or a "
        "file that id2 calibrate --also wrote.",
        None,
        unset=defaults.UNION,
        example="joint.json",
        needs="also_calibration",
    )

    def check(self) -> None:
        """Refuse a place without matches, and a missing file; one of calibration and back is needed."""
        super().check()
        if (self.calibration is None) is not self.back:
            raise OptionError("give either --calibration with a file or --back")
        if self.back and (self.also_calibration or self.joint_calibration):
            raise OptionError("--back takes the calibrations of before: leave those of the channels out")
        checks.require_dataset(self.out, "out", "matches")
        checks.require_file(self.calibration, "calibration", CalibrationError)
        checks.require_file(self.also_calibration, "also-calibration", CalibrationError, "")
        _require_joint(self.joint_calibration)
        checks.require_corpus(self.background, "background", self.out)
        checks.require_corpus(self.also_background, "also-background", self.out)
        checks.require_writable(self.out)


class ReprojectRequest(BeamRequest):
    """Give the corpora below an --out descriptors of another W, from their latents. No image is read.

    The descriptors stay in OUT/reprojected until --switch puts them in use. Re-run to bring them up to date.
    Corpora that you gave as dataset: are in another --out. Repeat the command there.
    """

    out: str = option("The --out of a scan, of nightly runs, or of id2 embed.", example="results")
    transform: str = option(
        "The other W: a file of id2 train, local or gs://, auto for the bundled W of the encoder, or none "
        "for raw latents.",
        example="w/W.safetensors",
    )
    switch: bool = option(
        "Put the new descriptors in use. From then on, runs need this W as --transform and search "
        "all pairs with it.",
        False,
    )
    drop: bool = option("Remove the descriptors of this W from OUT/reprojected.", False)

    def check(self) -> None:
        """Refuse a place in which nothing has run, and a missing file."""
        super().check()
        if self.switch and self.drop:
            raise OptionError("give either --switch or --drop")
        checks.require_file(self.transform, "transform", TransformError)
        checks.require_runs(self.out)
        checks.require_writable(self.out)


class IndexRequest(BeamRequest):
    """Build a compressed index of the references below an --out, and measure what it finds.

    A worker then holds some 150 bytes of a reference in place of 2,200, and a search misses a few of the best
    references. The best by codes are scored exactly. Re-run to bring the index up to date. A scan or a night
    with this --index does so for the references in its own --out. For references that it takes as dataset:,
    run this command with the --out that they are in.
    """

    out: str = option("The --out of a scan, of nightly runs, or of id2 embed.", example="results")
    index: str = option(
        "FAISS string: a rotation (RRn, PCARn, or OPQg_n, to n numbers), lists (IVFn), and a code (RaBitQ: a "
        "bit for each number, PQgx4: 4 bits for each of g groups, or PQgnp: 8 bits). Take about as many "
        "lists as the square root of the references that a worker holds. docs/indexes.md has strings for "
        "descriptors of 256, 480, and 512 numbers.",
        example="RR448,IVF2048,RaBitQ",
    )
    index_recall: float | None = setting("index_recall")
    shard_memory: int | None = setting("shard_memory")
    anew: bool = option("Train a new model, and encode all references by it.", False)

    def check(self) -> None:
        """Refuse a string that is of no compressed index, and a place in which nothing has run."""
        super().check()
        checks.require_compressed(self.index)
        checks.require_faiss()
        checks.require_runs(self.out)
        checks.require_writable(self.out)


class CompactRequest(Request):
    """Merge small files of all data sets below an --out, and remove superseded ones after ID2_LEFTOVER_HOURS.

    Corpora that you gave as dataset: are in another --out. Repeat the command there.
    """

    out: str = option("The --out of a scan, of nightly runs, or of id2 embed.", example="results")
    everything: bool = option("Merge all files below 64 MiB, however few there are.", False)

    def check(self) -> None:
        """Refuse a place that is not there or cannot be written."""
        super().check()
        checks.require_runs(self.out)
        checks.require_writable(self.out)


class TakedownRequest(Request):
    """Remove pictures from everything below an --out, and refuse the same bytes from now on.

    Corpora that you gave as dataset: are in another --out. Repeat the command there.
    """

    out: str = option("The --out of a scan, of nightly runs, or of id2 embed.", example="results")
    image_id: list[str] = option(
        "SHA-256 of the picture's file. Repeat the option for more.", [], example=["9f86d081…"]
    )
    uri: list[str] = option(
        "URI of the picture, as in matches/ and embeddings/. Removes every picture that is or was at it.",
        [],
        example=["gs://corpus/originals/1.jpg"],
    )
    reason: str | None = option(
        "Why, for the audit row in OUT/takedowns.", None, example="request 4711", max_length=1000
    )
    reinstate: bool = option("Admit the picture again. The next run that finds it embeds it.", False)

    def check(self) -> None:
        """Refuse a request without a picture, what is no SHA-256, and a place in which nothing has run."""
        super().check()
        if not self.image_id and not self.uri:
            raise OptionError("give --image-id or --uri")
        for image_id in self.image_id:
            if not re.fullmatch("[0-9a-fA-F]{64}", image_id):
                raise OptionError(f"--image-id {image_id}: the SHA-256 of a file has 64 hexadecimal digits")
        checks.require_runs(self.out)
        checks.require_writable(self.out)


class DoctorRequest(Request):
    """Check all data sets below an --out, with segments, the ledger, and indexes. Changes nothing.

    Without --out, id2 doctor prints what is installed.
    """

    out: str = option("The --out of a scan, of nightly runs, or of id2 embed.", example="results")
    rebuild: bool = option(
        "If the commit of OUT/matches is lost or damaged, build it again from the files and OUT/ledger.",
        False,
    )

    def check(self) -> None:
        """Refuse a place that is not there."""
        super().check()
        storage.require(storage.normalize(self.out))


# Counts are floats, so that a command line takes 1e9. The largest is more than any corpus.
_MOST = 1e15


class EstimateRequest(Request):
    """Estimate machine hours, wall time, bytes, and cost of a corpus, from measured unit rates.

    Reads no picture. What depends on a rate that was never measured is shown as not measured.
    """

    references: float = option("Reference pictures, such as 1e9.", ge=1, le=_MOST, example="1e9")
    queries: float = option("Uploads in a night, such as 1e7.", ge=1, le=_MOST, example="1e7")
    new_references: float = option(
        "References that a night adds. They are searched among the uploads of all nights that are kept.",
        0,
        ge=0,
        le=_MOST,
        example="1e5",
    )
    nights: int = option("Nights whose uploads are kept.", 30, ge=1, le=defaults.MOST_DAYS)
    engine: Literal["local", "flink", "spark", "dataflow"] = option(
        "What runs the jobs. local is one process on one machine.", "local"
    )
    gpu: str | None = option(
        "GPU of each worker, or none. The h100 was measured, and the search on an h200.",
        None,
        unset="none",
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        example="h100",
    )
    workers: float | None = option(
        "Workers of a job, all alike. local has one.", None, unset="1", ge=1, le=1e6, example=100
    )
    hours: float | None = option(
        "Target wall time of each stage, in hours. Replaces --workers.", None, gt=0, example=8
    )
    vcpus: int | None = option(
        "Cores of a worker.", None, unset="those of the machine that was measured", ge=1, le=1024, example=8
    )
    shard_memory: int | None = setting("shard_memory")
    encoder: str | None = setting("encoder")
    views: str | None = setting("views")
    background: float = option(
        "Pictures of a background that uploads of a night are also compared with. The bundled one has 1,000.",
        0,
        ge=0,
        le=_MOST,
        example=1000,
    )
    index: str | None = setting("index")
    probes: int | None = option(
        "Lists of a compressed index that each upload is compared with, as id2 index reports them.",
        None,
        unset=str(defaults.INDEX_PROBES),
        ge=1,
        le=defaults.MOST_PROBES,
        example=32,
    )
    candidates: int | None = option(
        "Best codes of an upload in a shard that are scored exactly, as id2 index reports them (depth).",
        None,
        unset=str(defaults.INDEX_CANDIDATES),
        ge=1,
        le=defaults.MOST_CANDIDATES,
        example=800,
    )
    latent: int | None = option(
        "Numbers in a latent.", None, unset="those of mini or pdq, or 4096", ge=1, le=10**7, example=4096
    )
    dimension: int | None = option(
        "Numbers in a descriptor.", None, unset="those of mini or pdq, or 512", ge=1, le=10**6, example=512
    )
    megapixels: float = option(
        "Megapixels of an average picture. 0.2 is 512×384, the picture of the rates.", 0.2, gt=0, le=1000
    )
    top_k: int | None = setting("top_k")
    steps: float = option("Steps of gradient descent for W, by default the paper's.", 50_000, ge=1, le=_MOST)
    gpu_hour_price: float | None = option(
        "Price of an hour of a GPU. Without prices, no cost is shown.", None, ge=0, example=3.5
    )
    vcpu_hour_price: float | None = option("Price of an hour of a core.", None, ge=0, example=0.05)
    gb_month_price: float | None = option("Price of 10⁹ stored bytes a month.", None, ge=0, example=0.02)
    rates: str | None = option(
        "File of unit rates that `python -m benchmarks.rates` wrote.", None, unset="the bundled one"
    )

    @property
    def card(self) -> str | None:
        """The GPU of each worker; None for none."""
        return None if self.gpu == "none" else self.gpu

    def check(self) -> None:
        """Refuse broken counts, and options that exclude or need one another."""
        super().check()
        index = self.settings().index
        checks.require_index(index)
        if index == defaults.INDEX and (self.probes or self.candidates):
            raise OptionError("--probes and --candidates are of a compressed index: give --index, too")
        counts = ("references", "queries", "new_references", "background", "workers", "steps")
        for name in counts:
            value = getattr(self, name)
            if value is not None and not float(value).is_integer():
                raise OptionError(f"{name} is {value:g}: give a whole number")
        if self.workers and self.hours:
            raise OptionError("give either --workers or --hours")
        if self.engine == "local" and (self.hours or (self.workers or 1) > 1):
            raise OptionError("local has one worker: give --engine flink, spark or dataflow")
        if self.card is None and self.gpu_hour_price is not None:
            raise OptionError("--gpu-hour-price goes with --gpu")
        if self.card and (self.gpu_hour_price is None) != (self.vcpu_hour_price is None):
            raise OptionError(
                "workers have cores and a GPU: give both --gpu-hour-price and --vcpu-hour-price"
            )


class TrainRequest(Request, GradientConfig):
    """Train W from stored latents; write OUT/W.safetensors and OUT/report.json. Re-run to resume."""

    embeddings: list[str] = option(
        "Data set of id2 embed (or its --out), of originals or of translations. Give all of them.",
        example=["originals-id2", "translated-id2"],
        min_length=1,
    )
    translations: list[str] = option(
        f"{TRANSLATIONS_HELP} Give all of them.", example=["translated"], min_length=1
    )
    out: str = option(
        "Local folder of W, the report, and checkpoints. Re-run with the same folder to resume.", example="w"
    )
    method: Literal["closed-form", "gradient", "both"] = option(
        "How W is found. gradient is the paper's gradient descent. closed-form is LDA with shrinkage and "
        "takes seconds. both runs gradient descent from the closed form.",
        "gradient",
    )
    shrinkage: Shrinkage = None
    device: str | None = setting("device")
    cache: str | None = option(
        "Local folder of the latents in training order, 2 bytes per number. Trainings on the same data can "
        "share it.",
        None,
        unset="OUT/cache",
    )

    def check(self) -> None:
        """Refuse options that exclude one another, and data sets that are not there."""
        checks.require_local(self.out, TrainError)
        for uri in self.embeddings:
            checks.require_dataset(uri, "embeddings", "embeddings")
        for uri in self.translations:
            checks.require_dataset(uri, "translations", "translations")
        shared = {"dimensions", "validation_share"}
        given = sorted(self.model_fields_set & set(GradientConfig.model_fields) - shared)
        if self.method == "closed-form" and given:
            raise OptionError(f"{', '.join(given)}: not for the closed form, which has no gradient descent")
        if self.method == "gradient" and self.shrinkage is not None:
            raise OptionError("a shrinkage is for the closed form: choose the method closed-form or both")
        if self.method == "both" and self.head != "linear":
            raise OptionError(f"a closed form starts a linear W, not {self.head}: choose the method gradient")
        checks.require_writable(self.out)


class FinetuneRequest(Request, FinetuneConfig):
    """Train a whole vision backbone on pictures instead of W; print the directory that --encoder takes."""

    originals: str = option("Folder of the pictures that were translated.", example="originals")
    translations: list[str] = option(
        f"{TRANSLATIONS_HELP} Give all of them.", example=["translated"], min_length=1
    )
    out: str = option(
        "Local folder of the backbone and checkpoints. Re-run with the same folder to resume.",
        example="tuned",
    )
    device: str | None = setting("device")
    checkpoint_every: int = option(
        "Steps between checkpoints. A killed training repeats at most this many.", 250, ge=1
    )

    def check(self) -> None:
        """Refuse a remote `out` and folders that are not there."""
        checks.require_local(self.out, FinetuneError)
        checks.require_images(self.originals, "originals")
        for uri in self.translations:
            checks.require_dataset(uri, "translations", "translations")
        checks.require_writable(self.out)


class CalibrateRequest(ChannelCorporaRequest):
    """Find score thresholds for stated false-positive rates. id2 scan judges by them.

    With a second encoder, it also writes a joint calibration: one verdict of both, at a measured rate.
    """

    reference: str = option(REFERENCE_HELP, example="dataset:originals-id2")
    queries: str = option(QUERIES_HELP, example="old-uploads")
    match: float = option(
        "False-positive rate of the verdict match: the share of uploads without an origin that get it.",
        gt=0,
        lt=1,
        example=0.001,
    )
    review: float = option(
        "False-positive rate of the verdicts review and match together. It is at least that of match.",
        gt=0,
        lt=1,
        example=0.01,
    )
    out: str | None = option(
        "JSON file of the calibration. Images are embedded into NAME-data beside it.",
        None,
        unset="needed, unless --calibration is given",
        example="w/calibration.json",
    )
    joint_out: str | None = option(
        "With --also, JSON file of the joint calibration, for id2 scan --joint-calibration. --match and "
        "--review are then the rates of an upload over both channels.",
        None,
        example="joint.json",
        needs="also",
    )
    also_weight: float | None = option(
        "Share of the false-positive rate that the second channel gets. The first gets the rest. A smaller "
        "share is a higher threshold.",
        None,
        unset="0.5",
        gt=0,
        lt=1,
        example=0.2,
        needs="also",
    )
    calibration: str | None = option(
        "A calibration of the first channel to take as it is, so that only the joint one is made: a file, or "
        "auto for the one that ships with W. Needs --also. Images are embedded into NAME-data beside "
        "--joint-out.",
        None,
        unset="a new one, written to --out",
        example="auto",
        needs="also",
    )
    for_references: float | None = option(
        "Choose thresholds for a corpus of this many references, such as 1e6. A smaller corpus then has the "
        "same thresholds and lower rates. For a larger one, thresholds rise.",
        None,
        unset="the size of --reference",
        ge=1,
        le=1e15,
        example=1e6,
    )
    transform: str | None = setting("transform")
    views: str | None = setting("views")
    truth: str | None = option(
        f"{TRUTH_HELP} Uploads that the file does not name do not count.",
        None,
        unset="no upload has an origin",
        example="truth.csv",
    )
    background: str | None = option(BACKGROUND_HELP, None, example="dataset:background-id2")
    factor: float | None = option(
        "Share of the background that is subtracted.", None, unset="tuned on 30% of the uploads", gt=0
    )
    k: int | None = option(
        "Background scores that are averaged.", None, unset="tuned on 30% of the uploads", ge=1
    )
    encoder: str | None = setting("encoder")
    credentials: str | None = setting("credentials")
    allow_shrink: bool | None = setting("allow_shrink")

    def check(self) -> None:
        """Refuse rates out of order, background options without a background, and missing places."""
        super().check()
        if self.match > self.review:
            raise OptionError(f"the rates must be 0 < match ≤ review < 1, not {self.match} and {self.review}")
        if self.background is None and (self.factor is not None or self.k is not None):
            raise OptionError("factor and k are for normalizing scores by a background: give --background")
        self._check_files()
        checks.require_faiss()
        data = self.data
        self._check_channel(data, self._channel_corpora(self.reference, self.queries, data))
        for uri, name in (
            (self.reference, "reference"),
            (self.queries, "queries"),
            (self.background, "background"),
        ):
            checks.require_corpus(uri, name, data)
        checks.require_truth(self.truth)
        for file in filter(None, (self.out, self.joint_out)):
            checks.require_writable(file, is_file=True)

    @property
    def data(self) -> str:
        """Return the folder that images are embedded into."""
        return f"{str(self.out or self.joint_out).removesuffix('.json')}-data"

    @property
    def weights(self) -> tuple[float, float]:
        """Return the weights of both channels."""
        weight = 0.5 if self.also_weight is None else self.also_weight
        return 1 - weight, weight

    def _check_files(self) -> None:
        """Refuse files that are not written or read, and a calibration that is given and would be made."""
        if self.also and not self.joint_out:
            raise OptionError("--also makes a joint calibration: give --joint-out, the file that it goes to")
        if (self.out is None) is (self.calibration is None):
            raise OptionError(
                "give --out, the file that a new calibration goes to, or --calibration with --also for one "
                "that is there"
            )
        files = [f for f in (self.out, self.joint_out, self.calibration, self.also_calibration) if f]
        if twice := [file for file in files if files.count(file) > 1]:
            raise OptionError(f"{twice[0]} is given for two calibrations: give each a file of its own")
        if self.calibration:
            self._check_given()

    def _check_given(self) -> None:
        """Refuse a calibration that is not there, and options of a new one beside it."""
        if self.calibration == defaults.NONE:
            raise OptionError("--calibration none is no calibration: give a file, or auto")
        for name in ("factor", "k", "for_references"):
            if getattr(self, name) is not None:
                raise OptionError(
                    f"{flag_of(name)} is for a new calibration, and --calibration gives one: "
                    "leave one of them out"
                )
        checks.require_file(self.calibration, "calibration", CalibrationError)


class EvaluateRequest(BeamRequest):
    """Measure mAP, Acc, recall, µAP and R@P90 with 95% intervals; compare transforms on the same uploads."""

    reference: str = option(REFERENCE_HELP, example="dataset:originals-id2")
    queries: str = option(QUERIES_HELP, example="dataset:translated-id2")
    truth: str = option(
        f"{TRUTH_HELP} Uploads that the file does not name do not count.",
        example="translated/truth.csv",
    )
    out: str = option("Where metrics.json, metrics.parquet and metrics.md go.", example="measured")
    transform: list[str] = option(
        "W: a file, auto, or none. Give several to compare them.",
        [],
        unset="ID2_TRANSFORM or auto",
        example=["w/W.safetensors", "none"],
    )
    encoder: str | None = setting("encoder")
    credentials: str | None = setting("credentials")
    views: str | None = setting("views")
    background: str | None = option(BACKGROUND_HELP, None, unset="the one that ships with the calibration")
    calibration: str | None = option(
        "Calibration whose false-positive rates are measured: a file that id2 calibrate wrote, or auto for "
        "the bundled one.",
        None,
        example="w/calibration.json",
    )
    top_k: int | None = setting("top_k")
    allow_shrink: bool | None = setting("allow_shrink")

    def check(self) -> None:
        """Refuse a missing folder, and a truth file without the columns that are needed."""
        super().check()
        checks.require_faiss()
        for uri, name in (
            (self.reference, "reference"),
            (self.queries, "queries"),
            (self.background, "background"),
        ):
            checks.require_corpus(uri, name, self.out)
        checks.require_truth(self.truth)
        checks.require_file(self.calibration, "calibration", CalibrationError)
        checks.require_writable(self.out)


class CheckCalibrationRequest(Request):
    """Check that a calibration still holds, on uploads whose origin is known. Fail if it does not.

    The measured false-positive rates must agree with the stated ones, and Acc must not be below that of the
    last check of the same uploads. It embeds all pictures again, so the check covers the encoder too.
    """

    out: str = option("Where check.json goes, which the next check compares with.", example="gs://id2/check")
    reference: str | None = option(REFERENCE_HELP, None, unset="the demo's")
    queries: str | None = option(QUERIES_HELP, None, unset="the demo's")
    truth: str | None = option(
        f"{TRUTH_HELP} Uploads that the file does not name do not count.", None, unset="the demo's"
    )
    encoder: str | None = setting("encoder")
    credentials: str | None = setting("credentials")
    transform: str | None = setting("transform")
    views: str | None = setting("views")
    calibration: str | None = setting("calibration")
    background: str | None = option(BACKGROUND_HELP, None, unset="the one that ships with the calibration")

    def check(self) -> None:
        """Refuse labeled pairs that are named in part, and places that are missing."""
        super().check()
        checks.require_faiss()
        given = [self.reference, self.queries, self.truth]
        if any(given) and not all(given):
            raise OptionError("give --reference, --queries and --truth together, or none of them")
        if self.settings().calibration == "none":
            raise OptionError("there is no calibration to check: give --calibration")
        for uri, name in (
            (self.reference, "reference"),
            (self.queries, "queries"),
            (self.background, "background"),
        ):
            checks.require_corpus(uri, name, self.out)
        checks.require_truth(self.truth)
        checks.require_file(self.calibration, "calibration", CalibrationError)
        checks.require_writable(self.out)


class ImportOripidRequest(Request):
    """Make OUT/embeddings, OUT/rejects and OUT/translations of OriPID's latents. id2 train takes OUT."""

    features: str = option(
        "Folder or gs:// prefix of OriPID's training features. Each picture has one .npy file: "
        "T000000_0.npy for the origin, T000000_1.npy and so on for its translations.",
        example="sd2_d_multi_feature",
    )
    out: str = option(OUT_HELP, example="oripid")
    encoder_id: str = option(
        "Encoder of the latents. NAME-sample means samples of the posterior of the encoder NAME. A W that is "
        "trained on them fits --encoder NAME.",
        "sd2-sample",
    )
    transform: str | None = option(
        "W of the descriptors to write, for a search among these latents. none writes raw latents as "
        "descriptors, 16 kB each. Training reads no descriptors.",
        None,
        unset="no descriptors",
    )
    latent_size: int = option("Numbers in a latent.", 4096, ge=1)
    allow_shrink: bool | None = setting("allow_shrink")

    def check(self) -> None:
        """Refuse a folder of features that is missing or empty, and a place that cannot be written."""
        checks.require_images(self.features, "features", self.out)
        checks.require_writable(self.out)


class ExperimentDataRequest(Request):
    """Make an evaluation set for experiments, from photos or from a downloaded OriPID."""

    data: str = option("Local folder of the evaluation set, about 4 GB.", example="bench")
    photos: str | None = option(
        "Folder of 3,500 photos or more, with a captions.csv.", None, example="photos"
    )
    oripid: str | None = option(
        "Folder of the downloaded and unpacked OriPID, with sd2_d_multi_feature, references and "
        "queries/MODEL. Replaces --photos.",
        None,
        example="OriPID",
    )
    features: str | None = option(
        "Folder of OriPID's training latents. Needs --oripid.", None, unset="below the folder of OriPID"
    )
    seed_edits: str | None = option(
        "Folder of the unpacked SEED-Data-Edit, which has edits by people. Needs --oripid.", None
    )
    encoder: str | None = option(
        "Encoder of the evaluation set. With --name, another encoder beside the first, for Tables 2, 4 and "
        "5. With --photos, the first encoder is mini.",
        None,
        unset="mini; sd2 with oripid",
    )
    name: str = option("Name of that other encoder in tables.", "", example="pdq")

    def check(self) -> None:
        """Refuse sources that exclude one another, or that need another option."""
        if bool(self.photos) == bool(self.oripid):
            raise OptionError("give --photos or --oripid, one of them")
        if (self.name and not self.encoder) or (self.photos and self.encoder and not self.name):
            raise OptionError("give --encoder and --name together")
        if (self.features or self.seed_edits) and not self.oripid:
            raise OptionError("--features and --seed-edits go with --oripid")
        if self.features and self.name:
            raise OptionError(
                "--features are of the first encoder, and there are none of another: leave out --features, "
                "or --name"
            )
        checks.require_packages("translate", "transformers")
        for uri, what in (
            (self.photos, "photos"),
            (self.oripid, "oripid"),
            (self.features, "features"),
            (self.seed_edits, "seed-edits"),
        ):
            checks.require_images(uri, what)


# The experiment that takes a second encoder.
_TWO = "uploads-two"


class ExperimentRequest(Request):
    """Measure what the paper measures, on OriPID or on an evaluation set by the bundled models."""

    names: list[str] = option(
        "Names of experiments, or all. `id2 experiment list` shows them.",
        positional=True,
        min_length=1,
        example=["t3", "open"],
    )
    data: str = option("Folder that `id2 experiment data` filled.", example="bench")
    out: str = option("Where tables and plots go.", "results")
    page: str | None = option("Markdown file to join all results in.", None, example="results.md")
    passes: float | None = option(
        "Passes that every gradient descent makes over the training data.",
        None,
        unset="as many as the paper makes, 12.2",
        gt=0,
        example=3.0,
    )
    also: str | None = option(
        "A second encoder for the experiment uploads-two: as --encoder of a scan.",
        None,
        unset="uploads-two is skipped",
        example="sscd.onnx",
        min_length=1,
    )

    def check(self) -> None:
        """Refuse an unknown experiment, a missing package, and a folder that was not filled."""
        from id2core.experiments import registry

        try:
            chosen = registry.select(self.names)
        except ExperimentError as error:
            raise OptionError(str(error)) from error
        if self.also and _TWO not in chosen:
            raise OptionError(f"--also is for the experiment {_TWO}: name it, too, or leave --also out")
        checks.require_packages("experiments", "matplotlib")
        checks.require_evaluation_set(self.data)
        checks.require_writable(self.out)
