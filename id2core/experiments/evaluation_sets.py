"""What every experiment measures on: latents of references, of queries by each model, and training classes.

A bench is a folder:

    bench.json                                seen, unseen: names of models; encoders: what made latents
    latents/ROLE/embeddings                   of photos: train, test, distractors, calibration, fresh
    latents/ROLE-MODEL/embeddings             of their translations
    latents-NAME/…                            the same by another encoder
    translations/ROLE-MODEL/translations      which picture is a translation of which

`train-MODEL` of an unseen model gives the upper bound of Table 3 and may be missing. `id2 experiment data`
makes such a folder of photos with the bundled models, or of a downloaded OriPID.

Two queries of one photo are not independent: what is resampled for an interval are photos.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.encoders.base import Encoder
from id2core.encoders.hub import MINI, is_short_name
from id2core.encoders.registry import load_encoder
from id2core.errors import EncoderError, ExperimentError
from id2core.evaluation import bootstrap, ranking
from id2core.evaluation.metrics import Measure
from id2core.evaluation.ranking import Predictions
from id2core.experiments.photo_bench import CALIBRATION, DISTRACTORS, FRESH, TEST, TRAIN
from id2core.store import datasets, schemas, storage
from id2core.training import pairs as training_pairs
from id2core.training.pairs import Pairs
from id2core.transforms.linear import Transform

FACTS = "bench.json"
# Names of encoders that begin so are backbones trained on the bench (`id2 finetune`).
TUNED = "tuned-"
KEPT = 10  # references per query in the pooled measures
RESAMPLES = 1000
_AT_ONCE = 512
__all__ = ["CALIBRATION", "DISTRACTORS", "FRESH", "TEST", "TRAIN", "Bench", "Found", "Queries", "find"]


@dataclass(frozen=True, eq=False)
class Queries:
    """Translations that are looked up.

    Attributes:
        latents: float16[Q,n].
        origins: int64[Q], row of the origin among the references, −1 where it is not there.
        photos: int64[Q], equal for translations of one photo, from 0.
    """

    latents: NDArray[np.float16]
    origins: NDArray[np.int64]
    photos: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Found:
    """What a transform found for Q queries.

    Attributes:
        ranks: int64[Q], of the origin among all references, equal scores before it; 0 without origin.
        scores: float32[Q,k], of the best references, falling.
        rows: int64[Q,k], which they are.
        queries: that were asked.
    """

    ranks: NDArray[np.int64]
    scores: NDArray[np.float32]
    rows: NDArray[np.int64]
    queries: Queries

    @property
    def precision(self) -> NDArray[np.float64]:
        """float64[Q]: 1/rank, whose mean is the paper's mAP; 0 where the origin is no reference."""
        found = np.divide(1.0, self.ranks, out=np.zeros(len(self.ranks)), where=self.ranks > 0)
        return np.asarray(found)

    @property
    def correct(self) -> NDArray[np.float64]:
        """float64[Q]: 1 where the origin is first, else 0; the mean is Acc."""
        return np.asarray(self.ranks == 1, np.float64)


