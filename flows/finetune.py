"""The finetune flow: a whole vision backbone, trained on the pictures of originals and their translations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from prefect import flow, task

from flows.progress import reporter
from flows.tasks import RETRY
from flows.train import data_sets
from id2core import datasets, storage
from id2core.oripid.translation import TRANSLATIONS
from id2core.training import finetune as trainer
from id2core.training.finetune import REPORT, FinetuneError, Labelled, Recipe

_PICTURES = "/pictures/"
_SET_BY_TRAINER = {"init", "data"}


@dataclass
class Found:
    """What there is to train on.

    Attributes:
        origins: id of an origin → its picture, of those that have a translation.
        translations: picture → id of its origin.
        missing: URIs of origins, as the data sets have them, that are not below the originals.
    """

    origins: dict[str, str] = field(default_factory=dict)
    translations: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    @property
    def pictures(self) -> list[Labelled]:
        """Each with its class, sorted: the order in which parts were written does not matter."""
        origins = [(uri, origin) for origin, uri in self.origins.items()]
        return sorted([*origins, *self.translations.items()])


def find(originals: str, translations: Iterable[str]) -> Found:
    """Pictures of originals and translations, also where the folders have moved since.

    Args:
        originals: folder of the pictures that were translated.
        translations: data sets of `id2 translate` (or its `--out`), with the pictures beside them.

    Raises:
        FinetuneError: none of the origins is there.
        StorageError, DatasetError: a folder or data set cannot be read.
    """
    root = storage.normalize(originals)
    below = {obj.uri.removeprefix(root).lstrip("/"): obj.uri for obj in storage.list_objects(root)}
    found = Found()
    for uri in data_sets(list(translations), TRANSLATIONS):
        for picture, origin_id, origin_uri in _rows(uri):
            origin = found.origins.get(origin_id) or _below(below, origin_uri)
            if origin is None:
                found.missing.add(origin_uri)
            else:
                found.origins[origin_id] = origin
                found.translations[picture] = origin_id
    if not found.origins:
        example = min(found.missing, default="")
        raise FinetuneError(
            f"none of the {len(found.missing)} origins is below {root}: give the folder that was translated"
            + (f", which had {example}" if example else "")
        )
    return found


def _rows(uri: str) -> Iterator[tuple[str, str, str]]:
    """Where each translation is now, and what it was made from."""
    folder = uri.rstrip("/").rpartition("/")[0]
    for table in datasets.iterate(uri, ["uri", "origin_id", "origin_uri"]):
        for written, origin_id, origin_uri in zip(*table.to_pydict().values(), strict=True):
            _, made_here, name = written.rpartition(_PICTURES)
            yield (f"{folder}{_PICTURES}{name}" if made_here else written), origin_id, origin_uri


def _below(known: dict[str, str], uri: str) -> str | None:
    """The picture whose path below the folder is the longest end of a URI."""
    parts = uri.split("/")
    ends = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((known[end] for end in ends if end in known), None)


@task(**RETRY)
def train_backbone(
    pictures: list[Labelled], recipe: Recipe, out: str, device: str, checkpoint_every: int
) -> str:
    """Train, or go on."""
    folder = trainer.finetune(
        pictures,
        recipe,
        Path(out),
        device=device,
        checkpoint_every=checkpoint_every,
        progress=reporter(),
    )
    return str(folder)


@flow(name="finetune", flow_run_name="finetune {out}", validate_parameters=False)
def finetune(
    originals: str,
    translations: list[str],
    out: str,
    recipe: dict[str, Any] | None = None,
    device: str = "auto",
    checkpoint_every: int = 250,
) -> dict[str, Any]:
    """Train a vision backbone to tell origins apart.

    Args:
        originals: folder of the pictures that were translated.
        translations: data sets of `id2 translate`, or its `--out`.
        out: local directory of the backbone and of what training leaves to go on from.
        recipe: what differs from `finetune.Recipe`, by the names there.
        device: `auto`, `cpu`, `cuda`, …
        checkpoint_every: steps that a kill may cost.

    Returns:
        `encoder`: the directory that `--encoder` takes; the number of `pictures` and `origins`; `left_out`:
        origins that are not below the originals; `report`: the file that has recipe and seconds.

    Raises:
        FinetuneError: arguments or pictures from which nothing can be trained.
        EncoderError: the backbone cannot be loaded.
    """
    place = storage.normalize(out)
    if storage.is_remote(place):
        raise FinetuneError(f"{place}: checkpoints are written to a local directory: give one")
    chosen = of_recipe(recipe or {})
    found = find(originals, translations)
    encoder = train_backbone(found.pictures, chosen, place, device, checkpoint_every)
    return {
        "encoder": encoder,
        "pictures": len(found.pictures),
        "origins": len(found.origins),
        "left_out": len(found.missing),
        "report": str(Path(encoder, REPORT)),
    }


def of_recipe(given: dict[str, Any]) -> Recipe:
    """The recipe with what differs from it; FinetuneError where no training could follow it."""
    unknown = set(given) - ({f.name for f in fields(Recipe)} - _SET_BY_TRAINER)
    if unknown:
        raise FinetuneError(f"a recipe has no {', '.join(sorted(unknown))}")
    chosen = Recipe(**given)
    chosen.check()
    return chosen
