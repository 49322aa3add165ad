"""What can be asked of ID²: one request for each function, command and flow. Nothing here loads torch."""

from __future__ import annotations

from typing import Any, Literal

from id2 import checks
from id2.options import BeamRequest, Request, option, setting
from id2core.errors import (
    CalibrationError,
    ExperimentError,
    FinetuneError,
    OptionError,
    TrainError,
    TranslatorError,
)
from id2core.training.config import FinetuneConfig, GradientConfig, Shrinkage
from id2core.translation.config import TranslationConfig

OUT_HELP = "Where results go: a folder or gs:// prefix. Run again with the same one to resume."
REFERENCE_HELP = "Protected originals: a folder or gs:// prefix of images, or an embeddings data set."
QUERIES_HELP = "Uploads: a folder or gs:// prefix of images, or an embeddings data set."
BACKGROUND_HELP = (
    "Pictures that are neither references nor copies of them: a folder of images, or an embeddings data "
    "set. What an upload scores against them is subtracted from its scores."
)
TRANSLATIONS_HELP = "Data set of id2 translate (or its --out): which picture is a translation of which."


class EmbedRequest(BeamRequest):
    """Embed images into OUT/embeddings and OUT/rejects. Images that have a row are not read again."""

    images: str = option("Images: a folder or gs:// prefix.", example="gs://corpus/originals")
    out: str = option(OUT_HELP, example="gs://corpus/id2")
    encoder: str | None = setting("encoder")
    transform: str | None = setting("transform")
    part_size: int | None = setting("part_size")

    def check(self) -> None:
        """Refuse a missing folder and a place that cannot be written."""
        super().check()
        checks.require_images(self.images, "images", self.out)
        checks.require_writable(self.out)


class TranslateRequest(BeamRequest, TranslationConfig):
    """Translate originals with a diffusion model; write OUT/pictures, OUT/translations and OUT/truth.csv."""

    images: str = option("Originals: a folder or gs:// prefix of images.", example="originals")
    model: str = option(
        "Diffusion model: mini-a or mini-b (bundled); sd2, sdxl, opendalle, colorfulxl, kandinsky3, sd3, "
        "kolors, instruct-pix2pix, ip-adapter, edict or plug-and-play (from the model hub); a directory "
        "that diffusers saved; or a hub id owner/name[@revision].",
        example="mini-a",
    )
    out: str = option(OUT_HELP, example="translated")
    strength: float | None = option(
        "Share of noise that is added, above 0, up to 1.",
        None,
        unset="the paper's where it gives one, else 0.8",
        gt=0,
        le=1,
    )
    prompts: str | None = option(
        "Where prompts come from: a .csv, .parquet or .jsonl file with columns uri and prompt; a .txt file "
        "with one prompt a line; captions (captions.csv in or beside the images); endpoint (a vision "
        "model, named by ID2_PROMPT_BASE_URL, ID2_PROMPT_MODEL and ID2_PROMPT_API_KEY); or empty.",
        None,
        unset="captions",
        example="prompts.txt",
    )
    guidance: float | None = option(
        "Classifier-free guidance scale.", None, unset="the model's, mostly 7.5", ge=1
    )
    steps: int | None = option("Denoising steps at strength 1.", None, unset="the model's", ge=1)
    size: int | None = option("Side of the translated square, in pixels.", None, unset="the model's", ge=8)
    source: str | None = option("Hub id or directory to take the model's weights from instead.", None)
    revision: str | None = option("Hub revision to pin.", None, unset="the one that is pinned for the model")
    part_size: int | None = option(
        "Originals per part. A killed run repeats at most one part per worker.", None, unset="64", ge=1
    )

    @property
    def overrides(self) -> dict[str, Any]:
        """Options that override the model's row of the table; None where they do not."""
        names = ("source", "revision", "strength", "guidance", "steps", "size")
        return {name: getattr(self, name) for name in names}

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


