"""Nights that differ from the nights before them, and nights that do not."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from id2core.runs import health
from id2core.runs.health import LEAST_NIGHTS, NIGHTS, Measure
from id2core.runs.records import Run, Status

FIRST = datetime(2026, 11, 1, 2, tzinfo=UTC)
NORMAL = {"embedded": 990, "rejected": 10, "new_queries": 490, "first_searched": 500, "first_matched": 25}


def night(number: int, status: Status = Status.DONE, seconds: float = 100.0, **counts: int) -> Run:
    return Run(
        run_id=f"night-{number:03d}",
        flow="nightly",
        started=FIRST + timedelta(days=number),
        status=status,
        seconds={"embed queries": seconds, "search": 1e6},
        **NORMAL | counts,
    )


def found(*runs: Run) -> set[Measure]:
    """What is off of the last of these nights."""
    return {finding.measure for finding in health.check(runs, runs[-1].run_id)}


GOOD = [night(i) for i in range(NIGHTS)]


@pytest.mark.parametrize(
    ("counts", "seconds", "off"),
    [
        ({}, 100, set()),
        ({"rejected": 100}, 100, {Measure.REJECT_RATE}),
        ({"first_matched": 250}, 100, {Measure.MATCH_RATE}),
        ({"first_matched": 0}, 100, {Measure.MATCH_RATE}),
        ({}, 1000, {Measure.THROUGHPUT}),
        ({}, 10, {Measure.THROUGHPUT}),
        ({"rejected": 500, "first_matched": 400}, 1000, set(Measure)),
        ({"embedded": 0, "rejected": 0, "first_searched": 0, "first_matched": 0}, 1, set()),
        ({"queries": 10**6, "references": 10**6, "match_pairs": 10**5}, 100, set()),  # of a back-scan
    ],
)
def test_each_measure_is_found_where_it_is_off(
    counts: dict[str, int], seconds: float, off: set[Measure]
) -> None:
    assert found(*GOOD, night(50, seconds=seconds, **counts)) == off


def test_nights_that_are_all_alike_leave_room_for_chance() -> None:
    assert found(*GOOD, night(50, seconds=105, rejected=14, first_matched=30)) == set()
    never = [night(i, rejected=0, first_matched=0) for i in range(NIGHTS)]
    assert found(*never, night(50, rejected=1, first_matched=1)) == set()
    bad = night(50, rejected=50, first_matched=50)
    assert found(*never, bad) == {Measure.REJECT_RATE, Measure.MATCH_RATE}


def test_few_good_nights_say_nothing() -> None:
    bad = night(50, rejected=900)
    assert found(*GOOD[: LEAST_NIGHTS - 1], bad) == set()
    assert found(*GOOD[:LEAST_NIGHTS], bad) == {Measure.REJECT_RATE}
    killed = [night(i, Status.KILLED) for i in range(20, 40)]
    assert found(*GOOD[: LEAST_NIGHTS - 1], *killed, bad) == set()
    others = [run.model_copy(update={"flow": "embed"}) for run in GOOD]
    assert found(*others, bad) == set()
    assert health.check(GOOD, "no-such-night") == []


def test_nights_without_uploads_do_not_count_among_the_good_ones() -> None:
    idle = {"embedded": 0, "rejected": 0, "new_queries": 0, "first_searched": 0, "first_matched": 0}
    quiet = [night(20 + i, seconds=1, **idle) for i in range(20)]
    assert found(*GOOD, *quiet, night(50)) == set()
    [rejects] = health.check([*GOOD, *quiet, night(50, rejected=900)], "night-050")
    assert (rejects.median, rejects.nights) == (0.01, NIGHTS)


def test_a_few_pictures_have_no_throughput_and_rows_of_an_earlier_version_no_rates() -> None:
    few = [night(i, embedded=3, rejected=0, seconds=1) for i in range(NIGHTS)]
    assert found(*few, night(50, embedded=3, rejected=0, seconds=60)) == set()
    old = [
        run.model_copy(update={"new_queries": None, "first_searched": None, "rejected": 10**6})
        for run in GOOD
    ]
    assert found(*old, night(50)) == set()


def test_only_the_last_good_nights_count() -> None:
    long_ago = [night(i - 100, rejected=900) for i in range(60)]
    assert found(*long_ago, *GOOD, night(50)) == set()
    assert found(*long_ago, *GOOD, night(50, rejected=900)) == {Measure.REJECT_RATE}
    assert {f.measure for f in health.check([*GOOD, night(50, rejected=900)], "night-013")} == set()


def test_a_night_that_still_runs_can_be_checked_and_rows_have_no_order() -> None:
    running = night(50, Status.RUNNING, rejected=900)
    rows = [*GOOD, running]
    random.Random(0).shuffle(rows)
    [finding] = health.check(rows, running.run_id)
    assert "reject rate 0.4762 is above" in str(finding) and "last 14 good nights" in str(finding)


@given(st.lists(st.integers(0, 1000), min_size=NIGHTS, max_size=40), st.integers(0, 1000))
def test_a_finding_is_outside_three_deviations_and_what_is_far_outside_is_found(
    rejected: list[int], tonight: int
) -> None:
    nights = [night(i, embedded=1000 - n, rejected=n) for i, n in enumerate(rejected)]
    last = sorted(rejected[-NIGHTS:])
    median = (last[NIGHTS // 2 - 1] + last[NIGHTS // 2]) / 2
    distances = sorted(abs(n - median) for n in last)
    spread = 3 * (distances[NIGHTS // 2 - 1] + distances[NIGHTS // 2]) / 2
    off = Measure.REJECT_RATE in found(*nights, night(99, embedded=1000 - tonight, rejected=tonight))
    if abs(tonight - median) < spread:
        assert not off
    if abs(tonight - median) > spread + 60:  # chance moves a share of 1,000 by at most 50
        assert off
