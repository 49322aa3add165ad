"""The diffusion models of the paper and the paradigms of translation, by name; this module imports no torch.

A paradigm is a subclass of `translators.Translator` and a row of `PARADIGMS`; a model is a row of `TABLE`.
`find(name)` takes, in this order: a short name of `TABLE`; a local directory that diffusers saved a pipeline
in; a hub id `owner/name[@revision]`. The last two are run as SDEdit.

`mini-a` and `mini-b` are bundled with the package. **No row from the hub has ever run with its real weights
here** (sd2, sdxl, opendalle, colorfulxl, kandinsky3, sd3, kolors, instruct-pix2pix, ip-adapter, edict,
plug-and-play): each was tried with a small random pipeline of the same class.

Test strengths and the guidance of 7.5 are the paper's (Section 5.1). It names neither sizes nor numbers of
steps: sizes are the models' native ones, steps the defaults of the diffusers pipelines, which it used. Of the
paradigms of Table 11 it names no setting at all: theirs are their authors'.

Each hub id is a default, pinned to a commit that public references name; the hub itself was out of reach. Of
the mirror of sd2, which its owner withdrew, no commit was found: its newest is taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

from id2core.encoders.hub import HUB
from id2core.errors import TranslatorError
from id2core.translation.spec import DiffusionModel

# Paradigm → module below `id2core.translation` and class.
PARADIGMS: dict[str, tuple[str, str]] = {
    "sdedit": ("translators", "SDEdit"),
    "instruct-pix2pix": ("translators", "InstructPix2Pix"),
    "ip-adapter": ("ip_adapter", "IPAdapter"),
    "edict": ("edict", "Edict"),
    "plug-and-play": ("plug_and_play", "PlugAndPlay"),
}
BUNDLED = "id2core/data/"
# Of a model that is not in the table: within the range of the paper's.
DEFAULT_STRENGTH = 0.8


class Weights(TypedDict):
    """Where weights come from: the fields of that name of a `DiffusionModel`."""

    source: str
    revision: str | None


class Overrides(TypedDict):
    """Settings of a model that replace those of its row; None keeps the row's."""

    source: str | None
    revision: str | None
    strength: float | None
    guidance: float | None
    steps: int | None
    size: int | None


def _weights_of(encoder: str) -> Weights:
    """Return repository and revision of the pipeline whose VAE is the encoder of that name."""
    source, _, revision = HUB[encoder]
    return {"source": source, "revision": revision}


_SD14: Weights = {
    "source": "CompVis/stable-diffusion-v1-4",
    "revision": "133a221b8aa7292a167afc5127cb63fb5005638b",
}
_SD15: Weights = {
    "source": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "revision": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
}

_ROWS = [
    DiffusionModel(name="sd2", **_weights_of("sd2"), strength=0.9, size=768),
    DiffusionModel(name="sdxl", **_weights_of("sdxl"), strength=0.8, size=1024),
    DiffusionModel(
        name="opendalle",
        source="dataautogpt3/OpenDalleV1.1",
        revision="1eb58f2ea57a53942c13d0eecabbcd0c496fc850",
        strength=0.7,
        size=1024,
    ),
    DiffusionModel(
        name="colorfulxl",
        source="recoilme/ColorfulXL-Lightning",
        revision="e4eae1bec26178dc06bca15530d8b69f7e13e853",
        strength=0.7,
        size=1024,
    ),
    DiffusionModel(
        name="kandinsky3",
        source="kandinsky-community/kandinsky-3",
        revision="bf79e6c219da8a94abb50235fdc4567eb8fb4632",
        strength=0.6,
        steps=25,
        size=1024,
        variant="fp16",
    ),
    DiffusionModel(name="sd3", **_weights_of("sd3"), strength=0.8, size=1024),
    DiffusionModel(
        name="kolors",
        source="Kwai-Kolors/Kolors-diffusers",
        revision="7e091c75199e910a26cd1b51ed52c28de5db3711",
        strength=0.7,
        size=1024,
        variant="fp16",
    ),
    DiffusionModel(name="mini-a", source=BUNDLED + "mini-a", strength=0.9, steps=30, size=256),
    DiffusionModel(name="mini-b", source=BUNDLED + "mini-b", strength=0.9, steps=30, size=256),
    DiffusionModel(
        name="instruct-pix2pix",
        source="timbrooks/instruct-pix2pix",
        revision="31519b5cb02a7fd89b906d88731cd4d6a7bbf88d",
        steps=100,
        paradigm="instruct-pix2pix",
    ),
    DiffusionModel(
        name="ip-adapter",
        **_SD15,
        paradigm="ip-adapter",
        adapter="h94/IP-Adapter@018e402774aeeddd60609b4ecdb7e298259dc729",
    ),
    DiffusionModel(name="edict", **_SD14, strength=0.8, guidance=3, paradigm="edict"),
    DiffusionModel(name="plug-and-play", **_SD14, paradigm="plug-and-play"),
]
TABLE: dict[str, DiffusionModel] = {row.name: row for row in _ROWS}


def find(
    name: str,
    *,
    source: str | Path | None = None,
    revision: str | None = None,
    strength: float | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    size: int | None = None,
) -> DiffusionModel:
    """Find a model by short name, directory or hub id, and replace some of its settings.

    Args:
        name: see the module's docstring.
        source: a directory or `owner/name[@revision]` to load the named recipe from; for `ip-adapter`, a
            directory may bring `models/` along, laid out as in `h94/IP-Adapter`.
        revision: commit, branch or tag of the hub. Another source forgets the table's.
        strength, guidance, steps, size: see `DiffusionModel`.

    Raises:
        TranslatorError: no such model, or a value that makes no sense for it.
    """
    model = TABLE.get(name) or _unlisted(name)
    if source is not None:
        model = model.replace(**parse_source(str(source)))
    given = {"revision": revision, "strength": strength, "guidance": guidance, "steps": steps, "size": size}
    if strength is not None and model.strength is None:
        raise TranslatorError(f"{model.name} has no strength ({model.paradigm}); leave it out")
    if revision is not None and not is_on_hub(model):
        raise TranslatorError(f"{model.source} is a directory: it has no revision; leave it out")
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    try:
        return model.replace(**changes)
    except TranslatorError as error:
        raise TranslatorError(f"{model.name}: {error}") from error


def _unlisted(name: str) -> DiffusionModel:
    place = parse_source(name)
    short = Path(place["source"]).resolve().name if Path(name).is_dir() else place["source"].split("/")[1]
    return DiffusionModel(name=short, strength=DEFAULT_STRENGTH, **place)


def parse_source(source: str) -> Weights:
    """Return a directory or hub id as fields of a model.

    Raises:
        TranslatorError: it is neither.
    """
    if Path(source).is_dir():
        return {"source": source, "revision": None}
    hub_id, _, revision = source.partition("@")
    if hub_id.count("/") != 1 or not all(hub_id.split("/")):
        raise TranslatorError(
            f"no diffusion model {source!r}: not a short name ({', '.join(TABLE)}), not a local directory, "
            "not a hub id (owner/name or owner/name@revision)"
        )
    return {"source": hub_id, "revision": revision or None}


def is_on_hub(model: DiffusionModel) -> bool:
    """Return whether a model's weights come from the hub."""
    return not (model.source.startswith(BUNDLED) or Path(model.source).is_dir())
