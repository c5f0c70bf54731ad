/* The table: a directory of segments (extendible hashing; Fagin, Nievergelt, Pippenger, Strong 1979).
 *
 *   directory word = address of an array | shift        index = (h >> 1) >> shift
 *
 *     0 ──┐                      Each element names the segment that covers its prefix of the
 *     1 ──┴─► segment, depth 1   mixed hash; a segment of depth d stands in 2^(bits - d) of them.
 *     2 ────► segment, depth 2   A full segment splits in two; when its depth equals the
 *     3 ────► segment, depth 2   directory's, the directory doubles. Two that have become nearly
 *                                empty merge, when the table is packed.
 *
 * Invariants (lapse_check() walks them)
 *   1. Every element names a segment that is not dead and covers the element's prefix.
 *   2. A segment outside the directory is dead and, on a free-threaded build, has an odd seq.
 *   3. depth_count[d] is the number of segments of depth d; the directory has as many bits as the
 *      deepest of them.
 *   4. Directories and, on a free-threaded build, segments are type-stable: kept and used again, and not
 *      given back before every thread that may hold a stale one has let go of it (release.c); such a reader
 *      is turned away by seq or by segment_covers().
 *
 * Locks, in this order: directory_lock (splits, merges, detaching, the pool), then one segment's
 * lock, in ascending first_hash where two are held, then the fence's, then the order's, the index's or one of
 * the fence's buckets'. Users' code never runs under any of them.
 *
 * Files: read.h the lock-free read; table.c making, locating, reading; write.c single-key writes and fills;
 * grow.c splits and replacement; steps.c sweep, clear, collect; pack.c what a table does that has lost entries,
 * release.c how memory is given back; stale.c what is past its deadline;
 * batch.c many keys at once; pass.c removal by pattern and by tag, storm.c by very many prefixes; tags.c the
 * index, fence.c the leases; evict.c eviction: by order.c, the order of use, or by contest.c and duel.c.
 */
#ifndef LAPSE_TABLE_H
#define LAPSE_TABLE_H

#include "clock.h"
#include "duel.h"
#include "fence.h"
#include "order.h"
#include "segment.h"
#include "slab.h"
#include "tags.h"

#define MAX_DEPTH 25u /* 33 million segments, 20 billion entries */
static_assert(MAX_DEPTH + GROUP_HASH_BITS + TAG_BITS <= 64, "tag, group and directory use disjoint bits");
#define SHIFT_MASK 63u
#define FETCH_FROM 64u /* segments */
#define NOWHERE UINT32_MAX /* no slot */
#define DEPTH_LEEWAY 4u /* how much deeper than log2(segments) before equal hashes are suspected */

#define STRIPES 16u
#if LAPSE_THREADS
#  define COUNTER_STRIPES STRIPES
#else
#  define COUNTER_STRIPES 1u
#endif

/* Counters in cache lines of their own, so that threads do not bounce one between them. */
#define STRIPE_BYTES (3 * CACHE_LINE)
typedef struct {
    lapse_counters c;
    uint64_t pins; /* threads that wait, or run other code, with a segment in their hands (release.c) */
    uint8_t pad[STRIPE_BYTES - sizeof(lapse_counters) - sizeof(uint64_t)];
} stripe;
static_assert(sizeof(stripe) == STRIPE_BYTES, "counters fit");

#define SCRATCH_BYTES (SEGMENT_SLOTS * sizeof(record))

