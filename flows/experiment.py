"""The experiment flows: make the data, and measure what the paper measures."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import ExperimentDataRequest, ExperimentRequest
from id2.results import ExperimentData, ExperimentReport


@flow_of(id2.experiment, run_name="experiment {names}")
def experiment(request: ExperimentRequest) -> ExperimentReport:
    """Run `id2.experiment` with its stages as tasks."""
    return id2.experiment.run(request)


@flow_of(id2.experiment_data, run_name="experiment data in {data}")
def experiment_data(request: ExperimentDataRequest) -> ExperimentData:
    """Run `id2.experiment_data` with its stages as tasks."""
    return id2.experiment_data.run(request)
