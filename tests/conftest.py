"""Fixtures shared by every test: a clock moved by hand, and the three kinds of cache on it."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells have it for what runs behind them
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests interrupt their children
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("contract", "contract_time", "support")

settings.register_profile("slow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow")  # as a machine may be

import lapse  # noqa: E402
from parallel import prepare  # noqa: E402
from support import FREE_THREADED, KINDS, cache_maker  # noqa: E402


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What pytest-run-parallel needs, if it is asked for."""
    prepare(config, items)


def pytest_sessionfinish() -> None:
    """A package that brings the GIL back would have a free-threaded run prove nothing."""
    if FREE_THREADED and sys._is_gil_enabled():  # type: ignore[attr-defined]
        pytest.exit("the GIL is on: this was no run without it", returncode=1)


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """Many tests collect garbage: let them not look at all that pytest and the imports keep."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def clock() -> lapse.ManualClock:
    """A clock at 1,000 seconds that only `advance` moves."""
    return lapse.ManualClock(1000.0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of one of the three kinds of cache."""
    return request.param


@pytest.fixture
def make(kind: str, clock: lapse.ManualClock) -> Callable[..., Any]:
    """Makes native caches of each kind; expiry ahead of time is off."""
    return cache_maker(KINDS[kind][0], clock, KINDS[kind][1])


@pytest.fixture
def cache(make: Callable[..., Any]) -> Any:
    """An empty native cache of each kind: ttl 10 seconds, manual clock, no sweeping thread."""
    return make()