struct lapse_table {
    uint64_t directory;   /* packed: see above */
    int64_t slack, tick;  /* clock.h; the tick is 0 under a caller's clock */
    lapse_mode mode;
    bool locked_reads, own_clock;
    int64_t soft_at, soft_until; /* of the last lapse_soften(): see stale.c */
    bool quick;           /* read_quickly() may be used: fixed lifetimes, native clock, no locked reads */
    uint64_t storms;      /* under way (storm.c): reads take locks meanwhile */
    uint64_t structure;   /* GIL builds: rises whenever a segment leaves the directory or is refitted */
    lapse_config config;
    uint64_t random;      /* state of the generator: a counter that splitmix64 mixes */
    lapse_lock directory_lock;
    size_t segments;
    bool grown;           /* since the last lapse_pack() */
    bool releasing;       /* somebody is about to give memory back */
    uint32_t idle_above; /* of `arrays`: the deeper ones have not been used since note_idle() (release.c) */
    uint32_t depth_count[MAX_DEPTH + 1];
    segment **arrays[MAX_DEPTH + 1]; /* one directory a depth, kept for reuse */
    slab_pool pool;
    record *scratch; /* where the entries of a segment wait during a refit or split */
    segment *retired; /* heap segments for reuse: emptied ones, and what was supplied in vain */
    segment *graveyard; /* detached by clear, entries still inside */
    tag_index index;
    lapse_fence fence;
    lapse_order order;
    lapse_duel duel;
    uint64_t earliest; /* of a bounded table: a lower bound of DEADLINE_RANK over all segments */
    uint64_t expiry_hand; /* where what has expired was found last, to make way: a hash */
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

/* --- Bounds --- */

/* An entry of a bounded table is used. */
INLINE void note_use(lapse_table *t, const segment *s, uint32_t slot) {
    if (s->nodes == NULL) return;
    if (LIKELY(t->duel.on)) mark_use(&s->marks[slot]);
    else order_use(&t->order, s->nodes[slot]);
}

/* --- Time --- */

INLINE bool passed(int64_t deadline, int64_t at) { return DEADLINE_RANK(deadline) < (uint64_t)at; }

/* An entry goes when its deadline lies before this: its grace has passed too. */
INLINE int64_t grace_before(const lapse_table *t, int64_t at) {
    int64_t grace = t->config.grace, until = RELAXED(&t->soft_until);
    if (UNLIKELY(at < until) && until - RELAXED(&t->soft_at) > grace) grace = until - RELAXED(&t->soft_at);
    return at > grace ? at - grace : 0;
}

/* --- Lookups under the lock (table.c) --- */

#define LEAST_CAPACITY 64u /* that the policy of a weighed table begins with */
#define VERDICTS 8u /* comparisons remembered while another thread keeps changing the segment */

/* The outcome of lookup_begin(): the segment is locked until lookup_end(). The verdicts own the keys
 * they name, so they are given up only after the unlock. */
typedef struct {
    segment *s;
    uint32_t slot;
    uint32_t verdicts;
    lapse_object *judged[VERDICTS];
    bool equal[VERDICTS];
    lapse_table *struck_from; /* not NULL: `struck` was taken out of it for a storm, which began at `at` */
    lapse_item struck;
    int64_t at;
} lookup;

/* What a read does besides: PLAIN ones re-arm, draw and note the use; those TO_REFRESH draw for a ticket to
 * reload; QUIET ones do nothing. */
typedef enum { READ_PLAIN, READ_TO_REFRESH, READ_QUIET } read_kind;

/* The dates of one entry, read together before the view is checked. */
typedef struct {
    int64_t deadline, ttl, limit;
    uint32_t cost;
} dates;

void await_segments(lapse_table *t);
void wait_for_lock(lapse_table *t, segment *s);
lapse_status lookup_begin(lookup *l, lapse_table *t, lapse_object *key, uint64_t h);
void lookup_end(lookup *l);
void rearm(lapse_table *t, segment *s, uint32_t slot, uint64_t seq, int64_t deadline);
lapse_status read_under_lock(lapse_table *t, lapse_object *key, uint64_t h, int64_t now, read_kind kind,
                             lapse_object **value);
lapse_status judge_early(lapse_table *t, dates d, int64_t at);
lapse_status judge_refresh(lapse_table *t, dates d, int64_t at);
double draw(lapse_table *t);
void table_remove(lapse_table *t, segment *s, uint32_t slot, lapse_item *removed);

void age_segment(segment *s, uint32_t age);

/* Between the two the memory of segments is not given back (release.c): by who may wait, or run other code, while he
 * holds the address of one that may leave the table. */
#if LAPSE_THREADS
void table_pin(lapse_table *t);
void table_unpin(lapse_table *t);
void pins_after_fork(lapse_table *t);
#else
INLINE void table_pin(lapse_table *t) { (void)t; }
INLINE void table_unpin(lapse_table *t) { (void)t; }
#endif

/* Lock the segment that covers h. */
INLINE segment *lock_segment(lapse_table *t, uint64_t h) {
    for (;;) {
        segment *s = locate(t, h);
        PREFETCH(&s->next_rank);
        bool waits = UNLIKELY(!lock_try(&s->lock));
        if (waits) wait_for_lock(t, s);
        bool good = LIKELY(!s->dead && segment_covers(s, h));
        if (!good) lock_drop(&s->lock);
        if (waits) table_unpin(t);
        if (good) return s;
        await_segments(t);
    }
}

/* Bring the asks of the locked segment up to date. */
INLINE void table_age(const lapse_table *t, segment *s) {
    uint32_t age = RELAXED(&t->duel.age);
    if (UNLIKELY(age != s->aged) && s->counted) age_segment(s, age);
}

/* Take the entry of a full slot out of the locked segment, and out of the index. The caller knows its hash, which
 * lies in a cache line of its own. */
INLINE void table_take(lapse_table *t, segment *s, uint32_t slot, uint64_t h, lapse_item *removed) {
    if (UNLIKELY(RELAXED(&t->index.active))) index_forget(&t->index, h, entry_at(s, slot)->key);
    if (s->nodes && !s->counted) order_drop(&t->order, s->nodes[slot]);
    uint32_t weight = weight_at(s, slot);
    segment_remove(s, slot, removed);
    if (s->nodes == NULL) return;
    order_give(&t->order, weight); /* only now: another thread may store one at once */
    order_count(&t->order, -1);
}

/* Is it worth while to fetch what the default policy needs before it does? In a small table the processor's core has it
 * in its cache. */
INLINE bool fetches_ahead(const lapse_table *t) { return t->duel.on && RELAXED(&t->segments) >= FETCH_FROM; }

/* Does the policy count on far more or fewer entries than there are? */
INLINE bool policy_is_off(const lapse_table *t) {
    uint64_t entries = RELAXED(&t->order.entries), capacity = RELAXED(&t->duel.capacity);
    if (LIKELY(!t->order.weighed) || !t->duel.on) return false;
    return entries > capacity + capacity / 4 ||
           (RELAXED(&t->duel.full) && 2 * entries < capacity && capacity > LEAST_CAPACITY);
}

/* Give up what the index has done with, if anything; no lock is held. */
INLINE void table_settle(lapse_table *t) {
    if (UNLIKELY(RELAXED(&t->index.unsettled))) index_settle(&t->index, t->config.memory);
}

/* Is the entry of a full slot as good as gone? Under the segment's lock. */
INLINE bool table_dooms(lapse_table *t, const segment *s, uint32_t slot) {
    if (LIKELY(RELAXED(&t->storms) == 0)) return false;
    return fence_dooms(&t->fence, *hash_at(s, slot), entry_at(s, slot)->key);
}

/* --- Growth (grow.c) --- */

lapse_status make_room(lapse_table *t, uint64_t h, int64_t now);
lapse_status table_fit(lapse_table *t, uint64_t h); /* MORE: not yet, as it has changed meanwhile */
uint32_t table_fewest_slots(const lapse_table *t, const segment *s);
void directory_assign(lapse_table *t, const segment *s, segment *to);
void directory_publish(lapse_table *t, uint32_t bits);
void directory_fit(lapse_table *t);
void retire(lapse_table *t, segment *s);
bool duel_evict(lapse_table *t, const record *newcomer, lapse_item *gone); /* contest.c */
void table_evict(lapse_table *t, const record *newcomer, int64_t at); /* evict.c, like what follows */
bool table_evict_beside(lapse_table *t, const record *newcomer, int64_t at, lapse_item *gone);
void table_refit_policy(lapse_table *t);
void table_recount(lapse_table *t);
void table_note_rank(lapse_table *t, uint64_t rank);
uint32_t slot_with_node(const segment *s, uint64_t h, uint32_t node); /* or NOWHERE */
void table_release(lapse_table *t); /* release.c */
void empty_for_good(lapse_table *t); /* steps.c */
void table_prefetch(const lapse_table *t, size_t n, const uint64_t *mixed); /* batch.c */
segment *retired_take(lapse_table *t, uint32_t slots);
segment *new_heap_segment(lapse_table *t, uint32_t slots);

#endif
