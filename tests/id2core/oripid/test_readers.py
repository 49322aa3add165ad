"""Public data sets as their layouts are, in small, with broken members; local and in a bucket."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from id2core.errors import DatasetError, ReaderError, TransformError
from id2core.evaluation import truth_files
from id2core.oripid import feature_files, readers
from id2core.oripid.readers import OripidLayout, PairSet, UnpairedReason
from id2core.runs.execution import Execution
from id2core.store import schemas, storage
from id2core.store.datasets import Dataset
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object
from id2core.transforms.linear import Transform
from tests.drawing import draw_photos, scene

N = 64
FLAT = OripidLayout(training="")


@pytest.fixture(params=["local", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same behavior is asked of a local folder and of a bucket."""
    if request.param == "local":
        return str(tmp_path / "set")
    return f"gs://{request.getfixturevalue('gcs')}/{tmp_path.name}"


def photo(seed: int) -> bytes:
    file = io.BytesIO()
    scene(seed, (24, 24)).save(file, "JPEG")
    return file.getvalue()


def fill(root: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        storage.write_bytes(storage.join(root, name), data)


def names(uris: object) -> list[str]:
    return [str(uri).rsplit("/", 1)[-1] for uri in uris]  # type: ignore[attr-defined]


def npy(array: NDArray[np.generic], pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=pickled)
    return file.getvalue()


def latent(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=N).astype(np.float32)


# OriPID: images by name


def test_training_images_come_by_class_origin_first(root: str) -> None:
    numbers = {"training/more/T000002_0": 1, "training/T000007_0": 2}
    numbers |= {f"training/T000002_{i}": 10 + i for i in (20, 3, 1)}
    numbers |= {"training/T000007_2": 5, "training/T000009_1": 6, "training/README": 7}
    fill(root, {f"{name}.jpg": photo(seed) for name, seed in numbers.items()})
    training = readers.read_oripid_training(root)
    classes = {origin: [image.number for image in images] for origin, images in training.classes()}
    assert classes == {"T000002": [0, 1, 3, 20], "T000007": [0, 2], "T000009": [1]}
    assert [(d.reason, names([d.uri])) for d in training.unpaired] == [(UnpairedReason.NAME, ["README.jpg"])]
    origin_id, number, uri = next(iter(training))
    assert (origin_id, number, uri) == ("T000002", 0, storage.join(root, "training/more/T000002_0.jpg"))

    pairs = training.pairs()
    assert {q.rsplit("/", 1)[1]: names([r])[0] for q, r in pairs.truth.items()} == {
        "T000002_1.jpg": "T000002_0.jpg",
        "T000002_3.jpg": "T000002_0.jpg",
        "T000002_20.jpg": "T000002_0.jpg",
        "T000007_2.jpg": "T000007_0.jpg",
    }
    assert pairs.unpaired_counts == {UnpairedReason.NAME: 1, UnpairedReason.NO_ORIGIN: 1}


def test_one_name_twice_counts_once(tmp_path: Path) -> None:
    fill(str(tmp_path), {"a/T000001_0.jpg": b"1", "b/T000001_0.npy": b"2"})
    training = readers.read_oripid_training(str(tmp_path), FLAT)
    assert names(i.uri for i in training) == ["T000001_0.jpg"]
    assert training.pairs().unpaired_counts == {UnpairedReason.SAME_NAME: 1}


def test_queries_of_a_model_find_their_references_by_name(root: str) -> None:
    fill(root, {f"references/{i // 2}/R{i:06d}.jpg": photo(i) for i in range(4)})
    queries = ["R000001.png", "Q7_R000003.png", "R000009.png", "notes.txt"]
    fill(root, {f"queries/sd3/{name}": photo(50 + i) for i, name in enumerate(queries)})
    test_set = readers.read_oripid_test(root, "sd3")
    assert names(test_set.references) == [f"R{i:06d}.jpg" for i in range(4)]
    truth = {names([q])[0]: names([r])[0] for q, r in test_set.truth.items()}
    assert truth == {"R000001.png": "R000001.jpg", "Q7_R000003.png": "R000003.jpg"}
    assert test_set.unpaired_counts == {UnpairedReason.NAME: 1, UnpairedReason.NO_ORIGIN: 1}


def test_another_layout_is_a_matter_of_parameters(tmp_path: Path) -> None:
    fill(str(tmp_path), {"gallery/5.jpg": b"5", "gallery/6.jpg": b"6", "kolors/5-out.jpg": b"x"})
    layout = OripidLayout(
        references="gallery",
        queries="{model}",
        reference_name=r"(?P<origin>\d+)",
        query_name="(?P<origin>.*)-out",
    )
    pool = readers.read_oripid_references(str(tmp_path), layout)
    test_set = readers.read_oripid_test(str(tmp_path), "kolors", layout, pool)
    assert list(test_set.truth.values()) == [str(tmp_path / "gallery/5.jpg")]
    with pytest.raises(ReaderError, match=r"2 files .* example .*5\.jpg.*OripidLayout"):
        readers.read_oripid_references(str(tmp_path), OripidLayout(references="gallery"))
    with pytest.raises(ReaderError, match=r"5, the origin of .*5-out\.jpg, is not among"):
        readers.read_oripid_test(str(tmp_path), "kolors", layout, {"6": "/x/6.jpg"})
    fill(str(tmp_path), {"gallery/more/5.png": b"another"})
    with pytest.raises(ReaderError, match="one name"):
        readers.read_oripid_references(str(tmp_path), layout)


# Feature files


class Bomb:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def with_header(text: str, body: bytes) -> bytes:
    header = text.ljust(117).encode() + b"\n"
    return np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header + body


def with_shape(shape: tuple[int, ...]) -> bytes:
    return with_header(str({"descr": "<f4", "fortran_order": False, "shape": shape}), bytes(4 * N))


def broken_features(bomb: Path) -> dict[str, tuple[bytes, Reason]]:
    good = npy(latent(0))
    large, hole = latent(1), latent(2)
    large[5], hole[5] = 70_000, np.nan
    huge = with_shape((10**13,))
    pickled = npy(np.array([Bomb(bomb)], object), pickled=True)
    return {
        "empty": (b"", Reason.EMPTY),
        "text": (b"version https://git-lfs.github.com/spec/v1\n", Reason.UNSUPPORTED),
        "pickle": (pickle.dumps(Bomb(bomb)), Reason.UNSUPPORTED),
        "pickled_array": (pickled, Reason.UNSUPPORTED),
        "whole_numbers": (npy(np.arange(N)), Reason.UNSUPPORTED),
        "cut_header": (good[:40], Reason.CORRUPT),
        "code_in_header": (with_header("__import__('os').abort()", b""), Reason.CORRUPT),
        "cut_numbers": (good[:-1], Reason.TRUNCATED),
        "bytes_left_over": (good + b"\0", Reason.CORRUPT),
        "not_finite": (npy(hole), Reason.CORRUPT),
        "beyond_float16": (npy(large), Reason.NOT_ENCODABLE),
        "too_short": (npy(latent(0)[:-1]), Reason.NOT_ENCODABLE),
        "two_latents": (npy(np.stack([latent(0)] * 2)), Reason.NOT_ENCODABLE),
        "huge_shape": (huge, Reason.NOT_ENCODABLE),
        "negative_shape": (with_shape((-N, -1)), Reason.NOT_ENCODABLE),
        "too_many_axes": (with_shape((N, *[1] * 70)), Reason.NOT_ENCODABLE),
        "too_large_to_read": (npy(np.zeros(100_000)), Reason.TOO_LARGE_FILE),
    }


def test_latents_come_in_order_in_blocks_and_bad_files_as_rejects(root: str, tmp_path: Path) -> None:
    bomb = tmp_path / "exploded"
    broken = broken_features(bomb)
    fill(root, {f"T{i // 21:06d}_{i % 21}.npy": npy(latent(i)) for i in range(30)})
    fill(root, {f"bad/{name}.npy": data for name, (data, _) in broken.items()})
    listed = storage.list_objects(root)
    blocks = list(feature_files.read_blocks(listed, N, block_size=16))

    assert [len(b.objects) + len(b.rejected) for b in blocks] == [16, 16, 15]
    rows = [(name, row) for b in blocks for name, row in zip(b.names, b.latents, strict=True)]
    assert [name for name, _ in rows] == sorted(f"T{i // 21:06d}_{i % 21}" for i in range(30))
    for name, row in rows:
        origin, number = OripidLayout().label(name) or ("", 0)
        expected = latent(int(origin[1:]) * 21 + number)
        assert row.dtype == np.float16 and np.array_equal(row, expected.astype(np.float16))
    reasons = {names([o.uri])[0].removesuffix(".npy"): r.reason for b in blocks for o, r in b.rejected}
    assert reasons == {name: reason for name, (_, reason) in broken.items()}
    assert not bomb.exists()


def test_a_file_gone_since_it_was_listed_is_a_reject(root: str) -> None:
    fill(root, {"T000000_0.npy": npy(latent(0)), "T000000_1.npy": npy(latent(1))})
    listed = storage.list_objects(root)
    storage.delete(listed[0].uri)
    [block] = feature_files.read_blocks(listed, N)
    assert block.names == ["T000000_1"]
    assert [reject.reason for _, reject in block.rejected] == [Reason.VANISHED]


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("shape", [(N,), (1, N), (4, 4, 4), (1, 4, 4, 4)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_of_any_width_and_axes_flatten_alike(kind: str, shape: tuple[int, ...], order: str) -> None:
    values = latent(3).astype(np.float16)
    array = np.asarray(values.reshape(shape).astype(kind), order=order)  # type: ignore[call-overload]
    assert np.array_equal(feature_files.decode(npy(array), N), values)


@given(st.binary(max_size=400), st.integers(0, 400))
def test_no_bytes_raise(noise: bytes, at: int) -> None:
    good = npy(latent(0))
    for data in (noise, np.lib.format.magic(1, 0) + noise, good[:at] + noise + good[at + len(noise) :]):
        result = feature_files.decode(data, N)
        assert isinstance(result, Reject) or (result.shape == (N,) and np.isfinite(result).all())


def test_files_are_drawn_only_as_they_are_read(tmp_path: Path) -> None:
    fill(str(tmp_path), {"T000000_0.npy": npy(latent(0))})
    [obj] = storage.list_objects(str(tmp_path))
    drawn = 0

    def endless() -> Iterator[Object]:
        nonlocal drawn
        while True:
            drawn += 1
            yield obj

    blocks = feature_files.read_blocks(endless(), N, block_size=100)
    for count in (1, 2, 3):
        assert next(blocks).latents.shape == (100, N)
        assert drawn <= count * 100 + 300


def test_importing_makes_a_committed_data_set(root: str, tmp_path: Path) -> None:
    folder, out = storage.join(root, "features"), storage.join(root, "out")
    broken = broken_features(tmp_path / "exploded")
    fill(folder, {f"T{i // 3:06d}_{i % 3}.npy": npy(latent(i)) for i in range(6)})
    fill(folder, {f"{name}.npy": data for name, (data, _) in broken.items()})
    plan = feature_files.import_features(
        folder, out, "sd2-sample", Transform(), N, execution=Execution.begin()
    )

    commit = Dataset.open(plan.out + "/embeddings")
    assert commit.ids == {"encoder_id": "sd2-sample", "transform_id": "identity", "preprocess_id": f"npy-{N}"}
    table = Dataset.open(plan.out + "/embeddings").read(schemas.embeddings_schema(N, N))
    assert table.schema.equals(schemas.embeddings_schema(N, N))
    labels = [OripidLayout().label(uri) for uri in table["uri"].to_pylist()]
    assert labels == [(f"T{i // 3:06d}", i % 3) for i in range(6)]
    expected = np.stack([latent(i) for i in range(6)])
    assert np.array_equal(schemas.column_to_vectors(table["latent"]), expected.astype(np.float16))
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(schemas.column_to_vectors(table["descriptor"]), unit, atol=1e-3)
    rejects = Dataset.open(plan.out + "/rejects").read(schemas.REJECTS)
    assert sorted(rejects["reason"].to_pylist()) == sorted(reason for _, reason in broken.values())

    again = feature_files.import_features(
        folder, out, "sd2-sample", Transform(), N, execution=Execution.begin()
    )
    assert again.committed and Dataset.open(plan.out + "/embeddings") == commit
    with pytest.raises(DatasetError, match="sd2-sample"):
        feature_files.import_features(folder, out, "sd2-mode", Transform(), N, execution=Execution.begin())
    with pytest.raises(TransformError, match="another encoder"):
        feature_files.import_features(
            folder, out, "x", Transform(np.eye(3, dtype=np.float32)), N, execution=Execution.begin()
        )


def test_feature_files_pair_by_their_names(tmp_path: Path) -> None:
    fill(str(tmp_path), {f"sd2_d_multi_feature/T000004_{i}.npy": npy(latent(i)) for i in range(3)})
    pairs = readers.read_oripid_training(str(tmp_path), FLAT).pairs()
    assert names(pairs.references) == ["T000004_0.npy"]
    assert names(pairs.queries) == ["T000004_1.npy", "T000004_2.npy"]


# SEED-Data-Edit


def seed_line(source: object, target: object, instruction: object = "remove the pole") -> str:
    return json.dumps({"source_image": source, "target_image": target, "instruction": instruction})


SEED_LINES = [
    (seed_line("s1.jpg", "t1.jpg", "make it sunny"), None),
    (seed_line("s1.jpg", "t2.jpg"), UnpairedReason.SAME_SOURCE),
    (seed_line("copy_of_s1.jpg", "t3.jpg"), UnpairedReason.SAME_SOURCE),
    (seed_line("s2.jpg", "copy_of_t1.jpg"), UnpairedReason.SAME_TARGET),
    (seed_line("s2.jpg", "s2.jpg"), UnpairedReason.UNEDITED),
    (seed_line("s2.jpg", "copy_of_s1.jpg"), UnpairedReason.TARGET_IS_SOURCE),
    (seed_line("/s2.jpg", "t4.jpg", None), None),
    (seed_line("s3.jpg", "nowhere.jpg"), UnpairedReason.NOT_READ),
    (seed_line("../annotations/split_0001.jsonl", "t2.jpg"), UnpairedReason.NOT_READ),
    (seed_line("large.jpg", "t2.jpg"), UnpairedReason.NOT_READ),
    (seed_line(7, "t2.jpg"), UnpairedReason.BAD_LINE),
    ('{"source_image": "s3.jpg", "instruction": "no target"}', UnpairedReason.BAD_LINE),
    ('["a list"]', UnpairedReason.BAD_LINE),
    ('{"source_image": "s3.jpg", "target', UnpairedReason.BAD_LINE),
    (seed_line("s3.jpg", "t2.jpg"), None),
]


@pytest.fixture
def seed_root(root: str) -> str:
    pictures = ["s1", "s2", "s3", "t1", "t2", "t3", "t4"]
    files = {f"{name}.jpg": photo(i) for i, name in enumerate(pictures)}
    files |= {"copy_of_s1.jpg": files["s1.jpg"], "copy_of_t1.jpg": files["t1.jpg"], "large.jpg": bytes(9000)}
    fill(storage.join(root, "real_editing/images"), files)
    lines = [line for line, _ in SEED_LINES]
    for number, rows in ((1, [*lines[:6], ""]), (2, lines[6:])):
        text = "\n".join(rows).encode()
        fill(root, {f"real_editing/annotations/split_000{number}.jsonl": text})
    fill(root, {"real_editing/annotations/README.md": b"not lines"})
    return root


def test_manual_edits_are_deduplicated_and_every_line_is_accounted_for(seed_root: str) -> None:
    pairs = readers.read_seed_edits(seed_root, max_bytes=8000)
    truth = {names([q])[0]: names([r])[0] for q, r in pairs.truth.items()}
    assert truth == {"t1.jpg": "s1.jpg", "t4.jpg": "s2.jpg", "t2.jpg": "s3.jpg"}
    assert names(pairs.references) == ["s1.jpg", "s2.jpg", "s3.jpg"]
    assert [pairs.prompts[q] for q in pairs.queries] == ["make it sunny", "", "remove the pole"]
    assert len(pairs.truth) + len(pairs.unpaired) == len(SEED_LINES)
    expected = [
        (f"{1 if i < 6 else 2}:{(i if i < 6 else i - 6) + 1}", why) for i, (_, why) in enumerate(SEED_LINES)
    ]
    lines = [(d.uri[-len("1.jsonl:1") :].replace(".jsonl", ""), d.reason) for d in pairs.unpaired]
    assert sorted(lines) == sorted(pair for pair in expected if pair[1])


def test_several_edits_of_one_source_have_one_reference(seed_root: str) -> None:
    pairs = readers.read_seed_edits(seed_root, one_per_source=False)
    truth = {names([q])[0]: names([r])[0] for q, r in pairs.truth.items()}
    assert truth["t1.jpg"] == truth["t2.jpg"] == truth["t3.jpg"] == "s1.jpg"
    assert names(pairs.references) == ["s1.jpg", "s2.jpg"]


def test_a_set_without_its_images_says_what_to_do(tmp_path: Path) -> None:
    fill(str(tmp_path), {"real_editing/images/images.tar.gz": b"packed"})
    fill(str(tmp_path), {"real_editing/annotations/split_0001.jsonl": seed_line("s.jpg", "t.jpg").encode()})
    with pytest.raises(ReaderError, match=r"image_not_read.*images.tar.gz unpacked"):
        readers.read_seed_edits(str(tmp_path))
    fill(str(tmp_path), {"real_editing/annotations/split_0001.jsonl": b""})
    with pytest.raises(ReaderError, match="no lines"):
        readers.read_seed_edits(str(tmp_path))


# Folders with a truth file, and the way back


def test_a_folder_with_a_truth_file(root: str) -> None:
    fill(root, {f"originals/o{i}.jpg": photo(i) for i in range(2)})
    fill(root, {f"uploads/u{i}.jpg": photo(10 + i) for i in range(4)})
    rows = ["query_uri,reference_uri", "u0.jpg,o1.jpg", "uploads/u1.jpg,", "u2.jpg,o9.jpg", "u9.jpg,o1.jpg"]
    fill(root, {"uploads/truth.csv": "\n".join(rows).encode()})
    originals, uploads = storage.join(root, "originals"), storage.join(root, "uploads")
    pairs = readers.read_folder(originals, uploads, storage.join(uploads, "truth.csv"))
    assert names(pairs.references) == ["o0.jpg", "o1.jpg"]
    assert names(pairs.queries) == [f"u{i}.jpg" for i in range(4)]
    u0, u1 = (storage.join(uploads, f"u{i}.jpg") for i in range(2))
    assert pairs.truth == {u0: storage.join(originals, "o1.jpg"), u1: None}
    assert pairs.unpaired_counts == {UnpairedReason.NO_ORIGIN: 1, UnpairedReason.NO_QUERY: 1}
    with pytest.raises(ReaderError, match="no row"):
        readers.read_folder(uploads, originals, storage.join(uploads, "truth.csv"))


def test_what_is_written_is_what_a_scan_reads(root: str, tmp_path: Path) -> None:
    """From a reader through the file to the truth, and again through the reader of folders."""
    references = draw_photos(tmp_path / "refs, and more", 3)
    queries = draw_photos(tmp_path / 'the "uploads"', 3, first_seed=9)
    origins = sorted(str(p) for p in references.iterdir())
    uploads = sorted(str(p) for p in queries.iterdir())
    known: truth_files.Truth = {uploads[0]: origins[2], uploads[1]: origins[2], uploads[2]: None}
    pairs = PairSet(origins, uploads, known).with_distractors([origins[0], "gs://b/distractor.jpg"])
    assert pairs.references == [*origins, "gs://b/distractor.jpg"]
    file = storage.join(root, "truth.csv")
    pairs.write_truth(file)
    assert truth_files.read(file, "/elsewhere", "/and/elsewhere") == known
    assert readers.read_folder(str(references), str(queries), file).truth == known


@pytest.mark.parametrize("name", ["two\nlines.jpg", "blank_at_the_end "])
def test_a_name_that_a_truth_file_cannot_hold_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match="rename"):
        PairSet([], [], {f"/d/{name}": None}).write_truth(str(tmp_path / "truth.csv"))
    assert not (tmp_path / "truth.csv").exists()
