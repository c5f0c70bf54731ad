/* A segment: a small open-addressing table of entries that share a prefix of the mixed hash.
 *
 *   header   seq | ctrl* | pages* | ttls* | first_hash | groups, depth | hashes_at, entries_at | nodes* | ...
 *   ctrl     one control byte a slot (probe.h)
 *   bitmaps  gc: may be in a cycle      own: its lifetime is not the table's default
 *            foreign: its key is not an exact str
 *            in a table of the default policy: young, watched, and marks[slots] behind them (duel.h)
 *   data     slot pages, then [ttls[slots]]  [limits[slots]]  [nodes[slots]]  [costs[slots]]  [weights[slots]]
 *
 *   slot page, 4 KiB:   | deadlines[128] | hashes[128] | entries[128] of {key, value} |
 *                       0               1,024         2,048                           4,096
 *
 * The sweep runs over packed deadlines, a kibibyte at a time; a read or a write finds deadline, hash and
 * entry of its slot on one page, so that it waits for one address translation.
 *
 * A heap segment is one allocation of exactly its size: 16, 32, .. 512 or 1,024 slots (fewer than 128
 * make one short page), or more where equal hashes forbid a split. A slab segment has eight pages for
 * 1,024 slots and uses five of them (640 slots) or all, or in a packed table (pack.c) any number; it grows where it
 * is, and pages that it does not use are not resident. A split leaves the old segment its eight pages and gives the new one
 * five: at the worst moment, when all have just split, that is 63.0 B an entry (slab segments of a cache
 * without further arrays: (6.5 pages + 1,600 B of header, ctrl and bitmaps) / 448).
 *
 * Invariants (segment_check() walks them)
 *   1. A slot is FULL in ctrl exactly if its key and value are set; otherwise both are NULL and its
 *      deadline is 0. Every field has its place for the life of the memory, so a late reader finds
 *      pointers where pointers were (type-stable memory).
 *   2. used + tombstones <= slot_limit(slots) < slots: every probe meets an EMPTY slot.
 *   3. Every entry's hash begins with the first `depth` bits of first_hash.
 *   4. next_rank <= DEADLINE_RANK(d) of every deadline d.
 *   5. seq is even outside a write window, never falls, and rises with every change of ctrl or entries.
 *
 * Threads: the fields of the first cache line are read without a lock under the protocol of
 * read.h. Everything is written by the holder of `lock`, between write_begin() and write_end(); only
 * a sliding deadline moves under the lock alone (rearm()), and what is outside the directory belongs to
 * the holder of the directory lock, its window open all the while.
 */
#ifndef LAPSE_SEGMENT_H
#define LAPSE_SEGMENT_H

#include "lapse.h"
#include "probe.h"
#include "scan.h"

#define SEGMENT_MIN_SLOTS 16u
#define SEGMENT_HALF_SLOTS 640u /* five pages: what the new half of a split begins with */
#define SEGMENT_SLOTS 1024u     /* eight pages: then it splits */
#define PAGE_SLOTS 128u
#define PAGE_BYTES ((size_t)4096)
#define CACHE_LINE 64u

typedef struct {
    lapse_object *key, *value;
} entry;

static_assert(sizeof(void *) != 8 || sizeof(entry) == 16, "an entry never straddles a cache line");
static_assert(PAGE_SLOTS * (2 * sizeof(int64_t) + 16) == PAGE_BYTES, "deadline, hash and entry fill a page");
static_assert(SEGMENT_HALF_SLOTS % PAGE_SLOTS == 0 && SEGMENT_SLOTS % PAGE_SLOTS == 0, "whole pages");
/* A half of a full segment must fit the 640 slots with room to grow. */
static_assert(SEGMENT_SLOTS / 8 * 7 / 2 < SEGMENT_HALF_SLOTS / 8 * 7, "halves of a split fit");

