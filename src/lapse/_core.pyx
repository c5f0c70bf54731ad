# cython: language_level=3, binding=False, boundscheck=False, wraparound=False
# cython: freethreading_compatible=True, always_allow_keywords=True, auto_pickle=False
"""The binding: Python objects in, the native table (csrc/) behind, Python exceptions out.

Layer contract
    1. Every method has one rhythm: check that the cache is open, hash the key, call C, turn the
       status into a result or an exception. No policy, no I/O, no loop that C could do.
    2. A key is hashed before the table is entered; what a call replaced or removed is given up after
       it has returned. So `__hash__`, `__eq__` and `__del__` may use the same cache.
    3. `table` is NULL once the cache is closed; `owned` stays until the object dies, so that a call
       that is under way when another thread closes the cache still has its table.
    4. No Python attribute of a cache is assigned again after `_open()`.

Every single-key method is atomic. Methods that take many keys are atomic key by key. The fast
entries of _fast.h answer the commonest calls before they come here.
"""

import os
import sys
from types import MethodType

cimport cython
from cpython.datetime cimport import_datetime
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.math cimport llrint
from libc.string cimport memset
from libc.stdint cimport INT64_MAX, int64_t, uint64_t

from lapse._lapse cimport *
from lapse._ops cimport *
from lapse._select cimport *
from lapse._times cimport lifetime

FIXED = LAPSE_FIXED
SLIDING = LAPSE_SLIDING
PROBABILISTIC = LAPSE_PROBABILISTIC

# A caller's clock may start anywhere, below zero too: its readings are moved into the middle of the
# positive range, and held inside it.
cdef int64_t ORIGIN = <int64_t>1 << 61
cdef double FARTHEST = 2.3e18  # nanoseconds, about 73 years: just inside ORIGIN
cdef tuple CAUSES = ("replaced", "deleted", "pattern", "tag", "cleared", "expired", "early", "evicted")
cdef tuple NO_TAGS = ()
cdef dict ESCAPES = {ord(special): "\\" + special for special in "*?[]\\"}
cdef object MISSING = object()
absent = MISSING  # what stands for "no value" between here and what loads values
cdef bint LOCKED_READS = os.environ.get("LAPSE_FORCE_LOCKED") == "1"


cdef extern from "Python.h":
    str PyUnicode_FromObject(object text)


import_datetime()

# --- Times -------------------------------------------------------------------------------------

cdef int64_t reading(object clock) except? -3:
    """A caller's clock as nanoseconds, moved by ORIGIN."""
    if isinstance(clock, ManualClock):
        return ORIGIN + (<ManualClock>clock).now()
    cdef double seconds = clock()
    if seconds != seconds:
        raise ValueError(f"the clock returned {seconds!r}, not a number of seconds")
    return ORIGIN + <int64_t>llrint(max(-FARTHEST, min(FARTHEST, seconds * 1e9)))


cdef class ManualClock:
    """A monotonic clock that moves only when told to: for tests and replays. Thread-safe.

    Calling it gives seconds (float). Inside it counts whole nanoseconds.
    """

    cdef uint64_t nanoseconds  # an int64_t, by its bits

    def __init__(self, start=0.0):
        STORE(&self.nanoseconds, <uint64_t>nanoseconds_of(start))

    cdef int64_t now(self) noexcept:
        return <int64_t>RELAXED(&self.nanoseconds)

    def __call__(self):
        return self.now() / 1e9

    def advance(self, seconds):
        """Move by `seconds` (float; negative moves backwards). ValueError beyond about 73 years."""
        cdef int64_t here, there, by = nanoseconds_of(seconds)
        while True:
            here = self.now()
            there = here + by
            if not -FARTHEST < there < FARTHEST:
                raise ValueError(f"the clock cannot go as far as {there / 1e9!r} seconds")
            if COMPARE_SWAP64(&self.nanoseconds, <uint64_t>here, <uint64_t>there):
                return

    def __repr__(self):
        return f"ManualClock({self.now() / 1e9!r})"


cdef int64_t grace_of(object seconds) except? -2:
    """A stale_ttl as nanoseconds: at most those from here to where every clock ends."""
    cdef int64_t nanoseconds = lifetime(seconds)
    return ORIGIN if nanoseconds == LAPSE_NEVER or nanoseconds > ORIGIN else nanoseconds


cdef int64_t nanoseconds_of(object seconds) except? -3:
    cdef double s = seconds
    if not -FARTHEST < s * 1e9 < FARTHEST:
        raise ValueError(f"not a usable number of seconds: {seconds!r}")
    return <int64_t>llrint(s * 1e9)


# --- Helpers -----------------------------------------------------------------------------------

cdef lapse_table *opened(Cache self) except NULL:
    cdef lapse_table *t = fast_table(self)
    if t == NULL:
        raise RuntimeError(f"{type(self).__name__} is closed")
    return t


cdef inline int64_t now_of(Cache self) except? -3:
    return LAPSE_NATIVE if self._clock is None else reading(self._clock)


cdef inline int64_t kept_since(Cache self) except? -3:
    """As the time of a listing: entries within their grace count as live."""
    return lapse_kept_since(opened(self), now_of(self))


cdef void announce(void *context, lapse_item *items, size_t n, lapse_cause cause) noexcept:
    """The table's observer: tell the cache's listener, which does not raise, of entries that have left."""
    cdef Cache self = <Cache>context
    cdef size_t i
    try:
        if self._listener is not None:
            self._listener([(<object>items[i].key, <object>items[i].value, CAUSES[<int>cause]) for i in range(n)])
    except MemoryError:
        self._listener.lost(n)
    finally:
        lapse_release(items, n)


