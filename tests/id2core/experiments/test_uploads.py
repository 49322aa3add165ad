"""Uploads as they come: what edits do, which photos are asked, what is kept, and what is measured."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from id2core.encoders import images
from id2core.encoders.images import Decoded
from id2core.encoders.registry import load_encoder
from id2core.experiments import (
    evaluation_sets,
    hard_negatives,
    upload_edits,
    upload_matchers,
    upload_sets,
    upload_tables,
    upload_views,
)
from id2core.experiments.evaluation_sets import EvaluationSet, Queries
from id2core.experiments.methods import Methods
from id2core.experiments.results import Result, Skipped
from id2core.experiments.upload_edits import EDITS, UNTOUCHED
from id2core.experiments.upload_sets import COPY, TESTED, VALIDATION, PixelView, Uploads, UploadSet
from id2core.search.looks import Views
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, SourceRecord
from id2core.transforms.linear import Transform
from tests.drawing import scene
from tests.latent_sets import write_translations

PHOTOS = {"test": 16, "distractors": 8, "fresh": 3, "calibration": 30, "train": 12}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation set of small scenes in PDQ; two "models" blur them."""
    root = tmp_path_factory.mktemp("uploads")
    for place, (role, count) in enumerate(PHOTOS.items()):
        photos = [scene(100 * place + i) for i in range(count)]
        ids = _embed(root, role, photos)
        for model, sigma in (("a", 1.0), ("b", 2.0)):
            if role in ("test", "calibration"):
                name, own = f"{role}-{model}", photos[: count - 1]
                blurred = [photo.filter(ImageFilter.GaussianBlur(sigma)) for photo in own]
                pairs = list(zip(_embed(root, name, blurred), ids, strict=False))
                write_translations(root / f"translations/{name}/translations", pairs)
    facts = {"seen": "a", "unseen": ["b"], "encoders": {"": "pdq"}}
    (root / evaluation_sets.FACTS).write_text(json.dumps(facts))
    return root


@pytest.fixture
def data(made: Path, tmp_path: Path) -> EvaluationSet:
    """A copy without kept uploads."""
    shutil.copytree(made, tmp_path / "bench", ignore=shutil.ignore_patterns(upload_sets.FOLDER))
    return EvaluationSet.load(tmp_path / "bench")


@pytest.fixture
def lost(made: Path) -> Iterator[Path]:
    """The folder of all pictures. A test may move it to `aside`: it comes back afterwards."""
    folder, aside = made / "pictures", made / "aside"
    yield folder
    if aside.exists():
        aside.rename(folder)


def _embed(root: Path, name: str, pictures: Iterable[Image.Image]) -> list[str]:
    """Write pictures and their latents as a data set; return their image_ids."""
    network = load_encoder("pdq")
    folder = root / "pictures" / name
    folder.mkdir(parents=True)
    rows: dict[str, list[str]] = {"image_id": [], "uri": []}
    pixels = []
    for i, picture in enumerate(pictures):
        path = folder / f"{i:03d}.png"
        picture.save(path)
        rows["image_id"].append(hashlib.sha256(path.read_bytes()).hexdigest())
        rows["uri"].append(str(path))
        decoded = images.decode(path.read_bytes(), network.preprocess.size)
        assert isinstance(decoded, Decoded)
        pixels.append(decoded.pixels)
    latents = network.encode(np.stack(pixels))
    schema = schemas.embeddings_schema(latents.shape[1], 1)
    columns = rows | {"latent": schemas.vectors_to_array(latents, latents.shape[1])}
    count = len(pixels)
    table = schema.empty_table().from_pydict(
        {f.name: columns.get(f.name, [None] * count) for f in schema}, schema=schema
    )
    uri = str(root / "latents" / name / "embeddings")
    record = datasets.write_file(uri, "part-0", [table], schema)
    ids = {"encoder_id": network.encoder_id, "preprocess_id": "p", "transform_id": "identity"}
    datasets.write_commit(uri, Commit("embeddings", "r", ids, (record,), sources={name: SourceRecord()}))
    return rows["image_id"]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_the_same_for_one_picture_and_another_for_the_next(name: str) -> None:
    picture, partner = scene(1), scene(2, (64, 80))
    before = picture.tobytes()
    files = [EDITS[name].upload(picture, image_id, partner) for image_id in ("a", "a", "b", "c", "d", "e")]

    assert files[0] == files[1] and len(set(files)) > 2
    assert picture.tobytes() == before
    assert all(isinstance(images.decode(file), Decoded) for file in files)


@pytest.mark.parametrize("size", [(9, 300), (300, 9), (16, 16)])
@pytest.mark.parametrize("name", EDITS)
def test_thin_and_tiny_pictures_are_uploaded_too(name: str, size: tuple[int, int]) -> None:
    for image_id in "abcd":
        assert isinstance(images.decode(EDITS[name].upload(scene(1, size), image_id, scene(2))), Decoded)


