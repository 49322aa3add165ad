"""Options of a translation run; this module imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from id2core.options import Options

Format = Literal["jpeg", "png"]


class TranslationConfig(Options):
    """Options that decide the translations, besides origins, model and prompts."""

    per_image: int = Field(
        default=1,
        ge=1,
        description="Translations of each original. Where it has fewer prompts, they are used again in turn.",
    )
    seed: int = Field(default=0, description="Random seed. Each translation derives its own seed from it.")
    format: Format = Field(default="jpeg", description="File format: jpeg (quality 95) or png.")
