/* The order of use of a bounded cache: exact LRU, one ring for the whole table.
 *
 *     sentinel (node 0) ──► oldest ──► ... ──► newest ──► sentinel
 *
 * A node has the hash of its entry; the entry's slot has the number of its node (segment.h), which moves along
 * when segments split. So either finds the other, and moving an entry moves no node. Only when a table is packed
 * (pack.c) the last node moves into a free place, until none is left, and what lies behind is given back.
 *
 * Room for entries is handed out in tokens, one an entry, or as many as it weighs: an insertion takes them first,
 * and evicts until it gets them, so that the entries never weigh more than the limit.
 *
 * Invariants (order_check() and lapse_check() walk them)
 *   1. In a table of exact LRU every entry has a node of its own, and every node but the sentinel an entry,
 *      while no segment is locked.
 *   2. tokens >= what the entries weigh together, and <= limit, unless the limit has just been lowered.
 *
 * Threads: `lock` guards the nodes; it is taken under a segment's lock and nothing is taken under it. A node's
 * number is good under the lock of the segment whose slot has it. `tokens`, `limit`, `entries` are atomic.
 */
#ifndef LAPSE_ORDER_H
#define LAPSE_ORDER_H

#include "levels.h"

typedef struct {
    uint64_t hash; /* mixed. Of a free node: the free one before it */
    uint32_t newer,
        older; /* of the sentinel: the oldest and the newest. Of a free node: the next free one, itself */
} order_node;

static_assert(sizeof(order_node) == 16, "four nodes a cache line");

typedef struct {
    bool on, weighed; /* there is a limit; entries weigh different amounts. They never change */
    uint64_t limit, tokens;
    uint64_t entries; /* if weighed */
    uint32_t level_count, made, freed;
    uint32_t touched; /* the highest node that has been made since what lies behind was given back */
    order_node *levels[LEVELS];
    lapse_lock lock;
} lapse_order;

void order_init(lapse_order *o, bool on, bool weighed, uint64_t limit);
bool order_take_weight(lapse_order *o, uint64_t weight);
void order_free(lapse_order *o, const lapse_memory *memory);
lapse_status order_make_room(lapse_order *o, const lapse_memory *memory);
bool order_add(lapse_order *o, uint64_t hash, uint32_t *node);
void order_drop(lapse_order *o, uint32_t node);
uint32_t order_oldest(lapse_order *o, uint64_t *hash);
lapse_status order_last(lapse_order *o, uint64_t *hash, uint32_t *node);
uint32_t order_move(lapse_order *o, uint32_t node);
bool order_trim(lapse_order *o, const lapse_memory *memory);
void order_restart(lapse_order *o, uint64_t entries, uint64_t weight, lapse_order *old);
size_t order_bytes(lapse_order *o);
bool order_check(lapse_order *o, size_t *entries);

/* May so much more be stored? */
INLINE bool order_take(lapse_order *o, uint64_t weight) {
    if (UNLIKELY(o->weighed)) return order_take_weight(o, weight);
    if (LIKELY(FETCH_ADD64(&o->tokens, 1) < RELAXED(&o->limit))) return true;
    ADD(&o->tokens, (uint64_t)-1);
    return false;
}
INLINE void order_give(lapse_order *o, uint64_t weight) { ADD(&o->tokens, 0 - weight); }

/* Is there no room for so much more? */
INLINE bool order_lacks(const lapse_order *o, uint64_t weight) {
    return RELAXED(&o->tokens) + weight > RELAXED(&o->limit);
}

/* An entry comes, or goes. */
INLINE void order_count(lapse_order *o, int by) {
    if (UNLIKELY(o->weighed)) ADD(&o->entries, (uint64_t)(int64_t)by);
}

INLINE order_node *order_node_at(const lapse_order *o, uint32_t i) {
    uint32_t k = level_of(i);
    return o->levels[k] + place_in_level(i, k);
}

/* The entry was used: it is the newest now. Here, because every hit of a bounded table does it. */
INLINE void order_use(lapse_order *o, uint32_t node) {
    lock_take(&o->lock);
    order_node *sentinel = o->levels[0];
    uint32_t newest = sentinel->older;
    if (LIKELY(newest != node)) {
        order_node *n = order_node_at(o, node);
        order_node_at(o, n->older)->newer = n->newer;
        order_node_at(o, n->newer)->older = n->older;
        order_node_at(o, newest)->newer = node;
        n->older = newest;
        n->newer = 0;
        sentinel->older = node;
    }
    lock_drop(&o->lock);
}

#endif
