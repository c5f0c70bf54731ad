/* The order of use: see order.h for what it is, its invariants and who may call it. */
#include "order.h"

#include "memory.h"

#include <string.h>

#define DISCARD_NODES 16384u /* whose pages go in one step: 256 KiB */

/* --- Nodes --- */

/* Put a node at the newest end. */
static void ring_in(const lapse_order *o, uint32_t i) {
    order_node *n = order_node_at(o, i), *sentinel = order_node_at(o, 0);
    n->older = sentinel->older;
    n->newer = 0;
    order_node_at(o, sentinel->older)->newer = i;
    sentinel->older = i;
}

static void ring_out(const lapse_order *o, uint32_t i) {
    const order_node *n = order_node_at(o, i);
    order_node_at(o, n->older)->newer = n->newer;
    order_node_at(o, n->newer)->older = n->older;
}

/* --- Free nodes: chained in both directions, so that any of them can be taken out --- */

static bool is_free(const lapse_order *o, uint32_t i) { return order_node_at(o, i)->older == i; }

static void free_in(lapse_order *o, uint32_t i) {
    *order_node_at(o, i) = (order_node){.newer = o->freed, .older = i};
    if (o->freed) order_node_at(o, o->freed)->hash = i;
    o->freed = i;
}

static void free_out(lapse_order *o, uint32_t i) {
    uint32_t before = (uint32_t)order_node_at(o, i)->hash, next = order_node_at(o, i)->newer;
    if (before) order_node_at(o, before)->newer = next;
    else o->freed = next;
    if (next) order_node_at(o, next)->hash = before;
}

static uint32_t make_node(lapse_order *o) {
    uint32_t i = o->freed;
    if (i) free_out(o, i);
    else i = ++o->made;
    if (i > o->touched) o->touched = i;
    return i;
}

static bool has_room(const lapse_order *o) {
    return o->freed || o->made + 1 < levels_capacity(o->level_count);
}

/* --- Making --- */

void order_init(lapse_order *o, bool on, bool weighed, uint64_t limit) {
    memset(o, 0, sizeof *o);
    o->on = on;
    o->weighed = on && weighed;
    o->limit = limit;
    lock_init(&o->lock);
}

void order_free(lapse_order *o, const lapse_memory *memory) {
    while (o->level_count > 0) {
        uint32_t k = --o->level_count;
        level_drop(memory, k, sizeof(order_node), o->levels[k]);
    }
}

/* --- Tokens --- */

/* The limit may have been lowered between reading it and taking the tokens. */
static bool keeps_limit(lapse_order *o, uint64_t weight) {
    FULL_FENCE(); /* pairs with FULL_FENCE() in lapse_resize() */
    if (RELAXED(&o->tokens) <= RELAXED(&o->limit)) return true;
    order_give(o, weight);
    return false;
}

bool order_take_weight(lapse_order *o, uint64_t weight) {
    for (uint64_t seen = RELAXED(&o->tokens); seen + weight <= RELAXED(&o->limit); seen = RELAXED(&o->tokens))
        if (COMPARE_SWAP64(&o->tokens, seen, seen + weight)) return keeps_limit(o, weight);
    return false;
}

/* --- Order; under the segment's lock --- */

/* See to it that a node may be added; another thread may take it first. No lock is held. OK or NO_MEMORY. */
lapse_status order_make_room(lapse_order *o, const lapse_memory *memory) {
    lock_take(&o->lock);
    uint32_t k = o->level_count;
    bool enough = has_room(o);
    lock_drop(&o->lock);
    if (enough) return LAPSE_OK;
    order_node *level = level_new(memory, k, sizeof(order_node));
    if (level == NULL) return LAPSE_NO_MEMORY;
    lock_take(&o->lock);
    bool wanted = o->level_count == k;
    if (wanted) o->levels[o->level_count++] = level; /* node 0, a ring of its own, is zeroed */
    lock_drop(&o->lock);
    if (!wanted) level_drop(memory, k, sizeof(order_node), level);
    return LAPSE_OK;
}

/* A node for a new entry, as the newest. False: order_make_room() first. */
bool order_add(lapse_order *o, uint64_t hash, uint32_t *node) {
    lock_take(&o->lock);
    bool room = o->level_count > 0 && has_room(o);
    if (room) {
        *node = make_node(o);
        order_node_at(o, *node)->hash = hash;
        ring_in(o, *node);
    }
    lock_drop(&o->lock);
    return room;
}

/* The entry goes, and its node with it; the token is the caller's to give. */
void order_drop(lapse_order *o, uint32_t node) {
    lock_take(&o->lock);
    ring_out(o, node);
    free_in(o, node);
    lock_drop(&o->lock);
}

