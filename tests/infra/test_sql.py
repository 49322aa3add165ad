"""The views of infra/sql: run by DuckDB on real Parquet, parsed in BigQuery's dialect."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
import sqlglot
from sqlglot import expressions

from factory import sql_views
from id2core.store import schemas
from tests.infra.places import ask, connect, embed, judge, match, night, run_of, store, write

D1, D2 = date(2026, 11, 1), date(2026, 11, 2)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two nights: `a` and `b` were uploaded in the first, `c` and one more reference in the second."""
    embed(tmp_path / "reference/embeddings", 1, {"p/r1": "R1", "p/again": "R1", "p/r2": "R2"})
    embed(tmp_path / "reference/embeddings", 2, {"p/r3": "R3"})
    embed(tmp_path / "queries/embeddings", 1, {"a": "A", "b": "B"})
    embed(tmp_path / "queries/embeddings", 2, {"c": "C"})
    store(
        tmp_path, 1, match("a", "R1", 0.8, 1, verdict="match"), match("a", "R2", 0.5, 1, rank=2),
        match("b", "R2", 0.6, 1, verdict="review"),
    )  # fmt: skip
    store(tmp_path, 2, match("a", "R3", 0.9, 2, verdict="match"), match("c", "R1", 0.4, 2))
    return tmp_path


