"""The verdicts of a scan: by which calibration, with which background, and what they hold for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from id2core.errors import CalibrationError, DatasetError
from id2core.search import shards
from id2core.store import datasets, storage
from id2core.store.datasets import FileRecord
from id2core.transforms.files import BUNDLED_FOLDER
from id2core.transforms.linear import AUTO, BUNDLED, NONE
from id2core.verdicts import calibration
from id2core.verdicts.calibration import Calibration, Verdict
from id2core.verdicts.normalization import normalize_matches

FILE: Final = "calibration.json"
BACKGROUND: Final = "background"
_BACKGROUND_COLUMNS = ["query_uri", "rank", "score"]


def choose(spec: str, ids: Mapping[str, str], folder: Path | None = None) -> Calibration | None:
    """The calibration that the scores of a scan are judged by; None for no verdicts.

    Args:
        spec: a file that `Calibration.save` wrote, `auto` for the one that is bundled with the transform in
            use (none where there is none), or `none`.
        ids: all of `tables.IDS` of the scores.
        folder: where the bundled one stands; by default in the package.

    Raises:
        CalibrationError: the file is missing or damaged, or is for other scores.
    """
    if spec == NONE:
        return None
    if spec == AUTO:
        return _belonging_to(ids, folder or BUNDLED_FOLDER)
    found = calibration.load(spec)
    found.check_ids(ids)
    return found


def _belonging_to(ids: Mapping[str, str], folder: Path) -> Calibration | None:
    path = folder / FILE
    found = calibration.load(str(path)) if path.is_file() else None
    return found if found and all(getattr(found, name) == value for name, value in ids.items()) else None


def load(spec: str | None, folder: Path | None = None) -> Calibration | None:
    """A calibration, whatever the scores: a file, or `auto` for the one that ships; None and `none` for none.

    Raises:
        CalibrationError: the file is missing or damaged.
    """
    if spec in (None, NONE):
        return None
    return calibration.load(str((folder or BUNDLED_FOLDER) / FILE) if spec == AUTO else str(spec))


def bundled_background(chosen: Calibration | None, folder: Path | None = None) -> str | None:
    """The background that ships with a calibration; None where it has none or is not bundled."""
    uri = str((folder or BUNDLED_FOLDER) / BACKGROUND)
    commit = datasets.read_commit(uri)
    needed = chosen.normalization.background_id if chosen and chosen.normalization else None
    return uri if commit and needed == shards.index_id(commit) else None


def check_background(chosen: Calibration | None, background: str | None) -> None:
    """Raise CalibrationError when a background is missing, or given though nothing would use it.

    Args:
        chosen: what judges the scan.
        background: what was given as background, images or data set.
    """
    needed = chosen is not None and chosen.normalization is not None
    if needed and not background:
        raise CalibrationError(
            "this calibration is for scores normalized by a background corpus: give it with --background, or "
            "use --calibration none for raw scores without verdicts"
        )
    if background and not needed:
        raise CalibrationError(
            "a background is used by a calibration with score normalization; "
            + ("this one has none" if chosen else "no calibration is used")
            + ": leave --background out, or give another --calibration"
        )


def check_corpus(chosen: Calibration, background: str) -> None:
    """Raise CalibrationError when a data set is not the background that was calibrated with.

    Args:
        chosen: with a normalization.
        background: URI of a committed embeddings data set.
    """
    found = shards.index_id(datasets.require_commit(background))
    if chosen.normalization and chosen.normalization.background_id != found:
        raise CalibrationError(
            f"calibrated with the background {chosen.normalization.background_id}, {background} is {found}: "
            "give the data set that the calibration was made with, or calibrate anew"
        )


def check_disjoint(background: str, references: str) -> None:
    """Raise CalibrationError when a picture stands in both of two embeddings data sets.

    An upload of it would find itself in the background, and its match would be normalized away.
    """
    strangers = pa.concat_tables(datasets.iterate(background, ["image_id"]))["image_id"]
    shared = 0
    for table in datasets.iterate(references, ["image_id"]):
        shared += pc.sum(pc.is_in(table["image_id"], value_set=strangers)).as_py() or 0
    if shared:
        raise CalibrationError(
            f"{shared} references stand in the background {background}, which must hold none of them: "
            "use another background and calibrate anew, or take them out of the references"
        )


@dataclass(frozen=True)
class Judge:
    """Normalizes and judges matches block by block, wherever they are written.

    Attributes:
        calibration: for the scores of the run.
        background: URI of the matches of the same query blocks in the background corpus, where the
            calibration has a normalization.
        background_run: run_id of that search.
    """

    calibration: Calibration
    background: str | None = None
    background_run: str | None = None

    @property
    def identity(self) -> list[str | None]:
        """What a run that is judged so depends on."""
        return [self.calibration.calibration_id, self.background_run]

    def check_ids(self, ids: Mapping[str, str]) -> None:
        """Raise CalibrationError when the calibration is for scores of other ids."""
        self.calibration.check_ids(ids)

    def judge(self, matches: pa.Table, block: str, references: int) -> pa.Table:
        """A `tables.MATCHES` table with its verdicts, rows in their order.

        Args:
            matches: every match of one block of queries.
            block: its name, for its background.
            references: size of the corpus that was searched.

        Raises:
            CalibrationError: the calibration is for other scores.
            DatasetError: the background of the block is missing or damaged.
            NormalizationError: the background was not searched deep enough.
        """
        if not matches.num_rows:
            return matches
        if self.calibration.normalization:
            background = self._background_of(block)
            matches = normalize_matches(matches, background, self.calibration.normalization)
        return calibration.judge(matches, self.calibration, references)

    def _background_of(self, block: str) -> pa.Table:
        record = self._files.get(block)
        if record is None or self.background is None:
            raise DatasetError(f"{self.background} has no background of block {block}: search it again")
        return datasets.read_file(self.background, record, _BACKGROUND_COLUMNS)

    @cached_property
    def _files(self) -> dict[str, FileRecord]:
        """Block → its file of background matches: a run's files are named after its blocks."""
        if self.background is None:
            return {}
        prefix = f"/{self.background_run}-"
        files = datasets.require_commit(self.background).files
        return {f.key.partition(prefix)[2]: f for f in files if prefix in f.name}


