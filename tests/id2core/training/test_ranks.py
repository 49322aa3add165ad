from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from id2core.training import gradient, ranks
from id2core.training.criteria import Objective, build_loss
from id2core.transforms import heads
from id2core.transforms.files import load_transform
from tests.synthetic_pairs import SMALL, log, made

# Few steps at a low rate: differences in rounding grow from step to step.
FEW = SMALL.replace(epochs=2, iterations=6, lr=3e-3, patience=None)
LOSSES: dict[str, dict[str, Any]] = {
    "cosface": {},
    "softmax": {"loss": "softmax"},
    "circle": {"loss": "circle", "scale": None},
}

TRAIN = """
import json, os, sys
from pathlib import Path
from id2core.errors import GradientError
from id2core.training import gradient
from tests.synthetic_pairs import made
from tests.id2core.training.test_ranks import FEW
def die(stage, completed, total):
    if completed == int(os.environ.get("DIE_AT", "-1")):
        os._exit(9)
for out, change in json.loads(sys.argv[1]):
    reports = []
    try:
        trained = gradient.fit(made(), FEW.replace(**change), Path(out), device="cpu", checkpoint_every=4,
            progress=lambda *event: (reports.append(event), die(*event)))
        row = trained.transform_id, len(reports)
    except GradientError as error:
        row = "GradientError", str(error)
    Path(f"{out}-{os.environ['RANK']}.json").write_text(json.dumps(row))
"""

GRADIENTS = """
import sys
from pathlib import Path
from id2core.training import ranks
from tests.id2core.training.test_ranks import gradients, LOSSES
import numpy as np
together = ranks.join("cpu")
for name in LOSSES:
    sums = gradients(name, together)
    if together.rank == 0:
        np.savez(Path(sys.argv[1]) / f"{name}.npz", *sums)
"""


def torchrun(script: str, argument: str, folder: Path, die_at: int = -1) -> int:
    """The exit code of a script in two processes."""
    file = folder / "script.py"
    file.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3]), "DIE_AT": str(die_at)}
    return subprocess.run([*command, str(file), argument], env=os.environ | env, check=False).returncode


def results(out: Path) -> list[list[Any]]:
    """Of each rank, the id of W, and how often it reports of progress."""
    return [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in (0, 1)]


def gradients(name: str, together: ranks.Ranks) -> list[Any]:
    """Of the head and the centers, for a batch that the ranks share."""
    torch.manual_seed(0)
    head = heads.build("mlp-2", 24, 16)
    criterion = build_loss(FEW.replace(**LOSSES[name]), classes=8, size=16)
    latents, labels = torch.randn(32, 24), torch.arange(32) // 4
    mine = together.share(32)
    objective = together.around(Objective(head, criterion, torch.float32, together))
    objective(latents[mine], labels[mine]).backward()
    return [p.grad.numpy() for p in (*head.parameters(), *criterion.parameters())]


@pytest.mark.slow
def test_the_gradient_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    assert torchrun(GRADIENTS, str(tmp_path), tmp_path) == 0
    for name in LOSSES:
        two = np.load(tmp_path / f"{name}.npz")
        one = gradients(name, ranks.Ranks(torch.device("cpu")))
        for mine, theirs in zip(one, two.values(), strict=True):
            np.testing.assert_allclose(theirs, mine, atol=1e-6 * np.abs(mine).max(), err_msg=name)


@pytest.mark.slow
def test_two_processes_train_the_w_of_one_and_go_on_after_they_were_killed(tmp_path: Path) -> None:
    changes: dict[str, dict[str, Any]] = {"cosface": {}, "attention": {"head": "attention"}}
    refused: dict[str, dict[str, Any]] = {"partial": {"negatives": 16}, "odd": {"batch": 9, "per_class": 3}}
    runs = [(str(tmp_path / name), change) for name, change in (changes | refused).items()]
    assert torchrun(TRAIN, json.dumps([*runs, runs[0]]), tmp_path) == 0
    latents = made(seed=5).latents
    for name, change in changes.items():
        one = gradient.fit(made(), FEW.replace(**change), tmp_path / "one" / name, device="cpu")
        two = load_transform(str(tmp_path / name / gradient.WEIGHTS))
        np.testing.assert_allclose(two.apply(latents), one.apply(latents), atol=2e-5)
        for mine, theirs in zip(log(tmp_path / "one" / name), log(tmp_path / name), strict=True):
            for key in mine.keys() - {"seconds"}:
                assert theirs[key] == pytest.approx(mine[key], abs=2e-3), (name, key)
        ids = [row[0] for row in results(tmp_path / name)]
        assert ids == [two.transform_id] * 2
    for name, message in (("partial", "one process"), ("odd", "do not divide into 2")):
        assert all(row[0] == "GradientError" and message in row[1] for row in results(tmp_path / name))
    # The last call found its run finished, in both processes.
    assert [row[1] for row in results(tmp_path / "cosface")] == [0, 0]
    assert [row[1] for row in results(tmp_path / "attention")] == [FEW.steps, 0]

    parts = tmp_path / "parts"
    killed = json.dumps([(str(parts), {})])
    assert torchrun(TRAIN, killed, tmp_path, die_at=10) != 0
    assert not (parts / gradient.WEIGHTS).exists()
    assert torchrun(TRAIN, killed, tmp_path) == 0
    assert results(parts)[0] == [results(tmp_path / "cosface")[0][0], FEW.steps - 8]