def test_a_place_without_files_has_every_table_and_view_empty(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        for name in [source.name for source in sql_views.SOURCES] + list(sql_views.VIEWS):
            assert connection.execute(f"SELECT * FROM id2.{name}").fetchall() == [], name


def test_text_and_numbers_of_every_table_are_there_and_numbers_of_pictures_are_not(place: Path) -> None:
    write(place / "queries/rejects", schemas.REJECTS, [{"uri": "x", "detail": "jpeg: ends too early"}])
    store(place, 2, match("c", "R2", 0.9, 2, view="inset+mirrored", detail=0.25))
    assert ask(place, "SELECT detail FROM id2.query_rejects") == [("jpeg: ends too early",)]
    for view in ("judged", "best_matches", "current"):
        query = f"SELECT view, detail FROM id2.{view} WHERE detail IS NOT NULL"
        assert ask(place, query) == [("inset+mirrored", 0.25)]
    embeddings = {column for column, *_ in ask(place, "DESCRIBE id2.query_embeddings")}
    assert embeddings.isdisjoint({"latent", "descriptor", "crops", "detail", "insets"})


def test_ranks_go_over_all_nights_and_ties_by_reference(place: Path) -> None:
    store(place, 2, match("a", "R0", 0.5, 2))
    rows = ask(place, "SELECT query_uri, rank, reference_id FROM id2.best_matches ORDER BY ALL")
    assert rows == [
        ("a", 1, "R3"),
        ("a", 2, "R1"),
        ("a", 3, "R0"),
        ("a", 4, "R2"),
        ("b", 1, "R2"),
        ("c", 1, "R1"),
    ]


def test_the_score_that_verdicts_are_for_gives_the_rank(place: Path) -> None:
    store(
        place,
        1,
        match("n", "R1", 0.9, 1, normalized_score=0.1),
        match("n", "R2", 0.8, 1, normalized_score=0.3),
    )
    rows = ask(place, "SELECT reference_id FROM id2.best_matches WHERE query_uri = 'n' ORDER BY rank")
    assert rows == [("R2",), ("R1",)]


def test_a_generation_is_an_upload_of_its_own(place: Path) -> None:
    store(place, 2, match("a", "R1", 0.7, 2, query_generation="2", query_id="A2"))
    query = "SELECT query_generation, rank FROM id2.best_matches WHERE query_uri = 'a' ORDER BY ALL"
    assert ask(place, query) == [("1", 1), ("1", 2), ("1", 3), ("2", 1)]
    assert ask(place, "SELECT count(*) FROM id2.current WHERE query_uri = 'a'") == [(3,)]


def test_current_has_pairs_of_pictures_that_stand_with_a_present_uri(place: Path) -> None:
    store(place, 1, match("gone", "R1", 0.9, 1), match("b", "REMOVED", 0.9, 1))
    store(place, 1, match("b", "R1", 0.9, 1, transform_id="t-0"))
    query = "SELECT query_uri, reference_id, reference_uri FROM id2.current ORDER BY ALL"
    assert ask(place, query) == [
        ("a", "R1", "p/again"),
        ("a", "R2", "p/r2"),
        ("a", "R3", "p/r3"),
        ("b", "R2", "p/r2"),
        ("c", "R1", "p/again"),
    ]


def test_pairs_of_a_second_channel_stand_by_its_own_corpora(place: Path) -> None:
    """One encoder may reject what another embeds."""
    ids = {"encoder_id": "pdq-1", "transform_id": "identity"}
    embed(place / "channels/pdq/reference/embeddings", 2, {"p/r2": "R2", "p/r4": "R4"}, **ids)
    embed(place / "channels/pdq/queries/embeddings", 2, {"b": "B", "d": "D"}, **ids)
    own = ids | {"channel": "pdq"}
    store(
        place, 2, match("b", "R2", 0.9, 2, verdict="match", **own), match("d", "R4", 0.8, 2, **own),
        match("a", "R2", 0.99, 2, verdict="match", **own), match("b", "R1", 0.99, 2, **own),
    )  # fmt: skip
    query = "SELECT query_uri, reference_id, reference_uri FROM id2.current WHERE channel = 'pdq' ORDER BY 1"
    assert ask(place, query) == [("b", "R2", "p/r2"), ("d", "R4", "p/r4")]
    assert ask(place, "SELECT count(*) FROM id2.current WHERE channel = 'latent'") == [(5,)]
    columns = "query_uri, verdict, channel, reference_id, channels, channels_matched"
    assert ask(place, f"SELECT {columns} FROM id2.current_uploads ORDER BY 1") == [
        ("a", "match", "latent", "R3", 1, 1),
        ("b", "match", "pdq", "R2", 2, 1),
        ("c", "none", "latent", "R1", 1, 0),
        ("d", "none", "pdq", "R4", 1, 0),
    ]
    judge(place, match("b", "R2", 0.9, 2, **own), "review", night(3), calibration_id="joint-2")
    query = "SELECT verdict, channel, calibration_id FROM id2.current_uploads WHERE query_uri = 'b'"
    assert ask(place, query) == [("review", "latent", None)]


def test_rows_of_an_earlier_version_stand_by_their_picture(place: Path) -> None:
    old = match("b", "R1", 0.3, 1, query_generation=None, view=None, channel=None)
    changed = match("c", "R2", 0.3, 1, query_generation=None, channel=None, query_id="earlier")
    store(place, 1, old, changed)
    query = "SELECT query_uri, reference_id FROM id2.current WHERE channel IS NULL"
    assert ask(place, query) == [("b", "R1")]
    judge(place, old, "match", night(3))
    assert ask(place, query.replace("channel IS NULL", "verdict = 'match' AND query_uri = 'b'")) == [
        ("b", "R1")
    ]


def test_the_newest_verdict_of_a_pair_holds(place: Path) -> None:
    pair = match("a", "R1", 0.8, 1)
    judge(place, pair, "review", night(3), calibration_id="c2")
    judge(place, pair, "none", night(4), calibration_id="c3", verdict_reason="no_content")
    judge(place, match("c", "R1", 0.4, 2), "match", night(4), calibration_id="c3")
    query = "SELECT query_uri, reference_id, verdict, calibration_id, verdict_reason FROM id2.{} ORDER BY ALL"
    expected = [
        ("a", "R1", "none", "c3", "no_content"),
        ("a", "R2", "none", None, None),
        ("a", "R3", "match", None, None),
        ("b", "R2", "review", None, None),
        ("c", "R1", "match", "c3", None),
    ]
    for view in ("judged", "best_matches", "current"):
        assert ask(place, query.format(view)) == expected


def test_daily_counts_have_uploads_without_pairs_rejects_and_removed_ones(place: Path) -> None:
    embed(place / "queries/embeddings", 3, {"nothing": "N"})
    write(place / "queries/rejects", schemas.REJECTS, [{"uri": "x", "reason": "empty", "run_id": run_of(1)}])
    write(
        place / "queries/removals",
        schemas.REMOVALS,
        [{"uri": "y", "segment": run_of(1), "run_id": run_of(3)}],
    )
    query = "SELECT * FROM id2.daily_counts ORDER BY scan_date"
    counts = [
        # uploads, rejects, with pairs, pairs, matches, reviews, uploads matched, in review
        (D1, 3, 1, 2, 3, 1, 1, 1, 1),
        (D2, 1, 0, 2, 2, 1, 0, 1, 0),
        (date(2026, 11, 3), 1, 0, 0, 0, 0, 0, 0, 0),
    ]
    assert ask(place, query) == counts
    judge(place, match("a", "R1", 0.8, 1), "none", night(3))
    judge(place, match("c", "R1", 0.4, 2), "match", night(3))
    assert [row[5:] for row in ask(place, query)] == [(0, 1, 0, 1), (2, 0, 2, 0), (0, 0, 0, 0)]


def test_an_upload_whose_best_pair_was_taken_down_still_counts(place: Path) -> None:
    query = "SELECT uploads_with_pairs FROM id2.daily_counts ORDER BY scan_date"
    write(place / "takedowns", schemas.TAKEDOWNS, [{"image_id": "R9", "run_id": run_of(1)}])
    store(place, 1, match("d", "R2", 0.5, 1, rank=2))
    assert ask(place, query) == [(3,), (2,)]


def test_by_reference_counts_uploads(place: Path) -> None:
    store(place, 2, match("b", "R1", 0.9, 2, verdict="match"))
    query = (
        "SELECT reference_id, pairs, uploads, uploads_matched, uploads_in_review, "
        "CAST(first_seen AS DATE), CAST(last_seen AS DATE) FROM id2.by_reference ORDER BY 1"
    )
    assert ask(place, f"SET TimeZone = 'UTC'; {query}") == [
        ("R1", 3, 3, 2, 0, D1, D2),
        ("R2", 2, 2, 0, 1, None, None),
        ("R3", 1, 1, 1, 0, D2, D2),
    ]


def searched(
    place: Path, number: int, hours: float, queries: tuple[int, int], references: tuple[int, int]
) -> None:
    ranges = dict(
        zip(("query_from", "query_to", "reference_from", "reference_to"), queries + references, strict=True)
    )
    ids = {"encoder_id": "e-1", "transform_id": "t-1", "run_id": run_of(number)}
    write(place / "ledger", schemas.LEDGER, [ranges | ids | {"searched_at": night(number, hours)}])


def test_backscan_ends_when_every_earlier_upload_was_searched(place: Path) -> None:
    segments = [
        {"corpus": corpus, "segment": run_of(n), "number": n, "added_at": night(n), "rows": n}
        for corpus in ("reference", "queries")
        for n in (1, 2)
    ]
    write(place / "segments", schemas.SEGMENTS, segments)
    query = (
        "SELECT number, reference_rows, upload_segments, upload_segments_searched, hours "
        "FROM id2.backscan ORDER BY number"
    )
    searched(place, 1, 1.5, (1, 1), (1, 1))
    searched(place, 2, 1, (2, 2), (1, 2))
    assert ask(place, query) == [(1, 1, 1, 1, 1.5), (2, 2, 2, 1, None)]
    searched(place, 2, 30, (1, 1), (2, 2))
    assert ask(place, query) == [(1, 1, 1, 1, 1.5), (2, 2, 2, 2, 30.0)]


def test_rejects_are_counted_by_corpus_date_and_reason(place: Path) -> None:
    rows = [{"uri": uri, "reason": "empty", "run_id": run_of(1)} for uri in ("x", "y")]
    write(place / "queries/rejects", schemas.REJECTS, rows)
    write(
        place / "reference/rejects", schemas.REJECTS, [{"uri": "z", "reason": "corrupt", "run_id": run_of(2)}]
    )
    query = "SELECT corpus, scan_date, reason, objects FROM id2.rejects_by_reason ORDER BY 1"
    assert ask(place, query) == [("queries", D1, "empty", 2), ("reference", D2, "corrupt", 1)]


@pytest.mark.parametrize("name", sql_views.VIEWS)
def test_bigquery_reads_a_view_and_finds_each_column(name: str) -> None:
    [query] = sqlglot.parse(sql_views.view(name), dialect="bigquery")
    assert query
    known = {source.name for source in sql_views.SOURCES} | set(
        sql_views.VIEWS[: sql_views.VIEWS.index(name)]
    )
    tables = {table.name for table in query.find_all(expressions.Table) if table.db}
    assert {table.db for table in query.find_all(expressions.Table) if table.db} == {"id2"}
    assert tables <= known


@pytest.mark.parametrize("name", sql_views.VIEWS)
def test_an_outer_join_has_the_equality_that_bigquery_demands(name: str) -> None:
    for join in sqlglot.parse_one(sql_views.view(name), dialect="bigquery").find_all(expressions.Join):
        if join.side:
            sides = [
                {column.table for column in equality.find_all(expressions.Column)}
                for equality in join.args["on"].find_all(expressions.EQ)
            ]
            assert any(len(tables) == 2 for tables in sides), f"{name}: {join.sql()}"


def test_the_scripts_are_up_to_date_and_bigquery_reads_its_own() -> None:
    for name, text in sql_views.pages().items():
        assert (sql_views.SQL / name).read_text(encoding="utf-8") == text, f"{name}: run `make docs`"
    # sqlglot does not know this clause of external tables.
    text = sql_views.pages()["bigquery.sql"].replace("\nWITH PARTITION COLUMNS (scan_date DATE)", "")
    statements = sqlglot.parse(text, dialect="bigquery")
    created = [s for s in statements if isinstance(s, expressions.Create)]
    assert len(created) == len(statements) == len(sql_views.SOURCES) + len(sql_views.VIEWS)


def test_every_view_has_its_file() -> None:
    assert {path.stem for path in (sql_views.SQL / "views").glob("*.sql")} == set(sql_views.VIEWS)
