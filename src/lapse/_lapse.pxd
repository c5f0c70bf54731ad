# The one extern block: the table (csrc/lapse.h) and the fast entries in front of it (_fast.h).

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "lapse.h":
    ctypedef enum lapse_cause:
        LAPSE_REPLACED
        LAPSE_DELETED
        LAPSE_BY_PATTERN
        LAPSE_BY_TAG
        LAPSE_CLEARED
        LAPSE_BY_DEADLINE
        LAPSE_BY_DRAW
        LAPSE_EVICTED
    ctypedef struct lapse_item:
        PyObject *key
        PyObject *value
        int64_t deadline
        int64_t ttl
        int64_t limit
        uint32_t cost
        bint own_ttl
    ctypedef int (*lapse_weigher)(void *context, PyObject *key, PyObject *value, uint32_t *weight) except -1
    ctypedef void (*lapse_observer)(void *context, lapse_item *items, size_t n, lapse_cause cause) noexcept

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
        LAPSE_OUTDATED
    ctypedef struct lapse_lease:
        pass
    ctypedef struct lapse_pattern "struct lapse_pattern":
        pass
    ctypedef struct lapse_pass:
        pass
    ctypedef struct lapse_prefixes:
        pass
    ctypedef struct lapse_storm:
        pass
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
        double beta
        int64_t grace
        double jitter
        uint64_t seed
        bint own_clock
        bint lru
        bint duel
        uint64_t max_entries
        lapse_weigher weigher
        bint locked_reads
        bint (*quiesce)() noexcept
        const lapse_memory *memory
        lapse_observer observer
        void *context
    ctypedef struct lapse_packing:
        bint at_once
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
        uint64_t replaced
        uint64_t by_pattern
        uint64_t by_tag
        uint64_t cleared
        uint64_t fenced
        uint64_t evictions
        uint64_t refused
        uint64_t tickets
        uint64_t stale
    ctypedef struct lapse_tags:
        size_t n
        PyObject *const *names
        const uint64_t *hashes
    const lapse_memory lapse_system_memory
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
    size_t lapse_tracking_bytes(lapse_table *t)
    bint lapse_is_indexed(const lapse_table *t)
    uint64_t lapse_weight(const lapse_table *t)
    size_t lapse_segments(const lapse_table *t)
    lapse_status lapse_resize(lapse_table *t, uint64_t max_entries)
    lapse_status lapse_fit(lapse_table *t, int64_t now)
    void lapse_counters_read(const lapse_table *t, lapse_counters *out)
    bint lapse_is_quick(const lapse_table *t)
    bint lapse_after_fork(lapse_table *t)
    int64_t lapse_now(const lapse_table *t, int64_t now)
    const char *lapse_probe_name()
    bint lapse_check(lapse_table *t)

    lapse_status lapse_get(lapse_table *t, PyObject *key, uint64_t hash, int64_t now, PyObject **value)
    lapse_status lapse_get_or_ticket(lapse_table *t, PyObject *key, uint64_t hash, int64_t now, PyObject **value)
    int64_t lapse_kept_since(const lapse_table *t, int64_t now)
    lapse_status lapse_stale(lapse_table *t, PyObject *key, uint64_t hash, int64_t now, PyObject **value)
    lapse_status lapse_peek(lapse_table *t, PyObject *key, uint64_t hash, int64_t now, lapse_item *out)
    lapse_status lapse_has(lapse_table *t, PyObject *key, uint64_t hash, int64_t now)
    void lapse_prefetch(lapse_table *t, size_t n, const uint64_t *hashes)

    lapse_status lapse_put(lapse_table *t, PyObject *key, uint64_t hash, PyObject *value, int64_t ttl,
                           int64_t now, PyObject **replaced)
    lapse_status lapse_put_new(lapse_table *t, PyObject *key, uint64_t hash, PyObject *value,
                               int64_t ttl, int64_t now, PyObject **present)
    lapse_status lapse_put_tagged(lapse_table *t, PyObject *key, uint64_t hash, PyObject *value, int64_t ttl,
                                  const lapse_tags *tags, int64_t now, PyObject **replaced)
    lapse_status lapse_put_item(lapse_table *t, const lapse_item *item, uint64_t hash, const lapse_tags *tags,
                                int64_t now, PyObject **replaced)
    lapse_status lapse_exchange(lapse_table *t, PyObject *key, uint64_t hash, PyObject *expected,
                                PyObject *value, int64_t now, PyObject **replaced)
    lapse_status lapse_touch(lapse_table *t, PyObject *key, uint64_t hash, int64_t ttl, int64_t now)
    lapse_status lapse_delete(lapse_table *t, PyObject *key, uint64_t hash, int64_t now,
                              lapse_item *removed)
    lapse_status lapse_drop(lapse_table *t, PyObject *key, uint64_t hash, PyObject *expected, int64_t now,
                            lapse_item *removed)

    lapse_status lapse_tags_of(lapse_table *t, PyObject *key, uint64_t hash, int64_t now, PyObject **names,
                               size_t room, size_t *n)

    lapse_status lapse_lease_take(lapse_table *t, PyObject *key, uint64_t hash, lapse_lease **out)
    void lapse_lease_time(const lapse_table *t, lapse_lease *lease, int64_t now)
    bint lapse_lease_holds(lapse_table *t, const lapse_lease *lease, const lapse_tags *tags)
    lapse_status lapse_fill(lapse_table *t, lapse_lease *lease, PyObject *value, int64_t ttl,
                            const lapse_tags *tags, bint change, int64_t now, PyObject **replaced)
    void lapse_lease_end(lapse_table *t, lapse_lease *lease)
    void lapse_outdate_key(lapse_table *t, PyObject *key, uint64_t hash)
    void lapse_outdate_all(lapse_table *t)

    lapse_status lapse_erase_keys(lapse_table *t, size_t n, PyObject *const *keys, const uint64_t *hashes,
                                  size_t *done, int64_t now, const uint32_t *order, uint8_t *erased)
    void lapse_sort_hashes(size_t n, const uint64_t *hashes, uint32_t *order, uint32_t *scratch)
    lapse_status lapse_pass_new(lapse_table *t, lapse_pattern *const *patterns, size_t n, PyObject *tag,
                                uint64_t tag_hash, int64_t now, bint listing, lapse_pass **out)
    bint lapse_pass_outdate(lapse_pass *p)
    lapse_status lapse_pass_step(lapse_pass *p, lapse_item *out, size_t *n)
    const uint64_t *lapse_pass_counts(const lapse_pass *p)
    void lapse_pass_end(lapse_pass *p)
    bint lapse_is_storm(const lapse_table *t, const lapse_prefixes *x, size_t n)
    lapse_status lapse_storm_new(lapse_table *t, const lapse_prefixes *x, size_t n, int64_t now,
                                 lapse_storm **out)
    lapse_status lapse_storm_step(lapse_storm *s)
    const uint64_t *lapse_storm_counts(const lapse_storm *s)
    void lapse_storm_end(lapse_storm *s)

    lapse_status lapse_sweep(lapse_table *t, uint64_t *cursor, int64_t now, size_t limit,
                             lapse_item *removed, size_t *n)
    lapse_status lapse_soften(lapse_table *t, uint64_t *cursor, int64_t at, int64_t until, size_t *n)
    lapse_status lapse_pack(lapse_table *t, lapse_packing *p)
    lapse_status lapse_detach(lapse_table *t)
    lapse_status lapse_drain(lapse_table *t, lapse_item *removed, size_t *n)
    lapse_status lapse_collect(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *out,
                               size_t room, size_t *n)
    lapse_status lapse_pop_any(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *removed)



