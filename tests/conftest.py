"""Fixtures shared by every test: a clock moved by hand, and the three kinds of cache on it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("contract", "contract_time", "support")

import lapse  # noqa: E402
from support import KINDS, cache_maker  # noqa: E402


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
