"""Plots of experiments in one plain style, as PNG files that are the same for the same figures.

A plot is described first (`Bars`, `Lines`, `Histograms`, several as `Panels`) and drawn later, so that
experiments need no matplotlib, which is in the extra `experiments`. Values are given as they are to be read:
percentages as 88.8, not 0.888.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from id2core.errors import PlotError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Sequence[float | None]
Series = Mapping[str, Values]

# Okabe and Ito's palette without its yellow, which is too pale for lines. The color-blind can distinguish it.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = "osD^vPX"
_GRAY = "#555555"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": _GRAY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "xtick.color": _GRAY,
    "ytick.color": _GRAY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "hatch.color": "white",
}
_WIDTH, _DPI = 7.0, 150
_BAR = 0.82  # of the room that a group has
_NAMED_BARS = 21
_MOST_UPRIGHT, _LONGEST_UPRIGHT = 7, 60
_BINS = 40
_LINE = 90  # letters


@dataclass(frozen=True)
class Bars:
    """Grouped bars: tables of methods × models.

    Attributes:
        groups: G names, in the order of the table.
        series: name → G values; None leaves a gap.
        label: what the values are, with their unit.
        low, high: name → G ends of the interval, for any of the series.
        digits: decimals of the figures beside the bars.
    """

    groups: Sequence[str]
    series: Series
    label: str
    low: Series = field(default_factory=dict)
    high: Series = field(default_factory=dict)
    digits: int = 1

    def __post_init__(self) -> None:
        _check(self.groups, self.series, self.low, self.high)


@dataclass(frozen=True)
class Lines:
    """Lines: a measure against a strength, an intensity, a rank, a number of layers.

    Attributes:
        x: P places, rising, or P names at even distances.
        series: name → P values; None leaves a gap.
        x_label, label: what the places and the values are, with their units.
        low, high: name → P ends of the interval, for any of the series.
        logarithmic: for places that double.
    """

    x: Sequence[float] | Sequence[str]
    series: Series
    x_label: str
    label: str
    low: Series = field(default_factory=dict)
    high: Series = field(default_factory=dict)
    logarithmic: bool = False

    def __post_init__(self) -> None:
        _check(self.x, self.series, self.low, self.high)


@dataclass(frozen=True)
class Histograms:
    """Distributions over one another, each with an area of 1: scores of true and of false pairs.

    Attributes:
        series: name → values, as many as there are.
        label: what the values are, with their unit.
        marks: name → a value to be marked by a vertical line: a threshold.
    """

    series: Mapping[str, Sequence[float]]
    label: str
    marks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(len(values) for values in self.series.values()):
            raise PlotError("there is nothing to plot: give at least one series with a value")


@dataclass(frozen=True)
class Panels:
    """Several plots of a kind with one legend, as Figure 7 has one for each attack.

    Attributes:
        panels: title → plot.
        columns: plots side by side.
        shared: whether all have the same range of values.
    """

    panels: Mapping[str, Bars | Lines | Histograms]
    columns: int = 2
    shared: bool = True


Plot = Bars | Lines | Histograms | Panels


def draw(plot: Plot, title: str = "") -> bytes:
    """Draw a plot as a PNG file; equal plots give equal bytes under one version of matplotlib.

    Args:
        plot: what to draw.
        title: text above the plot.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise PlotError("plots need the extra `experiments`: pip install 'id2[experiments]'") from error
    panels = plot if isinstance(plot, Panels) else Panels({"": plot}, columns=1)
    rows = math.ceil(len(panels.panels) / panels.columns)
    with style.context(["default", _STYLE]):  # a matplotlibrc must not change the plots
        heights = [_height(one, panels.columns) for one in panels.panels.values()]
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
        figure = Figure(figsize=(_WIDTH, rows * max(heights) + 0.7), dpi=_DPI, layout=layout)
        flat = any(isinstance(one, Bars) and not _upright(one) for one in panels.panels.values())
        share_x, share_y = panels.shared and flat, panels.shared and not flat
        grid = figure.subplots(rows, panels.columns, squeeze=False, sharex=share_x, sharey=share_y)
        axes = grid.ravel()
        for i, (name, one) in enumerate(panels.panels.items()):
            _draw(axes[i], one)
            axes[i].set_title(name)
            if share_y and i % panels.columns:
                axes[i].set_ylabel("")  # the same as at its left
        for ax in axes[len(panels.panels) :]:
            ax.set_visible(False)
        _head(figure, title)
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _check(places: Sequence[Any], *all_series: Series) -> None:
    if not len(places) or not all_series[0]:
        raise PlotError("there is nothing to plot: give at least one series with a value")
    for series in all_series:
        for name, values in series.items():
            if len(values) != len(places):
                raise PlotError(f"{name!r} has {len(values)} values for {len(places)} places; give as many")


def _draw(ax: Axes, plot: Bars | Lines | Histograms) -> None:
    if isinstance(plot, Bars):
        _bars(ax, plot)
    elif isinstance(plot, Lines):
        _lines(ax, plot)
    else:
        _histograms(ax, plot)


