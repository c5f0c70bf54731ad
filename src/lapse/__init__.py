"""lapse: a cache whose subject is invalidation.

    from lapse import TTLCache

    cache = TTLCache(default_ttl=60)
    cache["user:1"] = "Ada"
    cache.get("user:1")

`import lapse` imports the standard library and the native extension, nothing else.
"""

from typing import TYPE_CHECKING, Any

from lapse._core import Lease, ManualClock, escape
from lapse.caches import CacheStats, ProbabilisticTTLCache, SlidingTTLCache, TTLCache

if TYPE_CHECKING:
    from lapse.flight import LoadCycleError as LoadCycleError
    from lapse.invalidation.message import Invalidation as Invalidation
    from lapse.invalidation.queue import OptimizedInvalidation as OptimizedInvalidation
    from lapse.loading.cached import cached as cached
    from lapse.loading.lru import cache as cache
    from lapse.loading.lru import lru_cache as lru_cache
    from lapse.loading.sources import MappingSource as MappingSource
    from lapse.loading.sources import SQLiteSource as SQLiteSource
    from lapse.loading.versioned import VersionBasedInvalidation as VersionBasedInvalidation
    from lapse.loading.write_through import WriteThroughInvalidation as WriteThroughInvalidation

__all__ = [
    "CacheStats",
    "Invalidation",
    "Lease",
    "LoadCycleError",
    "ManualClock",
    "MappingSource",
    "OptimizedInvalidation",
    "ProbabilisticTTLCache",
    "SQLiteSource",
    "SlidingTTLCache",
    "TTLCache",
    "VersionBasedInvalidation",
    "WriteThroughInvalidation",
    "cache",
    "cached",
    "escape",
    "lru_cache",
]
__version__ = "0.1.0"

#: Names that are imported when they are first asked for, and from where.
_LATER = {
    "Invalidation": "lapse.invalidation.message",
    "OptimizedInvalidation": "lapse.invalidation.queue",
    "LoadCycleError": "lapse.flight",
    "MappingSource": "lapse.loading.sources",
    "SQLiteSource": "lapse.loading.sources",
    "VersionBasedInvalidation": "lapse.loading.versioned",
    "WriteThroughInvalidation": "lapse.loading.write_through",
    "cache": "lapse.loading.lru",
    "cached": "lapse.loading.cached",
    "lru_cache": "lapse.loading.lru",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'lapse' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
