"""Vision backbones of transformers as encoders: the pooled embedding of a whole picture as its latent.

`load_encoder` comes here for a directory or hub id whose `config.json` names a `model_type`: Swin, ResNet,
ConvNeXt, EfficientNet, ViT, DINOv2, MAE, CLIP, BLIP, SigLIP, and others that take `pixel_values`.

What counts as the embedding:

- of a model of pictures and text (CLIP, BLIP, SigLIP): the pooled output of its `vision_model`, through
  `visual_projection` where the checkpoint has one; the text tower is dropped;
- else the pooled output, of MAE the class token with no patch masked, in the order of the picture;
- where a checkpoint came without weights for its pooler: the class token.

As for every encoder, the picture is stretched to the square that the model takes, bilinear with antialias,
where these models' own processors crop or keep the aspect ratio.

Loaded are safetensors, or a `.bin` as plain tensors (`weights_only`); code from the hub is never run.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from id2core.encoders.base import Encoder, hash_tensors
from id2core.encoders.hub import locate
from id2core.encoders.preprocess import Preprocess
from id2core.environment import quiet
from id2core.errors import EncoderError

# Random weights, to be trained where no hub is reached: not pretrained, and not one of the paper's models.
SCRATCH: Final = "resnet-scratch"
_SCRATCH_SIDE = 128
_TOWER, _PROJECTION, _POOLER = "vision_model", "visual_projection", "pooler"


class Backbone(nn.Module):
    """A backbone that gives one vector per picture.

    Attributes:
        model: transformers' model, without the parts that are not used.
        processor: transformers' image processor.
        preprocess: what the processor asks for, as the project does it.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.preprocess = preprocess_of(processor)
        self._is_mae = model.config.model_type == "vit_mae"
        if self._is_mae:
            model.config.mask_ratio = 0.0

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of pictures.

        Args:
            pixels: float[B,3,size,size], scaled as `preprocess` says.

        Returns:
            float[B,n].
        """
        pooled = _pooled(self._run(pixels))
        projection = getattr(self.model, _PROJECTION, None)
        return pooled if projection is None else torch.as_tensor(projection(pooled))

    def maps(self, pixels: Tensor) -> Tensor:
        """Feature maps of the last layer, for matchers that compare places: float[B,C,H,W].

        Of a transformer these are the patches' tokens on their grid, without class and register tokens.
        """
        states = torch.as_tensor(self._run(pixels).last_hidden_state)
        if states.ndim == 4:
            return states
        side = math.isqrt(states.shape[1])
        return states[:, -(side**2) :].transpose(1, 2).reshape(len(states), -1, side, side)

    def _run(self, pixels: Tensor) -> Any:
        tower = getattr(self.model, _TOWER, None)
        run = self.model if tower is None else tower
        return run(pixel_values=pixels, **self._order(len(pixels), pixels.device))

    def _order(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """MAE sorts its patches by noise, random by default; rising noise leaves them where they are."""
        if not self._is_mae:
            return {}
        patches = self.model.embeddings.patch_embeddings.num_patches
        return {"noise": torch.arange(patches, device=device).expand(count, -1)}

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), configuration and processor so that `load_encoder` takes `folder`."""
        with quiet():
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)


def load(source: str, subfolder: str | None = None, revision: str | None = None) -> Backbone:
    """A vision backbone in float32 on the CPU, in evaluation mode, from a directory or the hub.

    Raises:
        EncoderError: it cannot be loaded, is no vision model, or weights that are used are missing.
    """
    try:
        import transformers
    except ImportError as error:
        raise EncoderError(f"{source} needs transformers: pip install 'id2[translate]'") from error
    where: dict[str, Any] = {k: v for k, v in (("subfolder", subfolder), ("revision", revision)) if v}
    where["trust_remote_code"] = False
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(source, **where)
            _check_kind(config, source)
            model, facts = transformers.AutoModel.from_pretrained(
                source, config=config, dtype=torch.float32, output_loading_info=True, **where
            )
            processor = _processor(source, where)
    except EncoderError:
        raise
    except Exception as error:  # the hub and the libraries below raise many kinds
        raise _failure(source, error) from error
    _keep_what_is_used(model, set(facts["missing_keys"]), source)
    return Backbone(model, processor).eval()


def from_scratch(seed: int) -> Backbone:
    """`SCRATCH`: a small ResNet with random weights, 1.2 million, that makes 256 numbers of 128×128 pixels.

    It says nothing of pictures before it is trained; `load` therefore does not know its name. The shape is
    ours: what one CPU core trains on 24,000 pictures in half an hour.

    Raises:
        EncoderError: transformers is missing.
    """
    try:
        from transformers import ResNetConfig, ResNetModel, ViTImageProcessorPil
    except ImportError as error:
        raise EncoderError(f"{SCRATCH} needs transformers: pip install 'id2[translate]'") from error
    shape = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic"
    )
    side = {"height": _SCRATCH_SIDE, "width": _SCRATCH_SIDE}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNetModel(shape)
    return Backbone(model, ViTImageProcessorPil(size=side)).eval()


