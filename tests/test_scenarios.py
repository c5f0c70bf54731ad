"""The three scenarios: what each event of the reference removes, over a queue and by calls."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import lapse
from lapse.invalidation import OptimizedInvalidation
from lapse.invalidation.rules import InvalidationRules, Rule, RuleError
from lapse.scenarios.analytics import AnalyticsCacheInvalidation
from lapse.scenarios.base import EventStats
from lapse.scenarios.ecommerce import ECOMMERCE_RULES, EcommerceCacheInvalidation
from lapse.scenarios.social import SocialMediaCacheInvalidation
from lapse.sources.memory import MemoryQueue
from support import wait_until

SHOP = [
    *(f"product:{n}:{part}" for n in (7, 8) for part in
      ("price", "details", "inventory", "availability", "description", "photo")),
    "category:toys:1", "category:toys:2", "category:books:1",
    "search:wool", "recommendations:ada", "basket:1",
]  # fmt: skip
FEED = [
    *(f"timeline:{user}:{page}" for user in (1, 2, 3, "x*") for page in (0, 1)),
    "post:5", "post:6", "profile:1",
]  # fmt: skip
METRICS = [
    *(f"metric:{name}:{span}" for name in ("cpu", "mem") for span in ("1h", "1d")),
    *(f"agg:{name}:{how}:{span}" for name in ("cpu", "mem") for how in ("avg", "max")
      for span in ("1h", "1d")),
    "dashboard:1", "dashboard:2", "report:1",
]  # fmt: skip


class Database:
    """What the scenarios ask: the followers of a user, the metrics of a dashboard."""

    def __init__(self) -> None:
        self.followers: dict[Any, Any] = {1: [2, "x*"]}
        self.asked: list[Any] = []

    def get_followers(self, user_id: Any) -> Any:
        self.asked.append(user_id)
        found = self.followers[user_id]
        if isinstance(found, Exception):
            raise found
        return found

    def get_dashboard_metrics(self, dashboard_id: Any) -> Any:
        self.asked.append(dashboard_id)
        return {"1": ["cpu"], "2": []}[str(dashboard_id)]


def filled(keys: list[str]) -> Any:
    cache: Any = lapse.TTLCache(60, cleanup_interval=None)
    cache.set_many(dict.fromkeys(keys, "old"))
    return cache


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    """Makes a scenario, and closes it."""
    made: list[Any] = []

    def make(scenario: Any, cache: Any, queue: Any, **options: Any) -> Any:
        database = options.pop("database", None) or Database()
        made.append(scenario(cache, database, queue, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def product(update_type: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"type": "product_update", "product_id": 7, "update_type": update_type, **fields}


def feed(update_type: str, **fields: Any) -> dict[str, Any]:
    return {"type": "feed_update", "update_type": update_type, **fields}


def metric(**fields: Any) -> dict[str, Any]:
    return {"type": "metric_update", **fields}


LISTS = {"search:wool", "recommendations:ada"}
TIMELINES = {key for key in FEED if key.startswith("timeline:")}
DASHBOARDS = {"dashboard:1", "dashboard:2"}


def of(keys: list[str], *starts: str) -> set[str]:
    """Those that begin with one of these."""
    return {key for key in keys if key.startswith(starts)}


EVENTS: list[Any] = [
    (EcommerceCacheInvalidation, SHOP, product("price_change"),
     LISTS | {"product:7:price", "product:7:details"}),
    (EcommerceCacheInvalidation, SHOP, product("inventory_change"),
     LISTS | {"product:7:inventory", "product:7:availability"}),
    (EcommerceCacheInvalidation, SHOP, product("description_change"),
     LISTS | {"product:7:details", "product:7:description"}),
    (EcommerceCacheInvalidation, SHOP, product("category_change", old_category="toys"),
     LISTS | of(SHOP, "category:toys:")),
    (EcommerceCacheInvalidation, SHOP,
     product("category_change", old_category="toys", new_category="books"),
     LISTS | of(SHOP, "category:")),
    (EcommerceCacheInvalidation, SHOP, product("category_change"), LISTS),
    (EcommerceCacheInvalidation, SHOP, product("something else"), LISTS),
    (SocialMediaCacheInvalidation, FEED, feed("new_post", user_id=1, post_id=5),
     of(FEED, "timeline:1:", "timeline:2:", "timeline:x*:")),
    (SocialMediaCacheInvalidation, FEED, feed("post_update", user_id=1, post_id=5),
     TIMELINES | {"post:5"}),
    (SocialMediaCacheInvalidation, FEED, feed("post_delete", user_id=1, post_id=5),
     TIMELINES | {"post:5"}),
    (SocialMediaCacheInvalidation, FEED, feed("user_follow", follower_id=3, following_id=1),
     of(FEED, "timeline:3:")),
    (SocialMediaCacheInvalidation, FEED, feed("user_unfollow", follower_id=3, following_id=1),
     of(FEED, "timeline:3:")),
    (AnalyticsCacheInvalidation, METRICS,
     metric(metric_name="cpu", time_range="1h", aggregation_type="avg"),
     DASHBOARDS | {"metric:cpu:1h", "agg:cpu:avg:1h"}),
    (AnalyticsCacheInvalidation, METRICS, metric(metric_name="cpu", time_range="1h"),
     DASHBOARDS | {"metric:cpu:1h", "agg:cpu:avg:1h", "agg:cpu:max:1h"}),
    (AnalyticsCacheInvalidation, METRICS, metric(metric_name="cpu"),
     DASHBOARDS | of(METRICS, "metric:cpu:", "agg:cpu:")),
    (AnalyticsCacheInvalidation, METRICS, metric(metric_name="cpu", aggregation_type="avg"),
     DASHBOARDS | of(METRICS, "metric:cpu:", "agg:cpu:")),
]  # fmt: skip
events = pytest.mark.parametrize(("scenario", "keys", "event", "gone"), EVENTS)


@events
def test_what_an_event_removes(connect, scenario, keys, event, gone):
    """An event from the queue removes what the reference says, and nothing else."""
    cache, queue = filled(keys), MemoryQueue()
    it = connect(scenario, cache, queue)
    queue.publish(event)
    assert wait_until(lambda: it.event_stats().applied == 1)
    assert set(keys) - set(cache) == gone
    assert it.event_stats().removed == len(gone)


@events
def test_a_cache_of_another_kind(connect, scenario, keys, event, gone):
    """The same on any object with delete() and delete_pattern()."""

    class Plain:
        def __init__(self, cache: Any) -> None:
            self.delete, self.delete_pattern = cache.delete, cache.delete_pattern

    cache = filled(keys)
    connect(scenario, Plain(cache), MemoryQueue(), start=False).apply_event(event)
    assert set(keys) - set(cache) == gone


@pytest.mark.parametrize(
    ("scenario", "keys", "call", "gone"),
    [
        (EcommerceCacheInvalidation, SHOP, lambda it: it.invalidate_product(7),
         of(SHOP, "product:7:", "category:") | LISTS),
        (EcommerceCacheInvalidation, SHOP, lambda it: it.invalidate_category("toys"),
         of(SHOP, "category:toys:") | LISTS),
        (SocialMediaCacheInvalidation, FEED, lambda it: it.invalidate_user_timeline(1),
         of(FEED, "timeline:1:")),
        (SocialMediaCacheInvalidation, FEED, lambda it: it.invalidate_user_timeline("*"), set()),
        (SocialMediaCacheInvalidation, FEED, lambda it: it.invalidate_post(5),
         TIMELINES | {"post:5"}),
        (AnalyticsCacheInvalidation, METRICS, lambda it: it.invalidate_metric("cpu"),
         DASHBOARDS | of(METRICS, "metric:cpu:", "agg:cpu:")),
        (AnalyticsCacheInvalidation, METRICS, lambda it: it.invalidate_metric("cpu", "1h"),
         DASHBOARDS | {"metric:cpu:1h", "agg:cpu:avg:1h", "agg:cpu:max:1h"}),
        (AnalyticsCacheInvalidation, METRICS, lambda it: it.invalidate_dashboard(1),
         of(METRICS, "metric:cpu:", "agg:cpu:") | {"dashboard:1"}),
        (AnalyticsCacheInvalidation, METRICS, lambda it: it.invalidate_dashboard(2),
         {"dashboard:2"}),
    ],
)  # fmt: skip
def test_methods(connect, scenario, keys, call, gone):
    """A method removes the same in this process, and answers how many entries went."""
    cache = filled(keys)
    it = connect(scenario, cache, MemoryQueue(), start=False)
    assert call(it) == len(gone)
    assert set(keys) - set(cache) == gone


def test_one_event_is_one_batch(connect, monkeypatch):
    """Ten thousand followers are one call of the queue."""
    cache, database = filled(FEED), Database()
    database.followers[1] = range(10_000)
    it = connect(SocialMediaCacheInvalidation, cache, MemoryQueue(), database=database, start=False)
    calls = []
    apply = OptimizedInvalidation.apply_groups

    def counted(queue: Any, groups: Any) -> Any:
        calls.append(groups.size)
        return apply(queue, groups)

    monkeypatch.setattr(OptimizedInvalidation, "apply_groups", counted)
    assert it.apply_event(feed("new_post", user_id=1)) == 6
    assert calls == [10_001]
    assert it.event_stats() == EventStats(applied=1, targets=10_001, removed=6)


def test_text_of_others_is_no_pattern(connect):
    """Wildcards in an event's fields match themselves."""
    cache = filled(FEED)
    it = connect(SocialMediaCacheInvalidation, cache, MemoryQueue(), start=False)
    assert it.apply_event(feed("user_follow", follower_id="*")) == 0
    assert it.apply_event(feed("user_follow", follower_id="x*")) == 2


