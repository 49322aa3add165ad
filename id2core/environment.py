"""What is installed and what the machine has: for reports, run records and `id2 doctor`."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from id2core.errors import OptionError

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
    "faiss-gpu-cuvs",
    "google-cloud-storage",
    "c2pa-python",
)
_SOURCE = Path(__file__).parents[1]


def versions() -> dict[str, str]:
    """Return the versions of Python and of every installed package that a result depends on."""
    return dict(_versions())


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    """Read the packages' metadata, once: that takes longer than a small commit."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return tuple(installed.items())


def commit(source: Path = _SOURCE) -> str:
    """Return which code runs: `commit 0123456789ab[, changed since]` or `version 0.1.0`.

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


class Devices(TypedDict):
    """Processor, memory and GPUs of this machine.

    `encoder_device` and `encoder_dtype` are what an encoder takes by default, see `best_device` and
    `best_dtype`.
    """

    platform: str
    cpu: str
    cores: int | None
    memory_gib: float
    gpus: list[str]
    encoder_device: str
    encoder_dtype: str


def devices() -> Devices:
    """Return processor, memory and GPUs of this machine, and what an encoder would take; imports no torch."""
    import psutil

    name, flags = _cpu()
    gpus = _gpus()
    usable = _torch_takes(gpus)
    if usable:
        dtype = "bfloat16" if gpus[0].capability >= 8.0 else "float16"
    else:
        dtype = "bfloat16" if "amx_bf16" in flags else "float32"
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": name or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [gpu.name for gpu in gpus],
        "encoder_device": "cuda" if usable else "cpu",
        "encoder_dtype": dtype,
    }


def _cpu(source: Path = Path("/proc/cpuinfo")) -> tuple[str, set[str]]:
    """Return the name of the processor and its flags; both empty where the system does not list them."""
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return "", set()
    facts = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))
    }
    return facts.get("model name", ""), set(facts.get("flags", "").split())


class _Gpu(NamedTuple):
    """A GPU and its CUDA compute capability."""

    name: str
    capability: float


def _gpus() -> list[_Gpu]:
    """Return the GPUs that `nvidia-smi` lists and `CUDA_VISIBLE_DEVICES` leaves visible, in its order."""
    command = ("nvidia-smi", "--query-gpu=index,uuid,name,compute_cap", "--format=csv,noheader")
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if line.strip()]
    gpus = {(index, uuid): _Gpu(name, float(capability)) for index, uuid, name, capability in rows}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return list(gpus.values())
    chosen = []
    for wanted in map(str.strip, visible.split(",")):
        matching = [
            gpu
            for (index, uuid), gpu in gpus.items()
            if wanted and (wanted == index or uuid.startswith(wanted))
        ]
        if not matching:  # CUDA hides what follows a device that is not there
            break
        chosen += matching
    return chosen


def sees_gpu() -> bool:
    """Return whether torch would see a GPU; imports no torch."""
    return _torch_takes(_gpus())


def _torch_takes(gpus: list[_Gpu]) -> bool:
    return bool(gpus) and _torch_has_cuda()


def _torch_has_cuda() -> bool:
    """Return whether the installed torch is a build for CUDA, from its version file."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except OSError:
        return False
    return re.search(r"^cuda\b[^=]*=\s*['\"]", text, re.MULTILINE) is not None


def has_compiler() -> bool:
    """Return whether torch can compile a network for a GPU: Triton calls a C compiler."""
    compilers = [os.environ.get("CC", ""), "gcc", "clang"]
    return bool(importlib.util.find_spec("triton")) and any(map(shutil.which, filter(None, compilers)))


def best_device() -> str:
    """Return `cuda` where torch sees a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(spec: str | None) -> torch.device:
    """Return the device of that name; None and "auto" mean the best one.

    Raises:
        OptionError: there is no such device here.
    """
    import torch

    name = best_device() if spec in (None, "auto") else str(spec)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device is {spec!r}: torch {torch.__version__} has no such device here") from error
    return device


def best_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the device multiplies it in hardware, float16 on an older GPU, else float32."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32


def best_memory_format(device: torch.device) -> torch.memory_format:
    """Return the memory layout of networks with group normalization, such as autoencoders and U-Nets.

    Channels-last on a CPU, contiguous on a GPU: on an H100 SD2's VAE encoded 693 images/s contiguous and
    510 channels-last, in bfloat16.
    """
    import torch

    return torch.contiguous_format if device.type == "cuda" else torch.channels_last


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence bars and warnings of diffusers and transformers: a worker's log is no terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    settings = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, settings, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def faiss_status() -> str:
    """Return where FAISS runs, `cpu` or `N gpus`, or what to install."""
    try:
        import faiss
    except ImportError:
        return "missing: pip install 'id2[cpu]' or 'id2[gpu]'"
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return f"{gpus} gpus" if gpus else "cpu"


def hub_status(timeout: float = 3.0) -> str:
    """Return `reachable`, or why the model hub is not; asks it once and waits at most `timeout` seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "offline by HF_HUB_OFFLINE"
    from huggingface_hub import constants

    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=timeout).close()
    except urllib.error.HTTPError:
        return "reachable"
    except OSError as error:  # URLError, timeouts
        reason = getattr(error, "reason", error)
        return f"not reachable ({reason}): use `mini` or local directories"
    return "reachable"


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
