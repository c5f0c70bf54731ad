"""What does the index of prefixes add to a write, before the first pattern and after it?"""

import pytest

from lapse.bench.patterns import INDEX_ROUNDS, index_trials


@pytest.mark.parametrize("entrant", ["plain keys", "table keys", "table keys, indexed"])
def test_prefix_index(benchmark, plan, entrant):
    """Times a cache that doubles; the bytes an entry are in the extra info."""
    trial = index_trials(plan)[entrant]

    benchmark.pedantic(
        trial.call, setup=trial.prepare, teardown=lambda: trial.finish(None), rounds=INDEX_ROUNDS
    )

    benchmark.extra_info["operations"] = trial.operations
    benchmark.extra_info["sizeof"] = trial.sizes[-1]
