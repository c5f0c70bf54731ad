"""lapse: a cache whose subject is invalidation.

    from lapse import TTLCache

    cache = TTLCache(default_ttl=60)
    cache["user:1"] = "Ada"
    cache.get("user:1")

`import lapse` imports the standard library and the native extension, nothing else.
"""

from lapse._core import ManualClock
from lapse.caches import CacheStats, ProbabilisticTTLCache, SlidingTTLCache, TTLCache

__all__ = ["CacheStats", "ManualClock", "ProbabilisticTTLCache", "SlidingTTLCache", "TTLCache"]
__version__ = "0.1.0"
