from __future__ import annotations

import json
import shutil

import numpy as np

from factory.bundle import FACTS
from factory.renew import renew, renew_views
from id2core.store import schemas
from id2core.store.datasets import Dataset
from id2core.transforms.files import BUNDLED_FOLDER, WEIGHTS, load_transform
from id2core.verdicts import calibration
from id2core.verdicts.judging import BACKGROUND, FILE


def test_a_renewed_bundle_has_the_new_id_everywhere_and_the_same_numbers(tmp_path):
    folder = tmp_path / "mini"
    shutil.copytree(BUNDLED_FOLDER, folder)
    renew(folder, "another-recipe")

    old, new = (load_transform(str(place / WEIGHTS)) for place in (BUNDLED_FOLDER, folder))
    assert np.array_equal(old.weights, new.weights)
    assert new.metadata == old.metadata | {"preprocess_id": "another-recipe"}

    then, now = (Dataset.open(str(place / BACKGROUND)) for place in (BUNDLED_FOLDER, folder))
    assert now.ids == then.ids | {"preprocess_id": "another-recipe"}
    columns = [next(iter(data.tables(["descriptor"])))["descriptor"] for data in (then, now)]
    assert np.array_equal(*map(schemas.column_to_vectors, columns))

    before, after = (calibration.load(str(place / FILE)) for place in (BUNDLED_FOLDER, folder))
    assert after.preprocess_id == "another-recipe"
    assert after.match == before.match and after.review == before.review
    assert after.normalization.background_id != before.normalization.background_id


def test_a_calibration_is_renewed_for_the_views_of_this_version(tmp_path):
    folder = tmp_path / "mini"
    shutil.copytree(BUNDLED_FOLDER, folder)
    shipped = calibration.load(str(folder / FILE))
    shipped.model_copy(update={"views": "latent-of-another-version"}).save(str(folder / FILE))
    renew_views(folder)

    assert calibration.load(str(folder / FILE)) == shipped
    assert json.loads((folder / FACTS).read_text())["views"]["id"] == shipped.views
