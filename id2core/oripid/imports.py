"""Pairs of latents and their origins, from the names of files.

The names of OriPID's training features hold class and number (`readers.OripidLayout`); queries are paired by
a reader. Both become data sets of `schemas.TRANSLATIONS`, in which unknown columns (prompt, model, strength)
are null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from id2core.encoders.embedding import EMBEDDINGS
from id2core.errors import ReaderError
from id2core.oripid import feature_files
from id2core.oripid.feature_files import LATENT_SIZE
from id2core.oripid.readers import DEFAULT_LAYOUT, OripidLayout, UnpairedReason
from id2core.runs import planning
from id2core.runs.execution import Execution
from id2core.runs.planning import Plan
from id2core.runs.progress import OnStage, silent
from id2core.runs.units import REJECTS
from id2core.store import datasets, schemas, storage
from id2core.store.datasets import Commit, Dataset, SourceRecord
from id2core.transforms.linear import Transform
from id2core.translation.rows import TRANSLATIONS

# What the release's features are: samples of the posterior of Stable Diffusion 2's VAE.
ENCODER_ID = "sd2-sample"
STAGE = "pairs"
_COLUMNS = ["image_id", "uri", "bytes"]
_MOST_NUMBER = 2**31 - 1


class PairCounts(BaseModel):
    """Counts of latents that were paired by the names of their files.

    Attributes:
        origins: origins with one translation or more.
        translations: translations of these origins.
        left_out: `readers.UnpairedReason` → latents that are in no class for it.
        examples: the same reason → the first such file.
    """

    model_config = ConfigDict(frozen=True)

    origins: int
    translations: int
    left_out: dict[str, int] = {}
    examples: dict[str, str] = {}


class ImportSummary(PairCounts):
    """Counts of the data sets that a folder of feature files became.

    Attributes:
        out: parent of `embeddings/`, `rejects/` and `translations/`.
        run_id: the run that wrote the translations.
        listed: files; each is embedded or rejected.
        embedded, rejected: files that gave a latent, and those that did not.
        reasons: reason of rejects → files.
        resumed: True where there was nothing new to do.
    """

    out: str
    run_id: str
    listed: int
    embedded: int
    rejected: int
    reasons: dict[str, int]
    resumed: bool = False


class QueryCounts(BaseModel):
    """Counts of queries that were paired with references.

    Attributes:
        queries: queries that are paired.
        without_reference: those of them whose origin has no latent.
    """

    model_config = ConfigDict(frozen=True)

    queries: int
    without_reference: int


def import_training(
    features: str,
    out: str,
    encoder_id: str = ENCODER_ID,
    transform: Transform | None = None,
    layout: OripidLayout = DEFAULT_LAYOUT,
    latent_size: int = LATENT_SIZE,
    progress: OnStage = silent,
    *,
    execution: Execution,
    allow_shrink: bool = False,
) -> ImportSummary:
    """Make `OUT/embeddings`, `OUT/rejects` and `OUT/translations` of published training features.

    Call it again to resume; once finished, it only lists. Latents are read once, and names come from the
    embeddings file by file. Memory holds 8 bytes a file and the ids of the origins, and the listing
    (`planning`), about 1 kB a file.

    Args:
        features: folder or bucket prefix of `.npy` files; class and index are in the names.
        out: parent of the three data sets.
        encoder_id, transform, latent_size: as `feature_files.import_features` takes them.
        layout: how files are named. Of two files of one class and index the first in the data set counts.
        progress: called with "features", then "pairs", files done and files in all.
        execution: gives new rows their run_id and time.
        allow_shrink: as `planning.make` takes it.

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
        execution=execution,
        check=lambda plan: _check_names(plan, layout),
        progress=progress,
        allow_shrink=allow_shrink,
    )
    embeddings = Dataset.open(storage.join(plan.out, EMBEDDINGS))
    counts, run_id, paired = _pair(plan, embeddings, layout, execution, progress)
    rejects = Dataset.open(storage.join(plan.out, REJECTS)).tables(["reason"])
    reasons = Counter(reason for table in rejects for reason in table["reason"].to_pylist())
    return ImportSummary(
        out=plan.out,
        run_id=run_id,
        listed=plan.listed,
        embedded=embeddings.rows,
        rejected=reasons.total(),
        reasons=dict(sorted(reasons.items())),
        resumed=plan.committed and not paired,
        **counts.model_dump(),
    )


