"""IP-Adapter: Ye et al., *IP-Adapter: Text Compatible Image Prompt Adapter*, 2023."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from id2core.translation import models
from id2core.translation.loading import hash_weights
from id2core.translation.spec import DiffusionModel
from id2core.translation.translators import Translator

# The adapter's authors advise 0.5 where there is a text prompt too; at 1 the text hardly counts.
IP_ADAPTER_SCALE = 0.5
# In an adapter's repository, or in the directory of a pipeline that brings its adapter along.
ADAPTER_WEIGHTS = "models/ip-adapter_sd15.safetensors"
IMAGE_ENCODER = "models/image_encoder"


class IPAdapter(Translator):
    """Text to image, with the picture's CLIP embedding as a second prompt (Ye et al. 2023).

    The VAE never sees the picture, which is why ID² fails on it (Table 11).
    """

    @classmethod
    def prepare(cls, pipeline: Any, model: DiffusionModel, folder: Path) -> str:
        """Give a pipeline its adapter, and return the adapter's part of the revision."""
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

    def __init__(self, model: DiffusionModel, pipeline: Any, revision: str) -> None:
        super().__init__(model, pipeline, revision)
        pipeline.set_ip_adapter_scale(IP_ADAPTER_SCALE)
        # In a batch diffusers lets every picture guide every prompt (its issue 9813).
        self.batch_size = 1

    def _impl(
        self, images: list[Image.Image], prompts: list[str], generators: list[torch.Generator]
    ) -> NDArray[np.float32]:
        output = self.pipeline(
            prompt=prompts,
            ip_adapter_image=images,
            height=self.model.size,
            width=self.model.size,
            num_inference_steps=self.model.steps,
            guidance_scale=self.model.guidance,
            generator=generators,
            output_type="np",
        )
        return np.asarray(output.images, np.float32)


def _adapter_folder(adapter: str) -> tuple[Path, str]:
    if Path(adapter).is_dir():
        return Path(adapter), f"+{hash_weights(Path(adapter))}"
    from huggingface_hub import snapshot_download

    place = models.parse_source(adapter)
    files = [ADAPTER_WEIGHTS, f"{IMAGE_ENCODER}/config.json", f"{IMAGE_ENCODER}/model.safetensors"]
    folder = Path(snapshot_download(place["source"], revision=place["revision"], allow_patterns=files))
    return folder, f"+{folder.name}"