def test_a_missing_field_raises_here(connect):
    """An event that a caller gives raises, and changes nothing."""
    cache = filled(SHOP)
    it = connect(EcommerceCacheInvalidation, cache, MemoryQueue(), start=False)
    with pytest.raises(RuleError, match="a product_update without product_id"):
        it.apply_event({"type": "product_update", "update_type": "price_change"})
    assert set(cache) == set(SHOP)
    assert it.event_stats() == EventStats(failed=1)


@pytest.mark.parametrize(
    "bad", [{"product_id": None}, {"product_id": ["x"]}, {"product_id": "x" * 2000}]
)
def test_an_event_that_cannot_be_applied_is_a_resync(connect, bad):
    """One that comes and lacks a field, or makes a pattern too long, empties the cache."""
    cache, queue = filled(SHOP), MemoryQueue()
    it = connect(EcommerceCacheInvalidation, cache, queue)
    queue.publish({"type": "invalidate_product", **bad})
    assert wait_until(lambda: it.stats().resyncs)
    assert len(cache) == 0
    cache["product:7:price"] = "new"
    queue.publish(product("price_change"))
    assert wait_until(lambda: "product:7:price" not in cache)
    assert it.event_stats().failed == 1


def test_a_database_that_fails_is_a_resync(connect):
    """The followers are not known, so everything goes; the thread goes on."""
    cache, queue, database = filled(FEED), MemoryQueue(), Database()
    database.followers[3] = OSError("down")
    it = connect(SocialMediaCacheInvalidation, cache, queue, database=database)
    queue.publish(feed("new_post", user_id=3))
    assert wait_until(lambda: len(cache) == 0)
    cache["timeline:2:0"] = "new"
    queue.publish(feed("new_post", user_id=1))
    assert wait_until(lambda: it.event_stats().applied == 1)
    assert len(cache) == 0
    assert it.receiver.running


