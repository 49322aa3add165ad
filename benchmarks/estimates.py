"""Compare `id2 estimate` with real jobs: seconds and stored bytes at several sizes.

Run `python -m benchmarks.estimates [--only search embedding reprojection index scan] [--sizes 10000 100000]
[--photos DIR]`; prints one line of JSON. Refresh the rates on the same machine first (`python -m
benchmarks.rates`). Without `--sizes`, each job has its own, and all together take some minutes.

The search is of 1,000 uploads among drawn descriptors, with shards of the default size. The embedding is of
drawn 512×384 JPEGs by `pdq`. The index is of drawn descriptors, and is then searched by the same 1,000
uploads. A scan is of so many photos among as many others, by `mini`, under views and without. A ratio is
estimate ÷ real run. The bar is 25% to either side.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import id2
from benchmarks import common, index_rates, rates
from benchmarks.common import Bar, Row
from id2core import defaults
from id2core.estimates import sizes, stages
from id2core.estimates.rates import DESCRIPTOR_SIZE, LATENT_SIZE, Lookup, RateFile
from id2core.estimates.rates import SIZES as SIZES_OF
from id2core.estimates.stages import Stage
from id2core.estimates.workload import CodeSearch, Workers, Workload
from id2core.search import index_strings
from id2core.store.datasets import Dataset

BAR = Bar(0.75, 1.25)
QUERIES = 1000
# The index of some references: lists as many as about the square root of them.
INDEX = "RR448,IVF{},RaBitQ"
PROBES, CANDIDATES = 32, 400


def seconds_row(what: str, stage: Stage, seconds: float) -> Row:
    estimated = stage.wall
    return Row(what, f"{estimated:.1f} s", f"{seconds:.1f} s", round(estimated / seconds, 3), BAR)


def bytes_row(what: str, estimated: float, made: Dataset) -> Row:
    held = sum(file.bytes for file in made.files)
    ours, other = (f"{count / 1e6:.2f} MB" for count in (estimated, held))
    return Row(what, ours, other, round(estimated / held, 3), BAR)


def search(rate: Lookup, workers: Workers, references: int, folder: Path) -> Iterator[Row]:
    load = Workload(references, QUERIES, top_k=rates.TOP_K)
    stage = stages.search(rate, load, workers, QUERIES, references, "search").on(1)
    plan = stages.search_layout(load, workers, QUERIES, references, 1)
    corpora = rates.draw_search(folder / "corpora", references, QUERIES)
    rates.SearchRun(rates.draw_few(folder / "warm"), "matches")
    run = rates.SearchRun(corpora, "matches")
    what = f"search of {QUERIES:,} × {references:,}, {plan.shards} shards"
    yield seconds_row(what, stage, run.seconds)
    yield bytes_row(f"matches of {what}", QUERIES * rates.TOP_K * rate("match_row_bytes"), run.matches)


def embedding(rate: Lookup, workers: Workers, images: int, folder: Path) -> Iterator[Row]:
    load = Workload(images, 1, encoder="pdq")
    stage = stages.embedding(rate, load, workers, images, "embedding").on(1)
    rates.embed_seconds(folder / "warm", 1, "pdq")
    seconds, _ = rates.embed_seconds(folder, images, "pdq")
    yield seconds_row(f"embedding of {images:,} by pdq", stage, seconds)


def reprojection(rate: Lookup, workers: Workers, rows: int, folder: Path) -> Iterator[Row]:
    load = Workload(rows, 1, nights=1)
    stage = stages.reprojection(rate, load, workers).on(1)
    rates.reproject_seconds(folder, 4096)
    place = folder / "corpus"
    place.mkdir()
    seconds, made = rates.reproject_seconds(place, rows)
    yield seconds_row(f"re-projection of {rows:,}", stage, seconds)
    estimated = sizes.embeddings_bytes(rate, rows, LATENT_SIZE, DESCRIPTOR_SIZE)
    yield bytes_row(f"embeddings of {rows:,} drawn latents", estimated, made)


def index(rate: Lookup, workers: Workers, references: int, folder: Path) -> Iterator[Row]:
    form = index_strings.parse(INDEX.format(2 ** round(math.log2(references) / 2)))
    used = CodeSearch(form, PROBES, CANDIDATES)
    load = Workload(references, QUERIES, top_k=rates.TOP_K, index=used)
    index_rates.build(index_rates.corpus(folder / "warm", 4096), INDEX.format(16))
    corpus = index_rates.corpus(folder / "references", references)
    made = index_rates.build(corpus, form.text)
    stage = stages.indexing(rate, load, workers, references, "index").on(1)
    yield seconds_row(f"{form.text} of {references:,}", stage, made.seconds)
    held = sizes.data_sets(rate, load, stages.search_layout(load, workers, QUERIES, references, 1))
    yield bytes_row(f"{form.text} of {references:,}, bytes", held["reference/index"], made.coded.index)
    queries = index_rates.corpus(folder / "queries", QUERIES, 1)
    run = index_rates.run_search(index_rates.searched(made.coded, PROBES, CANDIDATES), queries)
    stage = stages.search(rate, load, workers, QUERIES, references, "search").on(1)
    yield seconds_row(f"search of {QUERIES:,} × {references:,} by {form.text}", stage, run.seconds)


def scan(
    rate: Lookup, workers: Workers, count: int, folder: Path, photos: Path | None = None
) -> Iterator[Row]:
    """Scan under views and without, one after the other: embedding and search, without the report."""
    with common.photo_folder(photos, 2 * count) as pictures:
        paths = common.pictures(pictures)
        corpora = {"reference": paths[:count], "queries": paths[count:]}
        few = {name: linked(folder / f"few-{name}", own[:4]) for name, own in corpora.items()}
        places = {name: linked(folder / name, own) for name, own in corpora.items()}
        scan_seconds(few, folder / "warm")
        megapixels = sum(map(pixels_of, paths)) / len(paths) / 1e6
        for views in (defaults.AUTO, defaults.NONE):
            out = folder / f"scan-{views}"
            seconds = scan_seconds(places, out, views)
            load = replace(MINI, references=count, queries=count, views=views, megapixels=megapixels)
            stage = stages.embedding(rate, load, workers, 2 * count, "embedding").on(1)
            after = stages.search(rate, load, workers, count, count, "search").on(1)
            whole = replace(stage, serial=stage.serial + after.wall)
            what = f"scan of {count:,} × {count:,} photos by mini, --views {views}"
            yield seconds_row(what, whole, seconds)
            held = sizes.data_sets(rate, load, stages.search_layout(load, workers, count, count, 1))
            for name in ("queries/embeddings", "matches"):
                yield bytes_row(f"{name} of {what}", held[name], Dataset.open(str(out / name)))


def linked(folder: Path, paths: Sequence[Path]) -> str:
    """Make a folder of links to pictures."""
    folder.mkdir()
    for path in paths:
        (folder / path.name).symlink_to(path.resolve())
    return str(folder)


def pixels_of(path: Path) -> int:
    with Image.open(path) as picture:
        return int(np.prod(picture.size))


def scan_seconds(places: dict[str, str], out: Path, views: str = defaults.AUTO) -> float:
    """Return the seconds of both corpora of a scan, and of their search."""
    made = id2.scan(**places, out=str(out), calibration=defaults.NONE, views=views)
    print(views, made.facts.seconds, file=sys.stderr, flush=True)
    return math.fsum(made.facts.seconds.values())


KINDS: dict[str, Callable[[Lookup, Workers, int, Path], Iterator[Row]]] = {
    "search": search,
    "embedding": embedding,
    "reprojection": reprojection,
    "index": index,
    "scan": scan,
}
# Those that take no more than some minutes.
SIZES: dict[str, tuple[int, ...]] = {
    "search": (10_000, 100_000, 1_000_000),
    "embedding": (10_000,),
    "reprojection": (10_000,),
    "index": (10_000, 100_000),
    "scan": (200,),
}
MINI = Workload(1, 1, 0, 1, "mini", *SIZES_OF["mini"])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--sizes", type=int, nargs="+", help="rows of each job")
    parser.add_argument("--rates", help="file of rates, by default the bundled one")
    common.photos_option(parser)
    options: argparse.Namespace = parser.parse_args()
    rate = Lookup(RateFile.load(options.rates))
    workers = Workers(vcpus=rates.vcpus())
    rows: list[Row] = []
    for kind in options.only:
        for size in options.sizes or SIZES[kind]:
            start = time.perf_counter()
            with TemporaryDirectory(prefix="id2-bench-") as folder:
                run = partial(scan, photos=options.photos) if kind == "scan" else KINDS[kind]
                rows += run(rate, workers, size, Path(folder))
            print(f"{kind} of {size:,}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    common.report("estimates", rows)


if __name__ == "__main__":
    main()