cdef extern from "clock.h" nogil:
    int64_t clock_coarse()
    int64_t clock_precise()
    void clock_pause()

cdef extern from "pattern.h" nogil:
    ctypedef struct lapse_text:
        pass
    enum:
        PATTERN_MAX "LAPSE_PATTERN_MAX"
    lapse_status lapse_pattern_new(const lapse_memory *memory, const lapse_text *source, lapse_pattern **out)
    void lapse_pattern_free(const lapse_memory *memory, lapse_pattern *p)
    bint lapse_pattern_is_literal(const lapse_pattern *p)
    size_t lapse_pattern_literal(const lapse_pattern *p, uint32_t *units)
    bint pattern_matches(const lapse_pattern *p, const lapse_text *key)

cdef extern from "text.h":
    bint object_text(PyObject *o, lapse_text *out)

cdef extern from "scan.h" nogil:
    const char *scan_name()

cdef extern from "lapse.h":
    void lapse_release(lapse_item *items, size_t n)
    void lapse_farewell(lapse_table *t, lapse_item *items, size_t n, lapse_cause cause)
    void lapse_farewell_value(lapse_table *t, PyObject *key, PyObject *value)
    size_t lapse_dismiss(lapse_table *t, lapse_item *items, size_t n, int64_t at, lapse_cause cause)

cdef extern from "_labels.h":
    ctypedef struct tag_args:
        lapse_tags tags
    int tag_args_fill(tag_args *a, object tags) except -1
    void tag_args_drop(tag_args *a)

cdef extern from "_fast.h":
    int fast_install(type cache_type) except -1
    int fast_install_memo(type memo_type, object absent) except -1
    void fast_memo_type(type memo_type)
    void fast_memo_open(object memo)
    object fast_memo_key(object memo, tuple all, tuple names)
    lapse_table *fast_table(object cache)
    lapse_table *fast_close(object cache)
    object fast_gather(lapse_table *t, object keys, int64_t now, object missing)
    object fast_gather_buffer(lapse_table *t, object keys, int64_t now, object missing)
    Py_hash_t fast_hash(object key) except -1
    bint fast_quiesce() noexcept
    bint fast_end_stops() noexcept
    bint fast_hold_stops(int more) noexcept
    void fast_forget_stops() noexcept
    object fast_taken_list(PyObject **owned, size_t n)

cdef extern from "_methods.h":
    int describe_methods(type cls, type cache_type) except -1

cdef extern from "memory.h":
    uint64_t memory_refuse(uint64_t first, uint64_t end)

cdef extern from "atomics.h" nogil:
    uint64_t RELAXED(uint64_t *p)
    void STORE(uint64_t *p, uint64_t v)
    bint COMPARE_SWAP64(uint64_t *p, uint64_t seen, uint64_t v)

cdef extern from "prefixes.h" nogil:
    lapse_status lapse_prefixes_new(const lapse_memory *memory, size_t most, lapse_prefixes **out)
    void lapse_prefixes_free(const lapse_memory *memory, lapse_prefixes *x)
    bint lapse_prefixes_add(lapse_prefixes *x, const lapse_text *pattern, uint32_t number)