cdef int weigh(void *context, PyObject *key, PyObject *value, uint32_t *weight) except -1:
    """The table's weigher: ask the cache's own."""
    answer = (<Cache>context)._options["weigher"](<object>key, <object>value)
    if not isinstance(answer, int):
        raise TypeError(f"weigher must return an int, not {answer!r}")
    if not 0 <= answer < 1 << 32:
        raise ValueError(f"weigher must return an int from 0 to 2**32 - 1, not {answer!r}")
    weight[0] = answer
    return 0


# --- The cache ---------------------------------------------------------------------------------

cdef class Cache:
    """A native table of expiring entries: the base of the public caches in caches.py.

    Not for direct use: a subclass calls `_open(mode, options)` once.
    """

    cdef lapse_table *table
    cdef lapse_table *direct
    cdef lapse_table *owned
    cdef lapse_table *quick
    cdef object _clock, _listener, _flights
    cdef readonly dict _options
    cdef readonly int _mode
    cdef uint64_t pop_cursor
    cdef object __weakref__

    def _open(self, int mode, dict options, announcer=None, flights=None):
        """Make the table. `options` are the constructor's arguments by name; `announcer([(key, value, cause), ...])`
        is called when entries or values have left, and must not raise; `flights` load what is missing."""
        if self.owned != NULL:
            raise RuntimeError(f"{type(self).__name__} is initialised already")
        cdef lapse_config config
        config.mode = <lapse_mode>mode
        default_ttl, max_lifetime = options["default_ttl"], options.get("max_lifetime")
        config.default_ttl = LAPSE_NEVER if default_ttl is None else lifetime(default_ttl)
        config.max_lifetime = LAPSE_NEVER if max_lifetime is None else lifetime(max_lifetime)
        config.early_factor = options.get("early_expiry_factor", 0.0)
        config.beta = options.get("beta", 1.0)
        config.grace = 0 if options["stale_ttl"] is None else grace_of(options["stale_ttl"])
        config.jitter = options["jitter"]
        config.seed = options["seed"] & 0xFFFFFFFFFFFFFFFF
        config.own_clock = options["clock"] is not None
        config.locked_reads = LOCKED_READS
        config.quiesce = fast_quiesce
        maxsize = options["maxsize"]
        config.lru = maxsize is not None and options["policy"] == "lru"
        config.duel = maxsize is not None and not config.lru
        config.max_entries = maxsize or 0
        config.memory = NULL
        self._mode, self._options, self._clock = mode, options, options["clock"]
        self._listener, self._flights = announcer, flights
        config.weigher, config.observer, config.context = NULL, NULL, <void *>self
        if options["weigher"] is not None:
            config.weigher = weigh
        if announcer is not None:
            config.observer = announce
        self.owned = lapse_table_new(&config)
        if self.owned == NULL:
            raise MemoryError("lapse: no memory for a table")
        self.table = self.owned
        self.direct = NULL if config.own_clock or announcer is not None else self.owned
        self.quick = self.owned if lapse_is_quick(self.owned) else NULL

    def __dealloc__(self):
        cdef lapse_table *table = self.owned
        self.table = self.direct = self.quick = self.owned = NULL
        if table != NULL:
            lapse_table_free(table)

    # --- One key ---

    def get(self, key, default=None):
        """The value stored under `key`, or `default`. Atomic; no lock in the common case; O(1)."""
        return op_get(opened(self), key, now_of(self), default)

    def __getitem__(self, key):
        value = op_get(opened(self), key, now_of(self), MISSING)
        if value is MISSING:
            raise KeyError(key)
        return value

    def __contains__(self, key):
        return op_has(opened(self), key, now_of(self))

    def set(self, key, value, ttl=None, *, tags=NO_TAGS):
        """Store `value` under `key` for `ttl` seconds (None: the default ttl). Atomic; O(1) amortised.

        `tags` is an iterable of str by which the entry can be removed, until it is stored again. Raises
        ValueError for a wrong ttl, TypeError for an unhashable key or a tag that is no str.
        """
        cdef int64_t life = lifetime(ttl)
        cdef tag_args labels
        if tags is NO_TAGS:
            op_put(opened(self), key, <uint64_t>fast_hash(key), value, life, now_of(self))
            return
        try:
            tag_args_fill(&labels, tags)
            op_put_tagged(opened(self), key, <uint64_t>fast_hash(key), value, life, &labels.tags, now_of(self))
        finally:
            tag_args_drop(&labels)

    def __setitem__(self, key, value):
        op_put(opened(self), key, <uint64_t>fast_hash(key), value, LAPSE_DEFAULT, now_of(self))

    def add(self, key, value, ttl=None):
        """Store only if there is no live entry; True if it was stored. Atomic."""
        cdef int64_t life = lifetime(ttl)
        return op_put_new(opened(self), key, value, life, now_of(self), MISSING) is MISSING

    def setdefault(self, key, default=None):
        """The live value under `key`; if there is none, store `default` and return it. Atomic."""
        value = op_put_new(opened(self), key, default, LAPSE_DEFAULT, now_of(self), MISSING)
        return default if value is MISSING else value

    def incr(self, key, delta=1):
        """Add `delta` to the value under `key` (0 if absent) and return the sum. Atomic.

        An entry that was there keeps its deadline; a new one gets the default ttl.
        """
        while True:
            old = op_peek(opened(self), key, now_of(self), MISSING)
            new = 0 + delta if old is MISSING else old + delta
            if old is MISSING:
                stored = op_put_new(opened(self), key, new, LAPSE_DEFAULT, now_of(self), MISSING) is MISSING
            else:
                stored = op_exchange(opened(self), key, old, new, now_of(self))
            if stored:
                return new

    def _stale(self, key, default):
        """The value of an entry whose deadline has passed, but not its grace, or `default`."""
        return op_stale(opened(self), key, now_of(self), default)

    def _look(self, key, default):
        """The live value or `default`; touches, draws and counts nothing."""
        return op_peek(opened(self), key, now_of(self), default)

    def touch(self, key, ttl=None):
        """Give a live entry `ttl` seconds (None: the default) from now; False if absent. Atomic."""
        cdef int64_t life = lifetime(ttl)
        return op_touch(opened(self), key, <uint64_t>fast_hash(key), life, now_of(self))

    def expires_in(self, key):
        """Seconds (float) until the entry expires; None if it never does. KeyError if absent."""
        cdef lapse_table *t = opened(self)
        cdef int64_t deadline = LAPSE_NEVER, at = lapse_now(t, now_of(self))
        if not op_deadline(t, key, at, &deadline):
            raise KeyError(key)
        return None if deadline == LAPSE_NEVER else (deadline - at) / 1e9

    def delete(self, key):
        """Remove `key`; True if it was live. Atomic; O(1)."""
        return op_delete(opened(self), key, now_of(self))

    def __delitem__(self, key):
        if not op_delete(opened(self), key, now_of(self)):
            raise KeyError(key)

    def pop(self, key, default=MISSING):
        """Remove `key` and return its value; `default`, or KeyError without one, if absent. Atomic."""
        value = op_pop(opened(self), key, <uint64_t>fast_hash(key), now_of(self), MISSING)
        if value is not MISSING:
            return value
        if default is MISSING:
            raise KeyError(key)
        return default

    def popitem(self):
        """Remove some live entry and return its (key, value). KeyError if the cache is empty. Atomic."""
        cdef lapse_item item
        cdef lapse_table *t = opened(self)
        cdef tuple pair = PyTuple_New(2)  # first: without memory nothing goes
        cdef uint64_t cursor = RELAXED(&self.pop_cursor)  # where to look first; any place is right
        cdef lapse_status status = lapse_pop_any(t, &cursor, now_of(self), &item)
        STORE(&self.pop_cursor, cursor)
        if status != LAPSE_OK:
            raise KeyError("popitem(): the cache is empty")
        Py_INCREF(<object>item.key)
        PyTuple_SET_ITEM(pair, 0, <object>item.key)
        Py_INCREF(<object>item.value)
        PyTuple_SET_ITEM(pair, 1, <object>item.value)
        lapse_farewell(t, &item, 1, LAPSE_DELETED)
        return pair

    # --- Many keys; atomic key by key, one clock reading ---

    def gather(self, keys, default=None):
        """A list of values aligned with `keys`, `default` where there is none.

        `keys` is any iterable of hashable keys; a one-dimensional NumPy integer array is read without
        making an int object of each element. Several times as fast as single reads.
        """
        cdef lapse_table *t = opened(self)
        cdef int64_t now = now_of(self)
        if not isinstance(keys, (list, tuple, bytes, bytearray, memoryview)):
            values = fast_gather_buffer(t, keys, now, default)
            if values is not NotImplemented:
                return values
        return fast_gather(t, keys, now, default)

    def get_many(self, keys):
        """A dict of those `keys` that are live, and their values."""
        cdef list wanted = list(keys)
        values = fast_gather(opened(self), wanted, now_of(self), MISSING)
        return {k: v for k, v in zip(wanted, values) if v is not MISSING}

    def set_many(self, items, ttl=None, *, tags=NO_TAGS):
        """Store every pair of a mapping, or of an iterable of (key, value), for `ttl` seconds; all of
        them bear `tags`."""
        cdef lapse_table *t = opened(self)
        cdef int64_t life = lifetime(ttl), now = lapse_now(t, now_of(self))
        cdef list pairs = list(items.items() if hasattr(items, "items") else items)
        cdef list keys = [key for key, _ in pairs]
        cdef uint64_t hashes[BLOCK]
        cdef tag_args labels
        cdef Py_ssize_t i
        try:
            tag_args_fill(&labels, tags)
            for i in range(len(keys)):
                if i % BLOCK == 0:
                    hash_block(t, keys, i, hashes)
                op_put_tagged(t, keys[i], hashes[i % BLOCK], pairs[i][1], life, &labels.tags, now)
        finally:
            tag_args_drop(&labels)

    def delete_many(self, keys):
        """Remove every one of `keys`; how many were live."""
        cdef lapse_table *t = opened(self)
        cdef int64_t now = lapse_now(t, now_of(self))
        cdef list wanted = list(keys)
        cdef uint64_t hashes[BLOCK]
        cdef Py_ssize_t i, gone = 0
        for i in range(len(wanted)):
            if i % BLOCK == 0:
                hash_block(t, wanted, i, hashes)
            gone += op_pop(t, wanted[i], hashes[i % BLOCK], now, MISSING) is not MISSING
        return gone

    def touch_many(self, keys, ttl=None):
        """touch() every one of `keys`; how many were live."""
        cdef lapse_table *t = opened(self)
        cdef int64_t life = lifetime(ttl), now = lapse_now(t, now_of(self))
        cdef list wanted = list(keys)
        cdef uint64_t hashes[BLOCK]
        cdef Py_ssize_t i, touched = 0
        for i in range(len(wanted)):
            if i % BLOCK == 0:
                hash_block(t, wanted, i, hashes)
            touched += op_touch(t, wanted[i], hashes[i % BLOCK], life, now)
        return touched

    # --- By pattern, by tag ---

    def delete_pattern(self, pattern):
        """Remove every key that a glob pattern matches; how many were live.

        `pattern` (str or bytes, at most 1,024 long) is in Redis's dialect: `*`, `?`, `[a-z]`, `[^a]`, and `\\`
        before a character that stands for itself; `escape()` writes such a `\\` where it is needed. It matches
        whole keys of its own type, never keys that are neither str nor bytes; without wildcards it is
        `delete()`. Every key that is there when the call begins and stays is gone when it returns; one
        that is stored meanwhile may stay; no load that began before the return is stored. Runs in
        bounded steps. Cost: `users:*` and all that begin so, what they match, after a first call that
        indexes the keys; others one look at every key. Raises TypeError, ValueError.
        """
        return erase_patterns(opened(self), [pattern], now_of(self))[0]

    def get_keys_matching_pattern(self, pattern):
        """A list of the live keys that a pattern matches, in no order; see delete_pattern()."""
        return keys_matching(opened(self), pattern, now_of(self))

    def delete_tag(self, tag):
        """Remove every entry that bears `tag` (a str, compared whole); how many were live.

        What delete_pattern() says of entries that come and go holds here too. Cost: what goes.
        """
        return erase_tag(opened(self), tag_name(tag), now_of(self))

    def tags(self, key):
        """The tags of a live entry as a frozenset; empty if there is no such entry."""
        return tags_of(opened(self), key, now_of(self))

    def invalidate_key(self, key):
        """delete(), under the name that the nodes of a distributed cache answer to."""
        return op_delete(opened(self), key, now_of(self))

    def invalidate_pattern(self, pattern):
        """delete_pattern(), under the name that the nodes of a distributed cache answer to."""
        return erase_patterns(opened(self), [pattern], now_of(self))[0]

    def invalidate_table(self, table):
        """Remove every key that begins with `table` (str or bytes) and a colon; how many were live."""
        return erase_patterns(opened(self), [table_pattern(table)], now_of(self))[0]

    def _invalidate_keys(self, keys):
        """Remove many keys, grouped by segment.

        Returns (bytearray, dict): a byte for each key, 1 if it was live; what was raised, by index.
        """
        return erase_keys(opened(self), list(keys), now_of(self))

    def _invalidate_patterns(self, patterns):
        """Remove what any of the patterns matches; counts for each, where one match counts.

        They take one pass, very many prefixes ("users:7:*") a walk of their own, which is in force at once.
        """
        return erase_patterns(opened(self), list(patterns), now_of(self))

    # --- By mark: what LazyInvalidation makes of the cache ---

    def _outdate_key(self, key):
        """Outdate the loads of `key` that are under way; its entry stays. O(1)."""
        lapse_outdate_key(opened(self), <PyObject *>key, <uint64_t>fast_hash(key))

    def _outdate_pattern(self, Pattern pattern not None):
        """Outdate the loads whose keys a compiled pattern matches. O(loads under way), in bounded steps."""
        outdate(opened(self), &pattern.native, None)

    def _outdate_tag(self, tag):
        """Outdate the loads that name a tag; the tag as an exact str. O(1)."""
        cdef str name = tag_name(tag)
        outdate(opened(self), NULL, name)
        return name

    def _outdate_all(self):
        """Outdate all loads. O(1)."""
        lapse_outdate_all(opened(self))

    def _look_kept(self, key, default):
        """_look() that finds entries within their grace, too."""
        return op_peek(opened(self), key, kept_since(self), default)

    def _kept(self):
        """An iterator of all keys whose entries are live or within their grace."""
        return Walk(self, KEYS, True)

    def _kept_matching(self, pattern):
        """A list of those keys that a pattern matches."""
        return keys_matching(opened(self), pattern, kept_since(self))

    def _kept_with_tag(self, tag):
        """A list of those keys whose entries bear `tag`."""
        return keys_bearing(opened(self), tag_name(tag), kept_since(self))

    def _kept_tags(self, key):
        """The tags of an entry that is live or within its grace."""
        return tags_of(opened(self), key, kept_since(self))

    def _drop(self, key, expected):
        """Remove `key` if its value is this very object; outdates no load. Was it live? Atomic."""
        return op_drop(opened(self), key, expected, now_of(self))

    # --- Loading ---

    def get_or_load(self, key, loader, ttl=None, *, tags=NO_TAGS, timeout=None, refresh=None):
        """The value under `key`; where there is none, `loader(key)`'s, which is stored for `ttl` seconds.

        One load of a key runs at a time. Callers that come while it runs wait for it, for at most `timeout`
        seconds (TimeoutError; None: as long as it takes), unless a change has outdated it meanwhile: they
        start a new one. What an outdated load brings goes to those who waited for it, and is not stored.
        An exception of the loader reaches every one of them; nothing is stored. A load that would wait
        for itself, directly or around several threads, raises lapse.LoadCycleError. Loads of different
        keys do not wait for each other. A hit costs little more than get().

        Where there is an old value, one that a probabilistic cache reloads ahead of time or one within
        `stale_ttl`, one caller reloads it and all others get it. `refresh` says where (None: as the cache
        has it): "caller", who waits; "thread" or "task", in the background, and the caller gets it too.
        """
        cdef bint ticket = False
        value = op_get_or_ticket(opened(self), key, now_of(self), MISSING, &ticket)
        if value is not MISSING and not ticket:
            return value
        return self._flights.load(self, key, loader, ttl, tags, timeout, refresh, value)

    def _load(self, key, loader, ttl=None, *, tags=NO_TAGS, timeout=None, refresh=None, old=MISSING):
        """get_or_load() of a key that has just been missed, or of which `old` is to be reloaded: the fast entry
        comes here."""
        return self._flights.load(self, key, loader, ttl, tags, timeout, refresh, old)

    def aget_or_load(self, key, loader, ttl=None, *, tags=NO_TAGS, timeout=None, refresh=None):
        """get_or_load() for coroutines, to be awaited: `loader(key)` returns an awaitable or a value.

        Loads are shared with other tasks, event loops and threads. A caller that is cancelled cancels nobody
        else, and the load only if nobody else waits for it.
        """
        cdef bint ticket = False
        value = op_get_or_ticket(opened(self), key, now_of(self), MISSING, &ticket)
        if value is not MISSING and not ticket:
            return Ready(value)
        return self._flights.aload(self, key, loader, ttl, tags, timeout, refresh, value)

    def load_many(self, keys, batch_loader, ttl=None, *, tags=NO_TAGS, timeout=None):
        """A dict of the values under `keys`; those that are missing are loaded by one call.

        `batch_loader(missing)` gets a list of keys and returns a mapping; a key that it leaves out is left out
        here too, and not stored. Keys that somebody is loading already are waited for.
        """
        wanted = list(dict.fromkeys(keys))
        found = self.get_many(wanted)
        if len(found) < len(wanted):
            missing = [key for key in wanted if key not in found]
            found.update(self._flights.load_many(self, missing, batch_loader, ttl, tags, timeout))
        return found

    def lease(self, key, *, tags=NO_TAGS):
        """Begin a load of `key`: a Lease, to be handed to fill() with what was loaded.

        A change that covers the key, or one of `tags`, outdates it. 65,536 leases may be out at a time; one
        more is given, but never stored. O(1).
        """
        return Lease(self, key, frozenset() if tags is NO_TAGS else tags)

    def fill(self, Lease lease not None, value, ttl=None, *, tags=NO_TAGS, bint change=False):
        """Store what was loaded under `lease`; False, and nothing is stored, if it is outdated.

        The entry bears the tags of the lease and `tags`. It is outdated if after the lease was taken the key
        was set, deleted, popped or incremented (deleting an absent key counts), a pattern that matches it or one of those tags was deleted, or the
        cache was cleared; and once it has been filled. With `change`, what is stored is new in the origin
        too: other leases of the key are outdated, as by set(). Atomic.
        """
        cdef lapse_table *t = opened(self)
        cdef int64_t life = lifetime(ttl)
        cdef tag_args labels
        if lease.cache is not self:
            raise ValueError("the lease is another cache's")
        try:
            tag_args_fill(&labels, tags)
            if lease.tags and labels.tags.n > 0:
                both = lease.tags.union(tag_names(&labels.tags))
                tag_args_drop(&labels)
                tag_args_fill(&labels, both)
            elif lease.tags:
                tag_args_fill(&labels, lease.tags)
            return op_fill(t, lease.native, lease.key, value, life, &labels.tags, change, now_of(self))
        finally:
            tag_args_drop(&labels)

    # --- The whole cache ---

    def __len__(self):
        return lapse_len(opened(self), now_of(self))

    def __iter__(self):
        return Walk(self, KEYS)

    def _walk(self, int kind):
        """An iterator of keys, values, items or whole entries, weakly consistent."""
        return Walk(self, kind)

    def expire(self, limit=None):
        """Remove up to `limit` expired entries (None: all) now; how many went. Bounded steps.

        When no more have expired, memory goes back to the system that the other entries do not need.
        """
        cdef lapse_table *t = opened(self)
        cdef int64_t now = lapse_now(t, now_of(self)), since = clock_precise()
        cdef Py_ssize_t left = INT64_MAX if limit is None else limit
        cdef Py_ssize_t gone = 0
        cdef lapse_item removed[STEP]
        cdef uint64_t cursor = 0
        cdef size_t n = 0
        cdef lapse_status status = LAPSE_MORE
        while status == LAPSE_MORE and gone < left:
            status = lapse_sweep(t, &cursor, now, left - gone, removed, &n)
            gone += n
            lapse_farewell(t, removed, n, LAPSE_BY_DEADLINE)
            let_others_run(&since)
        if status == LAPSE_OK:
            pack(t, False)
        return gone

    def _resize(self, uint64_t maxsize):
        """Change the bound of a bounded cache, and let what is too much go."""
        cdef lapse_table *t = opened(self)
        cdef int64_t since = clock_precise()
        if lapse_resize(t, maxsize) != LAPSE_OK:
            raise ValueError("a cache that was made without maxsize= cannot be resized")
        self._options["maxsize"] = maxsize
        while lapse_fit(t, now_of(self)) == LAPSE_MORE:
            let_others_run(&since)
        pack(t, True)

    def soft_clear(self, stale_ttl=None):
        """End the lives of all entries now, and outdate all loads under way; how many entries were live.

        For `stale_ttl` seconds (None: the cache's own stale_ttl, or 60) get_or_load() serves each of them
        on while one caller reloads it; every other method takes it for absent. Bounded steps.
        """
        cdef lapse_table *t = opened(self)
        if stale_ttl is None:
            stale_ttl = 60 if self._options["stale_ttl"] is None else self._options["stale_ttl"]
        cdef int64_t grace = grace_of(stale_ttl), at = lapse_now(t, now_of(self)), since = clock_precise()
        cdef uint64_t cursor = 0
        cdef size_t n = 0
        while lapse_soften(t, &cursor, at, at + grace, &n) == LAPSE_MORE:
            let_others_run(&since)
        return n

    def clear(self):
        """Remove everything: at once for every reader, then the values go in bounded steps."""
        self._clear()

    def _clear(self):
        """The same; how many entries were live."""
        cdef lapse_table *t = opened(self)
        cdef int64_t now = lapse_now(t, now_of(self))
        if lapse_detach(t) != LAPSE_OK:
            refuse(LAPSE_NO_MEMORY)
        return drain(t, now)

    def close(self):
        """Empty the cache for good: every later call but close() and repr() raises RuntimeError."""
        cdef lapse_table *t = fast_close(self)
        if t != NULL and lapse_detach(t) == LAPSE_OK:
            drain(t, lapse_now(t, now_of(self)))

    @property
    def clock(self):
        """The clock given to the constructor; None = the native one."""
        return self._clock

    @property
    def closed(self):
        """Has close() been called?"""
        return fast_table(self) == NULL

    def _entries(self):
        """Every live entry as (key, value, ns left | None, ttl, ns to the hard end | None, own ttl?, tags, cost)."""
        return list(Walk(self, ENTRIES))

    def _restore(self, entries, double elapsed=0.0):
        """Store what _entries() gave, each `elapsed` seconds older; what has expired is left out."""
        cdef lapse_table *t = opened(self)
        cdef int64_t at = lapse_now(t, now_of(self)), older = <int64_t>llrint(elapsed * 1e9)
        cdef lapse_item dates
        cdef tag_args labels
        for key, value, left, ttl, limit, own, tags, cost in entries:
            dates.ttl, dates.own_ttl, dates.cost = ttl, own, cost
            dates.deadline = LAPSE_NEVER if left is None else at + <int64_t>left - older
            dates.limit = LAPSE_NEVER if limit is None else at + <int64_t>limit - older
            if left is not None and dates.deadline <= at:
                continue
            try:
                tag_args_fill(&labels, tags)
                op_restore(t, key, value, &dates, &labels.tags, at)
            finally:
                tag_args_drop(&labels)

    def _counters(self):
        """The native counters by name."""
        cdef lapse_counters c
        cdef lapse_table *t = opened(self)
        lapse_counters_read(t, &c)
        return {
            "hits": c.hits, "misses": c.misses, "sets": c.sets, "deletes": c.deletes,
            "expirations": c.expirations, "early_expirations": c.early, "splits": c.splits,
            "merges": c.merges, "sweeps": c.sweeps, "segments": lapse_segments(t),
            "replaced": c.replaced, "pattern_deletes": c.by_pattern, "tag_deletes": c.by_tag,
            "cleared": c.cleared, "fenced_stores": c.fenced, "evictions": c.evictions,
            "refused": c.refused, "weight": lapse_weight(t), "early_refreshes": c.tickets, "stale_hits": c.stale,
            "bytes": lapse_bytes(t), "tracking_bytes": lapse_tracking_bytes(t),
            "listener_errors": 0 if self._listener is None else self._listener.errors,
        }

    def _after_fork(self):
        """In a forked child: no lock of the table is held, whatever it looks like, and a removal that another
        thread had begun in the parent ends with an empty cache."""
        if self.owned != NULL and lapse_after_fork(self.owned):
            drain(self.owned, lapse_now(self.owned, now_of(self)))

    def _check(self):
        """Walk every invariant of the native table; for tests, while nobody else uses the cache."""
        return bool(lapse_check(opened(self)))

    def __sizeof__(self):
        return object.__sizeof__(self) + (lapse_bytes(self.owned) if self.owned != NULL else 0)


