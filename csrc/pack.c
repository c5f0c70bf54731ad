/* Packing: a table that has lost entries comes to need no more memory than a new one of those that are left.
 *
 *   look      how many slots are there, and how few would do?
 *   merge     two buddies that together hold few entries become one segment
 *   fit       each segment moves to the fewest slots that hold it, in new slabs: the old ones become empty
 *   order     exact LRU: the last nodes move into free places
 *   index     so do those of tags and prefixes (tags_pack.c)
 *   forget    the default policy begins anew, if the table is not even half full
 *   release   what nothing uses any more goes back (release.c)
 *
 * A table whose size goes up and down should not be packed at each low. So it is packed at once only if more than half
 * of its room is free; otherwise at a time at which it has not grown since the time before.
 *
 * Stages hold no lock between their steps: whatever changes meanwhile, each step does what is right when it comes. Any
 * thread may pack a table, several may at once, and each on its own; they hold no lock when they call. */
#include "table.h"

#define LOOK_SEGMENTS 64u /* of one step, which takes each lock once */
#define STEP_SEGMENTS 8u  /* of one step that moves entries */
#define STEP_NODES 64u
#define FIT_TRIES 8u /* of a segment that others change meanwhile */
#define MERGE_ENTRIES SEGMENT_HALF_SLOTS /* two buddies become one when they hold no more */
#define LOOSE_SLOTS 6u /* so many slots where */
#define TIGHT_SLOTS 5u /* so many would do */
#define LOOSE_BUDDIES 4u /* or one segment in so many could merge */

/* A merged segment is not split soon. */
static_assert(MERGE_ENTRIES <= SLOT_LIMIT(SEGMENT_SLOTS) / 4 * 3, "room in a merged segment");

/* --- Looking --- */

/* The lower buddy of an upper one, both of the same depth, if together they hold few entries. A hint, unless the
 * directory is locked. */
static segment *mergeable(const lapse_table *t, const segment *s) {
    if (s->depth == 0) return NULL;
    uint64_t bit = UINT64_C(1) << (64 - s->depth);
    if (!(s->first_hash & bit)) return NULL;
    segment *lower = locate(t, s->first_hash ^ bit);
    uint32_t together = RELAXED(&lower->used) + RELAXED(&s->used);
    uint32_t most = lower->slab ? MERGE_ENTRIES : slot_limit(RELAXED(&lower->groups) * GROUP_SLOTS);
    return RELAXED(&lower->depth) == s->depth && together <= MERGE_ENTRIES && together <= most ? lower : NULL;
}

static bool look(lapse_table *t, lapse_packing *p) {
    bool more = true;
    for (uint32_t i = 0; i < LOOK_SEGMENTS && more; i++) {
        segment *s = lock_segment(t, p->cursor);
        p->segments++;
        p->entries += s->used;
        p->slots += segment_slots(s);
        p->fewest += table_fewest_slots(t, s);
        p->mergeable += mergeable(t, s) != NULL;
        more = segment_pass(&p->cursor, s);
        lock_drop(&s->lock);
    }
    return more;
}

/* Is there enough to gain, and will it last? */
static bool is_loose(lapse_table *t, const lapse_packing *p) {
    bool gains =
        p->fewest * LOOSE_SLOTS <= p->slots * TIGHT_SLOTS || p->mergeable * LOOSE_BUDDIES >= p->segments;
    bool half_empty = 2 * p->entries <= p->slots - p->slots / 8;
    bool settled = p->at_once || !RELAXED(&t->grown);
    STORE(&t->grown, false);
    return gains && p->slots > SEGMENT_MIN_SLOTS && (half_empty || settled);
}

/* --- Merging; under the directory lock --- */

/* Move the entries of `upper` into its lower buddy, which then covers both ranges. */
static void merge(lapse_table *t, segment *lower, segment *upper) {
    uint32_t together = lower->used + upper->used;
    write_begin(lower);
    write_begin(upper);
    uint32_t n = segment_take_all(lower, t->scratch);
    n += segment_take_all(upper, t->scratch + n);
    segment_reset(upper, segment_slots(upper));
    segment_reset(lower, lower->slab ? slots_for(together) : segment_slots(lower));
    for (uint32_t i = 0; i < n; i++) segment_insert(lower, &t->scratch[i]);
    t->depth_count[lower->depth] -= 2;
    t->depth_count[lower->depth - 1]++;
    STORE(&t->segments, t->segments - 1);
    directory_assign(t, upper, lower);
    STORE(&lower->depth, lower->depth - 1);
    upper->dead = true;
    write_end(lower);
    structure_changed(t);
    if (lower->slab) pool_trim(lower);
    COUNT(t, merges);
}

/* Merge the segment that covers h with its lower buddy if both are nearly empty. */
static bool merge_at(lapse_table *t, uint64_t h) {
    segment *upper = locate(t, h), *lower = mergeable(t, upper);
    if (lower == NULL || t->scratch == NULL) return false;
    lock_take(&lower->lock);
    lock_take(&upper->lock);
    bool still = mergeable(t, upper) == lower;
    if (still) {
        table_age(t, lower);
        table_age(t, upper);
        merge(t, lower, upper);
    }
    lock_drop(&upper->lock);
    lock_drop(&lower->lock);
    if (still) retire(t, upper);
    return still;
}

