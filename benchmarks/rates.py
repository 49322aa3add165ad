"""Measure the unit rates of this machine's CPU anew, for `id2 estimate`.

Run `python -m benchmarks.rates [--only NAME …] [--note TEXT] [--out FILE]`. It runs the real jobs at two
sizes, and writes id2core/data/rates.json. Rates of cards, and those that `--only` leaves out, stay as they
are. Run nothing else on the machine meanwhile, or say so with `--note`. A line of JSON after each section has
its seconds.

`python -m benchmarks.estimates` then compares estimates with real runs.
"""

from __future__ import annotations

import datetime
import io
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from beam_jobs import embed, reproject, search
from benchmarks import common, index_rates, planning, reprojection, view_rates
from benchmarks.common import Rates, vcpus
from benchmarks.search import names, unit, write_embeddings
from benchmarks.training import Marks
from id2core import defaults
from id2core.encoders import images
from id2core.encoders.embed_job import EmbedJob
from id2core.estimates import rates
from id2core.estimates.rates import CPU, Machine, Measured, RateFile
from id2core.runs.execution import Execution
from id2core.search import cuts, match_rows, matching, scope, shards
from id2core.search.matching import SearchPlan, Task
from id2core.sources import registry
from id2core.store import schemas
from id2core.store.datasets import Dataset
from id2core.transforms import reprojection as projecting
from id2core.transforms.linear import Transform

FILE = Path(rates.__file__).parents[1] / "data" / rates.FILE
LARGE = (4000, 3000)
TOP_K = 10


def slope(small: float, seconds_small: float, large: float, seconds_large: float) -> tuple[float, float]:
    """Return seconds per unit, and the seconds that do not depend on their number, at least 0."""
    each = max(0.0, (seconds_large - seconds_small) / (large - small))
    return each, max(0.0, seconds_small - small * each)


def measure_decoding() -> Rates:
    """Decode drawn JPEGs of two sizes in one thread."""
    from tests.drawing import scene

    seconds = []
    for size, count in ((common.DRAWN_SIZE, 200), (LARGE, 8)):
        file = io.BytesIO()
        scene(0, size).save(file, "JPEG", quality=90)
        raw = file.getvalue()
        images.decode(raw, 256)
        took = common.seconds(lambda raw=raw, count=count: [images.decode(raw, 256) for _ in range(count)])
        seconds.append(took / count)
    further = LARGE[0] * LARGE[1] / 1e6 - rates.MEGAPIXELS
    return {"decode_image": seconds[0], "decode_megapixel": (seconds[1] - seconds[0]) / further}


def measure_planning(objects: int = 100_000, files: int = 5000) -> Rates:
    """List a folder of files, and plan and commit a drawn night."""
    with TemporaryDirectory(prefix="id2-bench-") as name, TemporaryDirectory() as folder:
        night = planning.night(Path(name, "night"), 1, objects)
        for number in range(files):
            Path(folder, f"{number:06d}.jpg").write_bytes(b"0")
        source = registry.parse(folder)
        listing = common.seconds(lambda: sum(1 for _ in source.items())) / files
    return {"plan_object": listing + (night["plan"] + night["commit"]) / objects}


@contextmanager
def random_sd2() -> Iterator[str]:
    """A folder of Stable Diffusion 2's VAE with random weights, which does the same arithmetic."""
    from diffusers import AutoencoderKL

    from benchmarks.gpu import SD2_VAE

    with TemporaryDirectory(prefix="id2-bench-") as folder:
        AutoencoderKL(**SD2_VAE).save_pretrained(folder)
        yield folder


def embed_seconds(folder: Path, count: int, encoder: str, transform: str = "auto") -> tuple[float, Dataset]:
    """Seconds of the embed job, its model loaded, and what it made."""
    out = folder / f"{Path(encoder).name}-{count}"
    with common.photo_folder(None, count) as pictures:
        job = EmbedJob(str(pictures), str(out), encoder=encoder, transform=transform, views=defaults.NONE)
        took = common.seconds(lambda: embed.run(job, Execution.begin()))
    return took, Dataset.open(str(out / "embeddings"))


