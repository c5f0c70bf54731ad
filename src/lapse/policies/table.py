"""How a comparison looks on a terminal: a row a policy and size, the best first."""

from __future__ import annotations

__all__ = ["show"]

from itertools import groupby

from rich import box
from rich.table import Table

from lapse.terminal import output

from .comparison import Comparison, Outcome


def show(comparison: Comparison) -> None:
    """Print what was replayed, a row for each size and policy, how to read the figures."""
    console = output()
    console.print(
        f"{comparison.trace}: {comparison.requests:,} requests for"
        f" {comparison.distinct_keys:,} distinct keys ({comparison.format})",
        style="bold",
    )
    console.print(_table(comparison))
    console.print(_notes(comparison), style="dim")


def _table(comparison: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in (
        "maxsize\nentries",
        "of keys\n%",
        "policy\n",
        "hits\n",
        "hit ratio\n%",
        "requests\n/s",
    ):
        is_name = heading.startswith("policy")
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=True)
    for _, group in groupby(comparison.outcomes, lambda outcome: outcome.maxsize):
        for outcome in sorted(group, key=lambda outcome: -outcome.hits):
            style = "bold" if outcome.name.startswith("lapse ") else None
            table.add_row(*_row(outcome, comparison.distinct_keys), style=style)
        table.add_section()
    return table


def _row(outcome: Outcome, distinct_keys: int) -> tuple[str, ...]:
    rate = outcome.requests_per_second
    return (
        f"{outcome.maxsize:,}",
        f"{100 * outcome.maxsize / distinct_keys:.3g}",
        outcome.name,
        f"{outcome.hits:,}",
        f"{100 * outcome.hit_ratio:.2f}",
        "-" if rate is None else f"{rate:,.0f}",
    )


def _notes(comparison: Comparison) -> Table:
    """How the figures came about, and who is missing."""
    notes = Table(box=None, show_header=False, pad_edge=False)
    notes.add_column(no_wrap=True)
    notes.add_column()
    notes.add_row(
        "OPT",
        "Belady's optimum, which knows the future and need not store what it misses:"
        " no policy can hit more often",
    )
    notes.add_row(
        "requests/s",
        "the bare loop: a read and, on a miss, a store; moka is made to evict after each store,"
        " as it holds more than its maxsize else; - for simulations",
    )
    notes.add_row("versions", _versions(comparison))
    if comparison.absent:
        notes.add_row("missing", _missing(comparison))
    return notes


def _versions(comparison: Comparison) -> str:
    versions = {outcome.package: outcome.version for outcome in comparison.outcomes}
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _missing(comparison: Comparison) -> str:
    rivals: dict[str, list[str]] = {}
    for name, package in comparison.absent.items():
        rivals.setdefault(package, []).append(name)
    return "; ".join(
        f"{', '.join(names)} (pip install {package})" for package, names in rivals.items()
    )
