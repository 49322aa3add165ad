"""The verdicts of a scan: by which calibration, with which background, and what they hold for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from id2core.errors import CalibrationError
from id2core.search import shards
from id2core.search.background_rows import Backgrounds
from id2core.store import storage
from id2core.store.datasets import Dataset, FileRecord
from id2core.transforms.files import bundled_folder
from id2core.transforms.linear import AUTO, BUNDLED, NONE
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Calibration, Verdict
from id2core.verdicts.normalization import Normalization, with_background, with_columns

# The verdicts that have a threshold.
LEVELS: Final = (Verdict.MATCH, Verdict.REVIEW)
# With all views, and for whole uploads alone.
FILE: Final = "calibration.json"
WHOLE_FILE: Final = "calibration-whole.json"
BACKGROUND: Final = "background"
WHOLE_BACKGROUND: Final = "background-whole"


def choose(spec: str, ids: Mapping[str, str], folder: Path | None = None) -> Calibration | None:
    """Load the calibration that the scores of a scan are judged by; None for no verdicts.

    Args:
        spec: a file that `Calibration.save` wrote, `auto` for the one that is bundled with the transform in
            use (none where there is none), or `none`.
        ids: all of `schemas.ROW_IDS` of the scores, and `views`.
        folder: where the bundled one is; by default in the package.

    Raises:
        CalibrationError: the file is missing or damaged, or is for other scores.
    """
    if spec == NONE:
        return None
    if spec == AUTO:
        return _belonging_to(ids, folder or bundled_folder())
    chosen = calibration.load(spec)
    chosen.check_ids(ids)
    return chosen


def _belonging_to(ids: Mapping[str, str], folder: Path) -> Calibration | None:
    paths = (folder / name for name in (FILE, WHOLE_FILE))
    bundled = (calibration.load(str(path)) for path in paths if path.is_file())
    return next((one for one in bundled if one.is_for(ids)), None)


class Tally(NamedTuple):
    """How many pairs a search gave a verdict."""

    match_pairs: int
    review_pairs: int


def tally(matches: Dataset, files: Iterable[FileRecord]) -> Tally:
    """Count the verdicts in the files of a search.

    Raises:
        DatasetError: a file is gone or damaged.
    """
    pairs: Counter[str] = Counter()
    for file in files:
        pairs.update(matches.read_file(file, ["verdict"])["verdict"].cast(pa.string()).to_pylist())
    return Tally(pairs[Verdict.MATCH], pairs[Verdict.REVIEW])


def matched(matches: Dataset, files: Iterable[FileRecord]) -> int:
    """Return how many uploads have a match in the files of some searches, also of several channels.

    Raises:
        DatasetError: a file is gone or damaged.
    """
    upload = ["query_uri", "query_generation"]
    found = []
    for file in files:
        table = matches.read_file(file, [*upload, "verdict"])
        own = table.filter(pc.equal(table["verdict"].cast(pa.string()), Verdict.MATCH.value))
        found.append(own.group_by(upload).aggregate([]))
    return pa.concat_tables(found).group_by(upload).aggregate([]).num_rows if found else 0


def load(spec: str | None, folder: Path | None = None, views: str = AUTO) -> Calibration | None:
    """Load a calibration for any scores: a file, or `auto` for the bundled one; None and `none` for none.

    Args:
        spec: as of `choose`.
        folder: where the bundled one is; by default in the package.
        views: `auto`, or `none` for the bundled one of whole uploads alone.

    Raises:
        CalibrationError: the file is missing or damaged.
    """
    if spec in (None, NONE):
        return None
    bundled = (folder or bundled_folder()) / (WHOLE_FILE if views == NONE else FILE)
    return calibration.load(str(bundled) if spec == AUTO else str(spec))


def bundled_background(chosen: Calibration | None, folder: Path | None = None) -> Dataset | None:
    """Open the background that ships with a calibration; None where it has none or is not bundled."""
    if chosen is None or chosen.normalization is None:
        return None
    places = (str((folder or bundled_folder()) / name) for name in (BACKGROUND, WHOLE_BACKGROUND))
    bundled = (Dataset.find(place) for place in places)
    needed = chosen.normalization.background_id
    return next((one for one in bundled if one and shards.index_id(one) == needed), None)


def check_background(chosen: Calibration | None, background: str | Dataset | None) -> None:
    """Raise CalibrationError when a background is missing, or given though nothing would use it.

    Args:
        chosen: what judges the scan.
        background: what was given as background, images or data set.
    """
    needed = chosen is not None and chosen.normalization is not None
    if needed and not background:
        raise CalibrationError(
            "this calibration is for scores normalized by a background corpus: give it with --background, "
            "or use --calibration none for raw scores without verdicts"
        )
    if background and not needed:
        raise CalibrationError(
            "a background is used by a calibration with score normalization; "
            + ("this one has none" if chosen else "no calibration is used")
            + ": leave --background out, or give another --calibration"
        )


def check_background_id(chosen: Calibration, background: Dataset) -> None:
    """Raise CalibrationError when a data set is not the background that was calibrated with.

    Args:
        chosen: with a normalization.
        background: embeddings.
    """
    index_id = shards.index_id(background)
    if chosen.normalization and chosen.normalization.background_id != index_id:
        raise CalibrationError(
            f"calibrated with the background {chosen.normalization.background_id}, {background.uri} is "
            f"{index_id}: give the data set that the calibration was made with, or calibrate anew"
        )


# Pictures that an error names.
_NAMED: Final = 3


def check_disjoint(background: Dataset, references: Dataset) -> None:
    """Raise CalibrationError when a picture is in both of two embeddings data sets.

    An upload of it would find itself in the background, and its match would be normalized away.
    """
    background_ids = pa.concat_tables(background.tables(["image_id"]))["image_id"]
    shared = 0
    for table in references.tables(["image_id"]):
        shared += pc.sum(pc.is_in(table["image_id"], value_set=background_ids)).as_py() or 0
    if shared:
        # Where they are is read for an error alone: every scan checks all references.
        uris = (
            uri
            for table in references.tables(["image_id", "uri"])
            for uri in table.filter(pc.is_in(table["image_id"], value_set=background_ids))["uri"].to_pylist()
        )
        named = ", ".join(islice(uris, _NAMED)) + ", …" * (shared > _NAMED)
        raise CalibrationError(
            f"{shared} references are in the background {background.uri}, which must hold none of them: "
            f"{named}. Take them out of the references, use another background and calibrate anew, or give "
            "--calibration none for scores without verdicts"
        )


@dataclass(frozen=True)
class Judge:
    """Normalizes and judges matches, wherever they are written.

    Attributes:
        calibration: for the scores of the run.
        backgrounds: of the uploads, where the calibration has a normalization.
    """

    calibration: Calibration
    backgrounds: Backgrounds | None = None

    @property
    def calibration_id(self) -> str:
        """Name of the calibration."""
        return self.calibration.calibration_id

    @property
    def score(self) -> str:
        """The column of `matches/` that is judged."""
        return self.calibration.score

    @property
    def lowest(self) -> float:
        """Least score that is reviewed in a corpus of any size."""
        return self.calibration.lowest(Verdict.REVIEW)

    def is_out_of_reach(self, references: int) -> bool:
        """Return whether no pair of a corpus of `references` can be a match."""
        return self.calibration.is_out_of_reach(Verdict.MATCH, references)

    def check_ids(self, ids: Mapping[str, str]) -> None:
        """Raise CalibrationError when the calibration is for scores of other ids."""
        self.calibration.check_ids(ids)

    def after(self, backgrounds: Dataset) -> Judge:
        """Return the judge once a search of the background is committed to a data set."""
        known = self.backgrounds and replace(self.backgrounds, dataset=backgrounds)
        return replace(self, backgrounds=known)

    def judge(self, matches: pa.Table, references: int, segments: frozenset[str] | None = None) -> pa.Table:
        """Return matches with their verdicts, rows in their order.

        Args:
            matches: of `schemas.MATCHES`.
            references: size of the corpus that was searched.
            segments: run_ids of the segments that the uploads are of; None where that is not known.

        Raises:
            CalibrationError: the calibration is for other scores.
            DatasetError: the background of an upload is missing or damaged.
        """
        if not matches.num_rows:
            return matches
        chosen = self.calibration.normalization
        if chosen is None:
            nothing = pa.nulls(matches.num_rows, pa.float32())
            matches = with_columns(matches, {"background": nothing, "normalized_score": nothing})
        elif self.backgrounds:
            mean = self.backgrounds.of(matches["query_uri"], matches["query_generation"], segments)
            matches = with_background(matches, mean, chosen.factor)
        return calibration.judge(matches, self.calibration, references)


class StatedRate(BaseModel):
    """A verdict's threshold, its rate against this corpus, and the interval of the true rate."""

    model_config = ConfigDict(frozen=True)

    threshold: float
    false_positive_rate: float | None
    low: float | None
    high: float | None


