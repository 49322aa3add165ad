"""Views under which an upload meets references, and what each costs.

A *look* is what is encoded of an upload: the whole, or a picture seen inside of it (`encoders.views`). Where
a frame was seen, the whole without it is one more look, made of the latent: the frame may be painted over the
picture (`covers`). Each look meets

- whole references by its descriptor, which is the paper's method;
- rows of cropped references by its first columns (`transforms.crop_rows`);
- whole references as if it were mirrored, or turned by a quarter, by its first columns (`latent_views`).

The score of a pair is the best of all, less what the view costs: each view lifts false references as often as
the true one. Costs and slopes make scores of different views comparable, so there is one order, one
background, and one calibration for their maximum. What a picture inside an upload costs depends on what it
scores by chance, more than the whole (`chance`). The best candidates are scored again by the fine detail of
both latents (`transforms.details`).

Only looks cost encoder calls. All else is made of latents that are stored.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from id2core.encoders import latent_views, views
from id2core.encoders.latent_views import MIRRORED, MOVES, TURNED_LEFT, TURNED_RIGHT, LatentView
from id2core.errors import TransformError
from id2core.runs import ledger
from id2core.search import covers, shards
from id2core.search.shards import Shard
from id2core.search.viewed_rows import ViewedRows
from id2core.store import datasets, schemas
from id2core.transforms import cohorts, crop_rows, details, reference_rows
from id2core.transforms.crop_rows import CHANNELS, CROPS, SLOPE
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import MOVED_COLUMNS

_log = logging.getLogger("id2")

# The name of an id of views beside other ids, and its value for whole uploads alone.
VIEWS: Final = "views"
NONE: Final = ledger.WHOLE_ONLY
WHOLE: Final = "whole"
COVERED: Final = "covered"
# Looks by name, the whole first.
LOOKS: Final = (WHOLE, views.INSET, *views.HALVES, views.PARENT, COVERED)
# The whole of an upload in which a frame was seen, also around two pictures. A frame is like others, so the
# whole lifts framed references. It stays a look: with a reference of the same frame, a copy scores near 1.
FRAMED_COST: Final = 0.5
# The whole without its frame, besides what it costs by chance. Most frames are not painted over a picture.
COVERED_COST: Final = 0.12
# First columns of a mirrored or turned look, with those of references at length 1.
MOVED_SLOPE: Final = 1.1
MOVED_COSTS: Final = {MIRRORED: 0.09, TURNED_LEFT: 0.11, TURNED_RIGHT: 0.11}
# A picture inside an upload costs so many times what it scores in the cohort of W, more than the whole does.
CHANCE_FACTOR: Final = 1.25
# Candidates that are scored again, and the agreement of details that counts as chance.
RESCORED: Final = 10
CHANCE: Final = 0.05
# Shares of a reference that are small enough for the upload to be shrunk and aligned before details agree.
ALIGNED: Final = (0.75, 0.5)
# Between the parts of the name of a view.
JOINT: Final = "+"


@dataclass(frozen=True)
class ViewPlan:
    """The views of a search, as a job passes them on: each worker loads W once.

    Attributes:
        id: names views and costs. Scores of other views are not comparable.
        transform: as `load_transform` takes it.
        encoder_id, transform_id: of the descriptors.
    """

    id: str
    transform: str
    encoder_id: str
    transform_id: str

    def load(self) -> Views:
        """Load the views.

        Raises:
            TransformError: this machine has another W, or other views.
        """
        return _load(self)


@functools.lru_cache(maxsize=4)
def _load(plan: ViewPlan) -> Views:
    transform = load_transform(plan.transform, plan.encoder_id)
    if transform.transform_id != plan.transform_id:
        raise TransformError(
            f"this worker loaded transform {transform.transform_id}, the run was planned with "
            f"{plan.transform_id}: give every worker the same file"
        )
    views = Views.of(transform, plan.encoder_id)
    if views.id != plan.id:
        raise TransformError(
            f"this worker has the views {views.id}, the run was planned with {plan.id}: give every worker "
            "the same version, and the same file of W with its cohort"
        )
    return views


def plan(spec: str, transform: str | None, encoder_id: str, transform_id: str) -> ViewPlan | None:
    """Return the views of a search; None for the whole upload alone.

    Args:
        spec: `none`, or `auto` for all that the encoder and W allow.
        transform: where W is from, as `load_transform` takes it.
        encoder_id, transform_id: of the descriptors.
    """
    if spec == NONE:
        return None
    loaded = load_transform(transform, encoder_id)
    if loaded.transform_id != transform_id:
        _log.warning(
            "the descriptors were made with transform %s, and views of an upload need that W: give it with "
            "--transform. Whole uploads are searched",
            transform_id,
        )
        return None
    made = Views.of(loaded, encoder_id)
    return ViewPlan(made.id, transform or NONE, encoder_id, transform_id)


def id_of(views: ViewPlan | None) -> str:
    """Return the id of views, or `NONE`."""
    return views.id if views else NONE


def described(views: str) -> str:
    """Return what an id of views stands for, as a message names it."""
    return "whole uploads alone" if views == NONE else f"the views {views}"


@dataclass(frozen=True, eq=False)
class Move:
    """A look that is mirrored or turned, by its latent.

    Attributes:
        view: of the latent.
        folded: the view, then W.
    """

    view: LatentView
    folded: Transform

    @property
    def cost(self) -> float:
        """What is subtracted from its scores."""
        return MOVED_COSTS[self.view.name]


@dataclass(frozen=True, eq=False)
class Views:
    """All views that an encoder and W allow.

    Attributes:
        transform: W.
        moves: none where latents are no square maps, or the columns of W have no order. Then references
            have no rows of crops, and no detail, either.
        sees_insets: whether pictures inside an upload are looks.
        cohort: what says what they score by chance; None where W has none.
    """

    transform: Transform
    moves: tuple[Move, ...]
    sees_insets: bool = True
    cohort: Shard | None = None

    @classmethod
    def of(cls, transform: Transform, encoder_id: str) -> Views:
        """Return the views under a W of an encoder.

        Raises:
            TransformError: the cohort of W is for other views than this version searches.
        """
        weights = transform.weights
        if weights is None or not reference_rows.has_rows(transform, len(weights)):
            return cls(transform, (), cohort=_shard_of(transform, with_rows=False))
        known = latent_views.bundled(encoder_id)
        each = [known.get(name, LatentView.plain(name, CHANNELS)) for name in MOVES]
        moves = tuple(Move(view, Transform(view.fold(weights))) for view in each)
        return cls(transform, moves, cohort=_shard_of(transform, with_rows=True))

    @property
    def of_wholes(self) -> Views:
        """The same views of whole uploads alone.

        The background is searched under these, so that no picture that is put into an upload, by its pixels
        or by its manifest, lowers the score of the whole.
        """
        return replace(self, sees_insets=False)

    @property
    def has_rows(self) -> bool:
        """Whether looks meet more of a reference than its descriptor."""
        return bool(self.moves)

    @functools.cached_property
    def id(self) -> str:
        """Name of the views and their costs. W is no part of it, its cohort is."""
        facts: list[Any] = [views.FINDER, FRAMED_COST]
        if self.has_rows:
            taps = [(move.view.name, move.view.taps.tobytes().hex()) for move in self.moves]
            crops = [(crop.share, crop.across, crop.down, crop.cost) for crop in CROPS]
            facts += [taps, MOVED_COSTS, MOVED_COLUMNS, MOVED_SLOPE, crops, crop_rows.COLUMNS, SLOPE]
            facts += [RESCORED, CHANCE, ALIGNED]
            facts += [covers.LEAST_SHARE, covers.MOST_SHARE, COVERED_COST]
        if held := self.transform.cohort:
            tensors = {name: value.tobytes().hex() for name, value in sorted(held.tensors().items())}
            facts += [tensors, cohorts.BEST, CHANCE_FACTOR]
        return f"{'latent' if self.has_rows else 'frames'}-{datasets.digest_of(*facts)}"

    @property
    def columns(self) -> list[str]:
        """Columns of `embeddings/` that looks are made of, beside descriptors."""
        return ["latent"] * self.has_rows + ["insets"] * self.sees_insets

    def looks(self, uploads: pa.Table, descriptors: NDArray[np.float32]) -> Looks:
        """Return the looks of uploads, the wholes first, without what they cost by chance.

        Args:
            uploads: their `columns`.
            descriptors: float32[Q,m], of the whole uploads.
        """
        insets = _insets(uploads["insets"]) if self.sees_insets else _NO_INSETS
        latents: NDArray[np.float16] | None = None
        bits: NDArray[np.uint8] | None = None
        moved: tuple[Moved, ...] = ()
        if self.has_rows:
            latents = schemas.column_to_vectors(uploads["latent"])
            insets = insets.with_covered(latents)
            latents = np.concatenate([latents, insets.latents]) if len(insets.owners) else latents
            bits = details.detail_bits(latents)
            moved = tuple(self._moved(move, latents) for move in self.moves)
        inside = self.transform.apply(insets.latents) if len(insets.owners) else descriptors[:0]
        wholes = np.zeros(len(descriptors), np.int64)
        names = np.concatenate([wholes, insets.names])
        costs = np.where(names == LOOKS.index(COVERED), np.float32(COVERED_COST), np.float32(0))
        around = np.isin(insets.names, [LOOKS.index(views.INSET), LOOKS.index(COVERED)])
        costs[insets.owners[around]] = FRAMED_COST
        return Looks(
            len(descriptors),
            np.concatenate([np.arange(len(descriptors)), insets.owners]),
            names,
            costs,
            np.concatenate([np.ones(len(descriptors)), insets.slopes]),
            np.concatenate([descriptors, inside]),
            latents,
            bits,
            moved,
        )

    def _moved(self, move: Move, latents: NDArray[np.float16]) -> Moved:
        heads = move.folded.apply(latents)[:, :MOVED_COLUMNS]
        bits = details.detail_bits(move.view(latents))
        return Moved(move.view.name, move.cost, np.ascontiguousarray(heads), bits)


# The paper's method.
WHOLE_ONLY: Final = Views(Transform(), (), sees_insets=False)


def _shard_of(transform: Transform, *, with_rows: bool) -> Shard | None:
    """Return the cohort of a W, to be searched as references are; None where there is none."""
    cohort = transform.cohort
    if cohort is None:
        return None
    names = pa.array([f"{number:06d}" for number in range(len(cohort.descriptors))])
    rows = None
    if with_rows:
        if cohort.crops is None or cohort.crops.shape[1] != crop_rows.ROW_BYTES:
            raise TransformError(
                f"{transform.source} has a cohort for the views of another version of this program: train it "
                "anew, or search with --views none"
            )
        rows = ViewedRows(cohort.crops, None)
    descriptors = cohort.descriptors.astype(np.float32)
    return shards.build(descriptors, pa.table({"image_id": names, "uri": names}), viewed=rows)


@dataclass(frozen=True, eq=False)
class _Insets:
    """I looks at uploads, besides the wholes.

    Attributes:
        owners: int64[I], the upload of each.
        names: int64[I], places in `LOOKS`.
        latents: float16[I,n].
        boxes: float64[I,4], where it is: left, top, right, bottom, from 0 to 1; NaN where nobody knows.
        slopes: float64[I], that its scores are multiplied by.
    """

    owners: NDArray[np.int64]
    names: NDArray[np.int64]
    latents: NDArray[np.float16]
    boxes: NDArray[np.float64]
    slopes: NDArray[np.float64]

    def with_covered(self, wholes: NDArray[np.float16]) -> _Insets:
        """Return them and the wholes float16[Q,n] in which they were seen, without what lies outside."""
        seen = self.names != LOOKS.index(views.PARENT)
        if not seen.any():
            return self
        covered = covers.covers_of(wholes, self.owners[seen], self.boxes[seen])
        return _Insets(
            np.concatenate([self.owners, covered.rows]),
            np.concatenate([self.names, np.full(len(covered.rows), LOOKS.index(COVERED))]),
            np.concatenate([self.latents, covered.latents]),
            np.concatenate([self.boxes, np.full((len(covered.rows), len(_SIDES)), np.nan)]),
            np.concatenate([self.slopes, covered.slopes]),
        )


_SIDES: Final = ("left", "top", "right", "bottom")
_NO_INSETS: Final = _Insets(
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    np.empty((0, 0), np.float16),
    np.empty((0, len(_SIDES))),
    np.empty(0),
)


def _insets(column: pa.ChunkedArray) -> _Insets:
    """Return the pictures inside of uploads."""
    lists = (
        pa.chunked_array([pa.concat_arrays(column.chunks)], column.type) if column.num_chunks > 1 else column
    )
    owners = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    if not len(owners):
        return _NO_INSETS
    held = pc.list_flatten(lists).combine_chunks()
    held = held.chunk(0) if isinstance(held, pa.ChunkedArray) else held
    names = np.array([LOOKS.index(name) for name in held.field("view").to_pylist()])
    latents = held.field("latent").flatten().to_numpy(zero_copy_only=False)
    sides = [held.field(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in _SIDES]
    slopes = np.ones(len(owners))
    return _Insets(owners, names, latents.reshape(len(owners), -1), np.stack(sides, axis=1), slopes)


@dataclass(frozen=True, eq=False)
class Moved:
    """All looks of some uploads, mirrored or turned.

    Attributes:
        name: of the view.
        cost: is subtracted from its scores.
        heads: float32[L,c], first columns of descriptors.
        bits: uint8[L,n/8], of their detail.
    """

    name: str
    cost: float
    heads: NDArray[np.float32]
    bits: NDArray[np.uint8]

    def take(self, looks: NDArray[Any]) -> Moved:
        """Return some looks."""
        return Moved(self.name, self.cost, self.heads[looks], self.bits[looks])


@dataclass(frozen=True, eq=False)
class Looks:
    """L looks of Q uploads.

    Attributes:
        uploads: Q.
        owners: int64[L], the upload of each look.
        names: int64[L], places in `LOOKS`.
        costs: float32[L], subtracted from all scores of the look.
        slopes: float64[L], that its products are multiplied by before.
        descriptors: float32[L,m].
        latents: float16[L,n]; None where references have no detail.
        bits: uint8[L,n/8], of their detail; None where references have none.
        moved: the same looks, mirrored and turned.
    """

    uploads: int
    owners: NDArray[np.int64]
    names: NDArray[np.int64]
    costs: NDArray[np.float32]
    slopes: NDArray[np.float64]
    descriptors: NDArray[np.float32]
    latents: NDArray[np.float16] | None
    bits: NDArray[np.uint8] | None
    moved: tuple[Moved, ...]

    def __len__(self) -> int:
        return len(self.owners)

    def of(self, uploads: NDArray[np.int64]) -> Looks:
        """Return the looks of some uploads, int64[q], ascending, which are counted anew."""
        if len(uploads) == self.uploads:
            return self
        chosen = self.take(np.flatnonzero(np.isin(self.owners, uploads)))
        return replace(chosen, uploads=len(uploads), owners=np.searchsorted(uploads, chosen.owners))

    def take(self, looks: NDArray[np.int64]) -> Looks:
        """Return some looks, of the same uploads."""
        return Looks(
            self.uploads,
            self.owners[looks],
            self.names[looks],
            self.costs[looks],
            self.slopes[looks],
            self.descriptors[looks],
            None if self.latents is None else self.latents[looks],
            None if self.bits is None else self.bits[looks],
            tuple(moved.take(looks) for moved in self.moved),
        )

    @staticmethod
    def together(parts: Sequence[Looks]) -> Looks:
        """Return the looks of several groups of uploads, which are counted on."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(part.uploads for part in parts)])
        latents = [part.latents for part in parts if part.latents is not None]
        bits = [part.bits for part in parts if part.bits is not None]
        return Looks(
            int(starts[-1]),
            np.concatenate([part.owners + start for part, start in zip(parts, starts, strict=False)]),
            np.concatenate([part.names for part in parts]),
            np.concatenate([part.costs for part in parts]),
            np.concatenate([part.slopes for part in parts]),
            np.concatenate([part.descriptors for part in parts]),
            np.concatenate(latents) if latents else None,
            np.concatenate(bits) if bits else None,
            tuple(
                Moved(
                    same[0].name,
                    same[0].cost,
                    np.concatenate([moved.heads for moved in same]),
                    np.concatenate([moved.bits for moved in same]),
                )
                for same in zip(*(part.moved for part in parts), strict=True)
            ),
        )


def name_of(look: int, move: str = "", crop: float | None = None) -> str:
    """Return the name of a view in `matches/`, such as `whole`, `inset+mirrored`, or `whole+crop-0.75`.

    Args:
        look: place in `LOOKS`.
        move: how the look is moved; empty for not at all.
        crop: share of the reference's area that was met; None for the whole.
    """
    parts = [LOOKS[look], move, "" if crop is None else f"crop-{crop:g}"]
    return JOINT.join(filter(None, parts))


def rescored(scores: NDArray[np.float32], agreement: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores plus how far the details of both sides agree beyond chance, float32[P].

    Args:
        scores: float32[P], of candidates.
        agreement: float32[P], see `details.agreement`; NaN where it is not known.
    """
    added = np.maximum(agreement.astype(np.float64) - CHANCE, 0.0)
    return np.asarray(scores + np.nan_to_num(added, nan=0.0), np.float32)
