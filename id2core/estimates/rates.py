"""Unit rates: what one unit of each kind of work costs, and on which machine that was measured.

All rates are in one file, `id2core/data/rates.json`. `python -m benchmarks.rates` measures those of a CPU
anew. A rate that the file lacks was never measured. It is NaN, and so is whatever is computed from it.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Final

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from id2core.errors import OptionError

CPU: Final = "cpu"
FILE: Final = "rates.json"
# Pictures, latents and descriptors that the rates were measured with; estimates scale from there.
MEGAPIXELS: Final = 0.2  # 512×384
LATENT_SIZE: Final = 4096
DESCRIPTOR_SIZE: Final = 512
W_NUMBERS: Final = LATENT_SIZE * DESCRIPTOR_SIZE
# Encoder → numbers of its latents, and of its descriptors by the W that ships with it, or by none.
SIZES: Final = {"mini": (4096, 480), "pdq": (256, 256)}
# Encoders whose latents are compared as they are.
WITHOUT_W: Final = frozenset({"pdq"})
CLASSES: Final = 100_000

# Rate → what it is. "vCPU-s" is a second of one core of a worker: wall time times the worker's cores. "s" is
# a second of a step that one process does alone. "GPU-s" is a second of the card. A "number" is one of a
# vector.
MEANINGS: Final = {
    "embed_image.*": "vCPU-s per 512×384 JPEG, by encoder: read, decode, encode, apply W, write",
    "decode_image": "vCPU-s per image: decode a 512×384 JPEG",
    "decode_megapixel": "vCPU-s per further megapixel of an image",
    "embed_look": "vCPU-s per image, with views: look for pictures inside of it",
    "embed_rows": "vCPU-s per latent of 4,096 numbers, with views: make rows of crops, and detail",
    "plan_object": "s per object: list a local folder, plan, commit",
    "embed_start": "s per job: everything that does not depend on the number of images",
    "search_load_byte": "vCPU-s per byte of descriptors: read references from Parquet, build a shard",
    "search_block_row": "vCPU-s per upload and shard: read the descriptor, score the best exactly",
    "search_number": "vCPU-s per number of an upload that meets a reference: the product",
    "search_load_view_byte": "vCPU-s per byte of crops and detail: read them, prepare rows",
    "search_look": "vCPU-s per look and shard: read a latent of 4,096 numbers, apply 3 W of 512 columns",
    "search_viewed_row": "vCPU-s per look and shard: score the best under all views exactly",
    "search_viewed_number": "vCPU-s per number of a look that meets rows of a reference, under all views",
    "search_candidate": "vCPU-s per candidate: write, read, merge",
    "search_match": "vCPU-s per stored pair: make the row, write, sort",
    "search_plan_row": "s per reference: find out what is left to search",
    "search_plan_meet": "s per reference file and upload file that meet: make tasks",
    "search_start": "s per job: everything else",
    "index_rotation.*": "vCPU-s per number of a sampled descriptor, by rotation: learn it, and rotate",
    "index_center": "vCPU-s per number of a sampled descriptor and list: find the centers of the lists",
    "index_codebook.*": "vCPU-s per number of a sampled descriptor, by code: find the numbers of the codes",
    "index_encode_row.*": "vCPU-s per reference, by code: read its descriptor, encode it, write the code",
    "index_encode_number": "vCPU-s per number of a reference that meets the center of a list",
    "index_candidate": "vCPU-s per candidate that the measurement of the recall scores",
    "index_start": "s per job: everything else",
    "index_load_byte.*": "vCPU-s per byte of codes, by code: read them, build a shard",
    "search_list.*": "vCPU-s per upload and list that it is compared with, by code",
    "search_code_byte.*": "vCPU-s per byte of a code that an upload is compared with, by code",
    "search_coded_candidate.*": "vCPU-s per candidate, by code: keep it, share out by files, score it",
    "search_reread_byte": "vCPU-s per byte of descriptors that are read again to score candidates",
    "search_coded_row": "vCPU-s per upload and shard of codes: read the descriptor, score the best exactly",
    "search_coded_look": "vCPU-s per candidate of a look in a shard of codes: name its view, keep the best",
    "reproject_row": "vCPU-s per row: read a latent of 4,096 numbers, apply a W of 512 columns, write",
    "reproject_start": "s per job: everything that does not depend on the number of rows",
    "train_step": "vCPU-s per step of gradient descent: 512 latents, 4,096 → 512, 100,000 classes",
    "latent_number_bytes": "stored bytes per number of a latent (float16)",
    "descriptor_number_bytes": "stored bytes per number of a descriptor (float32)",
    "embedding_row_bytes": "stored bytes per row of embeddings/ beside the vectors",
    "embedding_view_bytes": "stored bytes per byte of crops and detail",
    "index_code_bytes": "stored bytes per byte of a code and the number of its list",
    "match_row_bytes": "stored bytes per row of matches/",
    "candidate_row_bytes": "stored bytes per staged candidate",
    "view_bytes": "stored bytes per row of matches/, or staged candidate, for its view and detail",
}
ON_A_CARD: Final = {
    "embed_image.*": "GPU-s per image, by encoder: the embedding stream, fed by enough cores",
    "search_number": "GPU-s per number of an upload that meets a reference, 1,024 uploads at once",
    "search_viewed_number": "GPU-s per number of a look that meets rows of a reference, under all views",
    "train_step": "GPU-s per step of gradient descent: 512 latents, 4,096 → 512, 100,000 classes",
}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(_Model):
    """The machine that some rates were measured on.

    Attributes:
        name: of the processor or card.
        vcpus: cores of the machine.
        gpu_bytes: memory of the card; None without one.
        measured: the day.
        versions: package → version.
        note: what else a reader of the rates must know.
    """

    name: str
    vcpus: PositiveInt
    gpu_bytes: PositiveFloat | None = None
    measured: str
    versions: dict[str, str]
    note: str = ""


class Measured(_Model):
    """Rates of one machine, by name."""

    machine: Machine
    rates: dict[str, NonNegativeFloat]

    @model_validator(mode="after")
    def _check_names(self) -> Measured:
        known = {name.removesuffix("*") for name in MEANINGS}
        for name in self.rates:
            if name not in known and name.partition(".")[0] + "." not in known:
                raise ValueError(f"there is no rate {name}")
        return self


class RateFile(_Model):
    """All rates: those of a CPU by the name `cpu`, those of a card by its name, such as `h100`."""

    devices: dict[str, Measured]

    @classmethod
    def load(cls, path: str | None = None) -> RateFile:
        """Read the bundled rates, or those of another file.

        Raises:
            OptionError: the file is missing, or does not hold rates.
        """
        where = Path(path) if path else resources.files("id2core") / "data" / FILE
        try:
            rates = cls.model_validate_json(where.read_bytes())
        except OSError as error:
            raise OptionError(f"rates is {path!r}: no such file. Write one with benchmarks.rates") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise OptionError(f"rates is {path!r}: {place}: {first['msg']}") from error
        if CPU not in rates.devices:
            raise OptionError(f"rates is {path!r}: it has no rates of a {CPU}")
        return rates

    @property
    def cpu(self) -> Machine:
        """Return the machine of the CPU's rates."""
        return self.devices[CPU].machine

    @property
    def cards(self) -> list[str]:
        """Return the names of the cards that were measured."""
        return sorted(set(self.devices) - {CPU})


class Lookup:
    """Gives rates, and keeps the names of those that were asked for and never measured."""

    def __init__(self, file: RateFile) -> None:
        self.file = file
        self.missing: list[str] = []

    def __call__(self, name: str, device: str = CPU) -> float:
        """Return a rate; NaN if it was never measured."""
        held = self.file.devices.get(device)
        rate = held.rates.get(name, math.nan) if held else math.nan
        if math.isnan(rate) and f"{device}: {name}" not in self.missing:
            self.missing.append(f"{device}: {name}")
        return rate
