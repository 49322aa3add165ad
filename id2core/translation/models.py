"""The diffusion models of the paper, and how any other is loaded as a translator.

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

import dataclasses
import hashlib
import importlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from id2core.encoders.hub import HUB, MOVED
from id2core.environment import best_device, best_dtype, quiet
from id2core.errors import TranslatorError
from id2core.translation.edict import Edict
from id2core.translation.plug_and_play import PlugAndPlay
from id2core.translation.spec import DiffusionModel
from id2core.translation.translators import InstructPix2Pix, IPAdapter, SDEdit, Translator, settle

PARADIGMS: dict[str, type[Translator]] = {
    "sdedit": SDEdit,
    "instruct-pix2pix": InstructPix2Pix,
    "ip-adapter": IPAdapter,
    "edict": Edict,
    "plug-and-play": PlugAndPlay,
}
HASHED = {".safetensors", ".json", ".txt", ".model"}
BUNDLED = "id2core/data/"
# In an adapter's repository, or in the directory of a pipeline that brings its adapter along.
ADAPTER_WEIGHTS = "models/ip-adapter_sd15.safetensors"
IMAGE_ENCODER = "models/image_encoder"
# Of a model that is not in the table: within the range of the paper's.
DEFAULT_STRENGTH = 0.8


def _place_of(name: str) -> tuple[str, str | None]:
    """Repository and revision of the pipeline whose VAE is the encoder of that name."""
    source, _, revision = HUB[name]
    return source, revision


_SD14 = ("CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b")
_SD15 = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14")

_ROWS = [
    DiffusionModel("sd2", *_place_of("sd2"), strength=0.9, size=768),
    DiffusionModel("sdxl", *_place_of("sdxl"), strength=0.8, size=1024),
    DiffusionModel(
        "opendalle",
        "dataautogpt3/OpenDalleV1.1",
        "1eb58f2ea57a53942c13d0eecabbcd0c496fc850",
        strength=0.7,
        size=1024,
    ),
    DiffusionModel(
        "colorfulxl",
        "recoilme/ColorfulXL-Lightning",
        "e4eae1bec26178dc06bca15530d8b69f7e13e853",
        strength=0.7,
        size=1024,
    ),
    DiffusionModel(
        "kandinsky3",
        "kandinsky-community/kandinsky-3",
        "bf79e6c219da8a94abb50235fdc4567eb8fb4632",
        strength=0.6,
        steps=25,
        size=1024,
        variant="fp16",
    ),
    DiffusionModel("sd3", *_place_of("sd3"), strength=0.8, size=1024),
    DiffusionModel(
        "kolors",
        "Kwai-Kolors/Kolors-diffusers",
        "7e091c75199e910a26cd1b51ed52c28de5db3711",
        strength=0.7,
        size=1024,
        variant="fp16",
    ),
    DiffusionModel("mini-a", BUNDLED + "mini-a", None, strength=0.9, steps=30, size=256),
    DiffusionModel("mini-b", BUNDLED + "mini-b", None, strength=0.9, steps=30, size=256),
    DiffusionModel(
        "instruct-pix2pix",
        "timbrooks/instruct-pix2pix",
        "31519b5cb02a7fd89b906d88731cd4d6a7bbf88d",
        strength=None,
        steps=100,
        paradigm="instruct-pix2pix",
    ),
    DiffusionModel(
        "ip-adapter",
        *_SD15,
        strength=None,
        paradigm="ip-adapter",
        adapter="h94/IP-Adapter@018e402774aeeddd60609b4ecdb7e298259dc729",
    ),
    DiffusionModel("edict", *_SD14, strength=0.8, guidance=3, paradigm="edict"),
    DiffusionModel("plug-and-play", *_SD14, strength=None, paradigm="plug-and-play"),
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
    """A model by short name, directory or hub id, with parts of its recipe replaced.

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
        model = dataclasses.replace(model, **_place(str(source)))
    given = {"revision": revision, "strength": strength, "guidance": guidance, "steps": steps, "size": size}
    if strength is not None and model.strength is None:
        raise TranslatorError(f"{model.name} has no strength ({model.paradigm}); leave it out")
    if revision is not None and not _on_hub(model):
        raise TranslatorError(f"{model.source} is a directory: it has no revision; leave it out")
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    model = dataclasses.replace(model, **changes)
    _check(model)
    return model


