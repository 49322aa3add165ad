from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_info

from id2core.encoders import embedding
from id2core.transforms.linear import Transform


def test_descriptors_leave_the_threads_of_blas_as_they_were() -> None:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((3, 64)).astype(np.float16)
    transform = Transform(rng.standard_normal((64, 8), np.float32))
    before = threadpool_info()
    descriptors = embedding._descriptors(latents, transform, one_core=True)
    assert threadpool_info() == before
    np.testing.assert_allclose(descriptors, transform.apply(latents), atol=1e-6)
