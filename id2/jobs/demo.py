"""The demo: scan the bundled pictures, and compare W with raw latents by kind of upload."""

from __future__ import annotations

from importlib import resources

from id2.jobs import scan
from id2.requests import DemoRequest, ScanRequest
from id2.results import DemoComparison, DemoSummary
from id2.stages import stage
from id2core.evaluation import comparison, metrics, truth_files
from id2core.evaluation.truth_files import Truth
from id2core.reports.inputs import ReportInputs
from id2core.search import exact
from id2core.transforms.linear import Transform

ALL = "all with an origin"


def run(request: DemoRequest) -> DemoSummary:
    """Scan the demo, and measure each kind of upload with W and without."""
    with resources.as_file(resources.files("id2core") / "data" / "demo") as data:
        file = str(data / "truth.csv")
        references, queries = str(data / "references"), str(data / "uploads")
        scanned, inputs = scan.run_with_inputs(
            ScanRequest(reference=references, queries=queries, out=request.out, truth=file)
        )
        truth = truth_files.read(file, references, queries)
        groups = truth_files.read_groups(file, queries)
    compared = stage("compare with raw latents", lambda: compare(inputs, truth, groups))
    return DemoSummary(**dict(scanned), compared=compared)


def compare(inputs: ReportInputs, truth: Truth, groups: dict[str, str]) -> list[DemoComparison]:
    """Measure a scan, ordered by the scores its verdicts are drawn from, and raw latents, by kind of upload.

    µAP of a kind counts all uploads without an origin too.

    Args:
        inputs: the scan's data sets.
        truth: of the uploads.
        groups: upload → its kind.
    """
    references, queries = inputs.reference_embeddings, inputs.query_embeddings
    ids = comparison.origin_ids(references, truth)
    [raw] = exact.search(references, queries, [Transform()])
    scanned = inputs.current.read()
    rows = []
    for kind in (ALL, *sorted(set(groups.values()))):
        asked = {q: o for q, o in truth.items() if o is None or kind in (ALL, groups.get(q))}
        before, after = (metrics.evaluate(t, asked, image_ids=ids, resamples=0) for t in (raw, scanned))
        rows.append(
            DemoComparison(
                kind=kind,
                uploads=before.counts.with_origin,
                accuracy_raw=before.accuracy.value,
                accuracy=after.accuracy.value,
                micro_ap_raw=before.micro_ap.value,
                micro_ap=after.micro_ap.value,
            )
        )
    return rows
