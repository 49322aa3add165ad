"""The demo set as it is shipped: complete, small, credited, and true to its truth file."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import id2core
from factory import demo_edits, demo_set, demo_translations

DEMO = Path(id2core.__file__).parent / "data" / "demo"
EDITS = ("blur3", "jpeg30", "resize_half", "vae_round_trip", "watermark")


def rows(name: str) -> list[dict[str, str]]:
    with (DEMO / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def slug(reference: str) -> str:
    return re.sub(r"-\d+$", "", Path(reference).stem)


@pytest.fixture(scope="module")
def origins() -> dict[str, str]:
    return {row["query_uri"]: row["reference_uri"] for row in rows("truth.csv")}


@pytest.fixture(scope="module")
def references() -> list[Path]:
    return sorted((DEMO / "references").iterdir())


def test_counts(origins: dict[str, str], references: list[Path]) -> None:
    assert 190 <= len(references) <= 210
    assert len(origins) == 260
    with_origin = [reference for reference in origins.values() if reference]
    # Twenty translations are there edited, too.
    assert len(with_origin) == 180 and len(set(with_origin)) == 160
    kinds = [row["edit"] for row in rows("uploads.csv")]
    edits = Counter(kind for kind in kinds if demo_edits.MARK not in kind)
    models = {f"{name}@{strength}": 40 for name, strength in demo_translations.STRENGTHS.items()}
    assert edits == {**dict.fromkeys(EDITS, 12), "none": 60, **models}
    edited = Counter(kind.partition(demo_edits.MARK)[2] for kind in kinds if demo_edits.MARK in kind)
    assert edited == dict.fromkeys(demo_edits.CHOSEN, 3 * demo_edits.EACH)


def test_translations_have_a_prompt_and_models_have_their_own_originals(origins: dict[str, str]) -> None:
    of_model: dict[str, set[str]] = {}
    for row in rows("uploads.csv"):
        assert bool(row["prompt"]) == ("@" in row["edit"])
        if row["prompt"] and demo_edits.MARK not in row["edit"]:
            of_model.setdefault(row["edit"], set()).add(origins[row["query_uri"]])
            with Image.open(DEMO / row["query_uri"]) as picture:
                assert picture.size == (256, 256)
    first, second = of_model.values()
    assert len(first) == len(second) == 40 and not first & second


def test_truth_and_uploads_name_exactly_the_files_there_are(origins: dict[str, str]) -> None:
    uploads = {f"uploads/{path.name}" for path in (DEMO / "uploads").iterdir()}
    assert set(origins) == uploads == {row["query_uri"] for row in rows("uploads.csv")}
    assert all((DEMO / reference).is_file() for reference in origins.values() if reference)


def test_uploads_without_origin_come_from_pictures_without_references(
    origins: dict[str, str], references: list[Path]
) -> None:
    referenced = {slug(path.name) for path in references}
    for row in rows("uploads.csv"):
        origin = origins[row["query_uri"]]
        assert bool(origin) == (not row["edit"].startswith("none"))
        assert slug(origin) == row["source"] if origin else row["source"] not in referenced


def test_every_picture_is_credited_with_author_and_license(references: list[Path]) -> None:
    lines = (DEMO / "ATTRIBUTION.md").read_text(encoding="utf-8").splitlines()
    credited = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    used = {slug(path.name) for path in references} | {row["source"] for row in rows("uploads.csv")}
    sources = {source.slug: source for source in demo_set.read_sources()}
    assert used == set(sources) == set(credited) - {"slug"}
    for name, source in sources.items():
        assert source.author in credited[name]
        assert demo_set.LICENSE_URLS[source.license] in credited[name]


def test_license_texts_that_must_travel_along_are_there() -> None:
    assert {path.name for path in (DEMO / "LICENSES").iterdir()} >= {
        "GPL-2.0.txt",
        "GPL-3.0.txt",
        "LGPL-3.0.txt",
    }


def test_size_on_disk(references: list[Path]) -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 8_000_000
    small = sum(path.stat().st_size <= demo_set.MOST_BYTES for path in references)
    assert small >= 0.9 * len(references)


def test_references_decode_and_are_of_varied_shape(references: list[Path]) -> None:
    sizes = []
    for path in references:
        with Image.open(path) as image:
            image.load()
            assert image.mode == "RGB"
            sizes.append(image.size)
    assert all(min(size) >= 256 and max(size) <= 384 for size in sizes)
    assert len({width / height for width, height in sizes}) >= 5


def test_no_two_references_are_the_same_picture(references: list[Path]) -> None:
    thumbnails = [demo_set.thumbnail(Image.open(path).convert("RGB")).ravel() for path in references]
    for index, mine in enumerate(thumbnails):
        assert all(float(mine @ other) < 0.95 for other in thumbnails[:index]), references[index].name


@pytest.mark.parametrize("edit", EDITS)
def test_edits_look_like_their_origins(edit: str, origins: dict[str, str]) -> None:
    for row in rows("uploads.csv"):
        if row["edit"] == edit:
            pair = (DEMO / row["query_uri"], DEMO / origins[row["query_uri"]])
            upload, origin = (demo_set.thumbnail(Image.open(path).convert("RGB")) for path in pair)
            assert float((upload * origin).sum()) > 0.9, (
                f"{row['query_uri']} does not look like {pair[1].name}"
            )


def test_choices_depend_on_words_alone() -> None:
    assert demo_set.draw("tile", 1, 2) == demo_set.draw("tile", 1, 2)
    assert demo_set.draw("tile", 1, 2) != demo_set.draw("tile", 2, 1)


def test_tiles_of_a_picture_come_from_cells_that_do_not_overlap() -> None:
    """A picture whose every cell has a color of its own gives crops of one color each."""
    picture = Image.new("RGB", (1200, 900))
    for column in range(3):
        for row in range(2):
            color = (80 * column, 120 * row, 50)
            picture.paste(color, (column * 400, row * 450, (column + 1) * 400, (row + 1) * 450))
    source = demo_set.Source("s", "p", "f", "t", "a", "CC0-1.0", demo_set.REFERENCE, (3, 2), 6)
    crops = list(demo_set.crops(picture, source))
    assert all(crop.size in demo_set.SHAPES for crop in crops)
    colors = {crop.getpixel((crop.width // 2, crop.height // 2)) for crop in crops}
    assert len(colors) == 6
    assert all(len(crop.getcolors()) == 1 for crop in crops)