def _check_names(plan: Plan, layout: OripidLayout) -> None:
    """Raise ReaderError where no name fits, before hours of reading."""
    if plan.committed or plan.objects < plan.listed:  # some were read before
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
        "with OriPID's training features, T000000_1.npy and so on"
    )


@dataclass(frozen=True, eq=False)
class _Classes:
    """What the names of N latents say, in the order of the data set.

    Attributes:
        members: int32[N], the class of each translation that has its origin, −1 for all other latents.
        numbers: int32[N], in the class.
        origin_ids, origin_uris: Arrow strings, of every class; null where it has no origin.
        counts: how many were paired.
    """

    members: NDArray[np.int32]
    numbers: NDArray[np.int32]
    origin_ids: pa.Array
    origin_uris: pa.Array
    counts: PairCounts


def _pair(
    plan: Plan, embeddings: Dataset, layout: OripidLayout, execution: Execution, progress: OnStage
) -> tuple[PairCounts, str, bool]:
    """Write the translations, unless they are those of these embeddings: counts, run_id, whether written."""
    target = storage.join(plan.out, TRANSLATIONS)
    plan_id = datasets.digest_of("pairs", embeddings.digest, embeddings.source, asdict(layout))
    last = Dataset.find_own(target)
    if last and (run_id := last.commit.run_of(plan_id)):
        return last.commit.counts_of(run_id, PairCounts), run_id, False
    if not embeddings.rows:
        raise ReaderError(
            f"none of {plan.listed} files below {plan.source} holds a latent; the reasons are in "
            f"{storage.join(plan.out, REJECTS)}"
        )
    classes = _classes(embeddings, layout)
    if not classes.counts.translations:
        raise ReaderError(
            f"no origin below {plan.source} has a translation ({classes.counts.left_out}): an origin is "
            f"called T000000_{layout.origin_index}, its translations T000000_1 and so on"
        )
    rows = _rows(embeddings, classes, execution.run_id, progress)
    _write(target, rows, execution.run_id, plan_id, plan.source, classes.counts, last)
    return classes.counts, execution.run_id, True


def _classes(embeddings: Dataset, layout: OripidLayout) -> _Classes:
    """Read the names, and the origin of each class."""
    known: dict[str, int] = {}
    origins: dict[int, tuple[str, str]] = {}
    classes, numbers = [], []
    for table in embeddings.tables(_COLUMNS):
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
    counts = PairCounts(
        origins=paired,
        translations=int((members >= 0).sum()),
        left_out={reason: len(rows) for reason, rows in left_out.items()},
        examples=_uris(embeddings, {reason: int(rows[0]) for reason, rows in left_out.items()}),
    )
    return _Classes(members, indices, ids, uris, counts)


def _label(layout: OripidLayout, uri: str) -> tuple[str, int]:
    """Return class and number in a name; an empty class where it does not fit."""
    label = layout.label(uri)
    return label if label and label[1] <= _MOST_NUMBER else ("", -1)


def _members(
    classes: NDArray[np.int32], numbers: NDArray[np.int32], has_origin: NDArray[np.bool_], origin_index: int
) -> tuple[NDArray[np.int32], dict[UnpairedReason, NDArray[np.int64]], int]:
    """Return the class of each translation, the rows in no class by reason, and the number of classes."""
    fits = classes >= 0
    codes = classes.astype(np.int64) << 32 | numbers
    first = np.zeros(len(codes), np.bool_)
    first[np.unique(codes, return_index=True)[1]] = True
    counted, is_origin = fits & first, numbers == origin_index
    with_origin = np.append(has_origin, False)[classes]
    translated = counted & ~is_origin & with_origin
    sizes = np.bincount(classes[translated], minlength=len(has_origin) + 1)
    why = {
        UnpairedReason.NAME: ~fits,
        UnpairedReason.SAME_NAME: fits & ~first,
        UnpairedReason.NO_ORIGIN: counted & ~is_origin & ~with_origin,
        UnpairedReason.NO_TRANSLATION: counted & is_origin & (sizes[classes] == 0),
    }
    members = np.where(translated, classes, -1).astype(np.int32)
    return members, {reason: np.flatnonzero(rows) for reason, rows in why.items()}, int((sizes > 0).sum())


