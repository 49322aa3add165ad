"""The demo: scan the bundled pictures, and say by kind of upload what W adds to raw latents."""

from __future__ import annotations

from importlib import resources
from typing import Any

from prefect import task

from flows.scan import scan
from flows.tasks import RETRY
from id2core.evaluation import comparison, metrics, truth_files
from id2core.search import exact, matching
from id2core.transforms.linear import Transform

ALL = "all with an origin"


def run(out: str) -> dict[str, Any]:
    """Scan the demo into `out`.

    Returns:
        What summary.json holds, and `compared`: rows of kind, uploads, and Acc and µAP with W and without.
    """
    with resources.as_file(resources.files("id2core") / "data" / "demo") as data:
        known = str(data / "truth.csv")
        references, queries = str(data / "references"), str(data / "uploads")
        summary = scan(reference=references, queries=queries, out=out, truth_file=known)
        asked = truth_files.read(known, references, queries)
        groups = truth_files.read_groups(known, queries)
    return summary | {"compared": compare(summary["inputs"], asked, groups)}


@task(**RETRY)
def compare(inputs: dict[str, str], asked: truth_files.Truth, groups: dict[str, str]) -> list[dict[str, Any]]:
    """A scan, ordered by the scores that its verdicts are drawn from, beside raw latents; by kind of upload.

    µAP of a kind counts all uploads without origin too.

    Args:
        inputs: places of the scan's data sets, as summary.json names them.
        asked: truth of the uploads.
        groups: upload → its kind.
    """
    left, right = inputs["reference_embeddings"], inputs["query_embeddings"]
    ids = comparison.origin_ids(left, asked)
    [raw] = exact.search(left, right, [Transform()])
    scanned = matching.read_run(inputs["matches"], inputs["search_run"])
    rows = []
    for kind in (ALL, *sorted(set(groups.values()))):
        some = {q: o for q, o in asked.items() if o is None or kind in (ALL, groups.get(q))}
        measured = [metrics.evaluate(table, some, image_ids=ids, resamples=0) for table in (raw, scanned)]
        rows.append(
            {
                "kind": kind,
                "uploads": measured[0].counts.with_origin,
                "accuracy_raw": measured[0].accuracy.value,
                "accuracy": measured[1].accuracy.value,
                "micro_ap_raw": measured[0].micro_ap.value,
                "micro_ap": measured[1].micro_ap.value,
            }
        )
    return rows
