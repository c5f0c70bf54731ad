"""The picture of a run: horizontal bars of every contender's ratio to the baseline, as SVG.

Bars start at the baseline and the scale is logarithmic: twice as slow and twice as fast look
alike, to the right and to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from .engine import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["can_plot", "write_svg"]

COLUMNS = 2
WIDTH, BAR_HEIGHT, HEADROOM = 6.4, 0.24, 0.9  #: inches: of a column, of a bar, around the bars
OURS, THEIRS, MEASURE = "#0b7a75", "#b8bec5", "#30343a"


def can_plot() -> bool:
    """Whether matplotlib is here."""
    return util.find_spec("matplotlib") is not None


def write_svg(path: Path, tables: Sequence[Table], caption: str) -> None:
    """Write one panel a table with ratios. Raises OSError; needs matplotlib."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    shown = [table for table in tables if len(_ratios(table)) > 1]
    rows = max(1, -(-len(shown) // COLUMNS))
    bars = [
        max(len(_ratios(t)) for t in shown[at : at + COLUMNS])
        for at in range(0, len(shown), COLUMNS)
    ]
    heights = [HEADROOM + BAR_HEIGHT * count for count in bars] or [HEADROOM]
    figure = Figure(figsize=(WIDTH * COLUMNS, sum(heights) + HEADROOM), layout="constrained")
    FigureCanvasSVG(figure)
    grid = figure.subplots(rows, COLUMNS, squeeze=False, gridspec_kw={"height_ratios": heights})
    for number, axes in enumerate(grid.flat):
        if number < len(shown):
            _panel(axes, shown[number])
        else:
            axes.set_axis_off()
    figure.suptitle(caption, fontsize=9)
    figure.savefig(path, format="svg")


def _ratios(table: Table) -> dict[str, float]:
    ratios = {series.contender: table.ratio(series.contender) for series in table.series}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}


def _panel(axes: Axes, table: Table) -> None:
    ratios = _ratios(table)
    names = sorted(ratios, key=ratios.__getitem__, reverse=True)
    colours = [
        MEASURE if name == table.baseline else OURS if name.startswith("lapse.") else THEIRS
        for name in names
    ]
    axes.barh(names, [ratios[name] - 1 for name in names], left=1, color=colours)
    for row, name in enumerate(names):
        edge = max(ratios[name], 1)
        axes.annotate(f" {ratios[name]:.2f}", (edge, row), va="center", fontsize=8)
    axes.axvline(1, color=MEASURE, linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.tick_params(labelsize=8)
    axes.set_title(f"{table.title}\n{table.unit}, x {table.baseline}", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
