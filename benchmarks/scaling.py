"""Do reads of one cache scale with threads? For a free-threaded CPython.

    python benchmarks/scaling.py                  two threads, about two minutes
    python benchmarks/scaling.py --threads 8      as many as there are cores
    python benchmarks/scaling.py --svg reads.svg  and a plot

Each question is asked of one cache that all threads share, of one dict that all share, and of a
dict for each thread: that one is the control, which shows what the machine and the interpreter
give. A thread fills what it reads, so that it owns the values, keeps its own bound `get`, and
stays the same all the time. Within a round all contenders run in turn, alone and then together.

    gain             reads a second of all threads together / of one alone
    of control       the gain / that of the control
    x shared dict    reads a second together / those of a shared dict; x mutex: of one with a lock

Each is the median of what the rounds give.

Status 1 if a figure is below what QUESTIONS promise for two threads; with another number of
threads, or with a GIL, nothing is judged.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from lapse import TTLCache
from lapse.bench import can_plot
from lapse.bench.contenders import versions
from lapse.bench.report import machine, progress_bar, show_versions

HOLD = 0.2  # seconds that a stretch takes at least
EVERY = 20  # in the mixed question one call of so many is a write
Work = Callable[[int], None]  # with how many turns


# --- What is asked ---


class Question(NamedTuple):
    """Keys of each thread, how they are asked for, and what is promised."""

    name: str
    keys: int
    #: All threads use the same keys.
    together: bool
    #: Asked for by equal keys, not by the stored objects.
    equal: bool
    writes: bool
    #: At least so much of the control's gain, and of what a shared dict gives, or one with a mutex.
    of_control: float | None = None
    of_shared: float | None = None
    of_mutex: float | None = None


QUESTIONS = [
    Question("disjoint keys", 1000, False, False, False, 0.85, 1.3),
    Question("disjoint keys, equal objects", 1000, False, True, False, 0.75),
    Question("95 % reads, 5 % writes", 100_000, True, False, True, 0.75),
    Question("the same, equal objects", 100_000, True, True, True, 0.75),
    Question("one hot key", 1, True, False, False, of_mutex=1.0),
]


# --- Who is asked ---


class Mutexed:
    """A dict behind a lock."""

    def __init__(self) -> None:
        self._dict: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: Any) -> Any:
        with self._lock:
            return self._dict.get(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        with self._lock:
            self._dict[key] = value


def shared(make: Callable[[], Any]) -> Callable[[int], list[Any]]:
    """One container for all threads."""

    def containers(threads: int) -> list[Any]:
        return [make()] * threads

    return containers


CONTROL = "private dicts"
CONTENDERS: dict[str, Callable[[int], list[Any]]] = {
    "lapse": shared(lambda: TTLCache(3600, None)),
    CONTROL: lambda threads: [{} for _ in range(threads)],
    "shared dict": shared(dict),
    "dict and mutex": shared(Mutexed),
}


def name_of(key: int) -> str:
    """A fresh str; the concatenation is not interned."""
    return "user:" + str(key) + ":name"


@functools.lru_cache
def names_from(first: int, count: int, owner: int) -> list[str]:
    """The same objects at every call for that owner."""
    return [name_of(first + n) for n in range(count)]


def prepared(question: Question, thread: int, container: Any, owner: int) -> Work:
    """Fill a thread's part, in that thread, and give what it is to do.

    Threads of one `owner` that use the same keys use the same objects.
    """
    first = 0 if question.together else thread * question.keys
    stored = list(names_from(first, question.keys, owner))
    for key in stored:
        container[key] = "value of " + key
    asked = [name_of(int(key.split(":")[1])) for key in stored] if question.equal else stored
    random.Random(thread).shuffle(asked)
    return mixed(container, asked) if question.writes else reads(container, asked)


def reads(container: Any, keys: Sequence[str]) -> Work:
    keys = keys * max(1, 1000 // len(keys))

    def work(turns: int) -> None:
        get = container.get
        for _ in range(turns):
            for key in keys:
                get(key)

    work.calls = len(keys)  # type: ignore[attr-defined]
    return work


def mixed(container: Any, keys: Sequence[str]) -> Work:
    parts = [keys[n : n + EVERY] for n in range(0, len(keys), EVERY)]

    def work(turns: int) -> None:
        get = container.get
        for _ in range(turns):
            for part in parts:
                container[part[0]] = "a new value"
                for key in part[1:]:
                    get(key)

    work.calls = len(keys)  # type: ignore[attr-defined]
    return work


# --- Measuring ---


class Crew:
    """Threads that stay."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pools = [ThreadPoolExecutor(1) for _ in range(threads)]

    def call(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        """Have the first threads make a call each, at once."""
        pairs = zip(self._pools, calls, strict=False)
        return [future.result() for future in [pool.submit(call) for pool, call in pairs]]

    def seconds(self, works: Sequence[Work], turns: int) -> float:
        """How long all of them take, from the moment when the first runs until the last ends."""
        start = threading.Barrier(len(works))

        def run(work: Work) -> tuple[float, float]:
            start.wait()
            began = time.perf_counter()
            work(turns)
            return began, time.perf_counter()

        spans = self.call([lambda work=work: run(work) for work in works])
        return max(end for _, end in spans) - min(began for began, _ in spans)


class Stretch:
    """Some threads at work, for HOLD seconds or a little longer; rates, one a round."""

    def __init__(self, crew: Crew, works: Sequence[Work]) -> None:
        self.crew, self.works, self.turns = crew, works, 1
        while self.crew.seconds(works, self.turns) < HOLD:
            self.turns *= 2
        self.rates: list[float] = []

    def measure(self) -> None:
        calls = self.turns * sum(work.calls for work in self.works)  # type: ignore[attr-defined]
        self.rates.append(calls / self.crew.seconds(self.works, self.turns))


class Contestant:
    """One contender before one question: one thread alone, and all together."""

    def __init__(self, crew: Crew, question: Question, name: str) -> None:
        containers = CONTENDERS[name](crew.threads)
        works: list[Work] = []
        for thread in range(crew.threads):  # one after the other: they may share keys
            make = [lambda: None] * thread
            owner = thread if name == CONTROL else 0
            args = (question, thread, containers[thread], owner)
            make.append(functools.partial(prepared, *args))
            works.append(crew.call(make)[-1])
        self.stretches = Stretch(crew, works[:1]), Stretch(crew, works)

    @property
    def alone(self) -> list[float]:
        return self.stretches[0].rates

    @property
    def together(self) -> list[float]:
        return self.stretches[1].rates

    @property
    def gains(self) -> list[float]:
        return [t / a for t, a in zip(self.together, self.alone, strict=True)]


def ask(crew: Crew, question: Question, rounds: int, console: Console) -> dict[str, Contestant]:
    contestants = {name: Contestant(crew, question, name) for name in CONTENDERS}
    with progress_bar(console) as bar:
        task = bar.add_task(question.name, total=rounds)
        for turn in range(rounds):
            order = list(contestants.values())
            for contestant in order[turn % len(order) :] + order[: turn % len(order)]:
                for stretch in contestant.stretches:
                    stretch.measure()
            bar.update(task, advance=1, refresh=True)
    return contestants


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


# --- Showing ---


def show(question: Question, answers: dict[str, Contestant], console: Console) -> bool:
    """Print one question's table; is what is promised kept?"""
    control, shared_dict = answers[CONTROL], answers["shared dict"]
    mutexed = answers["dict and mutex"]
    table = Table(title=question.name, title_justify="left")
    columns = ("M calls/s alone", "together", "gain", "of control", "x shared dict", "x mutex")
    for column in ("contender", *columns):
        left = column == "contender"
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for name, each in answers.items():
        figures = (
            statistics.median(each.alone) / 1e6,
            statistics.median(each.together) / 1e6,
            statistics.median(each.gains),
            median_ratio(each.gains, control.gains),
            median_ratio(each.together, shared_dict.together),
            median_ratio(each.together, mutexed.together),
        )
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    console.print(table)
    ours = answers["lapse"]
    kept = [
        (question.of_control, median_ratio(ours.gains, control.gains)),
        (question.of_shared, median_ratio(ours.together, shared_dict.together)),
        (question.of_mutex, median_ratio(ours.together, mutexed.together)),
    ]
    return all(goal is None or got >= goal for goal, got in kept)


def write_svg(path: str, results: dict[str, dict[str, Contestant]], threads: int) -> None:
    """Bars: reads a second of all threads together, a group for each question."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4))
    width = 0.8 / len(CONTENDERS)
    for n, name in enumerate(CONTENDERS):
        heights = [statistics.median(answer[name].together) / 1e6 for answer in results.values()]
        axes.bar([x + n * width for x in range(len(results))], heights, width, label=name)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(results))], list(results))
    axes.set_ylabel(f"M calls a second, {threads} threads")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Do reads of one cache scale with threads?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", help="questions whose name contains this")
    parser.add_argument("--svg", help="write a plot there (needs matplotlib)")
    options = parser.parse_args()
    if options.svg and not can_plot():
        parser.error("--svg needs matplotlib")
    console = Console()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    show_versions(console, machine(), versions())
    console.print(f"GIL: {'on: threads take turns' if gil else 'off'}; {options.threads} threads")
    crew, kept, results = Crew(options.threads), True, {}
    for question in QUESTIONS:
        if options.only and options.only not in question.name:
            continue
        results[question.name] = answers = ask(crew, question, options.rounds, console)
        kept = show(question, answers, console) and kept
    if options.svg:
        write_svg(options.svg, results, options.threads)
    return 0 if kept or gil or options.threads != 2 else 1


if __name__ == "__main__":
    sys.exit(main())
