"""The report of a real small scan: true to the data, harmless to open, and the same without a network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import id2core
from beam_jobs import embed, search
from id2core.encoders.latent_views import MOVES
from id2core.reports.facts import ScanConfig, ScanFacts, TransformFacts
from id2core.reports.inputs import ReportInputs
from id2core.reports.page import _listed, _pairs, _thumbnail, read_summary, render, save_report
from id2core.reports.summary import summarize
from id2core.reports.winning_views import WinningView
from id2core.runs.execution import Execution
from id2core.search import looks
from id2core.settings import Settings
from id2core.store import datasets, schemas
from id2core.store.datasets import Dataset
from id2core.store.rejects import Reason
from id2core.transforms.crop_rows import CROPS, Crop
from id2core.verdicts import calibration, judging, normalization
from tests import broken
from tests.commands import as_json
from tests.embedding import embed_job

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Both run a script that renames the page if they are not escaped; a `/` makes the first one a folder.
HOSTILE_FOLDER, HOSTILE_NAME = "<script>document.title='hacked'<", "script>.jpg"
CONFIG = ScanConfig(
    **Settings(top_k=4).model_dump(), reference="/r", queries="/q", out="/o", background=None, truth=None
)
HOSTILE_IMAGE = "\"'><img src=x onerror=document.title='hacked'>\u202egpj.png"


def scene(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    """A smooth picture like no other one."""
    colors = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> bytes:
    return broken.encode(image, "JPEG", quality=70)


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@dataclass(frozen=True)
class Scan:
    reference: Path
    queries: Path
    inputs: ReportInputs


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """8 references (one picture twice, one file broken) and 8 uploads (two broken), really scanned."""
    root = tmp_path_factory.mktemp("scan")
    reference, queries, out = root / "reference", root / "queries", root / "out"
    bad, good = broken.broken_files(), broken.good_files()
    originals = {f"r{i}.png": broken.encode(scene(i), "PNG") for i in range(5)}
    tall = broken.encode(scene(5, 40, 80), "PNG")
    others = {"a/again.png": originals["r1.png"], "photo.heic": good["heif_rgb.heic"], "tall.png": tall}
    fill(reference, {**originals, **others, "half.jpg": bad["jpeg_half.jpg"]})
    uploads = {
        "u0.jpg": jpeg(scene(0)),
        "u1.jpg": jpeg(scene(1)),
        f"{HOSTILE_FOLDER}/{HOSTILE_NAME}": jpeg(scene(2)),
        HOSTILE_IMAGE: jpeg(scene(20)),
        "new.jpg": jpeg(scene(21)),
        "tall.gif": broken.encode(scene(5, 40, 80), "GIF"),
    }
    broken_uploads = {"<b>half</b>.png": bad["png_half.png"], "page.png": bad["html_error_page.png"]}
    fill(queries, {**uploads, **broken_uploads})
    for folder, name in ((reference, "reference"), (queries, "queries")):
        embed.run(embed_job(str(folder), str(out / name), transform="none"), Execution.begin())
    held, asked = (Dataset.open(str(out / name / "embeddings")) for name in ("reference", "queries"))
    result = search.run(held, asked, f"{out}/matches", Execution.begin(), 4)
    truth = {
        str(queries / "u0.jpg"): str(reference / "r0.png"),
        str(queries / "u1.jpg"): str(reference / "a/again.png"),
        str(queries / HOSTILE_FOLDER / HOSTILE_NAME): str(reference / "r3.png"),
        str(queries / "<b>half</b>.png"): str(reference / "r4.png"),
        str(queries / "new.jpg"): None,
        str(queries / HOSTILE_IMAGE): None,
        str(queries / "not-scanned.jpg"): str(reference / "r0.png"),
    }
    inputs = ReportInputs(
        matches=Dataset.open(str(out / "matches")),
        search_run=result.run_id,
        reference_embeddings=Dataset.open(str(out / "reference/embeddings")),
        query_embeddings=Dataset.open(str(out / "queries/embeddings")),
        reference_rejects=Dataset.open(str(out / "reference/rejects")),
        query_rejects=Dataset.open(str(out / "queries/rejects")),
        run=ScanFacts(
            run_id="scan-1",
            plan_id="p",
            config=CONFIG,
            seconds={"search": 0.25},
            versions={"id2": "0.1.0"},
            transform=TransformFacts(id="identity", origin="none"),
            calibration=None,
        ),
        truth=truth,
        groups={query: "none" if origin is None else "jpeg" for query, origin in truth.items()},
    )
    return Scan(reference, queries, inputs)


class Elements(HTMLParser):
    """Every start tag of a page with its attributes, and the page's text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def rendered(inputs: ReportInputs, max_pairs: int = 200) -> Elements:
    return Elements(render(inputs, summarize(inputs), max_pairs))


