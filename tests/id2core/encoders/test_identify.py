"""Encoders are known by their records, and a new kind is a module and a row."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from id2core.encoders import records, registry
from id2core.encoders.records import EncoderIds, Record
from id2core.encoders.registry import Kind, identify, load_encoder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ID2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoders"


def ids_of(spec: str) -> EncoderIds:
    encoder = load_encoder(spec, dtype="float32")
    return EncoderIds(encoder.encoder_id, encoder.preprocess.preprocess_id)


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **options: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(registry, "load_encoder", refused)


def test_the_record_of_the_bundled_encoder_is_that_of_its_weights(cache: Path) -> None:
    assert identify("mini") == ids_of("mini")
    assert not cache.exists()


def test_a_directory_is_loaded_once_and_again_when_a_file_changed(
    tiny_vae: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "vae"
    shutil.copytree(tiny_vae, folder)
    first = identify(str(folder))
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        refuse_to_load(patch)
        assert identify(str(folder)) == first
        [weights] = folder.glob("*.safetensors")
        os.utime(weights, ns=(1, 1))
        with pytest.raises(AssertionError, match="loaded"):
            identify(str(folder))
    assert identify(str(folder)) == first == ids_of(str(folder))


def test_a_damaged_or_foreign_record_is_none(tiny_vae: str, cache: Path) -> None:
    first = identify(tiny_vae)
    [file] = cache.iterdir()
    whole = file.read_bytes()
    flipped = whole.replace(first.encoder_id.encode(), first.encoder_id.encode()[:-1] + b"~")
    for content in (b"", b"[]", b"{}", b'{"encoder_id": "x", "mean": 1, "std": 2, "size": 3}', flipped):
        file.write_bytes(content)
        assert records.find(tiny_vae) is None and identify(tiny_vae) == first
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_error(
    tiny_vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ID2_CACHE", str(tmp_path / "file"))
    assert identify(tiny_vae) == ids_of(tiny_vae)


def test_a_hub_id_is_known_by_its_commit_and_not_by_a_branch(cache: Path) -> None:
    record = Record("some-vae-0123456789ab", records.Preprocess(128), 1024)
    records.write(f"someone/some-vae@{'a' * 40}", record)
    assert records.find(f"someone/some-vae@{'a' * 40}") == record
    assert records.find(f"someone/some-vae@{'b' * 40}") is None
    records.write("someone/some-vae@main", record)
    records.write("someone/some-vae", record)
    assert len(list(cache.iterdir())) == 1


def test_a_new_kind_is_a_module_and_a_row(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Kind("toy", lambda spec: spec.startswith("toy:"), "tests.toy_encoder:load_encoder")
    monkeypatch.setattr(registry, "KINDS", [row, *registry.KINDS])
    encoder = load_encoder("toy:32", dtype="float32", batch_size=2)
    white = np.full((3, 32, 32, 3), 255, np.uint8)
    assert encoder.encode(white).tolist() == [[1, 1, 1]] * 3
    assert identify("toy:32").encoder_id == "toy-000000000000"


LIGHT = """
import importlib, sys
for name in sys.argv[1].split():
    importlib.import_module(f"id2core.{name}")
from id2core.encoders.registry import identify
assert identify("mini").encoder_id.startswith("mini-")
heavy = {"torch", "diffusers", "transformers", "faiss"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_needs_no_network_imports_none() -> None:
    package = Path(registry.__file__).parents[1]
    rooms = ("store", "search", "verdicts", "reports", "evaluation", "runs")
    files = [f for room in rooms for f in sorted((package / room).glob("*.py")) if f.stem != "__init__"]
    # A matcher of feature maps is a network itself; only experiments import it. The index of GPUs is torch's.
    heavy = ("pairwise", "gpu_index")
    names = [f"{f.parent.name}.{f.stem}" for f in files if f.stem not in heavy]
    names += ["transforms.linear", "transforms.files", "encoders.hub", "encoders.registry", "encoders.images"]
    subprocess.run([sys.executable, "-c", LIGHT, " ".join(names)], check=True)
