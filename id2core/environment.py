"""What is installed and what the machine has: for reports, run records and `id2 doctor`."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

from id2core import encoders

PACKAGES = (
    "id2",
    "torch",
    "diffusers",
    "safetensors",
    "apache-beam",
    "prefect",
    "pyarrow",
    "numpy",
    "pillow",
    "pillow-heif",
    "faiss-cpu",
    "faiss-gpu",
    "google-cloud-storage",
)


def versions() -> dict[str, str]:
    """Version of Python and of every package that a result depends on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def devices() -> dict[str, Any]:
    """Processors, memory and GPUs, and which of them an encoder would take by default."""
    import psutil

    device = torch.device(encoders.best_device())
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "encoder_device": str(device),
        "encoder_dtype": str(encoders.best_dtype(device)).removeprefix("torch."),
    }


def faiss_status() -> str:
    """`cpu`, `N gpus`, or what to install."""
    try:
        import faiss
    except ImportError:
        return "missing: pip install 'id2[cpu]' or 'id2[gpu]'"
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{gpus} gpus" if gpus else "cpu"


def hub_status(timeout: float = 3.0) -> str:
    """`reachable`, or why the model hub is not; asks it once."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "offline by HF_HUB_OFFLINE"
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=timeout, follow_redirects=True)
    except httpx.HTTPError as error:
        return f"not reachable ({type(error).__name__}): use `mini` or local directories"
    return "reachable"