def test_the_summary_says_what_the_data_sets_say(scan: Scan) -> None:
    summary = as_json(summarize(scan.inputs))
    assert summary["counts"] == {
        "references": 8,
        "queries": 6,
        "reference_rejects": 1,
        "query_rejects": 2,
        "queries_with_match": 6,
        "matches": 24,
    }
    assert summary["rejects"] == {
        "reference": {"truncated": 1},
        "queries": {"truncated": 1, "not_an_image": 1},
    }
    assert (summary["run_id"], summary["top_k"], summary["verdicts"]) == ("scan-1", 4, {})
    assert summary["encoder_id"].startswith("mini-") and summary["transform_id"] == "identity"
    rows = scan.inputs.current.read().to_pylist()
    best = sorted(row["score"] for row in rows if row["rank"] == 1)
    quantiles = summary["score_quantiles"]
    assert (quantiles["n"], quantiles["min"], quantiles["max"]) == pytest.approx(
        (6, best[0], best[-1]), abs=1e-5
    )
    assert summary["index_id"] == rows[0]["index_id"]
    assert summary["scanned_at"] == rows[0]["scanned_at"].isoformat()


def test_a_summary_of_an_earlier_version_is_whole_and_a_damaged_one_is_not(
    scan: Scan, tmp_path: Path
) -> None:
    """The earlier one has no field for views, neither in its own facts nor in its configuration."""
    save_report(scan.inputs, summarize(scan.inputs), str(tmp_path), 1)
    place = tmp_path / "summary.json"
    facts = json.loads(place.read_text())
    del facts["checksum"], facts["views"], facts["config"]["views"]
    checksum = hashlib.sha256(json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode())
    place.write_text(json.dumps(facts | {"checksum": checksum.hexdigest()}))
    earlier = read_summary(str(tmp_path))
    assert earlier and earlier.views == {} and earlier.config.views == "none"
    place.write_text(place.read_text().replace('"queries": 6', '"queries": 7'))
    assert read_summary(str(tmp_path)) is None


def test_accuracy_counts_rejected_uploads_as_misses_and_copies_as_hits(scan: Scan) -> None:
    """u0 and u1 hit (u1 by a copy of its origin), one origin is not the best, one upload is unreadable."""
    summary = as_json(summarize(scan.inputs))
    assert (summary["accuracy"], summary["accuracy_of"]) == (0.5, 4)
    assert summary["truth_not_scanned"] == 1
    assert (summary["origin_scores"]["n"], summary["no_origin_scores"]["n"]) == (3, 2)
    series = summary["histogram"]["series"]
    assert {name: sum(heights) for name, heights in series.items()} == {
        "origin": 3,
        "no_origin": 2,
        "unknown": 1,
    }
    text = rendered(scan.inputs).text
    assert (text.count("✓ the origin"), text.count("✗ not the origin")) == (2, 1)
    assert text.count("has no origin") == 2


