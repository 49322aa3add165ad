"""Our jobs beside other projects' tools at the same work, each side as its own documentation says.

Run `python -m benchmarks.peers [--photos DIR] [--bench DIR] [--only search index tar embed]
[--references 100000] [--queries 1000] [--count 1000] [--rounds 3] [--index RR448,IVF256,RaBitQ]
[--recall 0.95]`; prints one line of JSON. The tools are not among the project's requirements:

    pip install --no-deps webdataset==1.0.2 braceexpand clip-retrieval==2.45.0 autofaiss==2.18.0 \
        embedding-reader==1.8.1 fire termcolor tqdm pandas fsspec python-dateutil pytz tzdata six

A section whose tool is missing says so. The sections:

* search: `Shard.search` of one shard ÷ FAISS's flat index, ÷ `faiss.contrib.big_batch_search` over an IVF
  index of which it visits every list, and ÷ torch's matrix product and `topk` in blocks.
* index: a compressed index built and searched ÷ autofaiss, which may take as many bytes for a reference.
  Ours is built for `--recall`, and for as much as autofaiss finds. autofaiss trains for ten minutes or more.
  With `--bench`, a folder of `id2 experiment data`, descriptors are real, as those of `benchmarks.indexes`.
* tar: pictures of tar shards listed, read, hashed, and decoded by our stream ÷ read and decoded by webdataset
  with a `DataLoader` of one worker for each core. Both make squares of 256 pixels.
* embed: the embed job from a folder of JPEGs to Parquet ÷ clip-retrieval's reader, runner, and writer from
  the same folder to npy and Parquet, with the same encoder, W, and batch size.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module, util
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from benchmarks import common
from benchmarks.common import Bar, Row
from id2core.store.datasets import Dataset

Vectors = NDArray[np.float32]
BAR = Bar(0.95)
TOP_K = 10
SIZE = 256
LEAST_COSINE = 0.99
TORCH_ROWS = 16_384
LISTS = 16
# Of a code in the section `index`; FAISS keeps the number of a row beside it, in as many bytes on both sides.
CODE_BYTES, ROW_BYTES = 64, 8
DRAWN_VIEWS = 64
CORES = os.cpu_count() or 1


def row(what: str, unit: str, amount: int, ours: list[float], other: list[float]) -> Row:
    """Return a row of rates, from the seconds of both sides."""
    rates = [f"{amount / median(seconds):,.0f} {unit}/s" for seconds in (ours, other)]
    return Row(what, *rates, common.median_ratio(other, ours), BAR)


def search(options: argparse.Namespace) -> Iterator[Row]:
    import faiss
    import torch
    from faiss.contrib import big_batch_search

    from benchmarks.search import by_faiss, check, names, unit
    from id2core.search import shards

    references, queries = unit(options.references, 512, 0), unit(options.queries, 512, 1)
    shard = shards.build(references, names(range(len(references)), "r"))
    flat = faiss.IndexFlatIP(512)
    flat.add(references)
    check(shard, flat, queries)
    lists = faiss.index_factory(512, f"IVF{LISTS},Flat", faiss.METRIC_INNER_PRODUCT)
    lists.train(references[: 256 * LISTS])
    lists.add(references)
    lists.nprobe = LISTS
    blocks = [torch.from_numpy(references[i : i + TORCH_ROWS]) for i in range(0, len(references), TORCH_ROWS)]
    asked = torch.from_numpy(queries)

    def by_torch() -> torch.Tensor:
        best = [torch.topk(asked @ block.T, min(TOP_K, len(block))) for block in blocks]
        scores = torch.cat([values for values, _ in best], 1)
        rows = torch.cat([found + i * TORCH_ROWS for i, (_, found) in enumerate(best)], 1)
        values, places = torch.topk(scores, TOP_K)
        rows.gather(1, places)
        return values

    def by_lists() -> Any:
        return big_batch_search.big_batch_search(lists, queries, TOP_K, method="knn_function", threaded=2)

    expected = by_faiss(flat, queries)
    np.testing.assert_allclose(by_torch().numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(by_lists()[0], expected, atol=1e-5)
    sides = {
        "ours": lambda: shard.search(queries, TOP_K),
        "FAISS's flat index": lambda: by_faiss(flat, queries),
        "big_batch_search, every list": by_lists,
        "torch, product and topk": by_torch,
    }
    times = common.interleaved(sides, options.rounds)
    size = f"{options.queries:,} queries × {options.references:,} references"
    for name in list(sides)[1:]:
        yield row(f"search step, {size} ÷ {name}", "queries", options.queries, times["ours"], times[name])


def drawn(references: int, queries: int) -> tuple[Vectors, Vectors]:
    """Draw views of drawn photos: references and uploads, float32[…,480], of which each has its own noise."""
    from benchmarks.search import unit

    photos = unit(-(-references // DRAWN_VIEWS), 480, 0)
    sides = []
    for seed, rows in enumerate((references, queries), 1):
        some = photos[np.arange(rows) % len(photos)] + unit(rows, 480, seed)
        sides.append(some / np.linalg.norm(some, axis=1, keepdims=True))
    return sides[0], sides[1]


def index(options: argparse.Namespace) -> Iterator[Row]:
    import_module("autofaiss")
    from benchmarks import indexes
    from benchmarks.search import write_embeddings
    from id2.indexing import Indexer
    from id2core.runs.execution import Execution
    from id2core.search import coded, index_strings
    from id2core.search.coded import CodedShard
    from id2core.search.flat import FlatIndex
    from id2core.settings import Settings

    import_module("beam_jobs.index")  # not on the clock
    draw = (lambda *sizes: indexes.real(options.bench, *sizes)) if options.bench else drawn
    references, queries = draw(options.references, options.queries)
    if (taken := index_strings.parse(options.index).code_bytes(references.shape[1])) > CODE_BYTES:
        raise SystemExit(f"{options.index} has codes of {taken} bytes, and {CODE_BYTES} are compared")
    _, true = FlatIndex(references).search(queries, TOP_K)

    def recall(found: NDArray[np.int64]) -> float:
        return float((found[:, :, None] == true[:, None]).any(1).mean())

    with TemporaryDirectory(prefix="id2-bench-") as name:
        folder = Path(name)
        write_embeddings(folder / "embeddings", references, "r")
        (folder / "npy").mkdir()
        np.save(folder / "npy" / "part.npy", references)
        corpus = Dataset.open(str(folder / "embeddings"))

        def make(least: float) -> CodedShard:
            settings = Settings(index=options.index, index_recall=least)
            made = Indexer(settings, Execution.begin(), []).make(corpus, anew=True)
            return coded.load(made, corpus.files)

        def find(shard: CodedShard) -> NDArray[np.int64]:
            table = shard.search(queries, TOP_K)
            asked = table["query_row"].to_numpy()
            found = np.full((len(queries), TOP_K), -1)
            rows = [int(Path(uri).stem) for uri in table["reference_uri"].to_pylist()]
            found[asked, np.arange(len(asked)) - np.searchsorted(asked, asked)] = rows
            return found

        theirs = _Autofaiss(folder, options.references)
        built_theirs = common.seconds(theirs.build)
        recall_theirs = recall(theirs.search(queries))
        start = time.perf_counter()
        shard = make(options.recall)
        built = time.perf_counter() - start
        alike = make(recall_theirs)
        recalls = recall(find(shard)), recall(find(alike))
        sides = {
            "ours": lambda: shard.search(queries, TOP_K),
            "alike": lambda: alike.search(queries, TOP_K),
            "theirs": lambda: theirs.search(queries),
        }
        times = common.interleaved(sides, options.rounds)
        theirs.tune(CORES * 1000 * median(times["ours"]) / len(queries))
        recall_tuned = recall(theirs.search(queries))

    size = f"{options.references:,} references in {CODE_BYTES} bytes each"
    yield Row(
        f"index of {size} built, {options.index} ÷ autofaiss, {theirs.key}",
        f"{built:,.1f} s",
        f"{built_theirs:,.1f} s",
        round(built_theirs / built, 2),
        BAR,
    )
    what = f"{len(queries):,} queries × {options.references:,} by these"
    asked = f"asked for autofaiss's recall ({recalls[1]:.1%} and {recall_theirs:.1%} found)"
    yield row(f"{what}, {asked}", "queries", len(queries), times["alike"], times["theirs"])
    asked = f"asked for {options.recall:.0%} ({recalls[0]:.1%} and {recall_theirs:.1%} found)"
    yield replace(row(f"{what}, {asked}", "queries", len(queries), times["ours"], times["theirs"]), bar=None)
    yield _recalls(f"recall of the 10 best, {what} ÷ autofaiss's own tuning", recalls[0], recall_theirs)
    yield _recalls("the same ÷ autofaiss tuned for the time that ours takes", recalls[0], recall_tuned)


def _recalls(what: str, ours: float, theirs: float) -> Row:
    return Row(what, f"{ours:.1%}", f"{theirs:.1%}", round(ours / theirs, 3), BAR)


class _Autofaiss:
    """An index as autofaiss chooses, trains, and tunes it, from a folder of npy files."""

    def __init__(self, folder: Path, references: int) -> None:
        import faiss

        self._folder = folder
        # One byte more: autofaiss compares rounded quotients.
        self._memory = f"{references * (CODE_BYTES + ROW_BYTES) + 1}B"
        self._module: Any = import_module("autofaiss")
        self._index: Any = None
        self.key = ""
        # FAISS 1.14.2 has renamed an argument that autofaiss 2.18 passes by its name.
        named = {"OPQMatrix": lambda d, M, d2: faiss.OPQMatrix(d, M, d2)}  # noqa: N803
        factory: Any = import_module("autofaiss.indices.index_factory")
        factory.faiss = SimpleNamespace(**vars(faiss) | named)

    def build(self) -> None:
        import faiss

        # With NumPy 2, autofaiss cannot write its index: its facts have a float32, which JSON does not take.
        self._index, facts = self._module.build_index(
            embeddings=str(self._folder / "npy"),
            save_on_disk=False,
            max_index_memory_usage=self._memory,
            current_memory_available=f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_AVPHYS_PAGES')}B",
            metric_type="ip",
            verbose=logging.WARNING,
        )
        faiss.write_index(self._index, str(self._folder / "knn.index"))
        self.key = facts["index_key"]

    def tune(self, milliseconds: float) -> None:
        """Let it find as much as it can in some time for a query; searches of one query use one core."""
        self._module.tune_index(
            self._index,
            self.key,
            max_index_query_time_ms=milliseconds,
            save_on_disk=False,
            verbose=logging.WARNING,
        )

    def search(self, queries: Vectors) -> NDArray[np.int64]:
        rows: NDArray[np.int64] = self._index.search(queries, TOP_K)[1]
        return rows


def square(picture: Image.Image) -> NDArray[np.uint8]:
    """Return a picture as `preprocess` of the peers does: Pillow alone, uint8[256,256,3]."""
    return np.array(picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _as_square(sample: dict[str, Any]) -> tuple[str, NDArray[np.uint8]]:
    data = next(sample[suffix] for suffix in ("jpg", "jpeg", "png") if suffix in sample)
    return sample["__key__"], square(Image.open(io.BytesIO(data)))


def tar(options: argparse.Namespace) -> Iterator[Row]:
    import torch

    webdataset = import_module("webdataset")
    from id2core.encoders.images import DEFAULT_LIMITS
    from id2core.encoders.pictures import Picture, read_picture, reading_threads
    from id2core.runs import parts
    from id2core.sources import registry
    from id2core.store.storage import Object

    with common.photo_folder(options.photos, options.count) as photos, TemporaryDirectory() as name:
        shards = common.tar_shards(photos, Path(name))

        def ours() -> None:
            listed = [item for item in registry.parse(f"tar:{name}").list() if isinstance(item, Object)]
            threads = reading_threads(listed)
            read = parts.read_ahead(listed, lambda obj: read_picture(obj, SIZE, DEFAULT_LIMITS), 64, threads)
            assert sum(isinstance(picture, Picture) for _, picture in read) == options.count

        def theirs() -> None:
            dataset = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False)
            loader = torch.utils.data.DataLoader(
                dataset.map(_as_square), batch_size=16, num_workers=CORES, collate_fn=list
            )
            assert sum(len(batch) for batch in loader) == options.count

        ours()
        times = common.interleaved({"ours": ours, "theirs": theirs}, options.rounds)
    what = f"{options.count:,} photos of tar shards, decoded ÷ webdataset"
    yield row(what, "images", options.count, times["ours"], times["theirs"])


def embed(options: argparse.Namespace) -> Iterator[Row]:
    reader, runner, writer = (_of_clip_retrieval(name) for name in ("reader", "runner", "writer"))
    from beam_jobs import embed as embed_job
    from id2core.encoders.embed_job import EmbedJob
    from id2core.runs.execution import Execution

    outs = count()
    with common.photo_folder(options.photos, options.count) as photos, TemporaryDirectory() as name:

        def place() -> str:
            return str(Path(name, str(next(outs))))

        encoder, transform = EmbedJob(str(photos), place()).load()

        def mapper(batch: dict[str, Any]) -> dict[str, Any]:
            descriptors = transform.apply(encoder.encode(batch["image_tensor"].numpy()))
            return {"image_embs": descriptors.astype(np.float16), "image_filename": batch["image_filename"]}

        def files(sampler: Callable[[list[str]], list[str]]) -> Any:
            kinds = {"enable_text": False, "enable_image": True, "enable_metadata": False}
            return reader.FilesReader(sampler, square, None, photos, encoder.batch_size, CORES, **kinds)

        def theirs() -> Path:
            folder = place()

            def output(partition: int) -> Any:
                return writer.NumpyWriter(partition, folder, False, True, False, 1)

            runner.Runner(files, lambda: mapper, output, lambda partition: _Silent(), 1)(0)
            return Path(folder)

        def ours() -> Dataset:
            made = embed_job.run(EmbedJob(str(photos), place()), Execution.begin())
            assert made.embedded == options.count
            return made.embeddings

        _check_alike(ours(), theirs())
        times = common.interleaved({"ours": ours, "theirs": theirs}, options.rounds)
    what = f"embed job, {options.count:,} JPEGs by mini ÷ clip-retrieval's loop with the same encoder"
    yield row(what, "images", options.count, times["ours"], times["theirs"])


def _check_alike(ours: Dataset, theirs: Path) -> None:
    """Both sides must describe the same pictures alike, or their times mean nothing.

    The pixels of the two decoders differ a little, and clip-retrieval keeps descriptors in float16.
    """
    paths = parquet.read_table(theirs / "metadata" / "metadata_0.parquet")["image_path"].to_pylist()
    vectors = np.load(theirs / "img_emb" / "img_emb_0.npy").astype(np.float32)
    described = {Path(path).name: vector for path, vector in zip(paths, vectors, strict=True)}
    for table in ours.tables(["uri", "descriptor"]):
        for uri, vector in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
            cosine = np.dot(vector, described.pop(Path(uri).name))
            assert cosine >= LEAST_COSINE, f"{uri}: {cosine}"
    assert not described


def _of_clip_retrieval(name: str) -> Any:
    """Import a module without its package, which would import a web server."""
    package = util.find_spec("clip_retrieval")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(name="clip_retrieval")
    path = Path(package.submodule_search_locations[0], "clip_inference", f"{name}.py")
    spec = util.spec_from_file_location(f"clip_inference_{name}", path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(name=str(path))
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Silent:
    """A logger of clip-retrieval that logs nothing."""

    def start(self) -> None: ...

    def end(self) -> None: ...

    def __call__(self, stats: dict[str, Any]) -> None: ...


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "search": search,
    "index": index,
    "tar": tar,
    "embed": embed,
}


def main() -> None:
    parser = common.parser(__doc__)
    common.photos_option(parser)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--references", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--bench", help="folder of id2 experiment data, for real descriptors")
    parser.add_argument("--index", default="RR448,IVF256,RaBitQ")
    parser.add_argument("--recall", type=float, default=0.95, help="that our index is asked for")
    parser.add_argument("--count", type=int, default=1000, help="photos")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for name in options.only:
        try:
            rows += SECTIONS[name](options)
        except ModuleNotFoundError as error:
            missing[name] = f"{error.name} is not installed"
    common.report("peers", rows, missing=missing)


if __name__ == "__main__":
    main()
