"""AnalyticsCacheInvalidation: dashboards over metrics that change all the time.

    {"type": "metric_update", "metric_name": "cpu", "time_range": "1h", "aggregation_type": "avg"}

    metric:{name}:{range}              the values of a metric
    agg:{name}:{aggregation}:{range}   an aggregation of them
    dashboard:{id}                     what shows some of it

An update that names no aggregation is about all of them; one that names no range about all ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lapse.invalidation.rules import Event, InvalidationRules, Rule, field_of
from lapse.scenarios.base import Scenario

__all__ = ["AnalyticsCacheInvalidation", "analytics_rules"]

ONE_RANGE = ("agg:{metric_name}:*:{time_range?}",)
ALL_RANGES = ("metric:{metric_name}:*", "agg:{metric_name}:*")


def analytics_rules(get_dashboard_metrics: Callable[[Any], Iterable[Any]]) -> InvalidationRules:
    """What each event makes outdated; `get_dashboard_metrics(id)` answers the metrics it shows."""

    def metrics(event: Event) -> Iterable[Any]:
        return get_dashboard_metrics(field_of(event, "dashboard_id"))

    return InvalidationRules(
        Rule(
            "metric_update",
            keys=[
                "metric:{metric_name}:{time_range?}",
                "agg:{metric_name}:{aggregation_type?}:{time_range?}",
            ],
            patterns=["dashboard:*"],
        ),
        Rule("metric_update", {"aggregation_type": None}, patterns=ONE_RANGE),
        Rule("metric_update", {"time_range": None}, patterns=ALL_RANGES),
        Rule(
            "invalidate_metric",
            keys=["metric:{metric_name}:{time_range?}"], patterns=[*ONE_RANGE, "dashboard:*"],
        ),
        Rule("invalidate_metric", {"time_range": None}, patterns=ALL_RANGES),
        Rule(
            "invalidate_dashboard",
            keys=["dashboard:{dashboard_id}"], patterns=ALL_RANGES, each=("metric_name", metrics),
        ),
    )  # fmt: skip


class AnalyticsCacheInvalidation(Scenario):
    """Keeps a cache of metrics and dashboards true.

    Args:
        cache, message_queue: as `Scenario` takes them.
        time_series_db: anything with `get_dashboard_metrics(dashboard_id)`, an iterable of names.
        rules: instead of `analytics_rules(time_series_db.get_dashboard_metrics)`.
        options: as `Scenario` takes them: start, on_resync, soft_ttl, on_alert, name and so on.
    """

    default_name = "analytics"

    def __init__(
        self,
        cache: Any,
        time_series_db: Any,
        message_queue: Any,
        *,
        rules: InvalidationRules | None = None,
        **options: Any,
    ) -> None:
        self.time_series_db = self.database = time_series_db
        if rules is None:
            rules = analytics_rules(lambda each: time_series_db.get_dashboard_metrics(each))
        super().__init__(cache, message_queue, rules, **options)

    def invalidate_metric(self, metric_name: Any, time_range: Any = None) -> int:
        """A metric goes, or one range of it, here alone; how many entries went."""
        return self.apply_event(
            {"type": "invalidate_metric", "metric_name": metric_name, "time_range": time_range}
        )

    def invalidate_dashboard(self, dashboard_id: Any) -> int:
        """A dashboard goes, with the metrics that it shows, here alone; how many entries went."""
        return self.apply_event({"type": "invalidate_dashboard", "dashboard_id": dashboard_id})
