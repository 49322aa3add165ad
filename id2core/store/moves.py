"""Where the files of a data set are, and how they come under its glob and go.

    PLACE/DATASET/NAME                  committed: what a glob of users sees
    PLACE/_staging/files/DATASET/NAME   written, and not committed yet
    PLACE/_superseded/DATASET/NAME      listed by an earlier commit, whose readers may still need it
    PLACE/_staging/moves/DATASET-HEX    the mark of a commit that is moving files

A commit replaces `_SUCCESS`, which decides. Then superseded files move out, and after them new files move in.
So a glob sees committed rows only, may miss some for seconds, and never sees one twice. Whoever reads by the
commit looks in all three places. A mark that a killed commit left tells the next run to finish its moves, see
`datasets.settle`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from id2core.store import storage
from id2core.store.ahead import in_order

STAGING: Final = "_staging"
SUPERSEDED: Final = "_superseded"
FILES, MOVES = "files", "moves"
# Moves at a time: a store that answers slowly is asked for many.
_AT_ONCE = 16


def place_of(uri: str) -> tuple[str, str]:
    """Return the place that a data set is in, and its name there."""
    place, _, name = uri.rpartition("/")
    return place, name


def staged(uri: str) -> str:
    """Return the folder of files that are written for a data set."""
    place, name = place_of(uri)
    return storage.join(place, STAGING, FILES, name)


def superseded(uri: str) -> str:
    """Return the folder of files that the data set listed before."""
    place, name = place_of(uri)
    return storage.join(place, SUPERSEDED, name)


def folders(uri: str) -> tuple[str, ...]:
    """Return where a reader looks for a file, in this order; a file may move while it looks."""
    return uri, staged(uri), superseded(uri), uri


@contextmanager
def announced(uri: str) -> Iterator[None]:
    """Hold the mark of a commit; a process that is killed in the block, and one that fails, leaves it."""
    place, name = place_of(uri)
    mark = storage.join(place, STAGING, MOVES, f"{name}-{secrets.token_hex(4)}")
    storage.write_bytes(mark, b"")
    yield
    storage.delete(mark)


def announcements(place: str) -> set[str]:
    """Return the names of the data sets of a place whose commits left a mark."""
    marks = storage.entries(storage.join(place, STAGING, MOVES), below=False)
    return {entry.uri.rpartition("/")[2].rpartition("-")[0] for entry in marks}


def names_in(folder: str) -> set[str]:
    """Return the names of the files below a folder."""
    start = len(folder.rstrip("/")) + 1
    return {entry.uri[start:] for entry in storage.entries(folder)}


def move_out(uri: str, names: Iterable[str]) -> None:
    """Take files out of the glob of a data set."""

    def move(name: str) -> bool:
        # Another commit may be moving the file in: then it is at its place the second time.
        return any(_moved(folder, superseded(uri), name) for folder in (uri, staged(uri), uri))

    for _ in in_order(names, move, _AT_ONCE):
        pass


def move_in(uri: str, names: Iterable[str]) -> bool:
    """Bring written files under the glob of a data set; return whether all of them were there to move."""
    return all(list(in_order(names, lambda name: _moved(staged(uri), uri, name), _AT_ONCE)))


def _moved(source: str, target: str, name: str) -> bool:
    try:
        storage.move(storage.join(source, name), storage.join(target, name))
    except FileNotFoundError:
        return False
    return True
