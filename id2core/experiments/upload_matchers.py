"""Ways to match uploads with references: rows of the tables on uploads as they come.

A matcher gives a score for each pair of an upload and a reference, normalized where it normalizes. So it may
look at an upload under many views, keep several rows of a reference, or score the best again: the tables
measure what comes out, and thresholds are set on what comes out. A new matcher is a function under
`@matchers` that yields it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from id2core.evaluation import ranking
from id2core.experiments import evaluation_sets
from id2core.experiments.evaluation_sets import TRAIN, Queries, RankedReferences
from id2core.experiments.methods import Methods
from id2core.experiments.scale import BEST, FACTOR
from id2core.experiments.upload_sets import VALIDATION, Uploads, UploadSet
from id2core.search import shards
from id2core.search.background_rows import background_means
from id2core.search.shards import Shard
from id2core.search.topk import TopK
from id2core.transforms.files import load_transform
from id2core.transforms.linear import AUTO, Transform
from id2core.verdicts import judging, normalization, tails
from id2core.verdicts.tails import Pairs

_BACKGROUND = 2000


class Matcher(Protocol):
    """Scores uploads against references.

    Attributes:
        name: of its row.
        shifted: whether it only subtracts a number from all scores of an upload. Its references then have
            the order of the matcher without, which alone is in the closed set.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def shifted(self) -> bool: ...  # noqa: D102

    def scores(self, uploads: Uploads) -> NDArray[np.float32]:
        """Return the score of each of Q uploads with each of R references, float32[Q,R], finite."""
        ...


