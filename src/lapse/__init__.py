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
    from lapse.invalidation.message import Invalidation as Invalidation
    from lapse.invalidation.queue import OptimizedInvalidation as OptimizedInvalidation

__all__ = [
    "CacheStats",
    "Invalidation",
    "Lease",
    "ManualClock",
    "OptimizedInvalidation",
    "ProbabilisticTTLCache",
    "SlidingTTLCache",
    "TTLCache",
    "escape",
]
__version__ = "0.1.0"

#: Names that are imported when they are first asked for, and from where.
_LATER = {
    "Invalidation": "lapse.invalidation.message",
    "OptimizedInvalidation": "lapse.invalidation.queue",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'lapse' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