class ScanRequest(BeamRequest):
    """Compare uploads with protected originals; write OUT/report.html, OUT/summary.json and OUT/matches.

    With a calibration every pair gets a verdict: match, review or none. The false-positive rate beside it is
    the share of uploads without an origin that would get the same verdict.
    """

    reference: str = option(REFERENCE_HELP, example="gs://corpus/originals")
    queries: str = option(QUERIES_HELP, example="gs://inbox/2026-11")
    out: str = option(OUT_HELP, example="gs://results/2026-11")
    encoder: str | None = setting("encoder")
    transform: str | None = setting("transform")
    top_k: int | None = setting("top_k")
    calibration: str | None = setting("calibration")
    background: str | None = option(
        f"{BACKGROUND_HELP} A calibration that was made with a background needs the same one.",
        None,
        unset="the one that ships with the calibration",
    )
    truth: str | None = option(
        "Truth file: CSV or Parquet with columns query_uri and reference_uri (empty where the upload has "
        "no origin). Adds Acc, mAP, µAP and R@P90 to the report; a column group adds them for each kind of "
        "upload.",
        None,
        example="truth.csv",
    )
    index: str | None = setting("index")

    def check(self) -> None:
        """Refuse a missing or empty folder, a bad truth file, and an `out` within a folder of images."""
        super().check()
        checks.require_index(self.settings().index)
        checks.require_faiss()
        checks.require_corpus(self.reference, "reference", self.out)
        checks.require_corpus(self.queries, "queries", self.out)
        checks.require_corpus(self.background, "background", self.out)
        checks.require_truth(self.truth)
        checks.require_file(self.calibration, "calibration", CalibrationError)
        checks.require_writable(self.out)


class DemoRequest(Request):
    """Scan the bundled demo: 200 uploads, 80 of them AI translations, against 200 protected tiles.

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
    max_pairs: int = option("Uploads that are shown with pictures.", 200, ge=1)

    def check(self) -> None:
        """Refuse a place that is not there."""
        checks.require_dataset(self.out, "out", "matches")


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
        "Local folder of W, the report, and checkpoints. Run again with the same one to resume.", example="w"
    )
    method: Literal["closed-form", "gradient", "both"] = option(
        "gradient (the paper's), closed-form (LDA with shrinkage; takes seconds), or both: gradient "
        "descent that starts at the closed form.",
        "gradient",
    )
    shrinkage: Shrinkage = None
    device: str | None = setting("device")
    cache: str | None = option(
        "Local folder of the latents in training order, 2 bytes a number. Trainings on the same data share "
        "it.",
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
    """Train a whole vision backbone on pictures, a rival of W; print the directory that --encoder takes."""

    originals: str = option("Folder of the pictures that were translated.", example="originals")
    translations: list[str] = option(
        f"{TRANSLATIONS_HELP} Give all of them.", example=["translated"], min_length=1
    )
    out: str = option(
        "Local folder of the backbone and checkpoints. Run again with the same one to resume.",
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


class CalibrateRequest(BeamRequest):
    """Find the scores that a stated share of uploads without origin reaches. id2 scan judges by them."""

    reference: str = option(REFERENCE_HELP, example="originals-id2")
    queries: str = option(QUERIES_HELP, example="old-uploads")
    match: float = option(
        "False-positive rate of the verdict match: a share of the uploads without origin.",
        gt=0,
        lt=1,
        example=0.001,
    )
    review: float = option(
        "False-positive rate of the verdict review or match; at least that of match.",
        gt=0,
        lt=1,
        example=0.01,
    )
    out: str = option(
        "JSON file that is written. Images are embedded beside it, into NAME-data.",
        example="w/calibration.json",
    )
    transform: str | None = setting("transform")
    truth: str | None = option(
        "Truth file: CSV or Parquet with columns query_uri and reference_uri. Uploads with an empty "
        "reference have no origin; uploads that it does not name do not count.",
        None,
        unset="no upload has an origin",
        example="truth.csv",
    )
    background: str | None = option(BACKGROUND_HELP, None, example="background-id2")
    factor: float | None = option(
        "Share of the background that is subtracted.", None, unset="tuned on 30% of the uploads", gt=0
    )
    k: int | None = option(
        "Background scores that are averaged.", None, unset="tuned on 30% of the uploads", ge=1
    )
    encoder: str | None = setting("encoder")

    def check(self) -> None:
        """Refuse rates and places that cannot be."""
        super().check()
        if self.match > self.review:
            raise OptionError(f"the rates must be 0 < match ≤ review < 1, not {self.match} and {self.review}")
        if self.background is None and (self.factor is not None or self.k is not None):
            raise OptionError("factor and k are for normalizing scores by a background: give --background")
        checks.require_faiss()
        data = f"{self.out.removesuffix('.json')}-data"
        for uri, name in (
            (self.reference, "reference"),
            (self.queries, "queries"),
            (self.background, "background"),
        ):
            checks.require_corpus(uri, name, data)
        checks.require_truth(self.truth)
        checks.require_writable(self.out, is_file=True)


class EvaluateRequest(BeamRequest):
    """Measure mAP, Acc, recall, µAP and R@P90 with 95% intervals; compare transforms on the same uploads."""

    reference: str = option(REFERENCE_HELP, example="originals-id2")
    queries: str = option(QUERIES_HELP, example="translated-id2")
    truth: str = option(
        "Truth file: CSV or Parquet with columns query_uri and reference_uri (empty where the upload has "
        "no origin). Uploads that it does not name do not count.",
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
    background: str | None = option(BACKGROUND_HELP, None, unset="the one that ships with the calibration")
    calibration: str | None = option(
        "Thresholds whose rates are measured too: a file that id2 calibrate wrote, or auto for the ones "
        "that ship.",
        None,
        example="w/calibration.json",
    )
    top_k: int | None = setting("top_k")

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


class ImportOripidRequest(Request):
    """Make OUT/embeddings, OUT/rejects and OUT/translations of OriPID's latents. id2 train takes OUT."""

    features: str = option(
        "Folder or gs:// prefix of OriPID's training features: one .npy file a picture, T000000_0.npy for "
        "the origin, T000000_1.npy and so on for its translations.",
        example="sd2_d_multi_feature",
    )
    out: str = option(OUT_HELP, example="oripid")
    encoder_id: str = option(
        "What made the latents. NAME-sample stands for samples of the posterior of the encoder NAME; a W "
        "that is trained on them fits --encoder NAME.",
        "sd2-sample",
    )
    transform: str | None = option(
        "W of descriptors that are written too, for a search among these latents; none for raw latents, 16 "
        "kB each. Training reads no descriptors.",
        None,
        unset="no descriptors",
    )
    latent_size: int = option("Numbers in a latent.", 4096, ge=1)

    def check(self) -> None:
        """Refuse a missing folder."""
        checks.require_images(self.features, "features", self.out)
        checks.require_writable(self.out)


