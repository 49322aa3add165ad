"""What an experiment returns, and how it is written: Parquet, a table in Markdown, a plot.

`write` makes three files of a result, named by its experiment; `collect` joins what a folder holds to one
page. Figures are never written by hand. Each has its date, the code, the machine and the data.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from id2core import environment
from id2core.environment import Devices
from id2core.errors import PlotError
from id2core.evaluation.metrics import Measure
from id2core.experiments import plots
from id2core.experiments.theory import Spread
from id2core.store import schemas, storage

Cell = str | float | Measure | Spread | None
# A row of a table, column → `Cell`. Each table has columns of its own, and who made it knows their types.
Row = dict[str, Any]

LOW, HIGH, STD = "_low", "_high", "_std"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_NONE = "–"
_METADATA = "id2.experiment"


@dataclass(frozen=True)
class Column:
    """A column of the table in Markdown; the Parquet file has all columns, as they were measured.

    Where the rows also hold KEY_low and KEY_high, ± half of that interval is added, where they hold KEY_std,
    ± that.

    Attributes:
        key: of the rows.
        title: its head; by default the key with spaces.
        percent: whether to multiply by 100; the head should then say %.
        digits: decimals; by default 1 of a percentage, else two digits of what follows ±, else three in all.
        merge: whether a value that repeats the one above is left blank, as a method's kind in Table 2.
    """

    key: str
    title: str = ""
    percent: bool = False
    digits: int | None = None
    merge: bool = False


@dataclass(frozen=True)
class Result:
    """The measurements of an experiment.

    Attributes:
        rows: of the table in order; a `Measure` counts as KEY, KEY_low and KEY_high, a `Spread` as KEY and
            KEY_std. What a row does not have is null.
        data: a sentence on the data used: which pictures, how many, disjoint from what.
        seconds: that it took.
        columns: of the table in Markdown; by default all but the ends of intervals.
        plot: drawn under the title; values as they are to be read.
        notes: sentences below the table: what differs from the paper, what to be careful of.
        facts: JSON-able settings and ids, kept with the Parquet file.
    """

    rows: Sequence[Mapping[str, Cell]] | pa.Table
    data: str
    seconds: float
    columns: Sequence[Column] = ()
    plot: plots.Plot | None = None
    notes: Sequence[str] = ()
    facts: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.table.num_rows:
            raise ValueError("a result has no rows; an experiment that cannot run is `Skipped`")
        for column in self.columns:
            if column.key not in self.table.column_names:
                names = ", ".join(self.table.column_names)
                raise ValueError(f"a result has no column {column.key!r}, only {names}")

    @functools.cached_property
    def table(self) -> pa.Table:
        """Return the rows as they go into Parquet."""
        return self.rows if isinstance(self.rows, pa.Table) else _table(self.rows)

    @property
    def shown(self) -> Sequence[Column]:
        """Return the columns in Markdown."""
        names = self.table.column_names
        ends = {name + end for name in names for end in (LOW, HIGH, STD)}
        return self.columns or [Column(name) for name in names if name not in ends]


@dataclass(frozen=True)
class Skipped:
    """An experiment that did not run, and why: data that are not there, a model that cannot be had."""

    reason: str


@dataclass(frozen=True)
class Provenance:
    """When, by which code and on what machine.

    Attributes:
        date: of the measurement, in UTC, such as 2026-11-24.
        code: see `environment.commit`.
        machine: see `environment.devices`.
        versions: see `environment.versions`.
    """

    date: str
    code: str
    machine: Devices
    versions: Mapping[str, str]

    @classmethod
    def here(cls) -> Provenance:
        """Return the provenance of this process."""
        today = datetime.now(UTC).date().isoformat()
        return cls(today, environment.commit(), environment.devices(), environment.versions())

    def __str__(self) -> str:
        m = self.machine
        gpus = ", ".join(m["gpus"]) or "no GPU"
        return (
            f"{self.date}, {self.code}, {m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, {gpus}, "
            f"device {m['encoder_device']}"
        )


def write(
    outcome: Result | Skipped,
    name: str,
    title: str,
    out: str | os.PathLike[str],
    provenance: Provenance | None = None,
) -> str:
    """Write an outcome: `NAME.parquet`, `NAME.png` where there is a plot, and last `NAME.md`.

    Without matplotlib the rest is written, and says why there is no plot. What was `Skipped` is only
    `NAME.md`, and does not replace figures that were measured before.

    Args:
        outcome: of an experiment.
        name: of the files, such as `t3`: small letters, digits, `-` and `_`.
        title: such as `Table 3: seen and unseen models`.
        out: folder or gs:// URI.
        provenance: by default that of this process.

    Returns:
        The content of `NAME.md`.

    Raises:
        ValueError: the name cannot name files.
        StorageError: the folder cannot be written to.
    """
    _check_name(name)
    stem = storage.join(storage.normalize(out), name)
    page, parquet = f"{stem}.md", f"{stem}.parquet"
    if isinstance(outcome, Skipped):
        if storage.exists(parquet) and storage.exists(page):
            return storage.read_bytes(page).decode()
        text = _skipped(title, outcome.reason)
    else:
        provenance = provenance or Provenance.here()
        _write_parquet(outcome, {"name": name, "title": title}, parquet, provenance)
        missing = _write_plot(outcome, title, f"{stem}.png")
        text = _page(outcome, name, title, provenance, missing)
    storage.write_bytes(page, text.encode())
    return text


def collect(folder: str | os.PathLike[str], order: Mapping[str, str], target: str | os.PathLike[str]) -> str:
    """Join all experiments of a folder to one page.

    Args:
        folder: what `write` wrote to.
        order: name → title of every experiment there is, in the order of the page. One without a page in the
            folder is listed as not run.
        target: the file that the page will be, for links relative to it. Nothing is written there.

    Returns:
        Markdown.
    """
    source, base = storage.normalize(folder), Path(storage.normalize(target)).parent
    link_root = source if storage.is_remote(source) else Path(os.path.relpath(source, base)).as_posix()
    pages = {name: _read_page(source, name, title) for name, title in order.items()}
    measured = [name for name, text in pages.items() if f"]({name}.parquet)" in text]
    head = (
        "# Results\n\n`id2 experiment` measured every figure here. None is typed in by hand. The data, the "
        "date, the code and the machine are given below each table. The time does not count Ws that were "
        "trained before.\n\n"
        f"{len(measured)} of {len(order)} experiments have run here"
    )
    others = [f"`{name}`" for name in order if name not in measured]
    head += f". Missing: {', '.join(others)}." if others else "."
    return "\n".join([head + "\n", *(_embedded(text, name, link_root) for name, text in pages.items())])


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name files: use small letters, digits, - and _")


def _table(rows: Iterable[Mapping[str, Cell]]) -> pa.Table:
    """Make a column of every key that a row has, in order of appearance."""
    plain = [dict(_plain(row)) for row in rows]
    names = dict.fromkeys(name for row in plain for name in row)
    return pa.table({name: [row.get(name) for row in plain] for name in names})


def _plain(row: Mapping[str, Cell]) -> Iterator[tuple[str, str | float | None]]:
    for key, value in row.items():
        if isinstance(value, Measure):
            yield from ((key, value.value), (key + LOW, value.low), (key + HIGH, value.high))
        elif isinstance(value, Spread):
            yield from ((key, value.mean), (key + STD, value.std))
        else:
            yield key, value


def _write_parquet(result: Result, names: Mapping[str, str], uri: str, provenance: Provenance) -> None:
    facts = {
        **names,
        "data": result.data,
        "notes": list(result.notes),
        "seconds": result.seconds,
        "facts": dict(result.facts),
        **vars(provenance),
    }
    metadata = {
        _METADATA: json.dumps(facts, ensure_ascii=False),
        "id2.schema_version": "1",
    }
    table = result.table.replace_schema_metadata(metadata)
    with storage.replacing(uri) as path, schemas.parquet_writer(path, table.schema) as writer:
        writer.write_table(table)


def _write_plot(result: Result, title: str, uri: str) -> str:
    """Draw the plot, and return why there is none; empty where there is one or none is wanted."""
    if result.plot is None:
        storage.delete(uri)  # of an earlier run
        return ""
    try:
        storage.write_bytes(uri, plots.draw(result.plot, title))
    except PlotError as error:
        storage.delete(uri)
        return str(error)
    return ""


def _page(result: Result, name: str, title: str, provenance: Provenance, missing: str) -> str:
    notes = [*result.notes, *_spread_notes(result), *([f"Not plotted: {missing}."] if missing else [])]
    blocks = [f"# {title}", "\n".join(_lines(result))]
    if result.plot is not None and not missing:
        blocks.append(f"![{title}]({name}.png)")
    blocks.append(result.data)
    if notes:
        blocks.append("\n".join(f"- {note}" for note in notes))
    files = f"All columns: [{name}.parquet]({name}.parquet)."
    blocks.append(f"Measured {provenance}, in {_duration(result.seconds)}. {files}")
    return "\n\n".join(blocks) + "\n"


def _skipped(title: str, reason: str) -> str:
    return f"# {title}\n\nNot run here: {reason.rstrip('.')}.\n"


def _spread_notes(result: Result) -> Iterator[str]:
    """Yield a note that explains ± in a table that has it."""
    names, keys = result.table.column_names, [column.key for column in result.shown]
    if any(key + LOW in names and key + HIGH in names for key in keys):
        yield "± is half of the 95% interval. Its ends are in the Parquet file."
    if any(key + STD in names for key in keys):
        yield "± is the standard deviation."


def _lines(result: Result) -> Iterator[str]:
    columns = result.shown
    heads = [column.title or column.key.replace("_", " ") for column in columns]
    kinds = [result.table.schema.field(column.key).type for column in columns]
    yield "| " + " | ".join(map(_escaped, heads)) + " |"
    yield "|" + "|".join("---" if pa.types.is_string(kind) else "---:" for kind in kinds) + "|"
    above: list[str] = []
    for row in result.table.to_pylist():
        cells = [_cell(row, column) for column in columns]
        # Blank only below the same to its left: another method's kind begins anew.
        shown = [
            "" if column.merge and above[: i + 1] == cells[: i + 1] else cells[i]
            for i, column in enumerate(columns)
        ]
        yield "| " + " | ".join(shown) + " |"
        above = cells


def _cell(row: Mapping[str, Any], column: Column) -> str:
    value, scale = row[column.key], 100 if column.percent else 1
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return _escaped(str(value))
    around = _around(row, column.key)
    if isinstance(value, int) and around is None and not column.percent and column.digits is None:
        return f"{value:,}"
    spread = None if around is None else around * scale
    return _number(value * scale, spread, 1 if column.percent and column.digits is None else column.digits)


def _around(row: Mapping[str, Any], key: str) -> float | None:
    low, high, std = (row.get(key + end) for end in (LOW, HIGH, STD))
    if std is not None:
        return float(std)
    return None if low is None or high is None else (high - low) / 2


def _number(value: float, around: float | None, digits: int | None) -> str:
    if digits is None and around is None and 0 < abs(value) < 1e-4:
        return f"{value:.3g}"
    if digits is None:
        digits = _decimals(around, 2) if around else _decimals(value, 3)
    text = f"{value:,.{digits}f}"
    return text if around is None else f"{text} ± {around:,.{digits}f}"


def _decimals(value: float, significant: int) -> int:
    """Return the decimals that leave so many significant digits."""
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, significant - 1 - math.floor(math.log10(abs(value))))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{_number(seconds, None, None)} s"
    return f"{seconds / 60:.0f} min" if seconds < 120 * 60 else f"{seconds / 3600:.1f} h"


def _read_page(folder: str, name: str, title: str) -> str:
    _check_name(name)
    try:
        return storage.read_bytes(storage.join(folder, f"{name}.md")).decode()
    except FileNotFoundError:
        return _skipped(title, f"`id2 experiment {name}` was not started")


def _embedded(text: str, name: str, link_root: str) -> str:
    """Turn a page into a section, with links as seen from elsewhere."""
    linked = re.sub(rf"\]\(({re.escape(name)}\.(?:png|parquet))\)", rf"]({link_root}/\1)", text)
    return re.sub(r"\A# ", "## ", linked)
