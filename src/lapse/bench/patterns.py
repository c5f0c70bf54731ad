"""What patterns cost: a table's keys, many patterns at once, a glob without a head, the index.

The keys are `t{table}:{row}`, stored row by row; the cache alone owns them and their values, so
that a removal frees them too. What a call removes is stored again before the next one.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

from .contenders import DEFAULT_TTL, Contender, compile_loop
from .contest import Contest, Trial, compete
from .engine import Plan, Progress, Series, Table
from .probes import Probe

__all__ = ["INDEX_ROUNDS", "PATTERNS", "PATTERN_PROBES", "index_trials", "make_cache"]

TABLES = 1_000
SMALL_TABLES = 100_000
BATCH = 100  #: patterns of a batch, which together match as much as one table
INDEX_ROUNDS, FIRST_ROUNDS, GLOB_ROUNDS = 9, 3, 9
FIELDS = ("name", "brand", "text", "image", "size", "weight", "colour", "stock", "rating", "price")
RARE = 1_000  # one key in so many is a price
PRICES = f"*:{FIELDS[-1]}"

#: The patterns of one call, and the keys that they match.
Removal = tuple[list[str], list[str]]


def make_cache() -> Any:
    """An empty TTLCache whose entries do not expire while they are timed."""
    from lapse import TTLCache

    return TTLCache(default_ttl=DEFAULT_TTL)


class Tables:
    """A cache of the keys of `tables` tables of equally many rows."""

    def __init__(self, entries: int, tables: int) -> None:
        self.tables = tables
        self.rows = entries // tables
        self.cache = make_cache()
        self.store_all()

    def keys(self, table: int) -> list[str]:
        """The keys of one table."""
        return [f"t{table}:{row}" for row in range(self.rows)]

    def store(self, keys: Iterable[str]) -> None:
        """Store these keys, each with a value of its own."""
        for number, key in enumerate(keys):
            self.cache.set(key, b"%d" % number)

    def store_all(self) -> None:
        """Store every key."""
        self.store(f"t{table}:{row}" for row in range(self.rows) for table in range(self.tables))

    def batches(self) -> Iterator[list[int]]:
        """As many tables as a batch has patterns, other ones each time."""
        for start in count(0, BATCH):
            yield [(start + number) % self.tables for number in range(BATCH)]


def whole(tables: Tables) -> Iterator[Removal]:
    """One table a call."""
    for batch in tables.batches():
        for table in batch:
            yield [f"t{table}:*"], tables.keys(table)


def whole_batches(tables: Tables) -> Iterator[Removal]:
    """A hundred tables a call."""
    for batch in tables.batches():
        yield [f"t{table}:*" for table in batch], [k for t in batch for k in tables.keys(t)]


def parts(tables: Tables) -> Iterator[Removal]:
    """A hundredth of each of a hundred tables a call: the rows that end in the same two digits."""
    for ending, batch in zip(count(), tables.batches(), strict=False):
        end = str(10 + ending % 90)
        keys = [key for table in batch for key in tables.keys(table) if key.endswith(end)]
        yield [f"t{table}:*{end}" for table in batch], keys


def nothing(pattern: str) -> Iterator[Removal]:
    """Patterns that match nothing, made from a number."""
    return (([pattern.format(number)], []) for number in count())


class Remove(Trial):
    """Remove what patterns match, other ones each time."""

    def __init__(self, tables: Tables, removals: Iterator[Removal]) -> None:
        self.tables = tables
        self.removals = removals

    def prepare(self) -> None:
        """Choose what goes."""
        self.patterns, self.keys = next(self.removals)

    def call(self) -> object:
        """One pattern by delete_pattern(), many in one batch."""
        if len(self.patterns) == 1:
            return self.tables.cache.delete_pattern(self.patterns[0])
        return sum(self.tables.cache._invalidate_patterns(self.patterns))

    def finish(self, answer: object) -> None:
        """All of it went, and comes back."""
        assert answer == len(self.keys)
        self.tables.store(self.keys)
        self.keys = []


class FirstCall(Trial):
    """The first pattern call of a full cache, which builds the index."""

    def __init__(self, entries: int) -> None:
        self.tables = Tables(entries, TABLES)

    def prepare(self) -> None:
        """Fill it anew: clear() has dropped the index."""
        self.tables.cache.clear()
        self.tables.store_all()

    def call(self) -> object:
        """Remove one table."""
        return self.tables.cache.delete_pattern("t7:*")

    def finish(self, answer: object) -> None:
        """One table went."""
        assert answer == self.tables.rows


class Find(Trial):
    """List the keys that a pattern matches."""

    def __init__(self, find: Callable[[], Sequence[str]], matching: int) -> None:
        self.call = find  # type: ignore[method-assign]
        self.matching = matching

    def finish(self, answer: Any) -> None:
        """All of them were found."""
        assert len(answer) == self.matching


class Insert(Trial):
    """Store as many new keys as there are already; what the cache weighs then is noted."""

    def __init__(self, keys: list[str], pattern: str | None = None) -> None:
        half = len(keys) // 2
        self.first, self.second = keys[:half], keys[half:]
        self.pattern = pattern
        self.operations = len(self.second)
        self.fill, self.loop = compile_loop("c.set(k, v)"), compile_loop("c.set(k, v)")
        self.sizes: list[float] = []

    def prepare(self) -> None:
        """A cache of the first half; a pattern has been asked for, or never."""
        self.cache = make_cache()
        self.fill(self.cache, self.first, None)
        if self.pattern:
            self.cache.delete_pattern(self.pattern)

    def call(self) -> object:
        """Store the second half."""
        return self.loop(self.cache, self.second, None)

    def finish(self, answer: object) -> None:
        """Note the bytes an entry."""
        assert len(self.cache) == len(self.first) + len(self.second)
        self.sizes.append(self.cache.__sizeof__() / len(self.cache))
        del self.cache


def _pattern_trials(plan: Plan) -> list[Trial]:
    tables = Tables(plan.large, TABLES)
    small = Tables(plan.large, SMALL_TABLES)
    return [
        Remove(tables, whole(tables)),
        Remove(small, whole_batches(small)),
        Remove(tables, parts(tables)),
        Remove(tables, nothing("u{}:*")),
        Remove(tables, nothing("t{}:x*")),
        Remove(tables, nothing("x{}*")),
    ]


def _glob_trials(plan: Plan) -> list[Trial]:
    each = range(plan.large // len(FIELDS))
    keys = (f"product:{number}:{field}" for number in each for field in FIELDS)
    return _prices(dict.fromkeys(keys), len(each))


def _rare_trials(plan: Plan) -> list[Trial]:
    keys = [f"t{n % TABLES}:{n}" + ("" if n % RARE else ":price") for n in range(plan.large)]
    return _prices(dict.fromkeys(keys), -(-plan.large // RARE))


def _prices(entries: dict[str, None], matches: int) -> list[Trial]:
    cache = make_cache()
    cache.set_many(entries)
    ways: list[Callable[[], Sequence[str]]] = [
        lambda: [key for key in entries if fnmatch.fnmatchcase(key, PRICES)],
        lambda: fnmatch.filter(entries, PRICES),
        lambda: cache.get_keys_matching_pattern(PRICES),
    ]
    return [Find(way, matches) for way in ways]


def _star_trials(plan: Plan) -> list[Trial]:
    cache = make_cache()
    cache["a" * 10_000] = None
    patterns = ("a*" * 50 + "b", "a*" * 50 + "b*", "*a" * 50 + "b*")
    return [Find(partial(cache.get_keys_matching_pattern, pattern), 0) for pattern in patterns]


def index_trials(plan: Plan) -> dict[str, Insert]:
    """Keys that are no table's, keys that are, and these in a cache that keeps an index."""
    places = (divmod(number, TABLES) for number in range(plan.large))
    pairs = [(f"t{table:03}-{row}", f"t{table:03}:{row}") for row, table in places]
    plain, keys = (list(column) for column in zip(*pairs, strict=True))  # neighbours in memory
    del pairs
    return {
        "plain keys": Insert(plain),
        "table keys": Insert(keys),
        "table keys, indexed": Insert(keys, "t000:x*"),
    }


