# cython: language_level=3, binding=False, boundscheck=False, wraparound=False
# cython: freethreading_compatible=True, always_allow_keywords=True, auto_pickle=False
"""The binding of the invalidation queue: checks and dates what producers bring, and hands it out.

    producers ──► NativeQueue (a ring, csrc/queue.h) ──► Taken (a batch, owned) ──► who applies it

Layer contract
    1. What can run Python code (hashing, a caller's clock) comes before the push; from the test
       whether the queue is closed to the filled cell no Python code runs.
    2. An item is at every instant in the ring, or in a `Taken` that is in a list of its queue: a
       batch is put into that list before anything is taken into it. So a forked child finds every
       item that it inherits.
    3. No policy: when to take, what to do about a full ring, and how to apply is Python's
       (lapse.invalidation.queue).

Each producing method is atomic, takes no lock, and may be called by any thread, by a finalizer, too.
An item that waits keeps its key alive, unseen by the garbage collector.
"""

import sys

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_Append
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.math cimport llrint
from libc.stdint cimport int64_t, uint64_t

from lapse._queue cimport *

cdef extern from "Python.h":
    str PyUnicode_FromObject(object text)

PUSHED, WAKE, LATE, FULL = QUEUE_PUSHED, QUEUE_WAKE, QUEUE_LATE, QUEUE_FULL

#: The kinds by their native numbers, as the messages name them.
KINDS = ("key", "pattern", "table", "tag", "all")

#: Units of a pattern, and of a table: each unit escaped, then ":*".
PATTERN_MAX = LAPSE_PATTERN_MAX
TABLE_MAX = (LAPSE_PATTERN_MAX - 2) // 2
cdef double FARTHEST = 9.2e18  # nanoseconds: what an int64 holds, nearly
cdef Py_ssize_t UNREADY = -1


# --- What producers bring ----------------------------------------------------------------------

cdef object exact_text(object text):
    """The same str or bytes of the exact type: its hash and comparison run no Python code."""
    if type(text) is str or type(text) is bytes:
        return text
    if isinstance(text, str):
        return PyUnicode_FromObject(text)
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef object checked_text(object text, str what, Py_ssize_t most):
    """A pattern or a table. TypeError if it is neither str nor bytes, ValueError if it is too long."""
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"a {what} must be str or bytes, not {type(text).__name__}")
    text = exact_text(text)
    if len(text) > most:
        raise ValueError(f"a {what} may have {most} units, not {len(text)}")
    return text


cdef int64_t now_of(NativeQueue self) except? -3:
    if self.clock is None:
        return clock_coarse()
    cdef double nanoseconds = <double>self.clock() * 1e9
    if nanoseconds != nanoseconds:
        raise ValueError("the clock returned NaN, not a number of seconds")
    return <int64_t>llrint(max(-FARTHEST, min(FARTHEST, nanoseconds)))


cdef lapse_queue *ring_of(NativeQueue self) except NULL:
    if self.ring == NULL:
        raise RuntimeError(f"{type(self).__name__} is not initialised")
    return self.ring


cdef queue_status push(NativeQueue self, queue_kind kind, object target) except? QUEUE_CLOSED:
    """Queue one item if there is room. RuntimeError if the queue is closed."""
    cdef int64_t now = now_of(self)
    cdef queue_status status = QUEUE_CLOSED
    if self.ring != NULL:
        Py_INCREF(target)
        status = queue_push(self.ring, kind, <PyObject *>target, now)
        if status >= QUEUE_FULL:
            Py_DECREF(target)
    if status == QUEUE_CLOSED:
        raise RuntimeError(f"{type(self).__name__} is closed")
    return status


cdef int put(NativeQueue self, queue_kind kind, object target) except -1:
    """Queue one item, whatever it takes."""
    cdef queue_status status = push(self, kind, target)
    if status == QUEUE_FULL:
        self._overflow(kind, target)
    elif status != QUEUE_PUSHED:
        self._signal(status)
    return 0


# --- The queue ---------------------------------------------------------------------------------

