"""Replaying a trace: exact hits and expirations, fair turns, and figures that make sense."""

import io
import json
import math
import random
import struct
import sys
from collections import Counter
from pathlib import Path

import pytest

from lapse import ManualClock, SlidingTTLCache, TTLCache
from lapse import replay as replay_module
from lapse.contenders import CACHES, Contender, contenders
from lapse.replay import TURN_REQUESTS, _Lane, _percentile, _rounded, _Turn, replay
from lapse.traces import Trace, TraceError, open_sample, open_trace

WEBLOG = Path(__file__).parents[1].parent / "shared" / "traces" / "weblog-2015.tsv.gz"
needs_weblog = pytest.mark.skipif(not WEBLOG.is_file(), reason="no real traces: ../shared/traces")

EXACT_HITS = [
    ("ttl", 60, 4_334),
    ("ttl", 300, 4_334),
    ("ttl", 3_600, 4_805),
    ("ttl", 86_400, 7_774),
    ("sliding", 60, 4_334),
    ("sliding", 300, 4_334),
    ("sliding", 3_600, 5_588),
    ("sliding", 86_400, 8_164),
]


def timed_trace(*requests):
    """A trace of these pairs of seconds and path."""
    lines = "".join(f"{seconds}\t{path}\n" for seconds, path in requests)
    return Trace(io.BytesIO(lines.encode()), "timed", "timed")


def id_trace(ids):
    """A trace of these numbers, without timestamps."""
    return Trace(io.BytesIO(struct.pack(f">{len(ids)}i", *ids)), "ids", "int32")


def results_of(report):
    """The results of a report by the name of the contender."""
    return {result.name: result for result in report.results}


@needs_weblog
class TestWeblog:
    """The published expiry counts of a real web site's log."""

    @pytest.mark.parametrize(("cache", "ttl", "hits"), EXACT_HITS)
    def test_cache_hits_exactly(self, cache, ttl, hits):
        """A cache that a miss fills and the timestamps drive hits as often as published."""
        clock = ManualClock()
        made = {"ttl": TTLCache, "sliding": SlidingTTLCache}[cache](ttl, None, clock=clock)
        found = requests = now = 0
        with open_trace(WEBLOG) as trace:
            for chunk in trace:
                for key, time in zip(chunk.keys, chunk.times, strict=True):
                    clock.advance(time - now)
                    now = time
                    if made.get(key) is not None:
                        found += 1
                    else:
                        made.set(key, True)
                    requests += 1
        made.expire()

        stats = made.stats()
        assert found == stats.hits == hits
        assert requests - found == stats.misses == stats.sets
        assert stats.expirations == stats.sets - len(made)
        made.close()

    @pytest.mark.parametrize(("cache", "ttl", "hits"), EXACT_HITS)
    def test_replay_hits_exactly(self, cache, ttl, hits):
        """A replay counts the same, and cachetools with a fixed ttl agrees."""
        with open_trace(WEBLOG) as trace:
            report = replay(trace, cache, ttl)

        results = results_of(report)
        assert results[f"lapse {cache}"].hits == hits
        assert (report.requests, report.distinct_keys) == (9_952, 1_486)
        if "cachetools ttl" in results:
            fixed = next(n for kind, t, n in EXACT_HITS if (kind, t) == ("ttl", ttl))
            assert results["cachetools ttl"].hits == fixed


class TestCounts:
    """Hits, misses and expirations of small traces."""

    def test_timestamps_drive_the_clock(self):
        """An entry is hit until its ttl has passed by the timestamps, and stored anew then."""
        trace = timed_trace((100, "a"), (109, "a"), (110, "a"), (119.5, "a"), (120, "b"))
        report = replay(trace, "ttl", 10)

        result = results_of(report)["lapse ttl"]
        assert (result.hits, result.expirations) == (2, 2)
        assert result.trace_time
        assert report.span_seconds == 20

    def test_sliding_reads_prolong(self):
        """On a sliding cache every read starts the ttl again."""
        trace = timed_trace((0, "a"), (9, "a"), (18, "a"), (27, "a"), (37, "a"))

        result = results_of(replay(trace, "sliding", 10))["lapse sliding"]

        assert (result.hits, result.expirations) == (3, 1)

    def test_timestamps_may_step_back(self):
        """A trace that is out of order is replayed as it is."""
        trace = timed_trace((50, "a"), (40, "a"), (59, "a"), (61, "a"))

        assert results_of(replay(trace, "ttl", 10))["lapse ttl"].hits == 2

    def test_time_goes_on_across_turns(self):
        """The clock moves between two turns as it does within one."""
        trace = timed_trace(*((second, "a") for second in range(2 * TURN_REQUESTS + 2)))
        ttl = TURN_REQUESTS

        result = results_of(replay(trace, "ttl", ttl))["lapse ttl"]

        assert result.requests - result.hits == 3

    @pytest.mark.parametrize("cache", CACHES)
    def test_without_timestamps_every_contender_agrees(self, cache):
        """Within a long ttl of real time everybody misses each distinct key exactly once."""
        ids = random.Random(5).choices(range(3_000), k=20_000)
        report = replay(id_trace(ids), cache)

        assert report.distinct_keys == len(set(ids))
        for result in report.results:
            assert result.requests == 20_000
            assert result.hits == 20_000 - len(set(ids)), result.name
            assert result.hit_ratio == result.hits / 20_000
            assert result.expirations == 0
            assert not result.trace_time

    def test_endless_ttl(self):
        """With an infinite ttl nothing expires, whatever the timestamps are."""
        report = replay(timed_trace((0, "a"), (1.999e9, "a")), "ttl", math.inf)

        assert all(result.hits == 1 for result in report.results)

    @pytest.mark.parametrize("count", [1, 2, 63, 64, 513, TURN_REQUESTS + 1])
    def test_every_request_is_made_once_and_in_order(self, count):
        """A lane reads the keys one by one, whether raced or timed, and stores what it misses."""
        reads, stored = [], {}

        def read(key):
            reads.append(key)
            return stored.get(key)

        lane = _Lane(Contender("spy", "1", read, stored.__setitem__, stored.__len__))
        keys = random.Random(count).choices(range(count), k=count)
        lane.take(_Turn(keys, None))
        result = lane.result(count)

        assert reads == keys
        assert set(stored) == set(keys)
        assert result.hits == count - len(stored)


