"""Views of latents, which stand for other pictures where there are too few."""

from __future__ import annotations

import numpy as np

from id2core.experiments import scale


def test_views_are_crops_of_each_channel_and_every_other_is_mirrored() -> None:
    across = np.broadcast_to(np.arange(16), (16, 16))
    channels = np.stack([np.full((16, 16), 3.0), across, across.T, -across])
    latents = channels.reshape(1, -1).astype(np.float16)
    rows = np.zeros(200, np.int64)
    drawn = scale.views(latents, rows, np.random.default_rng(0))
    assert (drawn == scale.views(latents, rows, np.random.default_rng(0))).all()
    maps = drawn.reshape(-1, 4, 16, 16)
    assert np.allclose(maps[:, 0], 3) and np.allclose(maps[:, 1], -maps[:, 3], atol=1e-5)
    assert len(np.unique(drawn.round(4), axis=0)) == 200
    assert np.abs(drawn).max() < 15.001
    rising = maps[:, 1, 0, -1] > maps[:, 1, 0, 0]
    assert 60 < rising.sum() < 140
    shares = np.abs(maps[:, 1, 0, -1] - maps[:, 1, 0, 0]) / 15
    assert 0.3 < shares.min() < 0.5 and 0.9 < shares.max() <= 1
    assert (maps[:, 2, -1, 0] > maps[:, 2, 0, 0]).all(), "no view is upside down"