cdef class NativeQueue:
    """A bounded queue of invalidations: the base of lapse.invalidation's OptimizedInvalidation.

    Not for direct use: a subclass calls `_open()` once, and provides `_overflow(kind, target)`,
    which is called when the ring is full, and `_late()`, when close() overtook a producer.
    """

    cdef lapse_queue *direct
    cdef lapse_queue *ring
    cdef lapse_histogram latency
    cdef object clock
    cdef object wake
    cdef object __weakref__

    def _open(self, size_t capacity, clock, wake):
        """Make the ring: `capacity` items, rounded up to a power of two. `wake(None)` is the alarm."""
        if self.ring != NULL:
            raise RuntimeError(f"{type(self).__name__} is initialised already")
        self.clock, self.wake = clock, wake
        self.ring = queue_new(&lapse_system_memory, capacity)
        if self.ring == NULL:
            raise MemoryError("lapse: no memory for a queue")
        self.direct = self.ring if clock is None else NULL

    def __dealloc__(self):
        cdef queue_item item
        if self.ring == NULL:
            return
        while queue_take(self.ring, &item, 1):
            Py_DECREF(<object>item.target)
        queue_free(self.ring)

    # --- For producers ---

    def invalidate_key(self, key):
        """Queue the removal of `key`. TypeError if it is unhashable. O(1), no lock."""
        hash(key)
        put(self, QUEUE_KEY, key)

    def invalidate_pattern(self, pattern):
        """Queue the removal of every key that the glob `pattern` (str or bytes) matches.

        TypeError for any other type, ValueError above 1,024 units. O(1), no lock.
        """
        put(self, QUEUE_PATTERN, checked_text(pattern, "pattern", PATTERN_MAX))

    def invalidate_table(self, table):
        """Queue the removal of every key that begins with `table` (str or bytes) and a ':'.

        TypeError for any other type, ValueError above 511 units. O(1), no lock.
        """
        put(self, QUEUE_TABLE, checked_text(table, "table", TABLE_MAX))

    def invalidate_tag(self, tag):
        """Queue the removal of every entry that bears `tag`. TypeError unless it is a str. O(1)."""
        if not isinstance(tag, str):
            raise TypeError(f"a tag must be str, not {type(tag).__name__}")
        put(self, QUEUE_TAG, exact_text(tag))

    def invalidate_all(self):
        """Queue the removal of every entry. O(1), no lock."""
        put(self, QUEUE_ALL, None)

    def _offer(self, int kind, target):
        """Queue one item if there is room: PUSHED, WAKE, LATE or FULL. Answers nothing it asks for."""
        return push(self, <queue_kind>kind, target)

    def _signal(self, int status):
        """Do what a push asks for: wake who sleeps, or apply what came as the queue was closed."""
        if status == QUEUE_WAKE:
            self.wake(None)
        elif status == QUEUE_LATE:
            self._late()

    # --- For the consumer ---

    def _take(self, Py_ssize_t limit, list place):
        """Up to `limit` items, oldest first, as a Taken that is in the list `place` before they are.

        None if nothing is there, or its producer has claimed a cell and not filled it yet.
        """
        cdef lapse_queue *ring = ring_of(self)
        cdef Taken taken = Taken.__new__(Taken)
        taken.reserve(limit)
        PyList_Append(place, taken)
        PUBLISH(&taken.n, queue_take(ring, taken.items, limit))  # pairs with Taken.ready
        if taken.n > 0:
            return taken
        try:
            place.remove(taken)
        except ValueError:
            pass  # the consumer has removed it
        return None

    def _record(self, int64_t enqueued_ns, Py_ssize_t times):
        """Count `times` items, queued at `enqueued_ns` (of `_now()`), as applied now."""
        histogram_record(&self.latency, now_of(self) - enqueued_ns, times)

    def _arm(self, Py_ssize_t depth):
        """Have a producer raise the alarm when `depth` items wait; False: they do already."""
        cdef lapse_queue *ring = ring_of(self)
        return queue_arm(ring, min(<size_t>depth, queue_capacity(ring)))

    def _close(self):
        """Refuse every later push."""
        queue_close(ring_of(self))

    def _after_fork(self, wake):
        """In a forked child: no other thread is at work in the ring. `wake` is the child's own."""
        self.wake = wake
        queue_after_fork(ring_of(self))

    # --- Looking ---

    @property
    def closed(self):
        """Has close() been called?"""
        return self.ring == NULL or queue_is_closed(self.ring)

    @property
    def capacity(self):
        """How many items the ring holds."""
        return queue_capacity(ring_of(self))

    def _now(self):
        """The queue's clock, in nanoseconds."""
        return now_of(self)

    def _age(self):
        """Seconds since the oldest item that waits was queued; None if none waits."""
        cdef int64_t enqueued_ns = 0
        if not queue_oldest(ring_of(self), &enqueued_ns):
            return None
        return (now_of(self) - enqueued_ns) / 1e9

    def _pushed(self):
        """How many items have been queued so far."""
        return queue_pushed(ring_of(self))

    def _taken(self):
        """How many items have been taken so far."""
        return queue_taken(ring_of(self))

    def _latency(self, double share):
        """Seconds from queued to applied that `share` of the items did not exceed, to 1/16."""
        return histogram_percentile(&self.latency, share) / 1e9

    def __sizeof__(self):
        return object.__sizeof__(self) + (queue_bytes(self.ring) if self.ring != NULL else 0)


