"""How many bytes does an entry take, keys and values aside?"""

import pytest

from lapse.bench.probes import MEMORY_SIZES, memory_of


@pytest.mark.parametrize("size", MEMORY_SIZES)
def test_memory(benchmark, plan, contender, size):
    """Fills a cache in a process of its own; the bytes an entry are in the extra info."""
    entries = round(size * plan.large)

    answer = benchmark.pedantic(memory_of, args=(contender, entries), rounds=1)

    benchmark.extra_info.update(answer)
    assert answer["rss"] is None or answer["rss"] > 0