def test_events_of_other_types_are_counted(connect):
    """They change nothing, and are no error."""
    cache, queue = filled(SHOP), MemoryQueue()
    it = connect(EcommerceCacheInvalidation, cache, queue)
    queue.publish({"type": "feed_update", "update_type": "new_post", "user_id": 1})
    queue.publish({"type": "order_placed"})
    assert wait_until(lambda: it.event_stats().unmatched == 2)
    assert set(cache) == set(SHOP)
    assert it.stats().resyncs == {}


def test_our_own_invalidations_are_applied_too(connect):
    """Messages of the other classes go through the same queue."""
    cache, queue = filled(SHOP), MemoryQueue()
    connect(EcommerceCacheInvalidation, cache, queue)
    queue.publish({"type": "invalidate_table", "table": "product"})
    assert wait_until(lambda: not of(list(cache), "product:"))


def test_publishing_an_event(connect):
    """It is applied here when the call returns, and by the others when it has come."""
    first, second, queue = filled(SHOP), filled(SHOP), MemoryQueue()
    it = connect(EcommerceCacheInvalidation, first, queue)
    other = connect(EcommerceCacheInvalidation, second, queue)
    it.publish_invalidation("product_update", product_id=7, update_type="price_change")
    gone = LISTS | {"product:7:price", "product:7:details"}
    assert set(SHOP) - set(first) == gone
    assert wait_until(lambda: set(SHOP) - set(second) == gone)
    it.publish_invalidation("invalidate_key", key="basket:1")
    assert wait_until(lambda: "basket:1" not in second)
    assert it.event_stats().applied == other.event_stats().applied == 1


