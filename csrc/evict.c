/* Eviction: which entry of a bounded table goes when another one wants its place. What has expired goes first; then
 * exact LRU or the default policy decides (order.h, contest.c). The bound may change, too.
 *
 * Nothing is locked when it begins, and user code runs only when nothing is locked any more. */
#include "table.h"

/* --- What has expired --- */

/* Take out some of what has expired in a segment; how many went. */
static size_t evict_expired_of(lapse_table *t, segment *s, int64_t before) {
    lapse_item items[LAPSE_BLOCK];
    uint32_t slots[LAPSE_BLOCK];
    uint32_t n = segment_expired(s, before, LAPSE_BLOCK, slots);
    for (uint32_t i = 0; i < n; i++) table_take(t, s, slots[i], *hash_at(s, slots[i]), &items[i]);
    lock_drop(&s->lock);
    if (n > 0) lapse_dismiss(t, items, n, INT64_MAX, LAPSE_BY_DEADLINE);
    return n;
}

/* Is there anything that has expired? Then some of it goes. A lower bound of all deadlines says when to look; a whole
 * lap that finds nothing raises it. A look begins where the last one has found something. */
static bool evict_expired(lapse_table *t, int64_t at) {
    int64_t before = grace_before(t, at);
    uint64_t least = RANK_NEVER, first = RELAXED(&t->expiry_hand), cursor = first;
    STORE(&t->earliest, RANK_NEVER); /* what is stored from here on lowers it again */
    for (bool begun = false;; begun = true) {
        segment *s = lock_segment(t, cursor);
        uint64_t rank = s->next_rank, here = cursor;
        bool over = begun && segment_covers(s, first);
        cursor = segment_last_hash(s) + 1;
        if (!over && rank < (uint64_t)before) {
            if (evict_expired_of(t, s, before) > 0) {
                STORE(&t->expiry_hand, here);
                table_note_rank(t, 0);
                return true;
            }
            rank = RELAXED(&s->next_rank);
        } else lock_drop(&s->lock);
        if (over) break;
        if (rank < least) least = rank;
    }
    table_note_rank(t, least);
    return false;
}

/* --- Exact LRU --- */

/* The slot of the locked segment that has this node, or NOWHERE. */
uint32_t slot_with_node(const segment *s, uint64_t h, uint32_t node) {
    uint32_t g = hash_group(h, s->groups);
    for (uint32_t n = s->groups; n > 0; n--, g = next_group(s, g)) {
        group ctrl = group_load(s->ctrl + g * GROUP_SLOTS);
        for (group_mask m = group_match(ctrl, hash_tag(h)); m; m &= m - 1) {
            uint32_t slot = g * GROUP_SLOTS + mask_slot(m);
            if (s->nodes[slot] == node && *hash_at(s, slot) == h) return slot;
        }
        if (group_empty(ctrl)) break;
    }
    return NOWHERE;
}

/* Let the entry go that was not used for longest. With other threads about it may find none, because they were
 * quicker, or have taken tokens whose entries are still to come: the caller tries for a token again. */
static void evict_oldest(lapse_table *t, int64_t at) {
    uint64_t h = 0, again;
    lapse_item item;
    uint32_t node = order_oldest(&t->order, &h);
    if (node == 0) return;
    segment *s = lock_segment(t, h);
    uint32_t slot =
        order_oldest(&t->order, &again) == node && again == h ? slot_with_node(s, h, node) : NOWHERE;
    if (slot != NOWHERE) table_take(t, s, slot, h, &item);
    lock_drop(&s->lock);
    if (slot != NOWHERE) lapse_dismiss(t, &item, 1, at, LAPSE_EVICTED);
}

/* --- Making room --- */

/* What has expired goes first. */
static bool may_have_expired(const lapse_table *t, int64_t at) {
    return RELAXED(&t->earliest) < (uint64_t)grace_before(t, at);
}

/* Let an entry go, so that `newcomer`, if there is one, has room. With other threads about it may find none: the caller
 * tries for tokens again. */
