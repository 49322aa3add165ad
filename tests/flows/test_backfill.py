"""What a backfill refuses. Its nights run in test_deployment.py, which has a worker."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from flows.backfill import backfill
from id2core.errors import OptionError

DAYS = {"first": date(2026, 11, 9), "last": date(2026, 11, 11)}


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"queries": ["gs://inbox/{date}"], "deployment": "no/such"}, "no deployment no/such"),
        ({"queries": ["gs://inbox/{date}", "gs://inbox"]}, "not gs://inbox$"),
        ({"queries": ["gs://inbox/{date}"], "last": date(2026, 11, 8)}, "2026-11-09, is after the last"),
    ],
)
def test_a_mistake_is_named_before_any_night_runs(given: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        backfill(**DAYS | given)
