"""Speed on one GPU: encoder, search, training of W and translation, each beside a bare-library loop.

Run `python -m benchmarks.gpu [--only NAME …] [--seconds N] [--out FILE.json]`; prints a table. It needs
torch, and per section what `NEEDS` lists; a section whose packages are missing is reported as skipped.
`--tiny` runs small sizes on any device. It tries the script and measures nothing.

No weights are downloaded. Stable Diffusion 2 is here its architecture with random weights, which
costs the same arithmetic as the trained ones.
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib.util
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import common

Work = Callable[[], Any]
Vectors = NDArray[np.float32]
MOST_ROUNDS = 50
TOP_K = 10
PROMPT = "a watercolor painting of a harbor at dawn"
NEEDS: dict[str, tuple[str, ...]] = {
    "card": (),
    "encoder": ("diffusers", "pyarrow", "pillow_heif"),
    "search": ("faiss", "pyarrow"),
    "training": ("pyarrow", "scipy", "pytorch_metric_learning"),
    "translation": ("diffusers", "transformers"),
}


@dataclass(frozen=True)
class Sizes:
    """How much every section does; the defaults are what is reported.

    Attributes:
        vae, unet, text: configurations of the networks; those of Stable Diffusion 2 by default.
        batches: of the encoder's sweep; `batch` is that of all other encoder figures.
        photos: files of the decoding and embedding streams; `large_photos` of 12 megapixels.
        threads, decoders: how many decode at a time in this process, and in processes of their own.
        references, size: rows and columns of the searched corpus; `queries` per call.
        checked: queries whose neighbors are compared with the CPU's.
        lists, sub_vectors, trained: of the IVF-PQ index; `coded` rows are in the project's.
        classes, latent, columns, steps: of the training of W.
        negatives: centers of partial CosFace.
        closed_form: latents of the closed form.
        side, pictures, denoising: of the translation.
    """

    vae: Mapping[str, Any]
    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    batches: tuple[int, ...] = (16, 32, 64, 128, 256)
    batch: int = 64
    agreement: int = 64
    photos: int = 2048
    large_photos: int = 4
    threads: tuple[int, ...] = (1, 2, 4, 8, 16)
    decoders: tuple[int, ...] = (8, 16, 32)
    references: int = 10_000_000
    size: int = 512
    queries: tuple[int, ...] = (1, 64, 1024, 4096)
    checked: int = 32
    lists: int = 4096
    sub_vectors: int = 64
    trained: int = 200_000
    coded: int = 1_000_000
    classes: int = 111_111  # of which a tenth is held out
    latent: int = 4096
    columns: int = 512
    steps: int = 200
    negatives: int = 8192
    closed_form: int = 100_000
    side: int = 512
    pictures: int = 16
    denoising: int = 50


SD2_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 768,
}
SD2_UNET: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "sample_size": 64,
}
SD2_TEXT: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 77,
}
FULL = Sizes(SD2_VAE, SD2_UNET, SD2_TEXT)
TINY = Sizes(
    SD2_VAE | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
    SD2_UNET
    | {"block_out_channels": (32, 32, 64, 64), "attention_head_dim": (1, 1, 2, 2), "cross_attention_dim": 32},
    SD2_TEXT | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    batches=(1, 2),
    batch=2,
    agreement=2,
    photos=4,
    large_photos=1,
    threads=(1, 2),
    decoders=(2,),
    references=20_000,
    size=64,
    queries=(1, 16),
    checked=4,
    lists=16,
    sub_vectors=16,
    trained=4096,
    classes=300,
    latent=256,
    columns=32,
    steps=10,
    negatives=64,
    closed_form=2000,
    side=64,
    pictures=4,
    denoising=3,
)


@dataclass(frozen=True)
class Figure:
    """One measured number; `ratio` is ours over the bare-library loop's, above 1 where ours is better."""

    section: str
    what: str
    value: float
    unit: str
    bare: float | None = None
    ratio: float | None = None

    @property
    def line(self) -> str:
        """A row of the table."""
        bare = "" if self.bare is None else _number(self.bare)
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return f"| {self.section} | {self.what} | {_number(self.value)} {self.unit} | {bare} | {ratio} |"


def _number(value: float) -> str:
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"


