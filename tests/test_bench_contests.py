"""The contests of `lapse bench`: their trials do what they claim, and time only that."""

from __future__ import annotations

import fnmatch
import gc
import itertools
import threading
from collections import Counter

import pytest

pytest.importorskip("rich", reason="lapse bench needs the cli extra")

from lapse import bench
from lapse.bench import latency, patterns, queues, tags
from lapse.bench.contest import Contest, Trial, compete
from lapse.bench.engine import Plan
from lapse.bench.patterns import Remove, Tables
from lapse.bench.reference import ReferenceCache, ReferenceQueue
from support import wait_until

TINY = Plan(rounds=2, operations=40, small=10, large=100)
SMALL = Plan(rounds=2, operations=40, small=10, large=100_000)
REASONABLE = 30  # seconds that a thread may take


def no_progress(done: int, total: int) -> None:
    """A progress callback that shows nothing."""


class Steps(Trial):
    """Notes what it is asked for."""

    operations = 4

    def __init__(self, fails: bool = False) -> None:
        self.steps: list[object] = []
        self.fails = fails

    def prepare(self) -> None:
        self.steps.append("prepare")

    def call(self) -> object:
        self.steps.append(gc.isenabled())
        return 7

    def finish(self, answer: object) -> None:
        self.steps.append(answer)
        assert not self.fails

    def close(self) -> None:
        self.steps.append("close")


# --- Contests ---


def test_trial_is_readied_called_and_checked():
    """A trial prepares, is called with collection paused, and is given its answer."""
    trial = Steps()

    assert trial() > 0

    assert trial.steps == ["prepare", False, 7]
    assert gc.isenabled()


def test_trial_times_the_call_alone(monkeypatch: pytest.MonkeyPatch):
    """Its figure is the time between the two readings around the call, an operation."""
    monkeypatch.setattr("time.perf_counter_ns", iter([1_000, 1_400]).__next__)

    assert Steps()() == 100


def test_contest_has_a_figure_for_each_round(monkeypatch: pytest.MonkeyPatch):
    """Each entrant is timed in each round, in the contest's unit, and closed."""
    monkeypatch.setattr("time.perf_counter_ns", itertools.count(0, 8_000).__next__)
    trials = [Steps(), Steps()]
    contest = Contest("c", "of {large:,}", "µs", ("a", "b"), lambda plan: trials, "a", 1)

    (table,) = contest.measure((), TINY, no_progress)

    assert [table.values("a"), table.values("b")] == [[2.0], [2.0]]
    assert (table.title, table.baseline) == ("of 100", "a")
    assert all(trial.steps[-1] == "close" for trial in trials)


def test_contest_closes_after_a_failure():
    """A check that fails ends the contest, and every trial is closed."""
    trials = {"a": Steps(), "b": Steps(fails=True)}

    with pytest.raises(AssertionError):
        compete(trials, "ns", 1, no_progress)

    assert all(trial.steps[-1] == "close" for trial in trials.values())


@pytest.mark.parametrize("contest", bench.CONTESTS, ids=str)
def test_contest_measures_its_entrants(contest: Contest):
    """Each contest runs, its checks hold, every entrant has its figures, no queue is left open."""
    (table,) = contest.measure((), SMALL if contest.name == "pattern" else TINY, no_progress)

    assert tuple(series.contender for series in table.series) == contest.entrants
    assert all(len(series.values) == 2 for series in table.series)
    assert all(time > 0 for series in table.series for time in series.values)
    assert wait_until(
        lambda: not any(t.name.startswith("lapse-invalidation") for t in threading.enumerate())
    )


def test_only_takes_several_words(capsys: pytest.CaptureFixture[str]):
    """Words between commas each choose the questions that contain them."""
    assert bench.run(only="no-such,pattern-stars,put", quick=True, rounds=1) == 0

    out = capsys.readouterr().out
    assert "(pattern-stars)" in out
    assert "(queue-put)" in out
    assert "(tag" not in out


# --- Patterns ---


@pytest.mark.parametrize("kind", ["whole", "whole_batches", "parts"])
def test_removals_match_what_they_say(kind: str):
    """The keys that a removal names are those that its patterns match, by another matcher."""
    tables = Tables(40_000, 200)  # 200 rows each
    chosen, keys = next(getattr(patterns, kind)(tables))

    matched = {key for pattern in chosen for key in fnmatch.filter(tables.cache, pattern)}

    assert matched == set(keys) != set()
    assert len(keys) == len(matched)


def test_parts_match_as_much_as_one_table():
    """A hundred parts have as many keys as one table."""
    tables = Tables(40_000, 200)

    (_, part), (_, table) = next(patterns.parts(tables)), next(patterns.whole(tables))

    assert len(part) == len(table)


def test_remove_brings_back_what_went():
    """After a call the cache is whole again."""
    tables = Tables(1_000, 100)
    keys = set(tables.cache)

    Remove(tables, patterns.whole(tables))()

    assert keys == set(tables.cache)
    assert tables.cache.stats().pattern_deletes == 10