cdef Py_ssize_t drain(lapse_table *t, int64_t now) noexcept:
    """Part with what lapse_detach() put aside; how many entries were live at `now`."""
    cdef lapse_item removed[STEP]
    cdef size_t n = 0
    cdef Py_ssize_t live = 0
    cdef int64_t since = clock_precise()
    cdef lapse_status status = LAPSE_MORE
    while status == LAPSE_MORE:
        status = lapse_drain(t, removed, &n)
        live += lapse_dismiss(t, removed, n, now, LAPSE_CLEARED)
        let_others_run(&since)
    pack(t, False)
    return live


cdef void pack(lapse_table *t, bint at_once) noexcept:
    """Give back what the entries do not need. `at_once`: even if the cache has just grown."""
    cdef lapse_packing work
    cdef int64_t since = clock_precise()
    memset(&work, 0, sizeof(work))
    work.at_once = at_once
    while lapse_pack(t, &work) == LAPSE_MORE:
        let_others_run(&since)


def escape(text):
    """`text` (str or bytes) with a backslash before every character that means something in a pattern."""
    if isinstance(text, bytes):
        return text.decode("latin-1").translate(ESCAPES).encode("latin-1")
    if isinstance(text, str):
        return text.translate(ESCAPES)
    raise TypeError(f"only str and bytes can be escaped, not {type(text).__name__}")