typedef struct segment {
    /* Read by every lookup. */
    uint64_t seq;
    uint8_t *ctrl;
    uint8_t *pages;
    int64_t *ttls;       /* NULL unless the table keeps each entry's own lifetime */
    uint64_t first_hash; /* the first hash of the range that the segment covers */
    uint32_t groups;     /* slots / 16 */
    uint32_t depth;      /* how many leading bits of first_hash count */
    uint32_t hashes_at, entries_at; /* where they begin on a page; deadlines begin at 0 */
    union { /* in a bounded table: */
        uint32_t *nodes; /* the entry's place in the order (order.h) */
        uint8_t *marks; /* or how it is used (duel.h): `counted` says which */
    };
    /* Used by writers only. */
    uint64_t next_rank; /* a lower bound of DEADLINE_RANK over the segment */
    uint64_t *gc, *own, *foreign; /* bitmaps */
    uint64_t *young, *watched; /* bitmaps, if `counted`: in the window; the winner of a contest */
    int64_t *limits;    /* NULL unless the table has a max_lifetime: the hard deadline */
    uint32_t *costs;    /* NULL unless the table is probabilistic: microseconds that the load took, or 0 */
    uint32_t *weights; /* NULL unless the table has a weigher; 0 where there is no entry */
    uint64_t weight;   /* their sum */
    struct segment *next;
    struct slab *slab; /* NULL: a heap segment */
    uint64_t
        *gists; /* of the keys' texts (text.h), 0 where unknown; NULL until a pass wants them. Under `lock` */
    uint32_t used; /* read without the lock by mergeable(), as a hint */
    uint32_t tombstones, gc_count, own_count, foreign_count;
    lapse_lock lock;
    bool gists_known; /* all but those of entries that came since are in `gists` */
    bool counted; /* has marks, not nodes */
    uint32_t aged, visited; /* how often asks were halved, and when the hand came last, if `counted` */
    bool dead; /* out of the directory; readers and writers that still hold it start again */
    bool idle; /* retired, and not used since release.c looked */
} segment;

static_assert(sizeof(void *) != 8 || offsetof(segment, next_rank) == CACHE_LINE, "a read needs one line");

/* The arrays behind the pages that a table's segments have. */
typedef struct {
    bool ttls, limits, nodes, costs, marks, weights;
} segment_arrays;

/* Everything about one entry that moves with it. */
typedef struct {
    entry e;
    uint64_t hash;
    int64_t deadline, ttl, limit;
    uint32_t node, cost, weight;
    uint8_t mark;
    bool young, watched;
    bool own, gc, foreign; /* known from the bitmaps, so that moving touches neither key nor value */
} record;

/* --- Hash bits: tag, group and directory use disjoint parts --- */

#define GROUP_HASH_BITS 32u /* behind the tag's; the directory takes its bits from the other end */

/* Fold the 128-bit product: integers hash to themselves, and every bit of them must count. */
INLINE uint64_t mix_hash(uint64_t hash) {
    const uint64_t odd = UINT64_C(0x9E3779B97F4A7C15); /* 2^64 / golden ratio */
#if defined(__SIZEOF_INT128__)
    unsigned __int128 product = (unsigned __int128)hash * odd;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t x = hash * odd;
    x = (x ^ (x >> 32)) * odd;
    return x ^ (x >> 29);
#endif
}
INLINE uint8_t hash_tag(uint64_t h) { return (uint8_t)(CTRL_FULL | (h & TAG_MASK)); }
INLINE uint32_t hash_group(uint64_t h, uint32_t groups) {
    return (uint32_t)((uint64_t)(uint32_t)(h >> TAG_BITS) * groups >> GROUP_HASH_BITS);
}
/* The leading `bits` (0 .. 63) of h; two shifts because shifting a word by 64 is undefined. */
INLINE uint64_t hash_prefix(uint64_t h, uint32_t bits) { return (h >> 1) >> (63u - bits); }

INLINE uint32_t segment_slots(const segment *s) { return s->groups * GROUP_SLOTS; }
/* Places in `gists`: a slab segment may come to use all its slots. */
INLINE uint32_t segment_gists(const segment *s) { return s->slab ? SEGMENT_SLOTS : segment_slots(s); }
#define SLOT_LIMIT(slots) ((slots) - (slots) / 8)
INLINE uint32_t slot_limit(uint32_t slots) { return SLOT_LIMIT(slots); }
/* The fewest slots of a slab segment for so many entries. */
INLINE uint32_t slots_for(uint32_t entries) {
    uint32_t page = slot_limit(PAGE_SLOTS), pages = (entries + page - 1) / page;
    return pages > 0 ? pages * PAGE_SLOTS : PAGE_SLOTS;
}
INLINE bool segment_covers(const segment *s, uint64_t h) {
    uint32_t depth = RELAXED(&s->depth);
    return hash_prefix(h ^ RELAXED(&s->first_hash), depth) == 0;
}
/* The last hash of the segment's range. */
INLINE uint64_t segment_last_hash(const segment *s) {
    return s->depth == 0 ? UINT64_MAX : s->first_hash | (UINT64_MAX >> s->depth);
}
/* Move a cursor in the order of hashes behind the segment. False: that was the last one. */
INLINE bool segment_pass(uint64_t *cursor, const segment *s) {
    *cursor = segment_last_hash(s) + 1;
    return *cursor != 0;
}
INLINE uint32_t next_group(const segment *s, uint32_t g) { return g + 1 == s->groups ? 0 : g + 1; }

