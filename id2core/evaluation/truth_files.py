"""Truth files: which upload comes from which original, as CSV or Parquet `query_uri,reference_uri`.

A third column `group` may name a kind of upload (an edit, a model); other columns are ignored. A name with
accents has several spellings in Unicode (NFC, NFD), and file systems and spreadsheets change one for another:
`spellings` finds the object that a name means.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from id2core.errors import TruthError
from id2core.store import storage
from id2core.store.datasets import Dataset

Truth = dict[str, str | None]
_COLUMNS = ("query_uri", "reference_uri", "group")


def read(uri: str, reference: str, queries: str) -> Truth:
    """Read a truth file.

    Args:
        uri: `.csv` or `.parquet` with columns query_uri and reference_uri (empty or null = no origin).
        reference, queries: URIs of the two image folders; relative URIs in the file are taken below them,
            with or without the folder's own name in front (`u1.jpg`, `uploads/u1.jpg`).

    Returns:
        Absolute query URI → absolute reference URI, or None for an upload without origin.

    Raises:
        TruthError: columns are missing, or a query has two different origins.
    """
    table = _table(uri)
    _check_columns(table.column_names, uri)
    truth: Truth = {}
    rows = zip(table["query_uri"].to_pylist(), table["reference_uri"].to_pylist(), strict=True)
    for query, origin in rows:
        if not query:
            raise TruthError(f"{uri} has a row without query_uri")
        key = absolute(query.strip(), queries)
        value = absolute(origin.strip(), reference) if origin and origin.strip() else None
        if truth.setdefault(key, value) != value:
            raise TruthError(f"{uri} names two origins for {query}")
    return truth


def check_header(uri: str) -> None:
    """Check that a truth file is there and has the columns that are needed; only its header is read.

    Raises:
        TruthError: what is missing.
    """
    place = storage.normalize(uri)
    try:
        with storage.open_input(place) as file:
            names = _header(file, place)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise TruthError(f"{uri}: no such truth file") from error
    _check_columns(names, uri)


def _header(file: IO[bytes], uri: str) -> list[str]:
    """Return the names in the header of a CSV or Parquet file."""
    if not uri.endswith(".parquet"):
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
        return next(csv.reader(text), [])
    try:
        return list(pq.read_schema(file).names)
    except pa.ArrowException as error:
        raise TruthError(f"{uri} is not a Parquet file: {error}") from error


def _check_columns(names: list[str], uri: str) -> None:
    if not {"query_uri", "reference_uri"} <= set(names):
        raise TruthError(f"{uri} has columns {names}; expected query_uri and reference_uri")


def read_groups(uri: str, queries: str) -> dict[str, str]:
    """Read the groups of a truth file's uploads.

    Args:
        uri, queries: as `read` takes them.

    Returns:
        Absolute query URI → name of its group, less uploads whose group is empty; nothing without a column
        `group`.

    Raises:
        TruthError: a query is in two groups.
    """
    table = _table(uri)
    if not {"query_uri", "group"} <= set(table.column_names):
        return {}
    groups: dict[str, str] = {}
    rows = zip(table["query_uri"].to_pylist(), table["group"].to_pylist(), strict=True)
    for query, group in rows:
        name = (group or "").strip()
        key = absolute((query or "").strip(), queries)
        if name and groups.setdefault(key, name) != name:
            raise TruthError(f"{uri} names two groups for {query}")
    return groups


def spelled(truth: Truth, queries: Iterable[Dataset], references: Iterable[Dataset]) -> Truth:
    """Return a truth with every URI spelled as the data sets spell it; one that is in none stays as it is.

    Args:
        truth: what `read` returned.
        queries, references: embeddings and rejects of both sides.

    Raises:
        TruthError: two spellings of one query have different origins.
    """
    query_uris = spellings(truth, queries)
    origin_uris = spellings(filter(None, truth.values()), references)
    result: Truth = {}
    for query, origin in truth.items():
        key = query_uris.get(query, query)
        value = origin_uris.get(origin, origin) if origin else None
        if result.setdefault(key, value) != value:
            raise TruthError(f"the truth file names two origins for {key}, in two spellings of its name")
    return result


def spelled_groups(groups: dict[str, str], queries: Iterable[Dataset]) -> dict[str, str]:
    """Return the groups of `read_groups` with every URI spelled as the data sets spell it."""
    uris = spellings(groups, queries)
    return {uris.get(query, query): group for query, group in groups.items()}


def spellings(uris: Iterable[str], datasets: Iterable[Dataset]) -> dict[str, str]:
    """Map URIs to the objects of data sets that they name, but for Unicode normalization.

    A URI that is there as it is names that object. Else it names the only one that is the same in NFC; where
    there are two, none.

    Returns:
        URI → URI in a data set; one that is in none is missing.
    """
    wanted = set(uris)
    normal = {uri: unicodedata.normalize("NFC", uri) for uri in wanted}
    forms, value_set = set(normal.values()), pa.array(sorted(wanted), pa.string())
    held: dict[str, set[str]] = {}
    for dataset in datasets if wanted else ():
        for table in dataset.tables(["uri"]):
            # Other names than ASCII have other forms. Arrow's own utf8_normalize mixes the forms up.
            chosen = pc.or_(
                pc.is_in(table["uri"], value_set=value_set), pc.invert(pc.string_is_ascii(table["uri"]))
            )
            for uri in table["uri"].filter(chosen).to_pylist():
                form = unicodedata.normalize("NFC", uri)
                if form in forms:
                    held.setdefault(form, set()).add(uri)
    named: dict[str, str] = {}
    for uri in wanted:
        same = held.get(normal[uri], set())
        if uri in same:
            named[uri] = uri
        elif len(same) == 1:
            named[uri] = next(iter(same))
    return named


def _table(uri: str) -> pa.Table:
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError as error:
        raise TruthError(f"{uri}: no such truth file") from error
    try:
        table = pq.read_table(io.BytesIO(data)) if uri.endswith(".parquet") else _read_csv(data)
        return _as_text(table)
    except pa.ArrowException as error:
        kind = "Parquet file" if uri.endswith(".parquet") else "CSV file with a header line"
        raise TruthError(f"{uri} is not a {kind}: {error}") from error


def _read_csv(data: bytes) -> pa.Table:
    text = pa.csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()))
    return pa.csv.read_csv(io.BytesIO(data), convert_options=text)


def _as_text(table: pa.Table) -> pa.Table:
    """The columns that are read become text."""
    for name in set(_COLUMNS) & set(table.column_names):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
    return table


def absolute(uri: str, folder: str) -> str:
    """Return an absolute URI as it is, a relative one below `folder`, with or without the folder's name."""
    if storage.is_absolute(uri):
        return storage.normalize(uri)
    first, slash, rest = uri.partition("/")
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    named = slash and unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", name)
    return storage.join(folder, rest if named else uri)