def test_the_measures_stand_beside_the_accuracy_with_their_intervals(scan: Scan) -> None:
    summary = as_json(summarize(scan.inputs))
    measures = summary["measures"]
    values = {name: measures[name]["value"] for name in ("accuracy", "mean_ap", "recall_at_p90")}
    # One origin is second best, and what stands before it scores above the origin of u1.
    assert values == {"accuracy": 0.5, "mean_ap": 0.625, "recall_at_p90": 0.25}
    assert measures["mean_ap"]["low"] < 0.625 < measures["mean_ap"]["high"]
    assert measures["micro_ap"]["value"] == pytest.approx((1 + 2 / 3 + 3 / 7) / 4)
    counts = measures["counts"]
    assert (counts["with_origin"], counts["without_origin"], counts["not_in_truth"]) == (4, 2, 1)
    groups = summary["groups"]
    assert groups["jpeg"] == {"accuracy": 0.5, "mean_ap": 0.625, "of": 4, "uploads": 4, "verdicts": {}}
    assert (groups["none"]["accuracy"], groups["none"]["uploads"]) == (None, 2)
    text = rendered(scan.inputs).text
    assert all(word in text for word in ("Acc50%", "mAP62.5%", "R@P9025%", "jpeg4450%62.5%"))


def test_a_report_of_one_run_and_of_fewer_matches_an_upload(scan: Scan) -> None:
    fewer = scan.inputs.run.model_copy(update={"config": CONFIG.model_copy(update={"top_k": 1})})
    summary = as_json(summarize(replace(scan.inputs, run=fewer, truth=None)))
    assert (summary["counts"]["matches"], summary["top_k"]) == (6, 1)
    assert summary["accuracy"] is None and summary["histogram"]["series"].keys() == {"all"}
    nothing = as_json(summarize(replace(scan.inputs, only_run=True, search_run="another")))
    assert nothing["counts"]["matches"] == 0
    assert as_json(summarize(replace(scan.inputs, only_run=True)))["counts"]["matches"] == 24


def test_names_and_details_stay_text(scan: Scan) -> None:
    elements = rendered(scan.inputs)
    assert not any(elements.all(tag) for tag in ("script", "b", "iframe", "object", "form"))
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    sources = [attributes["src"] or "" for attributes in elements.all("img")]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    titles = {attributes.get("title") for attributes in elements.all("summary")}
    assert str(scan.queries / HOSTILE_FOLDER / HOSTILE_NAME) in titles
    # The character that would show `gpj.png` backwards is spelt out.
    assert str(scan.queries / HOSTILE_IMAGE).replace("\u202e", "\\u202e") in titles
    assert str(scan.queries / "<b>half</b>.png") in elements.text


def test_best_pairs_come_first_and_the_limit_is_said(scan: Scan) -> None:
    elements = rendered(scan.inputs, max_pairs=2)
    assert "The 2 best of 6 uploads are shown; all are in matches/." in elements.text
    assert "no verdict is given" in elements.text
    scores = [float(s) for s in re.findall(r"(\d\.\d+) score", rendered(scan.inputs).text)]
    assert scores == sorted(scores, reverse=True) and len(scores) == 6
    assert len(elements.all("img")) == 2 * 4  # upload, best reference, ranks 2 and 3


def test_pictures_keep_their_ratio_and_lost_ones_are_said(scan: Scan, tmp_path: Path) -> None:
    uri = str(scan.queries / "tall.gif")
    listed = _listed([scan.inputs.query_embeddings], {uri})[uri]
    thumbnail = _thumbnail(listed)
    assert thumbnail.keys() == {"large", "small"}
    large = Image.open(io.BytesIO(_data_of(thumbnail["large"])))
    assert large.size == (128, 256)
    gone = listed._replace(uri=str(tmp_path / "gone.gif"))
    assert _thumbnail(gone) == {"missing": "picture no longer available"}
    assert _thumbnail(None) == {"missing": "picture no longer available"}
    other = tmp_path / "other.gif"
    other.write_bytes((scan.queries / "tall.gif").read_bytes())
    assert _thumbnail(listed._replace(uri=str(other))) == {"missing": "picture changed since the scan"}


VIEWS = {
    "u0.jpg": "inset",
    "u1.jpg": "whole+mirrored",
    "new.jpg": "whole+turned-left",
    "tall.gif": "half-2+mirrored+crop-0.75",
    HOSTILE_IMAGE: "parent",
    f"{HOSTILE_FOLDER}/{HOSTILE_NAME}": "<i>spiral</i>+crop-0.5",
}
BOXES = {"u0.jpg": ("inset", 0.25, 0.0, 0.75, 0.5), "tall.gif": ("half-2", 0.0, 0.5, 1.0, 1.0)}


