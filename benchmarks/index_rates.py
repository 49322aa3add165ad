"""Measure the unit rates of compressed indexes, for `benchmarks.rates`.

The real jobs build indexes of two numbers of lists, and search by them with two numbers of searched lists, of
candidates, and of uploads. An estimate is a sum of amounts times rates. So the seconds of the timers of jobs
are equations, and their solution is the rates. Descriptors are drawn: what a step costs does not depend on
them, but lists of real ones differ more in length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from scipy.optimize import nnls

from beam_jobs import index, search
from benchmarks import common
from benchmarks.common import Rates, vcpus
from benchmarks.search import TOP_K, unit, write_embeddings
from id2core import defaults
from id2core.estimates import coding
from id2core.estimates.coding import Coding
from id2core.estimates.layout import SearchLayout
from id2core.estimates.rates import CPU, DESCRIPTOR_SIZE, Lookup, Machine, Measured, RateFile
from id2core.estimates.workload import CodeSearch, Workload
from id2core.runs import codes
from id2core.runs.execution import Execution
from id2core.search import match_rows, scope
from id2core.search.coded import CodedReferences
from id2core.store.datasets import Dataset

# Strings of each kind of code, for some number of lists. Codes are of about 64 bytes.
STRINGS: Final = {
    "rabitq": "RR448,IVF{},RaBitQ",
    "pqx4": "RR480,IVF{},PQ120x4",
    "pqnp": "RR448,IVF{},PQ64np",
}
ROTATED: Final = {"pcar": "PCAR448,IVF{},RaBitQ", "opq": "OPQ120_480,IVF{},PQ120x4"}
FEW_LISTS, MANY_LISTS = 64, 512
# Lists that are searched, with few and with many lists.
PROBES: Final = {FEW_LISTS: (8, 40), MANY_LISTS: (24, 192)}
CANDIDATES: Final = (200, 800)
# Uploads so few that reading descriptors is most of the work.
FEW_QUERIES: Final = 256
# Any recall will do: drawn descriptors have no neighbors that are easy to find.
_ANY: Final = 1e-6
# What predicts the seconds of a timer, or its vCPU-seconds, and what it showed.
Observation = tuple[Callable[[Lookup], float], float]


@dataclass(frozen=True)
class Build:
    """One build of an index, with its timers in seconds."""

    coded: CodedReferences
    seconds: float
    timers: Counter[str]

    def model(self, rate: Lookup) -> Coding:
        """Return the estimate of the build."""
        rows = self.coded.references.rows
        return Coding(rate, self.coded.form, rows, DESCRIPTOR_SIZE, defaults.SHARD_MEMORY << 20)

    @property
    def rest(self) -> float:
        """Return the seconds that no timer has."""
        return self.seconds - sum(self.timers.values())


@dataclass(frozen=True)
class Search:
    """One search by codes, with its timers in seconds."""

    coded: CodedReferences
    queries: int
    seconds: float
    timers: Counter[str]

    def block_seconds(self, rate: Lookup) -> float:
        """Estimate the timer of its blocks."""
        facts, rows = self.coded.facts, self.coded.references.rows
        used = CodeSearch(self.coded.form, facts.probes, facts.depth)
        load = Workload(rows, self.queries, top_k=TOP_K, index=used)
        return coding.search_seconds(rate, load, used, SearchLayout(self.queries, rows, 1, 1), vcpus())

    def load_seconds(self, rate: Lookup) -> float:
        """Estimate the timer of its shard."""
        return coding.load_seconds(
            rate, self.coded.form, self.coded.references.rows, DESCRIPTOR_SIZE, vcpus()
        )


def corpus(folder: Path, rows: int, seed: int = 0) -> Dataset:
    """Draw a corpus, with room for an index beside it."""
    place = folder / "embeddings"
    folder.mkdir()
    write_embeddings(place, unit(rows, DESCRIPTOR_SIZE, seed), "r")
    return Dataset.open(str(place))


def build(references: Dataset, string: str) -> Build:
    """Run the job that makes an index of references, in place of the one beside them."""
    coding = codes.plan(references, string, Execution.begin(), anew=True)
    wanted = index.Wanted(coding, _ANY, defaults.SHARD_MEMORY << 20)
    with common.timers() as timers:
        seconds = common.seconds(lambda: index.run(wanted))
    made = codes.find(references)
    if made is None:
        raise SystemExit("the job has made no index")
    return Build(CodedReferences(references, made), seconds, timers)


def searched(coded: CodedReferences, probes: int, candidates: int) -> CodedReferences:
    """Return references whose index is searched in another way."""
    made = coded.index
    facts = coded.facts.model_copy(update={"probes": probes, "depth": candidates})
    runs = made.commit.runs | {made.run_id: facts.model_dump(mode="json")}
    return replace(coded, index=replace(made, commit=replace(made.commit, runs=runs)))


def run_search(coded: CodedReferences, queries: Dataset) -> Search:
    """Run the job that searches by an index."""
    scope._LAST.clear()  # what an earlier search of this process knows of the references
    with TemporaryDirectory(prefix="id2-bench-") as out, common.timers() as timers:

        def work() -> None:
            plan = match_rows.make(
                coded.references,
                queries,
                f"{out}/matches",
                Execution.begin(),
                TOP_K,
                index=coded.form.text,
                coded=coded,
            )
            search.run_planned(plan)

        seconds = common.seconds(work)
    return Search(coded, queries.rows, seconds, timers)


def solve(held: Rates, names: Sequence[str], observations: Sequence[Observation]) -> Rates:
    """Return the rates that make estimates equal to what timers showed, none below 0.

    Args:
        held: rates that are known.
        names: of the others.
        observations: at least as many.
    """
    nothing = held | dict.fromkeys(names, 0.0)
    matrix, seconds = [], []
    for estimate, shown in observations:
        known = estimate(lookup(nothing))
        amounts = [estimate(lookup(nothing | {name: 1.0})) - known for name in names]
        matrix.append(np.array(amounts) / shown)  # so that errors are shares
        seconds.append((shown - known) / shown)
    scale = np.maximum(np.max(matrix, axis=0), np.finfo(float).tiny)
    found, _ = nnls(np.array(matrix) / scale, np.array(seconds))
    return {name: float(rate) for name, rate in zip(names, found / scale, strict=True)}


def lookup(held: Rates) -> Lookup:
    """Return the rates of this machine."""
    machine = Machine(name="this machine", vcpus=vcpus(), measured="today", versions={})
    return Lookup(RateFile(devices={CPU: Measured(machine=machine, rates=held)}))


def measure(held: Rates, references: int = 65_536, queries: int = 8192) -> Rates:
    """Measure all rates of compressed indexes; those of the exact search are held."""
    with TemporaryDirectory(prefix="id2-bench-") as name:
        folder = Path(name)
        known = corpus(folder / "references", references)
        uploads, few = (corpus(folder / f"queries-{n}", n, 1) for n in (queries, FEW_QUERIES))
        run_search(build(known, STRINGS["rabitq"].format(16)).coded, few)  # what libraries load once
        made: Rates = {}
        builds: list[Build] = []
        for kind in STRINGS:
            made |= _measure_kind(held | made, kind, known, uploads, few, builds)
        made["index_code_bytes"] = _code_bytes(builds[-1].coded)
        small = corpus(folder / "small", 2 * defaults.PART_SIZE)
        for rotation, string in ROTATED.items():
            builds.append(build(small, string.format(FEW_LISTS)))
            made |= solve(held | made, [f"index_rotation.{rotation}"], [_trained(builds[-1])])
    made |= solve(held | made, ["index_candidate"], [_measured(each) for each in builds])
    return made | {"index_start": min(each.rest for each in builds)}


def _measure_kind(
    held: Rates, kind: str, references: Dataset, uploads: Dataset, few: Dataset, builds: list[Build]
) -> Rates:
    """Measure what a kind of code costs; with RaBitQ, also what does not depend on the kind.

    The builds are added to `builds`.
    """
    is_first = kind == "rabitq"
    own_builds, runs = [], []
    for lists, tried in PROBES.items():
        made = build(references, STRINGS[kind].format(lists))
        own_builds.append(made)
        runs += [run_search(searched(made.coded, probes, CANDIDATES[0]), uploads) for probes in tried]
        if lists == FEW_LISTS:
            runs.append(run_search(searched(made.coded, tried[0], CANDIDATES[1]), uploads))
            runs.append(run_search(searched(made.coded, tried[0], CANDIDATES[0]), few))

    def add(names: Sequence[str], observations: Sequence[Observation]) -> None:
        found.update(solve(held | found, names, observations))

    found: Rates = {}
    shared = ["search_reread_byte", "search_coded_row"] if is_first else []
    own = [f"{name}.{kind}" for name in ("search_list", "search_code_byte", "search_coded_candidate")]
    add([*own, *shared], [_searched(run) for run in runs])
    add([f"index_load_byte.{kind}"], [_loaded(run) for run in runs])
    training = ["index_rotation.rr", "index_center"] if is_first else [f"index_codebook.{kind}"]
    add(training, [_trained(made) for made in own_builds])
    encoding = ["index_encode_number"] if is_first else []
    add([f"index_encode_row.{kind}", *encoding], [_encoded(made) for made in own_builds])
    builds += own_builds
    return found


def _searched(run: Search) -> Observation:
    return run.block_seconds, run.timers["search_block"]


def _loaded(run: Search) -> Observation:
    return run.load_seconds, run.timers["search_load"]


def _trained(made: Build) -> Observation:
    return lambda rate: made.model(rate).train_seconds, made.timers["index_train"] * vcpus()


def _encoded(made: Build) -> Observation:
    rows = made.coded.references.rows
    return lambda rate: rows * made.model(rate).encode_seconds, made.timers["index_encode"] * vcpus()


def _measured(made: Build) -> Observation:
    return lambda rate: made.model(rate).measure_seconds, made.timers["index_measure"] * vcpus()


def _code_bytes(coded: CodedReferences) -> float:
    """Return the stored bytes of a byte of codes."""
    held = sum(file.bytes for file in coded.code_files)
    return held / coded.references.rows / coded.form.stored_bytes(DESCRIPTOR_SIZE)
