"""Seconds of a compressed index: training, encoding, measuring what it finds, and searching by it.

Everything here runs on the processor. No step of it uses a card.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from id2core import defaults
from id2core.estimates import rates, viewing
from id2core.estimates.layout import SearchLayout, ceil_div
from id2core.estimates.rates import Lookup
from id2core.estimates.workload import CodeSearch, Workload
from id2core.search import coded, cuts, index_building, shards
from id2core.search.index_strings import Compressed

_FLOAT: Final = 4
# Descriptors that FAISS trains on at most: for each center of a list or number of a codebook, and for OPQ.
_EACH_CENTER: Final = 256
_OPQ_SAMPLE: Final = 2**16


@dataclass(frozen=True)
class Coding:
    """The index of some references.

    Attributes:
        rate: the unit rates.
        form: the index.
        references: how many are encoded.
        descriptor_size: m.
        shard_bytes: memory of a worker, for the descriptors that a measurement searches.
    """

    rate: Lookup
    form: Compressed
    references: int
    descriptor_size: int
    shard_bytes: int

    @property
    def encode_seconds(self) -> float:
        """Return the vCPU-seconds of a reference: read its descriptor, encode it, and write its code."""
        each = self.rate(f"index_encode_row.{self.form.code}") * self.descriptor_size / rates.DESCRIPTOR_SIZE
        return each + self.form.lists * self._size * self.rate("index_encode_number")

    @property
    def train_seconds(self) -> float:
        """Return the vCPU-seconds of the training: read a sample; learn rotation, lists, and codebooks."""
        form, rate = self.form, self.rate
        sample = min(form.sample, self.references)
        files = min(self._files(self.references), ceil_div(sample, index_building.SAMPLE_ROWS_EACH))
        read = files * min(defaults.PART_SIZE, self.references) * self._row
        seconds = read * rate("search_load_byte")
        if form.rotation:
            kind = form.rotation.lower()
            rotated = min(sample, _OPQ_SAMPLE) if kind == "opq" else sample
            seconds += rotated * self.descriptor_size * rate(f"index_rotation.{kind}")
        centered = min(sample, _EACH_CENTER * form.lists)
        seconds += centered * form.lists * self._size * rate("index_center")
        if form.groups:
            numbered = min(sample, _EACH_CENTER * 2**form.bits)
            seconds += numbered * self._size * rate(f"index_codebook.{form.code}")
        return seconds

    @property
    def measured_rows(self) -> int:
        """Return the references that some of them are compared with, to measure the recall."""
        return min(self.references, max(1, self.shard_bytes // self._row))

    @property
    def measure_seconds(self) -> float:
        """Return the vCPU-seconds of the measurement: an exact search, and one for each number of lists."""
        rows, rate, asked = self.measured_rows, self.rate, index_building.MEASURED_QUERIES
        loads = rows * self._row * rate("search_load_byte")
        loads += load_seconds(rate, self.form, rows, self.descriptor_size, 1)
        exact = rows * self.descriptor_size * rate("search_number")
        tried = list(index_building.probes_tried(self.form.lists))
        scans = math.fsum(
            scan_seconds(rate, self.form, probes, rows, self.descriptor_size) for probes in tried
        )
        scored = len(tried) * min(max(index_building.MEASURED_DEPTHS), rows)
        return loads + asked * (exact + scans + scored * rate("index_candidate"))

    @property
    def _size(self) -> int:
        return self.form.rotated_size(self.descriptor_size)

    @property
    def _row(self) -> int:
        """Bytes of a descriptor."""
        return _FLOAT * self.descriptor_size

    @staticmethod
    def _files(rows: int) -> int:
        return ceil_div(rows, defaults.PART_SIZE)


def load_seconds(rate: Lookup, form: Compressed, rows: int, descriptor_size: int, vcpus: int) -> float:
    """Return the seconds of loading the codes of a shard, by some cores; only so many read."""
    held = rows * form.code_bytes(descriptor_size)
    return held * rate(f"index_load_byte.{form.code}") / min(vcpus, shards.READERS)


def scan_seconds(rate: Lookup, form: Compressed, probes: int, rows: int, descriptor_size: int) -> float:
    """Return the vCPU-seconds of an upload for the codes of its lists, among the references of a shard."""
    scanned = rows / form.lists * form.code_bytes(descriptor_size)
    each = rate(f"search_list.{form.code}") + scanned * rate(f"search_code_byte.{form.code}")
    centers = form.lists * form.rotated_size(descriptor_size) * rate("search_number")
    return probes * each + centers


def search_seconds(rate: Lookup, load: Workload, index: CodeSearch, plan: SearchLayout, vcpus: int) -> float:
    """Return the seconds of searching the uploads of a task in a shard of codes, by some cores.

    Only so many of them read descriptors.
    """
    size = load.descriptor_size
    found = candidates(load, index, plan)
    each = scan_seconds(rate, index.form, index.lists, plan.shard_rows, size)
    each += found * rate(f"search_coded_candidate.{index.form.code}") + rate("search_coded_row")
    if load.sees_insets:
        each += load.merged * rate("search_coded_look")
    each = viewing.looks_each(load) * each + viewing.looks_seconds(rate, load)
    read = reread_rows(load, index, plan) * _FLOAT * size * rate("search_reread_byte")
    return plan.part_rows * each / vcpus + read / min(vcpus, coded.READERS)


def candidates(load: Workload, index: CodeSearch, plan: SearchLayout) -> float:
    """Return how many candidates of an upload a shard has, which are scored exactly."""
    held = plan.shard_rows * index.lists / index.form.lists
    return min(float(max(index.candidates, load.merged)), held)


def reread_rows(load: Workload, index: CodeSearch, plan: SearchLayout) -> float:
    """Return the references of which a task reads descriptors to score candidates exactly.

    Uploads are searched together, `cuts.CODED_QUERIES_AT_ONCE` at a time. For all of them, the files that
    have a candidate are read once. Then those that have one of the best are read again.
    """
    files = ceil_div(plan.shard_rows, defaults.PART_SIZE)
    groups = ceil_div(plan.part_rows, cuts.CODED_QUERIES_AT_ONCE)
    queries = plan.part_rows / groups * viewing.looks_each(load)
    found = candidates(load, index, plan)
    met = _met(queries * found, files) + _met(queries * min(load.merged, found), files)
    return groups * met / files * plan.shard_rows


def _met(items: float, files: int) -> float:
    """Return how many files have one of some items that are anywhere, on average."""
    return files * -math.expm1(items * math.log1p(-1 / files)) if files > 1 else 1.0