def measure_embedding(plan_object: float, encoder: str, few: int, many: int) -> Rates:
    """Run the embed job at two sizes.

    Sizes of rows come from `mini`, and what a job costs besides from `pdq`.
    """
    with TemporaryDirectory(prefix="id2-bench-") as name, random_sd2() as sd2:
        spec, transform = (sd2, "none") if encoder == "sd2" else (encoder, "auto")
        embed_seconds(Path(name, "warm"), 1, spec, transform)
        small, _ = embed_seconds(Path(name), few, spec, transform)
        large, made = embed_seconds(Path(name), many, spec, transform)
        sizes = row_sizes(made) if encoder == "mini" else {}
    each, start = slope(few, small, many, large)
    measured = {f"embed_image.{encoder}": max(0.0, each - plan_object) * vcpus()} | sizes
    return measured | ({"embed_start": start} if encoder == "pdq" else {})


def row_sizes(made: Dataset) -> Rates:
    """Stored bytes of the columns of a data set of embeddings."""
    sums = {"latent": 0, "descriptor": 0}
    numbers = dict.fromkeys(sums, 0)
    for file in made.files:
        footer = pq.read_metadata(Path(made.uri, file.name))
        for group in range(footer.num_row_groups):
            for column in range(footer.num_columns):
                chunk = footer.row_group(group).column(column)
                if (name := chunk.path_in_schema.partition(".")[0]) in sums:
                    sums[name] += chunk.total_compressed_size
                    numbers[name] += chunk.num_values
    rest = sum(file.bytes for file in made.files) - sum(sums.values())
    return {
        "latent_number_bytes": sums["latent"] / numbers["latent"],
        "descriptor_number_bytes": sums["descriptor"] / numbers["descriptor"],
        "embedding_row_bytes": rest / made.rows,
    }


class SearchRun:
    """One search job with its timers.

    Attributes:
        plan_seconds, task_seconds, seconds: of the plan, of making tasks, and of all.
        timers: seconds of each step.
        plan: what was planned.
        tasks: in their order.
        matches: what it committed.
    """

    def __init__(self, folder: Path, out: str, shard_rows: int = 0) -> None:
        references, queries = (Dataset.open(str(folder / name)) for name in ("references", "queries"))
        size = shards.descriptor_size(references)
        shard_bytes = shard_rows * cuts.row_bytes(size) or defaults.SHARD_MEMORY << 20

        def work() -> None:
            self.plan_seconds = common.seconds(lambda: self._plan(references, queries, str(folder / out)))
            self.plan = replace(self.plan, shard_bytes=shard_bytes)
            search.run_planned(self.plan)

        with common.timers() as self.timers:
            self.seconds = common.seconds(work)
        self.task_seconds = common.seconds(self._cut)
        self.matches = Dataset.open(self.plan.out)

    def _plan(self, references: Dataset, queries: Dataset, out: str) -> None:
        scope._LAST.clear()  # what an earlier search of this process knows of the references
        self.plan: SearchPlan = match_rows.make(references, queries, out, Execution.begin(), TOP_K)

    def _cut(self) -> None:
        self.tasks: list[Task] = matching.tasks(self.plan)

    def timer(self, name: str) -> float:
        """Seconds of a step."""
        return float(self.timers[f"search_{name}"])

    @property
    def meetings(self) -> int:
        """How many uploads met how many shards."""
        return self.plan.queries.rows * len({task.files for task in self.tasks})

    def meet_seconds(self, least: int = 1000) -> float:
        """Seconds of the plan for a reference file and an upload file, if there are many of both."""
        sides = (_with_files(dataset, least) for dataset in (self.plan.references, self.plan.queries))
        many = replace(self.plan, **dict(zip(("references", "queries"), sides, strict=True)))
        return common.seconds(lambda: matching.tasks(many)) / least**2


def _with_files(dataset: Dataset, count: int) -> Dataset:
    """Return a data set that lists its files again until there are so many."""
    files = tuple(islice(cycle(dataset.files), count))
    return replace(dataset, commit=replace(dataset.commit, files=files))


def draw_search(folder: Path, references: int, queries: int, size: int = rates.DESCRIPTOR_SIZE) -> Path:
    """Write two corpora of random descriptors."""
    folder.mkdir()
    write_embeddings(folder / "references", unit(references, size, 0), "r")
    write_embeddings(folder / "queries", unit(queries, size, 1), "q")
    return folder


