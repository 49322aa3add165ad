"""Diffusion models loaded as translators."""

from __future__ import annotations

import hashlib
import importlib
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from id2core.encoders.hub import MOVED
from id2core.environment import best_dtype, quiet, usable_device
from id2core.errors import TranslatorError
from id2core.store import strict_json
from id2core.translation import models
from id2core.translation.spec import DiffusionModel
from id2core.translation.translators import Translator, settle

HASHED = {".safetensors", ".json", ".txt", ".model"}
# At this side and above, a decoder needs gigabytes a picture, the U-Net a fraction of that.
SLICED_SIZE = 1024


def load(model: DiffusionModel, device: str = "auto", dtype: str = "auto") -> Translator:
    """Load a model's weights and make its translator.

    Only safetensors are read, and no code from the hub runs. The safety checker is not loaded: it would
    silently replace pictures by black ones.

    Args:
        model: from `models.find`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` (see `encoders.best_dtype`), `float32`, `bfloat16` or `float16`.

    Raises:
        TranslatorError: it cannot be loaded; the message says what to do.
    """
    where = usable_device(device)
    precision = best_dtype(where) if dtype == "auto" else getattr(torch, dtype)
    kind = paradigm(model.paradigm)
    try:
        with quiet():
            folder, revision = locate(model)
            _check_class(kind, model, folder)
            _check_tokenizers(model, folder)
            pipeline = _pipeline(kind.loader, folder, _variant(model, folder), precision)
            revision += kind.prepare(pipeline, model, folder)
            slicing = where.type != "cuda" or model.size >= SLICED_SIZE
            return kind(model, settle(pipeline, where, slicing), revision)
    except TranslatorError:
        raise
    except Exception as error:  # the hub and the libraries below raise many kinds
        raise _failure(model, error) from error


def paradigm(name: str) -> type[Translator]:
    """Import the class of a row of `models.PARADIGMS`."""
    module, class_name = models.PARADIGMS[name]
    kind: type[Translator] = getattr(importlib.import_module(f"id2core.translation.{module}"), class_name)
    return kind


def locate(model: DiffusionModel) -> tuple[Path, str]:
    """Return the pipeline's directory and its revision."""
    if model.source.startswith(models.BUNDLED):
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
    """Return 12 hex of the SHA-256 over names and bytes of all files that decide a pipeline's pictures.

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
    try:
        name = strict_json.read_file(index)["_class_name"]
    except (ValueError, LookupError) as error:
        raise TranslatorError(f"{index} names no pipeline ({error}): save it again") from error
    if kind.accepts and name not in kind.accepts:
        raise TranslatorError(f"{model.paradigm} runs on {kind.accepts[0]}; {model.source} holds a {name}")


def _check_tokenizers(model: DiffusionModel, folder: Path) -> None:
    """Raise TranslatorError where a sentencepiece model needs that package: others' errors mislead."""
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
    """Return the variant if file names have it: a copy saved by hand often has not."""
    return model.variant if any(folder.rglob(f"*.{model.variant}*.safetensors")) else None


def _pipeline(loader: str, folder: Path, variant: str | None, precision: torch.dtype) -> Any:
    import diffusers

    without: dict[str, Any] = {}
    if "safety_checker" in strict_json.read_file(folder / "model_index.json"):
        without = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, loader).from_pretrained(
        str(folder),
        variant=variant,
        dtype=precision,
        use_safetensors=True,
        local_files_only=True,
        **without,
    )


def _failure(model: DiffusionModel, error: Exception) -> TranslatorError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    message = f"cannot load {model.name} from {model.source}: {reason}"
    if not models.is_on_hub(model):
        return TranslatorError(message)
    mirror = MOVED.get(model.source)
    moved = f"; it was withdrawn, try source {mirror}" if mirror else ""
    return TranslatorError(
        f"{message}{moved}; check the hub's name and revision, accept the model's license there and set "
        "HF_TOKEN, or give a local directory as source"
    )
