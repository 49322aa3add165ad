"""What every experiment measures on: latents of references, of queries by each model, and training classes.

An evaluation set is a folder:

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
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.encoders.hub import MINI, is_short_name
from id2core.encoders.registry import load_encoder
from id2core.errors import EncoderError, ExperimentError
from id2core.evaluation import bootstrap, ranking
from id2core.evaluation.metrics import Measure
from id2core.evaluation.ranking import Predictions
from id2core.experiments.photo_bench import CALIBRATION, DISTRACTORS, FRESH, TEST, TRAIN
from id2core.search.topk import TopK
from id2core.store import schemas, storage, strict_json
from id2core.store.datasets import Dataset
from id2core.training import pairs as training_pairs
from id2core.training.pairs import Pairs
from id2core.transforms.linear import Transform

if TYPE_CHECKING:
    from id2core.encoders.base import Encoder  # imports torch

FACTS = "bench.json"
# Names of encoders that begin so are backbones trained on its pictures (`id2 finetune`).
TUNED = "tuned-"
KEPT = 10  # references per query in the pooled measures
RESAMPLES = 1000
BATCH_ROWS = 512
__all__ = [
    "CALIBRATION",
    "DISTRACTORS",
    "FRESH",
    "TEST",
    "TRAIN",
    "EvaluationSet",
    "Queries",
    "RankedReferences",
    "search",
]


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
class RankedReferences:
    """The best references of Q queries under a transform.

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
        """Return 1/rank, float64[Q], whose mean is the paper's mAP; 0 where the origin is no reference."""
        precision = np.divide(1.0, self.ranks, out=np.zeros(len(self.ranks)), where=self.ranks > 0)
        return np.asarray(precision)

    @property
    def correct(self) -> NDArray[np.float64]:
        """Return 1 where the origin is first, else 0, float64[Q]; the mean is Acc."""
        return np.asarray(self.ranks == 1, np.float64)


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """A folder of latents by role, each data set read when it is asked for.

    Attributes:
        root: the folder.
        seen: model whose translations W is trained on.
        unseen: models that it is tested on besides.
        encoder: name of another encoder, whose latents are in `latents-NAME`.
        specs: name of an encoder, empty for the first → what `load_encoder` takes; those that are known.
    """

    root: Path
    seen: str
    unseen: tuple[str, ...]
    encoder: str = ""
    specs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> EvaluationSet:
        """Open the folder of an evaluation set.

        Raises:
            ExperimentError: it is no evaluation set.
        """
        try:
            facts = strict_json.read_file(root / FACTS)
            if not facts["unseen"]:
                raise ValueError("no unseen model is named")
            specs = dict(facts.get("encoders", {}))
            return cls(root, facts["seen"], tuple(facts["unseen"]), specs=specs)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ExperimentError(
                f"{root} has no {FACTS} with `seen` and one or more `unseen`: make one with `id2 experiment "
                f"data --photos DIR`, or with `--oripid DIR` of OriPID ({error})"
            ) from error

    @property
    def models(self) -> tuple[str, ...]:
        """Return the models, the seen one first."""
        return (self.seen, *self.unseen)

    def has(self, *names: str) -> bool:
        """Return whether the latents of all of these exist."""
        return all(Dataset.find(self.dataset(name)) for name in names)

    def by(self, encoder: str) -> EvaluationSet:
        """Return the evaluation set of the same pictures by another encoder."""
        return replace(self, encoder=encoder)

    def encoders(self) -> list[str]:
        """Return the names of other encoders that embedded the test, sorted, without `tuned` ones."""
        return [name for name in self._others() if not name.startswith(TUNED)]

    def tuned(self) -> list[str]:
        """Return the names of backbones trained on its pictures that embedded the test, sorted."""
        return [name for name in self._others() if name.startswith(TUNED)]

    def _others(self) -> list[str]:
        names = sorted(path.name.removeprefix("latents-") for path in self.root.glob("latents-*"))
        needed = tested(self.models)
        return [name for name in names if self.by(name).has(*needed)]

    @property
    def spec(self) -> str | None:
        """Return the spec of the encoder of these latents; None where it is not known."""
        return self.specs.get(self.encoder, None if self.encoder else MINI)

    def network(self) -> Encoder | None:
        """Load the encoder of these latents; None where it is not known, not loadable, or another one."""
        if self.spec is None:
            return None
        try:
            encoder = load_encoder(self.spec)
        except EncoderError:
            return None
        return encoder if encoder.encoder_id == self.ids["encoder_id"] else None

    def dataset(self, name: str) -> str:
        """Return the URI of the embeddings of a role, or of its translations by a model."""
        folder = f"latents-{self.encoder}" if self.encoder else "latents"
        return str(self.root / folder / name / "embeddings")

    def translations(self, name: str) -> str:
        """Return the URI of the translations of that name."""
        return str(self.root / "translations" / name / "translations")

    @functools.cached_property
    def ids(self) -> dict[str, str]:
        """Return encoder_id and preprocess_id of the latents."""
        return Dataset.open(self.dataset(TEST)).ids

    def read(self, name: str) -> tuple[NDArray[np.float16], list[str]]:
        """Read latents float16[N,n] and image_ids of one data set, each picture once."""
        tables = list(Dataset.open(self.dataset(name)).tables(["image_id", "latent"]))
        ids = [i for table in tables for i in table["image_id"].to_pylist()]
        latents = np.concatenate([schemas.column_to_vectors(table["latent"]) for table in tables])
        first = _first(ids)
        return latents[first], [ids[i] for i in first]

    def uris(self, name: str) -> list[str]:
        """Return the URIs of the pictures of one data set, in the order of `read`."""
        table = pa.concat_tables(Dataset.open(self.dataset(name)).tables(["image_id", "uri"]))
        return list(table["uri"].take(_first(table["image_id"].to_pylist())).to_pylist())

    @functools.cached_property
    def _references(self) -> tuple[NDArray[np.float16], list[str]]:
        latents, ids = self.read(TEST)
        more, others = self.read(DISTRACTORS)
        return np.concatenate([latents, more]), ids + others

    @property
    def references(self) -> NDArray[np.float16]:
        """Return the latents of the test's origins, then of distractors, float16[R,n]."""
        return self._references[0]

    def queries(self, model: str, role: str = TEST) -> Queries:
        """Return the translations of a role's photos by a model."""
        return self._queries(f"{role}-{model}")

    @functools.lru_cache(maxsize=32)  # noqa: B019 (an evaluation set lives as long as its process)
    def _queries(self, name: str) -> Queries:
        latents, ids = self.read(name)
        origins = self.origins(name, ids)
        rows = pc.fill_null(pc.index_in(origins, value_set=pa.array(self._references[1])), -1)
        _, photos = np.unique(np.array(origins.to_pylist()), return_inverse=True)
        return Queries(latents, rows.to_numpy().astype(np.int64), photos.astype(np.int64))

    def origins(self, name: str, ids: list[str]) -> pa.Array:
        """Return the image_id of the photo that each translation was made from."""
        translations = pa.concat_tables(
            Dataset.open(self.translations(name)).tables(["image_id", "origin_id"])
        )
        place = pc.index_in(pa.array(ids), value_set=translations["image_id"].combine_chunks())
        if place.null_count:
            raise ExperimentError(f"{place.null_count} pictures of {name} are no translations of anything")
        return translations["origin_id"].combine_chunks().take(place)

    def pairs(self, model: str) -> Pairs:
        """Return training classes with the translations of a model."""
        name = f"{TRAIN}-{model}"
        return training_pairs.load(
            [Dataset.open(self.dataset(TRAIN)), Dataset.open(self.dataset(name))],
            [Dataset.open(self.translations(name))],
            self.root / "cache",
        )

    def search(self, transform: Transform, model: str, role: str = TEST) -> RankedReferences:
        """Search a model's queries among the references."""
        return search(transform, self.queries(model, role), self.references)


