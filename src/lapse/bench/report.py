"""What `lapse bench` shows and writes: rich tables with a progress bar, JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table as RichTable

from .engine import Plan, Series, Table
from .targets import Verdict

__all__ = ["machine", "progress_bar", "show_table", "show_verdicts", "show_versions", "write_json"]


def machine() -> dict[str, Any]:
    """Where and when the figures were taken."""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def progress_bar(console: Console) -> Progress:
    """A bar that draws only when told to: a refreshing thread would be in every figure."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
    )


def show_versions(console: Console, where: Mapping[str, Any], packages: Mapping[str, Any]) -> None:
    """Print the machine, and the version of Python and of every rival, absent ones included."""
    console.print(
        f"{where['implementation']} {where['python']} · {where['processor']} · "
        f"{where['cpus']} CPUs · {where['platform']} · {where['date']}",
        highlight=False,
    )
    named = (f"{name} {version or 'absent'}" for name, version in packages.items())
    console.print(" · ".join(named), highlight=False)


def show_table(console: Console, table: Table) -> None:
    """Print one table: each contender's figure, and where there is a baseline its ratio."""
    rich = RichTable(title=escape(f"{table.title} ({table.name})"), title_justify="left")
    rich.add_column("contender")
    rich.add_column(table.unit, justify="right")
    if table.baseline:
        rich.add_column(f"x {table.baseline}", justify="right")
    if table.baseline and table.paired:
        rich.add_column("middle half", justify="right")
    for series in table.series:
        rich.add_row(*_row(table, series)[: len(rich.columns)])
    console.print(rich)


def _row(table: Table, series: Series) -> list[str]:
    figure, ratio = table.figure(series.contender), table.ratio(series.contender)
    spread = table.spread(series.contender)
    return [
        series.contender,
        series.note if figure is None else f"{figure:,.1f}" if figure >= 10 else f"{figure:,.3f}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if spread is None else f"{spread[0]:.2f} - {spread[1]:.2f}",
    ]


def show_verdicts(console: Console, verdicts: Iterable[Verdict]) -> None:
    """Print what was promised, what was measured and whether it holds."""
    rich = RichTable("what")
    for column in ("target", "measured", "ok"):
        rich.add_column(column, justify="right")
    for verdict in verdicts:
        ok = "[green]yes[/]" if verdict.ok else "[bold red]no[/]"
        rich.add_row(escape(verdict.what), verdict.target, verdict.measured, ok)
    console.print(rich)


def write_json(
    path: Path,
    where: Mapping[str, Any],
    packages: Mapping[str, Any],
    plan: Plan,
    tables: Sequence[Table],
    verdicts: Sequence[Verdict] = (),
) -> None:
    """Write everything measured, each round's figure included. Raises OSError."""
    document = {
        "machine": dict(where),
        "versions": dict(packages),
        "plan": asdict(plan),
        "questions": [_table_json(table) for table in tables],
        "targets": [asdict(verdict) for verdict in verdicts],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _table_json(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "title": table.title,
        "unit": table.unit,
        "baseline": table.baseline,
        "results": [
            {
                "contender": series.contender,
                "figure": table.figure(series.contender),
                "ratio": table.ratio(series.contender),
                "values": series.values,
                "note": series.note,
            }
            for series in table.series
        ],
    }