@dataclass(frozen=True, eq=False)
class Bench:
    """A bench folder, read as far as it is asked for.

    Attributes:
        root: the folder.
        seen: model whose translations W is trained on.
        unseen: models that it is tested on besides.
        encoder: name of another encoder, whose latents stand in `latents-NAME`.
        specs: name of an encoder, empty for the first → what `encoders.load` takes; those that are known.
    """

    root: Path
    seen: str
    unseen: tuple[str, ...]
    encoder: str = ""
    specs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> Bench:
        """Open a folder.

        Raises:
            ExperimentError: it is not a bench.
        """
        try:
            facts = json.loads((root / FACTS).read_text())
            if not facts["unseen"]:
                raise ValueError("no unseen model is named")
            specs = dict(facts.get("encoders", {}))
            return cls(root, facts["seen"], tuple(facts["unseen"]), specs=specs)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ExperimentError(
                f"{root} has no {FACTS} with `seen` and one or more `unseen`: make one with `id2 "
                f"experiment data --photos DIR`, or with `--oripid DIR` of OriPID ({error})"
            ) from error

    @property
    def models(self) -> tuple[str, ...]:
        """The seen one first."""
        return (self.seen, *self.unseen)

    def has(self, *names: str) -> bool:
        """Whether the latents of all of these are there."""
        return all(datasets.read_commit(self.dataset(name)) for name in names)

    def by(self, encoder: str) -> Bench:
        """The same pictures by another encoder."""
        return replace(self, encoder=encoder)

    def encoders(self) -> list[str]:
        """Names of the other encoders by which the test was embedded, sorted, without `tuned` ones."""
        return [name for name in self._others() if not name.startswith(TUNED)]

    def tuned(self) -> list[str]:
        """Names of the backbones trained on the bench by which the test was embedded, sorted."""
        return [name for name in self._others() if name.startswith(TUNED)]

    def _others(self) -> list[str]:
        names = sorted(path.name.removeprefix("latents-") for path in self.root.glob("latents-*"))
        needed = tested(self.models)
        return [name for name in names if self.by(name).has(*needed)]

    @property
    def spec(self) -> str | None:
        """What `encoders.load` takes to make these latents; None where that is not known."""
        return self.specs.get(self.encoder, None if self.encoder else MINI)

    def network(self) -> Encoder | None:
        """The encoder of these latents; None where it is not known, cannot be loaded, or is not the same."""
        if self.spec is None:
            return None
        try:
            found = load_encoder(self.spec)
        except EncoderError:
            return None
        return found if found.encoder_id == self.ids["encoder_id"] else None

    def dataset(self, name: str) -> str:
        """URI of the embeddings of a role, or of its translations by a model."""
        folder = f"latents-{self.encoder}" if self.encoder else "latents"
        return str(self.root / folder / name / "embeddings")

    @functools.cached_property
    def ids(self) -> dict[str, str]:
        """encoder_id and preprocess_id of the latents."""
        return datasets.require_commit(self.dataset(TEST)).ids

    def read(self, name: str) -> tuple[NDArray[np.float16], list[str]]:
        """Latents float16[N,n] and image_ids of one data set, each picture once."""
        found = list(datasets.iterate(self.dataset(name), ["image_id", "latent"]))
        ids = [i for table in found for i in table["image_id"].to_pylist()]
        latents = np.concatenate([schemas.column_to_vectors(table["latent"]) for table in found])
        first = _first(ids)
        return latents[first], [ids[i] for i in first]

    def uris(self, name: str) -> list[str]:
        """Where the pictures of one data set are, in the order of `read`."""
        found = pa.concat_tables(datasets.iterate(self.dataset(name), ["image_id", "uri"]))
        return list(found["uri"].take(_first(found["image_id"].to_pylist())).to_pylist())

    @functools.cached_property
    def _references(self) -> tuple[NDArray[np.float16], list[str]]:
        latents, ids = self.read(TEST)
        more, others = self.read(DISTRACTORS)
        return np.concatenate([latents, more]), ids + others

    @property
    def references(self) -> NDArray[np.float16]:
        """float16[R,n]: origins of the test, then distractors."""
        return self._references[0]

    def queries(self, model: str, role: str = TEST) -> Queries:
        """The translations of a role's photos by a model."""
        return self._queries(f"{role}-{model}")

    @functools.lru_cache(maxsize=32)  # noqa: B019 (a bench lives as long as its process)
    def _queries(self, name: str) -> Queries:
        latents, ids = self.read(name)
        origins = self.origins(name, ids)
        rows = pc.fill_null(pc.index_in(origins, value_set=pa.array(self._references[1])), -1)
        _, photos = np.unique(np.array(origins.to_pylist()), return_inverse=True)
        return Queries(latents, rows.to_numpy().astype(np.int64), photos.astype(np.int64))

    def origins(self, name: str, ids: list[str]) -> pa.Array:
        """image_id of the photo that each picture of a translated set was made from."""
        translations = pa.concat_tables(
            datasets.iterate(
                str(self.root / "translations" / name / "translations"), ["image_id", "origin_id"]
            )
        )
        place = pc.index_in(pa.array(ids), value_set=translations["image_id"].combine_chunks())
        if place.null_count:
            raise ExperimentError(f"{place.null_count} pictures of {name} are no translations of anything")
        return translations["origin_id"].combine_chunks().take(place)

    def pairs(self, model: str) -> Pairs:
        """Training classes with the translations of a model."""
        name = f"{TRAIN}-{model}"
        return training_pairs.load(
            [self.dataset(TRAIN), self.dataset(name)],
            [str(self.root / "translations" / name / "translations")],
            self.root / "cache",
        )

    def find(self, transform: Transform, model: str, role: str = TEST) -> Found:
        """Look up a model's queries among the references."""
        return find(transform, self.queries(model, role), self.references)


def tested(models: Sequence[str]) -> tuple[str, ...]:
    """Names of the data sets that a closed set needs: references, then the queries of each model."""
    return (TEST, DISTRACTORS, *(f"{TEST}-{model}" for model in models))