def load(model: DiffusionModel, device: str = "auto", dtype: str = "auto") -> Translator:
    """Load a model's weights and make its translator.

    Only safetensors are read, and no code from the hub is run. The safety checker is left out: it would
    replace pictures by black ones, silently.

    Args:
        model: from `find`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` (see `encoders.best_dtype`), `float32`, `bfloat16` or `float16`.

    Raises:
        TranslatorError: it cannot be loaded; the message says what to do.
    """
    where = torch.device(best_device() if device == "auto" else device)
    precision = best_dtype(where) if dtype == "auto" else getattr(torch, dtype)
    kind = PARADIGMS[model.paradigm]
    try:
        with quiet():
            folder, revision = locate(model)
            _check_class(kind, model, folder)
            _check_tokenizers(model, folder)
            pipeline = _pipeline(kind.loader, folder, _variant(model, folder), precision)
            if kind is IPAdapter:
                revision += _add_adapter(pipeline, model, folder)
            return kind(model, settle(pipeline, where), revision)
    except TranslatorError:
        raise
    except Exception as error:  # the hub and the libraries below raise whatever their parts do
        raise _failure(model, error) from error


def _unlisted(name: str) -> DiffusionModel:
    place = _place(name)
    short = Path(place["source"]).resolve().name if Path(name).is_dir() else place["source"].split("/")[1]
    return DiffusionModel(short, place["source"], place["revision"], DEFAULT_STRENGTH)


def _place(source: str) -> dict[str, Any]:
    """A directory or hub id as fields of a model."""
    if Path(source).is_dir():
        return {"source": source, "revision": None}
    hub_id, _, revision = source.partition("@")
    if hub_id.count("/") != 1 or not all(hub_id.split("/")):
        raise TranslatorError(
            f"no diffusion model {source!r}: not a short name ({', '.join(TABLE)}), not a local directory, "
            "not a hub id (owner/name or owner/name@revision)"
        )
    return {"source": hub_id, "revision": revision or None}


def _on_hub(model: DiffusionModel) -> bool:
    return not (model.source.startswith(BUNDLED) or Path(model.source).is_dir())


def _check(model: DiffusionModel) -> None:
    """Refuse what would only fail, or quietly do nothing, after the weights are loaded."""
    strength, steps = model.strength, model.steps
    faults = {
        f"steps is {steps}; choose 1 or more": steps < 1,
        f"size is {model.size} px; choose a multiple of 8": model.size < 8 or model.size % 8 != 0,
        f"guidance is {model.guidance}; choose 1 (none) or more": not model.guidance >= 1,
    }
    if strength is not None:
        possible = 0 < strength <= 1
        faults[f"strength is {strength}; choose above 0, to 1"] = not possible
        no_step = possible and int(strength * steps) < 1
        faults[f"strength {strength} of {steps} steps is less than one step; raise either"] = no_step
    for fault, present in faults.items():
        if present:
            raise TranslatorError(f"{model.name}: {fault}")


def locate(model: DiffusionModel) -> tuple[Path, str]:
    """The pipeline's directory and its revision."""
    if model.source.startswith(BUNDLED):
        folder = Path(str(resources.files("id2core"))) / model.source.removeprefix("id2core/")
        if not folder.is_dir():
            raise TranslatorError(f"{model.name} is not part of this install; give another model or a source")
        return folder, hash_weights(folder)
    if Path(model.source).is_dir():
        return Path(model.source), hash_weights(Path(model.source))
    from diffusers import DiffusionPipeline

    snapshot = DiffusionPipeline.download(
        model.source,
        revision=model.revision,
        variant=model.variant,
        use_safetensors=True,
        safety_checker=None,
    )
    return Path(snapshot), Path(snapshot).name  # …/snapshots/<commit>