def test_rules_of_ones_own(connect):
    """A table is copied, changed and handed over."""
    rules = ECOMMERCE_RULES + InvalidationRules(Rule("basket_update", keys=["basket:{basket_id}"]))
    cache, queue = filled(SHOP), MemoryQueue()
    it = connect(EcommerceCacheInvalidation, cache, queue, rules=rules)
    assert it.rules is rules
    queue.publish({"type": "basket_update", "basket_id": 1})
    assert wait_until(lambda: "basket:1" not in cache)


def test_start_and_close():
    """start=False holds it; close() ends the thread, and refuses events."""
    cache, queue = filled(SHOP), MemoryQueue()
    with EcommerceCacheInvalidation(cache, Database(), queue, start=False, name="shop") as it:
        queue.publish(product("price_change"))
        assert "lapse-shop" not in {thread.name for thread in threading.enumerate()}
        it.start_invalidation_processing()
        it.start_invalidation_processing()
        assert wait_until(lambda: "product:7:price" not in cache)
    assert it.closed
    assert wait_until(lambda: "lapse-shop" not in {t.name for t in threading.enumerate()})
    with pytest.raises(RuntimeError):
        it.apply_event(product("price_change"))
    with pytest.raises(RuntimeError):
        it.start_invalidation_processing()


def test_it_ends_when_nobody_refers_to_it():
    """Its thread does not keep it."""
    it = EcommerceCacheInvalidation(filled(SHOP), Database(), MemoryQueue(), name="orphan")
    gone = weakref.ref(it)
    del it
    gc.collect()
    assert gone() is None
    assert wait_until(
        lambda: "lapse-orphan" not in {thread.name for thread in threading.enumerate()}
    )


def test_statistics(connect):
    """Every figure is ready for JSON."""
    it = connect(AnalyticsCacheInvalidation, filled(METRICS), MemoryQueue(), start=False)
    it.invalidate_metric("cpu")
    shown = json.loads(json.dumps(it.get_stats()))
    assert shown["class"] == "AnalyticsCacheInvalidation"
    assert shown["name"] == "analytics"
    assert shown["events"]["applied"] == 1
    assert shown["events"]["removed"] == 8


def test_the_database_is_there():
    """Under both names where the reference has two."""
    database = Database()
    with AnalyticsCacheInvalidation(filled([]), database, MemoryQueue(), start=False) as it:
        assert it.time_series_db is it.database is database


def test_nobody_reads_an_old_timeline_once_one_is_gone(connect):
    """A fan-out is in force at once: the first timeline that is missed means that all are gone."""
    users = 2000
    keys = [f"timeline:{user}:{page}" for user in range(users) for page in range(5)]
    cache, database, queue = filled(keys), Database(), MemoryQueue()
    database.followers[1] = range(users)
    it = connect(SocialMediaCacheInvalidation, cache, queue, database=database)
    queue.publish(feed("new_post", user_id=1))
    assert wait_until(lambda: keys[-1] not in cache)
    assert not any(key in cache for key in keys)
    assert wait_until(lambda: it.event_stats().removed > 0)