cdef str tag_name(object tag):
    if not isinstance(tag, str):
        raise TypeError(f"a tag must be a str, not {type(tag).__name__}")
    return PyUnicode_FromObject(tag)


cdef list tag_names(const lapse_tags *tags):
    cdef size_t i
    return [<object>tags.names[i] for i in range(tags.n)]


def table_pattern(table):
    """The pattern of every key that begins with `table` (str or bytes) and a colon."""
    if not isinstance(table, (str, bytes)):
        raise TypeError(f"a table must be a str or bytes, not {type(table).__name__}")
    return escape(table) + (b":*" if isinstance(table, bytes) else ":*")


cdef class Pattern:
    """A glob pattern, compiled; see Cache.delete_pattern() for what it may be, and what is raised. Immutable.

    `source` is of exact type str or bytes.
    """

    cdef readonly object source
    cdef lapse_pattern *native

    def __cinit__(self, source):
        self.native = compiled(source)
        self.source = PyUnicode_FromObject(source) if isinstance(source, str) else b"".join((source,))

    def __dealloc__(self):
        if self.native != NULL:
            lapse_pattern_free(&lapse_system_memory, self.native)

    def matches(self, key):
        """Does it match a key? Never one that is neither str nor bytes."""
        cdef lapse_text text
        return object_text(<PyObject *>key, &text) and pattern_matches(self.native, &text)

    def __repr__(self):
        return f"Pattern({self.source!r})"


