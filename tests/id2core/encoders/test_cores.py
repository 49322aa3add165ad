"""Networks on the cores of a CPU: the same bits, whatever the batch and the number of threads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from id2core.encoders import cores
from id2core.encoders.registry import load_encoder
from tests.drawing import scene

LATENTS = """
import hashlib, numpy as np, torch
from id2core.encoders.registry import load_encoder
pixels = np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3), np.uint8)
encoder = load_encoder("mini", device="cpu", dtype="float32")
print(torch.get_num_threads(), hashlib.sha256(encoder.encode(pixels)).hexdigest())
"""


@settings(max_examples=20)
@given(st.integers(1, 9))
def test_every_picture_goes_through_the_network_once_and_in_order(count: int) -> None:
    pictures = torch.arange(count, dtype=torch.float32)[:, None]
    sizes: list[int] = []

    def network(group: torch.Tensor) -> torch.Tensor:
        sizes.append(len(group))
        return group * 2

    assert torch.equal(cores.on_cores(network)(pictures), pictures * 2)
    assert set(sizes) == {cores.GROUP}


def test_an_error_of_the_network_is_raised() -> None:
    def network(group: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        cores.on_cores(network)(torch.zeros(3, 1))


def test_kernels_have_one_core_each_and_the_process_keeps_its_own() -> None:
    before = torch.get_num_threads()
    threads: list[int] = []

    def network(group: torch.Tensor) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return group

    cores.on_cores(network)(torch.zeros(8, 1))
    assert set(threads) == {1}
    assert torch.get_num_threads() == before


def test_latents_do_not_depend_on_the_size_of_a_batch() -> None:
    pixels = np.stack([np.asarray(scene(seed, (256, 256))) for seed in range(5)])
    one, three, many = (
        load_encoder("mini", device="cpu", dtype="float32", batch_size=size).encode(pixels)
        for size in (1, 3, 16)
    )
    assert np.array_equal(one, three)
    assert np.array_equal(one, many)


def test_latents_do_not_depend_on_the_number_of_cores() -> None:
    def by(threads: int) -> tuple[str, str]:
        command = [sys.executable, "-c", f"import torch; torch.set_num_threads({threads}){LATENTS}"]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        used, digest = made.stdout.split()
        return used, digest

    (one, alone), (two, together) = by(1), by(2)
    assert (one, two) == ("1", "2")
    assert alone == together