def test_frames_and_posts_show_the_whole_picture() -> None:
    picture, partner = scene(3, (96, 80)), scene(4)
    for name in (
        "border-plain-thin",
        "border-blurred-thick",
        "letterbox",
        "pillarbox",
        "screenshot",
        "bar",
        "caption",
    ):
        for image_id in "abcde":
            whole = EDITS[name](picture, image_id, partner)
            assert whole.width * whole.height > picture.width * picture.height
            assert _shows(whole, picture), name


def _shows(whole: Image.Image, part: Image.Image) -> bool:
    pixels, wanted = np.asarray(whole), np.asarray(part)
    height, width = wanted.shape[:2]
    corners = np.argwhere((pixels == wanted[0, 0]).all(axis=-1))
    return any(np.array_equal(pixels[y : y + height, x : x + width], wanted) for y, x in corners)


@pytest.mark.parametrize("share", [0.9, 0.75, 0.5])
def test_crops_keep_about_their_share_and_off_center_ones_lie_elsewhere(share: float) -> None:
    ramp = np.arange(100)[None, :] + 100 * np.arange(100)[:, None]
    picture = Image.fromarray(np.stack([ramp % 100, ramp // 100, 0 * ramp], -1).astype(np.uint8))
    places = {}
    for where in ("centered", "off-center"):
        parts = [EDITS[f"crop-{share:g}-{where}"](picture, f"{i}", picture) for i in range(40)]
        areas = [part.width * part.height / 1e4 for part in parts]
        assert share - 0.05 < min(areas) < max(areas) < share + 0.05
        places[where] = np.array([np.asarray(part).mean(axis=(0, 1))[:2] for part in parts])
    assert np.abs(places["centered"] - 49.5).max() < 1
    assert (np.abs(places["off-center"] - 49.5).max(axis=1) > 0.5).all()


def test_no_photo_is_in_both_splits_and_all_kinds_ask_the_same(data: EvaluationSet) -> None:
    uploads = UploadSet(data)
    splits = {split: uploads.sources(COPY, split).image_ids for split in (VALIDATION, TESTED)}

    assert len(set(splits[VALIDATION]) | set(splits[TESTED])) == PHOTOS["test"] - 1  # one is not translated
    assert not set(splits[VALIDATION]) & set(splits[TESTED])
    for kind in uploads.kinds:
        sources = uploads.sources(kind, TESTED)
        assert sources.origins.tolist() == uploads.sources(COPY, TESTED).origins.tolist()
        assert len(set(sources.uris)) == len(sources.uris) > 2


def test_thresholds_are_set_on_one_upload_of_each_photo(data: EvaluationSet) -> None:
    uploads = UploadSet(data)

    parts = uploads.calibration(edited=True)

    numbers = np.concatenate([part.sources.photos for part in parts])
    assert sorted(numbers) == list(range(PHOTOS["calibration"]))
    assert {part.edit.name for part in parts} == set(EDITS)
    names = [part.sources.name for part in parts for _ in part.sources.uris]
    assert sorted(names.count(name) for name in set(names)) == [10, 10, 10]
    assert {part.edit.name for part in uploads.calibration(edited=False)} == {UNTOUCHED}


def test_latents_are_kept_until_an_edit_changes(data: EvaluationSet, lost: Path) -> None:
    first, edit = UploadSet(data), EDITS["crop-0.5-centered"]
    latents, seen = first.of(edit, "b").latents()
    lost.rename(lost.parent / "aside")  # nothing can be encoded any more

    again, _ = UploadSet(data).of(edit, "b").latents()

    assert seen.all() and np.array_equal(latents, again)
    with pytest.raises(FileNotFoundError):
        UploadSet(data).of(replace(edit, version=edit.version + 1), "b").latents()


def test_a_view_that_shows_nothing_has_no_latent(data: EvaluationSet) -> None:
    def some(file: bytes, size: int) -> np.ndarray | None:
        return None if len(file) % 2 else upload_sets.WHOLE.look(file, size)

    view = PixelView("some", 1, some)
    asked = UploadSet(data).of(EDITS["letterbox"], COPY)

    for uploads in (asked, UploadSet(data).of(EDITS["letterbox"], COPY)):
        latents, seen = uploads.latents(view)
        assert seen.tolist() == [len(file) % 2 == 0 for file in uploads.files()]
        assert (latents[seen] == uploads.latents()[0][seen]).all() and not latents[~seen].any()


def test_pictures_inside_a_frame_are_looked_up_and_others_are_scored_as_before(data: EvaluationSet) -> None:
    uploads = UploadSet(data)
    raw = Transform()
    whole = upload_matchers.Whole("whole", raw, raw.apply(uploads.references))
    references = upload_views.shard_of(uploads.references, raw)
    views = upload_views.Viewed("views", Views(raw, ()), references)
    framed, plain = (uploads.of(EDITS[name], COPY) for name in ("border-plain-thick", UNTOUCHED))

    assert len(views.looks(framed)) == 2 * len(framed.sources.uris)
    assert _correct(views, framed) > _correct(whole, framed)
    by_views, by_whole = (upload_matchers.ranked(m.scores(plain), plain.queries) for m in (views, whole))
    assert np.array_equal(by_views.rows, by_whole.rows)
    background = upload_matchers.Background(raw.apply(uploads.references), 1.0, 1)
    normalized = replace(views, background=(references, background))
    beside = whole.scores(framed).max(axis=1, keepdims=True)  # of the whole, whatever it shows
    assert np.allclose(normalized.scores(framed), views.scores(framed) - beside, atol=1e-6)


def _correct(matcher: upload_matchers.Matcher, uploads: Uploads) -> float:
    return float(upload_matchers.ranked(matcher.scores(uploads), uploads.queries).correct.mean())


def test_an_upload_without_origin_does_not_meet_it() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.2, 0.3, 0.8]], np.float32)
    queries = Queries(np.zeros((2, 4), np.float16), np.array([0, 1]), np.arange(2))

    both = upload_matchers.with_and_without(scores, queries)

    assert both.ranks.tolist() == [1, 2, 0, 0]
    assert both.rows[:, 0].tolist() == [0, 2, 1, 2]
    np.testing.assert_allclose(both.scores[:, 0], [0.9, 0.8, 0.5, 0.8], rtol=1e-6)
    assert both.queries.photos.tolist() == [0, 1, 0, 1]


