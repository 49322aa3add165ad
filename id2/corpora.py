"""Corpora: images, or a data set that is embedded already; and pairs of them that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Unpack

from id2.stages import stage
from id2core.encoders import embedding
from id2core.encoders.embed_job import EmbedJob, EmbedResult, Feed, finished, plan_embed
from id2core.encoders.registry import identify
from id2core.errors import DatasetError
from id2core.evaluation import truth_files
from id2core.evaluation.truth_files import Truth
from id2core.runs import erasure, leases, takedowns
from id2core.runs.execution import Execution
from id2core.runs.planning import NOTHING, Made, Plan
from id2core.runs.records import Recorder
from id2core.settings import Settings
from id2core.sources import registry
from id2core.sources.posts import POSTS
from id2core.store import schemas, storage
from id2core.store.datasets import SUCCESS, Dataset
from id2core.transforms.files import load_transform
from id2core.transforms.linear import AUTO, IDENTITY, LATENTS_ONLY, NONE

# Before a place: it is a data set that is embedded already. What lies in a folder never says so.
DATASET = "dataset:"


def is_dataset(uri: str) -> bool:
    """Return whether a URI asks for a data set."""
    return uri.startswith(DATASET)


def place_of(uri: str) -> str:
    """Return the normalized place of a corpus, without `dataset:`."""
    return storage.normalize(uri.removeprefix(DATASET))


def open_inside(uri: str, name: str) -> Dataset:
    """Open a data set, also where the `--out` is given that it is in.

    Raises:
        DatasetError: there is none.
    """
    place = place_of(uri)
    return Dataset.find(place) or Dataset.find(storage.join(place, name)) or Dataset.open(place)


@dataclass(frozen=True)
class EmbeddedCorpus:
    """A corpus with its latents and descriptors.

    Attributes:
        embeddings: the data set.
        rejects: objects that have no row there; None where the corpus came as a data set.
        listed: objects that were listed.
        made: what this run added to it.
    """

    embeddings: Dataset
    rejects: Dataset | None
    listed: int
    made: Made = NOTHING

    @staticmethod
    def of(result: EmbedResult, run_id: str) -> EmbeddedCorpus:
        """Return the corpus that a run embedded."""
        counts = Made.by(run_id, result.embeddings)
        return EmbeddedCorpus(result.embeddings, result.rejects, result.listed, counts)

    def then(self, later: EmbeddedCorpus) -> EmbeddedCorpus:
        """Return the corpus after this and a later embedding of other sources."""
        return replace(later, listed=self.listed + later.listed, made=self.made.plus(later.made))


def embed_images(jobs: Sequence[EmbedJob], execution: Execution, beam: list[str]) -> list[EmbedResult]:
    """Embed the images that have no row, as one pipeline; where all have one, Beam is not loaded."""
    with ExitStack() as held:
        for job in jobs:
            held.enter_context(leases.held(job.out, job.images, execution))
        # An earlier run may have been killed, or no command waited for its job.
        _forget_refused_posts(jobs, execution)
        works = [plan_embed(job, execution) for job in jobs]
        before = [finished(job, work) for job, work in zip(jobs, works, strict=True)]
        todo = [(job, work) for job, work, done in zip(jobs, works, before, strict=True) if done is None]
        made = iter(_embed_planned(todo, beam) if todo else ())
        results = [done or next(made) for done in before]
        _forget_refused_posts(jobs, execution)
        return results


def _forget_refused_posts(jobs: Sequence[EmbedJob], execution: Execution) -> None:
    """Forget posts of refused pictures: a post is written before its picture is read, and so known."""
    for job in jobs:
        if storage.exists(storage.join(job.out, POSTS, SUCCESS)):
            refused = takedowns.withheld(job.results or job.out, job.out)
            erasure.forget_posts(job.out, refused, execution)


def _embed_planned(todo: Sequence[tuple[EmbedJob, Plan]], beam: list[str]) -> list[EmbedResult]:
    from beam_jobs import embed

    return embed.run_planned(todo, beam)


@dataclass(frozen=True)
class Corpus:
    """A named set of images.

    Attributes:
        name: `reference`, `queries` or `background`.
        uri: a source of images, or a data set.
        dataset: the embeddings data set that `uri` is or holds; None for a place of images.

    Example:
        >>> Corpus.open("reference", "originals").dataset is None
        True
        >>> Corpus.open("reference", "dataset:originals-id2").dataset.rows
        200
    """

    name: str
    uri: str
    dataset: Dataset | None

    @staticmethod
    def open(name: str, uri: str) -> Corpus:
        """Return the images of a source or, where `uri` begins with `dataset:`, the data set there.

        A data set is also found in the `--out` that it is in.

        Raises:
            DatasetError: `uri` asks for a data set, and there is none.
        """
        if not is_dataset(uri):
            return Corpus(name, registry.parse(uri).uri, None)
        place = place_of(uri)
        for candidate in (place, storage.join(place, embedding.EMBEDDINGS)):
            dataset = Dataset.find(candidate)
            if dataset and dataset.commit.dataset == embedding.EMBEDDINGS:
                return Corpus(name, place, dataset)
        raise DatasetError(
            f"{place} holds no embeddings data set: give the --out of id2 embed after {DATASET}, or leave "
            f"{DATASET} out for a folder of images"
        )

    @property
    def spelled(self) -> str:
        """The URI as `open` takes it."""
        return f"{DATASET}{self.uri}" if self.dataset else self.uri

    @property
    def sources(self) -> list[str]:
        """The sources of its images; none where a data set does not know them."""
        return [source for source in self.dataset.commit.sources if source] if self.dataset else [self.uri]

    @property
    def images(self) -> str:
        """The folder of the images; of several sources the one that all are in."""
        sources = list(self.dataset.commit.sources) if self.dataset else [self.uri]
        folders = [registry.parse(source).folder.split("/") for source in sources if source]
        if not folders:
            return ""
        pairs = zip(min(folders), max(folders), strict=False)
        return "/".join(name for name, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) or "/"

    def embed(
        self, out: str, settings: Settings, beam: list[str], recorder: Recorder, **feed: Unpack[Feed]
    ) -> EmbeddedCorpus:
        """Embed the images into `out`/NAME; a corpus that is embedded already is taken as it is."""
        [made] = embed_corpora([(self, feed)], out, settings, beam, recorder)
        return made


def embed_corpora(
    corpora: Sequence[tuple[Corpus, Feed]],
    out: str,
    settings: Settings,
    beam: list[str],
    recorder: Recorder,
    within: str | None = None,
) -> list[EmbeddedCorpus]:
    """Embed the images of corpora into `out`/NAME as one stage; see `Corpus.embed`.

    Args:
        corpora: each with what is said of its source.
        out: parent of their data sets.
        settings: encoder, transform, limits.
        beam: Beam's arguments.
        recorder: of the run.
        within: the `--out` whose takedowns hold, where `out` is a folder in it.
    """
    of_images = [(corpus, feed) for corpus, feed in corpora if corpus.dataset is None]
    jobs = [
        EmbedJob.from_settings(corpus.uri, storage.join(out, corpus.name), settings, within or out, **feed)
        for corpus, feed in of_images
    ]
    results: list[EmbedResult] = []
    if jobs:
        title = f"embed {', '.join(corpus.name for corpus, _ in of_images)}"
        title += f" by {settings.encoder}" if within else ""
        with recorder.stage(title):
            results = stage(title, lambda: embed_images(jobs, recorder.execution, beam))
    made = iter(results)
    return [
        EmbeddedCorpus(corpus.dataset, None, corpus.dataset.rows)
        if corpus.dataset
        else EmbeddedCorpus.of(next(made), recorder.execution.run_id)
        for corpus, _ in corpora
    ]


@dataclass(frozen=True)
class CorpusPair:
    """References and queries that are compared, with a background where one is used.

    Attributes:
        out: where images are embedded to.
        beam: Beam's arguments for embedding.
    """

    reference: Corpus
    queries: Corpus
    background: Corpus | None
    out: str
    beam: list[str]

    @staticmethod
    def open(reference: str, queries: str, background: str | None, out: str, beam: list[str]) -> CorpusPair:
        """Look at each place once."""
        return CorpusPair(
            Corpus.open("reference", reference),
            Corpus.open("queries", queries),
            Corpus.open("background", background) if background else None,
            storage.normalize(out),
            beam,
        )

    def with_background(self, background: Dataset | None) -> CorpusPair:
        """Return the pair with an embedded background, where none was given."""
        if self.background or background is None:
            return self
        return replace(self, background=Corpus("background", background.uri, background))

    def truth(self, file: str) -> Truth:
        """Read a truth file; relative URIs belong to the images, also of a corpus that is a data set."""
        return truth_files.read(storage.normalize(file), self.reference.images, self.queries.images)

    def groups(self, file: str) -> dict[str, str]:
        """Read the groups of a truth file's uploads."""
        return truth_files.read_groups(storage.normalize(file), self.queries.images)

    @property
    def datasets(self) -> list[Dataset]:
        """Which of references and queries are embedded already."""
        return [corpus.dataset for corpus in (self.reference, self.queries) if corpus.dataset]

    def latent_ids(self, settings: Settings) -> dict[str, str]:
        """Return encoder_id and preprocess_id of the latents, known before any work."""
        if self.datasets:
            return {name: self.datasets[0].ids[name] for name in schemas.LATENT_IDS}
        ids = identify(settings.encoder)
        return {"encoder_id": ids.encoder_id, "preprocess_id": ids.preprocess_id}

    def row_ids(self, settings: Settings) -> dict[str, str]:
        """Return the ids (`schemas.ROW_IDS`) that both sides of a scan will have, known before any work.

        Raises:
            DatasetError: a data set was made with something else than the settings ask for.
            EncoderError, TransformError: the encoder or the transform cannot be loaded.
        """
        if len(self.datasets) == 2:
            ids = _ids_of(self.datasets[0], settings.transform)
        else:
            ids = _ids_to_make(settings)
        for dataset in self.datasets:
            check_made_with(dataset, ids, settings.transform)
        return ids

    def embed_latents(self, settings: Settings, recorder: Recorder) -> tuple[EmbeddedCorpus, EmbeddedCorpus]:
        """Embed references and queries without a transform: their latents serve any."""
        raw = settings.model_copy(update={"transform": NONE})
        both: list[tuple[Corpus, Feed]] = [(self.reference, {}), (self.queries, {})]
        reference, queries = embed_corpora(both, self.out, raw, self.beam, recorder)
        return reference, queries

    def embed_background(self, settings: Settings, transform: str, recorder: Recorder) -> Dataset | None:
        """Embed the background with a transform: a scan knows it by this data set."""
        if self.background is None:
            return None
        chosen = settings.model_copy(update={"transform": transform})
        return self.background.embed(self.out, chosen, self.beam, recorder).embeddings


