"""OriPID itself, as it was downloaded, laid out as an evaluation set: pictures linked by role.

Nothing is copied: `DATA/photos/ROLE` holds links. References that are origins of queries become `test`, all
others `distractors`; queries of a model become `test-MODEL`, and edits of SEED-Data-Edit `test-manual`, whose
sources go to the distractors. What does not fit the layout is not linked, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from id2core.errors import ReaderError, StorageError
from id2core.experiments.photo_bench import DISTRACTORS, TEST
from id2core.oripid import readers
from id2core.oripid.readers import DEFAULT_LAYOUT, MODELS, OripidLayout
from id2core.store import storage

# The model whose translations the published training latents are of.
SEEN = MODELS[0]
MANUAL = "manual"
PHOTOS = "photos"
_OF_SEED = "seed--"  # so that its sources have other names than the references


@dataclass(frozen=True)
class LinkedSet:
    """The pictures that were linked, by role.

    Attributes:
        models: that there are queries by, the seen one first.
        truth: role of queries, `test-MODEL` or `test-manual` → link of a query → link of its origin.
        photos: role of references → how many.
        dropped: role of queries → `readers.UnpairedReason` → how many were left out.
    """

    models: tuple[str, ...]
    truth: Mapping[str, Mapping[str, str]]
    photos: Mapping[str, int]
    dropped: Mapping[str, Mapping[str, int]]


def features_of(root: str, features: str | None = None, layout: OripidLayout = DEFAULT_LAYOUT) -> str:
    """Return the folder of training latents: the one given, or the one below the root.

    Raises:
        ReaderError: it is not there.
    """
    folder = storage.normalize(features or storage.join(root, layout.features))
    try:
        storage.require(folder)
    except StorageError as error:
        raise ReaderError(
            f"{error}: OriPID's training latents belong there, and every experiment needs them; unpack "
            "them, or say where they are (--features)"
        ) from error
    return folder


def models_of(root: str, layout: OripidLayout = DEFAULT_LAYOUT) -> tuple[str, ...]:
    """Return the models that have a folder of queries: the seen one, then those of the paper, then others.

    Raises:
        ReaderError: the seen model or any other is missing.
    """
    base, _, rest = storage.join(root, layout.queries).partition("{model}")
    folders = sorted(path.name for path in Path(base).glob("*") if Path(f"{path}{rest}").is_dir())
    models = [model for model in MODELS if model in folders]
    models += [name for name in folders if name not in MODELS]
    if SEEN not in models or len(models) == 1:
        missing = "a folder of an unseen model" if SEEN in models else f"the folder {SEEN}"
        raise ReaderError(
            f"{base} has {', '.join(folders) or 'no folders'}: {missing} is missing. Queries by {SEEN}, "
            f"which W is trained on, and by another, such as {MODELS[1]}, belong there: rename folders, or "
            "link them"
        )
    return tuple(models)


def lay_out(
    root: str, data: Path, seed_edits: str | None = None, layout: OripidLayout = DEFAULT_LAYOUT
) -> LinkedSet:
    """Make DATA/photos/ROLE. A second call changes nothing, unless files were added or removed.

    Args:
        root: local folder of the unpacked data set.
        data: local folder.
        seed_edits: local folder of SEED-Data-Edit, as `readers.read_seed_edits` takes it.
        layout: where files are and how they are named.

    Raises:
        ReaderError: a part is missing, or no name in it fits; or the folder has edits by people, and
            `seed_edits`, without which their sources would be lost, is not given.
        StorageError: no such folder.
    """
    photos = Path(storage.normalize(data)) / PHOTOS
    edited = photos / f"{TEST}-{MANUAL}"
    if edited.exists() and not seed_edits:
        raise ReaderError(
            f"{edited} holds edits by people, whose sources are among the distractors: give SEED-Data-Edit "
            "again (--seed-edits), or choose another --data for one without them"
        )
    places = [storage.normalize(place) for place in (root, seed_edits) if place]
    if remote := [place for place in places if storage.is_remote(place)]:
        raise ReaderError(f"{remote[0]}: pictures are linked, so give a local folder, or a mounted one")
    models = models_of(places[0], layout)
    pool = readers.read_oripid_references(places[0], layout)
    sets = {f"{TEST}-{m}": readers.read_oripid_test(places[0], m, layout, pool) for m in models}
    origins = {origin for pair_set in sets.values() for origin in pair_set.truth.values() if origin}
    links = {
        TEST: {uri: Path(uri).name for uri in sorted(origins)},
        DISTRACTORS: {uri: Path(uri).name for uri in pool.values() if uri not in origins},
    }
    if seed_edits:
        edits = readers.read_seed_edits(places[1])
        sets[f"{TEST}-{MANUAL}"] = edits
        links[DISTRACTORS] |= {uri: _OF_SEED + _flat(uri, places[1]) for uri in edits.references}
    if not links[DISTRACTORS]:
        raise ReaderError(
            f"all {len(pool)} references below {places[0]} are origins of queries: the others, which "
            "queries are compared with, are missing"
        )
    links |= {role: {uri: _flat(uri, *places) for uri in pair_set.truth} for role, pair_set in sets.items()}
    for role, wanted in links.items():
        _link(photos / role, wanted)
    of = {uri: str(photos / role / name) for role in (TEST, DISTRACTORS) for uri, name in links[role].items()}
    truth = {
        role: {str(photos / role / links[role][q]): of[o] for q, o in pair_set.truth.items() if o}
        for role, pair_set in sets.items()
    }
    counts = {role: len(links[role]) for role in (TEST, DISTRACTORS)}
    return LinkedSet(
        models, truth, counts, {role: pair_set.unpaired_counts for role, pair_set in sets.items()}
    )


def _flat(uri: str, *roots: str) -> str:
    """Return a file's path below one of the roots as one name."""
    below = next(uri.removeprefix(f"{root}/") for root in roots if uri.startswith(f"{root}/"))
    return below.replace("/", "--")


def _link(folder: Path, wanted: Mapping[str, str]) -> None:
    """Make the folder hold links of these names to these files, and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    names = set(wanted.values())
    for path in list(folder.iterdir()):
        if path.is_symlink() and path.name not in names:
            path.unlink()
    for uri, name in wanted.items():
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(uri)
        elif str(link.readlink()) != uri:  # the data set was moved
            link.unlink()
            link.symlink_to(uri)
