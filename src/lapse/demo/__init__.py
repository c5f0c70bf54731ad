"""`lapse demo`: a cache in front of a database that changes, and beside it one that has only a ttl.

    world     what is in the database, what happens in it, what is read
              (ecommerce, social, analytics)
    origin    the database: an SQLite file, its transactions
    ledger    what the database allowed at which moment: the judge
    traffic   the threads that write and read
    side      one run: all of these, and a cache
    figures   what a run comes to
    view      how that looks

Two runs, one after the other, with the same traffic: first the cache that is kept true by the
changes of the database, then the plain one.
"""

from __future__ import annotations

import json
import platform
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lapse.demo.analytics import Analytics
from lapse.demo.ecommerce import Ecommerce
from lapse.demo.figures import Result
from lapse.demo.ledger import BOUND
from lapse.demo.side import Settings, Side
from lapse.demo.social import Social
from lapse.demo.view import LiveView, PlainView, table

__all__ = ["WORLDS", "run"]

WORLDS = {each.name: each for each in (Ecommerce, Social, Analytics)}

TICK = 0.1  # seconds between two updates of the view
PLAIN_WIDTH = 100  # of output that goes to a file or a pipe
SHORTEST, LONGEST = 0.1, 12.0  # seconds of each run
MOST_THREADS = 64


def run(
    world: str,
    *,
    seconds: float = 8.0,
    readers: int = 4,
    writers: int = 2,
    seed: int = 1,
    plain: bool = False,
    json_path: Path | None = None,
    bound: float = BOUND,
) -> int:
    """Run the demo, print it, and answer the exit status: 1 if lapse has served what it must not.

    Args:
        world: a name in WORLDS.
        seconds: of each of the two runs.
        readers, writers: threads.
        seed: of the traffic.
        plain: lines instead of a live view, which a terminal gets otherwise.
        json_path: where to write the figures, too.
        bound: seconds after which an overwritten version must not be served any more.

    Raises ValueError for a setting that is out of range.
    """
    settings = _checked(world, seconds, readers, writers, seed)._replace(bound=bound)
    console = _console()
    view_class = LiveView if console.is_terminal and not plain else PlainView
    names = ("lapse", f"ttl of {settings.plain_ttl:g} s")
    console.print(_headline(settings), style="bold")
    with (
        tempfile.TemporaryDirectory(prefix="lapse-demo-", ignore_cleanup_errors=True) as folder,
        view_class(console, names, seconds) as view,
    ):
        results = [
            _run_side(Side(name, settings, Path(folder), invalidated=name == names[0]), view)
            for name in names
        ]
    console.print(table(results, settings.bound))
    true = not results[0].violations
    console.print(_verdict(results[0], settings.bound), style="green" if true else "red")
    if json_path is not None:
        text = json.dumps(_report(settings, results), indent=2)
        json_path.write_text(text + "\n", encoding="utf-8")
    return 0 if true else 1


def _run_side(side: Side, view: LiveView | PlainView) -> Result:
    seconds = side.settings.seconds
    with side:
        side.start()
        while (left := seconds - (now := side.counters()).seconds) > 0:
            view.update(side.name, now)
            if not side.wait(min(TICK, left)):
                break
        result = side.finish()
        view.update(side.name, side.counters())
        return result


def _checked(world: str, seconds: float, readers: int, writers: int, seed: int) -> Settings:
    if world not in WORLDS:
        raise ValueError(f"there is no world {world!r}; there are {', '.join(WORLDS)}")
    if not SHORTEST <= seconds <= LONGEST:
        raise ValueError(f"--seconds must be from {SHORTEST:g} to {LONGEST:g}, not {seconds:g}")
    for name, count in (("readers", readers), ("writers", writers)):
        if not 1 <= count <= MOST_THREADS:
            raise ValueError(f"--{name} must be from 1 to {MOST_THREADS}, not {count}")
    return Settings(WORLDS[world](), seconds, readers, writers, seed)


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, markup=False, width=PLAIN_WIDTH)


def _headline(settings: Settings) -> str:
    world = settings.world
    return (
        f"{world.name}: {world.about}; {settings.readers} readers, {settings.writers} writers,"
        f" seed {settings.seed}"
    )


def _verdict(result: Result, bound: float) -> str:
    if result.violations:
        return "\n".join([f"{result.violations:,} violations, such as:", *result.examples])
    return (
        f"{result.name}: {result.reads:,} reads, each of them checked. No value came back after its"
        f" invalidation was in force, and none had been outdated for {bound:g} s."
    )


def _report(settings: Settings, results: Sequence[Result]) -> dict[str, Any]:
    """All of it, for JSON; times are seconds."""
    return {
        "world": settings.world.name,
        "seconds": settings.seconds,
        "readers": settings.readers,
        "writers": settings.writers,
        "seed": settings.seed,
        "bound": settings.bound,
        "plain_ttl": settings.plain_ttl,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "results": [result.as_dict() for result in results],
    }
