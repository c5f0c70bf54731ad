/* The table: a directory of segments (extendible hashing; Fagin, Nievergelt, Pippenger, Strong 1979).
 *
 *   directory word = address of an array | shift        index = (h >> 1) >> shift
 *
 *     0 ──┐                      Each element names the segment that covers its prefix of the
 *     1 ──┴─► segment, depth 1   mixed hash; a segment of depth d stands in 2^(bits - d) of them.
 *     2 ────► segment, depth 2   A full segment splits in two; when its depth equals the
 *     3 ────► segment, depth 2   directory's, the directory doubles. Nothing else ever moves.
 *
 * Invariants (lapse_check() walks them)
 *   1. Every element names a segment that is not dead and covers the element's prefix.
 *   2. A segment outside the directory is dead and, on a free-threaded build, has an odd seq.
 *   3. depth_count[d] is the number of segments of depth d; the directory has as many bits as the
 *      deepest of them.
 *   4. Directories and, on a free-threaded build, segments are type-stable: kept and used again,
 *      never unmapped before the table is, so a reader may hold a stale one and is turned away by
 *      seq or by segment_covers().
 *
 * Locks, in this order: directory_lock (splits, merges, detaching, the pool), then one segment's
 * lock, in ascending first_hash where two are held, then the fence's, then the order's, the index's or one of
 * the fence's buckets'. Users' code never runs under any of them.
 *
 * Files: read.h the lock-free read; table.c making, locating, reading; write.c single-key writes and fills;
 * grow.c splits and replacement; steps.c sweep, shrink, clear, collect; batch.c many keys at once; pass.c
 * removal by pattern and by tag; tags.c the index, fence.c the leases, order.c the order of use.
 */
#ifndef LAPSE_TABLE_H
#define LAPSE_TABLE_H

#include "clock.h"
#include "fence.h"
#include "order.h"
#include "segment.h"
#include "slab.h"
#include "tags.h"

#define MAX_DEPTH 25u /* 33 million segments, 20 billion entries */
static_assert(MAX_DEPTH + GROUP_HASH_BITS + TAG_BITS <= 64, "tag, group and directory use disjoint bits");
#define SHIFT_MASK 63u
#define DEPTH_LEEWAY 4u /* how much deeper than log2(segments) before equal hashes are suspected */

#define STRIPES 16u
#if LAPSE_THREADS
#  define COUNTER_STRIPES STRIPES
#else
#  define COUNTER_STRIPES 1u
#endif

/* Counters in two cache lines of their own, so that threads do not bounce one between them. */
typedef struct {
    lapse_counters c;
    uint8_t pad[2 * CACHE_LINE - sizeof(lapse_counters)];
} stripe;
static_assert(sizeof(stripe) == 2 * CACHE_LINE, "counters fit");

struct lapse_table {
    uint64_t directory;   /* packed: see above */
    int64_t slack, tick;  /* clock.h; the tick is 0 under a caller's clock */
    lapse_mode mode;
    bool locked_reads, own_clock;
    bool quick;           /* read_quickly() may be used: fixed lifetimes, native clock, no locked reads */
    uint64_t structure;   /* GIL builds: rises whenever a segment leaves the directory or is refitted */
    lapse_config config;
    uint64_t random;      /* state of the generator: a counter that splitmix64 mixes */
    lapse_lock directory_lock;
    size_t segments;
    uint32_t depth_count[MAX_DEPTH + 1];
    segment **arrays[MAX_DEPTH + 1]; /* one directory a depth, kept for reuse */
    slab_pool pool;
    record *scratch;      /* SEGMENT_SLOTS records: where entries wait during a refit or split */
    segment *retired;     /* heap segments for reuse: emptied ones, and what was supplied in vain */
    segment *graveyard;   /* detached by clear, entries still inside */
    tag_index index;
    lapse_fence fence;
    lapse_order order;
    stripe counters[COUNTER_STRIPES];
};

/* --- Counters --- */