@dataclass
class Run:
    """Sizes, device and what has been measured so far.

    Attributes:
        seconds: of timing for each side of a figure.
        out: file that is rewritten after each figure.
        notes: what was skipped or failed, and why.
    """

    sizes: Sizes
    device: torch.device
    seconds: float
    out: Path | None
    section: str = ""
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def halves(self) -> tuple[torch.dtype, ...]:
        """16-bit formats, the encoder's default first; without a GPU, float32 stands in for them."""
        return (torch.bfloat16, torch.float16) if self.on_gpu else (torch.float32,)

    def add(
        self, what: str, value: float, unit: str, bare: float | None = None, ratio: float | None = None
    ) -> None:
        """Keep, print and save a figure."""
        figure = Figure(self.section, what, value, unit, bare, ratio)
        self.figures.append(figure)
        print(figure.line, file=sys.stderr, flush=True)
        self.save()

    def note(self, text: str) -> None:
        """Keep and print what was not measured."""
        self.notes.append(f"{self.section}: {text}")
        print(f"NOTE {self.notes[-1]}", file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        """Rewrite the file of results."""
        if self.out:
            facts = {"figures": [asdict(f) for f in self.figures], "notes": self.notes, **here()}
            self.out.write_text(json.dumps(facts, indent=1, ensure_ascii=False))

    def sync(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def rates(self, items: int, sides: Mapping[str, Work], warm: bool = True) -> dict[str, list[float]]:
        """Items per second of every side in every round; the sides take turns.

        Args:
            items: how many one call handles.
            sides: calls; the device has finished before the clock stops.
            warm: call each side once before the clock starts.
        """

        def synced(work: Work) -> Work:
            return lambda: (work(), self.sync())

        calls = {name: synced(work) for name, work in sides.items()}
        if warm:
            for call in calls.values():
                call()
        times = common.interleaved(calls, 1)
        once = sum(seconds[0] for seconds in times.values())
        rounds = int(min(MOST_ROUNDS, self.seconds * len(calls) / once))
        more = common.interleaved(calls, rounds)
        return {name: [items / s for s in [*times[name], *more[name]]] for name in calls}

    def compare(
        self, what: str, items: int, unit: str, ours: Work, bare: Work | None = None, warm: bool = True
    ) -> None:
        """Add the rate of our call, beside that of the bare loop where there is one."""
        sides = {"ours": ours} | ({"bare": bare} if bare else {})
        rates = self.rates(items, sides, warm)
        if bare is None:
            self.add(what, median(rates["ours"]), unit)
            return
        ratio = common.median_ratio(rates["ours"], rates["bare"])
        self.add(what, median(rates["ours"]), unit, median(rates["bare"]), ratio)

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Turn a failure inside into a note, so that the other figures are still measured."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.note(f"{what} failed: {type(error).__name__}: {str(error).splitlines()[:1]}")
        finally:
            gc.collect()
            if self.on_gpu:
                torch.cuda.empty_cache()


@functools.cache
def here() -> dict[str, Any]:
    """The machine and the versions."""
    from id2core import environment

    torch_cuda = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"machine": common.machine(), "versions": environment.versions() | torch_cuda}


# Card: two ceilings to read the other figures against.


def card(run: Run) -> None:
    """Rates of a large copy and a large matrix product."""
    side = product_side(run)
    run.add(f"bf16 matrix product of {side}²", product_rate(run), "FLOP/s")
    source = torch.empty(16 * side**2, dtype=torch.uint8, device=run.device)
    target = torch.empty_like(source)
    run.compare("device copy, read and written", 2 * len(source), "B/s", lambda: target.copy_(source))


# Encoder.


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def save_vae(folder: Path, config: Mapping[str, Any]) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(**config).save_pretrained(folder)
    return folder


def mini_folder() -> str:
    import id2core

    return str(Path(id2core.__file__).with_name("data") / "mini")


def network(
    folder: str, device: torch.device, dtype: torch.dtype, channels_last: bool = False
) -> Callable[[Tensor], Tensor]:
    """The bare encoder: the posterior's mode of scaled pictures that lie on the device."""
    from id2core.encoders.autoencoders import load_autoencoder

    model = load_autoencoder(folder)
    model.decoder = None
    torch.nn.Module.to(model, device, dtype)
    if channels_last:
        torch.nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda x: model.encode(x).latent_dist.mode()


def scaled(run: Run, batch: int, dtype: torch.dtype, channels_last: bool = False) -> Tensor:
    """Random pictures on the device."""
    x = torch.rand(batch, 3, 256, 256, device=run.device, dtype=torch.float32).mul_(2).sub_(1).to(dtype)
    return x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def eager(call: Callable[[Tensor], Tensor], x: Tensor) -> Work:
    return lambda: call(x)


def compiled(call: Callable[[Tensor], Tensor], x: Tensor) -> Work:
    fast = torch.compile(call, dynamic=False)
    return lambda: fast(x)


def graphed(call: Callable[[Tensor], Tensor], x: Tensor) -> Work:
    """A CUDA graph of one call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(x)
    return graph.replay


def bare_rates(run: Run, folder: str) -> None:
    """The bare network by precision, memory layout, batch size and way of launching."""
    half = run.halves[0]
    dtypes = dict.fromkeys([*run.halves, torch.float32])
    cases = [(dtype, layout, eager, run.sizes.batch) for dtype in dtypes for layout in (True, False)]
    cases += [(half, False, eager, batch) for batch in run.sizes.batches if batch != run.sizes.batch]
    if run.on_gpu:
        cases += [(half, False, graphed, batch) for batch in (run.sizes.batches[0], run.sizes.batch)]
        cases += [(half, layout, compiled, run.sizes.batch) for layout in (True, False)]
    else:
        run.note("no GPU: neither CUDA graphs nor torch.compile")
    for dtype, channels_last, launch, batch in cases:
        layout = "channels-last" if channels_last else "contiguous"
        what = f"SD2's VAE, bare, {name_of(dtype)}, {layout}, {launch.__name__}, batch {batch}"
        with run.guarded(what), torch.no_grad():
            call = network(folder, run.device, dtype, channels_last)
            work = launch(call, scaled(run, batch, dtype, channels_last))
            run.compare(what, batch, "images/s", work)


def encoder_rates(run: Run, folder: str, what: str, cases: list[tuple[torch.dtype, int]]) -> None:
    """`Encoder.encode`, from uint8 pictures in memory to latents in memory, against the bare network."""
    from id2core.encoders.registry import load_encoder

    for dtype, batch in cases:
        title = f"{what}, Encoder.encode, {name_of(dtype)}, batch {batch}"
        with run.guarded(title), torch.no_grad():
            ours = load_encoder(folder, str(run.device), name_of(dtype), batch)
            pixels = np.random.default_rng(0).integers(0, 256, (4 * batch, 256, 256, 3), np.uint8)
            call, x = network(folder, run.device, dtype), scaled(run, batch, dtype)
            run.compare(
                title,
                len(pixels),
                "images/s",
                lambda ours=ours, pixels=pixels: ours.encode(pixels),
                lambda call=call, x=x: [call(x) for _ in range(4)],
            )


def add_agreement(run: Run, what: str, encoder: Any, pixels: Any, exact: Any) -> None:
    """How an encoder's latents agree with exact ones, and with its own of other calls."""
    from benchmarks.encoder import least_cosine

    latents, place = encoder.encode(pixels), len(pixels) // 2
    distance = 1 - least_cosine(latents, exact)
    run.add(f"{what}: 1 − least cosine to the CPU's float32 latents, {len(pixels)} photos", distance, "")
    same = np.array_equal(encoder.encode(pixels), latents)
    alone = np.array_equal(encoder.encode(pixels[place : place + 1])[0], latents[place])
    run.add(f"{what}: same bits when repeated", float(same), "(1 = yes)")
    run.add(f"{what}: same bits alone and among others", float(alone), "(1 = yes)")


def encoder_agreement(run: Run, folder: str, what: str, count: int) -> None:
    """The device's latents against the CPU's in float32, by precision, and of a compiled network."""
    from id2core.encoders.registry import load_encoder

    with common.photo_folder(None, count) as photos:
        pixels = common.decoded(photos, count, 256)
    exact = load_encoder(folder, "cpu", "float32", min(count, 16)).encode(pixels)
    for dtype in dict.fromkeys(map(name_of, (*run.halves, torch.float32))):
        with run.guarded(f"{what}: agreement in {dtype}"):
            ours = load_encoder(folder, str(run.device), dtype, count)
            add_agreement(run, f"{what}, {dtype}", ours, pixels, exact)
    if run.on_gpu:
        with run.guarded(f"{what}: compiled"):
            dtype = name_of(run.halves[0])
            ours = load_encoder(folder, str(run.device), dtype, count, "on")
            add_agreement(run, f"{what}, {dtype}, compiled", ours, pixels, exact)


def decode_rates(run: Run) -> None:
    """`images.decode` by threads, and by as many decoders, each with a thread that waits for it."""
    from benchmarks.decode import drawn_photo
    from id2core.encoders import images
    from id2core.encoders.decoder_pool import DecoderPool

    with common.photo_folder(None, min(run.sizes.photos, 512)) as photos:
        small = [path.read_bytes() for path in common.pictures(photos)]
    large = [drawn_photo(seed) for seed in range(run.sizes.large_photos)] * 8

    def rate(what: str, files: list[bytes], by: str, count: int, decode: Callable[[bytes], object]) -> None:
        with ThreadPoolExecutor(count) as pool:
            work = lambda: list(pool.map(decode, files))  # noqa: E731
            run.compare(f"decode {what} JPEGs, {count} {by}", len(files), "images/s", work)

    for what, files in (("512×384", small), ("12-megapixel", large)):
        for count in run.sizes.threads:
            rate(what, files, "threads", count, images.decode)
        for count in run.sizes.decoders:
            decoders = DecoderPool(count)
            rate(what, files, "decoders", count, decoders.decode)
            decoders.close()


def stream_rates(run: Run, folder: str, what: str) -> None:
    """`embedding.embed_objects` (read, decode, encode, W, Arrow) against the encoder alone."""
    from id2core.encoders import embedding
    from id2core.encoders.registry import load_encoder
    from id2core.runs.parts import Lineage
    from id2core.store import schemas, storage
    from id2core.transforms.linear import Transform

    encoder = load_encoder(folder, str(run.device), batch_size=run.sizes.batch)
    lineage = Lineage(dict.fromkeys(schemas.ROW_IDS, "bench"), "bench", datetime.now(UTC))
    weights = np.random.default_rng(0).standard_normal((encoder.latent_size, 512), np.float32)
    with common.photo_folder(None, run.sizes.photos) as photos:
        objects = storage.list_objects(str(photos))
        pixels = common.decoded(photos, run.sizes.batch, 256)
        pixels = np.concatenate([pixels] * (len(objects) // len(pixels)))
        run.compare(
            f"{what}, embedding stream of 512×384 JPEGs ÷ Encoder.encode",
            len(pixels),
            "images/s",
            lambda: list(embedding.embed_objects(objects, encoder, Transform(weights), lineage)),
            lambda: encoder.encode(pixels),
        )


def compiled_rate(run: Run, folder: str, what: str, how: str) -> None:
    """`Encoder.encode` with a compiled network, and how long it takes to compile."""
    from id2core.encoders.registry import load_encoder

    dtype, batch = name_of(run.halves[0]), run.sizes.batch
    pixels = np.random.default_rng(0).integers(0, 256, (4 * batch, 256, 256, 3), np.uint8)
    title = f"{what}, Encoder.encode, {dtype}, batch {batch}, compiled: {how}"
    start = time.perf_counter()
    ours = load_encoder(folder, str(run.device), dtype, batch, how)
    ours.encode(pixels[:batch])
    run.add(f"{title}: loaded and first called", time.perf_counter() - start, "s")
    run.compare(title, len(pixels), "images/s", lambda: ours.encode(pixels))


def encoder(run: Run) -> None:
    """SD2's VAE and the bundled one."""
    half, sizes = run.halves[0], run.sizes
    with TemporaryDirectory(prefix="id2-bench-") as name:
        sd2 = str(save_vae(Path(name, "sd2-vae"), sizes.vae))
        bare_rates(run, sd2)
        cases = [(half, batch) for batch in dict.fromkeys((sizes.batches[0], sizes.batch, sizes.batches[-1]))]
        cases += [(dtype, sizes.batch) for dtype in (*run.halves[1:], torch.float32)]
        encoder_rates(run, sd2, "SD2's VAE", cases)
        if run.on_gpu:
            for how in ("on", "tuned"):
                with run.guarded(f"compiled: {how}"):
                    compiled_rate(run, sd2, "SD2's VAE", how)
        with run.guarded("stream"):
            stream_rates(run, sd2, "SD2's VAE")
        with run.guarded("agreement"):
            encoder_agreement(run, sd2, "SD2's VAE", max(2, sizes.agreement // 4))
    batches = dict.fromkeys((sizes.batch, sizes.batches[-1]))
    encoder_rates(run, mini_folder(), "mini", [(half, batch) for batch in batches])
    with run.guarded("agreement"):
        encoder_agreement(run, mini_folder(), "mini", sizes.agreement)
    with run.guarded("stream"):
        stream_rates(run, mini_folder(), "mini")
    with run.guarded("decoding"):
        decode_rates(run)


# Search.


@dataclass(frozen=True, eq=False)
class Corpus:
    """Random unit vectors, and queries that each lie near one of them (cosine about 0.7).

    Attributes:
        references: float32[N,m] in memory; `half` is float16[N,m] on the device.
        queries: float32[Q,m]; `own` is int64[Q], the reference that each is near.
        scores, rows: float32[C,k] and int64[C,k], the CPU's exact neighbors of the first C queries.
    """

    references: Vectors
    half: Tensor
    queries: Vectors
    own: NDArray[np.int64]
    scores: Vectors
    rows: NDArray[np.int64]

    @staticmethod
    def draw(run: Run) -> Corpus:
        import faiss

        rows, size = run.sizes.references, run.sizes.size
        references = np.empty((rows, size), np.float32)
        half = torch.empty(rows, size, dtype=torch.float16, device=run.device)
        torch.manual_seed(0)
        for start in range(0, rows, 1 << 19):
            x = torch.randn(min(1 << 19, rows - start), size, device=run.device)
            x = torch.nn.functional.normalize(x)
            half[start : start + len(x)] = x
            torch.from_numpy(references[start : start + len(x)]).copy_(x)
        rng = np.random.default_rng(1)
        own = rng.integers(0, rows, max(run.sizes.queries))
        noise = rng.standard_normal((len(own), size), np.float32) / np.float32(size**0.5)
        queries = references[own] + noise
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        nearest = faiss.knn(
            queries[: run.sizes.checked], references, TOP_K, metric=faiss.METRIC_INNER_PRODUCT
        )
        return Corpus(references, half, queries, own, *nearest)

    def check(self, run: Run, what: str, scores: NDArray[Any], rows: NDArray[Any]) -> None:
        """Add how neighbors found otherwise agree with the CPU's."""
        difference = float(np.abs(scores - self.scores).max())
        run.add(f"{what}: largest difference of a score from the CPU's", difference, "")
        run.add(f"{what}: ids equal to the CPU's", 100 * float((rows == self.rows).mean()), "%")
        run.add(f"{what}: best match equal to the CPU's", 100 * float((rows == self.rows)[:, 0].mean()), "%")


def reference_names(rows: int) -> Any:
    """Ids and URIs as long as real ones."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def names(start: int) -> Any:
        number = pc.cast(pa.array(np.arange(start, min(rows, start + (1 << 20)))), pa.string())
        uris = pc.binary_join_element_wise("gs://bucket/reference/", number, ".jpg", "")
        return pa.table({"image_id": pc.utf8_lpad(number, 64, "0"), "uri": uris})

    return pa.concat_tables(names(start) for start in range(0, rows, 1 << 20)).combine_chunks()


def product_side(run: Run) -> int:
    return 8192 if run.on_gpu else 256


def product_rate(run: Run) -> float:
    """Operations per second of a large matrix product in bfloat16."""
    side = product_side(run)
    a, b = (torch.randn(side, side, device=run.device).bfloat16() for _ in range(2))
    return median(run.rates(2 * side**3, {"product": lambda: a @ b})["product"])


def faiss_flat(corpus: Corpus) -> Any:
    """FAISS's flat index of float32, on the GPU where FAISS sees one."""
    import faiss

    flat = faiss.IndexFlatIP(corpus.references.shape[1])
    if getattr(faiss, "get_num_gpus", int)():
        flat = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), corpus.references.shape[1])
    for block in range(0, len(corpus.references), 1 << 20):
        flat.add(corpus.references[block : block + (1 << 20)])
    return flat


def shard_rates(run: Run, corpus: Corpus) -> None:
    """The project's exact shard against FAISS's flat index, and against the card's matrix product."""
    from id2core.search import shards

    names = reference_names(len(corpus.references))
    start = time.perf_counter()
    shard = shards.build(corpus.references, names)
    run.add("shard built from memory", time.perf_counter() - start, "s")
    matches = shard.search(corpus.queries[: run.sizes.checked], TOP_K)
    rows = np.array([int(i) for i in matches["reference_id"].to_pylist()]).reshape(-1, TOP_K)
    corpus.check(run, "shard", matches["score"].to_numpy().reshape(-1, TOP_K), rows)
    flat, peak = faiss_flat(corpus), product_rate(run)
    for count in run.sizes.queries:
        queries = corpus.queries[:count]
        run.compare(
            f"shard, {count} queries at once ÷ FAISS flat, float32",
            count,
            "queries/s",
            lambda queries=queries: shard.search(queries, TOP_K),
            lambda queries=queries: flat.search(queries, TOP_K),
        )
    operations = 2 * corpus.references.size
    for what, work in (
        ("shard", lambda: shard.search(corpus.queries, TOP_K)),
        ("its index alone", lambda: shard.index.search(corpus.queries, TOP_K)),
    ):
        rate = median(run.rates(len(corpus.queries), {what: work})[what])
        share = rate * operations / peak
        run.add(f"{what}, {len(corpus.queries)} queries at once, of the bf16 product's rate", share, "")


def half_rates(run: Run, corpus: Corpus) -> None:
    """FAISS's flat index of float16 on the GPU."""
    import faiss

    config, resources = faiss.GpuIndexFlatConfig(), faiss.StandardGpuResources()
    config.useFloat16 = True
    flat = faiss.GpuIndexFlatIP(resources, run.sizes.size, config)
    start = time.perf_counter()
    for block in range(0, len(corpus.references), 1 << 20):
        flat.add(corpus.references[block : block + (1 << 20)])
    run.add("FAISS flat, float16, built from memory", time.perf_counter() - start, "s")
    corpus.check(run, "FAISS flat, float16", *flat.search(corpus.queries[: run.sizes.checked], TOP_K))
    for count in run.sizes.queries:
        queries = corpus.queries[:count]
        work = lambda queries=queries: flat.search(queries, TOP_K)  # noqa: E731
        run.compare(f"FAISS flat, float16, {count} queries at once", count, "queries/s", work)


def torch_search(half: Tensor, queries: Vectors, block: int = 1 << 20) -> tuple[Vectors, NDArray[np.int64]]:
    """Matrix product and top-k in blocks of references: float16 in, float32 sums."""
    q = torch.from_numpy(queries).to(half.device, torch.float16)
    scores = torch.empty(len(q), 0, device=half.device)
    rows = torch.empty(len(q), 0, dtype=torch.int64, device=half.device)
    for start in range(0, len(half), block):
        part = half[start : start + block]
        dots = torch.mm(q, part.T, out_dtype=torch.float32) if q.is_cuda else q.float() @ part.float().T
        best, where = dots.topk(min(TOP_K, len(part)))
        scores, rows = torch.cat([scores, best], 1), torch.cat([rows, where + start], 1)
        scores, order = scores.topk(TOP_K)
        rows = rows.gather(1, order)
    return scores.cpu().numpy(), rows.cpu().numpy()


def torch_rates(run: Run, corpus: Corpus) -> None:
    """The same search written with torch."""
    corpus.check(run, "torch, float16", *torch_search(corpus.half, corpus.queries[: run.sizes.checked]))
    for count in run.sizes.queries:
        block = 1 << 20 if count <= 1024 else 1 << 18
        work = lambda q=corpus.queries[:count], block=block: torch_search(corpus.half, q, block)  # noqa: E731
        run.compare(f"torch matmul + topk, float16, {count} queries at once", count, "queries/s", work)


def code_rates(run: Run, corpus: Corpus) -> None:
    """The project's compressed index, whose codes a GPU searches where FAISS sees one."""
    from id2core.search import compressed, index_strings

    sizes = run.sizes
    form = index_strings.parse(f"IVF{sizes.lists},PQ{sizes.sub_vectors}np")
    model = compressed.train(form, corpus.references[: sizes.trained])
    some = corpus.references[: min(len(corpus.references), sizes.coded)]
    blocks = [some[start : start + (1 << 17)] for start in range(0, len(some), 1 << 17)]
    start = time.perf_counter()
    codes = [model.encode(block) for block in blocks]
    run.add(f"{form.text}, {len(some):,} encoded", time.perf_counter() - start, "s")
    start = time.perf_counter()
    index = model.over(codes)
    run.add(f"{form.text}, {len(some):,} codes loaded", time.perf_counter() - start, "s")
    queries = corpus.queries[: max(sizes.queries)]
    for depth in (TOP_K, 200):
        work = lambda depth=depth: index.search(queries, depth, 16)  # noqa: E731
        title = f"{form.text}, {len(some):,} codes, 16 probes, {depth} found, {len(queries)} queries at once"
        run.compare(title, len(queries), "queries/s", work)
    near = corpus.own < len(some)
    hits = (work()[1] == corpus.own[:, None]).any(axis=1)
    run.add(f"{title}: near reference found", 100 * float(hits[near].mean()), "%")


def ivfpq_rates(run: Run, corpus: Corpus) -> None:
    """FAISS's IVF-PQ on the GPU: speed, memory, and how often the near reference comes first."""
    import faiss

    sizes, resources, config = run.sizes, faiss.StandardGpuResources(), faiss.GpuIndexIVFPQConfig()
    config.useFloat16LookupTables = True
    ivf = faiss.GpuIndexIVFPQ(
        resources, sizes.size, sizes.lists, sizes.sub_vectors, 8, faiss.METRIC_INNER_PRODUCT, config
    )
    title = f"IVF{sizes.lists},PQ{sizes.sub_vectors}"
    start = time.perf_counter()
    ivf.train(corpus.references[: sizes.trained])
    run.add(f"{title}, trained on {sizes.trained:,}", time.perf_counter() - start, "s")
    start = time.perf_counter()
    for block in range(0, len(corpus.references), 1 << 20):
        ivf.add(corpus.references[block : block + (1 << 20)])
    run.add(f"{title}, filled", time.perf_counter() - start, "s")
    count = max(sizes.queries)
    for probes in (16, 64):
        ivf.nprobe = probes
        work = lambda: ivf.search(corpus.queries[:count], TOP_K)  # noqa: E731
        run.compare(f"{title}, {probes} probes, {count} queries at once", count, "queries/s", work)
        hits = (work()[1] == corpus.own[:count, None]).any(axis=1).mean()
        run.add(f"{title}, {probes} probes, near reference among {TOP_K}", 100 * float(hits), "%")


def search(run: Run) -> None:
    """Exact search by three ways, and IVF-PQ."""
    import faiss

    start = time.perf_counter()
    corpus = Corpus.draw(run)
    run.add("corpus drawn, CPU's neighbors found", time.perf_counter() - start, "s")
    parts: list[Callable[[Run, Corpus], None]] = [torch_rates, shard_rates, code_rates]
    if getattr(faiss, "get_num_gpus", int)():
        parts += [half_rates, ivfpq_rates]
    else:
        run.note(f"FAISS {faiss.__version__} sees no GPU: its float16 and IVF-PQ indexes are left out")
    for part in parts:
        with run.guarded(part.__name__):
            part(run, corpus)


# Training of W.


def draw_pairs(run: Run, classes: int, each: int) -> Any:
    """Origins, and translations of each, as `training.pairs` leaves them; held in memory."""
    from id2core.training.pairs import Pairs

    size = run.sizes.latent
    latents = np.empty((classes, 1 + each, size), np.float16)
    torch.manual_seed(0)
    spread = (1 / (1 + torch.arange(size, device=run.device) / 20).sqrt())[torch.randperm(size)]
    for start in range(0, classes, 4096):
        count = min(4096, classes - start)
        x = 1.5 * torch.randn(count, 1 + each, size, device=run.device)
        x[:, 0] = 0
        x += spread * torch.randn(count, 1, size, device=run.device)
        torch.from_numpy(latents[start : start + count]).copy_(x.half())
    offsets = np.arange(0, classes * (1 + each) + 1, 1 + each)
    return Pairs(latents.reshape(-1, size), [f"{i:064x}" for i in range(classes)], offsets, {})


def fit_rate(run: Run, pairs: Any, **settings: Any) -> tuple[float, float]:
    """Steps per second of `gradient.fit`, and the seconds of an epoch's end (validation and checkpoint)."""
    from benchmarks.training import Marks
    from id2core.training import gradient
    from id2core.training.config import GradientConfig

    config = GradientConfig(epochs=1, iterations=run.sizes.steps, dimensions=run.sizes.columns, **settings)
    marks = Marks()
    with TemporaryDirectory(prefix="id2-bench-") as out:
        gradient.fit(pairs, config, Path(out), device=str(run.device), progress=marks)
        return marks.steps_per_second, time.perf_counter() - marks.times[-1]


def plain_rate(run: Run, pairs: Any, tf32: bool) -> float:
    """Steps per second of a plain loop: latents on the device, CosFace, fused Adam, a moving average."""
    from pytorch_metric_learning.losses import CosFaceLoss

    latents, labels = torch.from_numpy(pairs.latents).to(run.device), torch.from_numpy(pairs.labels)
    classes, steps = len(pairs.origin_ids) * 9 // 10, run.sizes.steps
    model = torch.nn.Linear(latents.shape[1], run.sizes.columns, bias=False).to(run.device)
    average = copy.deepcopy(model)
    loss = CosFaceLoss(classes, run.sizes.columns, margin=0.35, scale=64.0).to(run.device)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=3.5e-4, fused=True)
    labels, at_once = labels.to(run.device), min(classes, 128)

    def step() -> None:
        chosen = torch.randperm(classes, device=run.device)[:at_once]
        rows = (chosen[:, None] * 4 + torch.arange(4, device=run.device)).flatten()
        value = loss(model(latents[rows].float()), labels[rows].long())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            average.weight.lerp_(model.weight, 1e-4)

    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        return median(run.rates(steps, {"bare": lambda: [step() for _ in range(steps)]})["bare"])
    finally:
        torch.set_float32_matmul_precision("highest")


def training(run: Run) -> None:
    """W by gradient descent at the paper's size, and in closed form."""
    pairs = draw_pairs(run, run.sizes.classes, 3)
    bare = None
    with run.guarded("plain loop"):
        bare = plain_rate(run, pairs, tf32=False)
        run.add("plain loop, float32", bare, "steps/s")
    with run.guarded("plain loop"):
        run.add("plain loop, TF32", plain_rate(run, pairs, tf32=True), "steps/s")
    for what, settings in {
        "precision auto": {},
        "float32": {"precision": "float32"},
        f"precision auto, {run.sizes.negatives} negatives": {"negatives": run.sizes.negatives},
    }.items():
        with run.guarded(what):
            rate, ending = fit_rate(run, pairs, **settings)
            ratio = rate / bare if bare else None
            run.add(f"gradient.fit, {what} ÷ plain loop in float32", rate, "steps/s", bare, ratio)
            run.add(f"gradient.fit, {what}: validation and checkpoint of an epoch", ending, "s")
            minutes = (25 * 2000 / rate + 25 * ending) / 60
            run.add(f"gradient.fit, {what}: 25 epochs of 2,000 steps, estimated", minutes, "min")
    del pairs
    with run.guarded("closed form"):
        closed_form_seconds(run)


def closed_form_seconds(run: Run) -> None:
    from id2core.training import closed_form

    pairs = draw_pairs(run, run.sizes.closed_form // 20, 19)
    start = time.perf_counter()
    closed_form.fit(pairs, run.sizes.columns)
    run.add(
        f"closed form of {run.sizes.closed_form:,} latents (on the CPU)", time.perf_counter() - start, "s"
    )


# Translation.


def sd2_pipeline(run: Run, dtype: torch.dtype) -> Any:
    """SD2's image-to-image pipeline with random weights; the tokenizer is the bundled one."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from id2core.translation import loading, models

    folder, _ = loading.locate(models.find("mini-a"))
    tokens = run.sizes.text["max_position_embeddings"]
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=tokens)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        **run.sizes.text,
    )
    torch.manual_seed(0)
    with run.device:
        parts = {
            "vae": AutoencoderKL(**run.sizes.vae),
            "unet": UNet2DConditionModel(**run.sizes.unet),
            "text_encoder": CLIPTextModel(text),
        }
    # Module.to itself: diffusers' own `to` warns about every cast.
    parts = {name: torch.nn.Module.to(part, dtype).eval() for name, part in parts.items()}
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**schedule, steps_offset=1, set_alpha_to_one=False, clip_sample=False,
                              prediction_type="v_prediction")  # fmt: skip
    return StableDiffusionImg2ImgPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def scenes(count: int, side: int) -> list[Any]:
    from tests.drawing import scene

    return [scene(seed, (side, side)) for seed in range(count)]


def bare_translation(pipeline: Any, model: Any, pictures: list[Any]) -> Work:
    """The bare diffusers call on all pictures at once."""

    def work() -> None:
        pipeline(
            prompt=[PROMPT] * len(pictures),
            image=pictures,
            strength=model.strength,
            num_inference_steps=model.steps,
            guidance_scale=model.guidance,
            generator=[torch.Generator().manual_seed(i) for i in range(len(pictures))],
        )

    return work


def our_translation(translator: Any, pictures: list[Any]) -> Work:
    prompts, seeds = [PROMPT] * len(pictures), list(range(len(pictures)))
    return lambda: translator.attempt(pictures, prompts, seeds)


def sd2_rates(run: Run, dtype: torch.dtype, with_bare: bool) -> None:
    from id2core.translation.spec import DiffusionModel
    from id2core.translation.translators import SDEdit, settle

    model = DiffusionModel(
        name="sd2-architecture", source="-", strength=0.9, steps=run.sizes.denoising, size=run.sizes.side
    )
    short = model.replace(steps=3)
    pictures = scenes(run.sizes.pictures, run.sizes.side)
    sliced = not run.on_gpu  # as `loading.load` has it at this size
    translator = SDEdit(short, settle(sd2_pipeline(run, dtype), run.device, sliced), "random")
    our_translation(translator, pictures)()
    bare = None
    if with_bare:
        pipeline = sd2_pipeline(run, dtype).to(run.device)
        pipeline.set_progress_bar_config(disable=True)
        bare_translation(pipeline, short, pictures)()
        bare = bare_translation(pipeline, model, pictures)
    if run.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    translator.model = model
    ours = our_translation(translator, pictures)
    what = f"SD2's architecture at {run.sizes.side}², {model.steps} steps × 0.9, {name_of(dtype)}, batch"
    run.compare(f"{what} {translator.batch_size}", len(pictures), "images/s", ours, bare, warm=False)
    if run.on_gpu and not with_bare:
        peak = torch.cuda.max_memory_allocated() / 2**30
        run.add(f"{what} {translator.batch_size}: peak GPU memory", peak, "GiB")


def mini_rates(run: Run) -> None:
    """The bundled mini-a by batch size, and the same bits with any neighbors."""
    from diffusers import AutoPipelineForImage2Image

    from id2core.translation import loading, models

    recipe = models.find("mini-a", steps=None if run.on_gpu else run.sizes.denoising)
    translator = loading.load(recipe, str(run.device))
    folder, _ = loading.locate(recipe)
    dtype = translator.pipeline.dtype
    pipeline = AutoPipelineForImage2Image.from_pretrained(folder, torch_dtype=dtype).to(run.device)
    pipeline.set_progress_bar_config(disable=True)
    for batch in dict.fromkeys((run.sizes.pictures, translator.batch_size)):
        translator.batch_size = batch
        pictures = scenes(batch, recipe.size)
        run.compare(
            f"mini-a, {recipe.steps} steps × 0.9, {name_of(dtype)}, batch {batch}",
            batch,
            "images/s",
            our_translation(translator, pictures),
            bare_translation(pipeline, recipe, pictures),
        )
    whole = [np.asarray(p) for p in our_translation(translator, pictures)()]
    again = [np.asarray(p) for p in our_translation(translator, pictures)()]
    place = len(pictures) // 2
    (alone,) = translator.attempt(pictures[place : place + 1], [PROMPT], [place])
    run.add("mini-a: same bits when repeated", float(np.array_equal(whole, again)), "(1 = yes)")
    run.add("mini-a: same bits alone", float(np.array_equal(whole[place], np.asarray(alone))), "(1 = yes)")


def translation(run: Run) -> None:
    """SD2's architecture, and the bundled model."""
    with run.guarded("mini-a"):
        mini_rates(run)
    for dtype in reversed(run.halves):
        with run.guarded(f"SD2 in {name_of(dtype)}"):
            sd2_rates(run, dtype, with_bare=dtype == run.halves[-1])


SECTIONS: dict[str, Callable[[Run], None]] = {
    "card": card,
    "encoder": encoder,
    "search": search,
    "training": training,
    "translation": translation,
}


def table(run: Run) -> str:
    head = "| section | what | ours | bare loop | ratio |\n|---|---|---:|---:|---:|"
    lines = [head, *(figure.line for figure in run.figures)]
    return "\n".join([*lines, "", *(f"- {note}" for note in run.notes)])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing for each side of a figure")
    parser.add_argument("--out", type=Path, help="JSON file of the figures, rewritten after each")
    parser.add_argument("--tiny", action="store_true", help="small sizes: tries the script, measures nothing")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.tiny):
        raise SystemExit("no GPU here: give --tiny to try the script on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(TINY if options.tiny else FULL, device, options.seconds, options.out)
    for name in options.only:
        run.section, start = name, time.perf_counter()
        missing = [package for package in NEEDS[name] if importlib.util.find_spec(package) is None]
        if missing:
            run.note(f"skipped, as {', '.join(missing)} is not installed")
            continue
        with run.guarded("section"):
            SECTIONS[name](run)
        print(f"{name}: {time.perf_counter() - start:.0f} s in all", file=sys.stderr, flush=True)
    print(json.dumps(here(), ensure_ascii=False))
    print(table(run))


if __name__ == "__main__":
    main()