def facts(
    chosen: Calibration | None, spec: str, references: int, background: str | None = None
) -> dict[str, Any] | None:
    """What the verdicts of a scan hold for, JSON-able; None where it has none.

    Args:
        chosen, spec: the calibration and how it was asked for.
        references: size of the corpus that was searched.
        background: URI of the background's embeddings.

    Returns:
        `calibration_id`, `from`, the sizes it was calibrated on, and per verdict its `threshold`, the stated
        `false_positive_rate` against `references` pictures, and `low` and `high`, the interval of the true
        one.
    """
    if chosen is None:
        return None
    return {
        "calibration_id": chosen.calibration_id,
        "from": BUNDLED if spec == AUTO else storage.normalize(spec),
        "references": chosen.references,
        "queries": chosen.queries,
        "confidence": chosen.confidence,
        "score": chosen.score,
        "normalization": chosen.normalization.model_dump() if chosen.normalization else None,
        "background": background,
        "verdicts": {v.value: _rate(chosen, v, references) for v in (Verdict.MATCH, Verdict.REVIEW)},
    }


def _rate(chosen: Calibration, verdict: Verdict, references: int) -> dict[str, float | None]:
    threshold = chosen.match if verdict is Verdict.MATCH else chosen.review
    rate: float | None = None
    ends: tuple[float | None, float | None] = (None, None)
    if references:
        rate = chosen.false_positive_rate(verdict, references)
        ends = chosen.interval(verdict, references) or ends
    return {"threshold": threshold.score, "false_positive_rate": rate, "low": ends[0], "high": ends[1]}
