"""Check an `--out`, and build a lost ledger again."""

from __future__ import annotations

from collections.abc import Iterable

from id2.channels import searched_corpora
from id2.requests import DoctorRequest
from id2.results import DoctorReport, RebuiltLedger
from id2core.errors import DatasetError
from id2core.reports import page
from id2core.reports.facts import ScanSummary
from id2core.runs import checkup, rebuilding
from id2core.runs.records import at_work
from id2core.search import index_checkup
from id2core.store import storage
from id2core.store.datasets import Dataset


def run(request: DoctorRequest) -> DoctorReport:
    """Check all data sets below an `--out`. Nothing is changed, unless the ledger is to be built again.

    Raises:
        DatasetError: there is no data set, or the ledger cannot be built again; the message says what to do.
    """
    out = storage.normalize(request.out)
    summary = page.read_summary(out)
    corpora = searched_corpora(out, summary)
    made = None
    if request.rebuild and rebuilding.is_needed(out):
        done = rebuilding.rebuild(out, _opened(out, corpora.values(), summary))
        made = RebuiltLedger(searches=done.searches, files=done.files, set_aside=list(done.set_aside))
    checked = checkup.check(out, corpora.values())
    index_checkup.check(out, checked)
    if not checked.datasets and not checked.findings:
        raise DatasetError(f"{out} has no data set: give the --out of a scan, a night, or id2 embed")
    return DoctorReport(
        datasets=checked.datasets,
        files=checked.files,
        rows=checked.rows,
        findings=checked.findings,
        rebuilt=made,
        others_at_work=at_work(out),
        out=out,
    )


def _opened(
    out: str, corpora: Iterable[tuple[str, str]], summary: ScanSummary | None
) -> list[tuple[Dataset, Dataset]]:
    """Open references and queries of each channel."""
    try:
        return [(Dataset.open(held), Dataset.open(asked)) for held, asked in corpora]
    except DatasetError as error:
        if summary:
            raise
        raise DatasetError(
            f"{out} has no summary.json, which says what was compared, and {error} If the corpora "
            "are data sets elsewhere, rename matches/ and run the same scan again"
        ) from error
