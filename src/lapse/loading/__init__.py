"""Loading: functions whose results are kept, and caches in front of a source of data.

cached          @cached: functions, coroutine functions, methods
lru             lru_cache and cache, as in functools
keys            how the arguments of a call become one key
sources         where data comes from: a mapping, a table of SQLite
write_through   the source first, then the cache
versioned       entries that are as new as their version in the source
lazy            entries that are marked, and loaded anew when they are asked for
lazy_marks      the marks; lazy_stamps: what is known not to be marked; lazy_walker: the thread
                that removes what nobody asks for
backed          what write_through, versioned and lazy have in common
"""
