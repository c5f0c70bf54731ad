"""Loading: functions whose results are kept, and caches in front of a source of data.

cached          @cached: functions, coroutine functions, methods
lru             lru_cache and cache, as in functools
keys            how the arguments of a call become one key
sources         where data comes from: a mapping, a table of SQLite
write_through   the source first, then the cache
versioned       entries that are as new as their version in the source
backed          what the last two have in common
"""