class CalibrationFacts(BaseModel):
    """What the verdicts of a scan hold for.

    Attributes:
        calibration_id: names the calibration.
        origin: `bundled`, or its file; `from` in JSON.
        references, queries: sizes it was calibrated on.
        for_references: least number of references that thresholds are chosen for; None for `references`.
        rates_from: `tail model`, or `union bound` where there is none.
        confidence: of its intervals.
        score: the column that was judged.
        normalization: of scores, where there is one.
        background: URI of the background's embeddings, where there is one.
        verdicts: `match` and `review` → the rates that are stated.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    calibration_id: str
    origin: str = Field(alias="from")
    references: int
    queries: int
    for_references: int | None = None
    rates_from: str = calibration.UNION_BOUND
    confidence: float
    score: str
    normalization: Normalization | None
    background: str | None
    verdicts: dict[str, StatedRate]


def facts(
    chosen: Calibration | None, spec: str, references: int, background: str | None = None
) -> CalibrationFacts | None:
    """Return what the verdicts of a scan hold for; None where it has none.

    Args:
        chosen, spec: the calibration and how it was asked for.
        references: size of the corpus that was searched.
        background: URI of the background's embeddings.
    """
    if chosen is None:
        return None
    return CalibrationFacts(
        calibration_id=chosen.calibration_id,
        origin=BUNDLED if spec == AUTO else storage.normalize(spec),
        references=chosen.references,
        queries=chosen.queries,
        for_references=chosen.for_references,
        rates_from=chosen.rates_from,
        confidence=chosen.confidence,
        score=chosen.score,
        normalization=chosen.normalization,
        background=background,
        verdicts={v.value: _rate(chosen, v, references) for v in LEVELS},
    )


def _rate(chosen: Calibration, verdict: Verdict, references: int) -> StatedRate:
    rate: float | None = None
    ends: tuple[float | None, float | None] = (None, None)
    if references:
        rate = chosen.false_positive_rate(verdict, references)
        ends = chosen.interval(verdict, references) or ends
    return StatedRate(
        threshold=chosen.threshold(verdict, references), false_positive_rate=rate, low=ends[0], high=ends[1]
    )
