"""What the replays share of the terminal: where a report is printed, and a progress bar."""

from __future__ import annotations

__all__ = ["output", "progress", "reading"]

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lapse.traces import Trace

_PLAIN_WIDTH = 100  # of output that goes to a file or a pipe
_REDRAW_SECONDS = 0.1


def output() -> Console:
    """Standard output, for text that is printed as it is."""
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, markup=False, width=_PLAIN_WIDTH)


def reading(
    trace: Trace, limit: int | None, doing: str
) -> AbstractContextManager[Callable[[int], None]]:
    """A bar over a trace that is read to its end, or to a limit of requests."""
    if limit:
        return progress(f"{doing} {trace.name}", limit)
    return progress(f"{doing} {trace.name}", trace.size_bytes, lambda: trace.position_bytes)


@contextmanager
def progress(
    doing: str, total: int | None, position: Callable[[], int] | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while the block runs, if that is a terminal; gone afterwards.

    It is drawn when the block tells the number of requests that are done, never by a thread of its
    own, which would show in the figures.

    Args:
        doing: What is being done.
        total: Where the bar ends; None if that is unknown.
        position: How far the bar is; None: as far as the number of requests.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[requests]} requests"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(doing, total=total, requests="0")
        drawn_at = monotonic()

        def advance(requests: int) -> None:
            nonlocal drawn_at
            if monotonic() - drawn_at >= _REDRAW_SECONDS:
                done = position() if position else requests
                bar.update(task, completed=done, requests=f"{requests:,}", refresh=True)
                drawn_at = monotonic()

        yield advance
