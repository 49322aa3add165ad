"""What an estimate is of: corpora, nights, and workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from id2core import defaults
from id2core.estimates import rates
from id2core.search import cuts
from id2core.search.index_strings import Compressed

Engine = Literal["local", "flink", "spark", "dataflow"]
LOCAL: Final = "local"


@dataclass(frozen=True)
class Workers:
    """The machines of a job, all alike.

    Attributes:
        count: how many, where no target says so.
        hours: target of the wall time of each stage, which `count` then follows from; None without one.
        vcpus: cores of each.
        shard_bytes: of references that each holds at once.
        gpu: its card, one each; None without.
        engine: what runs the job.
    """

    count: int = 1
    hours: float | None = None
    vcpus: int = 2
    shard_bytes: int = defaults.SHARD_MEMORY << 20
    gpu: str | None = None
    engine: Engine = "local"


@dataclass(frozen=True)
class CodeSearch:
    """A search by a compressed index.

    Attributes:
        form: the index.
        probes: lists that are searched for each upload.
        candidates: best codes of an upload that are scored exactly.
    """

    form: Compressed
    probes: int = defaults.INDEX_PROBES
    candidates: int = defaults.INDEX_CANDIDATES

    @property
    def lists(self) -> int:
        """Return the lists that are searched for each upload: no more than there are."""
        return min(self.probes, self.form.lists)


@dataclass(frozen=True)
class Workload:
    """Corpora and nights.

    Attributes:
        references: rows of the reference corpus.
        queries: uploads of a night.
        new_references: references that a night adds.
        nights: nights whose uploads are kept.
        encoder: name of the encoder, as the rates have it.
        latent_size, descriptor_size: n and m.
        megapixels: of an average image.
        top_k: pairs kept per upload.
        steps: of the training of W.
        index: what searches go by; None for the exact search.
    """

    references: int
    queries: int
    new_references: int = 0
    nights: int = 30
    encoder: str = defaults.ENCODER
    latent_size: int = rates.LATENT_SIZE
    descriptor_size: int = rates.DESCRIPTOR_SIZE
    megapixels: float = rates.MEGAPIXELS
    top_k: int = defaults.TOP_K
    steps: int = 50_000
    index: CodeSearch | None = None

    @property
    def row_bytes(self) -> int:
        """Return the bytes that a reference takes in a shard."""
        size = self.descriptor_size
        return self.index.form.row_bytes(size) if self.index else cuts.row_bytes(size)

    @property
    def kept_queries(self) -> int:
        """Return the uploads of all nights that are kept."""
        return self.queries * self.nights


@dataclass(frozen=True)
class Prices:
    """What the user pays; None where nothing is said."""

    gpu_hour: float | None = None
    vcpu_hour: float | None = None
    gb_month: float | None = None
