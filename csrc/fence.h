/* The fence: what keeps a load that began before a change from storing what it read before it.
 *
 *   buckets[hash]   ──► lease ──► lease        good leases, by the mixed hash of their key
 *   events          ring of (sequence, tag)    the last tags deleted
 *   passes          ──► pass ──► pass          passes that are under way
 *
 * How a change outdates the leases that it covers, and no others:
 *   a key      marks the leases of that key, under its segment's lock
 *   a pattern  marks the leases whose keys it matches, in bounded steps before it looks at entries; a lease
 *              that is taken while it is under way is outdated from the start if its key matches
 *   a tag      is written down with a sequence number before and after; a lease is outdated by a number
 *              above its own for a tag that it names, when it is taken or when it is filled (and, if it
 *              names tags at all, when too much was written down since to tell in bounded time)
 *   clear      is a sequence number alone
 * Leases alone can be outdated in each of these ways, with no entry touched (lapse_outdate_*(),
 * lapse_pass_outdate()): by who marks entries instead of removing them.
 *
 * A lease is judged when it is filled, under the lock of its key's segment, and of the fence until the index
 * knows the entry: a change that comes later finds it.
 *
 * Keys of exact type str, int and bytes are compared; for others an equal hash counts as an equal key, because
 * their own comparison must not run under a lock: a load may then be refused in vain, and costs a miss.
 *
 * Invariants
 *   1. A lease is in a bucket exactly while it is good; `out` counts them.
 *   2. A tag deleted while leases are out is in `events`, or its number is not above `forgotten`.
 *
 * Threads: a bucket's leases belong to the holder of its lock, and so do their states; the rest belongs to
 * the holder of `lock`. Both are taken under a segment's lock; under `lock` a bucket's and the index's.
 */
#ifndef LAPSE_FENCE_H
#define LAPSE_FENCE_H

#include "lapse.h"
#include "pattern.h"
#include "prefixes.h"

#include <assert.h>

#define LEASES_MAX 65536u    /* leases that are honoured; one more is refused its store */
#define FENCE_BUCKETS 4096u  /* at most 16 leases a bucket on average */
#define FENCE_LOCKS 16u
#define FENCE_EVENTS 65536u /* deleted tags remembered: a mebibyte, of which only what is used is resident */

static_assert(FENCE_BUCKETS % FENCE_LOCKS == 0 && (FENCE_BUCKETS & (FENCE_BUCKETS - 1)) == 0, "masks");

struct lapse_lease {
    uint64_t hash; /* mixed */
    uint64_t born; /* the sequence when it was taken */
    int64_t timed; /* when the load began, if its cost is wanted, else 0 */
    lapse_object *key; /* borrowed: whoever holds the lease holds it */
    lapse_lease *next, **link; /* of its bucket: the next, and what points here */
    bool good; /* not refused, outdated, filled or ended */
};

typedef struct {
    uint64_t sequence, tag;
} fence_event;

/* A pass under way, as far as the fence is concerned. */
typedef struct fence_pass {
    struct lapse_pattern *const *patterns; /* n of them, or */
    size_t n;
    const lapse_prefixes *prefixes; /* those of a storm (storm.c), or */
    uint64_t tag; /* the hash of a tag */
    uint32_t bucket; /* where its walk over the leases stands */
    struct fence_pass *next;
    /* Of a storm: */
    uint64_t reached; /* the first hash that its walk has not come to; moves under that segment's lock */
    bool over; /* it has come to all of them */
    int64_t at;
    uint64_t *counts; /* live entries that went, for each prefix's number */
} fence_pass;

typedef struct {
    uint64_t out; /* leases in buckets; writers read it under their segment's lock alone */
    uint64_t sequence; /* rises with every event */
    uint64_t cleared; /* of the last clear */
    uint64_t forgotten; /* the highest sequence that was pushed out of `events` */
    lapse_lease **buckets;
    fence_event *events;
    uint64_t written; /* events ever written */
    fence_pass *passes;
    lapse_lock lock;
    struct {
        lapse_lock lock;
        uint8_t pad[64 - sizeof(lapse_lock)];
    } stripes[FENCE_LOCKS];
} lapse_fence;

void fence_init(lapse_fence *f);
void fence_reset_locks(lapse_fence *f);
void fence_free(lapse_fence *f, const lapse_memory *memory);
size_t fence_bytes(lapse_fence *f);
lapse_status fence_admit(lapse_fence *f, const lapse_memory *memory, lapse_lease *l);
void fence_dismiss(lapse_fence *f, lapse_lease *l);
bool fence_judge(lapse_fence *f, const lapse_lease *l, const lapse_tags *tags);
void fence_judged(lapse_fence *f);
void fence_mark_key(lapse_fence *f, uint64_t hash, lapse_object *key);
void fence_cleared(lapse_fence *f);
void fence_pass_begin(lapse_fence *f, fence_pass *p);
bool fence_pass_step(lapse_fence *f, fence_pass *p);
bool fence_abandon_passes(lapse_fence *f);
bool fence_pass_end(lapse_fence *f, fence_pass *p);
bool fence_dooms(lapse_fence *f, uint64_t hash, lapse_object *key);
bool fence_strikes(lapse_fence *f, uint64_t hash, lapse_object *key, int64_t deadline, int64_t *at);

#endif
