"""What evaluate and calibrate start from: references and queries, images or embedded, and a background."""

from __future__ import annotations

from dataclasses import dataclass

from beam_jobs.embed import EmbedJob, EmbedMaker
from flows.scan import embed_side, find_embeddings, images_of
from id2core.evaluation import truth_files
from id2core.evaluation.truth_files import Truth
from id2core.search import exact, shards
from id2core.settings import Settings
from id2core.store import datasets, storage
from id2core.transforms.linear import NONE


@dataclass(frozen=True)
class Sides:
    """Folders of images, or embeddings data sets.

    Attributes:
        reference, queries: as a scan takes them.
        background: where one is used.
        out: where images are embedded to.
        beam_arguments: for embedding.
    """

    reference: str
    queries: str
    background: str | None
    out: str
    beam_arguments: list[str]

    @staticmethod
    def of(
        reference: str, queries: str, background: str | None, out: str, beam_arguments: list[str] | None
    ) -> Sides:
        """From what was given; fails at once, and not after hours, where there is nothing or no FAISS."""
        given = [storage.normalize(uri) for uri in (reference, queries, out)]
        strangers = storage.normalize(background) if background else None
        for place in (given[0], given[1], strangers):
            if place:
                storage.require(place)
        shards.require()
        return Sides(given[0], given[1], strangers, given[2], beam_arguments or [])

    def truth(self, file: str) -> Truth:
        """A truth file; relative URIs in it belong to the images, also where a side is a data set of them."""
        return truth_files.read(storage.normalize(file), images_of(self.reference), images_of(self.queries))

    def ids(self, settings: Settings) -> dict[str, str]:
        """encoder_id and preprocess_id of the latents, known before any work."""
        held = find_embeddings(self.reference) or find_embeddings(self.queries)
        if held:
            found = datasets.require_commit(held).ids
        else:
            raw = settings.model_copy(update={"transform": NONE})
            found = EmbedMaker(EmbedJob.from_settings(self.reference, self.out, raw)).load()
        return {name: found[name] for name in exact.IDS}

    def embed(self, settings: Settings) -> tuple[str, str]:
        """The embeddings of references and queries, without a transform: their latents serve any."""
        raw = settings.model_copy(update={"transform": NONE})
        left = embed_side(self.reference, self.out, "reference", raw, self.beam_arguments)
        right = embed_side(self.queries, self.out, "queries", raw, self.beam_arguments)
        return left.embeddings, right.embeddings

    def embed_background(self, settings: Settings, transform: str) -> str | None:
        """The embeddings of the background with a transform: a scan knows it by this data set."""
        if self.background is None:
            return None
        chosen = settings.model_copy(update={"transform": transform})
        side = embed_side(self.background, self.out, "background", chosen, self.beam_arguments)
        return side.embeddings


def digests(*uris: str | None) -> list[str]:
    """What identifies the content of data sets."""
    return [datasets.require_commit(uri).digest for uri in uris if uri]
