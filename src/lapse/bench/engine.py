"""The engine of `lapse bench`: times contenders side by side and keeps every round's figure.

Machines drift: a neighbour, a clock step or a full cache line moves every contender at once.
So all contenders take part in each round, in an order that rotates, and what is reported is the
median of the ratios of times from the same round, not the ratio of two medians.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles

__all__ = [
    "BASELINE",
    "Plan",
    "Progress",
    "Series",
    "Table",
    "fresh_process",
    "gc_paused",
    "race",
    "seating",
]

BASELINE = "dict"

#: Called with (rounds done, rounds to do) of one question, never while something is timed.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """How long to measure, and at which sizes."""

    rounds: int = 25
    operations: int = 100_000  #: timed operations of a contender in one round
    small: int = 1_000  #: entries of a hot cache
    large: int = 1_000_000  #: entries of a cold cache

    @classmethod
    def quick(cls, rounds: int) -> Plan:
        """A plan for a first look: at most 5 rounds, a tenth of the large size."""
        return cls(rounds=min(rounds, 5), large=100_000)


@dataclass
class Series:
    """What one contender scored: a figure a round, or a note why there is none."""

    contender: str
    values: list[float]
    note: str = ""


@dataclass
class Table:
    """The scores of every contender in one question."""

    name: str
    title: str
    unit: str
    series: list[Series] = field(default_factory=list)
    summary: Callable[[Sequence[float]], float] = median
    paired: bool = True  #: the same index is the same round for all, so ratios pair up
    baseline: str | None = BASELINE

    def values(self, contender: str) -> list[float]:
        """The figures of `contender`; none if it did not take part."""
        return next((s.values for s in self.series if s.contender == contender), [])

    def figure(self, contender: str) -> float | None:
        """The summary (median, or worst) of a contender's figures, in the table's unit."""
        values = self.values(contender)
        return self.summary(values) if values else None

    def ratio(self, contender: str, rival: str | None = None) -> float | None:
        """How many times `rival`'s figure (the baseline's by default) `contender` scored."""
        ours, theirs = self.values(contender), self.values(rival or self.baseline or "")
        if not ours or not theirs:
            return None
        if self.paired:
            return median(self.ratios(contender, rival))
        return self.summary(ours) / self.summary(theirs)

    def ratios(self, contender: str, rival: str | None = None) -> list[float]:
        """The ratios round by round; none if one of the two did not take part."""
        ours, theirs = self.values(contender), self.values(rival or self.baseline or "")
        return [x / y for x, y in zip(ours, theirs, strict=True)] if ours and theirs else []

    def spread(self, contender: str) -> tuple[float, float] | None:
        """The quartiles of the paired ratios to the baseline, or None where none pair up."""
        ratios = self.ratios(contender) if self.paired else []
        if len(ratios) < 2:
            return None
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        return low, high


def seating(names: Sequence[str], number: int) -> list[str]:
    """The order of round `number`: one place further each round, backwards in every other turn.

    Over two full turns everybody has had every place twice, and every neighbour on both sides.
    """
    turn, place = divmod(number, len(names))
    order = [*names[place:], *names[:place]]
    return order[::-1] if turn % 2 else order


def race(
    tracks: Mapping[str, Callable[[int], float]], rounds: int, progress: Progress
) -> dict[str, list[float]]:
    """Time every track in each of `rounds` rounds; return the figures, one a round.

    A track is called with the round's number and returns its own time. One round more goes
    ahead of the others, uncounted: it warms up interpreter and processor.
    """
    times: dict[str, list[float]] = {name: [] for name in tracks}
    for number in range(-1, rounds):
        for name in seating(list(tracks), number) if tracks else ():
            time = tracks[name](number)
            if number >= 0:
                times[name].append(time)
        progress(number + 2, rounds + 1)
    return times


@contextmanager
def gc_paused() -> Iterator[None]:
    """A stretch without automatic garbage collection; whatever was set before comes back."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def fresh_process(code: str, *arguments: str) -> str:
    """What `code` prints when a new interpreter with our `sys.path` runs it.

    Raises subprocess.CalledProcessError if it fails; its standard error is ours.
    """
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
