"""The report of a scan: `summary.json` for programs and one self-contained `report.html` for people.

Everything is read in one pass per data set; kept in memory are the best scores and the pairs shown.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from id2core.encoders import decoder_pool
from id2core.encoders.budget import Limits
from id2core.reports import strongest
from id2core.reports.facts import ScanSummary
from id2core.reports.inputs import ReportInputs, among, match_tables, reject_examples, rows_of
from id2core.reports.winning_views import WHOLE_UPLOAD, WinningView, boxes_of
from id2core.store import schemas, storage, strict_json
from id2core.store.datasets import Dataset
from id2core.store.rejects import Reason, Reject
from id2core.store.storage import Object

GONE, CHANGED = "picture no longer available", "picture changed since the scan"
HTML, SUMMARY = "report.html", "summary.json"
SHOWN_RANKS, READ_THREADS = 3, 8
THUMBNAIL_PIXELS: Final = {"large": 256, "small": 112}  # longest side of a thumbnail, in pixels
_PART_PIXELS: Final = 512  # of a picture of which a part is shown


def save_report(inputs: ReportInputs, summary: ScanSummary, out: str, max_pairs: int = 200) -> ScanSummary:
    """Write `report.html` and then, as the sign that all is there, `summary.json` below `out`.

    Returns:
        The summary as it was written, with checksums.
    """
    page = render(inputs, summary, max_pairs).encode()
    sealed = summary.sealed(page)
    storage.write_bytes(storage.join(out, HTML), page)
    storage.write_bytes(storage.join(out, SUMMARY), sealed.model_dump_json(by_alias=True, indent=1).encode())
    return sealed


def read_summary(out: str) -> ScanSummary | None:
    """Read the summary of a finished scan; None where there is none, a damaged one, or an older program's.

    Its places are those below `out`, also where the folder was moved or copied since.
    """
    summary = strict_json.read_derived(storage.join(out, SUMMARY), ScanSummary)
    return summary.found_at(out) if summary and summary.is_whole else None


def corpora_elsewhere(out: str) -> list[str]:
    """Return the URIs of the corpora of the last scan that are not below its `--out`."""
    summary = read_summary(out)
    used = [summary.inputs.reference_embeddings, summary.inputs.query_embeddings] if summary else []
    return [uri for uri in used if not uri.startswith(f"{out}/")]


def is_written(summary: ScanSummary, out: str) -> bool:
    """Return whether the page that belongs to a summary is there, and whole."""
    try:
        page = storage.read_bytes(storage.join(out, HTML))
    except FileNotFoundError:
        return False
    return summary.report_sha256 in ("", hashlib.sha256(page).hexdigest())


def render(inputs: ReportInputs, summary: ScanSummary, max_pairs: int = 200) -> str:
    """Render the page: self-contained HTML without scripts, with the `max_pairs` best matches."""
    return _template().render(
        summary=summary,
        pairs=_pairs(inputs, max_pairs),
        examples={
            side: reject_examples(rejects, summary.rejects[side]) for side, rejects in inputs.rejects.items()
        },
        made_with=dict(summary.config),
        thresholds=_thresholds(summary),
    )


def _thresholds(summary: ScanSummary) -> dict[str, float | None]:
    """Return verdict → the score from which on it is given, in the first channel; empty without verdicts."""
    if summary.joint:
        return next(iter(summary.joint.channels.values())).thresholds
    if summary.calibration:
        return {name: stated.threshold for name, stated in summary.calibration.verdicts.items()}
    return {}


@functools.cache
def _template() -> Template:
    """Return the page's template; it takes longer to compile than to fill."""
    environment = Environment(
        loader=PackageLoader("id2core"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = lambda uri: uri.rsplit("/", 1)[-1]
    return environment.get_template(f"{HTML}.j2")


def _visible(value: Any) -> Any:
    """Text with control and direction-changing characters spelled out: a name must not disguise itself."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


class _Match(NamedTuple):
    """A row of `matches/`, as far as it is shown."""

    query_uri: str
    reference_id: str
    reference_uri: str
    rank: int
    score: float
    normalized_score: float | None
    verdict: str | None
    false_positive_rate: float | None
    verdict_reason: str | None
    c2pa_state: str | None
    generator: str | None
    digital_source_type: str | None
    view: str | None
    detail: float | None
    channel: str | None


class _Picture(NamedTuple):
    """A row of `embeddings/`, as far as its picture is shown."""

    image_id: str
    uri: str
    generation: str
    bytes: int
    width: int
    height: int


@dataclass(frozen=True)
class _Pair:
    """An upload and its first references, as the template shows them.

    Attributes:
        uri, picture: of the upload; a picture as `_thumbnail` returns it.
        rows: its matches, the best one first.
        views: under which each scored best.
        originals: reference_uri of each → picture.
        truth: `hit`, `miss` or `none`; None where the truth does not name the upload.
    """

    uri: str
    picture: dict[str, str]
    rows: list[_Match]
    views: list[WinningView]
    originals: dict[str, dict[str, str]]
    truth: str | None


def _pairs(inputs: ReportInputs, count: int) -> list[_Pair]:
    """The best queries with their first references, pictures and truth."""
    ranked: dict[str, list[_Match]] = {}
    for row in _best_matches(inputs, count):
        ranked.setdefault(row.query_uri, []).append(row)
    truth = {query: (inputs.truth or {})[query] for query in ranked if query in (inputs.truth or {})}
    shown = {row.reference_uri for rows in ranked.values() for row in rows}
    queries = _listed(inputs.query_corpora, set(ranked))
    references = _listed(inputs.reference_corpora, shown.union(filter(None, truth.values())))
    views = _views(inputs, ranked)
    best = [views[query][0] for query in ranked]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        uploads = dict(zip(ranked, pool.map(_thumbnail, map(queries.get, ranked), best), strict=True))
        originals = dict(zip(shown, pool.map(_thumbnail, map(references.get, shown)), strict=True))
    return [
        _Pair(
            uri=query,
            picture=uploads[query],
            rows=rows,
            views=views[query],
            originals={row.reference_uri: originals[row.reference_uri] for row in rows},
            truth=_against_truth(truth[query], rows[0], references) if query in truth else None,
        )
        for query, rows in ranked.items()
    ]


def _views(inputs: ReportInputs, ranked: dict[str, list[_Match]]) -> dict[str, list[WinningView]]:
    """Return the view of each match of each upload."""
    rows = [row for matches in ranked.values() for row in matches]
    boxes = boxes_of(inputs.query_embeddings, ((row.query_uri, row.view) for row in rows))
    return {uri: [WinningView.of(row.view, uri, boxes) for row in matches] for uri, matches in ranked.items()}


def _against_truth(origin: str | None, best: _Match, references: dict[str, _Picture]) -> str:
    if not origin:
        return "none"
    row = references.get(origin)
    return "hit" if row and row.image_id == best.reference_id else "miss"


def _best_matches(inputs: ReportInputs, count: int) -> list[_Match]:
    """Rows up to rank SHOWN_RANKS of the `count` queries with the best scores, in that order.

    The normalized score decides where there is one: verdicts are drawn from it. Of several channels, the
    strongest verdict decides first, and the rows of the channel that has it are the first of a query.
    """
    columns, channels = [*_Match._fields, "query_generation"], inputs.channel_names
    kept = schemas.MATCHES.empty_table().select(columns)
    for table in match_tables(inputs, columns):
        first = table.filter(pc.less_equal(table["rank"], SHOWN_RANKS))
        kept = pa.concat_tables([kept, first.select(columns)])
        kept = kept.filter(among(kept["query_uri"], _best_queries(kept, count, channels)))
    best = _best_queries(kept, count, channels)
    place = {query: i for i, query in enumerate(best)}
    rows = [_Match(**row) for row in kept.select(_Match._fields).to_pylist()]
    return sorted(rows, key=lambda row: (place[row.query_uri], row.channel != best[row.query_uri], row.rank))


def _best_queries(rows: pa.Table, count: int, channels: list[str]) -> dict[str, str | None]:
    """Return the queries that are shown, in their order, each with the channel of its best match."""
    first = strongest.best(rows.filter(pc.equal(rows["rank"], 1)), channels)
    first = first.append_column("order", pc.coalesce(first["normalized_score"], first["score"]))
    keys = [("order", "descending"), ("query_uri", "ascending")]
    if len(channels) > 1:
        first = first.append_column("strength", strongest.strengths(first, channels))
        keys.insert(0, ("strength", "ascending"))
    ordered = first.sort_by(keys).slice(0, count)
    return dict(zip(ordered["query_uri"].to_pylist(), ordered["channel"].to_pylist(), strict=True))


def _listed(corpora: list[Dataset], wanted: set[str]) -> dict[str, _Picture]:
    """Return what shows an object, by URI; an encoder may have rejected what that of another corpus took."""
    tables = (table for one in reversed(corpora) for table in rows_of(one, wanted, list(_Picture._fields)))
    return {row["uri"]: _Picture(**row) for table in tables for row in table.to_pylist()}


def _thumbnail(row: _Picture | None, view: WinningView = WHOLE_UPLOAD) -> dict[str, str]:
    """A picture's `large` and `small` data URIs, or why it is `missing`. Never raises.

    Only the very version that was compared is shown: another one at its URI would mislead.

    Args:
        row: the picture; None for one that is not in its corpus.
        view: as which `large` shows it; `small` is the picture as it is.
    """
    if row is None:
        return {"missing": GONE}
    size = _PART_PIXELS if view.is_part else THUMBNAIL_PIXELS["large"]
    data = storage.read_object(Object(row.uri, row.generation, row.bytes), row.bytes)
    decoded = data if isinstance(data, Reject) else decoder_pool.decode(data, size, Limits(len(data)))
    if isinstance(decoded, Reject):
        return {"missing": CHANGED if decoded.reason is Reason.CHANGED else GONE}
    square = Image.fromarray(decoded.pixels)
    whole = {name: _fit(square, row.width, row.height, side) for name, side in THUMBNAIL_PIXELS.items()}
    if view.changes_upload:
        seen = view.shown(_fit(square, row.width, row.height, size))
        whole["large"] = _fit(seen, *seen.size, THUMBNAIL_PIXELS["large"])
    return {name: _data_uri(picture) for name, picture in whole.items()}


def _fit(picture: Image.Image, width: int, height: int, side: int) -> Image.Image:
    """Return a picture stretched to the proportions `width` to `height`, its longest side `side` pixels."""
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return picture.resize(size, Image.Resampling.BILINEAR)


def _data_uri(picture: Image.Image) -> str:
    """Return a picture as a JPEG data URI."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