void table_evict(lapse_table *t, const record *newcomer, int64_t at) {
    lapse_item gone;
    if (UNLIKELY(policy_is_off(t))) table_refit_policy(t);
    if (UNLIKELY(may_have_expired(t, at)) && evict_expired(t, at)) return;
    if (!t->duel.on) {
        evict_oldest(t, at);
        return;
    }
    if (RELAXED(&t->duel.history) == NULL) {
        lock_take(&t->duel.evicting);
        duel_prepare(&t->duel, t->config.memory);
        lock_drop(&t->duel.evicting);
    }
    if (duel_evict(t, newcomer, &gone)) lapse_dismiss(t, &gone, 1, at, LAPSE_EVICTED);
}

#if !LAPSE_THREADS
/* The same while a lookup has found the newcomer absent, which stays so: no other code runs, and what goes is
 * `gone`'s. False: table_evict() must see to it. */
bool table_evict_beside(lapse_table *t, const record *newcomer, int64_t at, lapse_item *gone) {
    if (!t->duel.on || t->duel.history == NULL || UNLIKELY(may_have_expired(t, at) || policy_is_off(t)))
        return false;
    return duel_evict(t, newcomer, gone);
}
#endif

/* --- Another size --- */

/* The policy counts in entries. Those of a weighed table are as many as happen to fit: it looks again when they have
 * become many more or fewer. */
void table_refit_policy(lapse_table *t) {
    lapse_duel *d = &t->duel;
    lock_take(&d->evicting);
    uint64_t entries = RELAXED(&t->order.entries);
    if (policy_is_off(t)) duel_refit(d, t->config.memory, RELAXED(&d->full) ? entries : 2 * entries);
    lock_drop(&d->evicting);
}

/* Change the bound of a bounded table; lapse_fit() is due then. OK, or ABSENT: it is not bounded. */
lapse_status lapse_resize(lapse_table *t, uint64_t max_entries) {
    if (!t->order.on) return LAPSE_ABSENT;
    lock_take(&t->duel.evicting);
    STORE(&t->order.limit, max_entries);
    FULL_FENCE(); /* pairs with FULL_FENCE() in keeps_limit(); an addition is one by itself */
    if (t->duel.on && !t->order.weighed) duel_refit(&t->duel, t->config.memory, max_entries);
    lock_drop(&t->duel.evicting);
    return LAPSE_OK;
}

/* Let some of what is too much go, after lapse_resize(). MORE: call again. */
lapse_status lapse_fit(lapse_table *t, int64_t now) {
    int64_t at = lapse_now(t, now);
    for (uint32_t n = 0; n < LAPSE_STEP; n++) {
        if (!order_lacks(&t->order, 0)) return LAPSE_OK;
        table_evict(t, NULL, at);
    }
    return LAPSE_MORE;
}

/* --- After a fork --- */

#if LAPSE_THREADS
/* Nodes whose entries were never stored go. */
static void drop_orphans(lapse_table *t) {
    lapse_order *o = &t->order;
    uint32_t next = o->level_count ? order_node_at(o, 0)->newer : 0;
    while (next) {
        uint32_t node = next;
        uint64_t h = order_node_at(o, node)->hash;
        next = order_node_at(o, node)->newer;
        if (slot_with_node(locate(t, h), h, node) == NOWHERE) order_drop(o, node);
    }
}

/* In the child of a fork: a thread that is gone may have had tokens, a node or an item of the ring for an entry that
 * it never stored, or had begun to let one go. What is there is counted anew, and all of it is in the main part. */
void table_recount(lapse_table *t) {
    uint64_t entries = 0, weight = 0;
    for (uint64_t cursor = 0, more = 1; more && t->order.on;) {
        segment *s = locate(t, cursor);
        entries += s->dead ? 0 : s->used; /* what is buried goes uncounted */
        weight += s->dead ? 0 : s->weights ? s->weight : s->used;
        for (uint32_t slot = 0; slot < segment_slots(s) && s->counted; slot++) bit_put(s->young, slot, false);
        cursor = segment_last_hash(s) + 1;
        more = cursor != 0;
    }
    STORE(&t->order.tokens, weight);
    STORE(&t->order.entries, t->order.weighed ? entries : 0);
    STORE(&t->duel.ring_size, 0);
    if (t->config.lru) drop_orphans(t);
}
#endif
