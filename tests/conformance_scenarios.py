"""Rows of the scenarios: what each message and method removes, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conformance import Database, Queue, Recorder, has_defaults, ours, row
from support import wait_until

# --- Scenarios ---

SHOP, FEED, METRICS = (
    "EcommerceCacheInvalidation", "SocialMediaCacheInvalidation", "AnalyticsCacheInvalidation",
)  # fmt: skip
LISTS = {"pattern search:*", "pattern recommendations:*"}


def scenario(name: str, database: str) -> None:
    """The rows that the scenarios share."""

    @row(name, f"(cache, {database}, message_queue), which starts it")
    def constructor() -> None:
        has_defaults(ours(name), "cache", database, "message_queue")
        with ours(name)(Recorder(), held := Database(), Queue()) as it:
            assert getattr(it, database) is it.database is held
            assert it.receiver.running

    @row(name, "start_invalidation_processing()")
    def start_invalidation_processing() -> None:
        with ours(name)(Recorder(), Database(), Queue({"type": "clear_all"}), start=False) as it:
            it.start_invalidation_processing()
            assert wait_until(lambda: it.cache.asked == {"everything"})


def event(name: str, asked: set[str], **message: Any) -> None:
    """A row for one message: what goes, exactly."""

    @row(name, f"message {message}")
    def is_applied() -> None:
        with ours(name)(Recorder(), Database(), Queue(message)) as it:
            assert wait_until(lambda: it.cache.asked == asked), it.cache.asked


def method(name: str, surface: str, asked: set[str], call: Callable[[Any], object]) -> None:
    """A row for one method: what goes, exactly."""

    @row(name, surface)
    def is_applied() -> None:
        with ours(name)(Recorder(), Database(), Queue(), start=False) as it:
            call(it)
            assert it.cache.asked == asked


scenario(SHOP, "database")
for update, keys in [
    ("price_change", {"product:7:price", "product:7:details"}),
    ("inventory_change", {"product:7:inventory", "product:7:availability"}),
    ("description_change", {"product:7:details", "product:7:description"}),
    ("anything else", set()),
]:
    event(SHOP, LISTS | keys, type="product_update", product_id=7, update_type=update)
event(
    SHOP, LISTS | {"pattern category:toys:*", "pattern category:games:*"},
    type="product_update", product_id=7, update_type="category_change", old_category="toys",
    new_category="games",
)  # fmt: skip
event(
    SHOP, LISTS | {"pattern category:toys:*"},
    type="product_update", product_id=7, update_type="category_change", old_category="toys",
)  # fmt: skip
method(
    SHOP, "invalidate_product(product_id)",
    LISTS | {"pattern product:7:*", "pattern category:*"}, lambda it: it.invalidate_product(7),
)  # fmt: skip
method(
    SHOP, "invalidate_category(category_id)",
    LISTS | {"pattern category:toys:*"}, lambda it: it.invalidate_category("toys"),
)  # fmt: skip

scenario(FEED, "database")
event(
    FEED, {"pattern timeline:7:*", "pattern timeline:8:*", "pattern timeline:9:*"},
    type="feed_update", update_type="new_post", user_id=7, post_id=5,
)  # fmt: skip
for update in ("post_update", "post_delete"):
    event(
        FEED, {"post:5", "pattern timeline:*"},
        type="feed_update", update_type=update, user_id=7, post_id=5,
    )  # fmt: skip
for update in ("user_follow", "user_unfollow"):
    event(
        FEED, {"pattern timeline:3:*"},
        type="feed_update", update_type=update, follower_id=3, following_id=7,
    )  # fmt: skip
method(
    FEED, "invalidate_user_timeline(user_id)",
    {"pattern timeline:7:*"}, lambda it: it.invalidate_user_timeline(7),
)  # fmt: skip
method(
    FEED, "invalidate_post(post_id)",
    {"post:5", "pattern timeline:*"}, lambda it: it.invalidate_post(5),
)  # fmt: skip

scenario(METRICS, "time_series_db")
event(
    METRICS, {"metric:cpu:1h", "agg:cpu:avg:1h", "pattern dashboard:*"},
    type="metric_update", metric_name="cpu", time_range="1h", aggregation_type="avg",
)  # fmt: skip
event(
    METRICS, {"metric:cpu:1h", "pattern agg:cpu:*:1h", "pattern dashboard:*"},
    type="metric_update", metric_name="cpu", time_range="1h",
)  # fmt: skip
method(
    METRICS, "invalidate_metric(metric_name)",
    {"pattern metric:cpu:*", "pattern agg:cpu:*", "pattern dashboard:*"},
    lambda it: it.invalidate_metric("cpu"),
)  # fmt: skip
method(
    METRICS, "invalidate_metric(metric_name, time_range)",
    {"metric:cpu:1h", "pattern agg:cpu:*:1h", "pattern dashboard:*"},
    lambda it: it.invalidate_metric("cpu", "1h"),
)  # fmt: skip
method(
    METRICS, "invalidate_dashboard(dashboard_id)",
    {"dashboard:1", "pattern metric:cpu:*", "pattern agg:cpu:*", "pattern metric:mem:*",
     "pattern agg:mem:*"},
    lambda it: it.invalidate_dashboard(1),
)  # fmt: skip