static bool merge_some(lapse_table *t, lapse_packing *p) {
    bool more = p->loose;
    lock_take(&t->directory_lock);
    for (uint32_t i = 0; i < STEP_SEGMENTS && more; i++)
        if (!merge_at(t, p->cursor)) more = segment_pass(&p->cursor, locate(t, p->cursor));
    directory_fit(t);
    lock_drop(&t->directory_lock);
    return more;
}

/* --- Fitting --- */

/* What moves goes to new slabs, and what is in the window from here on is not forgotten. */
static void begin_fitting(lapse_table *t, lapse_packing *p) {
    lock_take(&t->directory_lock);
    if (p->loose) pool_age(&t->pool);
    lock_drop(&t->directory_lock);
    p->entered = duel_entered(&t->duel);
}

/* Without memory, or while others change it again and again, a segment stays where it is. */
static void fit_segment(lapse_table *t, uint64_t h) {
    for (uint32_t n = 0; n < FIT_TRIES; n++)
        if (table_fit(t, h) != LAPSE_MORE) return;
}

static bool fit_some(lapse_table *t, lapse_packing *p) {
    bool more = p->loose || p->forgets;
    if (more && p->cursor == 0) begin_fitting(t, p);
    for (uint32_t i = 0; i < STEP_SEGMENTS && more; i++) {
        if (p->loose) fit_segment(t, p->cursor);
        segment *s = lock_segment(t, p->cursor);
        if (p->forgets) segment_age_young(s);
        more = segment_pass(&p->cursor, s);
        lock_drop(&s->lock);
    }
    return more;
}

/* --- Exact LRU --- */

/* Move the entry's node into a free place, if the entry is still there. */
static void move_node(lapse_table *t, uint64_t h, uint32_t node) {
    segment *s = lock_segment(t, h);
    uint32_t slot = slot_with_node(s, h, node);
    if (slot != NOWHERE) s->nodes[slot] = order_move(&t->order, node);
    lock_drop(&s->lock);
}

static uint64_t count_nodes(lapse_order *o) {
    lock_take(&o->lock);
    uint64_t n = o->made;
    lock_drop(&o->lock);
    return n;
}

/* As many steps as there are nodes now, at most: others free places, too. */
static bool move_nodes(lapse_table *t, lapse_packing *p) {
    uint64_t h;
    uint32_t node;
    if (p->cursor == 0) p->nodes = count_nodes(&t->order);
    for (uint32_t i = 0; i < STEP_NODES && p->loose; i++) {
        lapse_status status = p->cursor++ < p->nodes ? order_last(&t->order, &h, &node) : LAPSE_ABSENT;
        if (status == LAPSE_ABSENT) return order_trim(&t->order, t->config.memory);
        if (status == LAPSE_OK) move_node(t, h, node);
    }
    return p->loose;
}

/* --- Tags and prefixes --- */

static bool index_some(lapse_table *t, lapse_packing *p) {
    if (RELAXED(&t->index.unsettled) && index_settle(&t->index, t->config.memory)) return true;
    return p->loose_index && index_pack(&t->index, t->config.memory);
}

/* --- The default policy --- */

static bool forgets(lapse_table *t, uint64_t entries) {
    bool half_empty = 2 * RELAXED(&t->order.tokens) < RELAXED(&t->order.limit);
    return t->duel.on && half_empty && duel_remembers(&t->duel, entries);
}

static bool forget(lapse_table *t, lapse_packing *p) {
    if (!p->forgets) return false;
    lock_take(&t->duel.evicting);
    duel_forget(&t->duel, t->config.memory, p->entered);
    lock_drop(&t->duel.evicting);
    return false;
}

/* --- Stages --- */

static bool give_back(lapse_table *t, lapse_packing *p) {
    table_release(t);
    lock_take(&t->directory_lock);
    if (p->loose) pool_renew(&t->pool); /* what could not be emptied; another packing may lose by it */
    lock_drop(&t->directory_lock);
    return false;
}

/* One step of each: is there more of it? */
static bool (*const stages[])(lapse_table *, lapse_packing *) = {look,       merge_some, fit_some, move_nodes,
                                                                 index_some, forget,     give_back};
#define STAGES (sizeof stages / sizeof *stages)

static void decide(lapse_table *t, lapse_packing *p) {
    p->forgets = forgets(t, p->entries);
    p->loose = is_loose(t, p);
    p->loose_index = p->loose || index_is_loose(&t->index);
}

/* One step of giving back what the entries do not need, which began with `*p` all zero, or `at_once` alone: even if
 * the table has just grown. OK: done. MORE: call again. Without memory for it, less is given back. */
lapse_status lapse_pack(lapse_table *t, lapse_packing *p) {
    if (stages[p->stage](t, p)) return LAPSE_MORE;
    p->cursor = 0;
    if (p->stage++ == 0) decide(t, p);
    return p->stage < STAGES ? LAPSE_MORE : LAPSE_OK;
}
