from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pytest

from beam_jobs import embed, metrics, parts, runners, search
from id2core.encoders.embed_job import plan_embed
from id2core.errors import EncoderError
from id2core.runs.execution import Execution
from id2core.search import match_rows, matching
from id2core.search.matching import Task
from id2core.store.datasets import Dataset
from tests.descriptor_sets import unit, write_embeddings
from tests.drawing import draw_photos
from tests.embedding import embed_job


class Work(beam.DoFn):  # type: ignore[misc]
    def process(self, batch: list[int]) -> None:
        with metrics.timed("work"):
            metrics.count("rows", len(batch))


def test_counts_and_times_are_metrics_of_the_pipeline() -> None:
    pipeline = runners.pipeline()
    with pipeline:
        _ = pipeline | beam.Create([[1, 2, 3], [4]]) | beam.ParDo(Work())
    figures = metrics.read(pipeline.result)
    assert figures.counters == {"rows": 4}
    assert figures.distributions["rows_each"] == metrics.Distribution(sum=4, count=2, min=1, max=3)
    assert figures.distributions["work_ms"].count == 2 and figures.distributions["work_ms"].min >= 0


def test_an_embed_job_says_how_much_and_how_long(tiny_vae: str, tmp_path: Path) -> None:
    images = draw_photos(tmp_path / "images", 5)
    (images / "broken.jpg").write_bytes(b"no picture")
    spec = embed_job(str(images), str(tmp_path / "out"), encoder=tiny_vae, dtype="float32", part_size=4)
    pipeline = runners.pipeline()
    with pipeline:
        parts.build(pipeline, [embed.planned(spec, plan_embed(spec, Execution.begin()))])
    figures = metrics.read(pipeline.result)
    written = [Dataset.open(str(tmp_path / "out" / name)).files for name in ("embeddings", "rejects")]
    assert figures.counters == {
        "embed_made": 5,
        "embed_rejected": 1,
        "embed_bytes_read": sum(path.stat().st_size for path in images.iterdir()),
        "embed_bytes_written": sum(file.bytes for files in written for file in files),
    }
    assert figures.distributions["embed_made_each"].sum == 5  # batch sizes
    assert figures.distributions["embed_bytes_read_each"].count == 2
    times = {name: d.count for name, d in figures.distributions.items() if name.endswith("_ms")}
    batches = figures.distributions["embed_made_each"].count
    assert times == {"embed_list_ms": 2, "embed_part_ms": 2, "embed_batch_ms": batches, "embed_commit_ms": 1}


def test_a_search_job_says_how_much_and_how_long(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(30, 8, 0), 3, "r")
    queries = write_embeddings(tmp_path / "q", unit(9, 8, 1), 2, "q")
    plan = match_rows.make(references, queries, str(tmp_path / "m"), Execution.begin(), 2)
    pipeline = runners.pipeline()
    with pipeline:
        search.build(pipeline, plan, matching.tasks(replace(plan, shard_bytes=1)))
    figures = metrics.read(pipeline.result)
    matches = Dataset.open(str(tmp_path / "m"))
    assert figures.counters == {
        "search_references_read": 30,
        "search_bytes_read": sum(file.bytes for file in references.files),
        "search_pairs": 30 * 9,
        "search_candidates": 2 * 9 * 3,
        "search_matches": 18,
        "search_bytes_written": sum(file.bytes for file in matches.files),
    }
    times = {name: d.count for name, d in figures.distributions.items() if name.endswith("_ms")}
    assert (times["search_load_ms"], times["search_block_ms"], times["search_write_ms"]) == (3, 6, 2)
    assert (times["search_merge_ms"], times["search_sort_ms"], times["search_commit_ms"]) == (2, 1, 1)


def test_what_cannot_be_built_is_refused_where_it_is_made(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "r", unit(4, 8, 0), 2, "r")
    plan = match_rows.make(references, references, str(tmp_path / "m"), Execution.begin(), 2)
    [(files, [block, other])] = matching.tasks(plan)
    twin = replace(other, file=replace(other.file, name=block.file.name))
    with pytest.raises(ValueError, match="one name"):
        search.blocks_of([Task(files, (block, twin))])
    with pytest.raises(ValueError, match="has no shard"):
        search.Search(plan, {block.name: search.BlockTask(block, 0)})
    with pytest.raises(ValueError, match="lower-case word"):
        parts.Job("Embed it", None, None, EncoderError)  # type: ignore[arg-type]
