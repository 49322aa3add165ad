"""The measures of a scan against its truth, from matches that are read file by file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from id2core.evaluation import metrics, ranking
from id2core.evaluation.metrics import Answers, Budget, Counts, ScoreColumn
from id2core.evaluation.ranking import Predictions
from id2core.evaluation.truth_files import Truth

COLUMNS: Final = ["query_uri", "reference_uri", "reference_id", "rank", "score", "normalized_score"]


def read(tables: Iterable[pa.Table], truth: Truth, image_ids: Mapping[str, str]) -> Answers:
    """Read what `metrics.read` gives for all tables as one, keeping only numbers: 17 bytes a pair.

    Args:
        tables: matches with `COLUMNS`, each table with all ranks of its queries.
        truth: what is asked; queries without a row count, with nothing retrieved.
        image_ids: URI of an origin → its image_id.
    """
    numbers = {query: i for i, query in enumerate(truth)}
    parts: list[tuple[NDArray[Any], ...]] = [(np.empty(0, np.int64), np.empty(0), np.empty(0, bool))]
    score: ScoreColumn = "score"
    answered = others = deepest = 0
    for table in tables:
        if not table.num_rows:
            continue
        table_truth = {
            query: truth[query] for query in table["query_uri"].unique().to_pylist() if query in truth
        }
        known = {
            origin: image_ids[origin] for origin in table_truth.values() if origin and origin in image_ids
        }
        answers = metrics.read(table, table_truth, image_ids=known)
        places = np.array([numbers[query] for query in answers.queries], np.int64)
        p = answers.predictions
        parts.append((places[p.query], p.score, p.relevant))
        score = answers.score
        answered += len(table_truth)
        others += answers.counts.not_in_truth
        deepest = max(deepest, answers.budget.per_query)
    query, scores, relevant = (np.concatenate(column) for column in zip(*parts, strict=True))
    has_origin = np.array([bool(origin) for origin in truth.values()], bool)
    predictions = Predictions(query, scores, relevant, has_origin)
    without = len(truth) - predictions.origins
    counts = Counts(predictions.origins, without, len(truth) - answered, others)
    return Answers(predictions, tuple(truth), Budget(deepest, len(predictions.query)), counts, score)


class GroupMeasures(BaseModel):
    """Measures of one group of queries.

    Attributes:
        uploads: queries of the group.
        of: those with an origin.
        accuracy, mean_ap: over these; None where there are none.
    """

    model_config = ConfigDict(frozen=True)

    accuracy: float | None
    mean_ap: float | None
    of: int
    uploads: int


def by_group(answers: Answers, groups: Mapping[str, str]) -> dict[str, GroupMeasures]:
    """Return Acc and mAP of each group of queries, by name.

    Args:
        answers: of all queries.
        groups: query → name of its group; queries without a name are in none.
    """
    names = sorted({groups[query] for query in answers.queries if query in groups})
    place = {name: i for i, name in enumerate(names)}
    members = np.array([place.get(groups.get(query, ""), -1) for query in answers.queries], np.int64)
    measure = ranking.weighted(answers.predictions, (1,))
    measures: dict[str, GroupMeasures] = {}
    for i, name in enumerate(names):
        chosen = members == i
        mean_ap, accuracy = measure(chosen[None].astype(np.int64))[0, :2]
        measures[name] = GroupMeasures(
            accuracy=None if np.isnan(accuracy) else float(accuracy),
            mean_ap=None if np.isnan(mean_ap) else float(mean_ap),
            of=int((chosen & answers.predictions.has_origin).sum()),
            uploads=int(chosen.sum()),
        )
    return measures