def _uris(embeddings: Dataset, rows: Mapping[str, int]) -> dict[str, str]:
    """Return the URIs of rows of a data set, by name."""
    uris: dict[str, str] = {}
    start = 0
    for record in embeddings.files:
        inside = {name: row - start for name, row in rows.items() if start <= row < start + record.rows}
        if inside:
            column = embeddings.read_file(record, ["uri"])["uri"]
            uris |= {name: column[row].as_py() for name, row in inside.items()}
        start += record.rows
    return {name: uris[name] for name in rows}


def _rows(embeddings: Dataset, classes: _Classes, run_id: str, progress: OnStage) -> Iterator[pa.Table]:
    """Yield the rows of translations, one table for each table of the data set."""
    start = 0
    for table in embeddings.tables(_COLUMNS):
        table_rows = slice(start, start + table.num_rows)
        start += table.num_rows
        chosen = classes.members[table_rows] >= 0
        row_classes = pa.array(classes.members[table_rows][chosen])
        own = table.filter(pa.array(chosen))
        columns = {name: own[name] for name in _COLUMNS} | {
            "origin_id": classes.origin_ids.take(row_classes),
            "origin_uri": classes.origin_uris.take(row_classes),
            "number": pa.array(classes.numbers[table_rows][chosen]),
        }
        yield _table(columns, own.num_rows, run_id)
        progress(STAGE, start, embeddings.rows)


def _table(columns: Mapping[str, Any], rows: int, run_id: str) -> pa.Table:
    """Return columns as a `schemas.TRANSLATIONS` table, the others null."""
    schema = schemas.TRANSLATIONS
    known = {**columns, "run_id": pa.repeat(run_id, rows)}
    return pa.Table.from_arrays(
        [known[f.name] if f.name in known else pa.nulls(rows, f.type) for f in schema], schema=schema
    )


def _write(
    uri: str,
    rows: Iterator[pa.Table],
    run_id: str,
    plan_id: str,
    source: str,
    counts: PairCounts | QueryCounts,
    last: Dataset | None,
) -> None:
    """Write the one file of a data set of pairs, and its commit."""
    record = datasets.write_file(uri, f"part-{plan_id}", rows, schemas.TRANSLATIONS)
    runs = {run_id: counts.model_dump() | {"plan_id": plan_id}}
    commit = Commit(TRANSLATIONS, run_id, {}, (record,), runs, {source: SourceRecord()})
    datasets.update_commit(uri, lambda _: commit, last)


def pair_queries(
    out: str,
    queries: Dataset,
    references: Sequence[Dataset],
    truth: Mapping[str, str],
    execution: Execution,
) -> QueryCounts:
    """Make the data set `out` of translations: which embedded query is of which embedded reference.

    A second call writes nothing. Everything is held in memory: about 1 kB a query and reference.

    Args:
        out: the data set itself.
        queries: embeddings of the queries.
        references: embeddings that hold the origins, among others.
        truth: URI of a query → URI of its origin.
        execution: gives new rows their run_id.

    Returns:
        The counts. Queries without a reference keep its URI as `origin_id`, so that they count as not found
        rather than not at all.
    """
    plan_id = datasets.digest_of("queries", [d.digest for d in (queries, *references)], sorted(truth.items()))
    last = Dataset.find_own(out)
    if last and (run_id := last.commit.run_of(plan_id)):
        return last.commit.counts_of(run_id, QueryCounts)
    wanted = set(truth.values())
    ids: dict[str, str] = {}
    for dataset in references:
        for table in dataset.tables(["uri", "image_id"]):
            pairs = zip(table["uri"].to_pylist(), table["image_id"].to_pylist(), strict=True)
            ids.update((name, image_id) for name, image_id in pairs if name in wanted)
    schema = schemas.TRANSLATIONS
    asked = [r for t in queries.tables(_COLUMNS) for r in t.to_pylist() if r["uri"] in truth]
    origins = [truth[row["uri"]] for row in asked]
    columns = {name: pa.array([r[name] for r in asked], schema.field(name).type) for name in _COLUMNS}
    columns["origin_uri"] = pa.array(origins, pa.string())
    columns["origin_id"] = pa.array([ids.get(o, o) for o in origins], pa.string())
    counts = QueryCounts(queries=len(asked), without_reference=sum(o not in ids for o in origins))
    table = _table(columns, len(asked), execution.run_id)
    _write(out, iter([table]), execution.run_id, plan_id, queries.source, counts, last)
    return counts
