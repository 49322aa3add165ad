from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import CosFaceLoss

from id2core.errors import GradientError, TrainError
from id2core.training import closed_form, criteria, gradient, ranks
from id2core.training.closed_form import Trial
from id2core.training.config import GradientConfig
from id2core.training.samples import Batches
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform
from tests.synthetic_pairs import SMALL, N, log, made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """In steps this small, on cores that others use too, two threads mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_training_beats_the_cosine_of_latents_on_origins_it_never_saw(tmp_path: Path) -> None:
    pairs = made()
    reports: list[tuple[str, int, int]] = []
    trained = gradient.fit(pairs, SMALL, tmp_path, progress=lambda *event: reports.append(event))
    rows = log(tmp_path)
    trial = Trial.of(pairs, pairs.held_out(SMALL.validation_share))
    reached, raw = trial.score(trained)[0], trial.score(Transform())[0]
    assert rows[-1]["loss"] < rows[1]["loss"] / 2
    assert reached > 0.8 and raw < 0.5
    assert (
        trained.metadata["validation_map"] == reached == pytest.approx(rows[-1]["validation_map"], abs=1e-3)
    )
    assert reports[-1] == ("training", SMALL.steps, SMALL.steps)
    saved = load_transform(str(tmp_path / gradient.WEIGHTS))
    assert saved.transform_id == trained.transform_id and saved.metadata == trained.metadata
    saved.check_encoder("mini-0")
    again = gradient.fit(pairs, SMALL, tmp_path)
    assert again.transform_id == trained.transform_id and log(tmp_path) == rows


@pytest.mark.parametrize(
    "change", [{"loss": "circle", "scale": None}, {"loss": "softmax", "iterations": 60}, {"negatives": 32}]
)
def test_the_other_losses_learn_too(change: dict[str, Any], tmp_path: Path) -> None:
    trained = gradient.fit(made(), SMALL.replace(**change), tmp_path)
    rows = log(tmp_path)
    assert rows[-1]["loss"] < rows[1]["loss"]
    assert trained.metadata["validation_map"] > 0.7


KILLED = """
import sys
from pathlib import Path
import torch
from id2core.training import gradient
from tests.synthetic_pairs import SMALL, made
torch.set_num_threads(1)
config = SMALL.replace(negatives=int(sys.argv[2]) or None)
gradient.fit(made(), config, Path(sys.argv[1]), checkpoint_every=7,
    progress=lambda _, completed, total: completed == 70 and (print(flush=True), sys.stdin.read()))