class ExperimentDataRequest(Request):
    """Make what experiments are measured on: a small OriPID from photos, or the real one."""

    data: str = option("Local folder that is filled; about 4 GB.", example="bench")
    photos: str | None = option(
        "Folder of 3,500 photos or more, with a captions.csv.", None, example="photos"
    )
    oripid: str | None = option(
        "Instead of photos: OriPID as downloaded and unpacked, with sd2_d_multi_feature, references and "
        "queries/MODEL.",
        None,
        example="OriPID",
    )
    features: str | None = option("With oripid: its training latents, where they are not below it.", None)
    seed_edits: str | None = option("With oripid: SEED-Data-Edit, unpacked, for edits by people.", None)
    encoder: str | None = option(
        "With name: an encoder beside the first, for Tables 2, 4 and 5. Without name, with oripid: the "
        "first.",
        None,
        unset="mini; sd2 with oripid",
    )
    name: str = option("What that encoder is called in tables.", "", example="pdq")

    def check(self) -> None:
        """Refuse sources that do not go together."""
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


class ExperimentRequest(Request):
    """Measure what the paper measures, on OriPID or on a small one that the bundled models made."""

    names: list[str] = option(
        "Experiments, or all. `id2 experiment list` names them.",
        positional=True,
        min_length=1,
        example=["t3", "open"],
    )
    data: str = option("Folder that `id2 experiment data` filled.", example="bench")
    out: str = option("Where tables and plots go.", "results")
    page: str | None = option("Markdown file to join all results in.", None, example="results.md")
    passes: float | None = option(
        "Passes over the training data of every gradient descent.",
        None,
        unset="as many as the paper makes, 12.2",
        gt=0,
        example=3.0,
    )

    def check(self) -> None:
        """Refuse an unknown experiment, a missing package, and a folder that was not filled."""
        from id2core.experiments import registry

        try:
            registry.select(self.names)
        except ExperimentError as error:
            raise OptionError(str(error)) from error
        checks.require_packages("experiments", "matplotlib")
        checks.require_evaluation_set(self.data)
        checks.require_writable(self.out)
