"""Defaults that an operator sets once, as environment variables `ID2_…` or in a `.env` file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from id2core.encoders import images
from id2core.encoders.hub import MINI
from id2core.runs import planning
from id2core.transforms.linear import AUTO


class Settings(BaseSettings):
    """Typed settings; every one is also a command-line option where it matters."""

    model_config = SettingsConfigDict(env_prefix="ID2_", env_file=".env", extra="ignore")

    encoder: str = Field(MINI, description="short name, directory, TorchScript file or hub id")
    transform: str = Field(
        AUTO, description="file of W, `auto` for the encoder's own, or `none` for raw latents"
    )
    calibration: str = Field(
        AUTO, description="file of thresholds, `auto` for those of the bundled W, or `none`"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="of the encoder: auto, cpu, cuda, cuda:1"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="of the encoder")
    top_k: int = Field(10, ge=1, description="references kept per upload")
    part_size: int = Field(planning.PART_SIZE, ge=1, description="objects per part of an embed run")
    max_bytes: int = Field(images.DEFAULT_LIMITS.max_bytes, ge=1, description="largest file that is read")
    max_pixels: int = Field(images.DEFAULT_LIMITS.max_pixels, ge=1, description="largest picture decoded")