"""


@pytest.mark.parametrize("negatives", [None, pytest.param(16, marks=pytest.mark.slow)])
def test_a_killed_training_goes_on_as_if_it_had_not_been(negatives: int | None, tmp_path: Path) -> None:
    pairs, config = made(), SMALL.replace(negatives=negatives)
    whole = gradient.fit(pairs, config, tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "parts"), str(negatives or 0)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "parts" / gradient.WEIGHTS).exists()
    steps: list[int] = []
    parts = gradient.fit(
        pairs, config, tmp_path / "parts", progress=lambda _, completed, total: steps.append(completed)
    )
    assert steps[0] == 64
    assert parts.transform_id == whole.transform_id
    for other in (config.replace(lr=1.0), config.replace(seed=2)):
        with pytest.raises(TrainError, match="another recipe"):
            gradient.fit(pairs, other, tmp_path / "parts")
    with pytest.raises(TrainError, match="another recipe"):
        gradient.fit(made(seed=1), config, tmp_path / "parts")


def test_training_stops_when_nothing_gets_better_and_keeps_the_best(tmp_path: Path) -> None:
    pairs = made()
    start = closed_form.fit(pairs, SMALL.dimensions, validation_share=SMALL.validation_share).transform
    held_out = pairs.held_out(SMALL.validation_share)
    config = SMALL.replace(lr=3.0, epochs=20, patience=2, warmup=0.0)
    trained = gradient.fit(pairs, config, tmp_path, start=start)
    rows = log(tmp_path)
    assert trained.metadata["validation_map"] == Trial.of(pairs, held_out).score(trained)[0]
    assert round(trained.metadata["validation_map"], 4) == max(row["validation_map"] for row in rows)
    assert rows[-1]["step"] == trained.metadata["steps"] + 2 * config.iterations < config.steps


def test_a_start_is_where_training_starts(tmp_path: Path) -> None:
    pairs = made()
    start = closed_form.fit(pairs, SMALL.dimensions, validation_share=SMALL.validation_share).transform
    reached = Trial.of(pairs, pairs.held_out(SMALL.validation_share)).score(start)[0]
    for negatives in (None, 32):
        out = tmp_path / str(negatives)
        config = SMALL.replace(lr=1e-4, epochs=1, negatives=negatives)
        trained = gradient.fit(pairs, config, out, start=start)
        assert log(out)[0]["validation_map"] == pytest.approx(reached, abs=1e-3)
        assert trained.metadata["validation_map"] >= reached
        gradient.fit(pairs, config, tmp_path / f"random-{negatives}")
        assert log(out)[1]["loss"] < log(tmp_path / f"random-{negatives}")[1]["loss"] - 5


def test_the_rate_is_the_papers() -> None:
    rates = [GradientConfig().rate(epoch) / 3.5e-4 for epoch in range(25)]
    assert rates[:5] == pytest.approx([0.01, 0.208, 0.406, 0.604, 0.802])
    assert rates[5:11] == [1.0] * 6
    assert rates[11:] == sorted(rates[11:], reverse=True) and 0 < rates[-1] < 0.02
    assert rates[17] + rates[18] == pytest.approx(1)
    assert GradientConfig(epochs=1).rate(0) == 3.5e-4


def test_batches_are_balanced_and_the_same_every_time() -> None:
    pairs = made(most=9)
    classes = np.flatnonzero(~pairs.held_out(0.2))
    batches = Batches(pairs, classes, batch=40, per_class=4, negatives=7, seed=5)
    a_pass = len(classes) // 10
    seen: list[int] = []
    for step in range(a_pass, 2 * a_pass):
        rows, labels = batches.rows(step)
        assert (np.diff(rows) >= 0).all() and (pairs.labels[rows] == classes[labels]).all()
        chosen, counts = np.unique(labels, return_counts=True)
        assert len(chosen) == 10 and (counts == 4).all()
        for label in chosen:
            size = int(np.diff(pairs.offsets)[classes[label]])
            distinct = len(set(rows[labels == label].tolist()))
            assert distinct == 4 if size >= 4 else distinct <= size
        seen += chosen.tolist()
    assert len(seen) == len(set(seen)) == a_pass * 10

    same = Batches(pairs, classes, 40, 4, 7, seed=5)
    for step in (3, 4, 40):
        one, two = batches.get(step, 41), same.make(step)
        assert torch.equal(one.latents, two.latents) and torch.equal(one.labels, two.labels)
        assert one.centers is not None and two.centers is not None and torch.equal(one.centers, two.centers)
        assert len(one.centers) == 17 and np.isin(one.labels, one.centers).all()
        assert (np.diff(one.centers) > 0).all() and one.latents.dtype == torch.float32
        assert (one.latents.numpy() == pairs.latents[same.rows(step)[0]]).all()
    assert (batches.rows(0)[0] != batches.rows(a_pass)[0]).any()
    assert (batches.rows(0)[0] != Batches(pairs, classes, 40, 4, 7, seed=6).rows(0)[0]).any()
    batches.close()
    same.close()


def test_with_all_negatives_the_partial_loss_is_the_full_one() -> None:
    pairs = made(origins=50)
    config = GradientConfig(dimensions=16, negatives=50)
    batches = Batches(pairs, np.arange(50), 64, 4, config.negatives, seed=1)
    batch = batches.make(0)
    batches.close()
    torch.manual_seed(0)
    partial = criteria.build_loss(config, 50, 16, config.negatives)
    full = criteria.build_loss(config, 50, 16)
    assert isinstance(full, CosFaceLoss) and isinstance(partial, criteria.PartialCosFace)
    full.W.data = partial.centers.weight.detach().T.clone()
    x, y = (torch.nn.Parameter(batch.latents[:, :16].clone()) for _ in range(2))
    ours, theirs = partial(x, batch.labels, batch.centers), full(y, batch.labels)
    assert batch.centers is not None and len(batch.centers) == 50
    torch.testing.assert_close(ours, theirs)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(partial.centers.weight.grad.to_dense(), full.W.grad.T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 30}, "2 or more classes"),
        ({"loss": "circle", "negatives": 5}, "for cosface"),
        ({"epochs": 0}, "1 or more"),
        ({"warmup": 0.5}, "warmup ≤ decay_from"),
        ({"patience": 0}, "or None"),
        ({"loss": "triplet"}, "choose cosface, circle, softmax"),
        ({"validation_share": 0.999}, "hold out less"),
        ({"lr": 1e38}, "lower lr"),
    ],
)
def test_a_recipe_that_cannot_work_says_why(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(GradientError, match=message):
        gradient.fit(made(), SMALL.replace(**change), tmp_path)


def test_a_start_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradientError, match=r"\(64, 32\) is needed"):
        gradient.fit(made(), SMALL, tmp_path, start=Transform(np.ones((N, 8), np.float32)))


def test_in_bfloat16_a_run_learns_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class InterruptedRunError(Exception):
        pass

    def interrupt(_: str, completed: int, total: int) -> None:
        if completed == 70:
            raise InterruptedRunError

    pairs, config = made(), SMALL.replace(precision="bfloat16")
    lower = gradient.fit(pairs, config, tmp_path / "whole", device="cpu")
    whole = gradient.fit(pairs, SMALL, tmp_path / "float32", device="cpu")
    assert lower.metadata["validation_map"] > 0.8 and lower.transform_id != whole.transform_id
    assert whole.metadata["recipe"]["precision"] == "float32"
    with pytest.raises(InterruptedRunError):
        gradient.fit(pairs, config, tmp_path / "parts", checkpoint_every=7, device="cpu", progress=interrupt)
    again = gradient.fit(pairs, config, tmp_path / "parts", device="cpu")
    assert again.transform_id == lower.transform_id
    with pytest.raises(TrainError, match="another recipe"):
        gradient.fit(pairs, SMALL, tmp_path / "parts", device="cpu")


def test_logits_are_float32_for_a_head_in_any_precision(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Watching(torch.nn.Module):
        def forward(self, descriptors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seen.extend([descriptors.dtype, (descriptors @ descriptors.T).dtype])
            return descriptors.sum()

    head = torch.nn.Linear(N, 8, bias=False)
    alone = ranks.Ranks(torch.device("cpu"))
    x, labels = torch.randn(4, N), torch.zeros(4, dtype=torch.long)
    lower, plain = (
        criteria.Objective(head, Watching(), dtype, alone)(x, labels)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert seen == [torch.float32] * 4 and lower != plain


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    class InterruptedRunError(Exception):
        pass

    def interrupt(_: str, done: int, total: int) -> None:
        if done == 8:
            raise InterruptedRunError

    pairs = made()
    with pytest.raises(InterruptedRunError):
        gradient.fit(pairs, SMALL, tmp_path, checkpoint_every=5, progress=interrupt)
    checkpoint = tmp_path / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    for damaged in (whole[:-1000], b"", whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]):
        checkpoint.write_bytes(damaged)
        with pytest.raises(TrainError, match=f"{checkpoint} is damaged"):
            gradient.fit(pairs, SMALL, tmp_path, checkpoint_every=5)


def test_a_log_has_every_epoch_once_and_tensorboard_shows_the_same(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    class InterruptedRunError(Exception):
        pass

    def interrupt(_: str, completed: int, total: int) -> None:
        if completed == 95:
            raise InterruptedRunError

    pairs = made()
    with pytest.raises(InterruptedRunError):
        gradient.fit(pairs, SMALL, tmp_path, checkpoint_every=50, progress=interrupt)
    assert log(tmp_path)[-1]["step"] == 90
    gradient.fit(pairs, SMALL, tmp_path, checkpoint_every=50)
    rows = log(tmp_path)
    assert [row["step"] for row in rows] == [30 * epoch for epoch in range(SMALL.epochs + 1)]
    curves = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "validation_map", "separation"):
        points = [(event.step, event.value) for event in curves.Scalars(name)]
        wanted = [(row["step"], pytest.approx(row[name], abs=1e-3)) for row in rows if name in row]
        assert points == wanted
    rates = [event.value for event in curves.Scalars("rate")]
    assert rates[1:] == pytest.approx([SMALL.rate(epoch) for epoch in range(SMALL.epochs)])
