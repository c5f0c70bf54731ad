"""How long does the slowest single `set` take while a cache grows?"""

from statistics import median

import pytest

from lapse.bench.probes import STALL_RUNS, StallTrack, str_keys


def test_growth_stall(benchmark, plan, contender):
    """Times whole growths; the slowest and the tenth slowest `set` are in the extra info."""
    if not contender.set:
        pytest.skip(f"{contender} has no set")
    track = StallTrack(contender, str_keys(plan.large))
    slowest = []

    benchmark.pedantic(lambda: slowest.append(track(0)), rounds=STALL_RUNS)

    benchmark.extra_info["slowest_us"] = median(slowest)
    benchmark.extra_info["tenth_slowest_us"] = median(track.tenth)
    assert track.tenth <= slowest
