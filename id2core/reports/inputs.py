"""What a report is made from: the places of a scan's data sets, and how they are read."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from id2core.reports.facts import ChannelPlaces, Places, ScanFacts
from id2core.search.current import CurrentMatches
from id2core.search.match_rows import CHANNEL
from id2core.store.datasets import Dataset

EXAMPLES = 3


@dataclass(frozen=True)
class FurtherChannel:
    """The corpora of a channel beside the first."""

    name: str
    reference_embeddings: Dataset
    query_embeddings: Dataset
    reference_rejects: Dataset | None
    query_rejects: Dataset | None

    @staticmethod
    def open(name: str, places: ChannelPlaces) -> FurtherChannel:
        """Open the data sets of a finished scan.

        Raises:
            DatasetError: one of them is not there.
        """
        return FurtherChannel(
            name,
            Dataset.open(places.reference_embeddings),
            Dataset.open(places.query_embeddings),
            Dataset.open(places.reference_rejects) if places.reference_rejects else None,
            Dataset.open(places.query_rejects) if places.query_rejects else None,
        )

    @property
    def places(self) -> ChannelPlaces:
        """Return the URIs of the data sets."""
        return ChannelPlaces(
            reference_embeddings=self.reference_embeddings.uri,
            query_embeddings=self.query_embeddings.uri,
            reference_rejects=self.reference_rejects.uri if self.reference_rejects else None,
            query_rejects=self.query_rejects.uri if self.query_rejects else None,
        )


@dataclass(frozen=True)
class ReportInputs:
    """The data sets, truth and facts that a report is made from.

    Attributes:
        matches: the matches data set.
        search_run: run_id of the last search.
        reference_embeddings, query_embeddings: the two embeddings data sets.
        reference_rejects, query_rejects: rejects data sets, where there are any.
        run: facts of the scan.
        truth: absolute query URI → URI of its origin, or None where it has none.
        groups: absolute query URI → the group that it is also counted in.
        only_run: whether only what the last search found is reported.
        unfinished: run_ids whose finds are reported with it: killed runs of the same work.
        verdicts: later verdicts of the pairs, where there are any.
        channels: those beside the first.
    """

    matches: Dataset
    search_run: str
    reference_embeddings: Dataset
    query_embeddings: Dataset
    reference_rejects: Dataset | None
    query_rejects: Dataset | None
    run: ScanFacts
    truth: dict[str, str | None] | None = None
    groups: dict[str, str] | None = None
    only_run: bool = False
    unfinished: tuple[str, ...] = ()
    verdicts: Dataset | None = None
    channels: tuple[FurtherChannel, ...] = ()

    @staticmethod
    def open(
        places: Places,
        run: ScanFacts,
        truth: dict[str, str | None] | None = None,
        groups: dict[str, str] | None = None,
    ) -> ReportInputs:
        """Open the data sets of a finished scan.

        Args:
            places: what `places` returned.
            run, truth, groups: as the attributes.

        Raises:
            DatasetError: one of them is not there.
        """
        return ReportInputs(
            matches=Dataset.open(places.matches),
            search_run=places.search_run,
            reference_embeddings=Dataset.open(places.reference_embeddings),
            query_embeddings=Dataset.open(places.query_embeddings),
            reference_rejects=Dataset.open(places.reference_rejects) if places.reference_rejects else None,
            query_rejects=Dataset.open(places.query_rejects) if places.query_rejects else None,
            run=run,
            truth=truth,
            groups=groups,
            only_run=places.only_run,
            unfinished=places.unfinished,
            verdicts=Dataset.open(places.verdicts) if places.verdicts else None,
            channels=tuple(FurtherChannel.open(name, own) for name, own in places.channels.items()),
        )

    @property
    def places(self) -> Places:
        """Return the URIs of the data sets, from which `open` opens them again."""
        return Places(
            matches=self.matches.uri,
            search_run=self.search_run,
            reference_embeddings=self.reference_embeddings.uri,
            query_embeddings=self.query_embeddings.uri,
            reference_rejects=self.reference_rejects.uri if self.reference_rejects else None,
            query_rejects=self.query_rejects.uri if self.query_rejects else None,
            only_run=self.only_run,
            unfinished=self.unfinished,
            verdicts=self.verdicts.uri if self.verdicts else None,
            channels={channel.name: channel.places for channel in self.channels},
        )

    @functools.cached_property
    def current(self) -> CurrentMatches:
        """Return the reported matches."""
        judged_by = self.run.joint or self.run.calibration
        return CurrentMatches(
            self.matches,
            self.reference_embeddings,
            self.query_embeddings,
            self.run.config.top_k,
            frozenset((self.search_run, *self.unfinished)) if self.only_run else None,
            self.verdicts,
            judged_by.calibration_id if judged_by else None,
            tuple((c.reference_embeddings, c.query_embeddings) for c in self.channels),
        )

    @property
    def rejects(self) -> dict[str, Dataset | None]:
        """Return the rejects of the `reference` and the `queries` corpus, and of further channels."""
        every = {"reference": self.reference_rejects, "queries": self.query_rejects}
        for channel in self.channels:
            every[f"{channel.name}/reference"] = channel.reference_rejects
            every[f"{channel.name}/queries"] = channel.query_rejects
        return every

    @property
    def channel_names(self) -> list[str]:
        """Return the names of the channels, the first first."""
        return [CHANNEL, *(channel.name for channel in self.channels)]

    @property
    def query_corpora(self) -> list[Dataset]:
        """Return the embeddings of the queries in each channel, the first first."""
        return [self.query_embeddings, *(channel.query_embeddings for channel in self.channels)]

    @property
    def query_rejects_of_channels(self) -> list[Dataset | None]:
        """Return the rejects of the queries in each channel, the first first."""
        return [self.query_rejects, *(channel.query_rejects for channel in self.channels)]

    @property
    def reference_corpora(self) -> list[Dataset]:
        """Return the embeddings of the references in each channel, the first first."""
        return [self.reference_embeddings, *(channel.reference_embeddings for channel in self.channels)]

    @property
    def origins(self) -> dict[str, str]:
        """The queries of the truth that have an origin → its URI."""
        return {query: origin for query, origin in (self.truth or {}).items() if origin}


def match_tables(inputs: ReportInputs, columns: list[str]) -> Iterator[pa.Table]:
    """Read the reported matches; all ranks of an upload are in one table."""
    return inputs.current.tables(columns)


def among(column: pa.ChunkedArray, wanted: Iterable[str]) -> pa.ChunkedArray:
    """Return, row by row, whether a column's value is one of those wanted."""
    return pc.is_in(column, value_set=pa.array(list(wanted), pa.string()))