def _ids_to_make(settings: Settings) -> dict[str, str]:
    return EmbedJob(".", ".", settings.encoder, settings.transform).identify()


def _ids_of(dataset: Dataset, spec: str) -> dict[str, str]:
    """Nothing is embedded: the transform is asked for only if it is named, or belongs to the encoder."""
    ids = {name: dataset.ids[name] for name in schemas.ROW_IDS}
    transform = load_transform(spec, ids["encoder_id"])
    transform.check_encoder(ids["encoder_id"])
    nothing_asked = spec == AUTO and transform.transform_id == IDENTITY
    searchable = ids["transform_id"] != LATENTS_ONLY
    return ids if nothing_asked and searchable else ids | {"transform_id": transform.transform_id}


def check_made_with(dataset: Dataset, ids: dict[str, str], spec: str) -> None:
    """Raise DatasetError where a data set was made with something else than is asked for.

    Args:
        dataset: of embeddings.
        ids: `schemas.ROW_IDS` that are asked for.
        spec: as of `--transform`.
    """
    made, asked = dataset.ids["transform_id"], ids["transform_id"]
    if made != asked:
        if made == LATENTS_ONLY:
            raise DatasetError(
                f"{dataset.uri} holds latents for training, without descriptors: to search it, import it "
                f"again with --transform {spec} into another --out"
            )
        right = "`none`" if made == IDENTITY else "the file it was made with"
        raise DatasetError(
            f"{dataset.uri} was embedded with transform_id {made}, this scan asks for {asked} (--transform "
            f"{spec}): embed those images again, or give --transform {right}"
        )
    dataset.check_ids(ids)
