"""What a search appends to `matches/`: pairs with scores and verdicts, and an event of the ledger."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from id2core.errors import DatasetError, SearchError, StoreUnavailableError
from id2core.runs import ledger
from id2core.runs.execution import Execution
from id2core.runs.ledger import Event, Span
from id2core.search import indexes, looks, matching, scope, shards, shown, viewed_rows
from id2core.search.coded import CodedReferences
from id2core.search.indexes import FLAT
from id2core.search.looks import ViewPlan
from id2core.search.matching import SearchPlan
from id2core.search.results import SearchResult
from id2core.store import datasets, schemas
from id2core.store.datasets import Commit, Dataset, FileRecord

MATCHES = "matches"
# What a match was found by, unless a candidate says more: the whole upload, by its latent.
VIEW, CHANNEL = looks.WHOLE, "latent"
_INFORMATION = "information"


class Judge(Protocol):
    """Gives verdicts to matches; `verdicts.judging.Judge` is one."""

    @property
    def calibration_id(self) -> str:
        """Name of the calibration."""
        ...

    @property
    def score(self) -> str:
        """The column of `matches/` that is judged."""
        ...

    def check_ids(self, ids: Mapping[str, str]) -> None:
        """Raise where scores of these ids cannot be judged."""
        ...

    def judge(self, matches: pa.Table, references: int, segments: frozenset[str] | None) -> pa.Table:
        """Return matches of uploads of some segments with their verdicts, rows in their order."""
        ...

    def after(self, backgrounds: Dataset) -> Judge:
        """Return the judge once a search of the background is committed to a data set."""
        ...


@dataclass(frozen=True)
class MatchRows:
    """Facts: rows of `matches/`, each pair once.

    Attributes:
        event: what the ledger says once the search is committed.
        known: events of the ledger that the search was planned with.
        started: `scanned_at` of the rows.
        corpus: rows of the references.
        judge: gives the verdicts; None for none.
        channel: of the rows.
    """

    event: Event
    known: tuple[Event, ...]
    started: datetime
    corpus: int
    judge: Judge | None = None
    channel: str = CHANNEL

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows."""
        return schemas.MATCHES

    @property
    def folder(self) -> str:
        """The partition of the run's day."""
        return f"scan_date={self.started.date().isoformat()}/"

    def rows(self, plan: SearchPlan, queries: pa.Table, candidates: pa.Table) -> pa.Table:
        """Return the candidates of a block with their verdicts, less those below the floor."""
        event, judge = self.event, self.judge
        table = to_matches(
            queries,
            rescored(candidates, plan.top_k) if plan.views else candidates,
            MatchConstants(
                encoder_id=event.ids["encoder_id"],
                transform_id=event.ids["transform_id"],
                index_id=event.index_id,
                run_id=plan.execution.run_id,
                scanned_at=self.started,
                floor=event.floor,
                channel=self.channel,
            ),
        )
        if judge:
            segments = frozenset(queries["run_id"].unique().to_pylist())
            table = judge.judge(table, self.corpus, segments)
        if event.floor is None:
            return table
        scores = table[judge.score if judge else "score"]
        return table.filter(pc.greater_equal(scores, pa.scalar(event.floor, pa.float32())))

    def after(self, backgrounds: Dataset) -> MatchRows:
        """Return the product whose judge looks uploads up in a data set."""
        return replace(self, judge=self.judge and self.judge.after(backgrounds))

    def sorted(self, rows: pa.Table) -> pa.Table:
        """Return rows in the order of `schemas.MATCHES_ORDER`."""
        return rows.sort_by(list(schemas.MATCHES_ORDER))

    def is_in(self, commit: Commit) -> bool:
        """Return whether the ledger has the event, and did not when the search was planned."""
        events = ledger.events(commit, self.event.ids)
        return any(self.event.same_as(event) for event in events if event not in self.known)

    def commit(self, plan: SearchPlan, files: tuple[FileRecord, ...]) -> Dataset:
        """Add files and event, unless another run has done the same search meanwhile.

        Raises:
            StoreUnavailableError: another run has searched something else meanwhile.
        """
        run_id = plan.execution.run_id
        made = tuple(file.of_segments({run_id: file.rows}) for file in files)

        def add(present: Commit | None) -> Commit:
            base = present or Commit(MATCHES, run_id, {})
            if self.is_in(base):
                return base
            if tuple(ledger.events(base, self.event.ids)) != self.known:
                raise StoreUnavailableError(f"{plan.out}: another run has searched meanwhile. Run again")
            event = self.event.model_copy(update={"searched_at": datetime.now(UTC)})
            searched: list[JsonValue] = [
                e.model_dump(mode="json") for e in (*ledger.events_of(base, run_id), event)
            ]
            counts: dict[str, JsonValue] = base.runs.get(run_id, {}) | {ledger.EVENTS: searched}
            runs = base.runs | {run_id: counts}
            return replace(base, run_id=run_id, files=(*base.files, *made), runs=runs)

        return datasets.update_commit(plan.out, add, plan.last)


