"""ID²: which protected original is this upload an AI translation of?

```python
import id2

summary = id2.scan(reference="originals", queries="uploads", out="results")
print(summary.counts, summary.verdicts)
for match in id2.matches("results").slice(0, 5).to_pylist():
    print(match["query_uri"], match["reference_uri"], match["score"], match["verdict"])
```

Every function takes its options as keyword arguments, and `progress`, which is called with a stage and its
counts. `help(id2.scan)` lists the options. Nothing here loads torch or Beam before a function needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from id2 import requests
from id2.functions import Function, function
from id2core.errors import ID2Error
from id2core.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from id2.results import (
        CalibrateReport,
        CalibrationCheck,
        CompactReport,
        DemoSummary,
        DoctorReport,
        EmbedSummary,
        EstimateReport,
        EvaluateReport,
        ExperimentData,
        ExperimentReport,
        FinetuneReport,
        ImportSummary,
        IndexReport,
        JudgeReport,
        NightlySummary,
        ReprojectReport,
        ScanSummary,
        StagedJob,
        SubmittedJob,
        TakedownReport,
        TrainReport,
        TranslateSummary,
    )
    from id2core.encoders.registry import load_encoder as load_encoder
    from id2core.store.datasets import Dataset as Dataset
    from id2core.transforms.files import load_transform as load_transform

_LOADED_WHEN_USED = {
    "CalibrateReport": "id2.results",
    "Dataset": "id2core.store.datasets",
    "EmbedSummary": "id2.results",
    "EvaluateReport": "id2.results",
    "JudgeReport": "id2.results",
    "ScanSummary": "id2.results",
    "TrainReport": "id2.results",
    "load_encoder": "id2core.encoders.registry",
    "load_transform": "id2core.transforms.files",
}


def __getattr__(name: str) -> Any:
    """Load what is named here only when it is used: it brings torch or pyarrow along."""
    if name in _LOADED_WHEN_USED:
        return getattr(importlib.import_module(_LOADED_WHEN_USED[name]), name)
    raise AttributeError(f"module 'id2' has no attribute {name!r}")


@function(requests.ScanRequest)
def scan(request: requests.ScanRequest) -> ScanSummary:
    """Compare uploads with protected originals."""
    from id2.jobs import scan

    return scan.run(request)


@function(requests.NightlyRequest)
def nightly(request: requests.NightlyRequest) -> NightlySummary:
    """Scan what a night brings."""
    from id2.jobs import nightly

    return nightly.run(request)


@function(requests.DemoRequest)
def demo(request: requests.DemoRequest) -> DemoSummary:
    """Scan the bundled demo."""
    from id2.jobs import demo

    return demo.run(request)


@function(requests.ReportRequest)
def report(request: requests.ReportRequest) -> ScanSummary:
    """Write the report of a finished scan again."""
    from id2.jobs import scan

    return scan.rewrite_report(request)


@function(requests.JudgeRequest)
def judge(request: requests.JudgeRequest) -> JudgeReport:
    """Judge stored pairs by another calibration."""
    from id2.jobs import judge

    return judge.run(request)


@function(requests.ReprojectRequest)
def reproject(request: requests.ReprojectRequest) -> ReprojectReport:
    """Give corpora descriptors of another W."""
    from id2.jobs import reproject

    return reproject.run(request)


@function(requests.IndexRequest)
def index(request: requests.IndexRequest) -> IndexReport:
    """Build a compressed index of references."""
    from id2.jobs import index

    return index.run(request)


@function(requests.CompactRequest)
def compact(request: requests.CompactRequest) -> CompactReport:
    """Merge small files of data sets."""
    from id2.jobs import compact

    return compact.run(request)


@function(requests.TakedownRequest)
def takedown(request: requests.TakedownRequest) -> TakedownReport:
    """Remove pictures and refuse them."""
    from id2.jobs import takedown

    return takedown.run(request)


@function(requests.DoctorRequest)
def doctor(request: requests.DoctorRequest) -> DoctorReport:
    """Check the data sets of an out."""
    from id2.jobs import doctor

    return doctor.run(request)


@function(requests.EstimateRequest)
def estimate(request: requests.EstimateRequest) -> EstimateReport:
    """Estimate what a corpus costs."""
    from id2.jobs import estimate

    return estimate.run(request)


@function(requests.EmbedRequest)
def embed(request: requests.EmbedRequest) -> EmbedSummary | StagedJob | SubmittedJob:
    """Embed images."""
    from id2.jobs import embed

    return embed.run(request)


@function(requests.TranslateRequest)
def translate(request: requests.TranslateRequest) -> StagedJob | SubmittedJob | TranslateSummary:
    """Translate originals with a diffusion model."""
    from id2.jobs import translate

    return translate.run(request)


@function(requests.TrainRequest)
def train(request: requests.TrainRequest) -> TrainReport | None:
    """Train W from stored latents."""
    from id2.jobs import train

    return train.run(request)


@function(requests.FinetuneRequest)
def finetune(request: requests.FinetuneRequest) -> FinetuneReport:
    """Train a whole vision backbone."""
    from id2.jobs import finetune

    return finetune.run(request)


@function(requests.CalibrateRequest)
def calibrate(request: requests.CalibrateRequest) -> CalibrateReport:
    """Find thresholds for verdicts."""
    from id2.jobs import calibrate

    return calibrate.run(request)


@function(requests.CheckCalibrationRequest)
def check_calibration(request: requests.CheckCalibrationRequest) -> CalibrationCheck:
    """Check that a calibration still holds."""
    from id2.jobs import check_calibration

    return check_calibration.run(request)


@function(requests.EvaluateRequest)
def evaluate(request: requests.EvaluateRequest) -> EvaluateReport:
    """Measure and compare transforms."""
    from id2.jobs import evaluate

    return evaluate.run(request)


@function(requests.ImportOripidRequest)
def import_oripid(request: requests.ImportOripidRequest) -> ImportSummary:
    """Import OriPID's published latents."""
    from id2.jobs import import_oripid

    return import_oripid.run(request)


@function(requests.ExperimentDataRequest)
def experiment_data(request: requests.ExperimentDataRequest) -> ExperimentData:
    """Make what the experiments are measured on."""
    from id2.jobs import experiment

    return experiment.make_data(request)


@function(requests.ExperimentRequest)
def experiment(request: requests.ExperimentRequest) -> ExperimentReport:
    """Measure what the paper measures."""
    from id2.jobs import experiment

    return experiment.run(request)


def matches(out: str) -> pa.Table:
    """Read the matches of what stands in the corpora of a scan, ordered by upload and rank.

    Args:
        out: the scan's `out`.

    Raises:
        DatasetError: it is not the `out` of a finished scan.
    """
    from id2.jobs import scan as scan_job

    return scan_job.read_matches(out)


__all__ = [
    "CalibrateReport",
    "Dataset",
    "EmbedSummary",
    "EvaluateReport",
    "Function",
    "ID2Error",
    "JudgeReport",
    "ScanSummary",
    "Settings",
    "TrainReport",
    "calibrate",
    "check_calibration",
    "compact",
    "demo",
    "doctor",
    "embed",
    "estimate",
    "evaluate",
    "experiment",
    "experiment_data",
    "finetune",
    "import_oripid",
    "index",
    "judge",
    "load_encoder",
    "load_transform",
    "matches",
    "nightly",
    "report",
    "reproject",
    "requests",
    "scan",
    "takedown",
    "train",
    "translate",
]