/* --- A slot's fields --- */

/* The place of a field of `bytes` bytes a slot: page x 4,096 + (slot mod 128) x bytes, in fewer steps. */
INLINE size_t field_offset(uint32_t slot, size_t bytes) {
    size_t whole = slot & ~(size_t)(PAGE_SLOTS - 1);
    return whole * (PAGE_BYTES / PAGE_SLOTS - bytes) + slot * bytes;
}
INLINE int64_t *deadline_at(const segment *s, uint32_t slot) {
    return (int64_t *)(void *)(s->pages + field_offset(slot, sizeof(int64_t)));
}
INLINE uint64_t *hash_at(const segment *s, uint32_t slot) {
    return (uint64_t *)(void *)(s->pages + s->hashes_at + field_offset(slot, sizeof(uint64_t)));
}
INLINE entry *entry_at(const segment *s, uint32_t slot) {
    return (entry *)(void *)(s->pages + s->entries_at + field_offset(slot, sizeof(entry)));
}

/* Begin to fetch what lies behind a home group, and with it the translation of its page's address, while
 * the control words are still on their way. */
INLINE void fetch_home(const segment *s, uint32_t g) {
    PREFETCH(entry_at(s, g * GROUP_SLOTS));
    PREFETCH(deadline_at(s, g * GROUP_SLOTS));
}

/* What an entry of a bounded table weighs. */
INLINE uint32_t weight_at(const segment *s, uint32_t slot) { return s->weights ? s->weights[slot] : 1; }

INLINE bool bit_test(const uint64_t *bits, uint32_t i) { return (bits[i / 64] >> (i % 64)) & 1; }
INLINE void bit_put(uint64_t *bits, uint32_t i, bool on) {
    uint64_t mask = UINT64_C(1) << (i % 64);
    STORE(&bits[i / 64], on ? bits[i / 64] | mask : bits[i / 64] & ~mask);
}

/* --- The write window: inside it only loads and stores --- */

INLINE void write_begin(segment *s) {
#if LAPSE_THREADS
    STORE(&s->seq, s->seq + 1); /* odd: readers retry */
    WRITE_FENCE(); /* pairs with READ_FENCE() in read.h */
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

size_t side_bytes(segment_arrays arrays, uint32_t slots);
size_t arrays_bytes(segment_arrays arrays, uint32_t slots);
size_t segment_heap_bytes(uint32_t slots, segment_arrays arrays);
segment *segment_on_heap(const lapse_memory *memory, uint32_t slots, segment_arrays arrays);
void segment_place(segment *s, uint8_t *side, uint8_t *data, uint32_t slots, segment_arrays arrays);
void segment_reset(segment *s, uint32_t slots);

bool segment_has_room(const segment *s, uint64_t h);
uint32_t segment_insert(segment *s, const record *r);
void segment_write(segment *s, uint32_t slot, const record *r);
lapse_item segment_discard(segment *s, uint32_t slot);
void segment_take(segment *s, uint32_t slot, lapse_item *removed);
void segment_remove(segment *s, uint32_t slot, lapse_item *removed);
void segment_read(const segment *s, uint32_t slot, record *out);
uint32_t segment_take_all(segment *s, record *out);
void segment_move_all(segment *from, segment *to);
uint32_t segment_expired(segment *s, int64_t now, uint32_t limit, uint32_t *slots);
uint32_t segment_count_live(const segment *s, int64_t now);
uint32_t segment_soften(segment *s, int64_t at);
void segment_age_young(segment *s);
int segment_traverse(const segment *s, lapse_visit visit, void *arg);
bool segment_check(const segment *s);

#endif
