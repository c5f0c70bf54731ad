"""The reference's classes, method by method: what it has, ours has, and does.

One row a method, route, message type or key pattern (conformance_*.py). Each is a test of its own;
the table of all of them is printed when they have been run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

MODULES = [f"conformance_{part}" for part in ("caches", "messages", "http", "scenarios")]
pytest.register_assert_rewrite("conformance", *MODULES)

import conformance_caches  # noqa: E402, F401  each module enters its rows
import conformance_http  # noqa: E402, F401
import conformance_messages  # noqa: E402, F401
import conformance_scenarios  # noqa: E402, F401
from conformance import ROWS, Row  # noqa: E402

#: What has become of the rows that were run, by name.
marks: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print which rows hold, once all have been run."""
    yield
    plugins = request.config.pluginmanager
    reporter = plugins.get_plugin("terminalreporter")
    with plugins.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.ensure_newline()
        for each in ROWS:
            mark = marks.get(name_of(each), "not run")
            reporter.write_line(f"{mark:7} {each.owner:28} {each.surface}")
        share = list(marks.values()).count("ok") / len(ROWS)
        reporter.write_line(f"{share:.1%} of {len(ROWS)} rows of the reference")


def name_of(each: Row) -> str:
    """The name of a row, as a test."""
    return f"{each.owner} {each.surface}"


@pytest.mark.parametrize("each", ROWS, ids=name_of)
def test_conformance(each: Row) -> None:
    """A method, route, message type or key pattern of the reference is there, and does its part."""
    marks[name_of(each)] = "FAILED"
    each.check()
    marks[name_of(each)] = "ok"


def test_every_class_has_rows() -> None:
    """All classes of the reference are in the table, and no row stands twice."""
    assert {each.owner for each in ROWS} == {
        "TTLCache", "SlidingTTLCache", "ProbabilisticTTLCache", "DatabaseChangeInvalidation",
        "MessageQueueInvalidation", "WebhookInvalidation", "AdministrativeInvalidation",
        "APIInvalidation", "BroadcastInvalidation", "ConsistentHash", "ConsistentHashInvalidation",
        "LazyInvalidation", "WriteThroughInvalidation", "VersionBasedInvalidation",
        "OptimizedInvalidation", "EcommerceCacheInvalidation", "SocialMediaCacheInvalidation",
        "AnalyticsCacheInvalidation",
    }  # fmt: skip
    assert len({name_of(each) for each in ROWS}) == len(ROWS)
