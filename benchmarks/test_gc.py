"""What does a full cache add to `gc.collect()`?"""

import gc

import pytest

from lapse.bench.contenders import compile_fill
from lapse.bench.probes import str_keys


@pytest.fixture
def full_cache(plan, contender):
    """A cache of str to bytes; everything that was there before it is frozen."""
    keys = str_keys(plan.large)
    values = [b"%d" % i for i in range(plan.large)]
    contender.make(1)
    gc.collect()
    gc.freeze()
    cache = contender.make(plan.large)
    compile_fill(contender.store)(cache, keys, values)
    yield cache
    gc.unfreeze()


def test_gc(benchmark, plan, full_cache):
    """Times a full collection, whose only work is the cache."""
    gc.collect()

    benchmark.pedantic(gc.collect, rounds=plan.rounds)

    assert full_cache is not None
