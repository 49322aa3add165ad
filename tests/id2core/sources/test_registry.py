"""A source is one string; a dated one is another place every night."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from id2core.errors import OptionError, StorageError
from id2core.sources import dates, registry
from id2core.sources.base import Mode
from id2core.store import storage
from id2core.store.storage import Object

NIGHT = date(2026, 3, 1)


def test_the_spelling_of_a_source_is_kept(tmp_path: Path) -> None:
    for text in ("gs://b/x", "tar:gs://b/x", "parquet:/data/{date:%Y/%m/%d}", f"list:{tmp_path}/x.csv"):
        source = registry.parse(text, Mode.APPEND)
        assert source.uri == text and registry.parse(source.uri, Mode.APPEND) == source


def test_a_plain_folder_lists_what_it_always_listed(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a#1.jpg", "b/1.tar"):
        storage.write_bytes(f"{tmp_path}/{name}", b"x")
    objects = [o for o in registry.parse(str(tmp_path)).list() if isinstance(o, Object)]
    assert sorted(objects) == storage.survey(str(tmp_path)).objects


def test_a_night_has_late_days(tmp_path: Path) -> None:
    source = registry.parse(f"tar:{tmp_path}/in/{{date}}")
    with pytest.raises(OptionError, match="which night"):
        list(source.list())
    places = [s.uri for s in registry.expand(source, NIGHT, 2)]
    assert places == [f"tar:{tmp_path}/in/2026-0{day}" for day in ("2-27", "2-28", "3-01")]
    plain = registry.parse(str(tmp_path))
    assert list(registry.expand(plain, NIGHT, 2)) == [plain]


def test_nights_of_one_place_are_read_once_and_none_is_before_the_calendar(tmp_path: Path) -> None:
    monthly = registry.parse(f"{tmp_path}/{{date:%Y-%m}}")
    assert monthly.on(NIGHT, 40).places == tuple(f"{tmp_path}/2026-0{month}" for month in (1, 2, 3))
    assert registry.parse(f"{tmp_path}/{{date}}").on(date.min, 2).places == (f"{tmp_path}/0001-01-01",)


def test_a_night_without_objects_is_empty(tmp_path: Path, gcs: str) -> None:
    (tmp_path / "in").mkdir()
    for place in (f"{tmp_path}/in/{{date}}", f"gs://{gcs}/none/{{date}}", f"list:{tmp_path}/in/{{date}}.csv"):
        nights = registry.expand(registry.parse(place), NIGHT, 1)
        assert [list(night.list()) for night in nights] == [[], []]
    with pytest.raises(StorageError):
        list(registry.parse(f"{tmp_path}/in/2026-03-01").list())
    (missing_bucket,) = registry.expand(registry.parse("gs://no-such-bucket/{date}"), NIGHT, 0)
    with pytest.raises(StorageError):
        list(missing_bucket.list())


def test_a_disk_that_is_not_mounted_is_no_empty_night(tmp_path: Path) -> None:
    (night,) = registry.expand(registry.parse(f"{tmp_path}/disk/in/{{date}}"), NIGHT, 0)
    with pytest.raises(StorageError):
        list(night.list())


def test_a_place_in_any_night_is_known() -> None:
    assert dates.holds("/in/{date}/x.y", "/in/2020-01-31/x.y/results")
    assert dates.holds("gs://b/{date:%Y/%m.%d}", "gs://b/2020/01.31")
    for place in ("/in/results", "/in/2020-01-31-old", "/in", "/in/2020-01-31/x_y"):
        assert not dates.holds("/in/{date}" if "x_y" not in place else "/in/{date}/x.y", place)


def test_dates_are_those_of_a_time_zone() -> None:
    late = datetime(2026, 2, 28, 23, 30, tzinfo=UTC)
    assert dates.today("UTC", late) == date(2026, 2, 28)
    assert dates.today("Europe/Berlin", late) == NIGHT
    with pytest.raises(OptionError, match="time_zone"):
        dates.today("../etc/passwd")
    assert dates.filled("x/{date:%Y/%m}/{date}/{other}", NIGHT) == "x/2026/03/2026-03-01/{other}"
    assert not dates.is_dated("x/{date.__class__}")