def measure_search(references: int = 160_000, queries: int = 4096, rounds: int = 3) -> Rates:
    """Search with shards of two sizes, and next to nothing, and read the job's own timers."""
    small_rows, large_rows = references // 16, references // 2
    every: list[Rates] = []
    with TemporaryDirectory(prefix="id2-bench-") as name:
        folder, few = draw_search(Path(name, "corpora"), references, queries), draw_few(Path(name, "few"))
        SearchRun(folder, "warm", large_rows)
        for number in range(rounds):
            least = SearchRun(few, f"least-{number}")
            small = SearchRun(folder, f"small-{number}", small_rows)
            large = SearchRun(folder, f"large-{number}", large_rows)
            every.append(_search_rates(least, small, large))
        sizes = _search_sizes(large)
    return {key: float(np.median([found[key] for found in every])) for key in every[0]} | sizes


def draw_few(folder: Path) -> Path:
    """Write two corpora so small that a search of them takes what every search takes."""
    return draw_search(folder, 100, 10)


def _search_rates(least: SearchRun, small: SearchRun, large: SearchRun) -> Rates:
    """What a run with small shards and one with large shards say of each rate, beyond the least run."""
    size, references = rates.DESCRIPTOR_SIZE, large.plan.references.rows
    queries = large.plan.queries.rows
    runs = (small, large)
    # All uploads meet all shards: the time of a block is that of the upload, and that of the product.
    each = np.array([run.timer("block") for run in runs])
    numbers = float(queries) * references * size
    kept = sum(file.rows for file in large.matches.files)
    candidates = [run.meetings * TOP_K for run in runs]
    row, number = np.linalg.solve([[run.meetings, numbers] for run in runs], each)
    if row < 0:  # hidden by noise
        row, number = 0.0, float(each.mean()) / numbers

    def beyond(*names: str) -> list[float]:
        """Seconds of steps of both runs that the least run does not have."""
        return [max(0.0, sum(run.timer(name) - least.timer(name) for name in names)) for run in runs]

    timed = [sum(map(run.timer, ("load", "block", "merge", "write", "sort"))) for run in runs]
    rest = [run.seconds - run.plan_seconds - run.task_seconds - t for run, t in zip(runs, timed, strict=True)]
    # What no timer has grows with the candidates, which are also written.
    writing, _ = slope(candidates[1], rest[1], candidates[0], rest[0])
    planned = sum(max(0.0, run.plan_seconds - least.plan_seconds) for run in runs)
    return {
        "search_load_byte": sum(run.timer("load") for run in runs) * vcpus() / (2 * 4 * references * size),
        "search_block_row": float(row) * vcpus(),
        "search_number": float(number) * vcpus(),
        "search_candidate": (sum(beyond("merge")) / sum(candidates) + writing) * vcpus(),
        "search_match": sum(beyond("write", "sort")) * vcpus() / (2 * kept),
        "search_plan_row": planned / (2 * references),
        "search_plan_meet": large.meet_seconds(),
        "search_start": least.seconds,
    }


def _search_sizes(run: SearchRun) -> Rates:
    """Stored bytes of a match and of a candidate."""
    rows = 65_536  # so that few candidates come twice
    shard = shards.build(unit(rows, rates.DESCRIPTOR_SIZE, 2), names(range(rows), "r"))
    candidates = shard.search(unit(1024, rates.DESCRIPTOR_SIZE, 3), TOP_K)
    file = io.BytesIO()
    with schemas.parquet_writer(file, shards.CANDIDATES) as writer:
        writer.write_table(candidates)
    files = run.matches.files
    return {
        "match_row_bytes": sum(f.bytes for f in files) / sum(f.rows for f in files),
        "candidate_row_bytes": len(file.getvalue()) / candidates.num_rows,
    }


