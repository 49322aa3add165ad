"""Which objects of a listing have rows, and which rows go: by hashed keys, never object by object.

The rows that bear on a listing are numbered after its objects, in the order of `Kind`. Objects and rows with
one key come together in `keys.Groups`, where the first row of a kind wins: a committed row before one of a
finished part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum, IntFlag
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.runs.keys import Groups, Keys
from id2core.runs.listing import BATCH
from id2core.runs.parts import Product
from id2core.store import datasets
from id2core.store.ahead import in_order
from id2core.store.datasets import Dataset, FileRecord, Mode, Segment
from id2core.store.rejects import TRANSIENT

# Files that are read ahead, and rows of them in memory beside the file at hand.
_FILES_AHEAD, _ROWS_AHEAD = 32, 2**18
_TRANSIENT: Final = pa.array(sorted(TRANSIENT), pa.string())


@dataclass(frozen=True)
class Scope:
    """The rows of a data set that a run may drop: those of its source.

    Attributes:
        source: URI of the source.
        mode: whether rows follow its listing.
        places: folders or prefixes that are listed; empty where all of the source is.
        retention_days: days for which rows of a source that is appended stay; None for ever.
    """

    source: str
    mode: Mode = Mode.MIRROR
    places: tuple[str, ...] = ()
    retention_days: float | None = None

    def owns(self, file: FileRecord, dataset: Dataset | None) -> bool:
        """Return whether the rows of a file are of the source; where it names none, of the only source."""
        others = dataset.commit.sources.keys() - {self.source} if dataset else ()
        return file.source == self.source or (not file.source and not others)

    def expired(self, segments: Mapping[str, Segment]) -> set[str]:
        """Return the segments whose rows are kept no longer."""
        if self.mode is Mode.MIRROR or self.retention_days is None:
            return set()
        oldest = datetime.now(UTC) - timedelta(days=self.retention_days)
        return {r for r, s in segments.items() if datetime.fromisoformat(s.added_at) < oldest}

    def bears_on(self, file: FileRecord, bounds: tuple[str, ...], expired: set[str], *, own: bool) -> bool:
        """Return whether a file may have rows of listed objects, or rows that go.

        Args:
            file: a committed file.
            bounds: the least and the greatest URI that is listed; empty where none is.
            expired: segments whose rows go.
            own: whether the file is of the source.
        """
        if bounds and file.may_hold(*bounds):
            return True
        if not own:
            return False
        if self.mode is Mode.APPEND:
            return bool(expired) and (not file.segments or not expired.isdisjoint(file.segments))
        return not self.places or any(file.may_hold(place, f"{place}0") for place in self.places)

    def lists(self, uris: pa.Array) -> NDArray[np.bool_]:
        """bool[n]: whether an object of each URI would be listed now, were it there."""
        if not self.places:
            return np.ones(len(uris), bool)
        # A place is a folder, or a shard with members.
        inside = [pc.equal(uris, place) for place in self.places]
        inside += [pc.starts_with(uris, pattern=f"{place}{end}") for place in self.places for end in "/#"]
        mask: NDArray[np.bool_] = np.logical_or.reduce([m.to_numpy(zero_copy_only=False) for m in inside])
        return mask


class Kind(IntEnum):
    """What a numbered row is, in the order of numbers."""

    EXPIRED = 0  # of the log of removals: its object is not made again
    ROW = 1  # of the product's data set
    REJECT = 2


class _Flag(IntFlag):
    """What is known of a row besides its key."""

    MIRRORED = 1  # goes where its object is not listed
    EXPIRED = 2  # goes in any case
    COMMITTED = 4
    OWN = 8
    TRANSIENT = 16


class Fate(IntEnum):
    """What becomes of a row."""

    KEPT = 0
    UNLISTED = 1
    EXPIRED = 2
    DOUBLE = 3  # another row stands for the object


@dataclass(frozen=True)
class Numbered:
    """A file whose rows have numbers.

    Attributes:
        kind: what its rows are.
        record: the file.
        start: its first row, counted from the first row of all files.
        committed: whether the last commit lists it.
    """

    kind: Kind
    record: FileRecord
    start: int
    committed: bool


@dataclass(frozen=True)
class Outcome:
    """What a commit does with the rows of its files.

    Attributes:
        fates: uint8[n] of `Fate`, for each row of the files.
        listed: distinct objects of the listing.
        transient: own rejects that the next run tries again.
        added: rows that were not committed before, and stay.
        rejected: objects that have a reject now and had none.
        missing: objects with too few rows, and some of their numbers in the listing.
        surplus: objects with too many.
    """

    fates: NDArray[np.uint8]
    listed: int
    transient: int
    added: int
    rejected: int
    missing: tuple[int, list[int]]
    surplus: int


class Account:
    """The rows that bear on a listing.

    Args:
        keys: has the keys of the listing.
        listed: how many these are; rows are numbered after them.
        product: what is made of objects.
        scope: which rows may go.
        expired: segments whose rows go.
    """

    def __init__(
        self, keys: Keys, listed: int, product: Product, scope: Scope, expired: Iterable[str]
    ) -> None:
        self._keys, self._listed, self._product, self._scope = keys, listed, product, scope
        self._expired = pa.array(sorted(expired), pa.string())
        self._flags: list[NDArray[np.uint8]] = []
        self._rows = 0
        self.files: list[Numbered] = []

    def add(
        self,
        kind: Kind,
        uri: str,
        files: Sequence[FileRecord],
        *,
        own: bool,
        committed: bool,
        without: pa.Array | None = None,
    ) -> None:
        """Add the rows of files; kinds in their order.

        Args:
            kind: what the rows are.
            uri: of the directory of the files.
            files: what is added.
            own: whether they are of the source.
            committed: whether the last commit lists them.
            without: reasons of rows that are left out.
        """
        if self.files and kind < self.files[-1].kind:
            raise ValueError("kinds are added in their order")
        columns = list(self._product.key if kind is Kind.ROW else ("uri", "generation"))
        columns += ["reason"] if kind is not Kind.ROW else []
        columns += ["run_id"] if len(self._expired) and kind is Kind.ROW and own else []
        for record, table in zip(files, read_keys(uri, files, columns), strict=True):
            if without is not None:
                table = table.filter(pc.invert(pc.is_in(table["reason"], without)))
            self.files.append(Numbered(kind, record, self._rows, committed))
            for batch in table.to_batches(BATCH):
                first = self._listed + self._rows
                self._keys.add(self._keys.hash(batch[0].to_pylist(), batch[1].to_pylist()), first)
                self._flags.append(self._flags_of(kind, batch, own=own, committed=committed))
                self._rows += len(batch)

    def _flags_of(
        self, kind: Kind, batch: pa.RecordBatch, *, own: bool, committed: bool
    ) -> NDArray[np.uint8]:
        flags = np.full(len(batch), (own * _Flag.OWN) | (committed * _Flag.COMMITTED), np.uint8)
        if own and self._scope.mode is Mode.MIRROR:
            flags[self._scope.lists(batch[0])] |= np.uint8(_Flag.MIRRORED)
        if "run_id" in batch.schema.names:
            flags[_is_in(batch["run_id"], self._expired)] |= np.uint8(_Flag.EXPIRED)
        if kind is Kind.REJECT and own:
            flags[_is_in(batch["reason"], _TRANSIENT)] |= np.uint8(_Flag.TRANSIENT)
        return flags

    def pending(self) -> tuple[NDArray[np.bool_], int]:
        """Return bool[listed], whether an object is still to be made; and how many committed rows go."""
        pending, lost = np.zeros(self._listed, bool), 0
        flags, kinds = self._all_flags(), self._starts()
        goes = _Flag.MIRRORED | _Flag.COMMITTED
        for groups in self._keys.groups():
            listed = groups.first < self._listed
            pending[groups.first[listed & (groups.last < self._listed)]] = True
            rows = groups.rows[~listed[groups.of_row]] - self._listed
            rows = rows[(rows >= kinds[Kind.ROW]) & (rows < kinds[Kind.REJECT])]
            lost += int(np.count_nonzero((flags[rows] & goes) == goes))
        return pending, lost

    def settle(self) -> Outcome:
        """Decide on every row, and count that each listed object has its rows, one reject, or has expired."""
        flags, kinds = self._all_flags(), self._starts()
        starts = np.array([file.start for file in self.files], np.int64)
        fates = np.zeros(self._rows, np.uint8)
        listed = transient = added = rejected = missing = surplus = 0
        examples: list[int] = []
        for groups in self._keys.groups():
            decided = _Decided.of(groups, self._listed, kinds, starts, flags, self._product.rows_each)
            is_row = groups.rows >= self._listed
            fates[groups.rows[is_row] - self._listed] = decided.fates[is_row]
            listed += int(np.count_nonzero(decided.listed))
            transient += decided.transient
            added += decided.added
            rejected += decided.rejected
            surplus += int(np.count_nonzero(decided.surplus))
            missing += int(np.count_nonzero(decided.missing))
            first = groups.first[decided.missing]
            examples = (examples + first[first < self._listed].tolist())[:3]
        return Outcome(fates, listed, transient, added, rejected, (missing, examples), surplus)

    def _all_flags(self) -> NDArray[np.uint8]:
        self._flags = [np.concatenate([*self._flags, np.zeros(0, np.uint8)])]
        return self._flags[0]

    def _starts(self) -> dict[Kind, int]:
        """Return the first row of each kind."""
        return {k: min((f.start for f in self.files if f.kind >= k), default=self._rows) for k in Kind}


@dataclass(frozen=True)
class _Decided:
    """What becomes of the rows of one partition of keys, and of its groups."""

    fates: NDArray[np.uint8]
    listed: NDArray[np.bool_]
    missing: NDArray[np.bool_]
    surplus: NDArray[np.bool_]
    transient: int
    added: int
    rejected: int

    @staticmethod
    def of(
        groups: Groups,
        objects: int,
        kinds: Mapping[Kind, int],
        starts: NDArray[np.int64],
        all_flags: NDArray[np.uint8],
        rows_each: int,
    ) -> _Decided:
        rows, of_row = groups.rows - objects, groups.of_row
        listed = groups.first < objects
        is_held = rows >= 0
        flags = np.zeros(len(rows), np.uint8)
        flags[is_held] = all_flags[rows[is_held]]
        is_row = (rows >= kinds[Kind.ROW]) & (rows < kinds[Kind.REJECT])
        is_reject = rows >= kinds[Kind.REJECT]
        expired = groups.greatest(is_held & (rows < kinds[Kind.ROW]))

        fates = np.zeros(len(rows), np.uint8)
        old = is_held & ((flags & _Flag.EXPIRED) > 0)
        late = (is_row | is_reject) & expired[of_row] & ((flags & _Flag.COMMITTED) == 0)
        gone = is_held & ((flags & _Flag.MIRRORED) > 0) & ~listed[of_row]
        expired = expired | groups.greatest(old)
        # All rows of an object are in one file: those of the first one count.
        file = np.searchsorted(starts, rows, side="right")
        stays = is_row & ~old & ~late & ~gone
        first = groups.least(np.where(stays, file, len(starts) + 1))
        kept = stays & (file == first[of_row])
        count = groups.total(kept)
        # A reject of a later run is the one that counts, where there is no row.
        last = groups.greatest(np.where(is_reject & ~gone & ~late, rows, -1))
        kept_reject = is_reject & ~late & (rows == last[of_row]) & (count[of_row] == 0)
        fates[is_row | is_reject] = Fate.DOUBLE
        fates[gone] = Fate.UNLISTED
        fates[old & is_row] = Fate.EXPIRED
        fates[kept | kept_reject] = Fate.KEPT

        fewer = (count < rows_each) & ((count > 0) | (listed & ~expired & (groups.total(kept_reject) == 0)))
        transient = kept_reject & ((flags & _Flag.TRANSIENT) > 0)
        committed = (flags & _Flag.COMMITTED) > 0
        had_reject = groups.greatest(is_reject & committed)
        return _Decided(
            fates=fates,
            listed=listed,
            missing=fewer,
            surplus=count > rows_each,
            transient=int(np.count_nonzero(transient)),
            added=int(np.count_nonzero(kept & ~committed)),
            rejected=int(np.count_nonzero(kept_reject & ~committed & ~had_reject[of_row])),
        )


def read_keys(uri: str, files: Sequence[FileRecord], columns: list[str]) -> Iterator[pa.Table]:
    """Read columns of files in order, as many ahead as fit in memory."""
    most = max((file.rows for file in files), default=1)
    ahead = max(1, min(_FILES_AHEAD, _ROWS_AHEAD // max(most, 1)))
    return in_order(files, lambda file: datasets.read_file(uri, file, columns), ahead)


def _is_in(column: pa.Array, values: pa.Array) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = pc.is_in(column, values).to_numpy(zero_copy_only=False)
    return mask