def tested(models: Sequence[str]) -> tuple[str, ...]:
    """Return the data sets that a closed set needs: references, then the queries of each model."""
    return (TEST, DISTRACTORS, *(f"{TEST}-{model}" for model in models))


def write_facts(root: Path, seen: str, unseen: Sequence[str], encoder: str, spec: str) -> None:
    """Write bench.json, or add to it which encoder made the latents of this name.

    Args:
        root: the folder.
        seen, unseen: models.
        encoder: name of the encoder, empty for the first.
        spec: what `load_encoder` takes for it; a local one is kept by its whole path.
    """
    try:
        specs = dict(strict_json.read_file(root / FACTS).get("encoders", {}))
    except FileNotFoundError:
        specs = {}
    except (ValueError, AttributeError, TypeError) as error:
        raise ExperimentError(
            f"{root / FACTS} is damaged: {error}; restore it, or make the set again"
        ) from error
    local = Path(spec).exists() and not is_short_name(spec)
    specs[encoder] = str(Path(spec).resolve()) if local else spec
    facts = {"seen": seen, "unseen": list(unseen), "encoders": specs}
    storage.write_bytes(str(root / FACTS), json.dumps(facts).encode())


def _first(ids: list[str]) -> NDArray[np.int64]:
    """Return the first place of each id, int64, ascending."""
    return np.sort(np.unique(np.array(ids), return_index=True)[1])


