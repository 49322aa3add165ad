"""Seconds of each stage: units of work over workers, and what one process does alone.

A stage cuts its work into units. Workers take one unit after another, so the last round may leave some
workers idle. Planning and commits are of one process, and no worker makes them faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from id2core import defaults
from id2core.estimates import coding, layout, rates, viewing
from id2core.estimates.coding import Coding
from id2core.estimates.layout import SearchLayout, ceil_div
from id2core.estimates.rates import Lookup
from id2core.estimates.workload import LOCAL, Workers, Workload

HOUR = 3600.0
# Background scores of an upload that are averaged, as by the calibrations that ship with the package.
BACKGROUND_K = 10
# Rates of an upload and of its numbers that meet whole references.
_WHOLE = ("search_block_row", "search_number")


@dataclass(frozen=True)
class Phase:
    """Units of work of one kind, which workers share.

    Attributes:
        units: how many.
        unit_seconds: of the largest unit, on one worker, or on its share of one.
        seconds: of all units, one after the other.
        at_once: on how many units a worker works at a time.
    """

    units: int
    unit_seconds: float
    seconds: float
    at_once: int = 1

    @classmethod
    def of(cls, rows: int, unit_rows: int, each: float, at_once: int = 1) -> Phase:
        """Cut rows into units, given the seconds of a row."""
        return cls(ceil_div(rows, unit_rows), min(rows, unit_rows) * each, rows * each, at_once)

    def wall(self, workers: int) -> float:
        """Return the seconds until the last worker is done."""
        rounds = ceil_div(self.units, workers * self.at_once) * self.unit_seconds
        return _least(rounds, self.seconds)


@dataclass(frozen=True)
class Stage:
    """A job, or the part of one that is estimated by itself, on some number of workers.

    Attributes:
        phases: work of the workers, one after the other.
        workers: how many take part.
        serial: seconds of one process.
        start: seconds of the job besides, in one process.
    """

    phases: tuple[Phase, ...]
    workers: int
    serial: float = 0.0
    start: float = 0.0

    @property
    def units(self) -> int:
        """Return the units of the first phase."""
        return self.phases[0].units

    @property
    def work(self) -> float:
        """Return the seconds that workers are held."""
        return sum(phase.wall(self.workers) for phase in self.phases)

    @property
    def wall(self) -> float:
        """Return the seconds from start to end."""
        return self.start + self.serial + self.work


@dataclass(frozen=True)
class Job:
    """A stage that can be estimated for any number of workers.

    Attributes:
        name: what it does.
        on: makes the stage for a number of workers.
        most_workers: how many can take part.
        on_gpu: whether the workers have a card.
    """

    name: str
    on: Callable[[int], Stage]
    most_workers: int
    on_gpu: bool = False

    def least_workers(self, seconds: float) -> int | None:
        """Return about how few workers take no longer than that; None if no number does, or if not known."""
        if not self.on(self.most_workers).wall <= seconds:  # NaN fails, too
            return None
        low, high = 1, self.most_workers
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.on(middle).wall <= seconds else (middle + 1, high)
        return low


def _least(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else min(a, b)


def _most(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def embedding(rate: Lookup, load: Workload, machine: Workers, images: int, name: str) -> Job:
    """Estimate the embedding of images, in parts of `defaults.PART_SIZE`."""
    larger = load.megapixels - rates.MEGAPIXELS
    further = larger * rate("decode_megapixel") if larger > 0 else 0.0
    further += viewing.looking_seconds(rate, load)
    looks, rows = viewing.looks_each(load), viewing.rows_seconds(rate, load)
    if machine.gpu:
        # Decoders run beside the card, which waits for the core that makes rows. The slower of both decides.
        decoding = (rate("decode_image") + further) / machine.vcpus
        each = _most(looks * rate(f"embed_image.{load.encoder}", machine.gpu) + rows, decoding)
    else:
        each = (looks * rate(f"embed_image.{load.encoder}") + further + rows) / machine.vcpus
    parts = Phase.of(images, defaults.PART_SIZE, each)
    serial, start = images * rate("plan_object"), _start(rate, machine, "embed_start")
    return Job(name, lambda count: Stage((parts,), count, serial, start), parts.units, bool(machine.gpu))


def indexing(
    rate: Lookup, load: Workload, machine: Workers, references: int, name: str, *, anew: bool = True
) -> Job:
    """Estimate the encoding of references for the index of a workload, which has one.

    Args:
        rate, load, machine: as for every stage.
        references: that are encoded.
        name: of the stage.
        anew: whether a model is trained before, and its recall is measured after.
    """
    if load.index is None:
        raise ValueError("a workload without an index encodes nothing")
    made = Coding(rate, load.index.form, references, load.descriptor_size, machine.shard_bytes)
    files = Phase.of(references, defaults.PART_SIZE, made.encode_seconds / machine.vcpus)
    serial = (made.train_seconds + made.measure_seconds) / machine.vcpus if anew else 0.0
    start = _start(rate, machine, "index_start")
    return Job(name, lambda count: Stage((files,), count, serial, start), files.units)


def search(rate: Lookup, load: Workload, machine: Workers, queries: int, references: int, name: str) -> Job:
    """Estimate the search of uploads among references: tasks, then a merge of each block."""
    serial = references * rate("search_plan_row")
    start = _start(rate, machine, "search_start")
    kept = min(load.top_k, references)
    return _searching(rate, load, machine, queries, references, name, kept=kept, serial=serial, start=start)


def background_search(rate: Lookup, load: Workload, machine: Workers, queries: int, name: str) -> Job:
    """Estimate the search of uploads in a background: it shares a job with another, and is exact."""
    exact = replace(load, index=None, top_k=BACKGROUND_K)
    return _searching(rate, exact, machine, queries, load.background, name, kept=1)


def _searching(
    rate: Lookup,
    load: Workload,
    machine: Workers,
    queries: int,
    references: int,
    name: str,
    *,
    kept: int,
    serial: float = 0.0,
    start: float = 0.0,
) -> Job:
    """Estimate a search of which so many rows of each upload are kept."""

    def on(count: int) -> Stage:
        plan = search_layout(load, machine, queries, references, count)
        loading, searching = task_seconds(rate, load, machine, plan)
        tasks = Phase(
            plan.tasks,
            loading + searching,
            plan.parts * references / plan.shard_rows * loading
            + queries / plan.part_rows * references / plan.shard_rows * searching,
        )
        merging = plan.candidates(load.merged) * rate("search_candidate")
        merging += queries * kept * rate("search_match")
        merging /= machine.vcpus
        merges = Phase(plan.blocks, min(1.0, layout.BLOCK_ROWS / queries) * merging, merging)
        planning = serial + plan.meetings * rate("search_plan_meet")
        return Stage((tasks, merges), count, planning, start)

    # With more workers than these, tasks would be smaller than they may be.
    most = search_layout(load, machine, queries, references, queries * references).tasks
    return Job(name, on, most, bool(machine.gpu) and load.index is None)


def search_layout(
    load: Workload, machine: Workers, queries: int, references: int, workers: int
) -> SearchLayout:
    """Return how a search is cut up on some number of workers."""
    return SearchLayout.of(queries, references, load.row_bytes, machine.shard_bytes, workers)


def task_seconds(rate: Lookup, load: Workload, machine: Workers, plan: SearchLayout) -> tuple[float, float]:
    """Return the seconds of a task on one worker: loading its shard, and searching its uploads."""
    if load.index:
        form, cores = load.index.form, machine.vcpus
        loading = coding.load_seconds(rate, form, plan.shard_rows, load.descriptor_size, cores)
        return loading, coding.search_seconds(rate, load, load.index, plan, cores)
    row, number = ("search_viewed_row", "search_viewed_number") if load.meets_rows else _WHOLE
    loading = 4 * load.descriptor_size * rate("search_load_byte")
    if load.meets_rows:
        loading += load.rows_bytes * rate("search_load_view_byte")
    numbers = plan.shard_rows * viewing.met_numbers(load)
    each = rate(row) / machine.vcpus
    if machine.gpu:
        each += numbers * rate(number, machine.gpu)
    else:
        each += numbers * rate(number) / machine.vcpus
    each = viewing.looks_each(load) * each + viewing.looks_seconds(rate, load) / machine.vcpus
    return plan.shard_rows * loading / machine.vcpus, plan.part_rows * each


def reprojection(rate: Lookup, load: Workload, machine: Workers) -> Job:
    """Estimate descriptors of another W for both corpora, file by file."""
    # Each core has a file of its own.
    rows = load.references + load.kept_queries
    each = _size(load) * rate("reproject_row") + viewing.rows_seconds(rate, load)
    files = Phase.of(rows, defaults.PART_SIZE, each, machine.vcpus)
    start = _start(rate, machine, "reproject_start")
    most = ceil_div(files.units, files.at_once)
    return Job("re-projection", lambda count: Stage((files,), count, start=start), most)


def training(rate: Lookup, load: Workload, machine: Workers) -> Job:
    """Estimate the gradient descent of W, on one worker."""
    each = rate("train_step", machine.gpu) if machine.gpu else rate("train_step") / machine.vcpus
    seconds = load.steps * _size(load) * each
    steps = Phase(1, seconds, seconds)
    return Job("training of W", lambda count: Stage((steps,), count), 1, bool(machine.gpu))


def _size(load: Workload) -> float:
    """Return the numbers of W over those of the W that the rates were measured with."""
    return load.latent_size * load.descriptor_size / rates.W_NUMBERS


def _start(rate: Lookup, machine: Workers, name: str) -> float:
    """Return the seconds that a job takes besides its work. Those of other engines are not included."""
    return rate(name) if machine.engine == LOCAL else 0.0
