/* The default policy of a bounded cache: a short window, a main part under one hand, and two rules that are
 * judged by what comes back first (docs/decisions/0025-default-policy.md; benchmarks/policies/duel.c).
 *
 *     new ──► window (a ring) ──► contest ──► main part: its hand walks in the order of hashes
 *                                    │
 *                                    └──► the loser: history, buckets of a cache line each:
 *
 *     tags[15], next | rests[15], aged | facts[15] of {asks 4 | time 12} | one unused
 *
 * What the policy knows of an entry lies in its slot (segment.h): uses and asks, which reads raise, and whether
 * it is in the window. Here is what it knows of keys that are gone, and its state.
 *
 * Invariants
 *   1. An entry of a slot that is young has an item in the ring; an item may be stale, its entry gone.
 *   2. Every item of the ring was stored while the ring held fewer than `window_most`.
 *
 * Threads: `lock` guards ring and history; it is taken under a segment's lock and nothing is taken under it.
 * `evicting` is held through an eviction; segments are locked under it, one at a time. It guards the rest.
 */
#ifndef LAPSE_DUEL_H
#define LAPSE_DUEL_H

#include "segment.h"

#define DUEL_BUCKET 15u /* keys */
#define DUEL_TIME_BITS 12u
#define DUEL_ASK_BITS 4u
#define DUEL_ASKS_MOST 15u
#define DUEL_USES_MOST 3u

/* The byte of a slot: uses since the hand's visits, asks since long ago. */
#define MARK_USES DUEL_USES_MOST
#define MARK_ASK 4u
#define MARK_ASKS (DUEL_ASKS_MOST * MARK_ASK)

typedef enum { BY_FREQUENCY, BY_RECENCY } duel_rule;

/* An entry of the window. Twelve bytes, so the hash comes in halves. */
typedef struct {
    uint32_t high, low;
    uint32_t time; /* when it was evicted the last time, doubled, and one; 0: long ago or never */
} duel_item;
static_assert(sizeof(duel_item) == 12, "three words");

/* What is known of some keys that are gone. */
typedef struct {
    uint8_t tags[GROUP_SLOTS];  /* of a fingerprint, one byte; the last place: which one is written next */
    uint8_t rests[GROUP_SLOTS]; /* the other byte, 0: no key; the last place: `age` when it was aged */
    uint16_t facts[GROUP_SLOTS];
} duel_bucket;
static_assert(sizeof(duel_bucket) == 64 && DUEL_BUCKET == GROUP_SLOTS - 1, "a cache line");

/* Two hashes that met while the rules disagreed. */
typedef struct {
    uint64_t loser, winner;
    uint32_t reign;
    duel_rule by;
    bool open;
} duel_contest;

typedef struct {
    bool on; /* never changes */
    bool full;
    duel_rule rule;
    uint64_t capacity; /* in entries; those of a weighed table are counted now and then */
    double window_share, score, step;
    uint64_t window_goal, window_most;
    duel_item *ring;
    size_t ring_start, ring_size, ring_room;
    uint64_t entered; /* items that ever came into the ring */
    duel_bucket *history;
    uint64_t salt;
    size_t bucket_count;
    uint32_t now, time_shift; /* evictions so far; 2^time_shift of them are a unit of the history's times */
    uint32_t age;            /* how often asks were halved */
    uint64_t next_age;       /* the number of requests at which they are halved again */
    duel_contest *contests;
    uint64_t contest_mask, sample_mask;
    uint64_t hand, hand_first; /* the hand's place in the order of hashes, and the segment that it is in */
    uint32_t hand_slot, last_visit;
    uint64_t spared; /* the hash of an entry that is being stored: it does not make way for itself */
    uint64_t head; /* the hash that waits at the hand */
    uint32_t reign, standing; /* how many waited before it; its contests that are not decided yet */
    bool waiting; /* somebody waits */
    bool arrived; /* the hand has entered the segment that `hand_first` begins */
    lapse_lock lock, evicting;
} lapse_duel;

void duel_init(lapse_duel *d, bool on, uint64_t capacity, uint64_t seed);
void duel_refit(lapse_duel *d, const lapse_memory *memory, uint64_t capacity);
void duel_free(lapse_duel *d, const lapse_memory *memory);
void duel_restart(lapse_duel *d);
uint64_t duel_entered(lapse_duel *d);
bool duel_remembers(lapse_duel *d, uint64_t entries);
void duel_forget(lapse_duel *d, const lapse_memory *memory, uint64_t entered);
size_t duel_bytes(lapse_duel *d);
lapse_status duel_make_room(lapse_duel *d, const lapse_memory *memory);
void duel_prepare(lapse_duel *d, const lapse_memory *memory);
bool duel_enter(lapse_duel *d, uint64_t hash, uint8_t *mark, bool *young);
bool duel_leave(lapse_duel *d, duel_item *item);
void duel_ahead(lapse_duel *d, size_t step, size_t n, uint64_t *hashes);
bool duel_knows(lapse_duel *d, uint64_t hash);
void duel_remember(lapse_duel *d, uint64_t hash, uint32_t asks);
void duel_set_window(lapse_duel *d);
uint64_t duel_half_life(const lapse_duel *d);
void duel_vote(lapse_duel *d, duel_rule rule);
duel_contest *duel_contest_of(lapse_duel *d, uint64_t loser);

/* What the history knows a key by. Nobody outside can choose keys that share it. */
INLINE uint64_t duel_print(const lapse_duel *d, uint64_t hash) { return mix_hash(hash ^ d->salt); }
INLINE size_t duel_bucket_number(uint64_t print, size_t count) {
    return (size_t)((print >> 8 & UINT32_MAX) * count >> 32);
}
/* Begin to fetch what is known of a hash. No lock: what is fetched may be gone, or never have been. */
INLINE void duel_fetch(const lapse_duel *d, uint64_t hash) {
    const duel_bucket *history = RELAXED(&d->history);
    if (history) PREFETCH(history + duel_bucket_number(duel_print(d, hash), RELAXED(&d->bucket_count)));
}
INLINE uint64_t duel_hash(const duel_item *i) { return (uint64_t)i->high << 32 | i->low; }
INLINE uint32_t mark_uses(uint8_t mark) { return mark & MARK_USES; }
INLINE uint32_t mark_asks(uint8_t mark) { return mark / MARK_ASK; }

/* The entry is read: raise what is not at its most. No lock: a raise that is lost harms nobody. Where other threads
 * read the line, too, it is stored only if it changes; elsewhere to ask would cost more. */
INLINE void mark_use(uint8_t *mark) {
    uint8_t m = RELAXED(mark);
#if LAPSE_THREADS
    if (LIKELY(m == (MARK_USES | MARK_ASKS))) return;
#endif
    m = (uint8_t)(m + ((m & MARK_USES) < MARK_USES) + (m < MARK_ASKS ? MARK_ASK : 0));
    STORE(mark, m);
}

#endif