@pytest.fixture
def viewed(scan: Scan, tmp_path: Path) -> ReportInputs:
    """The scan, as if each upload had scored best under another view, with detail that agrees."""
    matches = scan.inputs.current.read()
    names = {str(scan.queries / name): view for name, view in VIEWS.items()}
    [uploads] = scan.inputs.query_embeddings.tables()
    boxes = {str(scan.queries / name): box for name, box in BOXES.items()}

    def insets(uri: str) -> list[dict[str, object]]:
        keys = ("view", "left", "top", "right", "bottom")
        return [dict(zip(keys, boxes[uri], strict=True), latent=[0.0])] if uri in boxes else []

    detail = pa.array(np.full(matches.num_rows, 0.8), pa.float32())
    scores = pc.add(matches["score"], detail)
    views = pa.array([names[uri] for uri in matches["query_uri"].to_pylist()])
    seen = pa.array(map(insets, uploads["uri"].to_pylist()), pa.list_(schemas.INSET))
    return replace(
        scan.inputs,
        matches=_written(tmp_path / "m", matches, view=views, score=scores, detail=detail),
        query_embeddings=_written(tmp_path / "q", uploads, scan.inputs.query_embeddings.ids, insets=seen),
        search_run="r1",
    )


def _written(
    folder: Path, table: pa.Table, ids: dict[str, str] | None = None, **columns: pa.Array
) -> Dataset:
    """A data set of a table with other values in some columns."""
    arrays = [columns.get(name, table[name]) for name in table.column_names]
    table = pa.Table.from_arrays(arrays, schema=table.schema)
    name = table.schema.metadata[b"id2.dataset"].decode()
    record = datasets.write_file(str(folder), "r1-a", [table], table.schema)
    datasets.write_commit(str(folder), datasets.Commit(name, "r1", ids or {}, (record,), {"r1": {}}))
    return Dataset.open(str(folder))


def test_an_upload_is_shown_as_the_view_that_won_and_as_it_is(viewed: ReportInputs, scan: Scan) -> None:
    pairs = {pair.uri.removeprefix(f"{scan.queries}/"): pair for pair in _pairs(viewed, 200)}

    def shown(name: str) -> NDArray[np.int16]:
        pair = pairs[name]
        small = Image.open(io.BytesIO(_data_of(pair.picture["small"])))
        assert _far(np.asarray(small), _stretched(upload(name), small.size)) < 8, "not the upload as it is"
        return np.asarray(Image.open(io.BytesIO(_data_of(pair.picture["large"]))), np.int16)

    def upload(name: str) -> Image.Image:
        return Image.open(scan.queries / name).convert("RGB")

    flip = Image.Transpose.FLIP_LEFT_RIGHT
    expected = {
        "u0.jpg": upload("u0.jpg").crop((22, 0, 68, 30)),
        "u1.jpg": upload("u1.jpg").transpose(flip),
        "new.jpg": upload("new.jpg").transpose(Image.Transpose.ROTATE_90),
        "tall.gif": upload("tall.gif").crop((0, 40, 40, 80)).transpose(flip),
        HOSTILE_IMAGE: upload(HOSTILE_IMAGE),
        f"{HOSTILE_FOLDER}/{HOSTILE_NAME}": upload(f"{HOSTILE_FOLDER}/{HOSTILE_NAME}"),
    }
    for name, picture in expected.items():
        pixels = shown(name)
        assert max(pixels.shape) == 256
        assert _far(pixels, _stretched(picture, (pixels.shape[1], pixels.shape[0]))) < 8, name
    assert {name: pair.views[0].words for name, pair in pairs.items()} == {
        "u0.jpg": "found inside a frame",
        "u1.jpg": "found mirrored",
        "new.jpg": "found turned a quarter to the left",
        "tall.gif": "found as the lower half of a collage, mirrored, "
        "as a crop of the reference (about 75% of its area)",
        HOSTILE_IMAGE: "found by the picture’s Content Credentials: its stated parent",
        f"{HOSTILE_FOLDER}/{HOSTILE_NAME}": "found under a view that this version does not know: "
        "<i>spiral</i>+crop-0.5",
    }


