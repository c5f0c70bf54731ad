"""What does a sweep cost that finds one entry in a thousand expired?"""

import pytest

from lapse.bench.probes import SweepTrack


def test_sweep(benchmark, plan, contender):
    """Times `expire()`, which must return the number of expired entries."""
    if contender.module != "lapse":
        pytest.skip(f"{contender} takes no clock")
    track = SweepTrack(contender, plan.large)

    removed = benchmark.pedantic(track.cache.expire, setup=track.prepare, rounds=plan.rounds)

    assert len(track.short_lived) == removed
