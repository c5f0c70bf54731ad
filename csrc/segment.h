/* A segment: a small open-addressing table of entries that share a prefix of the mixed hash.
 *
 *   header   seq | ctrl* | entries* | deadlines* | ttls* | first_hash | groups, depth | ...
 *   ctrl     one control byte a slot (probe.h)
 *   bitmaps  gc: may be in a cycle      own: its lifetime is not the table's default
 *   data     deadlines[slots]  [ttls[slots]]  [limits[slots]]  entries[slots] of {key, value, hash}
 *
 * A heap segment (16 .. 512 slots, the only segment of a small cache; or more than 1,024 where equal
 * hashes forbid a split) is one allocation of exactly its size. A slab segment has fixed places for
 * 1,024 slots and uses the first 672 or all of them; it grows and shrinks where it is, and the pages
 * behind the slots that it does not use are not resident:
 *
 *   672 slots:  deadlines 2 pages + entries 4 pages = 24,576 B      1,024 slots:  2 + 6 = 32,768 B
 *
 * so that a half of a split (448 entries) costs 58 B an entry, and so does a 672-slot segment that
 * has just grown: the memory an entry stays under its target at every size.
 *
 * Invariants (segment_check() walks them)
 *   1. A slot is FULL in ctrl exactly if its key and value are set; otherwise both are NULL and its
 *      deadline is 0. The arrays never change their meaning, so a late reader finds pointers where
 *      pointers were (type-stable memory).
 *   2. used + tombstones <= slot_limit(slots) < slots: every probe meets an EMPTY slot.
 *   3. Every entry's hash begins with the first `depth` bits of first_hash.
 *   4. next_rank <= DEADLINE_RANK(d) of every deadline d.
 *   5. seq is even outside a write window, never falls, and rises with every change of ctrl or entries.
 *
 * Threads: the fields of the first cache line are read without a lock under the protocol of
 * read.h. Everything is written by the holder of `lock`, between write_begin() and write_end().
 */
#ifndef LAPSE_SEGMENT_H
#define LAPSE_SEGMENT_H

#include "lapse.h"
#include "probe.h"
#include "scan.h"

#define SEGMENT_MIN_SLOTS 16u
#define SEGMENT_HEAP_SLOTS 512u  /* the largest heap segment of a cache that may still split */
#define SEGMENT_HALF_SLOTS 672u  /* 672 * 24 B = 15.75 KiB: four pages of entries, two of deadlines */
#define SEGMENT_SLOTS 1024u
#define CACHE_LINE 64u

typedef struct {
    lapse_object *key, *value;
    uint64_t hash;
} entry;

static_assert(sizeof(void *) != 8 || sizeof(entry) == 24, "three words an entry");
static_assert(SEGMENT_HALF_SLOTS % GROUP_SLOTS == 0, "whole groups");
static_assert(SEGMENT_HALF_SLOTS * sizeof(entry) <= 4 * 4096, "entries of a half fit four pages");
static_assert(SEGMENT_SLOTS * sizeof(entry) <= 6 * 4096, "entries of a whole fit six pages");
/* A half of a full segment must fit the 672 slots with room to grow. */
static_assert(SEGMENT_SLOTS / 8 * 7 / 2 < SEGMENT_HALF_SLOTS / 8 * 7, "halves of a split fit");

typedef struct segment {
    /* Read by every lookup. */
    uint64_t seq;
    uint8_t *ctrl;
    entry *entries;
    int64_t *deadlines;
    int64_t *ttls;       /* NULL unless the table keeps each entry's own lifetime */
    uint64_t first_hash; /* the first hash of the range that the segment covers */
    uint32_t groups;     /* slots / 16 */
    uint32_t depth;      /* how many leading bits of first_hash count */
    uint64_t pad;
    /* Used by writers only. */
    uint64_t next_rank; /* a lower bound of DEADLINE_RANK over the segment */
    uint64_t *gc, *own; /* bitmaps */
    int64_t *limits;    /* NULL unless the table has a max_lifetime: the hard deadline */
    struct segment *next;
    struct slab *slab; /* NULL: a heap segment */
    uint32_t used, tombstones, gc_count, own_count;
    lapse_lock lock;
    bool dead; /* out of the directory; readers and writers that still hold it start again */
} segment;

/* Everything about one entry that moves with it. */
typedef struct {
    entry e;
    int64_t deadline, ttl, limit;
    bool own;
} record;

