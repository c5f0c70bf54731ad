# The one extern block: the table (csrc/lapse.h) and the fast entries in front of it (_fast.h).

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint64_t

cdef extern from "lapse.h" nogil:
    ctypedef struct lapse_table:
        pass
    ctypedef enum lapse_status:
        LAPSE_OK
        LAPSE_ABSENT
        LAPSE_EXPIRED
        LAPSE_EARLY
        LAPSE_MORE
        LAPSE_NO_ROOM
        LAPSE_NO_MEMORY
        LAPSE_RAISED
        LAPSE_BUSY
    ctypedef enum lapse_mode:
        LAPSE_FIXED
        LAPSE_SLIDING
        LAPSE_PROBABILISTIC
    ctypedef struct lapse_memory:
        pass
    ctypedef struct lapse_config:
        lapse_mode mode
        int64_t default_ttl
        int64_t max_lifetime
        double early_factor
        double jitter
        uint64_t seed
        bint own_clock
        bint locked_reads
        const lapse_memory *memory
    ctypedef struct lapse_item:
        PyObject *key
        PyObject *value
        int64_t deadline
        int64_t ttl
        int64_t limit
        bint own_ttl
    ctypedef struct lapse_counters:
        uint64_t hits
        uint64_t misses
        uint64_t sets
        uint64_t deletes
        uint64_t expirations
        uint64_t early
        uint64_t splits
        uint64_t merges
        uint64_t sweeps
    const int64_t LAPSE_NEVER
    const int64_t LAPSE_DEFAULT
    const int64_t LAPSE_NATIVE
    const size_t LAPSE_STEP
    enum:
        LAPSE_THREADS
        STEP "LAPSE_STEP"
        BLOCK "LAPSE_BLOCK"

    lapse_table *lapse_table_new(const lapse_config *config)
    void lapse_table_free(lapse_table *t)
    size_t lapse_len(lapse_table *t, int64_t now)
    size_t lapse_bytes(lapse_table *t)
    size_t lapse_segments(const lapse_table *t)
    void lapse_counters_read(const lapse_table *t, lapse_counters *out)
    bint lapse_is_quick(const lapse_table *t)
    void lapse_after_fork(lapse_table *t)
    int64_t lapse_now(const lapse_table *t, int64_t now)
    const char *lapse_probe_name()
    bint lapse_check(lapse_table *t)

    lapse_status lapse_get(lapse_table *t, PyObject *key, uint64_t hash, int64_t now, PyObject **value)
    lapse_status lapse_peek(lapse_table *t, PyObject *key, uint64_t hash, int64_t now, lapse_item *out)
    lapse_status lapse_has(lapse_table *t, PyObject *key, uint64_t hash, int64_t now)
    void lapse_prefetch(lapse_table *t, size_t n, const uint64_t *hashes)

    lapse_status lapse_put(lapse_table *t, PyObject *key, uint64_t hash, PyObject *value, int64_t ttl,
                           int64_t now, PyObject **replaced)
    lapse_status lapse_put_new(lapse_table *t, PyObject *key, uint64_t hash, PyObject *value,
                               int64_t ttl, int64_t now, PyObject **present)
    lapse_status lapse_put_item(lapse_table *t, const lapse_item *item, uint64_t hash, int64_t now,
                                PyObject **replaced)
    lapse_status lapse_exchange(lapse_table *t, PyObject *key, uint64_t hash, PyObject *expected,
                                PyObject *value, int64_t now, PyObject **replaced)
    lapse_status lapse_touch(lapse_table *t, PyObject *key, uint64_t hash, int64_t ttl, int64_t now)
    lapse_status lapse_delete(lapse_table *t, PyObject *key, uint64_t hash, int64_t now,
                              lapse_item *removed)

    lapse_status lapse_sweep(lapse_table *t, uint64_t *cursor, int64_t now, size_t limit,
                             lapse_item *removed, size_t *n)
    lapse_status lapse_detach(lapse_table *t)
    lapse_status lapse_drain(lapse_table *t, lapse_item *removed, size_t *n)
    lapse_status lapse_collect(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *out,
                               size_t room, size_t *n)
    lapse_status lapse_pop_any(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *removed)



cdef extern from "clock.h" nogil:
    int64_t clock_coarse()
    int64_t clock_precise()

cdef extern from "scan.h" nogil:
    const char *scan_name()

cdef extern from "lapse.h":
    void lapse_release(lapse_item *items, size_t n)

cdef extern from "_fast.h":
    int fast_install(type cache_type) except -1
    int fast_describe(type cls, type cache_type) except -1
    lapse_table *fast_table(object cache)
    lapse_table *fast_close(object cache)
    object fast_gather(lapse_table *t, object keys, int64_t now, object missing)
    object fast_gather_buffer(lapse_table *t, object keys, int64_t now, object missing)
    Py_hash_t fast_hash(object key) except -1