def reproject_seconds(folder: Path, latents: int) -> tuple[float, Dataset]:
    """Seconds of the job that gives drawn latents descriptors of another W, and what it made."""
    corpus = reprojection.draw(f"{folder}/reference/embeddings", latents)
    weights = np.random.default_rng(2).standard_normal((reprojection.N, reprojection.M)).astype(np.float32)
    w = folder / "W.safetensors"
    Transform(weights, {"encoder_id": reprojection.IDS["encoder_id"]}).save(w)
    work = projecting.plan(corpus, f"{folder}/beside", str(w), Execution.begin())
    took = common.seconds(lambda: reproject.run(work))
    return took, Dataset.open(work.uri)


def measure_reprojection(rows: int = 49_152, rounds: int = 3) -> Rates:
    """Run the job on one row, and on files for each core of a machine of 2, 3, 4, 6 or 12."""
    with TemporaryDirectory(prefix="id2-bench-") as name:

        def took(folder: str, count: int) -> float:
            place = Path(name, folder)
            place.mkdir()
            return reproject_seconds(place, count)[0]

        took("warm", 4096)
        start = float(np.median([took(f"start-{number}", 1) for number in range(rounds)]))
        each = (took("many", rows) - start) / rows
    return {"reproject_row": each * vcpus(), "reproject_start": start}


def measure_training(classes: int = rates.CLASSES, steps: int = 8) -> Rates:
    """Descend with as many classes as the paper has; the first two steps do not count."""
    from id2core.training import gradient
    from id2core.training.config import GradientConfig
    from id2core.training.pairs import Pairs

    each = 4
    drawn = np.random.default_rng(0).standard_normal((1024, rates.LATENT_SIZE)).astype(np.float16)
    with TemporaryDirectory(prefix="id2-bench-") as name:
        latents = np.lib.format.open_memmap(
            Path(name, "latents.npy"), "w+", np.float16, (classes * each, rates.LATENT_SIZE)
        )
        for start in range(0, len(latents), len(drawn)):
            latents[start : start + len(drawn)] = drawn[: len(latents) - start]
        offsets = np.arange(0, len(latents) + 1, each)
        pairs = Pairs(latents, [f"{i:064x}" for i in range(classes)], offsets, {})
        config = GradientConfig(epochs=1, iterations=steps, validation_share=0, precision="float32")
        marks = Marks()
        gradient.fit(pairs, config, Path(name, "out"), device="cpu", progress=marks)
    counted = marks.times[2:]
    return {"train_step": (counted[-1] - counted[0]) * vcpus() / (len(counted) - 1)}


SECTIONS: dict[str, Callable[[Rates], Rates]] = {
    "decoding": lambda held: measure_decoding(),
    "planning": lambda held: measure_planning(),
    "mini": lambda held: measure_embedding(held["plan_object"], "mini", 100, 400),
    "pdq": lambda held: measure_embedding(held["plan_object"], "pdq", 500, 2500),
    "sd2": lambda held: measure_embedding(held["plan_object"], "sd2", 8, 24),
    "search": lambda held: measure_search(),
    "index": lambda held: index_rates.measure(held),
    "views": lambda held: view_rates.measure(held),
    "reprojection": lambda held: measure_reprojection(),
    "training": lambda held: measure_training(),
}


def machine(note: str) -> Machine:
    found: dict[str, Any] = common.machine()
    from id2core import environment

    return Machine(
        name=str(found["cpu"]),
        vcpus=vcpus(),
        measured=datetime.date.today().isoformat(),
        versions=environment.versions(),
        note=note,
    )


def write(path: Path, file: RateFile) -> None:
    """Write all rates, rounded to four digits."""
    raw = file.model_dump(mode="json")
    for device in raw["devices"].values():
        device["rates"] = {name: float(f"{value:.4g}") for name, value in device["rates"].items()}
    path.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--note", default="", help="what else a reader of the rates must know")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    before = RateFile.load(str(FILE))
    held = dict(before.devices[CPU].rates)
    for section in options.only:
        start = time.perf_counter()
        made = SECTIONS[section](held)
        held |= made
        seconds = round(time.perf_counter() - start, 1)
        print(json.dumps({"section": section, "seconds": seconds, "rates": made}), flush=True)
        measured = Measured(machine=machine(options.note), rates=held)
        write(options.out, RateFile(devices=before.devices | {CPU: measured}))


if __name__ == "__main__":
    main()
