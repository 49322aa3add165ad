"""An estimate as a whole: every stage with its hours and cost, the bytes, and what was never measured."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

from id2core.estimates import coding, sizes, stages, viewing
from id2core.estimates.layout import SearchLayout
from id2core.estimates.rates import Lookup, Machine, RateFile
from id2core.estimates.stages import HOUR, Job
from id2core.estimates.workload import LOCAL, Prices, Workers, Workload

SEARCH = "search of a night"
BACKGROUND = "background of a night"
INDEX = "index of references"
ALONE, REPEATED = "once", "every night"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class StageEstimate(_Model):
    """One stage. A figure that depends on an unmeasured rate is null.

    Attributes:
        name: what is done.
        when: `once`, or `every night`.
        units: parts, tasks, or files that workers share.
        workers: how many take part; null if no number meets the target, or if that cannot be known.
        reaches_target: null without a target, or if it cannot be known.
        gpu_hours: hours that cards are held; 0 without cards.
        vcpu_hours: hours that cores of workers are held.
        wall_hours: from the start to the commit.
        serial_hours: the part of them that one process does alone.
        cost: of both kinds of hours; null without prices.
    """

    name: str
    when: str
    units: int
    workers: int | None
    reaches_target: bool | None
    gpu_hours: float | None
    vcpu_hours: float | None
    wall_hours: float | None
    serial_hours: float | None
    cost: float | None


class SearchShape(_Model):
    """How a night's search is cut up.

    Attributes:
        shards: of the references.
        shard_rows: references of the largest shard.
        shard_bytes: its bytes in memory.
        tasks: units of work; each loads a shard.
        loaded_bytes: descriptors with what views meet beside them, or codes of a compressed index, that all
            tasks load.
        task_seconds: of the largest task on one worker.
        load_seconds: the part of them that is loading the shard.
        index: the compressed index; null for the exact search.
        probes, candidates: lists that are searched for each upload, and its candidates that are scored
            exactly in a shard; null for the exact search.
        reread_bytes: descriptors that all tasks read to score candidates exactly.
        looks: at an upload, on average.
        met_numbers: numbers of a reference that each look meets in the exact search.
    """

    shards: int
    shard_rows: int
    shard_bytes: int
    tasks: int
    loaded_bytes: int
    task_seconds: float | None
    load_seconds: float | None
    index: str | None = None
    probes: int | None = None
    candidates: int | None = None
    reread_bytes: int = 0
    looks: float = 1.0
    met_numbers: int | None = None


class EstimateReport(_Model):
    """What a corpus costs.

    Attributes:
        references, queries, kept_queries: rows that the estimate is of.
        views: under which uploads meet references.
        stages: in the order of the work.
        search: how a night's search is cut up.
        bytes: data set → stored bytes.
        storage_cost: of a month of all bytes but the staged ones; null without a price.
        engine: what runs the jobs.
        engine_start_measured: whether wall times include the start of the engine.
        not_measured: rates that are missing, as DEVICE: NAME.
        cpu, gpu: machines of the rates; gpu is null without a card, or if it was never measured.
    """

    references: int
    queries: int
    kept_queries: int
    views: str
    stages: tuple[StageEstimate, ...]
    search: SearchShape
    bytes: dict[str, float | None]
    storage_cost: float | None
    engine: str
    engine_start_measured: bool
    not_measured: tuple[str, ...]
    cpu: Machine
    gpu: Machine | None


def estimate(load: Workload, machine: Workers, prices: Prices, file: RateFile) -> EstimateReport:
    """Estimate every stage of a workload on some workers."""
    rate = Lookup(file)
    made = tuple(_stage(job, when, machine, prices) for job, when in _jobs(rate, load, machine))
    workers = next(stage.workers for stage in made if stage.name == SEARCH)
    night = stages.search_layout(load, machine, load.queries, load.references, workers or 1)
    held = sizes.data_sets(rate, load, night)
    kept = math.fsum(size for name, size in held.items() if not name.startswith("staged"))
    month = None if prices.gb_month is None else _known(kept / 1e9 * prices.gb_month)
    card = file.devices.get(machine.gpu) if machine.gpu else None
    return EstimateReport(
        references=load.references,
        queries=load.queries,
        kept_queries=load.kept_queries,
        views=load.views,
        stages=made,
        search=_shape(rate, load, machine, night),
        bytes={name: _known(size) for name, size in held.items()},
        storage_cost=month,
        engine=machine.engine,
        engine_start_measured=machine.engine == LOCAL,
        not_measured=tuple(rate.missing),
        cpu=file.cpu,
        gpu=card.machine if card else None,
    )


def _jobs(rate: Lookup, load: Workload, machine: Workers) -> list[tuple[Job, str]]:
    references, queries, kept = load.references, load.queries, load.kept_queries
    new = load.new_references
    jobs = [(stages.embedding(rate, load, machine, references, "embedding of references"), ALONE)]
    if load.index:
        jobs.append((stages.indexing(rate, load, machine, references, INDEX), ALONE))
    jobs.append((stages.embedding(rate, load, machine, queries + new, "embedding of a night"), REPEATED))
    if load.index and new:
        encoding = stages.indexing(rate, load, machine, new, "index of new references", anew=False)
        jobs.append((encoding, REPEATED))
    if load.background:
        jobs.append((stages.background_search(rate, load, machine, queries, BACKGROUND), REPEATED))
    jobs.append((stages.search(rate, load, machine, queries, references, SEARCH), REPEATED))
    if new:
        jobs.append((stages.search(rate, load, machine, kept, new, "back-scan of new references"), REPEATED))
    return [
        *jobs,
        (stages.search(rate, load, machine, kept, references, "back-scan of everything"), ALONE),
        (stages.reprojection(rate, load, machine), ALONE),
        (stages.training(rate, load, machine), ALONE),
    ]


def _stage(job: Job, when: str, machine: Workers, prices: Prices) -> StageEstimate:
    count, reaches = _workers(job, machine)
    stage = job.on(count or job.most_workers)
    held = math.nan if count is None else count * stage.work / HOUR
    alone = (stage.serial + stage.start) / HOUR
    gpu_hours = held if job.on_gpu else 0.0
    # One worker is held while a single process works.
    vcpu_hours = (held + alone) * machine.vcpus
    return StageEstimate(
        name=job.name,
        when=when,
        units=stage.units,
        workers=count,
        reaches_target=reaches,
        gpu_hours=_known(gpu_hours),
        vcpu_hours=_known(vcpu_hours),
        wall_hours=None if count is None else _known(stage.wall / HOUR),
        serial_hours=_known(alone),
        cost=_cost(gpu_hours, vcpu_hours, prices),
    )


def _workers(job: Job, machine: Workers) -> tuple[int | None, bool | None]:
    """Return how many workers a job has, and whether a target is met; see `StageEstimate`."""
    if machine.hours is None:
        return min(machine.count, job.most_workers), None
    count = job.least_workers(machine.hours * HOUR)
    unknown = count is None and math.isnan(job.on(job.most_workers).wall)
    return count, None if unknown else count is not None


def _cost(gpu_hours: float, vcpu_hours: float, prices: Prices) -> float | None:
    if prices.vcpu_hour is None:
        return None
    cards = gpu_hours * prices.gpu_hour if prices.gpu_hour is not None else 0.0
    return _known(cards + vcpu_hours * prices.vcpu_hour)


def _shape(rate: Lookup, load: Workload, machine: Workers, night: SearchLayout) -> SearchShape:
    loading, searching = stages.task_seconds(rate, load, machine, night)
    index, descriptor = load.index, 4 * load.descriptor_size
    each = descriptor + (load.rows_bytes if load.meets_rows else 0)
    if index:
        each = index.form.stored_bytes(load.descriptor_size)
    return SearchShape(
        shards=night.shards,
        shard_rows=night.shard_rows,
        shard_bytes=night.shard_rows * load.row_bytes,
        tasks=night.tasks,
        loaded_bytes=night.parts * night.references * each,
        task_seconds=_known(loading + searching),
        load_seconds=_known(loading),
        index=index.form.text if index else None,
        probes=index.lists if index else None,
        candidates=round(coding.candidates(load, index, night)) if index else None,
        reread_bytes=round(night.tasks * coding.reread_rows(load, index, night)) * descriptor if index else 0,
        looks=viewing.looks_each(load),
        met_numbers=None if index else viewing.met_numbers(load),
    )


def _known(value: float) -> float | None:
    """Return a figure; None if a rate that it depends on was never measured."""
    return None if math.isnan(value) else value