#if LAPSE_THREADS
INLINE uint32_t thread_stripe(void) {
#  if defined(__x86_64__) || defined(__aarch64__)
    uintptr_t self = (uintptr_t)__builtin_thread_pointer();
#  else
    static _Thread_local char here;
    uintptr_t self = (uintptr_t)&here;
#  endif
    return (uint32_t)((self * UINT64_C(0x9E3779B97F4A7C15)) >> 60) % STRIPES;
}
#else
INLINE uint32_t thread_stripe(void) { return 0; }
#endif
#define COUNT_MANY(t, what, n) ADD(&(t)->counters[thread_stripe()].c.what, (uint64_t)(n))
#define COUNT(t, what) COUNT_MANY(t, what, 1)

/* --- Structure: the GIL builds' guard of a segment's very existence (read.h, view_holds()) --- */

INLINE void structure_changed(lapse_table *t) {
#if !LAPSE_THREADS
    t->structure++;
#else
    (void)t;
#endif
}
INLINE uint64_t structure_of(const lapse_table *t) {
#if !LAPSE_THREADS
    return t->structure;
#else
    (void)t;
    return 0;
#endif
}

/* --- Directory --- */

INLINE segment **directory_array(uint64_t word) {
    return (segment **)(uintptr_t)(word & ~(uint64_t)SHIFT_MASK);
}
INLINE uint32_t directory_bits(uint64_t word) { return 63u - (uint32_t)(word & SHIFT_MASK); }
INLINE segment *locate(const lapse_table *t, uint64_t h) {
    uint64_t word = ACQUIRE(&t->directory); /* acquire: pairs with PUBLISH in grow.c */
    return ACQUIRE(&directory_array(word)[(h >> 1) >> (word & SHIFT_MASK)]);
}

/* --- Time --- */

INLINE bool passed(int64_t deadline, int64_t at) { return DEADLINE_RANK(deadline) < (uint64_t)at; }

/* --- Lookups under the lock (table.c) --- */

#define VERDICTS 8u /* comparisons remembered while another thread keeps changing the segment */

/* The outcome of lookup_begin(): the segment is locked until lookup_end(). The verdicts own the keys
 * they name, so they are given up only after the unlock. */
typedef struct {
    segment *s;
    uint32_t slot;
    uint32_t verdicts;
    lapse_object *judged[VERDICTS];
    bool equal[VERDICTS];
} lookup;

segment *lock_segment(lapse_table *t, uint64_t h);
lapse_status lookup_begin(lookup *l, lapse_table *t, lapse_object *key, uint64_t h);
void lookup_end(lookup *l);
void rearm(segment *s, uint32_t slot, uint64_t seq, int64_t deadline);
lapse_status read_under_lock(lapse_table *t, lapse_object *key, uint64_t h, int64_t now, bool quiet,
                             lapse_object **value);
lapse_status judge_early(lapse_table *t, int64_t deadline, int64_t ttl, int64_t at);
double draw(lapse_table *t);
void table_take(lapse_table *t, segment *s, uint32_t slot, uint64_t h, lapse_item *removed);
void table_remove(lapse_table *t, segment *s, uint32_t slot, lapse_item *removed);

/* Give up what the index has done with, if anything; no lock is held. */
INLINE void table_settle(lapse_table *t) {
    if (UNLIKELY(RELAXED(&t->index.unsettled))) index_settle(&t->index, t->config.memory);
}

/* --- Growth (grow.c) --- */

lapse_status make_room(lapse_table *t, uint64_t h, int64_t now);
void directory_assign(lapse_table *t, const segment *s, segment *to);
void directory_publish(lapse_table *t, uint32_t bits);
void directory_fit(lapse_table *t);
void refit(lapse_table *t, segment *s, uint32_t slots);
void replace_segment(lapse_table *t, segment *s, segment *to);
void retire(lapse_table *t, segment *s);
void table_evict(lapse_table *t, int64_t at); /* evict.c */
void empty_for_good(lapse_table *t); /* steps.c */
void table_prefetch(const lapse_table *t, size_t n, const uint64_t *mixed); /* batch.c */
segment *retired_take(lapse_table *t, uint32_t slots);
segment *new_heap_segment(lapse_table *t, uint32_t slots);

#endif
