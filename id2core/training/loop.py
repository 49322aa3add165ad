"""A training loop with checkpoints: a run that was interrupted resumes where it was.

W, backbones, and the factory's VAE and diffusion models share it; each adds its loss and its measures.
"""

from __future__ import annotations

import contextlib
import json
import time
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from id2core.environment import best_dtype
from id2core.errors import TrainError
from id2core.store import strict_json

LOG = "log.jsonl"


class LoopConfig(Protocol):
    """What a loop reads of its config; all fields of the config decide the outcome."""

    @property
    def steps(self) -> int:
        """Return the number of steps of the whole run."""

    @property
    def lr(self) -> float:
        """Return the peak learning rate."""

    @property
    def warmup(self) -> float:
        """Return the number of steps until the peak, where the loop does not override `rate`."""

    @property
    def weight_decay(self) -> float:
        """Return the decoupled weight decay."""

    def model_dump(self) -> dict[str, Any]:
        """Return all fields, JSON-able."""


class Stateful(Protocol):
    """A part of a run that a checkpoint holds."""

    def state_dict(self) -> Any:
        """Return what the checkpoint keeps."""

    def load_state_dict(self, saved: Any, /) -> Any:
        """Restore what the checkpoint kept."""


C = TypeVar("C", bound=LoopConfig)


def autocast() -> contextlib.AbstractContextManager[Any]:
    """Return a context in bfloat16 where the processor multiplies it in hardware, else in float32."""
    best = best_dtype(torch.device("cpu"))
    return torch.autocast("cpu", torch.bfloat16, enabled=best == torch.bfloat16)


def warm_cosine(step: int, steps: int, warmup: float, peak: float) -> float:
    """Return the learning rate: a linear warm-up to `peak`, times a cosine that reaches zero at `steps`."""
    warm = min(1.0, (step + 1) / warmup)
    return float(peak * warm * 0.5 * (1 + np.cos(np.pi * step / steps)))


def _step_of(line: str) -> float:
    """Return the step of a line of the log; infinity for a damaged one."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError):
        return float("inf")


class Loop(ABC, Generic[C]):
    """Steps, logging and checkpoints; a subclass gives the loss of a step and what is measured.

    Attributes:
        config: everything that decides the outcome.
        out: directory of `checkpoint.pt`, `log.jsonl` and `recipe.json`.
        step: steps done.
        seconds: time of these steps over all resumed runs, without steps that a kill has lost.
        clip: largest norm of the gradient of all weights together; None for no limit.
        writes: whether this process writes files; of several that train together, one does.
    """

    # Not compiled: torch 2.13's CPU inductor returns other gradients (cosine 0.94 to eager).

    clip: float | None = 1.0
    writes = True

    def __init__(self, config: C, out: Path, model: nn.Module) -> None:
        self.config, self.out, self.model = config, out, model
        out.mkdir(parents=True, exist_ok=True)
        self.optimizers = self.build_optimizers()
        self.step = 0
        self.seconds = 0.0

    @abstractmethod
    def loss(self) -> Tensor:
        """Return the loss of step `self.step`: a pure function of the weights, the seed and the step."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Return the log's columns besides the loss, such as a validation score."""

    def build_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Build the optimizers, by their names in a checkpoint; all of them take every step, at one rate."""
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.config.lr,
            betas=(0.9, 0.99),
            weight_decay=self.config.weight_decay,
        )
        return {"optimizer": optimizer}

    def rate(self) -> float:
        """Return the learning rate of step `self.step`."""
        return warm_cosine(self.step, self.config.steps, self.config.warmup, self.config.lr)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context with the precision of the loss."""
        return autocast()

    def finished(self) -> bool:
        """Return whether no step is left."""
        return bool(self.step >= self.config.steps)

    def begin(self) -> None:
        """Prepare the first step of a run that is not resumed; a hook."""

    def stepped(self) -> None:
        """Run after each step; a hook for subclasses."""

    def state(self) -> dict[str, Stateful]:
        """Return everything with a `state_dict` that a checkpoint holds."""
        return {"model": self.model, **self.optimizers}

    @property
    def _checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def resume(self) -> bool:
        """Load the last checkpoint, and return whether there was one.

        Raises:
            TrainError: it was made with another config, or is damaged.
        """
        if not self._checkpoint.exists():
            return False
        saved = self._load_checkpoint()
        if strict_json.parse(saved["recipe"]) != json.loads(json.dumps(self.config.model_dump())):
            raise TrainError(f"{self._checkpoint} belongs to another recipe; choose another --out")
        for name, part in self.state().items():
            part.load_state_dict(saved[name])
        self.step, self.seconds = int(saved["step"]), float(saved.get("seconds", 0))
        return True

    def _load_checkpoint(self) -> dict[str, Any]:
        """Read the checkpoint; its archive has checksums, which torch does not look at."""
        try:
            with zipfile.ZipFile(self._checkpoint) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} does not fit its checksum")
            # To the CPU: each part copies what it takes to where it computes; Adam counts steps on the CPU.
            saved: dict[str, Any] = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            return saved
        except (
            ValueError,
            RuntimeError,
            EOFError,
            LookupError,
            zipfile.BadZipFile,
            UnpicklingError,
        ) as error:
            raise TrainError(
                f"{self._checkpoint} is damaged: {error}; delete it to begin anew, or restore it"
            ) from error

    def save(self) -> None:
        """Write the current state over the checkpoint."""
        if not self.writes:
            return
        saved = {name: part.state_dict() for name, part in self.state().items()}
        partial = self._checkpoint.with_suffix(".partial")
        facts = {"recipe": json.dumps(self.config.model_dump()), "step": self.step, "seconds": self.seconds}
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
        """Write the config, and cut from the log the steps after the checkpoint, which are repeated."""
        if not self.writes:
            return
        (self.out / "recipe.json").write_text(json.dumps(self.config.model_dump(), indent=1))
        log = self.out / LOG
        if log.exists():
            lines = [
                line
                for line in log.read_text(errors="replace").splitlines(keepends=True)
                if line.endswith("\n")
            ]
            kept = [line for line in lines if resumed and _step_of(line) <= self.step]
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
            if self.step == self.config.steps or self.step % log_every == 0:
                self._log(loss=float(np.mean(losses)), **self.measure(), seconds=self.seconds)
                losses.clear()
            if self.finished() or self.step % checkpoint_every == 0:
                self.save()
