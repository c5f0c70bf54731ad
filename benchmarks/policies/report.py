"""What a run shows: a table of every pair of trace and size, a summary, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from lapse.policies.curve import draw_curves
from lapse.policies.optimum import NAME as OPT

#: The default policy, in the native table; the simulator that it was chosen by, and variants.
OURS, SIMULATED = "lapse", "duel"
#: Points: how close to the best rival a pair counts as won, and how far no pair may lie below it.
CLOSE, FAR = 1.0, 3.0
#: The share of all pairs that must be won.
WON = 0.9


@dataclass(frozen=True)
class Pair:
    """A trace at a size, with everybody's hit ratio in percent."""

    trace: str
    requests: int
    percent: int
    capacity: int
    optimum: float
    ours: float
    simulated: dict[str, float]
    rivals: dict[str, float]
    #: Shown and not counted.
    unheld: dict[str, float]

    @property
    def everybody(self) -> dict[str, float]:
        """All that are shown."""
        return {OPT: self.optimum, OURS: self.ours, **self.simulated, **self.rivals, **self.unheld}

    @property
    def best(self) -> str:
        """The best rival; without rivals, the best simulator that is not ours."""
        return max(self.field, key=self.field.__getitem__)

    @property
    def field(self) -> dict[str, float]:
        """Whom ours is compared with."""
        return self.rivals or {n: r for n, r in self.simulated.items() if SIMULATED not in n}

    def behind(self, ratio: float) -> float:
        """Points below the best of the field; less than 0 is above."""
        return self.field[self.best] - ratio


def show(pairs: Sequence[Pair], console: Console) -> None:
    """Two tables: every pair, and everybody over all pairs."""
    others = [SIMULATED, *pairs[0].field, *pairs[0].unheld]
    table = Table(title="Hit ratio in percent; below: points below the best rival")
    for column in ("trace", "%", "size", OPT, OURS, "below", "best rival", *others):
        table.add_column(column, justify="left" if column in ("trace", "best rival") else "right")
    for pair in pairs:
        figures = (pair.optimum, pair.ours, pair.behind(pair.ours))
        table.add_row(
            pair.trace,
            str(pair.percent),
            str(pair.capacity),
            *(f"{figure:.2f}" for figure in figures),
            pair.best,
            *(f"{pair.everybody[name]:.2f}" for name in others),
        )
    console.print(table)
    console.print(_summary(pairs))


def _summary(pairs: Sequence[Pair]) -> Table:
    table = Table(title=f"Over {len(pairs)} pairs, beside the best rival of each")
    columns = ("policy", "mean", f"within {CLOSE:g} point", f"more than {FAR:g} below", "worst")
    for column in columns:
        table.add_column(column, justify="left" if column == "policy" else "right")
    rows = _columns(pair.everybody for pair in pairs)
    for name, ratios in sorted(rows.items(), key=lambda row: -fmean(row[1])):
        below = [pair.behind(ratio) for pair, ratio in zip(pairs, ratios, strict=True)]
        close, far = sum(n <= CLOSE for n in below), sum(n > FAR for n in below)
        table.add_row(name, f"{fmean(ratios):.2f}", str(close), str(far), f"{max(below):.2f}")
    return table


def _columns(rows: Iterable[dict[str, float]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, ratio in row.items():
            columns.setdefault(name, []).append(ratio)
    return columns


def complaints(pairs: Sequence[Pair]) -> list[str]:
    """Which of the promises about the default policy these pairs break."""
    below = [pair.behind(pair.ours) for pair in pairs]
    mean = fmean(pair.ours for pair in pairs)
    found = [
        f"the mean of {rival} is above ours: {fmean(ratios):.2f}"
        for rival, ratios in _columns(pair.field for pair in pairs).items()
        if fmean(ratios) > mean
    ]
    close = sum(points <= CLOSE for points in below)
    if close < WON * len(pairs):
        found.append(f"only {close} of {len(pairs)} pairs are within {CLOSE:g} point of the best")
    if max(below) > FAR:
        found.append(f"a pair is {max(below):.2f} points below the best")
    return found


def write_json(path: Path, pairs: Iterable[Pair], versions: dict[str, str]) -> None:
    """Every figure."""
    figures = {"versions": versions, "pairs": [asdict(pair) for pair in pairs]}
    path.write_text(json.dumps(figures, indent=1) + "\n")


def write_svg(path: Path, pairs: Sequence[Pair]) -> None:
    """Miss-ratio curves, a panel a trace. Needs matplotlib."""
    from matplotlib.figure import Figure

    traces = list(dict.fromkeys(pair.trace for pair in pairs))
    names = [OPT, OURS, *pairs[0].field]
    figure = Figure(figsize=(14, 3 * -(-len(traces) // 4)), layout="constrained")
    grid = figure.subplots(-(-len(traces) // 4), 4, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for trace, axes in zip(traces, grid.flat, strict=False):
        axes.set_axis_on()
        shown = [pair for pair in pairs if pair.trace == trace]
        misses = {name: [100 - pair.everybody[name] for pair in shown] for name in names}
        draw_curves(axes, [pair.percent for pair in shown], misses)
        axes.set_title(f"{trace}: misses in %", fontsize=9)
    grid.flat[0].legend(fontsize=6)
    figure.savefig(path, format="svg")
