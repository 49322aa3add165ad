"""Estimates: how work is cut up, seconds and bytes of it, and what was never measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from id2core import defaults
from id2core.errors import OptionError
from id2core.estimates import layout, report, sizes, stages
from id2core.estimates.layout import SearchLayout
from id2core.estimates.rates import CPU, MEANINGS, Lookup, RateFile
from id2core.estimates.report import EstimateReport
from id2core.estimates.workload import CodeSearch, Prices, Workers, Workload
from id2core.runs.execution import Execution
from id2core.search import coded, cuts, index_strings, match_rows, matching, shards
from id2core.store import schemas
from tests.descriptor_sets import unit, write_embeddings

MACHINE = {"name": "a processor", "vcpus": 2, "measured": "2026-01-01", "versions": {}}
# Powers of two and ten, so that sums can be checked by hand.
CPU_RATES = {
    "embed_image.mini": 0.5,
    "decode_image": 0.1,
    "decode_megapixel": 1.0,
    "plan_object": 0.001,
    "embed_start": 3.0,
    "search_load_byte": 1e-6,
    "search_block_row": 0.01,
    "search_number": 1e-7,
    "search_candidate": 1e-4,
    "search_match": 1e-3,
    "search_plan_row": 1e-4,
    "search_plan_meet": 0.01,
    "search_start": 2.0,
    "index_rotation.rr": 1e-6,
    "index_rotation.pcar": 2e-6,
    "index_rotation.opq": 1e-3,
    "index_center": 1e-9,
    "index_codebook.pqx4": 1e-5,
    "index_codebook.pqnp": 1e-4,
    "index_encode_row.rabitq": 0.01,
    "index_encode_row.pqx4": 0.02,
    "index_encode_row.pqnp": 0.03,
    "index_encode_number": 1e-7,
    "index_candidate": 1e-5,
    "index_start": 1.0,
    "index_load_byte.rabitq": 1e-5,
    "index_load_byte.pqx4": 2e-5,
    "index_load_byte.pqnp": 3e-5,
    "search_list.rabitq": 1e-4,
    "search_list.pqx4": 1e-5,
    "search_list.pqnp": 1e-5,
    "search_code_byte.rabitq": 1e-7,
    "search_code_byte.pqx4": 1e-7,
    "search_code_byte.pqnp": 1e-6,
    "search_coded_candidate.rabitq": 1e-4,
    "search_coded_candidate.pqx4": 1e-4,
    "search_coded_candidate.pqnp": 1e-4,
    "search_reread_byte": 1e-6,
    "search_coded_row": 0.01,
    "index_code_bytes": 1.0,
    "reproject_row": 0.25,
    "reproject_start": 1.0,
    "train_step": 0.5,
    "latent_number_bytes": 2.0,
    "descriptor_number_bytes": 4.0,
    "embedding_row_bytes": 100.0,
    "match_row_bytes": 50.0,
    "candidate_row_bytes": 10.0,
    "embed_look": 0.05,
    "embed_rows": 0.02,
    "search_load_view_byte": 2e-6,
    "search_look": 0.004,
    "search_viewed_row": 0.03,
    "search_viewed_number": 2e-7,
    "search_coded_look": 2e-4,
    "embedding_view_bytes": 1.0,
    "view_bytes": 5.0,
}
CARD = {
    "machine": MACHINE | {"gpu_bytes": 1e9},
    "rates": {
        "embed_image.mini": 0.25,
        "search_number": 1e-9,
        "search_viewed_number": 2e-9,
        "train_step": 0.1,
    },
}
# The rates that each index needs beside those that all need.
STRINGS = {
    "RR448,IVF1024,RaBitQ": ("index_rotation.rr", ".rabitq"),
    "PCAR448,IVF1024,RaBitQ": ("index_rotation.pcar", ".rabitq"),
    "OPQ120_480,IVF1024,PQ120x4": ("index_rotation.opq", ".pqx4"),
    "IVF1024,PQ64np": ("", ".pqnp"),
}
INDEX = CodeSearch(index_strings.parse("RR448,IVF1024,RaBitQ"))
OF_INDEX = ("index_", "search_list", "search_code", "search_reread")
OF_VIEWS = (
    "embed_look",
    "embed_rows",
    "search_load_view",
    "search_look",
    "search_viewed",
    "embedding_view",
    "view",
)
counts = st.integers(1, 10**12)
# Each worker has four rounds of a search or more. A round that is not full costs a quarter at most.
ROUNDS = 1.25 + 1e-9


def rate_file(**cpu: float | None) -> RateFile:
    rates = {name: value for name, value in (CPU_RATES | cpu).items() if value is not None}
    return RateFile.model_validate({"devices": {CPU: {"machine": MACHINE, "rates": rates}, "card": CARD}})


def estimate(load: Workload, workers: Workers = Workers(), **prices: float) -> EstimateReport:  # noqa: B008
    return report.estimate(load, workers, Prices(**prices), rate_file())


def stage_of(made: EstimateReport, name: str) -> report.StageEstimate:
    return next(stage for stage in made.stages if stage.name == name)


def test_an_embedding_is_its_images_and_what_one_process_does() -> None:
    rate = Lookup(rate_file())
    job = stages.embedding(rate, Workload(10_000, 1), Workers(), 10_000, "embedding")
    # 0.5 vCPU-s an image on two cores; three parts, of which the last is short.
    assert job.most_workers == 3
    assert job.on(1).wall == pytest.approx(3 + 10_000 * 0.001 + 10_000 * 0.25)
    assert job.on(2).work == pytest.approx(2 * 4096 * 0.25) and job.on(3).work == pytest.approx(4096 * 0.25)
    large = stages.embedding(rate, Workload(10, 1, megapixels=1.2), Workers(), 10, "embedding")
    assert large.on(1).work == pytest.approx(10 * (0.5 + 1) / 2)


def test_a_reprojection_gives_each_core_a_file() -> None:
    job = stages.reprojection(Lookup(rate_file()), Workload(10_000, 1, nights=1), Workers())
    # 0.25 vCPU-s a row; of three files, two cores have two first, and then the short one.
    assert job.most_workers == 2
    assert job.on(1).wall == pytest.approx(1 + 2 * 4096 * 0.25)
    assert job.on(2).wall == pytest.approx(1 + 4096 * 0.25)


def test_a_card_waits_for_decoders_that_are_too_slow() -> None:
    rate, load = Lookup(rate_file()), Workload(4096, 1)
    fed, starved = (
        stages.embedding(rate, replace(load, megapixels=size), Workers(gpu="card"), 4096, "embedding")
        for size in (0.1, 10.2)
    )
    assert fed.on(1).work == pytest.approx(4096 * 0.25)
    assert starved.on(1).work == pytest.approx(4096 * (0.1 + 10) / 2)


def test_a_search_is_loads_products_merges_and_its_plan() -> None:
    rate, load = Lookup(rate_file()), Workload(3000, 10_000, descriptor_size=100, top_k=10)
    job = stages.search(rate, load, Workers(shard_bytes=1000 * cuts.row_bytes(100)), 10_000, 3000, "search")
    assert job.on(1).units == job.most_workers == 3  # shards of 1,000
    loads = 3 * 1000 * 100 * 4 * 1e-6 / 2
    blocks = 3 * 10_000 * (0.01 + 1000 * 100 * 1e-7) / 2
    merges = 10_000 * 3 * 10 * 1e-4 / 2 + 10_000 * 10 * 1e-3 / 2
    assert job.on(1).work == pytest.approx(loads + blocks + merges)
    assert job.on(1).wall == pytest.approx(loads + blocks + merges + 3000 * 1e-4 + 3 * 0.01 + 2)
    assert job.on(3).work == pytest.approx((loads + blocks) / 3 + merges * 4096 / 10_000)


def test_bytes_are_those_of_a_real_data_set(tmp_path: Path) -> None:
    rows, size = 500, 24
    references = write_embeddings(tmp_path / "references", unit(rows, size, 0), 4, "r")
    table = references.read(["latent", "descriptor"])
    held = sum(schemas.column_to_vectors(table[name]).nbytes for name in ("latent", "descriptor"))
    assert held == sizes.vector_bytes(rows, 1, size)
    shard = shards.load(references, references.files)
    assert shard.descriptors.nbytes == rows * (cuts.row_bytes(size) - cuts.row_bytes(0))


def test_a_search_is_cut_up_as_the_job_cuts_it(tmp_path: Path) -> None:
    rows, size = 600, 8
    references = write_embeddings(tmp_path / "references", unit(rows, size, 0), 6, "r")
    queries = write_embeddings(tmp_path / "queries", unit(200, size, 1), 1, "q")
    plan = match_rows.make(references, queries, str(tmp_path / "matches"), Execution.begin(), 3)
    plan = replace(plan, shard_bytes=200 * cuts.row_bytes(size))
    for workers in (1, 5):
        tasks = matching.tasks(plan, cuts.spread(workers))
        cut = SearchLayout.of(200, rows, plan.row_bytes, plan.shard_bytes, workers)
        assert (cut.tasks, cut.blocks) == (len(tasks), len(tasks[0].blocks)) == (3, 1)
    found = [matching.search(plan, task.blocks, matching.load_shard(plan, task.files)) for task in tasks]
    assert sum(candidates.num_rows for each in found for _, candidates in each) == cut.candidates(3)


def test_a_search_by_codes_is_lists_codes_and_descriptors_that_are_read_again() -> None:
    rate, used = Lookup(rate_file()), CodeSearch(index_strings.parse("RR64,IVF16,RaBitQ"), 4, 20)
    load = Workload(8192, 2000, descriptor_size=100, top_k=10, index=used)
    job = stages.search(rate, load, Workers(gpu="card"), 2000, 8192, "search")
    assert not job.on_gpu and job.on(1).units == 1  # no card searches codes
    code = 64 // 8 + 8
    loads = 8192 * code * 1e-5 / 2
    lists = 4 * (1e-4 + 8192 / 16 * code * 1e-7) + 16 * 64 * 1e-7
    uploads = 2000 * (lists + 20 * 1e-4 + 0.01) / 2
    # Two files, of which 2,000 uploads have candidates in both, and among their best, too.
    reads = 2 * 8192 * 400 * 1e-6 / 2
    merges = 2000 * 10 * 1e-4 / 2 + 2000 * 10 * 1e-3 / 2
    assert job.on(1).work == pytest.approx(loads + uploads + reads + merges)
    made = estimate(replace(load, references=8192), Workers()).search
    assert (made.index, made.probes, made.candidates) == ("RR64,IVF16,RaBitQ", 4, 20)
    assert made.reread_bytes == 2 * 8192 * 400 and made.loaded_bytes == 8192 * (code + 1)
    # A candidate of one upload is in one file of many.
    single = replace(load, references=4096 * 1000, top_k=1, index=replace(used, candidates=1))
    assert estimate(replace(single, queries=1)).search.reread_bytes == pytest.approx(2 * 4096 * 400, rel=1e-3)
    # Two threads read.
    wide = stages.search(rate, load, Workers(vcpus=20), 2000, 8192, "search").on(1).work
    assert wide == pytest.approx(loads * 2 / 3 + uploads / 10 + reads + merges / 10)
    # Each 16,384 uploads that are searched together read them again.
    assert estimate(replace(load, queries=40_000)).search.reread_bytes == 3 * made.reread_bytes


def test_views_add_looks_and_rows_to_an_embedding() -> None:
    rate, load = Lookup(rate_file()), Workload(4096, 1, views="auto")
    # A picture in 50 shows another, which is encoded.
    job = stages.embedding(rate, load, Workers(), 4096, "embedding")
    assert job.on(1).work == pytest.approx(4096 * (1.02 * 0.5 + 0.05 + 0.02) / 2)
    hashes = stages.embedding(rate, replace(load, latent_size=250), Workers(), 4096, "embedding")
    assert hashes.on(1).work == pytest.approx(4096 * (1.02 * 0.5 + 0.05) / 2)  # no square maps, no rows
    card = stages.embedding(rate, load, Workers(gpu="card"), 4096, "embedding")
    assert card.on(1).work == pytest.approx(4096 * (1.02 * 0.25 + 0.02))
    again = stages.reprojection(rate, replace(load, nights=1, descriptor_size=512), Workers(vcpus=1))
    assert again.on(1).work == pytest.approx(4097 * (0.25 + 0.02))
    grown = (
        estimate(load).bytes["reference/embeddings"]
        - estimate(replace(load, views="none")).bytes["reference/embeddings"]
    )
    assert grown == pytest.approx(4096 * (960 + 512 + 0.02 * (2 * 4096 + 20)))


def test_a_search_under_views_meets_rows_and_makes_looks_for_each_shard() -> None:
    rate, shard_rows = Lookup(rate_file()), 1000
    load = Workload(3000, 10_000, descriptor_size=256, top_k=5, views="auto")
    workers = Workers(shard_bytes=shard_rows * load.row_bytes)
    job = stages.search(rate, load, workers, 10_000, 3000, "search")
    assert job.on(1).units == 3
    loads = 3000 * (1024 * 1e-6 + (960 + 512) * 2e-6) / 2
    look = 1.02 * 0.004 / 2  # half of the columns of the W that was measured
    meets = 3 * 10_000 * (1.02 * (0.03 + 1000 * (256 + 960 + 3 * 160) * 2e-7) + look) / 2
    merges = 10_000 * 3 * 10 * 1e-4 / 2 + 10_000 * 5 * 1e-3 / 2  # ten are scored again, five kept
    assert job.on(1).work == pytest.approx(loads + meets + merges)
    # Codes are of descriptors alone, but looks are made all the same.
    used = replace(load, index=CodeSearch(index_strings.parse("RR64,IVF16,RaBitQ"), 4, 20))
    alike = stages.search(rate, used, Workers(), 10_000, 3000, "search").on(1).work
    plain = stages.search(rate, replace(used, views="none", top_k=10), Workers(), 10_000, 3000, "search")
    lists = 4 * (1e-4 + 3000 / 16 * 16 * 1e-7) + 16 * 64 * 1e-7
    each = 0.02 * (lists + 20 * 1e-4 + 0.01) + 1.02 * 10 * 2e-4 + look
    kept_fewer = 10_000 * 5 * 1e-3 / 2
    assert alike - plain.on(1).work == pytest.approx(10_000 * each / 2 - kept_fewer)
    # An encoder without a W has looks, and nothing else.
    hashes = replace(load, encoder="pdq", top_k=10)
    whole = replace(hashes, views="none")
    both = (stages.search(rate, one, workers, 10_000, 3000, "search").on(1).work for one in (hashes, whole))
    more = next(both) - next(both)
    shards_of = stages.search_layout(whole, workers, 10_000, 3000, 1).shards
    assert more == pytest.approx(0.02 * 10_000 * (shards_of * 0.01 + 3000 * 256 * 1e-7) / 2)


def test_a_background_is_a_search_that_keeps_one_row() -> None:
    load = Workload(10**6, 10_000, descriptor_size=100, background=1000, index=INDEX)
    made, without = estimate(load), estimate(replace(load, background=0))
    assert [stage for stage in made.stages if stage.name != report.BACKGROUND] == list(without.stages)
    exact = 1000 * 400 * 1e-6 / 2 + 10_000 * (0.01 + 1000 * 100 * 1e-7) / 2
    merges = 10_000 * 10 * 1e-4 / 2 + 10_000 * 1e-3 / 2
    assert stage_of(made, report.BACKGROUND).wall_hours == pytest.approx((exact + merges + 3 * 0.01) / 3600)


def test_an_index_is_its_training_its_codes_and_their_measure() -> None:
    rate, form = Lookup(rate_file()), index_strings.parse("RR64,IVF64,RaBitQ")
    load = Workload(10_000, 1, descriptor_size=100, index=CodeSearch(form))
    job = stages.indexing(rate, load, Workers(), 10_000, "index")
    encoding = 10_000 * (0.01 * 100 / 512 + 64 * 64 * 1e-7) / 2
    assert job.most_workers == 3 and job.on(1).work == pytest.approx(encoding)
    training = 3 * 4096 * 400 * 1e-6 + 10_000 * 100 * 1e-6 + 10_000 * 64 * 64 * 1e-9
    code = 64 // 8 + 8
    loads = 10_000 * (400 * 1e-6 + code * 1e-5)
    # All powers of two up to 64 are tried, by 500 references.
    scans = 127 * (1e-4 + 10_000 / 64 * code * 1e-7) + 7 * 64 * 64 * 1e-7
    measuring = loads + 500 * (10_000 * 100 * 1e-7 + scans + 7 * 800 * 1e-5)
    assert job.on(1).serial == pytest.approx((training + measuring) / 2) and job.on(1).start == 1
    later = stages.indexing(rate, load, Workers(), 10_000, "index", anew=False)
    assert later.on(1).serial == 0 and later.on(2).work < job.on(1).work


def test_an_index_adds_a_stage_and_a_data_set() -> None:
    load = Workload(10**8, 10**4, new_references=10**4, index=INDEX)
    made, exact = estimate(load), estimate(replace(load, index=None))
    added = [stage.name for stage in made.stages if stage.name not in {s.name for s in exact.stages}]
    assert added == ["index of references", "index of new references"]
    assert made.bytes["reference/index"] == 10**8 * 66 + INDEX.form.model_bytes(512)
    assert made.search.shards < exact.search.shards / 10
    assert made.search.shard_bytes <= Workers().shard_bytes + INDEX.form.row_bytes(512)


def test_a_search_by_codes_is_cut_up_as_the_job_cuts_it(tmp_path: Path) -> None:
    references = write_embeddings(tmp_path / "references", unit(600, 32, 0), 6, "r")
    form = index_strings.parse("RR32,IVF4,RaBitQ")
    plan = match_rows.make(references, references, str(tmp_path / "matches"), Execution.begin(), 3)
    plan = replace(
        plan,
        coded=coded.CodedReferences(
            references,
            replace(references, commit=replace(references.commit, ids=references.ids | {"index": form.text})),
        ),
    )
    assert plan.row_bytes == Workload(600, 600, descriptor_size=32, index=CodeSearch(form)).row_bytes


def test_the_layout_has_the_constants_of_the_search() -> None:
    assert layout.BLOCK_ROWS == schemas.ROW_GROUP


@given(queries=counts, references=counts, mebibytes=st.integers(1, 10**6), workers=st.integers(1, 10**6))
def test_shards_fit_into_memory_and_no_worker_waits_for_small_tasks(
    queries: int, references: int, mebibytes: int, workers: int
) -> None:
    cut = SearchLayout.of(queries, references, cuts.row_bytes(512), mebibytes << 20, workers)
    assert cut.shards * cut.shard_rows >= references and cut.parts * cut.part_rows >= queries
    assert (cut.shard_rows - 1) * cuts.row_bytes(512) <= mebibytes << 20
    assert cut.part_rows <= cuts.QUERIES_PER_LOAD
    if cut.tasks < cuts.spread(workers):  # then tasks are as small as they may be
        assert cut.part_rows < 2 * cuts.LEAST_QUERIES
        assert cut.shard_rows * cuts.row_bytes(512) < 2 * cuts.LEAST_SHARD_BYTES + cuts.row_bytes(512)


@settings(max_examples=60)
@given(
    references=counts,
    queries=counts,
    count=st.integers(1, 10**6),
    gpu=st.sampled_from([None, "card"]),
    grown=st.sampled_from(["references", "queries", "megapixels", "latent_size"]),
    index=st.sampled_from([None, INDEX]),
    views=st.sampled_from(["auto", "none"]),
)
def test_more_work_takes_longer_and_more_workers_do_not(
    references: int,
    queries: int,
    count: int,
    gpu: str | None,
    grown: str,
    index: CodeSearch | None,
    views: str,
) -> None:
    load = Workload(references, queries, index=index, views=views, background=1000)
    workers = Workers(count=count, gpu=gpu, engine="flink")
    more = replace(load, **{grown: getattr(load, grown) * 4})  # latents stay square
    # Of one worker: a larger search may be shared by workers that a small one leaves idle.
    alone = replace(workers, count=1)
    for less, greater in zip(estimate(load, alone).stages, estimate(more, alone).stages, strict=True):
        assert less.wall_hours <= greater.wall_hours * ROUNDS
        assert less.wall_hours >= less.serial_hours
    wide = estimate(load, replace(workers, count=2 * count))
    for narrow, wider in zip(estimate(load, workers).stages, wide.stages, strict=True):
        assert wider.wall_hours <= narrow.wall_hours * ROUNDS


def test_training_takes_its_steps_on_one_machine() -> None:
    made = estimate(Workload(10, 10, steps=1000, latent_size=2048), Workers(vcpus=4))
    assert stage_of(made, "training of W").wall_hours == pytest.approx(1000 * 0.5 / 4 / 2 / 3600)


def test_inputs_larger_than_any_corpus_stay_numbers() -> None:
    made = estimate(Workload(10**15, 10**15, nights=30), gb_month=0.02, vcpu_hour=1.0)
    assert made.kept_queries == 30 * 10**15
    figures = [f for stage in made.stages for f in (stage.wall_hours, stage.vcpu_hours, stage.cost)]
    assert all(figure is not None and 0 < figure < float("inf") for figure in figures)
    assert EstimateReport.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("string", STRINGS)
def test_an_index_depends_on_the_rates_of_its_code(string: str) -> None:
    load = Workload(10**7, 1000, index=CodeSearch(index_strings.parse(string)), views="auto")
    assert report.estimate(load, Workers(), Prices(), rate_file()).not_measured == ()
    used = {name for name in CPU_RATES if name.startswith(OF_INDEX)}
    for name in sorted(used):
        lacking = report.estimate(load, Workers(), Prices(), rate_file(**{name: None}))
        of_other = "." in name and not name.endswith(tuple(filter(None, STRINGS[string])))
        assert lacking.not_measured == (() if of_other else (f"cpu: {name}",))


@pytest.mark.parametrize("name", [name for name in CPU_RATES if not name.startswith(OF_INDEX)])
def test_what_depends_on_a_rate_that_is_missing_is_not_known(name: str) -> None:
    views = "auto" if name.startswith(OF_VIEWS) else "none"
    load = Workload(10_000, 1000, new_references=10, views=views)
    prices = Prices(vcpu_hour=1.0, gb_month=1.0)
    whole = report.estimate(load, Workers(), prices, rate_file())
    lacking = report.estimate(load, Workers(), prices, rate_file(**{name: None}))
    assert whole.not_measured == ()
    if name.startswith("decode_"):  # a CPU's rate of an encoder includes decoding
        assert lacking == whole
        return
    assert lacking.not_measured == (f"cpu: {name}",)
    unknown = [stage.name for stage in lacking.stages if stage.wall_hours is None]
    unsized = [place for place, held in lacking.bytes.items() if held is None]
    assert unknown or unsized
    for stage in lacking.stages:
        assert (stage.cost is None) == (stage.wall_hours is None)
        if stage.name not in unknown:
            assert stage in whole.stages
    if unsized and unsized != ["staged candidates"]:
        assert lacking.storage_cost is None


def test_a_card_that_was_never_measured_has_no_hours() -> None:
    made = estimate(Workload(10**6, 10**4), Workers(gpu="a100"))
    assert made.gpu is None and stage_of(made, report.SEARCH).gpu_hours is None
    assert set(made.not_measured) == {
        f"a100: {n}" for n in ("embed_image.mini", "search_number", "train_step")
    }
    assert stage_of(made, "re-projection").wall_hours is not None


def test_a_target_takes_as_few_workers_as_meet_it() -> None:
    load, wanted = Workload(10**7, 10**5), Workers(hours=2.0, engine="flink")
    made = estimate(load, wanted)
    stage = stage_of(made, "embedding of references")
    assert stage.reaches_target is False and stage.workers is None  # one process plans for 2.8 hours
    night = stage_of(made, "embedding of a night")
    assert night.reaches_target and night.workers and night.wall_hours <= 2
    fewer = stage_of(estimate(load, Workers(night.workers - 1, engine="flink")), "embedding of a night")
    assert fewer.wall_hours > 2


def test_cost_is_hours_and_bytes_times_prices() -> None:
    load = Workload(10_000, 1000)
    made = estimate(load, Workers(gpu="card"), vcpu_hour=0.5, gpu_hour=3.0, gb_month=0.02)
    for stage in made.stages:
        if stage.cost is not None:
            assert stage.cost == pytest.approx(0.5 * stage.vcpu_hours + 3 * stage.gpu_hours)
    kept = sum(held for name, held in made.bytes.items() if name != "staged candidates")
    assert made.storage_cost == pytest.approx(kept / 1e9 * 0.02)
    assert made.bytes["reference/embeddings"] == 10_000 * (2 * 4096 + 4 * 512 + 100)
    assert stage_of(estimate(load), report.SEARCH).cost is None


def test_the_bundled_file_names_its_machines_and_known_rates() -> None:
    file = RateFile.load()
    assert {CPU, "h100"} <= set(file.devices)
    assert all(held.machine.name and held.machine.measured for held in file.devices.values())
    assert {name.partition(".")[0].removesuffix("*") for name in CPU_RATES} == {
        name.partition(".")[0] for name in MEANINGS
    }
    assert defaults.PART_SIZE == 4096  # what a part and a file of the estimates are


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["devices"].pop(CPU), "no rates of a cpu"),
        (lambda raw: raw["devices"][CPU]["rates"].update(search_numbr=1), "no rate search_numbr"),
        (lambda raw: raw["devices"][CPU]["rates"].update(train_step=-1), "train_step"),
        (lambda raw: raw["devices"][CPU]["machine"].update(vcpus=0), "vcpus"),
    ],
)
def test_a_file_that_holds_no_rates_is_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    raw = rate_file().model_dump(mode="json")
    change(raw)
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(OptionError, match=message):
        RateFile.load(str(path))
    with pytest.raises(OptionError, match="no such file"):
        RateFile.load(str(tmp_path / "none.json"))