def _upright(plot: Bars) -> bool:
    """Return whether the names of the groups fit below upright bars."""
    return len(plot.groups) <= _MOST_UPRIGHT and sum(map(len, plot.groups)) <= _LONGEST_UPRIGHT


def _height(plot: Bars | Lines | Histograms, columns: int) -> float:
    """Return the height of the axes in inches."""
    if isinstance(plot, Bars) and not _upright(plot):
        return max(1.5, len(plot.groups) * (0.14 * len(plot.series) + 0.12))
    return 3.0 if columns == 1 else 2.2


def _numbers(values: Values | None, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    given = [None] * count if values is None else values
    return np.array([math.nan if v is None else v for v in given], np.float64)


def _bars(ax: Axes, plot: Bars) -> None:
    upright, count = _upright(plot), len(plot.series)
    places = np.arange(len(plot.groups))
    width = _BAR / count
    bars, errors = (ax.bar, "yerr") if upright else (ax.barh, "xerr")
    for i, (name, given) in enumerate(plot.series.items()):
        values = _numbers(given, len(places))
        below = values - _numbers(plot.low.get(name), len(places))
        above = _numbers(plot.high.get(name), len(places)) - values
        options: dict[str, Any] = {
            "color": _color(i),
            "hatch": "////" if i >= len(COLORS) else None,
            "label": name,
            "error_kw": {"elinewidth": 0.9, "ecolor": "#333333"},
            errors: np.nan_to_num([below, above]).clip(0),
        }
        drawn = bars(places + (i - (count - 1) / 2) * width, values, width * 0.92, **options)
        if count * len(places) <= _NAMED_BARS or not upright:
            texts = ["" if math.isnan(v) else f"{v:.{plot.digits}f}" for v in values]
            ax.bar_label(drawn, texts, padding=2, fontsize=7, color="#333333")
    ax.grid(axis="y" if upright else "x")
    if upright:
        ax.margins(y=0.08)
        ax.set_xticks(places, plot.groups)
        ax.set_ylabel(plot.label)
        ax.tick_params(axis="x", length=0)
        return
    ax.margins(x=0.08)
    ax.set_yticks(places, plot.groups)
    ax.set_ylim(len(places) - 0.5, -0.5)  # from above, as in the table
    ax.set_xlabel(plot.label)
    ax.tick_params(axis="y", length=0)


def _lines(ax: Axes, plot: Lines) -> None:
    named = any(isinstance(x, str) for x in plot.x)
    places = np.arange(len(plot.x)) if named else np.asarray(plot.x, np.float64)
    for i, (name, given) in enumerate(plot.series.items()):
        values = _numbers(given, len(places))
        low, high = (_numbers(side.get(name), len(places)) for side in (plot.low, plot.high))
        style = "-" if i < len(COLORS) else "--"
        ax.plot(places, values, style, marker=MARKERS[i % len(MARKERS)], color=_color(i), label=name)
        ax.fill_between(places, low, high, color=_color(i), alpha=0.15, linewidth=0)
    if plot.logarithmic:
        ax.set_xscale("log", base=2)
        ax.minorticks_off()
    if named or len(places) <= 12:
        ax.set_xticks(places, [x if isinstance(x, str) else f"{x:,g}" for x in plot.x])
    ax.grid(axis="y")
    ax.set_xlabel(plot.x_label)
    ax.set_ylabel(plot.label)


def _histograms(ax: Axes, plot: Histograms) -> None:
    values = [np.asarray(given, np.float64) for given in plot.series.values()]
    bins = np.histogram_bin_edges(np.concatenate(values), _BINS)
    for i, (name, given) in enumerate(zip(plot.series, values, strict=True)):
        if not len(given):
            continue
        heights, _ = np.histogram(given, bins, density=True)
        ax.stairs(heights, bins, fill=True, color=_color(i), alpha=0.25)
        ax.stairs(heights, bins, color=_color(i), linewidth=1.4, label=name)
    ax.margins(y=0.18 if plot.marks else 0.05)  # room for the names of marks
    for name, place in plot.marks.items():
        ax.axvline(place, color="#333333", linestyle="--", linewidth=1)
        ax.annotate(
            name, (place, 1), xycoords=("data", "axes fraction"), xytext=(4, -9), textcoords="offset points"
        )
    ax.set_xlabel(plot.label)
    ax.set_ylabel("density")


def _head(figure: Figure, title: str) -> None:
    """Draw the title and one legend of all series above the plot."""
    title = textwrap.fill(title, _LINE)
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if len(handles) < 2:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        return
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper left",
        ncols=max(1, min(len(handles), _LINE // (max(map(len, handles)) + 6))),
        title=title or None,
        title_fontproperties={"size": 10, "weight": "bold"},
        alignment="left",
        borderaxespad=0.2,
    )


def _color(i: int) -> str:
    return COLORS[i % len(COLORS)]
