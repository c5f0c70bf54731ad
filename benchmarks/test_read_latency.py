"""How long does a read wait while another thread runs a pattern over the cache?"""

from statistics import median

import pytest

from lapse.bench.latency import READS, ROUNDS, Reads


@pytest.mark.parametrize("name", ["quiet", "busy"])
def test_read_latency(benchmark, plan, name):
    """Times rounds of single reads; the percentiles, in microseconds, are in the extra info."""
    reads = Reads(plan.large, READS)
    track = {"quiet": reads.quiet, "busy": reads.busy}[name]

    benchmark.pedantic(track, args=(0,), rounds=min(plan.rounds, ROUNDS))

    figures = reads.figures[name]
    benchmark.extra_info |= {share: median(values) for share, values in figures.items()}
    assert figures["p99"] <= figures["max"]