def write_facts(root: Path, seen: str, unseen: Sequence[str], encoder: str, spec: str) -> None:
    """Write bench.json, or add to it which encoder made the latents of this name.

    Args:
        root: the folder.
        seen, unseen: models.
        encoder: name of the encoder, empty for the first.
        spec: what `encoders.load` takes for it; a local one is kept by its whole path.
    """
    try:
        specs = dict(json.loads((root / FACTS).read_text()).get("encoders", {}))
    except FileNotFoundError:
        specs = {}
    local = Path(spec).exists() and not is_short_name(spec)
    specs[encoder] = str(Path(spec).resolve()) if local else spec
    facts = {"seen": seen, "unseen": list(unseen), "encoders": specs}
    storage.write_bytes(str(root / FACTS), json.dumps(facts).encode())


def _first(ids: list[str]) -> NDArray[np.int64]:
    """int64[N], ascending: where each of N ids stands first."""
    return np.sort(np.unique(np.array(ids), return_index=True)[1])


def find(transform: Transform, queries: Queries, references: NDArray[np.float16], kept: int = KEPT) -> Found:
    """Exact search.

    Args:
        transform: of queries and references.
        queries: Q of them.
        references: float16[R,n].
        kept: k, best references of each query that are kept.
    """
    kept = min(kept, len(references))
    against = transform.apply(references).T
    ranks, scores, rows = [], [], []
    for start in range(0, len(queries.latents), _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        found = transform.apply(queries.latents[block]) @ against
        own = queries.origins[block]
        true = np.take_along_axis(found, np.maximum(own, 0)[:, None], 1)
        ranks.append(np.where(own < 0, 0, np.count_nonzero(found >= true, axis=1)))
        best = np.argpartition(found, -kept, axis=1)[:, -kept:]
        order = np.argsort(-np.take_along_axis(found, best, 1), axis=1, kind="stable")
        rows.append(np.take_along_axis(best, order, 1))
        scores.append(np.take_along_axis(found, rows[-1], 1))
    return Found(np.concatenate(ranks), np.concatenate(scores), np.concatenate(rows), queries)


def mean(values: NDArray[np.float64], photos: NDArray[np.int64], seed: int = 0) -> Measure:
    """Mean of values float64[Q] with its 95 % interval, photos int64[Q] being resampled."""
    sums = np.bincount(photos, values)
    counts = np.bincount(photos)

    def statistic(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((weights @ sums) / (weights @ counts))[:, None]

    low, high = bootstrap.intervals(statistic, len(sums), RESAMPLES, seed)[:, 0]
    return Measure(float(values.mean()), float(low), float(high))


def closed_set(found: Found) -> dict[str, Measure]:
    """`map` and `acc` of queries that all have an origin."""
    photos = found.queries.photos
    return {"map": mean(found.precision, photos), "acc": mean(found.correct, photos)}


def difference(first: Found, second: Found) -> Measure:
    """mAP of `first` less that of `second`, on the same queries."""
    return mean(first.precision - second.precision, first.queries.photos)


def pooled(parts: list[tuple[Found, NDArray[np.float64]]]) -> tuple[Predictions, NDArray[np.int64]]:
    """Predictions of queries with and without origin together, and the photo of each query.

    Args:
        parts: what was found, and what to subtract from each query's scores, float64[Q].
    """
    query, score, relevant, has, photos = [], [], [], [], []
    queries = pictures = 0
    for found, background in parts:
        count, k = found.rows.shape
        own = found.queries.origins
        query.append(np.repeat(np.arange(count) + queries, k))
        score.append((found.scores - background[:, None]).ravel())
        relevant.append(((found.rows == own[:, None]) & (own[:, None] >= 0)).ravel())
        has.append(own >= 0)
        photos.append(found.queries.photos + pictures)
        queries, pictures = queries + count, pictures + int(found.queries.photos.max()) + 1
    joined = Predictions(*(np.concatenate(x) for x in (query, score, relevant, has)))
    return joined, np.concatenate(photos)


def open_set(parts: list[tuple[Found, NDArray[np.float64]]], seed: int = 0) -> dict[str, Measure]:
    """`micro_ap` and `recall_at_p90` over all parts, see `pooled`."""
    predictions, photos = pooled(parts)
    by_query = ranking.weighted(predictions, ())
    statistic = _by_photo(by_query, photos)
    ends = bootstrap.intervals(statistic, int(photos.max()) + 1, RESAMPLES, seed)
    point = ranking.recall_at_precision(predictions)
    values = (ranking.micro_average_precision(predictions), point.recall if point else 0.0)
    return {
        name: Measure(value, float(ends[0, i]), float(ends[1, i]))
        for name, value, i in zip(("micro_ap", "recall_at_p90"), values, (1, 2), strict=True)
    }


def _by_photo(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]], photos: NDArray[np.int64]
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    def of_photos(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        return statistic(weights[:, photos])

    return of_photos