def _index(contenders: Sequence[Contender], plan: Plan, progress: Progress) -> list[Table]:
    trials = index_trials(plan)
    rounds = min(plan.rounds, INDEX_ROUNDS)
    took = Table("index-set", f"set, new key, {plan.large:,} entries", "ns", baseline="plain keys")
    took.series = compete(trials, took.unit, rounds, progress)
    title = f"bytes an entry, {plan.large:,} entries, __sizeof__"
    sizes = Table("index-sizeof", title, "B", baseline="plain keys")
    sizes.series = [Series(name, trial.sizes[-rounds:]) for name, trial in trials.items()]
    return [took, sizes]


PATTERNS = (
    Contest(
        "pattern",
        "delete_pattern and batches of 100 patterns, {large:,} entries",
        "µs",
        (
            "one table",
            "100 tables",
            "100 parts",
            "no such table",
            "no such row",
            "no such start",
        ),
        _pattern_trials,
        "one table",
    ),
    Contest(
        "pattern-first",
        "the first pattern call, {large:,} entries",
        "ms",
        ("one table",),
        lambda plan: [FirstCall(plan.large)],
        most_rounds=FIRST_ROUNDS,
    ),
    Contest(
        "pattern-glob",
        f"keys that match {PRICES!r}, {{large:,}} entries, one in {len(FIELDS)} does",
        "ms",
        ("fnmatchcase", "fnmatch.filter", "lapse"),
        _glob_trials,
        "fnmatchcase",
        GLOB_ROUNDS,
    ),
    Contest(
        "pattern-rare",
        f"keys that match {PRICES!r}, {{large:,}} entries, one in {RARE:,} does",
        "ms",
        ("fnmatchcase", "fnmatch.filter", "lapse"),
        _rare_trials,
        "fnmatchcase",
        GLOB_ROUNDS,
    ),
    Contest(
        "pattern-stars",
        "patterns of 50 stars that 'a' * 10_000 does not match",
        "ms",
        ("'a*' * 50 + 'b'", "'a*' * 50 + 'b*'", "'*a' * 50 + 'b*'"),
        _star_trials,
    ),
)

PATTERN_PROBES = (Probe("pattern-index", "what the index of prefixes costs", _index),)
