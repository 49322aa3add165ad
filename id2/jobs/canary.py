"""The canary: pairs that are known go through every night, and a night that does not find them fails.

A wrong W, a broken encoder, or a search that drops rows gives a night without matches, and so does a quiet
night. The canary tells them apart. Its references are pictures of the demo, and its uploads are some of them,
made smaller and saved with more loss. They are embedded, searched and judged with the encoder, W, background
and calibration of the night, on the machine that runs it, in a temporary folder. A second channel has a
canary of its own, by its own calibration. The search is exact, because
no compressed index can be trained on so few references. Only the result is kept, in `OUT/_canary/`: no table
has a row of the canary.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from PIL import Image
from pydantic import BaseModel, ConfigDict

from id2 import stages
from id2.jobs import scan
from id2.requests import ScanRequest
from id2.stages import stage
from id2core.errors import NightError
from id2core.runs.progress import tally
from id2core.search.indexes import FLAT
from id2core.settings import Settings
from id2core.store import storage
from id2core.verdicts.calibration import Verdict
from id2core.verdicts.content import NO_CONTENT

FOLDER: Final = "_canary"
# Pairs, and references in all: the others must not be found in their place.
PAIRS, REFERENCES = 4, 16
# What an upload loses on its way: side in pixels, quality of JPEG.
_SIDE, _QUALITY = 224, 60
_NO_CONTENT = "its origin, which shows too little to be judged"


class CanaryResult(BaseModel):
    """What became of the known pairs, as `OUT/_canary/last.json` says.

    Attributes:
        run_id: the night.
        checked_at: time, ISO 8601, UTC.
        pairs: that are known.
        lost: upload → what was found in place of its origin.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    checked_at: str
    pairs: int
    lost: dict[str, str]


def run(
    settings: Settings,
    out: str,
    run_id: str,
    background: str | None = None,
    pictures: Path | None = None,
    name: str = "last",
) -> CanaryResult:
    """Check that known pairs are found; write `OUT/_canary/NAME.json`.

    Args:
        settings: of the night.
        out: of the night.
        run_id: of the night.
        background: of the night, as `--background` takes it; None for the bundled one.
        pictures: references to take in place of the demo's: a folder of 2 pictures or more.
        name: of the result.

    Raises:
        NightError: a known pair was not found; says which, and what to do.
        ID2Error: the pictures cannot be embedded or searched.
    """
    tally.start("canary", PAIRS)
    lost = stage("canary", lambda: _lost_pairs(settings, background, pictures))
    tally.add("canary", PAIRS - len(lost))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    result = CanaryResult(run_id=run_id, checked_at=now, pairs=PAIRS, lost=lost)
    place = storage.join(storage.normalize(out), FOLDER, f"{name}.json")
    storage.write_bytes(place, result.model_dump_json(indent=2).encode())
    if lost:
        found = ", ".join(f"{upload}: {instead}" for upload, instead in sorted(lost.items()))
        raise NightError(
            f"{len(lost)} of {PAIRS} known pairs were not found ({found}): do not rely on what this night "
            f"found. Encoder {settings.encoder}, transform {settings.transform} and calibration "
            f"{settings.calibration} do not work together on this machine. Check that their files are those "
            f"that were calibrated, and run the night again. {place} has the details"
        )
    return result


def _lost_pairs(settings: Settings, background: str | None, pictures: Path | None) -> dict[str, str]:
    """Return upload → what was found instead, for each known pair that was not found."""
    # Its stages and counts are none of the night's.
    with (
        TemporaryDirectory(prefix="id2-canary-") as folder,
        stages.run_by(lambda _, work: work()),
        tally.muted(),
    ):
        place = Path(folder)
        _draw(place, pictures)
        request = ScanRequest(
            reference=str(place / "references"),
            queries=str(place / "uploads"),
            out=str(place / "out"),
            background=background,
            keep="all",
            index=FLAT,
            **{name: getattr(settings, name) for name in ("encoder", "transform", "views", "calibration")},
        )
        scan.run(request)
        rows = scan.read_matches(request.out).to_pylist()
        best = {Path(row["query_uri"]).stem: row for row in rows if row["rank"] == 1}
        names = sorted(path.stem for path in (place / "uploads").iterdir())
    lost = {name: instead for name in names if (instead := _instead(name, best.get(name)))}
    # An encoder may see too little in a picture of the demo to judge it, but not in all of them.
    judged = {name: instead for name, instead in lost.items() if instead != _NO_CONTENT}
    return judged if judged or len(lost) < len(names) else lost


def _draw(place: Path, pictures: Path | None) -> None:
    """Write references, and uploads that are copies of the first ones, under the same names."""
    (place / "references").mkdir()
    (place / "uploads").mkdir()
    with resources.as_file(resources.files("id2core") / "data" / "demo" / "references") as demo:
        # Neighbors by name are views of one place: every so many are different pictures.
        files = sorted((pictures or demo).iterdir())
        chosen = files[:: max(1, len(files) // REFERENCES)][:REFERENCES]
        for number, path in enumerate(chosen):
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            name = f"known-{number}.jpg"
            picture.save(place / "references" / name, quality=95)
            if number < PAIRS:
                picture.thumbnail((_SIDE, _SIDE))
                picture.save(place / "uploads" / name, quality=_QUALITY)


def _instead(name: str, best: dict[str, object] | None) -> str:
    """Return what was found in place of the origin of an upload; empty where the origin was found."""
    if best is None:
        return "nothing, as if it were not there"
    if (found := Path(str(best["reference_uri"])).stem) != name:
        return f"{found} with score {best['score']:.3f}"
    if best["verdict_reason"] == NO_CONTENT:
        return _NO_CONTENT
    if best["verdict"] == Verdict.NONE.value:
        return f"its origin with score {best['score']:.3f}, which the calibration takes for no match"
    return ""
