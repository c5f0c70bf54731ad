"""How the demo looks: live on a terminal, a line a second elsewhere, and the table at the end.

    with LiveView(console, names, seconds) as view:
        view.update(name, counters)             the view draws, or says something once a second
    table(results, bound)

Drawn by the main thread between two waits, never by a thread of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from lapse.demo.figures import Counters, Result, Spread

__all__ = ["LiveView", "PlainView", "table"]

WIDTH = 38  # letters of a panel
BARS = " ▁▂▃▄▅▆▇█"
NONE = "-"
SPREAD = "ms: p50 / p99 / max"


class PlainView:
    """A line for each second of a run."""

    def __init__(self, console: Console, names: Sequence[str], seconds: float) -> None:
        self._console = console
        self._width = max(map(len, names))
        self._told: dict[str, int] = {}

    def update(self, name: str, now: Counters) -> None:
        """Say how the run is getting on."""
        second = int(now.seconds)
        if second > self._told.get(name, 0):
            self._told[name] = second
            self._console.print(
                f"{name:{self._width}} {second:3} s {now.reads / now.seconds:11,.0f} reads/s "
                f"{100 * now.hit_ratio:5.1f} % hits {now.changes:6,} changes "
                f"{now.faults:8,} violations"
            )

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *exc: object) -> None: ...


class LiveView:
    """Both runs side by side, drawn anew a few times a second."""

    def __init__(self, console: Console, names: Sequence[str], seconds: float) -> None:
        self._panels = {name: _Panel(name, seconds) for name in names}
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def update(self, name: str, now: Counters) -> None:
        """Draw how the run is getting on."""
        self._panels[name].update(now)
        self._draw()

    def _draw(self) -> None:
        self._live.update(Columns([p.drawn() for p in self._panels.values()]), refresh=True)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        self._draw()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._live.__exit__(*exc)


class _Panel:
    """One run: counters, and bars of what happened between two updates."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self._now: Counters | None = None
        self._reads: deque[float] = deque(maxlen=WIDTH - 19)
        self._faults: deque[float] = deque(maxlen=WIDTH - 19)

    def update(self, now: Counters) -> None:
        before, self._now = self._now, now
        if before is not None and now.seconds > before.seconds:
            elapsed = now.seconds - before.seconds
            self._reads.append((now.reads - before.reads) / elapsed)
            self._faults.append((now.faults - before.faults) / elapsed)

    def drawn(self) -> RenderableType:
        now = self._now
        if now is None:
            return Panel(Group(*[""] * 8), title=self._name, width=WIDTH, border_style="dim")
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row("reads", f"{now.reads:,}")
        grid.add_row("reads/s", _bars(self._reads), style="cyan")
        grid.add_row("hits", f"{100 * now.hit_ratio:.1f} %")
        grid.add_row("changes", f"{now.changes:,}")
        grid.add_row("in force", f"{now.applied:,}" if now.applied else NONE)
        grid.add_row("violations", f"{now.faults:,}", style="bold red" if now.faults else "green")
        grid.add_row("violations/s", _bars(self._faults), style="red")
        done = ProgressBar(self._seconds, min(now.seconds, self._seconds), width=WIDTH - 4)
        style = "red" if now.faults else "green"
        return Panel(Group(grid, done), title=self._name, width=WIDTH, border_style=style)


def _bars(values: Sequence[float]) -> str:
    most = max(values, default=0.0)
    return "".join(BARS[round(each / most * (len(BARS) - 1))] if most else " " for each in values)


# --- The table ---


def table(results: Sequence[Result], bound: float) -> RenderableType:
    """The runs side by side."""
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    found.add_column("", no_wrap=True)
    for result in results:
        found.add_column(result.name, justify="right", no_wrap=True)
    for heading, figure in _rows(bound):
        style = "bold" if heading.startswith("violations") else None
        found.add_row(heading, *map(figure, results), style=style)
    return found


def _rows(bound: float) -> list[tuple[str, Callable[[Result], str]]]:
    return [
        ("reads a second", lambda r: f"{r.reads_per_second:,.0f}"),
        ("hit ratio", lambda r: f"{100 * r.hit_ratio:.1f} %"),
        ("loads", lambda r: f"{r.loads:,}"),
        ("changes committed", lambda r: f"{r.changes:,}"),
        ("invalidations in force", lambda r: f"{r.applied:,}" if r.lag else NONE),
        (f"   lag, {SPREAD}", lambda r: _spread(r.lag)),
        ("outdated reads", lambda r: f"{r.stale:,}"),
        (f"   age, {SPREAD}", lambda r: _spread(r.age)),
        ("outdated entries at the end", lambda r: f"{r.outdated:,}"),
        (f"violations (over {bound:g} s, or worse)", lambda r: f"{r.violations:,}"),
    ]


def _spread(times: Spread | None) -> str:
    return NONE if times is None else " / ".join(map(_milliseconds, times))


def _milliseconds(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}"
