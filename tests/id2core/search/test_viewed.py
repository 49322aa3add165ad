"""Uploads that meet references under views: every pair by its best one, however the references are cut."""

from __future__ import annotations

from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from id2core.encoders.latent_views import MOVES
from id2core.encoders.views import Box
from id2core.errors import TransformError
from id2core.search import chance, looks, match_rows, shards, viewed
from id2core.search.covers import covers_of
from id2core.search.looks import LOOKS, Looks, Views
from id2core.search.shards import Shard
from id2core.search.viewed_rows import ViewedRows
from id2core.store import schemas
from id2core.transforms import cohorts, crop_rows
from id2core.transforms.crop_rows import CROPS, cropped
from id2core.transforms.details import agreement, detail_bits
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import MOVED_COLUMNS, ReferenceRows, with_cohort

SIDE, M = 8, 170
N = 4 * SIDE * SIDE
# The first columns say most, as in a closed form.
WEIGHTS = np.random.default_rng(0).normal(size=(N, M)) / (1 + np.arange(M) / 20)
W = Transform(WEIGHTS.astype(np.float32), {"method": "closed form"})
VIEWS = Views.of(W, "another-0123")


def _latents(count: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).normal(size=(count, 4, 4, 4))
    fine = np.random.default_rng(seed + 1).normal(size=(count, 4, SIDE, SIDE))
    maps = np.kron(coarse, np.ones((1, 1, SIDE // 4, SIDE // 4))) + 0.3 * fine
    return maps.reshape(count, N).astype(np.float16)


def _shard(latents: np.ndarray, names: list[str]) -> Shard:
    make = ReferenceRows.of(W, N)
    assert make
    ids = pa.table({"image_id": names, "uri": [f"u/{name}" for name in names]})
    return shards.build(W.apply(latents), ids, viewed=ViewedRows(*make(latents)))


COHORT = _latents(cohorts.LEAST, 90)
WITH_COHORT = Views.of(with_cohort(W, COHORT), "another-0123")


def _looks(latents: np.ndarray, insets: list[list[tuple[str, np.ndarray]]]) -> Looks:
    return VIEWS.looks(_table(latents, insets), W.apply(latents))


def _table(latents: np.ndarray, insets: list[list[tuple[str, np.ndarray]]]) -> pa.Table:
    rows = [[{"view": name, "latent": latent} for name, latent in each] for each in insets]
    return pa.table(
        {
            "latent": schemas.vectors_to_array(latents, N),
            "insets": pa.array(rows, pa.list_(schemas.INSET)),
        }
    )


def _moved(latents: np.ndarray, name: str) -> np.ndarray:
    maps = latents.reshape(-1, 4, SIDE, SIDE)
    return np.stack([np.stack([MOVES[name](channel) for channel in each]) for each in maps]).reshape(-1, N)


def _by_hand(look: np.ndarray, reference: np.ndarray, cost: float) -> dict[str, float]:
    """Score one look and one reference under every view, by the definitions in `looks`."""
    (q,), (r,) = W.apply(look[None]), W.apply(reference[None])
    scores = {"": float(q @ r) - cost}
    for crop in CROPS:
        row = crop_rows.heads(W.apply(cropped(reference[None], crop)))[0]
        score = crop_rows.SLOPE * float(q[: crop_rows.COLUMNS] @ row) - cost - crop.cost
        name = f"+crop-{crop.share:g}"
        scores[name] = max(scores.get(name, -9.0), score)
    head = crop_rows.heads(r[None], MOVED_COLUMNS)[0]
    for name in MOVES:
        (moved,) = W.apply(_moved(look[None], name))
        scores[f"+{name}"] = 1.1 * float(moved[:MOVED_COLUMNS] @ head) - cost - looks.MOVED_COSTS[name]
    return scores


def test_a_pair_counts_by_its_best_view() -> None:
    references, uploads = _latents(9, 1), _latents(5, 3)
    # One upload of each kind: mirrored, turned, cropped, framed, and one of nothing.
    uploads[0] = _moved(references[:1], "mirrored")[0]
    uploads[1] = _moved(references[1:2], "turned-left")[0]
    uploads[2] = cropped(references[2:3], CROPS[-1])[0]
    insets = [[], [], [], [("inset", references[3])], [("half-1", references[4]), ("half-2", uploads[4])]]
    names = [f"{i:02d}" for i in range(9)]

    found = viewed.search(_shard(references, names), _looks(uploads, insets), 9)

    best = found.group_by("query_row", use_threads=False).aggregate(
        [("view", "first"), ("reference_id", "first")]
    )
    assert best["reference_id_first"].to_pylist() == ["00", "01", "02", "03", "04"]
    # What undoes a turn to the left is one to the right.
    assert best["view_first"].to_pylist() == [
        "whole+mirrored",
        "whole+turned-right",
        "whole+crop-0.5",
        "inset",
        "half-1",
    ]
    for row in found.to_pylist():
        upload, reference = row["query_row"], references[int(row["reference_id"])]
        seen = [("whole", uploads[upload], looks.FRAMED_COST if upload == 3 else 0.0)]
        seen += [(name, latent, 0.0) for name, latent in insets[upload]]
        scores = {
            name + view: score
            for name, latent, cost in seen
            for view, score in _by_hand(latent, reference, cost).items()
        }
        assert row["score"] == pytest.approx(max(scores.values()), abs=0.01)  # rows have one byte a number
        assert row["score"] == pytest.approx(scores[row["view"]], abs=0.01)


@settings(max_examples=8)
@given(st.integers(1, 12), st.integers(1, 11), st.integers(1, 4), st.integers(0, 9))
def test_candidates_do_not_depend_on_how_references_or_uploads_are_cut(
    k: int, cut: int, split: int, seed: int
) -> None:
    references = _latents(12, seed)
    references[3:6] = references[0]  # copies tie
    uploads = np.concatenate([_latents(3, seed + 50), references[:2]])
    insets = [[("inset", references[1])] if i % 2 else [] for i in range(len(uploads))]
    names = [f"{(7 * i) % 12:02d}" for i in range(12)]
    asked = _looks(uploads, insets)

    whole = viewed.search(_shard(references, names), asked, k)
    parts = [
        viewed.search(_shard(references[rows], [names[i] for i in rows]), asked, k)
        for rows in (list(range(cut)), list(range(cut, 12)))
        if rows
    ]
    two = Looks.together(
        [_looks(uploads[rows], insets[rows]) for rows in (slice(0, split), slice(split, None))]
    )

    assert shards.merge(parts, k).equals(whole)
    assert viewed.search(_shard(references, names), two, k).equals(whole)
    some = np.array([1, 3])
    few = viewed.search(_shard(references, names), asked.of(some), k).drop_columns("query_row")
    assert few.equals(whole.filter(pa.array(np.isin(whole["query_row"], some))).drop_columns("query_row"))


def test_detail_is_that_of_the_view_and_raises_the_first_candidates_only() -> None:
    references = _latents(30, 5)
    upload = _moved(references[:1], "mirrored")
    asked = _looks(upload, [[]])

    found = viewed.search(_shard(references, [f"{i:02d}" for i in range(30)]), asked, 30)

    [first] = found.slice(0, 1).to_pylist()
    assert (first["view"], first["reference_id"], first["detail"]) == ("whole+mirrored", "00", 1.0)
    plain = found.filter(pa.array([view == "whole" for view in found["view"].to_pylist()]))
    rows = [int(name) for name in plain["reference_id"].to_pylist()]
    wanted = agreement(detail_bits(upload)[[0] * len(rows)], detail_bits(references[rows]))
    np.testing.assert_array_equal(plain["detail"].to_numpy(), wanted)

    again = match_rows.rescored(found, 30)
    by_id = {row["reference_id"]: row["score"] for row in again.to_pylist()}
    for place, row in enumerate(found.to_pylist()):
        gain = max(0.0, row["detail"] - looks.CHANCE) if place < looks.RESCORED else 0.0
        assert by_id[row["reference_id"]] == pytest.approx(row["score"] + gain, abs=1e-6)
    assert again["detail"].null_count == 30 - looks.RESCORED  # where it is not in the score


def _looks_under(views: Views, latents: np.ndarray, insets: list[list[tuple[str, np.ndarray]]]) -> Looks:
    return chance.looks_of(views, _table(latents, insets), W.apply(latents))


def _painted_over(latents: np.ndarray, cells: int) -> np.ndarray:
    maps = latents.reshape(-1, 4, SIDE, SIDE).copy()
    inner = slice(cells, SIDE - cells)
    frame = np.full_like(maps, 2)
    frame[:, :, inner, inner] = maps[:, :, inner, inner]
    return frame.reshape(latents.shape)


def test_a_frame_that_is_painted_over_a_picture_is_taken_out_of_its_latent() -> None:
    references = _latents(9, 1)
    upload = _painted_over(references[:1], 1)
    box = Box(1 / SIDE, 1 / SIDE, 1 - 1 / SIDE, 1 - 1 / SIDE)
    inset = _latents(1, 30)[0]  # such a crop of the picture that it is not found
    rows = [[{"view": "inset", "latent": inset, **asdict(box)}]]
    table = _table(upload, [[]]).set_column(1, "insets", pa.array(rows, pa.list_(schemas.INSET)))

    asked = VIEWS.looks(table, W.apply(upload))

    assert [LOOKS[name] for name in asked.names] == ["whole", "inset", "covered"]
    share = (1 - 2 / SIDE) ** 2
    assert asked.slopes.tolist() == pytest.approx([1, 1, share**-0.5])
    np.testing.assert_allclose(asked.costs, [looks.FRAMED_COST, 0, looks.COVERED_COST])
    maps = asked.latents.reshape(-1, 4, SIDE, SIDE)
    assert not maps[2, :, [0, -1]].any() and not maps[2, :, :, [0, -1]].any()
    assert (maps[2, :, 2:-2, 2:-2] == maps[0, :, 2:-2, 2:-2]).all()
    found = viewed.search(_shard(references, [f"{i:02d}" for i in range(9)]), asked, 9).to_pylist()
    pair = next(row for row in found if row["reference_id"] == "00")
    assert pair["view"] == "covered"
    by_hand = float(asked.descriptors[2] @ W.apply(references[:1])[0]) * share**-0.5 - looks.COVERED_COST
    assert pair["score"] == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize(
    "boxes",
    [
        [Box(0, 0, 0.49, 1), Box(0.51, 0, 1, 1)],  # a collage
        [Box(0.4, 0.4, 0.8, 0.8)],  # little is left
        [Box(0.01, 0.01, 0.99, 0.99)],  # nearly all is
        [Box(np.nan, np.nan, np.nan, np.nan)],
    ],
)
def test_no_frame_is_taken_out_where_that_tells_nothing(boxes: list[Box]) -> None:
    owners = np.zeros(len(boxes), np.int64)
    assert not len(covers_of(_latents(1, 5), owners, np.array([astuple(box) for box in boxes])).rows)


def test_what_an_upload_holds_lowers_no_background() -> None:
    latents = _latents(3, 6)
    insets = [[("parent", latents[2])], [("inset", latents[2])]]
    shard = _shard(_latents(20, 60), [f"{i:02d}" for i in range(20)])

    asked = _looks_under(WITH_COHORT.of_wholes, latents[:2], insets)

    assert [LOOKS[name] for name in asked.names] == ["whole", "whole"] and not asked.costs.any()
    plain = _looks(latents[:2], [[], []])
    assert viewed.search(shard, asked, 3).equals(viewed.search(shard, plain, 3))


def test_a_picture_inside_costs_what_it_scores_by_chance_more_than_the_whole() -> None:
    latents = _latents(3, 6)
    bland = COHORT.astype(np.float32).mean(axis=0).astype(np.float16)  # near everything
    insets = [[("half-1", bland), ("half-2", latents[2])], [], [("inset", latents[2])]]

    asked = _looks_under(WITH_COHORT, latents, insets)

    assert [LOOKS[name] for name in asked.names] == ["whole"] * 3 + ["half-1", "half-2", "inset"]
    chances = [_by_chance(latent) for latent in (*latents, bland, latents[2], latents[2])]
    wanted = [0, 0, looks.FRAMED_COST]
    wanted += [looks.CHANCE_FACTOR * (chances[3 + i] - chances[owner]) for i, owner in enumerate((0, 0, 2))]
    np.testing.assert_allclose(asked.costs, wanted, atol=0.01)
    assert asked.costs[3] > asked.costs[4] > 0
    # Costs depend on nothing but the upload.
    alone = _looks_under(WITH_COHORT, latents[:1], insets[:1])
    np.testing.assert_array_equal(alone.costs, asked.costs[[0, 3, 4]])


def _by_chance(look: np.ndarray) -> float:
    best = sorted(max(_by_hand(look, reference, 0.0).values()) for reference in COHORT)
    return float(np.mean(best[-cohorts.BEST : -1]))


def test_a_worker_with_the_same_weights_and_another_cohort_is_refused(tmp_path: Path) -> None:
    W.save(tmp_path / "plain.safetensors")
    with_cohort(W, COHORT).save(tmp_path / "cohort.safetensors")
    both = [looks.plan("auto", str(path), "another-0123", W.transform_id) for path in tmp_path.iterdir()]
    assert None not in both and len({looks.id_of(plan) for plan in both}) == 2
    stale = replace(both[0], id=looks.id_of(both[1]))
    with pytest.raises(TransformError, match="the same file of W with its cohort"):
        stale.load()


def test_without_an_order_of_columns_only_looks_are_left() -> None:
    views = Views.of(Transform(WEIGHTS.astype(np.float32)), "another-0123")
    latents = _latents(2, 7)
    rows = [[{"view": "inset", "latent": latents[1]}], []]
    table = pa.table({"insets": pa.array(rows, pa.list_(schemas.INSET))})

    asked = views.looks(table, W.apply(latents))

    assert views.columns == ["insets"] and not views.has_rows
    assert [LOOKS[name] for name in asked.names] == ["whole", "whole", "inset"]
    assert asked.owners.tolist() == [0, 1, 0] and not asked.moved and asked.bits is None


def test_uploads_that_nobody_looked_into_have_one_look() -> None:
    latents = _latents(2, 8)
    table = pa.table(
        {
            "latent": schemas.vectors_to_array(latents, N),
            "insets": pa.nulls(2, pa.list_(schemas.INSET)),
        }
    )
    assert len(VIEWS.looks(table, W.apply(latents))) == 2


def test_views_and_their_costs_name_the_scores() -> None:
    plan = looks.plan("auto", "none", "mini-2087fb54ed81", "identity")
    assert plan and plan.id.startswith("frames-") and looks.plan("none", "auto", "mini", "x") is None
    assert plan.load().id == plan.id != VIEWS.id
    # Another W is no other view.
    assert Views.of(Transform(2 * WEIGHTS.astype(np.float32), W.metadata), "another-0123").id == VIEWS.id