# --- A batch -----------------------------------------------------------------------------------

cdef class Taken:
    """Items taken off a queue, owned until they have been applied. Only NativeQueue makes them."""

    cdef queue_item *items
    cdef Py_ssize_t n

    def __cinit__(self):
        self.n = UNREADY

    cdef int reserve(self, Py_ssize_t limit) except -1:
        self.items = <queue_item *>PyMem_Malloc(max(limit, 1) * sizeof(queue_item))
        if self.items == NULL:
            raise MemoryError("lapse: no memory for a batch")
        return 0

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n):
            Py_DECREF(<object>self.items[i].target)
        PyMem_Free(self.items)

    def __len__(self):
        return max(0, self.n)

    @property
    def ready(self):
        """Are the items there? Another thread may be about to take them."""
        return ACQUIRE(&self.n) != UNREADY  # pairs with NativeQueue._take()

    def give_up(self):
        """In a forked child: who was about to take the items is not there."""
        if self.n == UNREADY:
            self.n = 0

    @property
    def oldest(self):
        """When the oldest item was queued, by the queue's clock in nanoseconds."""
        return self.items[0].enqueued_ns

    def pairs(self):
        """The items as (kind, target), in order."""
        return [(KINDS[<int>self.items[i].kind], <object>self.items[i].target) for i in range(len(self))]

    def groups(self):
        """The targets by kind (all, tables, patterns, tags, keys); duplicates remain among keys only."""
        cdef dict whole = {}, tables = {}, patterns = {}, tags = {}
        cdef list keys = []
        cdef queue_item *item
        cdef Py_ssize_t i
        for i in range(self.n):
            item = &self.items[i]
            if item.kind == QUEUE_KEY:
                keys.append(<object>item.target)
            elif item.kind == QUEUE_PATTERN:
                patterns[<object>item.target] = None
            elif item.kind == QUEUE_TABLE:
                tables[<object>item.target] = None
            elif item.kind == QUEUE_TAG:
                tags[<object>item.target] = None
            else:
                whole[None] = None
        return list(whole), list(tables), list(patterns), list(tags), keys

    def record(self, NativeQueue queue):
        """Count each item as applied now."""
        cdef int64_t now = now_of(queue)
        cdef Py_ssize_t i
        for i in range(self.n):
            histogram_record(&queue.latency, now - self.items[i].enqueued_ns, 1)


# --- The module --------------------------------------------------------------------------------

producer_install(NativeQueue)


def describe(type cls):
    """Give a new subclass of NativeQueue method descriptors of its own: calls specialise by exact type."""
    describe_methods(cls, NativeQueue)


def _refuse_memory(uint64_t first, uint64_t end):
    """From now on refuse the native requests for memory from `first` to before `end`; how many there were."""
    return memory_refuse(first, end)


# Cython leaves an empty module of its own behind; `import lapse` brings in nothing foreign.
sys.modules.pop("cython_runtime", None)