def hash_weights(folder: Path) -> str:
    """First 12 hex of the SHA-256 over names and bytes of all that decides a pipeline's pictures.

    Weights, configurations and vocabularies of the components; what else lies beside them does not count.
    """
    digest = hashlib.sha256()
    files = [f for f in folder.glob("*/**/*") if f.suffix in HASHED]
    for file in sorted([*files, *folder.glob("model_index.json"), *folder.glob("*.safetensors")]):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]


def _check_class(kind: type[Translator], model: DiffusionModel, folder: Path) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise TranslatorError(
            f"{folder} holds no diffusers pipeline (model_index.json); save one there first"
        )
    name = json.loads(index.read_text())["_class_name"]
    if kind.accepts and name not in kind.accepts:
        raise TranslatorError(f"{model.paradigm} runs on {kind.accepts[0]}; {model.source} holds a {name}")


def _check_tokenizers(model: DiffusionModel, folder: Path) -> None:
    """Kolors and Kandinsky 3 come with sentencepiece models; without the package, others' errors mislead."""
    files = [*folder.glob("*/spiece.model"), *folder.glob("*/tokenizer.model")]
    if all((file.parent / "tokenizer.json").is_file() for file in files):
        return
    try:
        importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except Exception as error:  # protobuf has its own for a version that does not fit
        raise TranslatorError(
            f"{model.name}'s tokenizer needs sentencepiece (pip install 'sentencepiece<0.2.3'): {error}"
        ) from error


def _variant(model: DiffusionModel, folder: Path) -> str | None:
    """The model's variant if the files have it in their names: a copy saved by hand often has not."""
    return model.variant if any(folder.rglob(f"*.{model.variant}*.safetensors")) else None


def _pipeline(loader: str, folder: Path, variant: str | None, precision: torch.dtype) -> Any:
    import diffusers

    without: dict[str, Any] = {}
    if "safety_checker" in json.loads((folder / "model_index.json").read_text()):
        without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, loader).from_pretrained(
        str(folder),
        variant=variant,
        dtype=precision,
        use_safetensors=True,
        local_files_only=True,
        **without,
    )


def _add_adapter(pipeline: Any, model: DiffusionModel, folder: Path) -> str:
    """Give a pipeline its IP-Adapter; returns what the revision grows by."""
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    grown = ""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        folder, grown = _adapter_folder(str(model.adapter))
    encoder = CLIPVisionModelWithProjection.from_pretrained(
        folder / IMAGE_ENCODER, dtype=pipeline.dtype, use_safetensors=True, local_files_only=True
    )
    side = encoder.config.image_size
    # Without these two the pipeline makes its own: an encoder from any file, a processor for torchvision.
    pipeline.register_modules(
        image_encoder=encoder, feature_extractor=CLIPImageProcessorPil(size=side, crop_size=side)
    )
    weights = Path(ADAPTER_WEIGHTS)
    pipeline.load_ip_adapter(
        str(folder), subfolder=str(weights.parent), weight_name=weights.name, local_files_only=True
    )
    return grown


def _adapter_folder(adapter: str) -> tuple[Path, str]:
    if Path(adapter).is_dir():
        return Path(adapter), f"+{hash_weights(Path(adapter))}"
    from huggingface_hub import snapshot_download

    place = _place(adapter)
    files = [ADAPTER_WEIGHTS, f"{IMAGE_ENCODER}/config.json", f"{IMAGE_ENCODER}/model.safetensors"]
    folder = Path(snapshot_download(place["source"], revision=place["revision"], allow_patterns=files))
    return folder, f"+{folder.name}"


def _failure(model: DiffusionModel, error: Exception) -> TranslatorError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    message = f"cannot load {model.name} from {model.source}: {reason}"
    if not _on_hub(model):
        return TranslatorError(message)
    mirror = MOVED.get(model.source)
    moved = f"; it was withdrawn, try source {mirror}" if mirror else ""
    return TranslatorError(
        f"{message}{moved}; check the hub's name and revision, accept the model's licence there and set "
        "HF_TOKEN, or give a local directory as source"
    )
