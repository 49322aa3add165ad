"""Random diffusion pipelines of a few thousand parameters, of the classes that the hub's models have.

Each builder saves one into a directory, as `save_pretrained` of diffusers does, and returns the directory:
`stable_diffusion(tmp_path / "tiny")`. They take pictures of 32 pixels, whose latents have 8×8. What they make
of them is noise, but the code that runs is that of the real models.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

WIDTH = 16  # of the text features
PROMPT_TOKENS = 16
LETTERS = string.ascii_lowercase + string.digits + ".,'-"
UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": WIDTH,
    "norm_num_groups": 4,
    "sample_size": 8,
}
# What Stable Diffusion's own scheduler file says.
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def stable_diffusion(path: Path, prediction_type: str = "epsilon") -> Path:
    """A `StableDiffusionPipeline`: like Stable Diffusion 1 (epsilon) or 2 (v_prediction)."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    parts = _clip_parts(path) | {
        "vae": _vae(),
        "unet": UNet2DConditionModel(**UNET),
        "scheduler": _ddim(prediction_type=prediction_type),
    }
    return _save(StableDiffusionPipeline(**parts, **_no_checker()), path)


def instruct_pix2pix(path: Path) -> Path:
    """A `StableDiffusionInstructPix2PixPipeline`: its U-Net sees the picture's latent beside the noise."""
    from diffusers import (
        EulerAncestralDiscreteScheduler,
        StableDiffusionInstructPix2PixPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    parts = _clip_parts(path) | {
        "vae": _vae(),
        "unet": UNet2DConditionModel(**UNET, in_channels=8),
        "scheduler": EulerAncestralDiscreteScheduler(**SCHEDULE),
    }
    return _save(StableDiffusionInstructPix2PixPipeline(**parts, **_no_checker()), path)


def ip_adapter(path: Path) -> Path:
    """`stable_diffusion`, with an image encoder and adapter weights in `models/` as in h94/IP-Adapter."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    stable_diffusion(path)
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=WIDTH,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(path / "models" / "image_encoder")
    tokens = 4
    weights = {
        "image_proj.proj.weight": torch.randn(tokens * WIDTH, WIDTH),
        "image_proj.proj.bias": torch.zeros(tokens * WIDTH),
        "image_proj.norm.weight": torch.ones(WIDTH),
        "image_proj.norm.bias": torch.zeros(WIDTH),
    }
    # One pair of keys and values for each cross-attention, numbered as the processors are: 1, 3, 5, …
    unet = UNet2DConditionModel.from_pretrained(path / "unet")
    for i, name in enumerate(unet.attn_processors):
        if "attn2" in name:
            width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            for kind in ("k", "v"):
                weights[f"ip_adapter.{i}.to_{kind}_ip.weight"] = torch.randn(width, WIDTH)
    save_file(weights, path / "models" / "ip-adapter_sd15.safetensors")
    return path


def stable_diffusion_xl(path: Path) -> Path:
    """A `StableDiffusionXLPipeline`: two text encoders, sizes as a condition."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    parts = _clip_parts(path) | _second_clip(path) | _xl_parts(2 * WIDTH, WIDTH)
    parts["scheduler"] = EulerDiscreteScheduler(**SCHEDULE)
    return _save(StableDiffusionXLPipeline(**parts, add_watermarker=False), path)


def kolors(path: Path) -> Path:
    """A `KolorsPipeline`: ChatGLM reads the prompt. Needs the package `sentencepiece`."""
    from diffusers import EulerDiscreteScheduler, KolorsPipeline
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    torch.manual_seed(0)
    tokenizer = ChatGLMTokenizer(str(_sentencepiece(path / "tokenizer" / "tokenizer.model")))
    config = ChatGLMConfig(
        num_layers=1,
        padded_vocab_size=tokenizer.vocab_size,
        hidden_size=WIDTH,
        ffn_hidden_size=WIDTH,
        kv_channels=4,
        num_attention_heads=4,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        original_rope=True,
    )
    parts = _xl_parts(WIDTH, WIDTH) | {
        "tokenizer": tokenizer,
        "text_encoder": _initialised(ChatGLMModel(config)),
        "scheduler": EulerDiscreteScheduler(**SCHEDULE),
    }
    return _save(KolorsPipeline(**parts), path)


def stable_diffusion_3(path: Path) -> Path:
    """A `StableDiffusion3Pipeline`: a transformer, flow matching, two CLIPs and a T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    parts = _clip_parts(path, projected=True) | _second_clip(path) | _t5_parts(path, "_3", 2 * WIDTH)
    parts |= {
        "vae": _vae(shift_factor=0.0609),
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    return _save(StableDiffusion3Pipeline(**parts), path)


def kandinsky3(path: Path) -> Path:
    """A `Kandinsky3Pipeline`: a T5, its own U-Net, a VQ autoencoder. Needs the package `sentencepiece`.

    As on the hub, its tokenizer is a sentencepiece model alone, which transformers converts at loading.
    """
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel

    torch.manual_seed(0)
    movq = VQModel(
        block_out_channels=(32, 32, 32),  # its spatial norm has 32 groups
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=16,
        norm_num_groups=4,
        norm_type="spatial",
    )
    unet = Kandinsky3UNet(
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(8, 8, 8, 8),
        cross_attention_dim=8,
        encoder_hid_dim=WIDTH,
    )
    parts = _t5_parts(path, "", WIDTH) | {"movq": movq, "unet": unet, "scheduler": DDPMScheduler(**_betas())}
    _save(Kandinsky3Pipeline(**parts), path)
    (path / "tokenizer" / "tokenizer.json").unlink()
    _sentencepiece(path / "tokenizer" / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    return path


def _save(pipeline: Any, path: Path) -> Path:
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(path)
    return path


def _no_checker() -> dict[str, Any]:
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _betas() -> dict[str, Any]:
    return {k: v for k, v in SCHEDULE.items() if k != "steps_offset"}


def _ddim(**changes: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, **changes)


def _vae(**changes: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        **changes,
    )


def _xl_parts(text_width: int, pooled_width: int) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    time_width = 4  # of each of the six numbers: original size, crop corner, target size
    unet = UNet2DConditionModel(
        **UNET | {"cross_attention_dim": text_width},
        transformer_layers_per_block=1,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_width,
        projection_class_embeddings_input_dim=6 * time_width + pooled_width,
    )
    return {"vae": _vae(), "unet": unet}


def _clip_parts(path: Path, projected: bool = False) -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer(path / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=PROMPT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return {"tokenizer": tokenizer, "text_encoder": kind(config)}


def _second_clip(path: Path) -> dict[str, Any]:
    return {f"{name}_2": part for name, part in _clip_parts(path, projected=True).items()}


def _clip_tokenizer(folder: Path) -> Any:
    """One token a letter, and one a letter that ends a word."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=PROMPT_TOKENS)


def _t5_parts(path: Path, suffix: str, width: int) -> dict[str, Any]:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    config = T5Config(vocab_size=len(pieces), d_model=width, d_kv=4, d_ff=width, num_layers=1, num_heads=2)
    return {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": T5EncoderModel(config)}


def _sentencepiece(file: Path, **ids: int) -> Path:
    import sentencepiece

    file.parent.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(LETTERS)] * 10),
        model_prefix=str(file.with_suffix("")),
        vocab_size=len(LETTERS) + 4,  # and the space, and what `ids` may number
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    return file


def _initialised(module: torch.nn.Module) -> torch.nn.Module:
    """ChatGLM's layers are made without values, for weights that are loaded at once."""
    for name, values in module.named_parameters():
        torch.nn.init.ones_(values) if "norm" in name else torch.nn.init.normal_(values, std=0.2)
    return module
