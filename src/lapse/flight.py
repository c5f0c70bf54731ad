"""Single-flight loading."""

from __future__ import annotations


class Flights:
    def load(self, cache, key, loader, ttl, tags, timeout):
        lease = cache.lease(key, tags=tags)
        value = loader(key)
        cache.fill(lease, value, ttl)
        return value