@cython.no_gc_clear
cdef class Lease:
    """The right to store what a load that began with it brings: Cache.lease() gives one, Cache.fill()
    uses it up. Thread-safe; dropping it costs nothing."""

    cdef readonly Cache cache
    cdef readonly object key
    cdef readonly frozenset tags
    cdef lapse_table *table
    cdef lapse_lease *native

    def __cinit__(self, Cache cache, key, tags):
        cdef lapse_table *t = opened(cache)
        cdef tag_args labels
        try:
            tag_args_fill(&labels, tags)
            self.tags = frozenset(tag_names(&labels.tags))
        finally:
            tag_args_drop(&labels)
        self.cache, self.key = cache, key
        if lapse_lease_take(t, <PyObject *>key, <uint64_t>fast_hash(key), &self.native) != LAPSE_OK:
            self.native = NULL
            refuse(LAPSE_NO_MEMORY)
        self.table = t
        lapse_lease_time(t, self.native, now_of(cache))

    def __dealloc__(self):
        if self.native != NULL:
            lapse_lease_end(self.table, self.native)

    @property
    def outdated(self):
        """Would fill() refuse it now?"""
        cdef tuple tags = tuple(self.tags)
        cdef tag_args labels
        try:
            tag_args_fill(&labels, tags)
            return not lapse_lease_holds(self.table, self.native, &labels.tags)
        finally:
            tag_args_drop(&labels)

    def __repr__(self):
        return f"<Lease of {self.key!r}{', outdated' if self.outdated else ''}>"


