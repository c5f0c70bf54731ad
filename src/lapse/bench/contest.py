"""Contests: single calls timed side by side, each readied before it and checked after it.

A case times a loop that every contender spells; a contest times what only lapse does, beside what
one would write without it. Its entrants are ways of doing one thing, or one way at several sizes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from .contenders import Contender
from .engine import Plan, Progress, Series, Table, gc_paused, race

__all__ = ["Contest", "Trial", "compete"]

UNITS = {"ns": 1.0, "µs": 1e3, "ms": 1e6}  #: nanoseconds of each


class Trial:
    """One entrant: a call to be timed again and again."""

    operations = 1  #: how many a call stands for; what is reported is the time of one

    def prepare(self) -> None:
        """Make ready for the next call; not timed."""

    def call(self) -> object:
        """What is timed."""
        raise NotImplementedError

    def finish(self, answer: object) -> None:
        """Check what the call did (AssertionError) and put it right again; not timed."""

    def close(self) -> None:
        """End what the trial has started."""

    def __call__(self) -> float:
        """Nanoseconds an operation of one call."""
        self.prepare()
        with gc_paused():
            start = time.perf_counter_ns()
            answer = self.call()
            elapsed = time.perf_counter_ns() - start
        self.finish(answer)
        return elapsed / self.operations


def compete(
    trials: Mapping[str, Trial], unit: str, rounds: int, progress: Progress
) -> list[Series]:
    """Time every trial in every round; one figure a round, in `unit`."""

    def track(trial: Trial, number: int) -> float:
        return trial() / UNITS[unit]

    try:
        tracks = {name: partial(track, trial) for name, trial in trials.items()}
        times = race(tracks, rounds, progress)
    finally:
        for trial in trials.values():
            trial.close()
    return [Series(name, values) for name, values in times.items()]


@dataclass(frozen=True)
class Contest:
    """One question that several trials answer, round by round."""

    name: str
    what: str  #: in words; fields of the plan stand in braces
    unit: str
    entrants: tuple[str, ...]
    make: Callable[[Plan], Sequence[Trial]]  #: the trials, one an entrant
    baseline: str | None = None
    most_rounds: int | None = None  #: where one round takes long

    def __str__(self) -> str:
        return self.name

    def title(self, plan: Plan) -> str:
        """The question in words, with the sizes that `plan` gives it."""
        return self.what.format_map(vars(plan))

    def rounds(self, plan: Plan) -> int:
        """Rounds of this contest."""
        return min(plan.rounds, self.most_rounds or plan.rounds)

    def trials(self, plan: Plan) -> dict[str, Trial]:
        """The entrants at work; each is to be closed."""
        return dict(zip(self.entrants, self.make(plan), strict=True))

    def measure(
        self, contenders: Sequence[Contender], plan: Plan, progress: Progress
    ) -> list[Table]:
        """Hold the contest; the entrants are its own, whoever the contenders are."""
        series = compete(self.trials(plan), self.unit, self.rounds(plan), progress)
        gc.collect()
        return [Table(self.name, self.title(plan), self.unit, series, baseline=self.baseline)]
