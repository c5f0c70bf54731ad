/* The order of use: see order.h for what it is, its invariants and who may call it. */
#include "order.h"

#include <string.h>

/* --- Nodes --- */

static order_node *node_at(const lapse_order *o, uint32_t i) {
    uint32_t k = level_of(i);
    return o->levels[k] + place_in_level(i, k);
}

/* Put a node at the newest end. */
static void ring_in(const lapse_order *o, uint32_t i) {
    order_node *n = node_at(o, i), *sentinel = node_at(o, 0);
    n->older = sentinel->older;
    n->newer = 0;
    node_at(o, sentinel->older)->newer = i;
    sentinel->older = i;
}

static void ring_out(const lapse_order *o, uint32_t i) {
    const order_node *n = node_at(o, i);
    node_at(o, n->older)->newer = n->newer;
    node_at(o, n->newer)->older = n->older;
}

static bool has_room(const lapse_order *o) {
    return o->freed || o->made + 1 < levels_capacity(o->level_count);
}

/* --- Making --- */

void order_init(lapse_order *o, bool on, uint64_t limit) {
    memset(o, 0, sizeof *o);
    o->on = on;
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

/* May one more entry be stored? */
bool order_take_token(lapse_order *o) {
    if (FETCH_ADD64(&o->tokens, 1) < o->limit) return true;
    ADD(&o->tokens, (uint64_t)-1);
    return false;
}

void order_give_token(lapse_order *o) { ADD(&o->tokens, (uint64_t)-1); }

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
        *node = o->freed ? o->freed : ++o->made;
        if (o->freed) o->freed = node_at(o, o->freed)->newer;
        node_at(o, *node)->hash = hash;
        ring_in(o, *node);
    }
    lock_drop(&o->lock);
    return room;
}

/* The entry goes, and its node with it; the token is the caller's to give. */
void order_drop(lapse_order *o, uint32_t node) {
    lock_take(&o->lock);
    ring_out(o, node);
    node_at(o, node)->newer = o->freed;
    o->freed = node;
    lock_drop(&o->lock);
}

/* The entry was used: it is the newest now. */
void order_use(lapse_order *o, uint32_t node) {
    lock_take(&o->lock);
    if (node_at(o, 0)->older != node) {
        ring_out(o, node);
        ring_in(o, node);
    }
    lock_drop(&o->lock);
}

/* The oldest node, and the hash of its entry; 0: there is none. */
uint32_t order_oldest(lapse_order *o, uint64_t *hash) {
    uint32_t node = 0;
    lock_take(&o->lock);
    if (o->level_count > 0) node = node_at(o, 0)->newer;
    if (node) *hash = node_at(o, node)->hash;
    lock_drop(&o->lock);
    return node;
}

/* Begin again, when every one of `entries` has been put aside; `old` gets the memory, for order_free(). */
void order_restart(lapse_order *o, uint64_t entries, lapse_order *old) {
    lock_take(&o->lock);
    *old = (lapse_order){.level_count = o->level_count};
    memcpy(old->levels, o->levels, sizeof o->levels);
    o->level_count = o->made = o->freed = 0;
    lock_drop(&o->lock);
    ADD(&o->tokens, 0 - entries);
}

/* --- Facts --- */

size_t order_bytes(lapse_order *o) {
    lock_take(&o->lock);
    size_t bytes = levels_capacity(o->level_count) * sizeof(order_node);
    lock_drop(&o->lock);
    return bytes;
}

/* --- Checks --- */

/* Walk the ring; *entries: how many nodes it has. */
bool order_check(lapse_order *o, size_t *entries) {
    *entries = 0;
    if (o->level_count == 0) return true;
    for (uint32_t i = node_at(o, 0)->newer; i != 0; i = node_at(o, i)->newer)
        if (node_at(o, node_at(o, i)->newer)->older != i || ++*entries > o->made) return false;
    return o->tokens >= *entries && o->tokens <= o->limit;
}
