"""A target for which memory is always lacking: a queue tries it again, and applies all others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lapse.invalidation import Invalidation, OptimizedInvalidation
from support import Key


class Short:
    """A foreign cache that has no memory for some targets, and notes which others have gone."""

    def __init__(self) -> None:
        self.gone: list[Any] = []

    def delete(self, key: Any) -> None:
        if key == "big":
            raise MemoryError(key)
        self.gone.append(key)

    delete_pattern = delete_tag = delete


@pytest.fixture
def short() -> Iterator[OptimizedInvalidation]:
    """A queue of such a cache, without a thread, with one such key in it."""
    queue = OptimizedInvalidation(Short(), start=False)
    queue.invalidate_key("big")
    yield queue
    queue._spilled.clear()


def flush(queue: OptimizedInvalidation) -> None:
    with pytest.raises(MemoryError):
        queue.flush()


def test_others_in_the_batch_are_applied(short):
    """Whatever is in one batch with it goes, stronger kinds and weaker ones."""
    short.invalidate_pattern("big")
    short.invalidate_pattern("c:*")
    short.invalidate_tag("t")
    short.invalidate_key("behind")
    flush(short)
    assert set(short.cache.gone) == {"c:*", "t", "behind"}


def test_later_batches_are_applied(short):
    """So does what is queued later, and what is applied at once; it itself goes on waiting."""
    flush(short)
    short.invalidate_key("later")
    flush(short)
    assert short.cache.gone == ["later"]
    short.apply([Invalidation("key", "now")])
    assert short.cache.gone[-1] == "now"
    assert short.stats().depth > 0


def test_others_in_a_cache_of_lapse_are_applied(make):
    """The same where a key's comparison lacks memory."""

    def refuse() -> None:
        raise MemoryError

    cache = make()
    cache[Key("big", hook=refuse)] = cache["behind"] = 1
    queue = OptimizedInvalidation(cache, start=False)
    queue.invalidate_key(Key("big"))
    queue.invalidate_key("behind")
    flush(queue)
    assert len(cache) == 1
    queue._spilled.clear()