class TestFigures:
    """Rates, read times and memory."""

    def test_sample_gives_every_figure(self):
        """A replay of the sample gives each contender a rate, ordered percentiles and memory."""
        report = replay(open_sample())

        assert report.trace == "web07.trace.xz"
        assert report.span_seconds is None
        assert 0 <= report.timer_ns < 1_000_000
        assert report.results[0].name == "lapse ttl"
        for result in report.results:
            assert result.requests_per_second > 0
            assert 0 < result.read_p50_ns <= result.read_p99_ns <= result.read_p999_ns
            assert result.memory_bytes is not None or sys.platform == "win32"

    def test_report_is_json_ready(self):
        """A report survives the round trip through JSON."""
        report = replay(id_trace([1, 2, 1]))

        assert json.loads(json.dumps(report.as_dict()))["results"][0]["hits"] == 1

    def test_a_single_request_has_no_rate(self):
        """Where every request was timed on its own, the rate is unknown and not a division."""
        (first, *_) = replay(id_trace([1])).results

        assert first.requests_per_second is None
        assert first.read_p50_ns == first.read_p999_ns

    def test_unknown_memory_is_none(self, monkeypatch):
        """A platform that tells no resident size gives None, not zero."""
        monkeypatch.setattr(replay_module, "_resident_bytes", lambda: None)

        assert {result.memory_bytes for result in replay(id_trace([1, 2])).results} == {None}

    def test_percentiles_are_nearest_rank(self):
        """A percentile is a value that occurred, the smallest that covers the share."""
        counts = Counter({10: 50, 20: 49, 99: 1})

        assert _percentile(counts, 0.5) == 10
        assert _percentile(counts, 0.51) == 20
        assert _percentile(counts, 0.99) == 20
        assert _percentile(counts, 0.999) == 99
        assert _percentile(Counter(), 0.5) is None

    def test_times_keep_a_thousandth(self):
        """A rounded time is exact below 2,048 ns and at most a thousandth short above."""
        assert all(_rounded(time) == time for time in (0, 1, 2_047))
        for time in (2_049, 123_457, 10**9 + 7):
            assert time * 0.999 <= _rounded(time) <= time

    def test_progress_counts_up_to_the_end(self):
        """Progress is told after each turn, and the last word is the number of requests."""
        told = []
        replay(id_trace([1] * (TURN_REQUESTS + 3)), progress=told.append)

        assert told == [TURN_REQUESTS, TURN_REQUESTS + 3]


class TestContenders:
    """Who takes part."""

    def test_rivals_that_are_not_installed_are_left_out(self, monkeypatch):
        """Without cachetools and cachebox the standard library's caches remain."""
        monkeypatch.setitem(sys.modules, "cachetools", None)
        monkeypatch.setitem(sys.modules, "cachebox", None)

        names = [contender.name for contender in contenders("ttl", 1, timed=True)]

        assert names == ["lapse ttl", "dict", "lru_cache"]

    @pytest.mark.parametrize("rival", ["cachetools", "cachebox"])
    def test_rivals_that_are_installed_take_part(self, rival):
        """Each rival that can be imported has a place."""
        pytest.importorskip(rival)

        names = [contender.name for contender in contenders("ttl", 1, timed=False)]

        assert f"{rival} ttl" in names

    def test_unknown_cache(self):
        """An unknown cache is refused with the list of the known ones."""
        with pytest.raises(ValueError, match=r"'lfu'.*ttl, sliding, probabilistic"):
            replay(id_trace([1]), "lfu")

    @pytest.mark.parametrize("ttl", [0, -1, math.nan])
    def test_wrong_ttl(self, ttl):
        """A ttl that is no lifetime is refused by name."""
        with pytest.raises(ValueError, match=str(ttl)):
            replay(id_trace([1]), "ttl", ttl)

    def test_bad_end_of_a_trace(self):
        """A trace that turns out to be truncated ends the replay with a TraceError."""
        with pytest.raises(TraceError, match="truncated"):
            replay(Trace(io.BytesIO(struct.pack(">5i", *range(5)) + b"\0"), "ids", "int32"))
