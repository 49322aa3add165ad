"""Measure the unit rates of views of uploads, for `benchmarks.rates`.

Each rate is a multiple of one that the file has already. Steps with views, and a step without, take turns in
this process on one core, and the least processor seconds of each count. So work that others do on the
machine meanwhile slows both sides alike. The yardstick is decoding for what an embed job does, and the
product of the exact search, or the search by codes, for what a search does.

Latents, descriptors, and rows are drawn: what a step costs does not depend on them.
"""

from __future__ import annotations

import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from beam_jobs import embed
from benchmarks import common, index_rates
from benchmarks.common import Rates, vcpus
from benchmarks.search import IDS, TOP_K, names, unit
from id2core import defaults
from id2core.encoders import images, views
from id2core.encoders.embed_job import EmbedJob
from id2core.estimates import viewing
from id2core.estimates.rates import DESCRIPTOR_SIZE, LATENT_SIZE
from id2core.estimates.workload import Workload
from id2core.runs.execution import Execution
from id2core.search import chance, coded, looks, match_rows, matching, shards, viewed
from id2core.search.looks import Looks, ViewPlan
from id2core.search.matching import SearchPlan, Task
from id2core.search.viewed_rows import COLUMNS, ViewedRows
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, Segment
from id2core.transforms.linear import Transform
from id2core.transforms.reference_rows import ReferenceRows

# Latents whose rows are made at once: a batch of an encoder.
BATCH: Final = 32
# Uploads with a picture inside, of those that a compressed index searches.
WITH_INSET: Final = 50
LOAD: Final = Workload(1, 1, views=defaults.AUTO)
Columns = dict[str, Any]


