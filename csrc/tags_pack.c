/* Packing the tag index: what is left of it moves together, so that the rest can be given back.
 *
 * The hashes shrink as they have grown, by one bucket at a time. Then the last node moves into a free place, and the
 * one before it, until none is free. A posting is known to its neighbours in the ring and to its bucket. A label is
 * known to each of its postings, too, so many that they are told in steps: until all have been, `moved` says what the
 * old number stands for, and no other node moves.
 *
 * While a walk stands in the index nothing moves: it knows its label, and its own node, by their numbers. */
#include "memory.h"
#include "tags_body.h"

#define PACK_STEP 64u /* buckets, nodes or postings of one step */
#define DISCARD_NODES 8192u /* whose pages go in one step: 256 KiB */

/* --- Buckets --- */

/* One bucket fewer: what is in it goes to the one that it was divided from. */
static void shrink_hash(index_body *b, int which) {
    uint32_t last = --b->buckets[which], old = last & ~(1u << highest_bit(last));
    uint32_t *from = bucket_at(b, which, last), *link = bucket_at(b, which, old);
    while (*link) link = &node_at(b, *link)->chain;
    *link = *from;
    *from = 0;
}

static bool has_spare_bucket(const index_body *b, int which) {
    return b->buckets[which] > 1 && b->buckets[which] > b->count[which];
}

static bool shrink_hashes(index_body *b) {
    uint32_t n = 0;
    for (int which = LABELS; which < HASHES; which++)
        for (; n < PACK_STEP && has_spare_bucket(b, which); n++) shrink_hash(b, which);
    return n == PACK_STEP;
}

/* --- Nodes --- */

/* What names a node in its bucket, or NULL if it is not in that hash. */
static uint32_t *link_to(const index_body *b, int which, uint32_t id) {
    uint32_t *link = chain_of(b, which, node_at(b, id)->hash);
    while (*link && *link != id) link = &node_at(b, *link)->chain;
    return *link ? link : NULL;
}

/* The last node moves into a free place. */
static void move_last(index_body *b) {
    uint32_t last = b->made, to = take_node(b);
    uint32_t *as_label = link_to(b, LABELS, last), *link = as_label ? as_label : link_to(b, MEMBERS, last);
    node *n = node_at(b, to);
    *n = *node_at(b, last);
    *link = to;
    node_at(b, n->older)->newer = to;
    node_at(b, n->newer)->older = to;
    if (as_label) {
        b->moved.from = last;
        b->moved.to = to;
        b->moved.at = n->newer;
    } else give_node(b, last);
}

/* Tell postings of a label that has moved. */
static void tell_postings(index_body *b) {
    for (uint32_t n = 0; n < PACK_STEP && b->moved.at != b->moved.to; n++) {
        node *posting = node_at(b, b->moved.at);
        posting->label = b->moved.to;
        b->moved.at = posting->newer;
    }
    if (b->moved.at == b->moved.to) label_moved(b);
}

static bool move_nodes(index_body *b) {
    for (uint32_t n = 0; n < PACK_STEP; n++) {
        if (b->moved.from) tell_postings(b);
        if (b->moved.from) return true;
        if (b->freed == 0) return false;
        if (is_free(b, b->made)) free_out(b, b->made--);
        else move_last(b);
    }
    return true;
}

/* --- Levels --- */

static bool level_is_spare(const index_body *b, uint32_t k) {
    size_t before = levels_capacity(k);
    return k > 0 && b->made < before && b->buckets[LABELS] <= before && b->buckets[MEMBERS] <= before;
}

static void limit_to(uint32_t *n, size_t most) {
    if (*n > most) *n = (uint32_t)most;
}

static uint8_t *take_level(index_body *b, uint32_t k) {
    b->level_count = k;
    limit_to(&b->touched, levels_capacity(k) - 1);
    for (int which = LABELS; which < HASHES; which++) limit_to(&b->most_buckets[which], levels_capacity(k));
    return b->levels[k];
}

/* Give pages of the last level back that hold nothing any more: some nodes', then the buckets'. */
static bool discard_some(index_body *b, uint32_t k) {
    size_t end = levels_capacity(k + 1), from = b->made + 1;
    if (!level_is_mapped(k, ELEMENT_BYTES)) return false;
    if (b->touched >= from) {
        if (b->touched - from >= DISCARD_NODES) from = b->touched + 1 - DISCARD_NODES;
        memory_discard(node_at(b, (uint32_t)from), (end - from) * sizeof(node));
        b->touched = (uint32_t)from - 1;
        return true;
    }
    for (int which = LABELS; which < HASHES; which++) {
        from = b->buckets[which] > levels_capacity(k) ? b->buckets[which] : levels_capacity(k);
        if (b->most_buckets[which] <= from) continue;
        memory_discard(bucket_at(b, which, (uint32_t)from), (end - from) * sizeof(uint32_t));
        b->most_buckets[which] = (uint32_t)from;
    }
    return false;
}

/* --- Packing --- */

/* Are most of its nodes free? */
bool index_is_loose(tag_index *ix) {
    lock_take(&ix->lock);
    bool loose = ix->body && 2 * (size_t)ix->body->used < ix->body->made;
    lock_drop(&ix->lock);
    return loose;
}

/* One step; no lock is held. True: call again. */
bool index_pack(tag_index *ix, const lapse_memory *memory) {
    uint8_t *level = NULL;
    uint32_t k = 0;
    lock_take(&ix->lock);
    index_body *b = ix->body;
    bool more = b && b->walks == 0 && b->morgue == 0;
    if (more && !shrink_hashes(b) && !move_nodes(b)) {
        k = b->level_count - 1;
        if (level_is_spare(b, k)) level = take_level(b, k);
        else more = discard_some(b, k);
    }
    lock_drop(&ix->lock);
    if (level) level_drop(memory, k, ELEMENT_BYTES, level);
    return more;
}