def make(
    references: Dataset,
    queries: Dataset,
    out: str,
    execution: Execution,
    top_k: int,
    judge: Judge | None = None,
    index: str = FLAT,
    floor: float | None = None,
    span: Span | None = None,
    coded: CodedReferences | None = None,
    views: ViewPlan | None = None,
    channel: str = CHANNEL,
) -> SearchPlan:
    """Check that two embeddings data sets can be compared, and judged so, and find the pairs to score.

    Args:
        references, queries: embeddings.
        out: URI of the matches data set.
        execution: gives new rows their run_id and time.
        top_k: references kept per upload.
        judge: gives the verdicts; None for none.
        index: by which the references are searched, see `indexes`.
        floor: least score of a pair that is stored, of the score that is judged; None for all.
        span: first and last number of the query segments; by default all.
        coded: the references with their codes, where the index is a compressed one.
        views: under which uploads are looked at; None for the whole alone.
        channel: of the rows.

    Raises:
        DatasetError: their encoder, transform or preprocessing differ, or `out` holds matches of other
            corpora, or of which fewer were stored than are asked for.
        SearchError: there is no such index, or it lacks codes.
        CalibrationError: the calibration is for other scores.
    """
    ids = matching.check_comparable(references, queries, top_k, index)
    _check_coded(index, coded)
    views_id = looks.id_of(views)
    if judge:
        judge.check_ids(ids | {looks.VIEWS: views_id})
    last = Dataset.find_own(out)
    events = events_to_follow(last, ids, views_id, top_k, floor)
    check_rows(references, views, index)
    check_corpora(out, events, queries, references)
    span = span or scope.whole(queries)
    searched = scope.whole(references)
    todo = scope.find(references, queries, events, span)
    event = Event(
        queries=span,
        references=searched,
        query_segment=datasets.segment_names(queries).get(span[1], ""),
        reference_segment=datasets.segment_names(references).get(searched[1], ""),
        query_version=queries.commit.version,
        reference_version=references.commit.version,
        pairs=todo.pairs if todo else 0,
        ids=ids,
        index_id=_index_id(references, index, coded),
        top_k=top_k,
        floor=floor,
        calibration_id=judge.calibration_id if judge else None,
        views=views_id,
    )
    return SearchPlan(
        references=references,
        queries=queries,
        out=out,
        last=last,
        scope=todo,
        top_k=top_k,
        index=index,
        plan_id=datasets.digest_of(event.model_dump(), [e.model_dump(mode="json") for e in events]),
        execution=execution,
        product=MatchRows(event, tuple(events), execution.started, references.rows, judge, channel),
        coded=coded,
        views=views,
        depth=looks.RESCORED if views else 0,
    )


def check_rows(references: Dataset, views: ViewPlan | None, index: str) -> None:
    """Raise DatasetError where views of uploads need rows of references that these lack."""
    if views and indexes.is_built_at_once(index) and views.load().has_rows:
        viewed_rows.check(references)


def _index_id(references: Dataset, index: str, coded: CodedReferences | None) -> str:
    return coded.index_id if coded else shards.index_id(references, index)


