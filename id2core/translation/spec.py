"""What a diffusion model is asked for, apart from how it is loaded and run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DiffusionModel:
    """A recipe of translation.

    Attributes:
        name: short, for lineage.
        source: hub id, local directory, or a directory bundled with the package (`id2core/data/…`).
        revision: the hub's commit, branch or tag; none means its newest.
        strength: share of the noise that is added (SDEdit) or of the way that is inverted (EDICT), above 0
            to 1; none where the paradigm has none.
        guidance: classifier-free guidance scale.
        steps: of denoising, before the strength takes its share.
        size: side in pixels of the square that is fed to the model.
        paradigm: a key of `PARADIGMS`.
        variant: `fp16` where the hub has no other weights.
        adapter: `owner/name@revision` or directory of IP-Adapter weights.
    """

    name: str
    source: str
    revision: str | None
    strength: float | None
    guidance: float = 7.5
    steps: int = 50
    size: int = 512
    paradigm: str = "sdedit"
    variant: str | None = None
    adapter: str | None = None
