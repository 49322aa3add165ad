"""What killed runs and superseded commits leave below an `--out`, removed by a later run.

A run that ends well sweeps its `--out`, after its commits. It removes what is older than a grace period by
the clock of the store, and only files with names of this program in folders of its data sets:

| leftover | goes when for the grace period |
|---|---|
| a file that no commit lists | no such file was written for its data set |
| a log of removals that no commit lists | no such log was written |
| a file that an earlier commit listed, in `_superseded/` | it has been superseded |
| a record, manifest, listing, mark, or candidates in `_staging/` | nothing in `_staging/` was written |
| a picture that no row names | no such picture was written, and no part was superseded |
| `.partial-*` of a killed process | as what lies beside it |

What a running run may need stays:

- Where `runs/` has another execution that is running, nothing is removed. One on this machine counts as long
  as its process lives, one elsewhere until the next run marks it killed.
- A staged record protects the files that it stands for. Records, and parts without one, are judged together
  and by the newest: a run that is at work for days writes now and then, and keeps its first parts.
- A part is without record and commit only between two writes, or while a commit rewrites files. The grace
  period must be longer than that, also for runs that `runs/` does not show: keep it above the hours that
  one part takes.
- The manifest of a template stays until a job that it starts has committed, see `planning.keep_staged`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from id2core.runs import listing, planning, units
from id2core.runs.codes import INDEX
from id2core.runs.execution import Execution
from id2core.runs.units import PARTS, STAGING
from id2core.store import datasets, moves, schemas, storage
from id2core.store.base import Entry
from id2core.store.datasets import Dataset, FileRecord

# Folders below an `--out` that hold data sets of their own, beside the `--out` itself.
CORPORA: Final = ("", "reference", "queries", "background")
# The folder of the corpora of further channels, each below the name of its channel.
CHANNELS: Final = "channels"
# The folder of corpora with the descriptors of another transform, each below the transform's id.
REPROJECTED: Final = "reprojected"
_TRANSLATIONS: Final = "translations"
_HASH: Final = "[0-9a-f]{8}"
_LEASE: Final = r"lease-[0-9a-f]{16}\.json"
_PARTIAL: Final = r"\.partial-([a-z0-9_]{8}|\d+-[\w.-]+)"
_PART: Final = rf"(part-|merged-)?[0-9a-f]{{16}}-{_HASH}\.parquet|{_PARTIAL}"
# Names of files by the data set in whose folder they are.
_OWN: Final[dict[str, re.Pattern[str]]] = {
    **{name: re.compile(_PART) for name in (schemas.EMBEDDINGS, "rejects", _TRANSLATIONS)},
    "backgrounds": re.compile(
        rf"(background=[0-9a-f]{{16}}/)?([0-9a-f]{{16}}-[\w-]+|merged-[0-9a-f]{{16}})-{_HASH}\.parquet|{_PARTIAL}"
    ),
    "posts": re.compile(
        rf"([0-9a-f]{{16}}-[0-9a-f]{{16}}-\d{{5}}|merged-[0-9a-f]{{16}})-{_HASH}\.parquet|{_PARTIAL}"
    ),
    INDEX: re.compile(rf"(codes|model)-[0-9a-f]{{16}}-{_HASH}\.parquet|{_PARTIAL}"),
    "takedowns": re.compile(rf"{Execution.PATTERN}-{_HASH}\.parquet|{_PARTIAL}"),
    **{
        name: re.compile(
            rf"({Execution.PATTERN}-[0-9a-f]{{16}}|merged-[0-9a-f]{{16}})-{_HASH}\.parquet|{_PARTIAL}"
        )
        for name in ("ledger", "segments")
    },
    "verdicts": re.compile(
        rf"({Execution.PATTERN}-[\w-]+|merged-[0-9a-f]{{16}})-{_HASH}\.parquet|{_PARTIAL}"
    ),
    "matches": re.compile(
        rf"(scan_date=\d{{4}}-\d\d-\d\d/)?(([0-9a-f]{{16}}-[\w-]+|merged-[0-9a-f]{{16}})-{_HASH}\.parquet|{_PARTIAL})"
    ),
    "runs": re.compile(rf"({Execution.PATTERN}|merged-[0-9a-f]{{16}})-{_HASH}\.parquet|{_PARTIAL}"),
}
_STAGED: Final = re.compile(
    rf"(manifest|listing)-(?P<run>[0-9a-f]{{16}}-{Execution.PATTERN})-{_HASH}\.parquet"
    rf"|{PARTS}/[0-9a-f]{{16}}\.json|{_LEASE}"
    # Candidates have no data set that could say what is in use: they are scratch, like records.
    rf"|{moves.FILES}/candidates/([0-9a-f]{{16}}-[0-9a-f]{{16}}-{_HASH}\.parquet|{_PARTIAL})"
    rf"|{moves.MOVES}/[a-z]+-{_HASH}|(({PARTS}|{moves.MOVES})/)?{_PARTIAL}"
)
_PICTURE: Final = re.compile(rf"[0-9a-f]{{2}}/([0-9a-f]{{64}}-\d+-{_HASH}\.[a-z]+|{_PARTIAL})")


def sweep(out: str, before: float) -> None:
    """Remove leftovers below an `--out`.

    Args:
        out: parent of data sets, or of the corpora that hold some.
        before: only what was last touched before this time goes, in seconds since 1970.
    """
    for place in places(out):
        _sweep_corpus(place, before)


def settle(out: str) -> None:
    """Finish what commits were moving that were killed, below an `--out`; see `datasets.settle`."""
    for place in places(out):
        datasets.settle(place)


def own_corpora(root: str) -> list[str]:
    """Return a folder, and those below it that hold the data sets of one channel."""
    return [storage.join(root, name) if name else root for name in CORPORA]


def channels(out: str) -> list[str]:
    """Return the names of the further channels that an `--out` has."""
    return _folders(storage.join(out, CHANNELS))


def channel_place(out: str, name: str) -> str:
    """Return the parent of the corpora of a further channel."""
    return storage.join(out, CHANNELS, name)


def corpora(out: str) -> list[str]:
    """Return an `--out`, and the folders below it that hold data sets in use, those of all channels."""
    roots = [out, *(channel_place(out, name) for name in channels(out))]
    return [place for root in roots for place in own_corpora(root)]


def places(out: str) -> list[str]:
    """Return every folder of an `--out` that may hold data sets, also reprojected ones, itself among them."""
    beside = storage.join(out, REPROJECTED)
    reprojected = (storage.join(beside, transform_id) for transform_id in _folders(beside))
    return corpora(out) + [place for root in reprojected for place in own_corpora(root)]


def _folders(place: str) -> list[str]:
    """Return the names of the folders in a place that hold files, sorted."""
    names = (_name(entry.uri, place).split("/") for entry in storage.entries(place))
    return sorted({first for first, *below in names if below})


def _sweep_corpus(place: str, before: float) -> None:
    """Sweep the data sets of one place, and what is staged for them."""
    datasets.settle(place)
    old = {name: _files_of(storage.join(place, name), own) for name, own in _OWN.items()}
    old = {name: files for name, files in old.items() if files.any_before(before)}
    staged = _entries(storage.join(place, STAGING), _STAGED)
    logs = storage.join(place, listing.REMOVALS)
    removals = [e for uri in (logs, moves.staged(logs)) for e in _entries(uri, re.compile(_PART))]
    if not old and not any(entry.modified < before for entry in (*staged, *removals)):
        return
    held = {name: dataset for name in _OWN if (dataset := _dataset(place, name))}
    if not held:
        return  # no run has ended well here, or the folders are somebody else's
    _remove_quiet(_without_kept(staged, place), before)
    protected = {file for record in units.staged(place).values() for file in record.files}
    for folder in (place, storage.join(place, listing.PROMPTS)):
        _remove_quiet(_entries(folder, re.compile(_PARTIAL), below=False), before)
    for name in old.keys() & held.keys():
        _sweep_dataset(
            held[name], old[name], {file for dataset, file in protected if dataset == name}, before
        )
    if INDEX in old.keys() - held.keys():  # a build that never committed one
        known = {file.name for dataset, file in protected if dataset == INDEX}
        left = [entry for name, entry in old[INDEX].staged.items() if name not in known]
        _remove_quiet(left, before)
    logged = {file.name for dataset in held.values() for file in dataset.commit.removals}
    _remove_quiet([entry for entry in removals if _last_name(entry.uri) not in logged], before)
    if _TRANSLATIONS in held:
        _sweep_pictures(place, held[_TRANSLATIONS], protected, before)


@dataclass(frozen=True)
class _Files:
    """Files of a data set by their names: in it, staged for it, and superseded."""

    inside: dict[str, Entry]
    staged: dict[str, Entry]
    superseded: dict[str, Entry]

    def any_before(self, before: float) -> bool:
        """Return whether one was last touched before a time."""
        every = (self.inside, self.staged, self.superseded)
        return any(entry.modified < before for entries in every for entry in entries.values())


def _files_of(uri: str, own: re.Pattern[str]) -> _Files:
    folders = (uri, moves.staged(uri), moves.superseded(uri))
    return _Files(*({_name(e.uri, folder): e for e in _entries(folder, own)} for folder in folders))


def _dataset(place: str, name: str) -> Dataset | None:
    dataset = Dataset.find(storage.join(place, name))
    return dataset if dataset and dataset.commit.dataset == name else None


def _sweep_dataset(dataset: Dataset, files: _Files, protected: set[FileRecord], before: float) -> None:
    """Remove files of a data set that neither its commit lists nor a staged record stands for."""
    kept = {file.name for file in (*dataset.files, *protected)}
    times = dataset.commit.superseded
    loose = []
    for name, entry in [*files.inside.items(), *files.staged.items()]:
        # Two runs that mark a third one killed write the same row: the second copy is not moved in.
        is_copy = entry is files.staged.get(name) and name in files.inside
        if name in kept and not is_copy:
            continue
        if name in times and entry is files.inside.get(name):  # an earlier version left it there
            _remove_superseded(name, entry, times, before)
        else:
            loose.append(entry)
    _remove_quiet(loose, before)
    for name, entry in files.superseded.items():
        if name not in kept or name in files.inside:
            _remove_superseded(name, entry, times, before)


def _remove_superseded(name: str, entry: Entry, times: Mapping[str, str], before: float) -> None:
    """Remove a file that was superseded before a time; a commit forgets when that was after long."""
    since = datetime.fromisoformat(times[name]).timestamp() if name in times else entry.modified
    if since < before:
        storage.delete(entry.uri)


def _sweep_pictures(
    place: str, translations: Dataset, protected: set[tuple[str, FileRecord]], before: float
) -> None:
    """Remove pictures that no row names, and that no reader of an earlier commit may still open."""
    times = map(datetime.fromisoformat, translations.commit.superseded.values())
    if any(time.timestamp() >= before for time in times):
        return
    folder = storage.join(place, listing.PICTURES)
    entries = _entries(folder, _PICTURE)
    if not any(entry.modified < before for entry in entries):
        return
    files = {*translations.files, *(file for name, file in protected if name == _TRANSLATIONS)}
    tables = datasets.read_each(translations.uri, sorted(files, key=lambda f: f.name), ["uri"])
    named = np.sort(
        np.concatenate([_digests(table["uri"].to_pylist()) for table in tables] or [_digests([])])
    )
    own = _digests(entry.uri for entry in entries)
    places = np.searchsorted(named, own)
    is_named = named[np.minimum(places, len(named) - 1)] == own if len(named) else np.zeros(len(own), bool)
    _remove_quiet([entry for entry, keep in zip(entries, is_named, strict=True) if not keep], before)


def _digests(uris: Iterable[str]) -> NDArray[np.uint64]:
    """Eight bytes for each URI: millions fit in memory, and equal ones keep a picture too many at worst."""
    hashes = b"".join(hashlib.blake2b(uri.encode(), digest_size=8).digest() for uri in uris)
    return np.frombuffer(hashes, np.uint64)


def _without_kept(staged: list[Entry], place: str) -> list[Entry]:
    """Return staged files less those of templates."""
    folder = storage.join(place, STAGING)
    kept = {_name(e.uri, folder) for e in storage.entries(folder, below=False)}
    matches = {e.uri: _STAGED.fullmatch(_name(e.uri, folder)) for e in staged}
    runs = {uri: match["run"] for uri, match in matches.items() if match}
    return [e for e in staged if f"{planning.KEEP}-{runs.get(e.uri)}" not in kept]


def _remove_quiet(entries: list[Entry], before: float) -> None:
    """Remove files, all or none: where one was touched lately, a run may be at work on all of them.

    Records go before the parts that they stand for.
    """
    if all(entry.modified < before for entry in entries):
        for entry in entries:
            storage.delete(entry.uri)


def _entries(folder: str, own: re.Pattern[str], below: bool = True) -> list[Entry]:
    """Return the files of a folder whose names are of this program."""
    return [entry for entry in storage.entries(folder, below) if own.fullmatch(_name(entry.uri, folder))]


def _last_name(uri: str) -> str:
    return uri.rpartition("/")[2]


def _name(uri: str, folder: str) -> str:
    return uri[len(folder.rstrip("/")) + 1 :]