/* The oldest node, and the hash of its entry; 0: there is none. */
uint32_t order_oldest(lapse_order *o, uint64_t *hash) {
    uint32_t node = 0;
    lock_take(&o->lock);
    if (o->level_count > 0) node = order_node_at(o, 0)->newer;
    if (node) *hash = order_node_at(o, node)->hash;
    lock_drop(&o->lock);
    return node;
}

/* Begin again, when all entries of so much weight have been put aside; `old` gets the memory, for order_free(). */
void order_restart(lapse_order *o, uint64_t entries, uint64_t weight, lapse_order *old) {
    lock_take(&o->lock);
    *old = (lapse_order){.level_count = o->level_count};
    memcpy(old->levels, o->levels, sizeof o->levels);
    o->level_count = o->made = o->freed = o->touched = 0;
    lock_drop(&o->lock);
    ADD(&o->tokens, 0 - weight);
    if (o->weighed) ADD(&o->entries, 0 - entries);
}

/* --- Packing --- */

/* The last node, and the hash of its entry, if there is a free place before it: OK. MORE: it was free itself, and is no
 * more: ask again. ABSENT: none is free. */
lapse_status order_last(lapse_order *o, uint64_t *hash, uint32_t *node) {
    lapse_status status = LAPSE_ABSENT;
    lock_take(&o->lock);
    uint32_t last = *node = o->made;
    if (o->freed && is_free(o, last)) {
        status = LAPSE_MORE;
        free_out(o, last);
        o->made--;
    } else if (o->freed) {
        status = LAPSE_OK;
        *hash = order_node_at(o, last)->hash;
    }
    lock_drop(&o->lock);
    return status;
}

/* Move a node into a free place, if it is the last one still. Under the lock of its entry's segment, whose slot gets the
 * number that this answers. */
uint32_t order_move(lapse_order *o, uint32_t node) {
    uint32_t to = node;
    lock_take(&o->lock);
    if (node == o->made && o->freed) {
        to = o->freed;
        free_out(o, to);
        order_node *n = order_node_at(o, to);
        *n = *order_node_at(o, node);
        order_node_at(o, n->older)->newer = to;
        order_node_at(o, n->newer)->older = to;
        o->made--;
    }
    lock_drop(&o->lock);
    return to;
}

/* Give some of the last level's pages back that hold no node any more. Pages behind `touched` are blank. */
static bool discard_some(lapse_order *o) {
    uint32_t k = o->level_count - 1, from = o->made + 1;
    if (o->level_count == 0 || !level_is_mapped(k, sizeof(order_node)) || o->touched < from) return false;
    if (o->touched - from >= DISCARD_NODES) from = o->touched + 1 - DISCARD_NODES;
    memory_discard(order_node_at(o, from), (levels_capacity(k + 1) - from) * sizeof(order_node));
    o->touched = from - 1;
    return true;
}

/* Give back some of what lies behind the last node. True: there is more of it. */
bool order_trim(lapse_order *o, const lapse_memory *memory) {
    order_node *gone = NULL;
    lock_take(&o->lock);
    uint32_t k = o->level_count - 1;
    bool more, spare = o->level_count > 1 && o->made < levels_capacity(k);
    if (spare) {
        gone = o->levels[k];
        o->level_count = k;
        if (o->touched >= levels_capacity(k)) o->touched = (uint32_t)levels_capacity(k) - 1;
        more = true;
    } else more = discard_some(o);
    lock_drop(&o->lock);
    if (gone) level_drop(memory, k, sizeof(order_node), gone);
    return more;
}

/* --- Facts --- */

size_t order_bytes(lapse_order *o) {
    lock_take(&o->lock);
    size_t bytes = levels_bytes(o->level_count, o->touched + 1, sizeof(order_node), sizeof(order_node));
    lock_drop(&o->lock);
    return bytes;
}

/* --- Checks --- */

static bool check_free(const lapse_order *o, size_t most) {
    size_t n = 0;
    for (uint32_t i = o->freed, before = 0; i; before = i, i = order_node_at(o, i)->newer, n++)
        if (i > o->made || !is_free(o, i) || order_node_at(o, i)->hash != before || n == most) return false;
    return n == most;
}

/* Walk the ring; *entries: how many nodes it has. */
bool order_check(lapse_order *o, size_t *entries) {
    *entries = 0;
    if (o->tokens > (o->on ? o->limit : 0)) return false;
    if (o->level_count == 0) return true;
    for (uint32_t i = order_node_at(o, 0)->newer; i != 0; i = order_node_at(o, i)->newer)
        if (order_node_at(o, order_node_at(o, i)->newer)->older != i || ++*entries > o->made) return false;
    if (o->touched < o->made || !check_free(o, o->made - *entries)) return false;
    return o->weighed || o->tokens >= *entries;
}