# --- Calling through a cache ---------------------------------------------------------------------

cdef class Ready:
    """An awaitable that has its result already: what a hit gives a coroutine. Good for one await."""

    cdef object value

    def __cinit__(self, value):
        self.value = value

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration(self.value)

    def send(self, value):
        raise StopIteration(self.value)

    def throw(self, kind, value=None, traceback=None):
        raise kind if value is None else value

    def close(self):
        """Nothing is open."""


@cython.no_gc_clear
cdef class Memo:
    """A function whose results are kept in a cache: the base of what loading/ makes of functions.

    A call makes a key, reads, and on a miss runs the function or, unless it is `alone`, the method
    `_miss(key, args, kwargs)`; all but the last is native (_fast.h). Not for direct use: a subclass, under
    `@called_natively`, calls `_open()`, again only while nobody else has the memo. The garbage collector
    leaves its fields alone: finalisers may call it.
    """

    # The layout of memo_head in _fast.h.
    cdef void *vectorcall
    cdef readonly Cache cache
    cdef readonly object function
    cdef object key_of      # makes the keys that the plan does not; None: it makes all, in the order of keywords
    cdef object prefix      # first in every key; None: nothing
    cdef tuple left_out     # what a call of `least` arguments leaves out
    cdef object target      # takes the calls instead; None: nothing
    cdef Py_ssize_t least, named, most  # arguments: the fewest, those that have names, the most
    cdef int lone           # is a lone argument its own key?
    cdef int typed          # do the types of the arguments count?
    cdef int bound          # is the first argument an instance, of which its id() stands in the key?
    cdef int alone          # does every miss run the function? Only with a cache that has no clock, no listener
    cdef dict __dict__
    cdef object __weakref__

    def _open(self, Cache cache not None, function, key_of, tuple plan not None, *, prefix=None,
              bint typed=False, bint bound=False, bint alone=False, target=None):
        """`plan` is (least, named, most, left_out, lone): it makes the keys of calls that have no keyword
        and least to most arguments."""
        self.cache, self.function, self.key_of, self.prefix = cache, function, key_of, prefix
        self.least, self.named, self.most, self.left_out, self.lone = plan
        self.typed, self.bound, self.alone, self.target = typed, bound, alone, target
        fast_memo_open(self)

    def __call__(self, *args, **kwargs):
        """Answer from the cache, or call the function."""
        raise NotImplementedError  # fast_install_memo() puts the native call in its place

    def cache_key(self, /, *args, **kwargs):
        """The key under which the result of a call with these arguments is stored."""
        return fast_memo_key(self, (*args, *kwargs.values()), tuple(kwargs))

    def _load(self, key, tuple args, dict kwargs, ttl, tags, timeout, old=MISSING):
        """The cache's get_or_load() of a key that has just been missed, or of which `old` is to be reloaded."""
        return self.cache._flights.load(self.cache, key, Call(self.function, args, kwargs), ttl, tags, timeout, None, old)

    def _aload(self, key, tuple args, dict kwargs, ttl, tags, timeout):
        """The same for a coroutine function; to be awaited."""
        return self.cache._flights.aload(self.cache, key, Call(self.function, args, kwargs), ttl, tags, timeout)

    def __get__(self, instance, owner):
        return self if instance is None else MethodType(self, instance)


