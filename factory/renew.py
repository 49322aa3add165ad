"""State what ships beside an encoder for a new `preprocess_id` or new views, where no number of it changes.

Run `python -m factory.renew --folder id2core/data/mini`. It is right only where the pictures that W, the
background and the calibration were made of decode to the same pixels as before: a new recipe that obeys color
profiles leaves files without one alone. Of the views, only the rules that find frames may differ, and they
must find the same boxes in the uploads of the calibration. Where a pixel or a box moves, make them again
(`factory.bundle`, `factory.views_bundle`).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from factory.bundle import FACTS, write_background
from id2core.encoders.records import BUNDLED_RECORD, Record
from id2core.search import looks
from id2core.store import schemas
from id2core.store.datasets import Dataset
from id2core.transforms.files import WEIGHTS, load_transform, save_half
from id2core.verdicts import calibration
from id2core.verdicts.judging import BACKGROUND, FILE, WHOLE_BACKGROUND, WHOLE_FILE


def renew(folder: Path, preprocess_id: str) -> None:
    """Write W's facts, the background and the calibration of a folder anew; weights and thresholds stay."""
    old = load_transform(str(folder / WEIGHTS))
    w = save_half(replace(old, metadata=old.metadata | {"preprocess_id": preprocess_id}), folder / WEIGHTS)
    assert w.weights is not None  # the identity is saved nowhere
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps(facts | {"trained": w.metadata}, indent=1))
    places = ((FILE, BACKGROUND), (WHOLE_FILE, WHOLE_BACKGROUND))
    for file, background in places:
        if (folder / file).exists():
            _renew_calibration(folder, file, background, len(w.weights), preprocess_id)


def _renew_calibration(
    folder: Path, file: str, background: str, latent_size: int, preprocess_id: str
) -> None:
    found = calibration.load(str(folder / file))
    if found.normalization is None:
        raise SystemExit(f"{folder / file} has no background")
    name = _renewed_background(folder, background, latent_size, preprocess_id)
    normalization = found.normalization.model_copy(update={"background_id": name})
    update = {"preprocess_id": preprocess_id, "normalization": normalization}
    found.model_copy(update=update).save(str(folder / file))


def _renewed_background(folder: Path, background: str, latent_size: int, preprocess_id: str) -> str:
    data = Dataset.open(str(folder / background))
    (table,) = data.tables(["image_id", "descriptor", "crops"])
    vectors = schemas.column_to_vectors(table["descriptor"]).astype(np.float32)
    names = data.ids | {"preprocess_id": preprocess_id}
    crops = schemas.column_to_bytes(table["crops"])
    rows = None if crops is None else crops.view(np.int8)
    ids = table["image_id"].to_pylist()
    return write_background(folder, ids, vectors, latent_size, names, rows, background)


def renew_views(folder: Path) -> None:
    """Name the views of this version in the calibration of all views and in W's facts."""
    found = calibration.load(str(folder / FILE))
    if found.views == looks.NONE:
        return
    made = looks.Views.of(load_transform(str(folder / WEIGHTS)), found.encoder_id).id
    found.model_copy(update={"views": made}).save(str(folder / FILE))
    facts = json.loads((folder / FACTS).read_text())
    facts["views"]["id"] = made
    (folder / FACTS).write_text(json.dumps(facts, indent=1))


def main() -> None:
    """Renew a bundled encoder's folder, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the encoder's folder")
    folder = parser.parse_args().folder
    record = Record.from_json((folder / BUNDLED_RECORD.name).read_bytes())
    if load_transform(str(folder / WEIGHTS)).metadata["preprocess_id"] != record.ids.preprocess_id:
        renew(folder, record.ids.preprocess_id)
    renew_views(folder)


if __name__ == "__main__":
    main()
