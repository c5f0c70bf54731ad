"""The miss-ratio curve: what share of the requests misses, by the size of the cache."""

from __future__ import annotations

__all__ = ["checked_plot", "draw_curves", "write_curve"]

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .comparison import Comparison
from .optimum import NAME

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".svg", ".png")
_OURS = "lapse"
_INCHES = (9, 6)


def checked_plot(path: Path) -> Path:
    """The path, if a picture can be drawn there.

    Raises:
        ValueError: Its suffix is that of no known form, or matplotlib is missing.
    """
    from lapse.bench.plot import can_plot

    if path.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"--plot draws {' or '.join(_SUFFIXES)}, not {str(path)!r}")
    if not can_plot():
        raise ValueError("the plot needs matplotlib: pip install 'lapse[bench]'")
    return path


def write_curve(path: Path, comparison: Comparison) -> None:
    """Draw a line a policy over the sizes. Raises OSError; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    sizes = list(dict.fromkeys(outcome.maxsize for outcome in comparison.outcomes))
    draw_curves(axes, sizes, _merged(_misses(comparison, sizes)))
    title = f"{comparison.trace}: {comparison.requests:,} requests"
    axes.set_title(title, loc="left", parse_math=False)
    axes.set_xlabel(f"maxsize in entries; {comparison.distinct_keys:,} distinct keys")
    axes.set_ylabel("misses in %")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, format=path.suffix[1:].lower())


def draw_curves(axes: Axes, sizes: Sequence[float], misses: Mapping[str, Sequence[float]]) -> None:
    """A line for each policy's misses in percent; ours are thick, the optimum is dashed."""
    for name, ratios in misses.items():
        style = "--k" if name == NAME else "-"
        width = 2.2 if name.startswith(_OURS) else 1
        axes.plot(sizes, ratios, style, label=name, linewidth=width, marker=".")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()


def _misses(comparison: Comparison, sizes: Sequence[int]) -> dict[str, list[float]]:
    """Percent by name and size; not a number where a policy does not come in that size."""
    found = {(o.name, o.maxsize): 100 * (1 - o.hit_ratio) for o in comparison.outcomes}
    names = dict.fromkeys(name for name, _ in found)
    return {name: [found.get((name, size), math.nan) for size in sizes] for name in names}


def _merged(misses: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """The lines, but one for all that are the same, as those of every exact LRU are."""
    names: dict[tuple[float, ...], list[str]] = {}
    for name, ratios in misses.items():
        names.setdefault(tuple(ratios), []).append(name)
    return {", ".join(together): ratios for ratios, together in names.items()}
