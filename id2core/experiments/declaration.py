"""How a function declares itself an experiment.

```
@experiment("t12", "Table 12: another comparison", place=120)
def table_12(methods: Methods) -> Result | Skipped:
    ...
```
in any module of this package is all that a new experiment needs: `registry` reads the declarations.
"""

from __future__ import annotations

from collections.abc import Callable

from id2core.experiments.methods import Methods
from id2core.experiments.results import Result, Skipped

Run = Callable[[Methods], Result | Skipped]


def experiment(name: str, title: str, *, place: int) -> Callable[[Run], Run]:
    """Declare a function an experiment.

    The arguments must be literals: `registry` reads them from the source, so that names and titles can be
    listed without importing torch.

    Args:
        name: of the command line and of the files that are written: small letters, digits, `-` and `_`.
        title: of the table, such as `Table 3: seen and unseen models`.
        place: among the experiments of the results page, in ascending order.
    """

    def declare(run: Run) -> Run:
        return run

    return declare