def _check_coded(index: str, coded: CodedReferences | None) -> None:
    """Raise SearchError unless a compressed index, and no other, has the codes that it is of."""
    if coded:
        coded.check()
    if indexes.is_built_at_once(index) != (coded is None) or (coded and coded.form.text != index):
        held = f"has codes of {coded.form.text}" if coded else "has none"
        raise SearchError(
            f"index {index!r} needs its own codes of the references, which {held}: run id2 index --index "
            f"{index} with the --out that they are in"
        )


def events_to_follow(
    matches: Dataset | None, ids: Mapping[str, str], views: str, top_k: int, floor: float | None
) -> list[Event]:
    """Return the earlier searches of a data set of matches that a search goes on from.

    Args:
        matches: None where there is none yet.
        ids: `schemas.ROW_IDS` of the search.
        views: id of its views, or `looks.NONE`.
        top_k, floor: as of `make`.

    Raises:
        DatasetError: they were under other views, stored fewer pairs than are asked for, or kept no ledger.
    """
    check_layout(matches)
    if matches is None:
        return []
    events = ledger.events(matches.commit, ids)
    check_views(matches.uri, events, views)
    check_stored(matches.uri, events, top_k, floor)
    return events


def check_layout(matches: Dataset | None) -> None:
    """Raise DatasetError where an earlier version of this program wrote matches, without a ledger."""
    if matches and not any(ledger.events_of(matches.commit, run_id) for run_id in matches.runs):
        raise DatasetError(
            f"{matches.uri} was written by an earlier version, which kept no record of what was searched. "
            "Rename or remove matches/ and scan again: the embeddings beside it are used as they are"
        )


def check_stored(out: str, events: Iterable[Event], top_k: int, floor: float | None) -> None:
    """Raise DatasetError when earlier searches stored fewer pairs than are asked for now."""
    for event in events:
        if event.top_k < top_k:
            raise DatasetError(
                f"{out} keeps {event.top_k} matches of an upload, this run asks for {top_k}: what was not "
                f"stored would have to be searched again. Give --top-k {event.top_k}, or another --out"
            )
        if event.floor is not None and (floor is None or floor < event.floor):
            asked = "all" if floor is None else f"those of {floor:.4f} or more"
            raise DatasetError(
                f"{out} keeps pairs with a score of {event.floor:.4f} or more, this run asks for {asked}: "
                "what was not stored would have to be searched again. Write to another --out"
            )


def check_views(out: str, events: Iterable[Event], views: str) -> None:
    """Raise DatasetError when earlier searches looked at uploads under other views.

    Args:
        out: URI of the matches.
        events: of the earlier searches.
        views: id of the views now, or `looks.NONE`.
    """
    for event in events:
        if event.views != views:
            uploads = "--queries dataset:URI"
            if views != looks.NONE:
                uploads = "embed uploads again, for this version may see more pictures inside of them"
            raise DatasetError(
                f"{out} keeps scores of {looks.described(event.views)}, this run asks for "
                f"{looks.described(views)}, whose scores are others: "
                + (f"give --views {looks.NONE}, or " if event.views == looks.NONE else "")
                + "write to another --out. What is embedded serves there: --reference dataset:URI, and "
                + uploads
            )


def check_corpora(out: str, events: Collection[Event], queries: Dataset, references: Dataset) -> None:
    """Raise DatasetError when earlier searches were of other corpora, for example of one that was made again.

    The ledger counts segments by number: it would take what was never searched for searched.
    """
    asked = {(e.query_segment, e.queries[1], e.query_version) for e in events}
    held = {(e.reference_segment, e.references[1], e.reference_version) for e in events}
    for side, corpus, states in (("uploads", queries, asked), ("references", references, held)):
        # Another run may have searched a later state of the corpus meanwhile.
        if not _had(corpus, states) and not _had(Dataset.open(corpus.uri), states):
            raise DatasetError(
                f"{out} keeps matches of other {side} than those in {corpus.uri}, which was made again, or "
                "was not searched there before: scan into another --out"
            )


def _had(corpus: Dataset, states: Iterable[tuple[str, int, int]]) -> bool:
    """Return whether a corpus may have had each last segment, by run_id and number, at a version."""
    named = datasets.segment_names(corpus)
    return all(
        version <= corpus.commit.version and (not segment or named.get(number) == segment)
        for segment, number, version in states
    )