def search(
    transform: Transform, queries: Queries, references: NDArray[np.float16], kept: int = KEPT
) -> RankedReferences:
    """Search exactly.

    Args:
        transform: of queries and references.
        queries: Q of them.
        references: float16[R,n].
        kept: k, best references of each query that are kept.
    """
    against = transform.apply(references).T
    ranks, scores, rows = [], [], []
    for start in range(0, len(queries.latents), BATCH_ROWS):
        block = slice(start, start + BATCH_ROWS)
        block_scores = transform.apply(queries.latents[block]) @ against
        ranks.append(ranking.ranks_of(block_scores, queries.origins[block]))
        best = TopK(len(block_scores), kept)
        best.add(block_scores)
        best_rows, best_scores = best.result()
        rows.append(best_rows)
        scores.append(best_scores)
    return RankedReferences(np.concatenate(ranks), np.concatenate(scores), np.concatenate(rows), queries)


def mean(values: NDArray[np.float64], photos: NDArray[np.int64], seed: int = 0) -> Measure:
    """Return the mean of values float64[Q] with its 95% interval, resampling photos int64[Q]."""
    sums = np.bincount(photos, values)
    counts = np.bincount(photos)

    def statistic(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((weights @ sums) / (weights @ counts))[:, None]

    low, high = bootstrap.intervals(statistic, len(sums), RESAMPLES, seed)[:, 0]
    return Measure(float(values.mean()), float(low), float(high))


def closed_set(results: RankedReferences) -> dict[str, Measure]:
    """Return `map` and `acc` of queries that all have an origin."""
    photos = results.queries.photos
    return {"map": mean(results.precision, photos), "acc": mean(results.correct, photos)}


def difference(first: RankedReferences, second: RankedReferences) -> Measure:
    """Return the mAP of `first` less that of `second`, on the same queries."""
    return mean(first.precision - second.precision, first.queries.photos)


def pooled(
    parts: list[tuple[RankedReferences, NDArray[np.float64]]],
) -> tuple[Predictions, NDArray[np.int64]]:
    """Pool predictions of queries with and without origin; also return each query's photo.

    Args:
        parts: what was found, and what to subtract from each query's scores, float64[Q].
    """
    query, score, relevant, has, photos = [], [], [], [], []
    queries = pictures = 0
    for results, background in parts:
        count, k = results.rows.shape
        own = results.queries.origins
        query.append(np.repeat(np.arange(count) + queries, k))
        score.append((results.scores - background[:, None]).ravel())
        relevant.append(((results.rows == own[:, None]) & (own[:, None] >= 0)).ravel())
        has.append(own >= 0)
        photos.append(results.queries.photos + pictures)
        queries, pictures = queries + count, pictures + int(results.queries.photos.max()) + 1
    joined = Predictions(*(np.concatenate(x) for x in (query, score, relevant, has)))
    return joined, np.concatenate(photos)


def open_set(parts: list[tuple[RankedReferences, NDArray[np.float64]]], seed: int = 0) -> dict[str, Measure]:
    """Return `micro_ap` and `recall_at_p90` over all parts, see `pooled`."""
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
