"""Estimate what a corpus costs, from unit rates."""

from __future__ import annotations

from id2.requests import EstimateRequest
from id2core import defaults
from id2core.errors import OptionError
from id2core.estimates import report
from id2core.estimates.rates import DESCRIPTOR_SIZE, LATENT_SIZE, SIZES, RateFile
from id2core.estimates.report import EstimateReport
from id2core.estimates.workload import CodeSearch, Prices, Workers, Workload
from id2core.search import cuts, index_strings, indexes
from id2core.settings import Settings


def run(request: EstimateRequest) -> EstimateReport:
    """Estimate every stage; nothing is read but the file of rates.

    Raises:
        OptionError: the file of rates is missing or damaged, or a shard does not fit into the card.
        SearchError: the index cannot be built.
    """
    file = RateFile.load(request.rates)
    settings = request.settings()
    latent, descriptor = SIZES.get(settings.encoder, (LATENT_SIZE, DESCRIPTOR_SIZE))
    descriptor = request.dimension or descriptor
    load = Workload(
        references=int(request.references),
        queries=int(request.queries),
        new_references=int(request.new_references),
        nights=request.nights,
        encoder=settings.encoder,
        latent_size=request.latent or latent,
        descriptor_size=descriptor,
        megapixels=request.megapixels,
        top_k=settings.top_k,
        steps=int(request.steps),
        index=_index(request, settings, descriptor),
        views=settings.views,
        background=int(request.background),
    )
    return report.estimate(
        load,
        _workers(request, file),
        Prices(request.gpu_hour_price, request.vcpu_hour_price, request.gb_month_price),
        file,
    )


def _index(request: EstimateRequest, settings: Settings, descriptor_size: int) -> CodeSearch | None:
    """Return what searches go by; None for the exact search. Raises SearchError as `id2 index` does."""
    if indexes.is_built_at_once(settings.index):
        return None
    form = index_strings.parse(settings.index)
    form.check(descriptor_size, int(request.references), settings.shard_bytes)
    return CodeSearch(
        form,
        request.probes or defaults.INDEX_PROBES,
        request.candidates or defaults.INDEX_CANDIDATES,
    )


def _workers(request: EstimateRequest, file: RateFile) -> Workers:
    card = file.devices.get(request.card) if request.card else None
    measured = card.machine if card else file.cpu
    settings = request.settings()
    shard_bytes = settings.shard_bytes
    held = card.machine.gpu_bytes if card and indexes.is_built_at_once(settings.index) else None
    needed = cuts.gpu_bytes(shard_bytes)
    if held and needed > held:
        raise OptionError(
            f"a shard of {shard_bytes >> 20:,} MiB needs {needed >> 20:,} MiB of a GPU, and "
            f"{request.card} has {int(held) >> 20:,} MiB: give a smaller --shard-memory"
        )
    return Workers(
        count=int(request.workers or 1),
        hours=request.hours,
        vcpus=request.vcpus or measured.vcpus,
        shard_bytes=shard_bytes,
        gpu=request.card,
        engine=request.engine,
    )
