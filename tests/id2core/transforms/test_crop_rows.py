"""Crops of latents, and the rows of references that cropped uploads meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from id2core.errors import TransformError
from id2core.transforms import crop_rows
from id2core.transforms.crop_rows import COLUMNS, CROPS, Crop, CropRows, cropped
from id2core.transforms.linear import Transform

SIDE = 8
N = 4 * SIDE * SIDE


@given(
    st.floats(0.1, 1),
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_a_crop_of_a_ramp_is_the_ramp_of_the_part(
    share: float, across: float, down: float, x: float, y: float, base: float
) -> None:
    slack = (1 - share**0.5) / 2 * 0.999
    crop = Crop(share, across * slack, down * slack)
    places = (np.arange(SIDE) + 0.5) / SIDE

    def ramp(horizontal: np.ndarray, vertical: np.ndarray) -> np.ndarray:
        return np.broadcast_to(base + x * horizontal[None, :] + y * vertical[:, None], (4, SIDE, SIDE))

    part = cropped(ramp(places, places).reshape(1, N), crop).reshape(4, SIDE, SIDE)

    wanted = ramp(*(low + places * (high - low) for low, high in crop.spans()))
    # Beyond the middle of the outermost cells there is nothing to interpolate with.
    edge = 1 if share > (1 - 2 / SIDE) ** 2 else 2
    inner = (slice(None), slice(edge, -edge), slice(edge, -edge))
    np.testing.assert_allclose(part[inner], wanted[inner], atol=1e-4)


def test_a_cropped_upload_meets_its_origin() -> None:
    rng = np.random.default_rng(1)
    coarse = rng.normal(size=(40, 4, 4, 4))
    latents = np.kron(coarse, np.ones((1, 1, SIDE // 4, SIDE // 4))).reshape(40, N).astype(np.float16)
    w = Transform(rng.normal(size=(N, 90)).astype(np.float32))
    rows = CropRows(w)(latents).reshape(40, len(CROPS), COLUMNS)
    for place, crop in enumerate(CROPS):
        uploads = crop_rows.heads(w.apply(cropped(latents, crop)))

        # One byte holds the descriptor of the crop.
        np.testing.assert_allclose(rows[:, place] / 127, uploads, atol=0.51 / 127)
        assert ((uploads @ rows[:, place].T).argmax(axis=1) == np.arange(40)).all()


def test_rows_take_at_most_half_of_the_bytes_of_a_descriptor() -> None:
    w = Transform(np.eye(N, 480, dtype=np.float32))
    assert CropRows(w)(np.ones((1, N), np.float16)).nbytes <= 480 * 4 / 2


def test_raw_latents_have_no_rows() -> None:
    with pytest.raises(TransformError, match="need a W"):
        CropRows(Transform())


@pytest.mark.parametrize("crop", [Crop(0), Crop(1, 0.1), Crop(0.5, 0, 0.2), Crop(1.1)])
def test_a_part_outside_of_the_picture_is_refused(crop: Crop) -> None:
    with pytest.raises(TransformError, match="not a part"):
        cropped(np.zeros((1, N), np.float32), crop)


def test_latents_without_square_channels_have_no_crops() -> None:
    with pytest.raises(TransformError, match="square channels"):
        cropped(np.zeros((1, 30), np.float32), CROPS[0])