def least(steps: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the least seconds of one core for each step, after a call that does not count."""
    took: dict[str, list[float]] = {name: [] for name in steps}
    with threadpool_limits(1):
        for step in steps.values():
            step()
        for _ in range(rounds):
            for name, step in steps.items():
                took[name].append(common.processor_seconds(step))
    made = {name: min(seconds) for name, seconds in took.items()}
    print(json.dumps({name: float(f"{seconds:.4g}") for name, seconds in made.items()}), file=sys.stderr)
    return made


def latents(count: int, seed: int) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((count, LATENT_SIZE), np.float32).astype(np.float16)


def octets(rows: int, size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (rows, size), np.uint8)


def write(uri: Path, vectors: NDArray[np.float32], of: NDArray[np.float16] | None, prefix: str) -> Dataset:
    """Write a corpus of descriptors, of latents or of zeros, with drawn rows for views and no insets."""
    schema = schemas.embeddings_schema(LATENT_SIZE, DESCRIPTOR_SIZE)
    records = []
    for start in range(0, len(vectors), defaults.PART_SIZE):
        part = vectors[start : start + defaults.PART_SIZE]
        rows = len(part)
        held = np.zeros((rows, LATENT_SIZE), np.float16) if of is None else of[start : start + rows]
        named = names(range(start, start + rows), prefix)
        columns: Columns = {name: pa.nulls(rows, schema.field(name).type) for name in schema.names}
        columns |= {name: named[name] for name in named.column_names}
        columns |= {"generation": ["1"] * rows, "run_id": [prefix] * rows, "insets": [[]] * rows}
        columns |= {
            "latent": schemas.vectors_to_array(held, LATENT_SIZE),
            "descriptor": schemas.vectors_to_array(part, DESCRIPTOR_SIZE),
            "crops": schemas.octets_to_array(octets(rows, LOAD.crops_bytes)),
            "detail": schemas.octets_to_array(octets(rows, LATENT_SIZE // 8)),
        }
        table = pa.Table.from_pydict(columns, schema)
        record = datasets.write_file(str(uri), f"part-{start:09d}", [table], schema)
        records.append(record.of_segments({prefix: rows}))
    segments = {prefix: Segment(1, "2026-01-01T00:00:00+00:00")}
    datasets.write_commit(str(uri), Commit("embeddings", prefix, IDS, tuple(records), segments=segments))
    return Dataset.open(str(uri))


def save_w(path: Path) -> Transform:
    """Save a W as a closed form leaves it."""
    weights = np.random.default_rng(2).standard_normal((LATENT_SIZE, DESCRIPTOR_SIZE), np.float32)
    w = Transform(weights, {"encoder_id": IDS["encoder_id"], "method": "closed form"})
    w.save(path)
    return w


def measure_embedding(held: Rates, rounds: int = 25) -> Rates:
    """Look for pictures inside of a drawn picture, and make rows of latents."""
    from tests.drawing import scene

    file = io.BytesIO()
    scene(0, common.DRAWN_SIZE).save(file, "JPEG", quality=90)
    raw = file.getvalue()
    decoded = images.decode(raw, 256)
    if not isinstance(decoded, images.Decoded):
        raise SystemExit(f"a drawn picture was rejected: {decoded}")
    with TemporaryDirectory(prefix="id2-bench-") as folder:
        make = rows_of(save_w(Path(folder, "W.safetensors")))
    some = latents(BATCH, 0)
    took = least(
        {
            "decode": lambda: [images.decode(raw, 256) for _ in range(BATCH)],
            "look": lambda: [views.insets(decoded.pixels) for _ in range(BATCH)],
            "rows": lambda: make(some),
        },
        rounds,
    )
    each = held["decode_image"] / took["decode"]
    return {"embed_look": took["look"] * each, "embed_rows": took["rows"] * each}


def rows_of(w: Transform) -> ReferenceRows:
    """Return what makes the rows of references under a W that has some."""
    made = ReferenceRows.of(w, LATENT_SIZE)
    if made is None:
        raise SystemExit("this W gives no rows for views")
    return made


@dataclass(frozen=True)
class Step:
    """A search of one shard, step by step.

    Attributes:
        plan: of the search.
        task: the shard, and the uploads that it meets.
        shard: loaded.
    """

    plan: SearchPlan
    task: Task
    shard: shards.Shard | coded.CodedShard

    @staticmethod
    def of(references: Dataset, queries: Dataset, out: str, views: ViewPlan | None) -> Step:
        """Plan a search, and load its shard."""
        plan = match_rows.make(references, queries, out, Execution.begin(), TOP_K, views=views)
        plan = replace(plan, shard_bytes=1 << 40)
        (task,) = matching.tasks(plan)
        return Step(plan, task, matching.load_shard(plan, task.files))

    def load(self) -> None:
        """Load the shard again."""
        matching.load_shard(self.plan, self.task.files)

    @property
    def viewed(self) -> shards.Shard:
        """The shard, with rows for views."""
        if isinstance(self.shard, coded.CodedShard) or self.shard.viewed is None:
            raise SystemExit("this shard has no rows for views")
        return self.shard

    def run(self) -> list[tuple[int, pa.Table]]:
        """Search all uploads."""
        return list(matching.search(self.plan, self.task.blocks, self.shard))


def measure_search(
    held: Rates, references: int = 16_384, few: int = 2048, queries: int = 512, rounds: int = 15
) -> Rates:
    """Load a shard and search it, with views and without, among many references and among few."""
    with TemporaryDirectory(prefix="id2-bench-") as name:
        folder = Path(name)
        w = save_w(folder / "W.safetensors")
        chosen = looks.plan(defaults.AUTO, str(folder / "W.safetensors"), IDS["encoder_id"], w.transform_id)
        if chosen is None:
            raise SystemExit("this W gives no views")
        uploads = write(folder / "queries", unit(queries, DESCRIPTOR_SIZE, 1), latents(queries, 1), "q")
        asked = read_looks(uploads, chosen)
        steps: dict[str, Callable[[], Any]] = {"looks": lambda: read_looks(uploads, chosen)}
        for count, size in ((few, "few"), (references, "many")):
            known = write(folder / size, unit(count, DESCRIPTOR_SIZE, 0), None, "r")
            whole = Step.of(known, uploads, f"{name}/whole-{size}", None)
            views = Step.of(known, uploads, f"{name}/viewed-{size}", chosen)
            steps |= {
                f"load whole {size}": whole.load,
                f"load viewed {size}": views.load,
                f"search whole {size}": whole.run,
                f"search viewed {size}": lambda shard=views.viewed: viewed.search(shard, asked, TOP_K),
            }
        steps["prepare"] = lambda: prepare(views.viewed)
        took = least(steps, rounds)
        candidates = viewed.search(views.viewed, asked, TOP_K)
    more = float(queries) * (references - few)
    by_whole = (took["search whole many"] - took["search whole few"]) / (more * DESCRIPTOR_SIZE)
    by_views = (took["search viewed many"] - took["search viewed few"]) / (more * viewing.met_numbers(LOAD))
    each = took["search viewed few"] / queries - by_views * few * viewing.met_numbers(LOAD)
    loading = took["load viewed many"] - took["load whole many"] + took["prepare"]
    seconds = {
        "search_load_view_byte": loading / (references * LOAD.rows_bytes),
        "search_look": took["looks"] / queries,
        "search_viewed_row": each,
        "search_viewed_number": by_views,
    }
    scale = held["search_number"] / by_whole
    return {key: max(0.0, value) * scale for key, value in seconds.items()} | view_bytes(candidates)


def read_looks(uploads: Dataset, plan: ViewPlan) -> Looks:
    """Make the looks at uploads as a search does."""
    made = plan.load()
    parts = []
    for file in uploads.files:
        for group in range(file.row_groups):
            table = uploads.row_group(file, group, ["descriptor", "run_id", *made.columns])
            descriptors = schemas.column_to_vectors(table["descriptor"])
            parts.append(chance.looks_of(made, table, descriptors))
    return Looks.together(parts)


def prepare(shard: shards.Shard) -> None:
    """Prepare the rows of a shard as its first search does."""
    if shard.viewed:
        rows = ViewedRows(shard.viewed.crops, shard.viewed.detail)
        fresh = replace(shard, viewed=rows)
        len(fresh.heads.rows), len(rows.by_crop)


def view_bytes(candidates: pa.Table) -> Rates:
    """Return the stored bytes of the view and the detail of a candidate."""
    nulls = {
        name: pa.nulls(len(candidates), candidates.schema.field(name).type) for name in ("view", "detail")
    }
    without = candidates
    for name, column in nulls.items():
        without = without.set_column(without.column_names.index(name), name, column)
    sizes = []
    for table in (candidates, without):
        file = io.BytesIO()
        with schemas.parquet_writer(file, shards.CANDIDATES) as writer:
            writer.write_table(table.cast(shards.CANDIDATES))
        sizes.append(len(file.getvalue()))
    return {"view_bytes": (sizes[0] - sizes[1]) / len(candidates)}


def measure_coded(held: Rates, references: int = 8192, queries: int = 2048, rounds: int = 15) -> Rates:
    """Search codes with looks and without; the latter is the yardstick."""
    with TemporaryDirectory(prefix="id2-bench-") as name:
        known = index_rates.corpus(Path(name, "references"), references)
        made = index_rates.build(known, index_rates.STRINGS["rabitq"].format(64)).coded
        shard = coded.load(made, known.files)
        asked = unit(queries, DESCRIPTOR_SIZE, 1)
        owners = np.concatenate([np.arange(queries - WITH_INSET), np.arange(WITH_INSET)])
        kinds = np.concatenate([np.zeros(queries - WITH_INSET, np.int64), np.ones(WITH_INSET, np.int64)])
        none, plain = np.zeros(queries, np.float32), np.ones(queries)
        some = Looks(queries - WITH_INSET, owners, kinds, none, plain, asked, None, None, ())
        took = least(
            {
                "looks": lambda: viewed.search_coded(shard, some, TOP_K),
                "whole": lambda: shard.search(asked, TOP_K),
            },
            rounds,
        )
    known_seconds = index_rates.Search(made, queries, 0.0, Counter()).block_seconds(index_rates.lookup(held))
    scale = known_seconds * vcpus() / took["whole"]
    return {"search_coded_look": max(0.0, took["looks"] - took["whole"]) * scale / (queries * TOP_K)}


def measure_bytes(pictures: int = 200) -> Rates:
    """Embed drawn pictures by `mini`, and read how large their rows of crops and detail are."""
    with TemporaryDirectory(prefix="id2-bench-") as name, common.photo_folder(None, pictures) as folder:
        embed.run(EmbedJob(str(folder), name, encoder="mini"), Execution.begin())
        made = Dataset.open(f"{name}/embeddings")
        stored = 0
        for file in made.files:
            footer = pq.read_metadata(Path(made.uri, file.name))
            for group in range(footer.num_row_groups):
                columns = (footer.row_group(group).column(i) for i in range(footer.num_columns))
                stored += sum(c.total_compressed_size for c in columns if c.path_in_schema in COLUMNS)
    return {"embedding_view_bytes": stored / (made.rows * LOAD.rows_bytes)}


def measure(held: Rates) -> Rates:
    """Measure all rates of views; decoding and the exact search are held."""
    made = measure_embedding(held) | measure_search(held)
    return made | measure_coded(held) | measure_bytes()
