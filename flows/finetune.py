"""The finetune flow: a whole vision backbone, trained on the pictures of originals and their translations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from prefect import flow, task

from flows.progress import reporter
from flows.tasks import RETRY, record_run
from flows.train import data_sets
from id2core import environment
from id2core.errors import FinetuneError
from id2core.runs.planning import PICTURES
from id2core.store import datasets, storage
from id2core.training import finetune as trainer
from id2core.training.finetune import REPORT, Labelled, Recipe
from id2core.translation.rows import TRANSLATIONS

_READERS = 32
_SET_BY_TRAINER = {"init", "data"}


class _Row(NamedTuple):
    """A translation: where its picture is now and whether it is there, and what it was made from."""

    picture: str
    there: bool
    origin_id: str
    origin_uri: str


@dataclass
class Found:
    """What there is to train on.

    Attributes:
        origins: id of an origin → its picture, of those that have a translation.
        translations: picture → id of its origin.
        missing: URIs of origins, as the data sets have them, that are not below the originals.
        lost: translations whose picture is not there, though the origin is.
    """

    origins: dict[str, str] = field(default_factory=dict)
    translations: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    @property
    def pictures(self) -> list[Labelled]:
        """Each with its class, sorted: the order in which parts were written does not matter."""
        origins = [(uri, origin) for origin, uri in self.origins.items()]
        return sorted([*origins, *self.translations.items()])


def find(originals: str, translations: Iterable[str]) -> Found:
    """Pictures of originals and translations, also where the folders have moved since.

    An original is the file that has the name and the SHA-256 that the data sets give.

    Args:
        originals: folder of the pictures that were translated.
        translations: data sets of `id2 translate` (or its `--out`), with the pictures beside them.

    Raises:
        FinetuneError: none of the origins, or of the translations, is there.
        StorageError, DatasetError: a folder or data set cannot be read.
    """
    root = storage.normalize(originals)
    rows = [row for uri in data_sets(list(translations), TRANSLATIONS) for row in _rows(uri)]
    known = _by_hash(root, {_name(row.origin_uri) for row in rows})
    found = Found()
    for row in rows:
        if row.origin_id not in known:
            found.missing.add(row.origin_uri)
        elif not row.there:
            found.lost.add(row.picture)
        else:
            found.origins[row.origin_id] = known[row.origin_id]
            found.translations[row.picture] = row.origin_id
    if not found.translations:
        raise FinetuneError(_nothing(found, root))
    return found


def _nothing(found: Found, root: str) -> str:
    if found.lost:
        return (
            f"none of the {len(found.lost)} translations is there, not even {min(found.lost)}: put the data "
            f"set beside its {PICTURES}/"
        )
    example = f", such as {min(found.missing)}" if found.missing else ""
    return (
        f"none of the {len(found.missing)} origins is below {root}, unchanged{example}: give the "
        "folder that was translated"
    )


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]


def _by_hash(root: str, names: set[str]) -> dict[str, str]:
    """SHA-256 → picture, of all below a folder that have one of the names; of equal pictures the first."""
    named = [obj.uri for obj in storage.list_objects(root) if _name(obj.uri) in names]
    found: dict[str, str] = {}
    tell = reporter()
    with ThreadPoolExecutor(_READERS) as pool:
        for done, (uri, digest) in enumerate(zip(named, pool.map(_sha256, named), strict=True), 1):
            found.setdefault(digest, uri)
            tell("originals", done, len(named))
    return found


def _sha256(uri: str) -> str:
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest()


def _rows(uri: str) -> list[_Row]:
    """The translations of a data set."""
    folder = storage.join(uri.rpartition("/")[0], PICTURES)
    columns: list[list[str]] = [[], [], []]
    for table in datasets.iterate(uri, ["uri", "origin_id", "origin_uri"]):
        for column, values in zip(columns, table.to_pydict().values(), strict=True):
            column += values
    pictures = [_beside(folder, written) for written in columns[0]]
    there = _there(folder, pictures)
    rows = zip(pictures, columns[1], columns[2], strict=True)
    return [_Row(picture, picture in there, *origin) for picture, *origin in rows]


def _beside(folder: str, written: str) -> str:
    """Where a picture is now: those of `id2 translate` stay beside their data set, others where they were."""
    _, made_here, name = written.rpartition(f"/{PICTURES}/")
    return storage.join(folder, name) if made_here else written


def _there(folder: str, pictures: list[str]) -> set[str]:
    """Those that exist, and others in the folder, which is listed once."""
    elsewhere = [picture for picture in pictures if not picture.startswith(f"{folder}/")]
    found: set[str] = set()
    if len(elsewhere) < len(pictures):
        found.update(obj.uri for obj in storage.list_objects(folder))
    with ThreadPoolExecutor(_READERS) as pool:
        exist = pool.map(storage.exists, elsewhere)
        found.update(uri for uri, exists in zip(elsewhere, exist, strict=True) if exists)
    return found


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
        out: local directory of the backbone, of what training leaves to go on from, and of `runs/`.
        recipe: what differs from `finetune.Recipe`, by the names there.
        device: `auto`, `cpu`, `cuda`, …
        checkpoint_every: steps that a kill may cost.

    Returns:
        `encoder`: the directory that `--encoder` takes; the number of `pictures` and `origins`; `left_out`:
        how many `origins` are not below the originals, and of how many `translations` the picture is not
        there; `report`: the file that has recipe and seconds.

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
    report = Path(encoder, REPORT)
    _record(place, originals, translations, json.loads(report.read_text()))
    return {
        "encoder": encoder,
        "pictures": len(found.pictures),
        "origins": len(found.origins),
        "left_out": {"origins": len(found.missing), "translations": len(found.lost)},
        "report": str(report),
    }


def _record(out: str, originals: str, translations: list[str], facts: dict[str, Any]) -> None:
    """The row of the run, where it is not there yet: its recipe says what it began with, and its data."""
    run_id = datasets.digest_of(facts["recipe"])
    known = datasets.read_commit(storage.join(out, "runs"))
    if known is not None and run_id in known.runs:
        return
    run = {
        "run_id": run_id,
        "config": {"originals": originals, "translations": translations, "recipe": facts["recipe"]},
        "seconds": {"training": facts["seconds"]},
        "versions": environment.versions(),
    }
    record_run(out, "finetune", run, {"listed": facts["pictures"]})


def of_recipe(given: dict[str, Any]) -> Recipe:
    """The recipe with what differs from it; FinetuneError where no training could follow it."""
    unknown = set(given) - ({f.name for f in fields(Recipe)} - _SET_BY_TRAINER)
    if unknown:
        raise FinetuneError(f"a recipe has no {', '.join(sorted(unknown))}")
    chosen = Recipe(**given)
    chosen.check()
    return chosen
