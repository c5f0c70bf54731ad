"""The monitoring of the demo: metrics, their aggregates, dashboards."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from lapse.demo.origin import Origin, Reading, Writing
from lapse.demo.popularity import Popularity, zipf
from lapse.demo.world import World
from lapse.scenarios.analytics import AnalyticsCacheInvalidation
from lapse.scenarios.base import Scenario
from lapse.sources.memory import MemoryQueue

__all__ = ["Analytics"]


class Analytics(World):
    """Samples that arrive all the time, and dashboards that show them."""

    name = "analytics"
    about = "60 metrics over 3 time ranges, on 20 dashboards"
    schema = """
        CREATE TABLE points (
            id TEXT PRIMARY KEY, metric TEXT, range TEXT, count INTEGER, total INTEGER,
            least INTEGER, most INTEGER, version INTEGER
        );
        CREATE TABLE shown (dashboard INTEGER, metric TEXT);
    """
    tables = ("points",)
    pause = 0.02
    metrics, dashboards, shown = 60, 20, 4
    ranges = ("1m", "1h", "1d")

    def __init__(self) -> None:
        names = [self._metric(number) for number in range(self.metrics)]
        aggregates = [f"agg:{name}:{each}" for name in names for each in ("avg:1h", "max:1d")]
        self.popularity = Popularity(
            [
                (0.5, [f"metric:{name}:{each}" for name in names for each in self.ranges]),
                (0.3, aggregates),
                (0.2, [f"dashboard:{id}" for id in range(self.dashboards)]),
            ]
        )

    def _metric(self, number: int) -> str:
        return f"host{number // 3}.{('cpu', 'memory', 'disk')[number % 3]}"

    def fill(self, writing: Writing) -> None:
        rng = random.Random(self.name)
        names = [self._metric(number) for number in range(self.metrics)]
        for name in names:
            for each in self.ranges:
                zeros = dict.fromkeys(("count", "total", "least", "most"), 0)
                writing.insert("points", id=f"{name}:{each}", metric=name, range=each, **zeros)
        for dashboard in range(self.dashboards):
            for name in rng.sample(names, self.shown):
                writing.run("INSERT INTO shown VALUES (?, ?)", dashboard, name)

    def load(self, reading: Reading, key: str) -> Any:
        family, name, *rest = key.split(":")
        if family == "metric":
            return reading.get("points", f"{name}:{rest[0]}")["total"]
        if family == "agg":
            point = reading.get("points", f"{name}:{rest[1]}")
            return point["most"] if rest[0] == "max" else point["total"] / max(1, point["count"])
        wanted = "SELECT metric FROM shown WHERE dashboard = ?"
        points = reading.find("points", f"range = '1h' AND metric IN ({wanted})", int(name))
        return {point["metric"]: point["total"] for point in points}

    def change(self, writing: Writing, rng: random.Random) -> None:
        """A sample arrives, and counts in every range."""
        name = self._metric(zipf(rng, self.metrics) - 1)
        sample = rng.randint(0, 100)
        for each in self.ranges:
            point = writing.get("points", f"{name}:{each}")
            writing.update(
                "points", point, count=point["count"] + 1, total=point["total"] + sample,
                least=min(point["least"], sample), most=max(point["most"], sample),
            )  # fmt: skip

    def scenario(self, cache: Any, origin: Origin) -> Scenario:
        return AnalyticsCacheInvalidation(cache, None, MemoryQueue(), start=False)

    def event(self, change: Mapping[str, Any]) -> dict[str, Any] | None:
        point = change["new"]
        names = {"metric_name": point["metric"], "time_range": point["range"]}
        return {"type": "metric_update", **names}
