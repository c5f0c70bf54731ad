"""lapse: a cache whose subject is invalidation.

    from lapse import TTLCache

    cache = TTLCache(default_ttl=60)
    cache["user:1"] = "Ada"
    cache.get("user:1")

`import lapse` imports the standard library and the native extension, nothing else. What stands on
top of the caches is imported when it is first asked for; some of it needs an extra, and says which.
"""

from typing import TYPE_CHECKING, Any

from lapse._core import Lease, ManualClock, escape
from lapse.caches import CacheStats, ProbabilisticTTLCache, SlidingTTLCache, TTLCache

if TYPE_CHECKING:
    from lapse.distributed.broadcast import BroadcastInvalidation as BroadcastInvalidation
    from lapse.distributed.consistent_hash import ConsistentHash as ConsistentHash
    from lapse.distributed.consistent_hash import (
        ConsistentHashInvalidation as ConsistentHashInvalidation,
    )
    from lapse.distributed.consistent_hash import NodesError as NodesError
    from lapse.distributed.kombu import KombuBroadcaster as KombuBroadcaster
    from lapse.distributed.local import LocalBroadcaster as LocalBroadcaster
    from lapse.distributed.memory import MemoryBroadcaster as MemoryBroadcaster
    from lapse.flight import LoadCycleError as LoadCycleError
    from lapse.invalidation.alerts import Alert as Alert
    from lapse.invalidation.message import Invalidation as Invalidation
    from lapse.invalidation.queue import OptimizedInvalidation as OptimizedInvalidation
    from lapse.invalidation.rules import InvalidationRules as InvalidationRules
    from lapse.invalidation.rules import Rule as Rule
    from lapse.invalidation.rules import RuleError as RuleError
    from lapse.invalidation.source import Batch as Batch
    from lapse.invalidation.source import Resync as Resync
    from lapse.invalidation.source import Source as Source
    from lapse.loading.cached import cached as cached
    from lapse.loading.lazy import LazyInvalidation as LazyInvalidation
    from lapse.loading.lru import cache as cache
    from lapse.loading.lru import lru_cache as lru_cache
    from lapse.loading.sources import MappingSource as MappingSource
    from lapse.loading.sources import SQLiteSource as SQLiteSource
    from lapse.loading.versioned import VersionBasedInvalidation as VersionBasedInvalidation
    from lapse.loading.write_through import WriteThroughInvalidation as WriteThroughInvalidation
    from lapse.scenarios.analytics import AnalyticsCacheInvalidation as AnalyticsCacheInvalidation
    from lapse.scenarios.ecommerce import EcommerceCacheInvalidation as EcommerceCacheInvalidation
    from lapse.scenarios.social import SocialMediaCacheInvalidation as SocialMediaCacheInvalidation
    from lapse.sources.database import DatabaseChangeInvalidation as DatabaseChangeInvalidation
    from lapse.sources.kombu import KombuQueue as KombuQueue
    from lapse.sources.memory import MemoryQueue as MemoryQueue
    from lapse.sources.message_queue import MessageQueueInvalidation as MessageQueueInvalidation
    from lapse.sources.sqlite import SQLiteChanges as SQLiteChanges
    from lapse.web.admin import AdministrativeInvalidation as AdministrativeInvalidation
    from lapse.web.api import APIInvalidation as APIInvalidation
    from lapse.web.webhook import WebhookInvalidation as WebhookInvalidation

__all__ = [
    "APIInvalidation",
    "AdministrativeInvalidation",
    "Alert",
    "AnalyticsCacheInvalidation",
    "Batch",
    "BroadcastInvalidation",
    "CacheStats",
    "ConsistentHash",
    "ConsistentHashInvalidation",
    "DatabaseChangeInvalidation",
    "EcommerceCacheInvalidation",
    "Invalidation",
    "InvalidationRules",
    "KombuBroadcaster",
    "KombuQueue",
    "LazyInvalidation",
    "Lease",
    "LoadCycleError",
    "LocalBroadcaster",
    "ManualClock",
    "MappingSource",
    "MemoryBroadcaster",
    "MemoryQueue",
    "MessageQueueInvalidation",
    "NodesError",
    "OptimizedInvalidation",
    "ProbabilisticTTLCache",
    "Resync",
    "Rule",
    "RuleError",
    "SQLiteChanges",
    "SQLiteSource",
    "SlidingTTLCache",
    "SocialMediaCacheInvalidation",
    "Source",
    "TTLCache",
    "VersionBasedInvalidation",
    "WebhookInvalidation",
    "WriteThroughInvalidation",
    "cache",
    "cached",
    "escape",
    "lru_cache",
]
__version__ = "0.1.0"

#: Names that are imported when they are first asked for, by the module that has them.
_LATER: dict[str, tuple[str, ...]] = {
    "lapse.flight": ("LoadCycleError",),
    "lapse.invalidation.alerts": ("Alert",),
    "lapse.invalidation.message": ("Invalidation",),
    "lapse.invalidation.queue": ("OptimizedInvalidation",),
    "lapse.invalidation.rules": ("InvalidationRules", "Rule", "RuleError"),
    "lapse.invalidation.source": ("Batch", "Resync", "Source"),
    "lapse.loading.cached": ("cached",),
    "lapse.loading.lazy": ("LazyInvalidation",),
    "lapse.loading.lru": ("cache", "lru_cache"),
    "lapse.loading.sources": ("MappingSource", "SQLiteSource"),
    "lapse.loading.versioned": ("VersionBasedInvalidation",),
    "lapse.loading.write_through": ("WriteThroughInvalidation",),
    "lapse.sources.database": ("DatabaseChangeInvalidation",),
    "lapse.sources.kombu": ("KombuQueue",),
    "lapse.sources.memory": ("MemoryQueue",),
    "lapse.sources.message_queue": ("MessageQueueInvalidation",),
    "lapse.sources.sqlite": ("SQLiteChanges",),
    "lapse.distributed.broadcast": ("BroadcastInvalidation",),
    "lapse.distributed.consistent_hash": (
        "ConsistentHash",
        "ConsistentHashInvalidation",
        "NodesError",
    ),
    "lapse.distributed.kombu": ("KombuBroadcaster",),
    "lapse.distributed.local": ("LocalBroadcaster",),
    "lapse.distributed.memory": ("MemoryBroadcaster",),
    "lapse.web.admin": ("AdministrativeInvalidation",),
    "lapse.web.api": ("APIInvalidation",),
    "lapse.web.webhook": ("WebhookInvalidation",),
    "lapse.scenarios.analytics": ("AnalyticsCacheInvalidation",),
    "lapse.scenarios.ecommerce": ("EcommerceCacheInvalidation",),
    "lapse.scenarios.social": ("SocialMediaCacheInvalidation",),
}
_MODULE_OF = {name: module for module, names in _LATER.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'lapse' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
