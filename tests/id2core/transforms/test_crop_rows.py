"""Crops of latents, and the rows of references that cropped uploads meet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from id2core.errors import TransformError
from id2core.transforms import crop_rows
from id2core.transforms.crop_rows import CROPS, Crop, cropped
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
    w = Transform(rng.normal(size=(N, 60)).astype(np.float32))
    for crop in (CROPS[0], CROPS[2], CROPS[-1]):
        uploads = crop_rows.heads(w.apply(cropped(latents, crop)), 40)
        rows = crop_rows.crop_rows(latents, w, crop, 40)

        assert rows.shape == (40, 40) and rows.dtype == np.float16
        assert ((uploads @ rows.T).argmax(axis=1) == np.arange(40)).all()


def test_rows_take_no_more_bytes_than_the_descriptor() -> None:
    latents = np.ones((1, N), np.float16)
    rows = [crop_rows.crop_rows(latents, Transform(), crop).nbytes for crop in CROPS]
    assert sum(rows) <= 480 * 4


@pytest.mark.parametrize("crop", [Crop(0), Crop(1, 0.1), Crop(0.5, 0, 0.2), Crop(1.1)])
def test_a_part_outside_of_the_picture_is_refused(crop: Crop) -> None:
    with pytest.raises(TransformError, match="not a part"):
        cropped(np.zeros((1, N), np.float32), crop)


def test_latents_without_square_channels_have_no_crops() -> None:
    with pytest.raises(TransformError, match="square channels"):
        cropped(np.zeros((1, 30), np.float32), CROPS[0])