def _stretched(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.int16]:
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.int16)


def _far(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Mean difference of two pictures, in tones."""
    return float(np.abs(one.astype(np.int16) - other).mean())


def test_views_are_said_in_words_and_counted(viewed: ReportInputs, scan: Scan) -> None:
    page = rendered(viewed)
    assert page.all("div").count({"class": "view"}) == 6
    assert not page.all("i") and "does not know: <i>spiral</i>+crop-0.5" in page.text
    assert "Best reference, a crop of it matches" in page.text
    assert page.text.count("Upload, shown as it matched") == 4
    assert "plus how far the fine detail of both pictures agrees" in page.text
    summary = as_json(summarize(viewed))
    assert summary["views"] == dict.fromkeys(VIEWS.values(), 1)
    histogram, highest = summary["histogram"], summary["score_quantiles"]["max"]
    bins = len(histogram["series"]["origin"])
    assert 1.05 < highest <= histogram["low"] + bins * histogram["width"] + 1e-6
    table = scan.inputs.current.read()
    nothing = pa.nulls(table.num_rows, pa.string())
    earlier = replace(viewed, matches=_written(Path(viewed.matches.uri, "earlier"), table, view=nothing))
    assert {"class": "view"} not in rendered(earlier).all("div")
    assert "0 = unrelated), so no verdict is given" in rendered(earlier).text
    assert as_json(summarize(earlier))["views"] == {"whole": 6}


@given(st.text("whole+mirdctun-l0.579\x00", max_size=30) | st.none())
def test_any_name_of_a_view_has_words(name: str | None) -> None:
    view = WinningView.of(name, "/q", {})
    assert bool(view.words) == (name not in (None, "whole"))


@given(
    st.sampled_from(range(len(looks.LOOKS))), st.sampled_from(["", *MOVES]), st.sampled_from([None, *CROPS])
)
def test_every_view_of_a_search_is_known(look: int, move: str, crop: Crop | None) -> None:
    share = crop.share if crop else None
    view = WinningView.of(looks.name_of(look, move, share), "/q", {})
    assert view == WinningView(looks.LOOKS[look], move, share)


def _data_of(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


NORMALIZATION = calibration.Normalization(factor=0.5, k=1, background_id="flat-b")


@pytest.fixture
def judged(scan: Scan, tmp_path: Path) -> ReportInputs:
    """The scan with verdicts on scores that order the queries the other way round than the raw ones."""
    table = scan.inputs.current.read()
    scores = table["score"].to_numpy()
    moved = {"background": 4 * scores, "normalized_score": scores - 2 * scores}
    table = normalization.with_columns(table, {name: pa.array(x) for name, x in moved.items()})
    ids = scan.inputs.query_embeddings.ids
    first = np.sort(-table.filter(pc.equal(table["rank"], 1))["score"].to_numpy())
    review, match = (first[:-1] + first[1:])[[0, 3]] / 2
    chosen = calibration.calibrate(
        np.repeat([review - 1, review, match], [500, 490, 10]),
        match=0.01,
        review=0.5,
        references=4,
        ids=ids,
        normalization=NORMALIZATION,
    )
    table = calibration.judge(table, chosen, 8)
    out = tmp_path / "judged"
    record = datasets.write_file(str(out), "scan_date=2025-01-01/r1-a", [table], schemas.MATCHES)
    datasets.write_commit(str(out), datasets.Commit("matches", "r1", {}, (record,), {"r1": {}}))
    facts = judging.facts(chosen, "auto", 8, "/background")
    transform = TransformFacts(id="0123", origin="bundled")
    run = scan.inputs.run.model_copy(update={"calibration": facts, "transform": transform})
    return replace(scan.inputs, matches=Dataset.open(str(out)), search_run="r1", run=run)


def test_verdicts_are_shown_with_their_rates(judged: ReportInputs) -> None:
    summary = as_json(summarize(judged))
    assert summary["verdicts"] == {"match": 2, "review": 3, "none": 1}
    by_truth = summary["verdicts_of"]
    assert {name: sum(counts.values()) for name, counts in by_truth.items()} == {"origin": 3, "no_origin": 2}
    assert summary["groups"]["none"]["verdicts"] == by_truth["no_origin"]
    assert summary["scores_are"] == "normalized_score" and summary["score_quantiles"]["max"] < 0
    stated = summary["calibration"]["verdicts"]["match"]
    assert stated["false_positive_rate"] == 0.02 and stated["low"] < 0.01 < 0.02 < stated["high"] < 0.05
    text = rendered(judged).text
    assert "uncalibrated" not in text and "scaled up to the 8 of this scan" in text
    assert "false-positive rate 2%" in text and "bundled" in text
    normalized = [float(s.replace("−", "-")) for s in re.findall(r"(\S+\d) normalized", text)]
    assert len(normalized) == 6 and normalized == sorted(normalized, reverse=True)


def _empty(uri: Path, dataset: str, ids: dict[str, str]) -> Dataset:
    datasets.write_commit(str(uri), datasets.Commit(dataset, "r0", ids, (), {"r0": {}}))
    return Dataset.open(str(uri))


@pytest.mark.parametrize(
    ("side", "sentence"),
    [
        ("query_embeddings", "No upload could be compared."),
        ("reference_embeddings", "6 uploads found no protected"),
    ],
)
def test_an_empty_side_is_said_in_words(scan: Scan, tmp_path: Path, side: str, sentence: str) -> None:
    ids = scan.inputs.query_embeddings.ids
    changes: dict[str, Any] = {side: _empty(tmp_path / side, "embeddings", ids)}
    changes |= {"matches": _empty(tmp_path / "matches", "matches", {}), "search_run": "r0"}
    inputs = replace(scan.inputs, **changes, reference_rejects=None, query_rejects=None)
    text = rendered(inputs).text
    assert sentence in text
    assert "There is nothing to show" in text and "No scores: nothing was compared." in text
    assert "every file that was found could be read" in text
    summary = as_json(summarize(replace(inputs, truth={})))
    assert summary["accuracy"] is None and summary["score_quantiles"]["n"] == 0 and summary["scanned_at"]


def test_every_reason_has_plain_words() -> None:
    source = (Path(id2core.__file__).parent / "templates" / "report.html.j2").read_text()
    assert all(f'"{reason}": "' in source for reason in Reason)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    chromium = shutil.which("chromium")
    assert chromium, "this test opens the report in a browser: apt-get install -y chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        yield browser.new_page(viewport={"width": 420, "height": 900})
        browser.close()


def test_a_browser_shows_it_whole_asks_for_nothing_and_runs_nothing(
    judged: ReportInputs, page: Page, tmp_path: Path
) -> None:
    config = judged.run.config.model_copy(update={"out": str(tmp_path)})
    judged = replace(judged, run=judged.run.model_copy(update={"config": config}))
    summary = save_report(judged, summarize(judged), str(tmp_path))
    assert json.loads((tmp_path / "summary.json").read_text()) == as_json(summary)
    assert read_summary(str(tmp_path)) == summary and summary.facts == judged.run
    url = (tmp_path / "report.html").as_uri()
    asked: list[str] = []
    said: list[str] = []
    page.route(
        lambda address: address != url and not address.startswith("data:"), lambda route: route.abort()
    )
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    pictures = page.evaluate(
        "Promise.all([...document.images].map(i => i.decode().then(() => [i.naturalWidth, i.alt])))"
    )
    assert len(pictures) == 6 * 4
    assert all(width > 0 and alt for width, alt in pictures)
    assert [address for address in asked if not address.startswith("data:")] == [url]
    assert said == []
    assert page.title().startswith("Origin-match report")
    headers = page.evaluate("[...document.querySelectorAll('th')].map(th => th.scope)")
    assert headers and all(headers)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420, "a phone would scroll sideways"