def test_tables_have_every_edit_and_say_what_is_not_known(
    data: EvaluationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {name: EDITS[name] for name in (UNTOUCHED, "mirrored", "text")}
    monkeypatch.setattr(upload_sets, "EDITS", chosen)
    monkeypatch.setattr(evaluation_sets, "RESAMPLES", 50)
    methods = Methods(data, tmp_path)

    closed, opened = upload_tables.closed(methods), upload_tables.opened(methods)
    monkeypatch.setattr(upload_tables, "MATCH", 0.5)
    monkeypatch.setattr(upload_tables, "REVIEW", 0.5)
    calibrated = upload_tables.opened(methods)

    assert isinstance(closed, Result) and isinstance(opened, Result) and isinstance(calibrated, Result)
    rows = {row["edit"]: row for row in closed.table.to_pylist()}
    assert set(rows) == set(chosen)
    assert rows[UNTOUCHED]["copy_acc"] == 1 > rows["mirrored"]["copy_acc"]
    assert opened.table["a_found"].null_count == opened.table.num_rows
    assert (
        len(set(opened.table["method"].to_pylist())) <= 2 == 1 + len(set(closed.table["method"].to_pylist()))
    )
    assert any("500 calibration photos" in note for note in opened.notes)
    assert all(0 <= rate <= 1 for rate in calibrated.table["b_rate"].to_pylist())


def test_without_pictures_the_tables_are_skipped(data: EvaluationSet, lost: Path, tmp_path: Path) -> None:
    lost.rename(lost.parent / "aside")
    outcome = upload_tables.closed(Methods(data, tmp_path))

    assert isinstance(outcome, Skipped) and "pictures of the test are missing" in outcome.reason


def test_hard_negatives_are_references_beside_their_origins(
    data: EvaluationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_sets, "RESAMPLES", 50)
    monkeypatch.setattr(hard_negatives, "NEGATIVES", {"same": UNTOUCHED, "mirrored": "mirrored"})

    crowded = hard_negatives.CrowdedSet(data, negative="mirrored")
    photos = crowded.sources(COPY, TESTED)
    outcome = hard_negatives.hard_negatives(Methods(data, tmp_path))

    assert len(crowded.references) == len(data.references) + len(photos.uris)
    np.testing.assert_array_equal(crowded.references[: len(data.references)], data.references)
    assert isinstance(outcome, Result)
    rows = {row["negative"]: row for row in outcome.table.to_pylist()}
    # A copy scores 1 with its origin, and also with a reference that is the same upload.
    assert rows["mirrored"]["copy_before"] == 1
    assert rows["same"]["copy_before"] == 0 == rows["same"]["copy_acc"]


def test_jpeg_quality_is_drawn() -> None:
    picture = scene(5)
    qualities = {
        Image.open(io.BytesIO(EDITS[UNTOUCHED].upload(picture, f"{i}", picture))).quantization[0][0]  # type: ignore[attr-defined]
        for i in range(20)
    }
    assert len(qualities) > 2 and upload_edits.JPEG_QUALITY == (75, 95)