def result(plan: SearchPlan, matches: Dataset) -> SearchResult:
    """Return the result of a search that `matches` holds."""
    searched = [run_id for run_id in matches.runs if ledger.events_of(matches.commit, run_id)]
    own = tuple(file for file in matches.files if file.belongs_to(plan.plan_id))
    return SearchResult(
        dataset=matches,
        files=own,
        run_id=searched[-1] if searched else plan.execution.run_id,
        queries=plan.queries.rows,
        searched=plan.scope.uploads if plan.scope else 0,
        matches=sum(file.rows for file in own),
        pairs=plan.scope.pairs if plan.scope else 0,
        index_id=_index_id(plan.references, plan.index, plan.coded),
        corpus=plan.references.rows,
        resumed=plan.scope is None,
    )


@dataclass(frozen=True)
class MatchConstants:
    """Columns of `matches/` that are the same in every row of a search."""

    encoder_id: str
    transform_id: str
    index_id: str
    run_id: str
    scanned_at: datetime
    floor: float | None = None
    channel: str = CHANNEL


def to_matches(queries: pa.Table, candidates: pa.Table, constants: MatchConstants) -> pa.Table:
    """Return merged candidates as a `schemas.MATCHES` table, rows in their order.

    Args:
        queries: `image_id` and `uri`, and where known `generation`, `information`, and the columns of
            `schemas.CREDENTIALS`, of the queries that `query_row` counts; and `inset_information`, which says
            how much the picture shows that a pair was found by.
        candidates: a `shards.CANDIDATES` table.
        constants: columns that are the same in every row. Columns of neither are null: not known yet.
    """
    rows = candidates["query_row"]
    asked = queries.take(rows)
    views = pc.fill_null(_or_null(candidates, "view", pa.string()), VIEW)
    shows = shown.information(
        _or_null(queries, _INFORMATION, pa.float32()),
        _or_null(queries, "inset_information", pa.list_(schemas.INSET_INFORMATION)),
        rows.to_numpy(),
        views,
    )
    least = np.fmin(shows, candidates["reference_information"].to_numpy().astype(np.float32))
    columns = {
        "query_id": asked["image_id"],
        "query_uri": asked["uri"],
        "query_generation": _or_null(asked, "generation", pa.string()),
        "rank": pa.array(shards.ranks(rows.to_numpy()) + 1, pa.int32()),
        "view": views,
        "detail": _or_null(candidates, "detail", pa.float32()),
        **{name: candidates[name] for name in ("score", "reference_id", "reference_uri")},
        _INFORMATION: pa.array(least, pa.float32(), from_pandas=True),
        **{name: _or_null(asked, name, kind) for name, kind in schemas.CREDENTIALS},
    }
    arrays = [
        columns[field.name]
        if field.name in columns
        else pa.repeat(pa.scalar(getattr(constants, field.name, None), field.type), len(rows))
        for field in schemas.MATCHES
    ]
    return pa.Table.from_arrays(arrays, schema=schemas.MATCHES)


def rescored(candidates: pa.Table, top_k: int) -> pa.Table:
    """Return merged candidates, the first `looks.RESCORED` of each upload scored again by their detail.

    The detail of all others becomes null: their scores are without it.

    Args:
        candidates: a `shards.CANDIDATES` table, ordered by query_row and falling score.
        top_k: candidates of each upload that are kept.
    """
    ranks = shards.ranks(candidates["query_row"].to_numpy())
    detail = candidates["detail"].to_numpy(zero_copy_only=False).astype(np.float32)
    used = np.where(ranks < looks.RESCORED, detail, np.nan).astype(np.float32)
    columns = {
        "score": pa.array(looks.rescored(candidates["score"].to_numpy(), used), pa.float32()),
        "detail": pa.array(used, pa.float32(), from_pandas=True),
    }
    for name, column in columns.items():
        place = candidates.column_names.index(name)
        candidates = candidates.set_column(place, shards.CANDIDATES.field(name), column)
    return shards.merge([candidates], top_k)


def _or_null(table: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    known = name in table.column_names
    return table[name] if known else pa.chunked_array([pa.nulls(table.num_rows, kind)])
