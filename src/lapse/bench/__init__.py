"""The benchmark of `lapse bench`: lapse beside `dict` and its rivals, in one process.

contenders  who competes, and how each spells an operation
engine      interleaved rounds, paired ratios
cases       the questions that a timed loop answers
probes      sweep, growth stall, memory, garbage collection
contest     single calls, readied before and checked after each
functions   what a hit of a cached function costs
patterns, tags, queues, latency
            what invalidation costs
reference   the queue that the reference describes
targets     what the caches are held to
report      tables, JSON
plot        SVG
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from .bounded import BOUNDED
from .cases import CASES, Case
from .contenders import CONTENDERS, Contender, versions
from .contest import Contest
from .engine import Plan, Table
from .functions import FUNCTIONS
from .latency import LATENCY_PROBES
from .patterns import PATTERN_PROBES, PATTERNS
from .plot import can_plot, write_svg
from .probes import PROBES, Probe
from .queues import QUEUES
from .report import (
    machine,
    progress_bar,
    show_table,
    show_verdicts,
    show_versions,
    write_json,
)
from .tags import TAGS
from .targets import IMPORTS, TARGETS, Verdict, foreign_imports, judge

__all__ = ["CONTESTS", "QUESTIONS", "ask", "run"]

PathLike = str | os.PathLike[str]

Question = Case | Probe | Contest

CONTESTS: tuple[Contest, ...] = (*FUNCTIONS, *BOUNDED, *PATTERNS, *TAGS, *QUEUES)
QUESTIONS: tuple[Question, ...] = (
    *CASES,
    *PROBES,
    *CONTESTS,
    *PATTERN_PROBES,
    *LATENCY_PROBES,
)

MET, MISSED, MISUSED = range(3)  #: exit statuses


def run(
    only: str | None = None,
    rounds: int = 25,
    quick: bool = False,
    targets: bool = False,
    json_path: PathLike | None = None,
    svg_path: PathLike | None = None,
) -> int:
    """Measure, print, and write JSON and SVG where asked; return the exit status.

    `only` keeps the questions whose name contains it, or any of several words parted by commas.
    `quick` looks at a tenth of the large size for at most 5 rounds. With `targets` the status is
    1 if one is missed. Arguments that cannot be served give one line on standard error and status
    2, before anything is measured.
    """
    chosen = _chosen(only, targets)
    if complaint := _complaint(chosen, rounds, json_path, svg_path):
        Console(stderr=True).print(complaint, highlight=False, markup=False, soft_wrap=True)
        return MISUSED
    console = Console()
    plan = Plan.quick(rounds) if quick else Plan(rounds)
    where, packages = machine(), versions()
    show_versions(console, where, packages)
    tables = _measure(console, chosen, plan, targets)
    verdicts = _verdicts(console, tables, only) if targets else []
    if json_path:
        write_json(Path(json_path), where, packages, plan, tables, verdicts)
    if svg_path:
        caption = f"lapse bench · Python {where['python']} · {where['processor']} · {where['date']}"
        write_svg(Path(svg_path), tables, caption)
    return MET if all(verdict.ok for verdict in verdicts) else MISSED


def ask(
    question: Question, entrants: Sequence[Contender], plan: Plan, console: Console
) -> list[Table]:
    """Measure one question behind a progress bar."""
    with progress_bar(console) as bar:
        task = bar.add_task(escape(question.title(plan)), total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, refresh=True)

        bar.refresh()
        return question.measure(entrants, plan, progress)


def _chosen(only: str | None, targets: bool) -> list[Question]:
    asked = {target.question for target in TARGETS} if targets else None
    return [
        question
        for question in QUESTIONS
        if (asked is None or question.name in asked) and _is_asked(question.name, only)
    ]


def _is_asked(name: str, only: str | None) -> bool:
    return any(word in name for word in (only or "").split(","))


def _entrants(question: Question, targets: bool) -> list[Contender]:
    """Who takes part: everybody installed, or those whom a target of the question names."""
    named = {
        name
        for target in TARGETS
        if target.question == question.name
        for name in (target.contender, target.rival)
    }
    return [c for c in CONTENDERS if c.installed and (not targets or c.name in named)]


def _measure(
    console: Console, chosen: Sequence[Question], plan: Plan, targets: bool
) -> list[Table]:
    tables = []
    for question in chosen:
        for table in ask(question, _entrants(question, targets), plan, console):
            show_table(console, table)
            tables.append(table)
    return tables


def _verdicts(console: Console, tables: Sequence[Table], only: str | None) -> list[Verdict]:
    measured = {table.name: table for table in tables}
    wanted = [target for target in TARGETS if _is_asked(target.question, only)]
    if any(target.question == IMPORTS for target in wanted):
        measured[IMPORTS] = foreign_imports()
    verdicts = [judge(target, measured) for target in wanted]
    show_verdicts(console, verdicts)
    return verdicts


def _complaint(
    chosen: Sequence[Question],
    rounds: int,
    json_path: PathLike | None,
    svg_path: PathLike | None,
) -> str | None:
    """Why these arguments cannot be served; None if they can."""
    if not chosen:
        return f"no such question; known: {', '.join(question.name for question in QUESTIONS)}"
    if rounds < 1:
        return f"rounds must be at least 1, not {rounds}"
    if svg_path and not can_plot():
        return "the plot needs matplotlib: pip install 'lapse[bench]'"
    for path in (Path(path) for path in (json_path, svg_path) if path):
        if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
            return f"cannot write {str(path)!r}"
    return None
