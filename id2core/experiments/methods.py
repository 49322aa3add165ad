"""The transforms that experiments compare, each trained once per output folder and kept there.

- `raw`: latents as they are ("Embeddings of VAE").
- `recipe`: the paper's W: CosFace and all else of `GradientConfig`, as many passes over the data as there.
- `closed`: W in closed form. `both`: gradient descent that starts at it.
- `upper` (`recipe` trained on an unseen model itself): the paper's upper bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from id2core.experiments.evaluation_sets import EvaluationSet
from id2core.runs.progress import OnStage, silent
from id2core.training import closed_form, gradient
from id2core.training.config import GradientConfig
from id2core.training.pairs import Pairs
from id2core.transforms.files import load_transform
from id2core.transforms.linear import Transform

# 50,000 steps of 512 over 100,000 origins with 20 translations each (Sections 3 and 5.1).
PAPER_PASSES = 50_000 * 512 / 2_100_000
_SECONDS = "seconds"


def scaled(config: GradientConfig, pairs: Pairs, passes: float = PAPER_PASSES) -> GradientConfig:
    """Return the config with as many steps as make `passes` over the pairs, in the same number of epochs.

    Nothing stops it early: a random W may do better than one that has only begun to learn.
    """
    share = 1 - config.validation_share
    steps = passes * share * len(pairs.latents) / config.batch
    return config.replace(iterations=max(1, round(steps / config.epochs)), patience=None)


@dataclass(eq=False)
class Methods:
    """Trains what is asked for, or takes it from an earlier run.

    Attributes:
        data: what is trained and measured on.
        out: parent of `runs/`.
        passes: of a recipe over its data.
        progress: of training.
        also: a second encoder, for the experiment on two channels, as `load_encoder` takes it; None for none.
    """

    data: EvaluationSet
    out: Path
    passes: float = PAPER_PASSES
    progress: OnStage = silent
    also: str | None = None
    _pairs: dict[str, Pairs] = field(default_factory=dict)

    def pairs(self, model: str) -> Pairs:
        """Return the training classes of a model, opened once."""
        if model not in self._pairs:
            self._pairs[model] = self.data.pairs(model)
        return self._pairs[model]

    def raw(self) -> Transform:
        """Return the identity, which compares raw latents."""
        return Transform()

    def recipe(self, model: str, config: GradientConfig | None = None, name: str = "recipe") -> Transform:
        """Return the paper's W, or that of another config under another name."""
        return self._gradient(model, config or GradientConfig(), name, None)

    def both(self, model: str) -> Transform:
        """Return the W of gradient descent that starts at the closed form."""
        return self._gradient(model, GradientConfig(), "both", self.closed(model))

    def closed(self, model: str, m: int = 512) -> Transform:
        """Return the W with m columns in closed form (LDA with shrinkage)."""
        path = self._folder(model, f"closed-{m}") / gradient.WEIGHTS
        if not path.exists():
            started = time.monotonic()
            transform = closed_form.fit(self.pairs(model), m, progress=self.progress).transform
            self._keep(transform, path, started)
        return load_transform(str(path))

    def seconds(self, transform: Transform) -> float:
        """Return the seconds that the training of a W took; 0 for the identity."""
        seconds = transform.metadata.get(_SECONDS)
        return seconds if isinstance(seconds, float) else 0.0

    def _gradient(self, model: str, config: GradientConfig, name: str, start: Transform | None) -> Transform:
        folder = self._folder(model, name)
        path = folder / "kept.safetensors"
        if not path.exists():
            started = time.monotonic()
            pairs = self.pairs(model)
            transform = gradient.fit(
                pairs, scaled(config, pairs, self.passes), folder, start=start, progress=self.progress
            )
            self._keep(transform, path, started)
        return load_transform(str(path))

    def _folder(self, model: str, name: str) -> Path:
        folder = self.out / "runs" / f"{name}-{model}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @staticmethod
    def _keep(transform: Transform, path: Path, started: float) -> None:
        transform.metadata[_SECONDS] = round(time.monotonic() - started, 1)
        partial = path.with_suffix(".partial")
        transform.save(partial)
        partial.replace(path)