cdef class Call:
    """A call of a function, in the guise of a loader."""

    cdef object function
    cdef tuple args
    cdef dict kwargs

    def __cinit__(self, function, tuple args, dict kwargs):
        self.function, self.args, self.kwargs = function, args, kwargs

    def __call__(self, key):
        return self.function(*self.args, **self.kwargs)


# --- Iteration ---------------------------------------------------------------------------------

KEYS, VALUES, ITEMS, ENTRIES = range(4)
cdef int WALK_KEYS = 0, WALK_VALUES = 1, WALK_ITEMS = 2
cdef size_t FIRST_ROOM = 64


cdef class Walk:
    """A weakly consistent iterator.

    It copies one segment at a time, each at one instant, in the order of hashes. An entry that is
    there during the whole iteration is met exactly once; one stored or removed meanwhile may be met
    or not. Whether an entry has expired is judged by the time when the iteration began. Changing the
    cache never raises. One thread may use one iterator.
    """

    cdef Cache cache
    cdef int kind
    cdef int64_t at
    cdef uint64_t cursor
    cdef bint done
    cdef lapse_item *items
    cdef size_t room, filled, used

    def __cinit__(self, Cache cache, int kind, bint kept=False):
        self.cache, self.kind = cache, kind
        self.at = kept_since(cache) if kept else lapse_now(opened(cache), now_of(cache))

    def __dealloc__(self):
        lapse_release(self.items + self.used, self.filled - self.used)
        PyMem_Free(self.items)

    def __iter__(self):
        return self

    def __next__(self):
        while self.used == self.filled:
            if self.done:
                raise StopIteration
            self.refill()
        cdef lapse_table *t
        cdef lapse_item *item = &self.items[self.used]
        self.used += 1
        key, value = taken(item.key), taken(item.value)
        if self.kind == WALK_KEYS:
            return key
        if self.kind == WALK_VALUES:
            return value
        if self.kind == WALK_ITEMS:
            return key, value
        left = None if item.deadline == LAPSE_NEVER else item.deadline - self.at
        limit = None if item.limit == LAPSE_NEVER else item.limit - self.at
        t = opened(self.cache)
        names = tuple(tags_of(t, key, self.at)) if lapse_is_indexed(t) else ()
        return key, value, left, item.ttl, limit, bool(item.own_ttl), names, item.cost

    cdef int refill(self) except -1:
        """Copy the next segment out."""
        cdef lapse_table *t = opened(self.cache)
        self.used = self.filled = 0
        cdef size_t n = FIRST_ROOM
        cdef lapse_status status = LAPSE_NO_ROOM
        while status == LAPSE_NO_ROOM:
            if n > self.room:
                self.grow(n)
            status = lapse_collect(t, &self.cursor, self.at, self.items, self.room, &n)
        self.filled = n
        self.done = status == LAPSE_OK
        return 0

    cdef int grow(self, size_t n) except -1:
        PyMem_Free(self.items)
        self.items = <lapse_item *>PyMem_Malloc(n * sizeof(lapse_item))
        self.room = n if self.items != NULL else 0
        if self.items == NULL:
            raise MemoryError("lapse: no memory for an iterator")
        return 0


