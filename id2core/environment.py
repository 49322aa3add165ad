"""What is installed and what the machine has: for reports, run records and `id2 doctor`."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

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
_SOURCE = Path(__file__).parents[1]


def versions() -> dict[str, str]:
    """Version of Python and of every package that a result depends on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(source: Path = _SOURCE) -> str:
    """Which code runs: `commit 0123456789ab`, then `, changed since` where files differ; or `version 0.1.0`.

    Args:
        source: the folder that holds `id2core/`; only a git checkout of exactly this folder counts, not
            one around the environment that the package is installed in.
    """

    def git(*arguments: str) -> str:
        command = ("git", "--no-optional-locks", "-C", str(source), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) == source.resolve():
            changed = git("status", "--porcelain", "--untracked-files=no")
            return f"commit {git('rev-parse', '--short=12', 'HEAD')}{', changed since' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        pass
    return f"version {versions().get('id2', 'unknown')}"


def devices() -> dict[str, Any]:
    """Processors, memory and GPUs, and which of them an encoder would take by default."""
    import psutil
    import torch

    device = torch.device(best_device())
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "encoder_device": str(device),
        "encoder_dtype": str(best_dtype(device)).removeprefix("torch."),
    }


def best_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, float16 on an older GPU, else float32."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, diffusers and transformers show neither bars nor warnings: a worker's log is no terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


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
