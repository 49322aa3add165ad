"""Which latent is a translation of which, told by what the files are called.

The names of OriPID's training features say it all (`readers.OripidLayout`); queries are paired by a reader.
Both become data sets of `tables.TRANSLATIONS`, in which what is not known (prompt, model, strength) is null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from id2core.encoders.embedding import EMBEDDINGS
from id2core.errors import ReaderError
from id2core.oripid import feature_files
from id2core.oripid.feature_files import LATENT_SIZE
from id2core.oripid.readers import DEFAULT_LAYOUT, Drop, OripidLayout
from id2core.runs import planning
from id2core.runs.parts import REJECTS
from id2core.runs.planning import Plan
from id2core.runs.progress import Progress, silent
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Commit
from id2core.transforms.linear import Transform
from id2core.translation.rows import TRANSLATIONS

# What the release's features are: samples of the posterior of Stable Diffusion 2's VAE.
ENCODER_ID = "sd2-sample"
STAGE = "pairs"
_COLUMNS = ["image_id", "uri", "bytes"]
_MOST_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class Imported:
    """What became of a folder of feature files.

    Attributes:
        out: parent of `embeddings/`, `rejects/` and `translations/`.
        run_id: of the translations.
        listed: files; each is embedded or rejected.
        embedded, rejected: files that gave a latent, and those that did not.
        reasons: of rejects → how many.
        origins: classes: origins with one translation or more.
        translations: of these origins.
        left_out: why a latent is in no class → how many; a reason of `readers.Drop`.
        examples: the same → the first such file.
        resumed: nothing was new.
    """

    out: str
    run_id: str
    listed: int
    embedded: int
    rejected: int
    reasons: dict[str, int]
    origins: int
    translations: int
    left_out: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    resumed: bool = False


def import_training(
    features: str,
    out: str,
    encoder_id: str = ENCODER_ID,
    transform: Transform | None = None,
    layout: OripidLayout = DEFAULT_LAYOUT,
    latent_size: int = LATENT_SIZE,
    progress: Progress = silent,
) -> Imported:
    """Make `OUT/embeddings`, `OUT/rejects` and `OUT/translations` of published training features.

    Interrupted and started again it goes on where it was; finished, it only lists. Latents are read once,
    names come from the embeddings file by file; of all that is paired, memory holds 8 bytes a file and the
    ids of the origins. Besides, the listing is in memory (`planning`): about 1 kB a file.

    Args:
        features: folder or bucket prefix of `.npy` files; class and index stand in the names.
        out: parent of the three data sets.
        encoder_id, transform, latent_size: as `feature_files.import_features` takes them.
        layout: how files are named. Of two files of one class and index the first in the data set counts.
        progress: called with "features", then "pairs", and how many files of how many.

    Raises:
        ReaderError: no name fits the layout, no file holds a latent, or no origin has a translation.
        TransformError, DatasetError, StorageError: as `feature_files.import_features`.
    """
    plan = feature_files.import_features(
        features,
        out,
        encoder_id,
        transform,
        latent_size,
        check=lambda plan: _check_names(plan, layout),
        progress=progress,
    )
    counts, run_id, paired = _pair(plan, layout, progress)
    rejects = datasets.iterate(storage.join(plan.out, REJECTS), ["reason"])
    reasons = Counter(reason for table in rejects for reason in table["reason"].to_pylist())
    return Imported(
        out=plan.out,
        run_id=run_id,
        listed=plan.listed,
        embedded=datasets.require_commit(storage.join(plan.out, EMBEDDINGS)).rows,
        rejected=reasons.total(),
        reasons=dict(sorted(reasons.items())),
        resumed=plan.done and not paired,
        **counts,
    )


def _check_names(plan: Plan, layout: OripidLayout) -> None:
    """Fail before hours of reading and not after, where no name fits."""
    if plan.done or plan.objects < plan.listed:  # some were read before
        return
    first = ""
    for index in range(plan.parts):
        uris = [o.uri for o in planning.read_part(plan, index)]
        if any(layout.label(uri) for uri in uris):
            return
        first = first or uris[0]
    example = f", for example {first}" if first else ""
    raise ReaderError(
        f"none of {plan.listed} files below {plan.source} has a name that fits{example}: give the folder "
        f"with OriPID's training features, T000000_1.npy and so on"
    )


@dataclass(frozen=True, eq=False)
class _Classes:
    """What the names of N latents say, in the order of the data set.

    Attributes:
        members: int32[N], the class of each translation that has its origin, −1 for all other latents.
        numbers: int32[N], in the class.
        origin_ids, origin_uris: Arrow strings, of every class; null where it has no origin.
        counts: what `Imported` says of them.
    """

    members: NDArray[np.int32]
    numbers: NDArray[np.int32]
    origin_ids: pa.Array
    origin_uris: pa.Array
    counts: dict[str, Any]


def _pair(plan: Plan, layout: OripidLayout, progress: Progress) -> tuple[dict[str, Any], str, bool]:
    """Write the translations, unless they are those of these embeddings: counts, run_id, whether written."""
    embeddings, target = (storage.join(plan.out, name) for name in (EMBEDDINGS, TRANSLATIONS))
    commit = datasets.require_commit(embeddings)
    run_id = datasets.digest_of("pairs", commit.digest, commit.source, asdict(layout))
    last = datasets.read_commit(target)
    if last and last.run_id == run_id:
        return last.runs[run_id], run_id, False
    if not commit.rows:
        raise ReaderError(
            f"none of {plan.listed} files below {plan.source} holds a latent; the reasons stand in "
            f"{storage.join(plan.out, REJECTS)}"
        )
    found = _classes(embeddings, commit, layout)
    if not found.counts["translations"]:
        raise ReaderError(
            f"no origin below {plan.source} has a translation ({found.counts['left_out']}): an origin is "
            f"called T000000_{layout.origin_index}, its translations T000000_1 and so on"
        )
    rows = _rows(embeddings, commit, found, run_id, progress)
    _write(target, rows, run_id, plan.source, found.counts)
    return found.counts, run_id, True


def _classes(uri: str, commit: Commit, layout: OripidLayout) -> _Classes:
    """Read the names, and find for each class its origin."""
    known: dict[str, int] = {}
    origins: dict[int, tuple[str, str]] = {}
    classes, numbers = [], []
    for table in datasets.read_each(uri, commit.files, _COLUMNS):
        labels = [_label(layout, name) for name in table["uri"].to_pylist()]
        of = [known.setdefault(origin, len(known)) if origin else -1 for origin, _ in labels]
        for row, (name, (_, number)) in enumerate(zip(of, labels, strict=True)):
            if name >= 0 and number == layout.origin_index and name not in origins:
                origins[name] = table["image_id"][row].as_py(), table["uri"][row].as_py()
        classes.append(np.array(of, np.int32))
        numbers.append(np.array([number for _, number in labels], np.int32))
    every = [origins.get(i, (None, None)) for i in range(len(known))]
    ids, uris = (pa.array([pair[i] for pair in every], pa.string()) for i in (0, 1))
    joined, indices = np.concatenate(classes), np.concatenate(numbers)
    members, why, paired = _members(joined, indices, ~ids.is_null().to_numpy(False), layout.origin_index)
    left_out = {str(reason): rows for reason, rows in why.items() if len(rows)}
    counts = {
        "origins": paired,
        "translations": int((members >= 0).sum()),
        "left_out": {reason: len(rows) for reason, rows in left_out.items()},
        "examples": _uris(uri, commit, {reason: int(rows[0]) for reason, rows in left_out.items()}),
    }
    return _Classes(members, indices, ids, uris, counts)


def _label(layout: OripidLayout, uri: str) -> tuple[str, int]:
    """Class and number in a name; no class where it does not fit."""
    label = layout.label(uri)
    return label if label and label[1] <= _MOST_NUMBER else ("", -1)


def _members(
    classes: NDArray[np.int32], numbers: NDArray[np.int32], has_origin: NDArray[np.bool_], origin_index: int
) -> tuple[NDArray[np.int32], dict[Drop, NDArray[np.int64]], int]:
    """The classes of translations, rows that are in no class by reason, and how many classes there are."""
    fits = classes >= 0
    codes = classes.astype(np.int64) << 32 | numbers
    first = np.zeros(len(codes), np.bool_)
    first[np.unique(codes, return_index=True)[1]] = True
    counted, is_origin = fits & first, numbers == origin_index
    with_origin = np.append(has_origin, False)[classes]
    translated = counted & ~is_origin & with_origin
    sizes = np.bincount(classes[translated], minlength=len(has_origin) + 1)
    why = {
        Drop.NAME: ~fits,
        Drop.SAME_NAME: fits & ~first,
        Drop.NO_ORIGIN: counted & ~is_origin & ~with_origin,
        Drop.NO_TRANSLATION: counted & is_origin & (sizes[classes] == 0),
    }
    members = np.where(translated, classes, -1).astype(np.int32)
    return members, {reason: np.flatnonzero(rows) for reason, rows in why.items()}, int((sizes > 0).sum())


def _uris(uri: str, commit: Commit, rows: Mapping[str, int]) -> dict[str, str]:
    """The URIs of some rows of a data set."""
    found: dict[str, str] = {}
    start = 0
    for record in commit.files:
        inside = {name: row - start for name, row in rows.items() if start <= row < start + record.rows}
        if inside:
            column = datasets.read_file(uri, record, ["uri"])["uri"]
            found |= {name: column[row].as_py() for name, row in inside.items()}
        start += record.rows
    return {name: found[name] for name in rows}


def _rows(uri: str, commit: Commit, found: _Classes, run_id: str, progress: Progress) -> Iterator[pa.Table]:
    """The rows of translations, as many tables as the data set has files."""
    start = 0
    for table in datasets.read_each(uri, commit.files, _COLUMNS):
        here = slice(start, start + table.num_rows)
        start += table.num_rows
        chosen = found.members[here] >= 0
        classes = pa.array(found.members[here][chosen])
        own = table.filter(pa.array(chosen))
        columns = {name: own[name] for name in _COLUMNS} | {
            "origin_id": found.origin_ids.take(classes),
            "origin_uri": found.origin_uris.take(classes),
            "number": pa.array(found.numbers[here][chosen]),
        }
        yield _table(columns, own.num_rows, run_id)
        progress(STAGE, start, commit.rows)


def _table(columns: Mapping[str, Any], rows: int, run_id: str) -> pa.Table:
    """Some columns as `tables.TRANSLATIONS`, the others null."""
    schema = schemas.TRANSLATIONS
    known = {**columns, "run_id": pa.repeat(run_id, rows)}
    return pa.Table.from_arrays(
        [known[f.name] if f.name in known else pa.nulls(rows, f.type) for f in schema], schema=schema
    )


def _write(uri: str, rows: Iterator[pa.Table], run_id: str, source: str, counts: dict[str, Any]) -> None:
    record = datasets.write_file(uri, f"part-{run_id}", rows, schemas.TRANSLATIONS)
    made = Commit(TRANSLATIONS, run_id, {}, (record,), {run_id: counts}, source)
    datasets.write_commit(uri, made)


def pair_queries(
    out: str, queries: str, references: Sequence[str], truth: Mapping[str, str]
) -> dict[str, int]:
    """Make the data set `out` of translations: which embedded query is of which embedded reference.

    Done again, it writes nothing. Everything is held in memory: about 1 kB a query and reference.

    Args:
        out: the data set itself.
        queries: embeddings of the queries.
        references: embeddings that hold the origins, among others.
        truth: URI of a query → URI of its origin.

    Returns:
        `queries` that are paired, and of these those `without_reference`: their origin has no latent. They
        keep its URI as `origin_id`, so that they count as not found rather than not at all.

    Raises:
        DatasetError: a data set is not complete.
    """
    commits = [datasets.require_commit(uri) for uri in (queries, *references)]
    run_id = datasets.digest_of("queries", [c.digest for c in commits], sorted(truth.items()))
    last = datasets.read_commit(out)
    if last and last.run_id == run_id:
        return last.runs[run_id]
    wanted = set(truth.values())
    ids: dict[str, str] = {}
    for uri in references:
        for table in datasets.iterate(uri, ["uri", "image_id"]):
            pairs = zip(table["uri"].to_pylist(), table["image_id"].to_pylist(), strict=True)
            ids.update((name, image_id) for name, image_id in pairs if name in wanted)
    schema = schemas.TRANSLATIONS
    asked = [r for t in datasets.iterate(queries, _COLUMNS) for r in t.to_pylist() if r["uri"] in truth]
    origins = [truth[row["uri"]] for row in asked]
    columns = {name: pa.array([r[name] for r in asked], schema.field(name).type) for name in _COLUMNS}
    columns["origin_uri"] = pa.array(origins, pa.string())
    columns["origin_id"] = pa.array([ids.get(o, o) for o in origins], pa.string())
    counts = {"queries": len(asked), "without_reference": sum(o not in ids for o in origins)}
    _write(out, iter([_table(columns, len(asked), run_id)]), run_id, commits[0].source, counts)
    return counts
