"""A training run whose state is on disk: interrupted and started again, it goes on where it was.

What is common to the small VAE and the small diffusion models; each adds its loss and its measures.
"""

from __future__ import annotations

import contextlib
import json
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from id2core.environment import best_dtype
from id2core.errors import TrainError

LOG = "log.jsonl"


def autocast() -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where the processor multiplies it in hardware, else plain float32."""
    best = best_dtype(torch.device("cpu"))
    return torch.autocast("cpu", torch.bfloat16, enabled=best == torch.bfloat16)


def warm_cosine(step: int, steps: int, warmup: int, peak: float) -> float:
    """Learning rate: linear warm-up to `peak`, then a cosine that reaches zero at `steps`."""
    warm = min(1.0, (step + 1) / warmup)
    return float(peak * warm * 0.5 * (1 + np.cos(np.pi * step / steps)))


class Loop(ABC):
    """Steps, logging and checkpoints; a subclass gives the loss of a step and what is measured.

    Attributes:
        recipe: dataclass with `steps`, `lr`, `weight_decay`, `warmup` where `rate` is not overridden, and
            all else that decides the outcome.
        out: directory of `checkpoint.pt`, `log.jsonl` and `recipe.json`.
        step: how many steps are done.
        seconds: that these steps took, over all processes; steps that a kill has lost are not in it.
        clip: longest gradient of all weights of the model together; None for any length.
        writes: whether this process writes files; where several train together, one does.
    """

    # Not compiled: torch 2.13's CPU inductor returns other gradients (cosine 0.94 to eager).

    clip: float | None = 1.0
    writes = True

    def __init__(self, recipe: Any, out: Path, model: nn.Module) -> None:
        self.recipe, self.out, self.model = recipe, out, model
        out.mkdir(parents=True, exist_ok=True)
        self.optimizers = self.build_optimizers()
        self.step = 0
        self.seconds = 0.0

    @abstractmethod
    def loss(self) -> Tensor:
        """The loss of step `self.step`: a pure function of the weights, the seed and the step."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """What the log tells besides the loss."""

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By their names in a checkpoint; every step moves all of them, at the same rate."""
        found = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.recipe.lr,
            betas=(0.9, 0.99),
            weight_decay=self.recipe.weight_decay,
        )
        return {"optimizer": found}

    def rate(self) -> float:
        """The learning rate of step `self.step`."""
        return warm_cosine(self.step, self.recipe.steps, self.recipe.warmup, self.recipe.lr)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """In what precision the loss is computed."""
        return autocast()

    def finished(self) -> bool:
        """Whether there is no step left to do."""
        return bool(self.step >= self.recipe.steps)

    def begin(self) -> None:  # noqa: B027 (a hook)
        """Called before the first step of a run that is not resumed."""

    def stepped(self) -> None:  # noqa: B027 (a hook)
        """Called after each step."""

    def state(self) -> dict[str, Any]:
        """Everything with a `state_dict` that a checkpoint holds."""
        return {"model": self.model} | self.optimizers

    @property
    def _checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def resume(self) -> bool:
        """Load the last checkpoint, if there is one; refuse one made with another recipe."""
        if not self._checkpoint.exists():
            return False
        # To the CPU: each part copies what it takes to where it computes, and Adam counts steps on the CPU.
        saved = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        if saved["recipe"] != json.dumps(asdict(self.recipe)):
            raise TrainError(f"{self._checkpoint} belongs to another recipe; choose another --out")
        for name, part in self.state().items():
            part.load_state_dict(saved[name])
        self.step, self.seconds = int(saved["step"]), float(saved.get("seconds", 0))
        return True

    def save(self) -> None:
        """Replace the checkpoint by the present state."""
        if not self.writes:
            return
        saved = {name: part.state_dict() for name, part in self.state().items()}
        partial = self._checkpoint.with_suffix(".partial")
        facts = {"recipe": json.dumps(asdict(self.recipe)), "step": self.step, "seconds": self.seconds}
        torch.save(saved | facts, partial)
        partial.replace(self._checkpoint)

    def _one_step(self) -> float:
        with self.autocast():
            loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        rate = self.rate()
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.stepped()
        return float(loss.detach())

    def _log(self, **values: float) -> None:
        row = {"step": self.step} | {k: round(float(v), 4) for k, v in values.items()}
        print(json.dumps(row), flush=True)
        self._append(row)

    def _append(self, row: dict[str, float]) -> None:
        with (self.out / LOG).open("a") as log:
            log.write(json.dumps(row) + "\n")

    def _prepare(self, resumed: bool) -> None:
        """Write the recipe; take from the log what was logged after the checkpoint and is done again."""
        if not self.writes:
            return
        (self.out / "recipe.json").write_text(json.dumps(asdict(self.recipe), indent=1))
        log = self.out / LOG
        if log.exists():
            lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
            kept = [line for line in lines if resumed and json.loads(line)["step"] <= self.step]
            log.write_text("".join(kept))

    def run(self, log_every: int = 250, checkpoint_every: int = 250) -> None:
        """Train until `finished`."""
        resumed = self.resume()
        self._prepare(resumed)
        if not resumed:
            self.begin()
            self._log(**self.measure())
        losses: list[float] = []
        while not self.finished():
            started = time.monotonic()
            losses.append(self._one_step())
            self.seconds += time.monotonic() - started
            if self.step == self.recipe.steps or self.step % log_every == 0:
                self._log(loss=float(np.mean(losses)), **self.measure(), seconds=self.seconds)
                losses.clear()
            if self.finished() or self.step % checkpoint_every == 0:
                self.save()
