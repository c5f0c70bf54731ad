/* The body of the tag index (tags.h): nodes and their free list, the two hashes, the rings of the labels. For
 * tags.c, which says what entries and labels do, and tags_pack.c, which moves nodes together. */
#ifndef LAPSE_TAGS_BODY_H
#define LAPSE_TAGS_BODY_H

#include "levels.h"
#include "tags.h"

#include <assert.h>

#define GROW_AHEAD 4u /* buckets between fetching and dividing */

/* A label or a posting. A label's list is a ring through the label itself, which stands between the newest
 * posting and the oldest. */
typedef struct {
    uint64_t hash; /* of the label; of the posting's entry */
    lapse_object
        *object; /* a label: its name, NULL for a prefix. A posting: the key, NULL for a walk. Of a free
                           * node: the body's own address, which no object has */
    uint32_t chain; /* the next node of the bucket, of the free list, or of the morgue */
    uint32_t newer,
        older; /* a label: its oldest and its newest posting. Of a free node: the free one before it */
    union {
        uint32_t label; /* a posting's */
        uint32_t count; /* a label's postings, walks aside */
    };
} node;

static_assert(sizeof(void *) != 8 || sizeof(node) == 32, "two nodes a cache line");

/* Both hashes chain nodes through `chain`, which starts in a bucket. */
enum { LABELS, MEMBERS, HASHES };

#define ELEMENT_BYTES \
    (sizeof(node) + HASHES * sizeof(uint32_t)) /* of a level: a node and a bucket of each hash */

struct index_body {
    uint8_t *levels[LEVELS]; /* nodes[n] | label buckets[n] | member buckets[n] */
    uint32_t level_count;
    uint32_t made, used, freed; /* nodes ever taken, nodes in use, the first of the free list */
    uint32_t count[HASHES], buckets[HASHES];
    uint32_t touched,
        most_buckets[HASHES]; /* the most of `made` and `buckets` since what lies behind was given back */
    uint32_t walks; /* at its labels: meanwhile no node moves */
    struct {
        uint32_t from, to,
            at; /* a label that has moved, and the first posting that does not know yet; 0: none */
    } moved;
    uint32_t morgue; /* labels that died, whose names are not yet given up */
    uint32_t drained; /* of a body put aside: label buckets whose names are given up */
    index_body *next;
};

/* --- Nodes and buckets; 0 is no node --- */

static inline node *node_at(const index_body *b, uint32_t id) {
    uint32_t k = level_of(id);
    return (node *)(void *)b->levels[k] + place_in_level(id, k);
}

static inline uint32_t *bucket_at(const index_body *b, int which, uint32_t i) {
    uint32_t k = level_of(i);
    uint32_t *arrays = (uint32_t *)(void *)((node *)(void *)b->levels[k] + level_elements(k));
    return arrays + level_elements(k) * (size_t)which + place_in_level(i, k);
}

static inline bool has_room(const index_body *b, size_t nodes) {
    return b && levels_capacity(b->level_count) - 1 - b->used >= nodes;
}

static inline bool is_free(const index_body *b, uint32_t id) {
    return node_at(b, id)->object == (const void *)b;
}

/* Out of the free list, from wherever it stands there. */
static inline void free_out(index_body *b, uint32_t id) {
    uint32_t before = node_at(b, id)->newer, next = node_at(b, id)->chain;
    if (before) node_at(b, before)->chain = next;
    else b->freed = next;
    if (next) node_at(b, next)->newer = before;
}

static inline uint32_t take_node(index_body *b) {
    uint32_t id = b->freed;
    if (id) free_out(b, id);
    else id = ++b->made;
    if (id > b->touched) b->touched = id;
    b->used++;
    return id;
}

static inline void give_node(index_body *b, uint32_t id) {
    *node_at(b, id) = (node){.object = (lapse_object *)(void *)b, .chain = b->freed};
    if (b->freed) node_at(b, b->freed)->newer = id;
    b->freed = id;
    b->used--;
}

/* --- Labels that have moved --- */

/* The label of a posting, who may not know yet that it has moved. */
static inline uint32_t label_of(const index_body *b, const node *posting) {
    return UNLIKELY(posting->label == b->moved.from) ? b->moved.to : posting->label;
}

/* All its postings know, or there is none any more: the old place is free. */
static inline void label_moved(index_body *b) {
    give_node(b, b->moved.from);
    b->moved.from = b->moved.to = b->moved.at = 0;
}

/* --- Linear hashing --- */

static inline uint32_t bucket_of(const index_body *b, int which, uint64_t hash) {
    uint32_t n = b->buckets[which];
    if (n == 1) return 0;
    uint32_t mask = (2u << highest_bit(n - 1)) - 1, i = (uint32_t)hash & mask;
    return i < n ? i : i & (mask >> 1);
}

static inline uint32_t *chain_of(const index_body *b, int which, uint64_t hash) {
    return bucket_at(b, which, bucket_of(b, which, hash));
}

/* One bucket more: it takes its share from the bucket that stood for it. */
static inline void grow(index_body *b, int which) {
    uint32_t fresh = b->buckets[which]++, old = fresh & ~(1u << highest_bit(fresh));
    if (fresh >= b->most_buckets[which]) b->most_buckets[which] = fresh + 1;
    uint32_t *to = bucket_at(b, which, fresh), *link = bucket_at(b, which, old);
    while (*link) {
        node *n = node_at(b, *link);
        uint32_t id = *link;
        if (bucket_of(b, which, n->hash) != fresh) {
            link = &n->chain;
            continue;
        }
        *link = n->chain;
        n->chain = *to;
        *to = id;
    }
    uint32_t ahead = *bucket_at(b, which, old + GROW_AHEAD < fresh ? old + GROW_AHEAD : 0);
    if (ahead) PREFETCH(node_at(b, ahead)); /* buckets are divided one after the other */
}

static inline void chain_in(index_body *b, int which, uint32_t id) {
    node *n = node_at(b, id);
    if (++b->count[which] > b->buckets[which]) grow(b, which);
    uint32_t *first = chain_of(b, which, n->hash);
    n->chain = *first;
    *first = id;
}

static inline void chain_out(index_body *b, int which, uint32_t *link) {
    *link = node_at(b, *link)->chain;
    b->count[which]--;
}

/* --- Rings --- */

/* Put a node between `older` and what follows it. */
static inline void ring_in(const index_body *b, uint32_t id, uint32_t older) {
    node *n = node_at(b, id), *o = node_at(b, older);
    n->older = older;
    n->newer = o->newer;
    node_at(b, o->newer)->older = id;
    o->newer = id;
}

static inline void ring_out(index_body *b, uint32_t id) {
    const node *n = node_at(b, id);
    if (UNLIKELY(id == b->moved.at)) b->moved.at = n->newer;
    node_at(b, n->older)->newer = n->newer;
    node_at(b, n->newer)->older = n->older;
}

#endif