def test_remove_notices_what_stayed():
    """A call that removes less than its keys fails the check."""
    tables = Tables(1_000, 100)
    removal = ["t1:*"], [*tables.keys(1), "t2:0"]

    with pytest.raises(AssertionError):
        Remove(tables, iter([removal]))()


def test_a_cache_that_saw_no_pattern_has_no_index():
    """Until the first pattern, keys of tables take no more memory than others; afterwards more."""
    trials = patterns.index_trials(SMALL)
    for trial in trials.values():
        trial()

    plain, keys, indexed = (trial.sizes[-1] for trial in trials.values())

    assert keys < 1.1 * plain
    assert indexed > 1.5 * plain


def test_index_has_two_tables():
    """The probe of the index has times and sizes of the same rounds."""
    (probe,) = patterns.PATTERN_PROBES

    took, sizes = probe.measure((), TINY, no_progress)

    assert (took.name, sizes.name) == ("index-set", "index-sizeof")
    assert len(took.values("table keys")) == len(sizes.values("table keys")) == 2


# --- Tags and queues ---


def test_delete_tag_brings_back_what_went():
    """A tag's members are stored again, with their tag."""
    trial = tags.DeleteTag(100, 10)

    trial()

    assert len(trial.cache) == 100
    assert trial.cache.delete_tag("tag:0") == 10


def test_overwriting_keeps_tags():
    """The tagged trial stores each key with its own tag, the untagged one without any."""
    pairs = tags.tagged_keys(100, 10)
    for statement, expected in ((tags.TAGGED, dict(pairs)), (tags.UNTAGGED, {})):
        trial = tags.Overwrite(statement, pairs, TINY, seat=0)
        trial()
        found = {key: tuple(trial.cache.tags(key)) for key in trial.cache}
        assert {key: tag for key, tag in found.items() if tag} == expected


@pytest.mark.parametrize("name", ["Apply", "Flow"])
def test_a_stream_that_is_not_applied_is_noticed(name: str):
    """Keys that do not remove an entry fail the check."""
    trial = getattr(queues, name)(queues.Stream(100))
    try:
        trial()
        trial.cache.clear()
        with pytest.raises(AssertionError):
            trial()
    finally:
        trial.close()


def test_reference_queue_applies_keys_and_patterns():
    """A full batch removes its keys and what its patterns match; then its thread ends."""
    cache = ReferenceCache()
    for key in ("a:1", "a:2", "b:1", "b:2", 3):
        cache.set(key, None)
    waiting = ReferenceQueue(cache, batch_size=3, expected=3)
    waiting.invalidate_key("b:1")
    waiting.invalidate_key("absent")
    waiting.invalidate_pattern("a:*")

    before = set(threading.enumerate())
    waiting.start()
    (thread,) = set(threading.enumerate()) - before

    assert waiting.done.wait(REASONABLE)
    assert set(cache.entries) == set(cache.stored_at) == {"b:2", 3}
    waiting.close()
    thread.join(REASONABLE)
    assert not thread.is_alive()


def test_reference_queue_applies_by_timeout():
    """A batch that never fills is applied when its time has come."""
    cache = ReferenceCache()
    cache.set("a", None)
    waiting = ReferenceQueue(cache, batch_size=10, batch_timeout=0.0, expected=1)
    waiting.start()

    waiting.invalidate_key("a")

    assert waiting.done.wait(REASONABLE)
    assert cache.entries == {}
    waiting.close()


# --- Latency ---


def test_percentile_is_exact():
    """The value that a share of all is within, counted."""
    times = Counter({30: 1, 10: 98, 20: 1})
    expected = {0.5: 10, 0.98: 10, 0.99: 20, 1.0: 30}

    assert expected == {share: latency.percentile(times, share) for share in expected}
    with pytest.raises(ValueError, match="no times"):
        latency.percentile(Counter(), 0.5)


def test_reads_are_measured_alone_and_beside_passes(monkeypatch: pytest.MonkeyPatch):
    """Each share has a table; the passes run beside the busy reads only, and remove nothing."""
    monkeypatch.setattr(latency, "READS", 1_000)
    asked: list[str] = []
    make = patterns.make_cache

    class Watched:
        def __init__(self) -> None:
            self.cache = make()
            self.get, self.set_many = self.cache.get, self.cache.set_many

        def delete_pattern(self, pattern: str) -> int:
            asked.append(pattern)
            removed: int = self.cache.delete_pattern(pattern)
            assert removed == 0
            return removed

    monkeypatch.setattr(latency, "make_cache", Watched)
    (probe,) = latency.LATENCY_PROBES

    tables = {table.name: table for table in probe.measure((), TINY, no_progress)}

    assert len(asked) >= 3  # in each round, and in the one ahead
    assert list(tables) == [f"read-{share}" for share in latency.SHARES]
    for name in ("quiet", "busy"):
        figures = [tables[f"read-{share}"].values(name) for share in latency.SHARES]
        assert all(list(shares) == sorted(shares) for shares in zip(*figures, strict=True))


def test_passes_that_fail_are_noticed():
    """Reads beside a thread that could not run its pattern do not count as busy."""
    cache = patterns.make_cache()
    cache.close()

    with pytest.raises(RuntimeError, match="closed"), latency.passes(cache):
        pass
