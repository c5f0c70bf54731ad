"""Which entry should go? A trace through bounded caches, beside others' and the optimum.

sizes       how large a cache is to be
optimum     what no policy can beat
contenders  who is compared
comparison  the replays, and what they showed
table       how that looks on a terminal
curve       the miss-ratio curve
"""

from __future__ import annotations

__all__ = ["Comparison", "compare_policies"]

from collections.abc import Callable
from pathlib import Path

from lapse.terminal import progress, reading
from lapse.traces import Trace

from .comparison import Comparison, compare, lineup, read
from .contenders import LAPSE, named
from .curve import checked_plot, write_curve
from .sizes import parse_sizes
from .table import show

_CURVE_SIZES = "1%,2%,5%,10%,20%,50%"


def compare_policies(
    opened: Callable[[], Trace],
    limit: int | None,
    maxsize: str | None,
    policy: str | None,
    plot: Path | None,
) -> Comparison:
    """Replay a trace at every size through every policy; print a table, and draw a plot if asked.

    Args:
        opened: Opens the trace, once the other arguments have been found right.
        limit: The number of requests at which the trace will end, if that is known.
        maxsize: Sizes as `parse_sizes` takes them; None: some for a curve.
        policy: Policies as `named` takes them; None: all.
        plot: The picture to write.

    Raises:
        ValueError: The trace cannot be read, or an argument is wrong.
        OSError: The picture cannot be written.
    """
    sizes = parse_sizes(_CURVE_SIZES if maxsize is None else maxsize)
    ours = named(",".join(LAPSE) if policy is None else policy)
    plot = plot and checked_plot(plot)
    with opened() as trace, reading(trace, limit, "reading") as advance:
        workload = read(trace, advance)
    runs = lineup(workload, sizes, ours)
    with progress("comparing policies", len(runs) * len(workload.requests)) as advance:
        comparison = compare(workload, runs, advance)
    show(comparison)
    if plot:
        write_curve(plot, comparison)
    return comparison