def preprocess_of(processor: Any) -> Preprocess:
    """Size and scaling of a transformers image processor; of its crop only the size is kept.

    Raises:
        EncoderError: the model takes no square pictures.
    """
    crops = getattr(processor, "do_center_crop", None) and getattr(processor, "crop_size", None)
    box = processor.crop_size if crops else processor.size
    sides = [box.get(k) for k in ("height", "width", "shortest_edge", "longest_edge") if box.get(k)]
    if not sides or (box.get("height") or 0) != (box.get("width") or 0):
        raise EncoderError(f"the image processor asks for {dict(box)}; only square pictures can be encoded")
    normalizes = processor.do_normalize
    mean, std = (processor.image_mean, processor.image_std) if normalizes else ([0.0] * 3, [1.0] * 3)
    # Its mean and std hold for pixels × rescale_factor, ours for pixels / 255.
    scale = 1 / (255 * processor.rescale_factor) if processor.do_rescale else 1 / 255
    r, g, b = (float(m) * scale for m in mean)
    sr, sg, sb = (float(s) * scale for s in std)
    return Preprocess(int(sides[0]), (r, g, b), (sr, sg, sb))


def _processor(source: str, where: dict[str, Any]) -> Any:
    from transformers import AutoImageProcessor

    # The one that does without torchvision; only its settings are read.
    kind: Any = AutoImageProcessor
    return kind.from_pretrained(source, backend="pil", **where)


def _check_kind(config: Any, source: str) -> None:
    """Refuse models of other things before their weights are loaded."""
    from transformers import MODEL_MAPPING

    kind = MODEL_MAPPING.get(type(config), None)
    takes = getattr(kind, "main_input_name", None)
    if takes != "pixel_values" and not hasattr(config, "vision_config"):
        raise EncoderError(
            f"{source} holds a model of type {config.model_type}, which takes no pictures; give a vision "
            "backbone (Swin, ViT, DINOv2, CLIP, …) or an autoencoder"
        )


def _keep_what_is_used(model: Any, missing: set[str], source: str) -> None:
    """Drop the parts that give no embedding, and refuse random weights in those that do.

    transformers fills what a file lacks with random numbers and only warns.
    """
    used = _used_parts(model, missing, source)
    lacking = sorted(key for key in missing if key.split(".")[0] in used)
    if lacking:
        raise EncoderError(
            f"{source} lacks weights of its {model.config.model_type}: {lacking[0]} and {len(lacking) - 1} "
            "more; save the whole model there"
        )
    dropped = {name for name, _ in model.named_children()} - used
    if hasattr(model.config, "vision_config"):  # and the temperature that pictures meet texts with
        dropped |= {name for name, _ in model.named_parameters(recurse=False)}
    for name in dropped:
        setattr(model, name, None)


def _used_parts(model: Any, missing: set[str], source: str) -> set[str]:
    """Names of the children that the embedding is from."""
    if hasattr(model.config, "vision_config"):
        if not hasattr(model, _TOWER):
            raise EncoderError(f"{source} ({model.config.model_type}) has no {_TOWER} to take pictures with")
        projects = not any(key.startswith(f"{_PROJECTION}.") for key in missing)
        return {_TOWER, _PROJECTION} if projects else {_TOWER}
    used = {name for name, _ in model.named_children()}
    headless = missing and all(key.startswith(f"{_POOLER}.") for key in missing)
    return used - {_POOLER} if headless else used


def _pooled(output: Any) -> Tensor:
    """float[B,n]: the pooled output, else the class token, else the mean over the map."""
    pooled = getattr(output, "pooler_output", None)
    if pooled is not None:
        return torch.as_tensor(pooled).flatten(1)
    states = torch.as_tensor(output.last_hidden_state)
    return states[:, 0] if states.ndim == 3 else states.mean(dim=(2, 3))


def _failure(source: str, error: Exception) -> EncoderError:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    hint = "" if Path(source).is_dir() else "; without access to the hub, give a local directory"
    return EncoderError(f"cannot load a vision backbone from {source}: {reason}{hint}")


def encoder_of_backbone(
    backbone: Backbone,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int | None = None,
    maps: bool = False,
    in_float32: Callable[[], Encoder] | None = None,
) -> Encoder:
    """An encoder around a backbone, which moves to the device; its latents are flattened `maps` if asked.

    `in_float32`: see `Encoder`.
    """
    digest = hash_tensors(backbone.requires_grad_(False).state_dict())
    backbone.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = backbone.maps if maps else backbone
    given = (name, digest, network, device, dtype, backbone.preprocess, batch_size)
    return Encoder(*given, in_float32=in_float32)


def load_encoder(spec: str, device: torch.device, dtype: torch.dtype, batch_size: int | None) -> Encoder:
    """Load a short name, a directory or a hub id of transformers as an encoder."""
    place = locate(spec)
    backbone = load(place.source, place.subfolder, place.revision)
    again = functools.partial(load_encoder, spec, device, torch.float32, batch_size)
    return encoder_of_backbone(backbone, place.name, device, dtype, batch_size, in_float32=again)
