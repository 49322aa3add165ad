"""What a request can be refused for before torch, Beam or an encoder is loaded."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from id2core import defaults
from id2core.errors import DatasetError, ID2Error, MissingExtraError, OptionError, SearchError, StorageError
from id2core.store import storage
from id2core.store.base import Mode


def require_images(uri: str | None, name: str, out: str | None = None) -> None:
    """Refuse a folder that is missing or empty, or that `out` is part of.

    Args:
        uri: a folder or prefix of images; None for an option that is not given.
        name: the option's name.
        out: where results go: among the images they would be taken for images.

    Raises:
        StorageError: there is nothing at `uri`.
        OptionError: `out` is inside it, or it is a source of another kind.
    """
    if uri is None:
        return
    from id2core.sources import registry
    from id2core.sources.folders import FolderSource

    source = registry.parse(uri)
    if not isinstance(source, FolderSource) or source.is_dated:
        raise OptionError(
            f"--{name} {uri}: give a folder or prefix of images (a folder of that name is written ./{uri})"
        )
    _require_content(uri, name, "a folder or prefix that holds images")
    if out:
        _require_apart(out, source.place, f"--out {out} is inside --{name} {uri}: results")


def require_source(uri: str, name: str, out: str, rows: str, mode: str | None = None) -> None:
    """Refuse a source that is missing, a mirror that is empty, and a place that `out` is part of.

    A source whose rows stay may be empty: nothing has come yet, or all was taken away.

    Args:
        uri: the source, as `sources.registry.parse` takes it.
        name: the option's name.
        out: where results go.
        rows: parent of the data sets of the corpus.
        mode: of the source.

    Raises:
        StorageError: there is nothing.
        OptionError: `out` is inside it, or it is a data set.
    """
    from id2.corpora import is_dataset
    from id2core.sources import dates, registry
    from id2core.sources.base import Item

    if is_dataset(uri):
        raise OptionError(
            f"--{name} {uri}: give a source of images. id2 scan, calibrate, and evaluate take a data set "
            f"(a folder of that name is written ./{uri})"
        )
    source = registry.parse(uri, Mode(mode) if mode else None)
    if source.is_dated:
        dates.require(source.folder)
        if dates.holds(source.place, storage.normalize(out)):
            raise OptionError(f"--out {out} is in a night of --{name} {uri}: choose another --out")
        return
    if source.mode is Mode.MIRROR:
        storage.require(source.place)
        if not any(isinstance(item, Item) for item in source.items()):
            append = ", or --mode append where uploads are still to come" if name != "reference" else ""
            raise StorageError(f"--{name} {uri} is empty: give a source that holds images{append}")
    else:
        next(source.items(), None)  # raises where there is no such place
    place = storage.normalize(rows)
    _require_apart(out, source.place, f"--out {out} is inside --{name} {uri}: results")
    _require_apart(
        place, source.place, f"the embeddings of --{name} go to {place}, inside --{name} {uri}: they"
    )


def _require_apart(out: str, images: str, what: str) -> None:
    """Raise OptionError where results would go among images."""
    if inside(storage.normalize(out), images):
        raise OptionError(f"{what} would be taken for images; choose another --out")


def require_corpus(uri: str | None, name: str, out: str, mode: str | None = None) -> None:
    """Refuse sources that `require_source` refuses, and `dataset:` before a place that holds none.

    The images' own results go to OUT/NAME. Whoever fills a folder of images must not be able to write these.

    Raises:
        StorageError, OptionError: as `require_source`.
        DatasetError: there is no data set.
    """
    if uri is None:
        return
    from id2.corpora import Corpus, is_dataset, place_of

    if is_dataset(uri):
        _require_content(place_of(uri), name, "the --out of id2 embed")
        Corpus.open(name, uri)
    else:
        require_source(uri, name, out, storage.join(out, name), mode)


def require_dataset(uri: str, name: str, kind: str) -> None:
    """Refuse a place that is neither a data set nor the --out that one is in.

    Args:
        uri: the place.
        name: the option's name.
        kind: `embeddings`, `translations` or `matches`, the folder of the data set within an --out.

    Raises:
        StorageError: there is nothing at `uri`.
        DatasetError: there is no data set.
    """
    from id2.corpora import open_inside, place_of

    _require_content(place_of(uri), name, "a data set of id2, or the --out that it is in")
    open_inside(uri, kind)


def require_runs(out: str) -> None:
    """Refuse a place in which no command has run.

    Raises:
        DatasetError: it has no table of runs.
    """
    from id2core.runs.records import RUNS
    from id2core.store.datasets import Dataset

    place = storage.normalize(out)
    if Dataset.find(storage.join(place, RUNS)) is None:
        raise DatasetError(f"--out {out}: no command of id2 has run there; give the --out of one")


def _require_content(uri: str, name: str, wanted: str) -> str:
    """Return where the URI is."""
    place = storage.normalize(uri)
    storage.require(place)
    if storage.is_empty(place):
        raise StorageError(f"--{name} {uri} is empty: give {wanted}")
    return place


def inside(uri: str, folder: str) -> bool:
    """Return whether a place is a folder or below it; links are followed."""
    if not storage.is_remote(uri) and not storage.is_remote(folder):
        return storage.contains(folder, uri)
    return f"{uri}/".startswith(f"{folder.rstrip('/')}/")


def require_writable(out: str, *, is_file: bool = False) -> None:
    """Refuse a local place that cannot be written; a bucket is tried when the first object is written.

    Args:
        out: a folder.
        is_file: `out` is a file instead.

    Raises:
        StorageError: a file or folder stands in the way, or the folder is not writable.
    """
    place = storage.normalize(out)
    if storage.is_remote(place):
        return
    target = above = storage.local_path(place)
    while not above.exists():
        above = above.parent
    if above.is_file() and not (is_file and above == target):
        raise StorageError(f"--out {out}: {above} is a file: give a folder")
    if is_file and target.is_dir():
        raise StorageError(f"--out {out} is a folder: give a file")
    if not os.access(above, os.W_OK):
        raise StorageError(f"--out {out}: no permission to write to {above}")


def require_local(out: str, error: type[ID2Error]) -> None:
    """Refuse a bucket as the place of checkpoints."""
    if storage.is_remote(storage.normalize(out)):
        raise error(f"{out}: checkpoints are written to a local folder: give one, or a mounted one")


def require_file(
    spec: str | None,
    name: str,
    error: type[ID2Error],
    others: str = " (or auto for the bundled one, none for none)",
) -> None:
    """Refuse a local file that is not there; `auto` and `none` are no files.

    Args:
        spec: a file or URI; None for an option that is not given.
        name: the option's name.
        error: what is raised.
        others: what may be given in place of a file, as the message ends.
    """
    if spec in (None, defaults.AUTO, defaults.NONE) or storage.is_remote(str(spec)):
        return
    if not Path(str(spec)).is_file():
        raise error(f"--{name} {spec}: no such file{others}")


def require_truth(uri: str | None) -> None:
    """Refuse a truth file that is missing or lacks a column; only its header is read.

    Raises:
        TruthError: what is missing.
    """
    if uri is None:
        return
    from id2core.evaluation import truth_files

    truth_files.check_header(uri)


def require_prompts(spec: str | None, images: str, out: str) -> None:
    """Refuse prompts that are missing or cannot be read. A file is read whole, and once for the run.

    Raises:
        PromptError: what is missing.
    """
    from id2core.translation import prompts

    prompts.load(spec, images, out)


def require_evaluation_set(folder: str) -> None:
    """Refuse a folder that `id2 experiment data` has not filled.

    Raises:
        ExperimentError: what is missing.
    """
    from id2core.experiments.evaluation_sets import EvaluationSet

    EvaluationSet.load(Path(folder))


def require_index(name: str) -> None:
    """Refuse an index that there is none of."""
    from id2core.search import indexes

    try:
        indexes.check_name(name)
    except SearchError as error:
        raise OptionError(str(error)) from error


def require_compressed(name: str) -> None:
    """Refuse an index that has no codes to be stored."""
    from id2core.search import indexes

    require_index(name)
    if indexes.is_built_at_once(name):
        raise OptionError(f"{name} needs no index to be built: give the string of a compressed one")


def require_faiss() -> None:
    """Refuse a search without FAISS."""
    if importlib.util.find_spec("faiss") is None:
        raise MissingExtraError("a search needs FAISS: pip install 'id2[cpu]' or 'id2[gpu]', one of them")


def require_packages(extra: str, *packages: str) -> None:
    """Refuse an optional part whose packages are not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"this needs {', '.join(missing)}: pip install 'id2[{extra}]'")
