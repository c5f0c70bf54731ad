/* The order of use of a bounded cache: exact LRU, one ring for the whole table.
 *
 *     sentinel (node 0) ──► oldest ──► ... ──► newest ──► sentinel
 *
 * A node has the hash of its entry; the entry's slot has the number of its node (segment.h), which moves along
 * when segments split. So either finds the other, and moving an entry moves no node.
 *
 * Room for entries is handed out in tokens: an insertion takes one first, and evicts until it gets one, so
 * that there are never more entries than the limit.
 *
 * Invariants (order_check() and lapse_check() walk them)
 *   1. In a table with an order every entry has a node of its own, and every node but the sentinel an entry,
 *      while no segment is locked.
 *   2. tokens >= the number of entries, and <= limit.
 *
 * Threads: `lock` guards the nodes; it is taken under a segment's lock and nothing is taken under it. A node's
 * number is good under the lock of the segment whose slot has it. `tokens` is atomic.
 */
#ifndef LAPSE_ORDER_H
#define LAPSE_ORDER_H

#include "levels.h"

typedef struct {
    uint64_t hash; /* mixed */
    uint32_t newer, older; /* of the sentinel: the oldest and the newest. Of a free node: the next free one */
} order_node;

static_assert(sizeof(order_node) == 16, "four nodes a cache line");

typedef struct {
    bool on; /* never changes */
    uint64_t limit, tokens;
    uint32_t level_count, made, freed;
    order_node *levels[LEVELS];
    lapse_lock lock;
} lapse_order;

void order_init(lapse_order *o, bool on, uint64_t limit);
void order_free(lapse_order *o, const lapse_memory *memory);
bool order_take_token(lapse_order *o);
void order_give_token(lapse_order *o);
lapse_status order_make_room(lapse_order *o, const lapse_memory *memory);
bool order_add(lapse_order *o, uint64_t hash, uint32_t *node);
void order_drop(lapse_order *o, uint32_t node);
void order_use(lapse_order *o, uint32_t node);
uint32_t order_oldest(lapse_order *o, uint64_t *hash);
void order_restart(lapse_order *o, uint64_t entries, lapse_order *old);
size_t order_bytes(lapse_order *o);
bool order_check(lapse_order *o, size_t *entries);

#endif
