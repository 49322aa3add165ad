"""The judge flow: judge stored pairs by another calibration."""

from __future__ import annotations

import id2
from flows.base import flow_of
from id2.requests import JudgeRequest
from id2.results import JudgeReport


@flow_of(id2.judge, run_name="judge {out}")
def judge(request: JudgeRequest) -> JudgeReport:
    """Run `id2.judge` with its stages as tasks."""
    return id2.judge.run(request)