/* --- Hash bits: tag, group and directory use disjoint parts --- */

#define GROUP_HASH_BITS 24u
static_assert(TAG_BITS + GROUP_HASH_BITS < 32, "directory bits come from the upper half");

/* Fold the 128-bit product: integers hash to themselves, and every bit of them must count. */
INLINE uint64_t mix_hash(uint64_t hash) {
    const uint64_t odd = UINT64_C(0x9E3779B97F4A7C15); /* 2^64 / golden ratio */
#if defined(__SIZEOF_INT128__)
    unsigned __int128 product = (unsigned __int128)(hash ^ (odd >> 1)) * odd;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t x = (hash ^ (odd >> 1)) * odd;
    x = (x ^ (x >> 32)) * odd;
    return x ^ (x >> 29);
#endif
}
INLINE uint8_t hash_tag(uint64_t h) { return (uint8_t)(CTRL_FULL | (h & TAG_MASK)); }
INLINE uint32_t hash_group(uint64_t h, uint32_t groups) {
    uint32_t bits = (uint32_t)(h >> TAG_BITS) & ((1u << GROUP_HASH_BITS) - 1u);
    return (uint32_t)(((uint64_t)bits * groups) >> GROUP_HASH_BITS);
}
/* The leading `bits` (0 .. 63) of h; two shifts because shifting a word by 64 is undefined. */
INLINE uint64_t hash_prefix(uint64_t h, uint32_t bits) { return (h >> 1) >> (63u - bits); }

INLINE uint32_t segment_slots(const segment *s) { return s->groups * GROUP_SLOTS; }
INLINE uint32_t slot_limit(uint32_t slots) { return slots - slots / 8; }
INLINE bool segment_covers(const segment *s, uint64_t h) {
    uint32_t depth = RELAXED(&s->depth);
    return hash_prefix(h ^ RELAXED(&s->first_hash), depth) == 0;
}
/* The last hash of the segment's range. */
INLINE uint64_t segment_last_hash(const segment *s) {
    return s->depth == 0 ? UINT64_MAX : s->first_hash | (UINT64_MAX >> s->depth);
}
INLINE uint32_t next_group(const segment *s, uint32_t g) { return g + 1 == s->groups ? 0 : g + 1; }

INLINE bool bit_test(const uint64_t *bits, uint32_t i) { return (bits[i / 64] >> (i % 64)) & 1; }
INLINE void bit_put(uint64_t *bits, uint32_t i, bool on) {
    uint64_t mask = UINT64_C(1) << (i % 64);
    STORE(&bits[i / 64], on ? bits[i / 64] | mask : bits[i / 64] & ~mask);
}

/* --- The write window: inside it only loads and stores --- */

INLINE void write_begin(segment *s) {
#if LAPSE_THREADS
    STORE(&s->seq, s->seq + 1); /* odd: readers retry */
    WRITE_FENCE();              /* pairs with READ_FENCE() in read.h */
#else
    (void)s;
#endif
}
INLINE void write_end(segment *s) {
#if LAPSE_THREADS
    PUBLISH(&s->seq, s->seq + 1); /* release: pairs with the acquire of seq in read.h */
#else
    s->seq += 2;
#endif
}

/* --- Making and filling --- */

size_t segment_heap_bytes(uint32_t slots, bool ttls, bool limits);
segment *segment_on_heap(const lapse_memory *memory, uint32_t slots, bool ttls, bool limits);
void segment_place(segment *s, uint8_t *side, uint8_t *data, uint32_t slots, bool ttls, bool limits);
void segment_reset(segment *s, uint32_t slots);

bool segment_has_room(const segment *s, uint64_t h);
uint32_t segment_insert(segment *s, const record *r);
void segment_write(segment *s, uint32_t slot, const record *r);
void segment_remove(segment *s, uint32_t slot, lapse_item *removed);
void segment_read(const segment *s, uint32_t slot, record *out);
uint32_t segment_take_all(segment *s, record *out);
void segment_move_all(segment *from, segment *to);
uint32_t segment_expired(segment *s, int64_t now, uint32_t limit, uint32_t *slots);
uint32_t segment_count_live(const segment *s, int64_t now);
int segment_traverse(const segment *s, lapse_visit visit, void *arg);
bool segment_check(const segment *s);

#endif
