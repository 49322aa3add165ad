"""Every experiment by name, in the order of the results page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from id2core.experiments import closed_sets, embedders, open_sets, robustness, theory_tables
from id2core.experiments.methods import Methods
from id2core.experiments.results import Result, Skipped


@dataclass(frozen=True)
class Experiment:
    """What it shows, and the function that runs it.

    Attributes:
        title: such as `Table 3: seen and unseen models`.
        run: gives what is to be written.
    """

    title: str
    run: Callable[[Methods], Result | Skipped]


EXPERIMENTS = {
    "t3": Experiment("Tables 3 and 10: seen and unseen models, and costs", closed_sets.table_3),
    "open": Experiment("Open set: half of the uploads without origin", open_sets.open_set),
    "t2": Experiment("Tables 2 and 9: embedders that were not trained for the task", embedders.table_2),
    "t1": Experiment("Table 1: singular values of W on different models", theory_tables.table_1),
    "t4": Experiment("Table 4: the VAEs of seen and unseen models differ", theory_tables.table_4),
    "existence": Experiment(
        "Theorems 1 and 2: what W leaves of the difference between a translation and its origin",
        theory_tables.existence,
    ),
    "t5": Experiment("Table 5: encoders", closed_sets.table_5),
    "t6": Experiment("Table 6: losses", closed_sets.table_6),
    "t7": Experiment("Table 7 and Figure 9: linear and non-linear transformations", closed_sets.table_7),
    "f7": Experiment("Figure 7: attacked queries", robustness.figure_7),
    "f8": Experiment("Figure 8: the rank of W", closed_sets.figure_8),
    "t8": Experiment("Table 8: editing strengths", robustness.table_8),
    "t11": Experiment("Table 11: other paradigms", robustness.table_11),
    "manual": Experiment("Manual edits (Table 3, right)", robustness.manual_edits),
}
ORDER = {name: experiment.title for name, experiment in EXPERIMENTS.items()}
