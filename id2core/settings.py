"""Settings: options that an operator sets once, as environment variables `ID2_…` or in a file of them.

The file is the one that `ID2_ENV_FILE` names, and no other: a `.env` that lies in the working directory, as
in a folder that somebody sent, must not choose weights or servers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from id2core import defaults
from id2core.errors import OptionError

# Names the file of further variables.
ENV_FILE: Final = "ID2_ENV_FILE"


class EnvironmentSettings(BaseSettings):
    """Settings from environment variables, and from the file that `ID2_ENV_FILE` names."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the strongest first.

        Raises:
            OptionError: the file that is named is none.
        """
        file = os.environ.get(ENV_FILE)
        if file and not Path(file).is_file():
            raise OptionError(f"{ENV_FILE} is {file!r}: no such file")
        return init_settings, env_settings, DotEnvSettingsSource(settings_cls, env_file=file or None)


class Settings(EnvironmentSettings):
    """Options that have an environment variable. A flag, parameter or argument overrides it."""

    model_config = SettingsConfigDict(env_prefix="ID2_", extra="ignore")

    encoder: str = Field(
        defaults.ENCODER,
        description="Image encoder. Bundled: mini. From the model hub: sd2, sdxl, sd3. Or a directory "
        "that diffusers or transformers saved, an ONNX or TorchScript file, or a hub id "
        "owner/name[:subfolder][@revision].",
        examples=["sd2"],
    )
    transform: str = Field(
        defaults.AUTO,
        description="W: a .safetensors file, the authors' checkpoint, none (raw latents), or auto (the "
        "bundled W of the encoder, else raw latents). References and uploads need the same W.",
        examples=["w/W.safetensors"],
    )
    views: Literal["auto", "none"] = Field(
        "auto",
        description="Under which views uploads meet references: auto (all that the encoder, W, calibration, "
        "and index allow: mirrored, turned by a quarter, cropped, inside a frame, with the frame blanked "
        "out, each half of a collage, the parent in a manifest) or none (whole pictures only, as in the "
        "paper). A calibration or an --out of whole uploads turns the other views off. Pictures that were "
        "embedded with none cannot be compared under them before id2 reproject.",
        examples=["none"],
    )
    calibration: str = Field(
        defaults.AUTO,
        description="Thresholds for verdicts at a stated false-positive rate: a file that id2 calibrate "
        "wrote, none (scores only), or auto (those of the bundled W). A calibration fits one encoder, "
        "one W, and one set of views.",
        examples=["w/calibration.json"],
    )
    index: str = Field(
        defaults.INDEX,
        description="Index of the search: flat (exact), or the FAISS string of a compressed index, see "
        "id2 index.",
        examples=["RR448,IVF2048,RaBitQ"],
    )
    index_recall: float = Field(
        defaults.INDEX_RECALL,
        gt=0,
        le=1,
        description="Share of the 10 best references of an exact search that a compressed index must find. "
        "It is measured with references and noise. Uploads may find 2 points less: give 0.97 for 0.95.",
        examples=[0.97],
    )
    top_k: int = Field(defaults.TOP_K, ge=1, description="References kept per upload.", examples=[10])
    keep: Literal["floor", "all"] = Field(
        "floor",
        description="Pairs to store: floor (those whose score is at least the review threshold minus "
        "floor_margin, or all pairs without a calibration) or all. A scan with a truth file stores all.",
    )
    floor_margin: float = Field(
        defaults.FLOOR_MARGIN,
        ge=0,
        description="How far below the review threshold pairs are stored. A later calibration can judge what "
        "is stored.",
        examples=[0.1],
    )
    device: str = Field(
        defaults.AUTO,
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        description="Device of models: auto (a GPU where there is one), cpu, cuda, or cuda:1.",
        examples=["cuda"],
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the encoder. auto picks the fastest for the device."
    )
    compile: Literal["auto", "off", "on", "tuned"] = Field(
        "auto",
        description="Whether an autoencoder on a GPU is compiled. on takes each worker 10 to 20 seconds, and "
        "made SD2's VAE 1.8 times as fast. tuned takes a minute and a half, and gains a little more. auto "
        "compiles runs of 100,000 pictures or more. Without a C compiler, nothing is compiled.",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="Pictures that the encoder takes at once, by default 64 on a GPU and 16 on a CPU. Lower "
        "it if GPU memory runs out.",
        examples=[32],
    )
    part_size: int = Field(
        defaults.PART_SIZE,
        ge=1,
        description="Images per part. A worker makes one part at a time.",
        examples=[1024],
    )
    record_seconds: float = Field(
        defaults.RECORD_SECONDS,
        gt=0,
        description="Seconds after which a worker records its finished work on a part or a search. After a "
        "kill, each worker repeats at most this much, and one batch of the encoder.",
    )
    shard_memory: int = Field(
        defaults.SHARD_MEMORY,
        ge=1,
        description="Memory for the references that a worker process searches at once, in MiB. The process "
        "needs half as much again. So does a GPU, of its own memory, and up to 6 GiB for scores.",
        examples=[8192],
    )
    allow_shrink: bool = Field(
        False,
        description="Continue even if a corpus of 100 pictures or more loses over 10% of its rows. Without "
        "it, such a run fails and changes nothing, because a disk may be missing.",
    )
    max_bytes: int = Field(
        defaults.MAX_BYTES,
        ge=1,
        description="Largest file that is read, in bytes. Larger files are rejected.",
    )
    max_pixels: int = Field(
        defaults.MAX_PIXELS,
        ge=1,
        description="Largest picture that is decoded, in pixels. Larger pictures are rejected.",
    )
    max_memory: int = Field(
        defaults.MAX_MEMORY,
        ge=160,
        description="Memory that decoding a file of up to 1 MiB may take, in MiB. Each further MiB of the "
        "file adds 256, up to 2,048. Pictures that need more are rejected.",
    )
    max_seconds: float = Field(
        defaults.MAX_SECONDS,
        gt=0,
        description="Processor time that decoding a file of up to 1 MiB may take, in seconds. Each further "
        "MiB of the file adds 1, up to 60. Pictures that need more are rejected.",
    )
    credentials: Literal["auto", "none"] = Field(
        "auto",
        description="Content Credentials of pictures: auto (read them where the extra `c2pa` is installed) "
        "or none (read no manifest: the columns stay null, and no parent is a view).",
        examples=["none"],
    )
    c2pa_trust_list: str | None = Field(
        None,
        description="URI of a PEM file of certificate authorities. A signer of Content Credentials whose "
        "certificate leads to one of them is `trusted`, any other `untrusted`. Needs the extra `c2pa`.",
    )
    late_days: int = Field(
        defaults.LATE_DAYS,
        ge=0,
        le=366,
        description="Days before the night that a run also reads in a dated source, because objects may come "
        "late.",
    )
    retention_days: float | None = Field(
        None,
        gt=0,
        le=defaults.MOST_DAYS,
        description="Days after which rows of a source in mode append expire. "
        "Expired images are not embedded again.",
        examples=[90],
    )
    time_zone: str = Field(
        defaults.TIME_ZONE,
        description="Time zone of the dates in dated sources.",
        examples=["Europe/Berlin"],
    )
    allowed_places: list[str] = Field(
        [],
        description="Folders and gs:// prefixes that a list of URIs may name besides its own. "
        "As an environment variable, a JSON list.",
        examples=['["gs://uploads/public"]'],
    )
    leftover_hours: float = Field(
        defaults.LEFTOVER_HOURS,
        ge=0,
        le=24 * 30,
        description="Hours until a later run removes what a killed run or a superseded commit left below its "
        "--out. Set it above the time that one part or one reader takes.",
    )

    @property
    def shard_bytes(self) -> int:
        """Bytes of references that a worker process searches at once."""
        return self.shard_memory << 20


def load(**overrides: Any) -> Settings:
    """Return the settings, with those overridden that are not None.

    Raises:
        OptionError: a value is out of bounds, given or in the environment.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = name if name in given else f"ID2_{name.upper()}"
        raise OptionError(f"{where} is {first['input']!r}: {first['msg']}") from error
