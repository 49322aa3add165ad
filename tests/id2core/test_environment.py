from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from id2core import environment

TWO_GPUS = "0, GPU-aa11, NVIDIA H100 80GB HBM3, 9.0\n1, GPU-bb22, Tesla T4, 7.5\n"
NO_TORCH = """
import sys
from id2core import environment
environment.devices(), environment.versions(), environment.commit(), environment.hub_status(0.01)
assert not {"torch", "diffusers", "transformers", "httpx"} & set(sys.modules)
"""


def test_the_machine_is_described_without_torch() -> None:
    subprocess.run([sys.executable, "-c", NO_TORCH], check=True, cwd=Path(__file__).parents[2])


def test_what_an_encoder_would_take_is_what_torch_would_say() -> None:
    import torch

    devices = environment.devices()
    device = environment.best_device()
    assert devices["encoder_device"] == device
    assert f"torch.{devices['encoder_dtype']}" == str(environment.best_dtype(torch.device(device)))
    assert len(devices["gpus"]) == torch.cuda.device_count() or device == "cpu"
    assert environment._torch_has_cuda() == (torch.version.cuda is not None)


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs and torch's CUDA build."""
    (tmp_path / "listed").write_text(TWO_GPUS)
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat {tmp_path}/listed\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(environment, "_torch_has_cuda", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "names", "dtype"),
    [
        (None, ["NVIDIA H100 80GB HBM3", "Tesla T4"], "bfloat16"),
        ("1", ["Tesla T4"], "float16"),
        ("1,0", ["Tesla T4", "NVIDIA H100 80GB HBM3"], "float16"),
        ("GPU-aa", ["NVIDIA H100 80GB HBM3"], "bfloat16"),
        ("0,-1,1", ["NVIDIA H100 80GB HBM3"], "bfloat16"),
    ],
)
def test_gpus_are_those_that_cuda_sees(
    visible: str | None, names: list[str], dtype: str, gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    devices = environment.devices()
    assert (devices["gpus"], devices["encoder_device"], devices["encoder_dtype"]) == (names, "cuda", dtype)


def test_hidden_gpus_and_a_torch_without_cuda_leave_the_cpu(
    gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as hidden:
        hidden.setenv("CUDA_VISIBLE_DEVICES", "")
        assert environment.devices()["encoder_device"] == "cpu" and environment.devices()["gpus"] == []
    monkeypatch.setattr(environment, "_torch_has_cuda", lambda: False)
    devices = environment.devices()
    assert len(devices["gpus"]) == 2 and devices["encoder_device"] == "cpu"


def test_the_processor_is_read_from_the_system(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Fast: 3 GHz\nflags\t\t: fpu amx_bf16\n\n"
    )
    assert environment._cpu(tmp_path / "cpuinfo") == ("Fast: 3 GHz", {"fpu", "amx_bf16"})
    assert environment._cpu(tmp_path / "nothing") == ("", set())


@pytest.fixture
def hub() -> str:
    class Forbidding(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Forbidding)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def test_the_hub_is_asked_once(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    assert environment.hub_status() == "reachable"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "Connection refused" in environment.hub_status() and "`mini`" in environment.hub_status()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert environment.hub_status() == "offline by HF_HUB_OFFLINE"