def rows_of(dataset: Dataset, wanted: set[str], columns: list[str]) -> Iterator[pa.Table]:
    """Read the rows of an embeddings or rejects data set whose `uri` is wanted, file by file."""
    for table in dataset.among(wanted).tables(columns):
        yield table.filter(among(table["uri"], wanted)).select(columns)


def count_rejects(rejects: Dataset | None) -> Counter[str]:
    """Return how many rejects there are of each reason."""
    counts: Counter[str] = Counter()
    for table in rejects.tables(["reason"]) if rejects else ():
        counts.update(table["reason"].to_pylist())
    return counts


def reject_examples(rejects: Dataset | None, counts: Mapping[str, int]) -> dict[str, list[dict[str, str]]]:
    """Return the first few rejects of each reason, whose counts say when there are no more to look for."""
    examples: dict[str, list[dict[str, str]]] = {reason: [] for reason in counts}
    for record in rejects.files if rejects else ():
        few = {reason for reason, first in examples.items() if len(first) < min(EXAMPLES, counts[reason])}
        if not few or rejects is None:
            break
        table = rejects.read_file(record, ["uri", "reason", "detail"])
        for reason in few.intersection(table["reason"].unique().to_pylist()):
            rows = table.filter(pc.equal(table["reason"], reason))
            examples[reason] += rows.slice(0, EXAMPLES - len(examples[reason])).to_pylist()
    return examples
