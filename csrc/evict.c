/* Eviction: which entry of a bounded table goes when another one wants its place. */
#include "table.h"

/* The slot of the locked segment that has this node, or none: UINT32_MAX. */
static uint32_t slot_with_node(const segment *s, uint64_t h, uint32_t node) {
    uint32_t g = hash_group(h, s->groups);
    for (uint32_t n = s->groups; n > 0; n--, g = next_group(s, g)) {
        group ctrl = group_load(s->ctrl + g * GROUP_SLOTS);
        for (group_mask m = group_match(ctrl, hash_tag(h)); m; m &= m - 1) {
            uint32_t slot = g * GROUP_SLOTS + mask_slot(m);
            if (s->nodes[slot] == node && *hash_at(s, slot) == h) return slot;
        }
        if (group_empty(ctrl)) break;
    }
    return UINT32_MAX;
}

/* Let the entry go that was not used for longest. With other threads about it may find none, because they were
 * quicker, or have taken tokens whose entries are still to come: the caller tries for a token again. */
void table_evict(lapse_table *t, int64_t at) {
    uint64_t h = 0, again;
    lapse_item item;
    uint32_t node = order_oldest(&t->order, &h);
    if (node == 0) return;
    segment *s = lock_segment(t, h);
    uint32_t slot =
        order_oldest(&t->order, &again) == node && again == h ? slot_with_node(s, h, node) : UINT32_MAX;
    if (slot != UINT32_MAX) table_take(t, s, slot, h, &item);
    lock_drop(&s->lock);
    if (slot != UINT32_MAX) lapse_dismiss(t, &item, 1, at, LAPSE_EVICTED);
}