@dataclass(frozen=True, eq=False)
class Background:
    """What is subtracted from the scores of an upload.

    Attributes:
        descriptors: float32[B,m] of pictures that no upload comes from.
        factor, k: the mean of the k best scores times `factor` is subtracted.
        viewed: the same pictures with rows for views; None where they have none.
    """

    descriptors: NDArray[np.float32]
    factor: float
    k: int
    viewed: Shard | None = None

    def of(self, descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what is subtracted from the scores of uploads float32[Q,m], float32[Q,1]."""
        means = background_means(descriptors @ self.descriptors.T, self.k)
        return np.asarray(self.factor * means, np.float32)[:, None]


@dataclass(frozen=True, eq=False)
class Whole:
    """The paper's method: the whole upload, one W, cosine.

    Attributes:
        name: of its row.
        transform: W, or the identity.
        references: float32[R,m], their descriptors.
        background: where scores are normalized.
    """

    name: str
    transform: Transform
    references: NDArray[np.float32]
    background: Background | None = None

    @property
    def shifted(self) -> bool:
        """Return whether a background is subtracted."""
        return self.background is not None

    def scores(self, uploads: Uploads) -> NDArray[np.float32]:
        """Return cosines, less the background."""
        descriptors = self.transform.apply(uploads.latents()[0])
        scores = descriptors @ self.references.T
        return scores if self.background is None else scores - self.background.of(descriptors)


Builder = Callable[[Methods, UploadSet], Iterator[Matcher]]
BUILDERS: list[Builder] = []


def matchers(build: Builder) -> Builder:
    """Add a function that yields matchers, none where the data lack what they need."""
    BUILDERS.append(build)
    return build


def build_all(methods: Methods, uploads: UploadSet) -> Iterator[Matcher]:
    """Yield every matcher, in the order of the tables."""
    for build in BUILDERS:
        yield from build(methods, uploads)


@matchers
def raw_latents(methods: Methods, uploads: UploadSet) -> Iterator[Matcher]:
    """Yield the comparison of raw latents."""
    yield from _plain_and_tuned("Embeddings of VAE", methods.raw(), uploads)


def shipped_wholes(uploads: UploadSet) -> Iterator[Whole]:
    """Yield the W that ships for the encoder, then with the background and factor that ship with it."""
    transform = load_transform(AUTO, uploads.data.ids["encoder_id"])
    if transform.weights is None:
        return
    references = transform.apply(uploads.references)
    yield Whole("W that ships", transform, references)
    chosen = judging.load(AUTO)
    background = judging.bundled_background(chosen)
    if chosen is None or chosen.normalization is None or background is None:
        return
    has_rows = not any(table["crops"].null_count for table in background.tables(["crops"]))
    shard = shards.load(background, background.files, with_rows=has_rows)
    held = chosen.normalization
    subtracted = Background(shard.descriptors, held.factor, held.k, shard if has_rows else None)
    yield Whole("W that ships, normalized", transform, references, subtracted)


@matchers
def shipped(methods: Methods, uploads: UploadSet) -> Iterator[Matcher]:
    """Yield the W that ships, also normalized."""
    yield from shipped_wholes(uploads)


@matchers
def closed_form(methods: Methods, uploads: UploadSet) -> Iterator[Matcher]:
    """Yield the W in closed form, trained on the training photos of the evaluation set."""
    seen = uploads.data.seen
    if uploads.data.has(TRAIN, f"{TRAIN}-{seen}"):
        yield from _plain_and_tuned("W, closed form", methods.closed(seen), uploads)


def _plain_and_tuned(name: str, transform: Transform, uploads: UploadSet) -> Iterator[Matcher]:
    """Yield a W as it is, and normalized by the scores among training photos."""
    plain = Whole(name, transform, transform.apply(uploads.references))
    yield plain
    if not uploads.data.has(TRAIN):
        return
    latents = uploads.data.read(TRAIN)[0]
    rows = np.linspace(0, len(latents) - 1, min(_BACKGROUND, len(latents))).astype(int)
    if len(rows) < max(normalization.KS):
        return
    background = transform.apply(latents[rows])
    factor, k = _choose(plain, background, uploads)
    if factor:
        yield Whole(f"{name}, normalized", transform, plain.references, Background(background, factor, k))


def _choose(plain: Whole, background: NDArray[np.float32], uploads: UploadSet) -> tuple[float, int]:
    """Choose factor and k on untouched uploads of the validation; those that ship where it has none."""
    predictions, best = [], []
    for kind in uploads.kinds:
        asked = uploads.of(uploads.edits[0], kind, VALIDATION)
        if not asked.sources.uris:
            return FACTOR, BEST
        both = with_and_without(plain.scores(asked), asked.queries)
        predictions.append((both, np.zeros(len(both.ranks))))
        against = TopK(len(asked.sources.uris), max(normalization.KS))
        against.add(plain.transform.apply(asked.latents()[0]) @ background.T)
        best.append(np.tile(against.result()[1], (2, 1)))
    pooled, _ = evaluation_sets.pooled(predictions)
    return normalization.choose_parameters(pooled, np.concatenate(best))[0]


def best_pairs(scores: NDArray[np.float32]) -> Pairs:
    """Return the best pairs of uploads without origin, by their scores float32[Q,R]."""
    rows = np.argsort(-scores, axis=1, kind="stable")[:, : tails.DEPTH]
    kept = np.take_along_axis(scores, rows, 1).astype(np.float64)
    numbers = np.arange(len(scores))
    return Pairs(kept.ravel(), np.repeat(numbers, rows.shape[1]), rows.ravel(), numbers, scores.shape[1])


def ranked(scores: NDArray[np.float32], queries: Queries) -> RankedReferences:
    """Return the best references by scores float32[Q,R]."""
    best = TopK(len(scores), evaluation_sets.KEPT)
    best.add(scores)
    rows, kept = best.result()
    return RankedReferences(ranking.ranks_of(scores, queries.origins), kept, rows, queries)


def with_and_without(scores: NDArray[np.float32], queries: Queries) -> RankedReferences:
    """Return 2·Q queries: each as it is, then each with its origin taken out of the references.

    Both of one photo have its number, so an interval that resamples photos draws them together.

    Args:
        scores: float32[Q,R].
        queries: all have an origin.
    """
    count, (own, photos) = len(scores), (queries.origins, queries.photos)
    best = TopK(count, evaluation_sets.KEPT + 1)
    best.add(scores)
    rows, kept = best.result()
    # Of one more than is kept, what remains without the origin, or without the last where it is not there.
    dropped = np.where((rows == own[:, None]).any(axis=1), (rows == own[:, None]).argmax(axis=1), -1)
    remains = np.ones(rows.shape, np.bool_)
    remains[np.arange(count), dropped] = False
    other_rows, other_kept = (x[remains].reshape(count, -1) for x in (rows, kept))
    none = np.full(count, -1)
    return RankedReferences(
        np.concatenate([ranking.ranks_of(scores, own), np.zeros(count, np.int64)]),
        np.concatenate([kept[:, :-1], other_kept]),
        np.concatenate([rows[:, :-1], other_rows]),
        Queries(np.tile(queries.latents, (2, 1)), np.concatenate([own, none]), np.tile(photos, 2)),
    )
