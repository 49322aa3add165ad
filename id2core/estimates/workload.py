"""What an estimate is of: corpora, nights, and workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from id2core import defaults
from id2core.estimates import rates
from id2core.search import cuts, viewed_rows
from id2core.search.index_strings import Compressed
from id2core.search.looks import RESCORED
from id2core.transforms import crop_rows, reference_rows

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
        views: under which uploads meet references: `auto` for all that the encoder and a W in closed form
            allow, or `none`.
        background: pictures that uploads are also compared with; 0 for none.
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
    views: str = defaults.NONE
    background: int = 0

    @property
    def row_bytes(self) -> int:
        """Return the bytes that a reference takes in a shard."""
        size = self.descriptor_size
        if self.index:
            return self.index.form.row_bytes(size)
        return cuts.row_bytes(size) + (viewed_rows.row_bytes(self.latent_size) if self.meets_rows else 0)

    @property
    def sees_insets(self) -> bool:
        """Whether pictures inside a picture are looked for, and encoded."""
        return self.views != defaults.NONE

    @property
    def has_rows(self) -> bool:
        """Whether pictures have rows of crops and detail, and looks are mirrored and turned."""
        allowed = reference_rows.sizes_allow(self.latent_size, self.descriptor_size)
        return self.sees_insets and allowed and self.encoder not in rates.WITHOUT_W

    @property
    def meets_rows(self) -> bool:
        """Whether looks meet these rows: codes are of descriptors alone."""
        return self.has_rows and self.index is None

    @property
    def crops_bytes(self) -> int:
        """Return the bytes, and the numbers, of the rows of crops of a picture."""
        return crop_rows.ROW_BYTES

    @property
    def rows_bytes(self) -> int:
        """Return the bytes of the rows of crops and the detail of a picture."""
        return self.crops_bytes + self.latent_size // 8

    @property
    def merged(self) -> int:
        """Return the candidates of an upload that are merged."""
        return max(self.top_k, RESCORED) if self.sees_insets else self.top_k

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