# --- The module --------------------------------------------------------------------------------

fast_install(Cache)
fast_install_memo(Memo, MISSING)


def describe(type cls):
    """Give a new subclass of Cache method descriptors of its own: calls specialise by exact type."""
    describe_methods(cls, Cache)


def called_natively(type cls):
    """Make calls of the instances of a new subclass of Memo as direct as Memo's own; returns `cls`."""
    fast_memo_type(cls)
    return cls


def _refuse_memory(uint64_t first, uint64_t end):
    """From now on refuse the native requests for memory from `first` to before `end`; how many there were."""
    return memory_refuse(first, end)


def end_stops():
    """From now on no thread is stopped so that memory can be given back; is such a stop still under way?"""
    return fast_end_stops()


def hold_stops(int more):
    """For one more thread (1), or one less (-1), no stop begins; 0 changes nothing. Is one under way?"""
    return fast_hold_stops(more)


def forget_stops():
    """In the child of a fork: nobody holds stops, and those that other threads had under way are none any more."""
    fast_forget_stops()


# Cython leaves an empty module of its own behind; `import lapse` brings in nothing foreign.
sys.modules.pop("cython_runtime", None)

build = {
    "probe": (<bytes>lapse_probe_name()).decode(),
    "scan": (<bytes>scan_name()).decode(),
    "locked_reads": LOCKED_READS,
    "threads": bool(LAPSE_THREADS),
}
