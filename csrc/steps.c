/* Work on the whole table, in bounded steps: sweep, clear, collect.
 *
 * A cursor is a place in the order of mixed hashes: a step treats the segment that covers the cursor
 * and moves the cursor behind that segment's range. Splits and merges change which segment covers a
 * place but never the order, so nothing is skipped or treated twice. */
#include "table.h"

#define SWEEP_SEGMENTS 64u /* segments that one step looks into at most */

/* --- Sweeping --- */

/* Remove expired entries of the segment at the cursor, at most `room`. Returns how many went; the
 * cursor moves on when the segment is done. */
static size_t sweep_segment(lapse_table *t, uint64_t *cursor, int64_t now, size_t room, lapse_item *removed,
                            bool *more) {
    uint32_t slots[LAPSE_STEP];
    segment *s = lock_segment(t, *cursor);
    uint32_t n = segment_expired(s, grace_before(t, now), (uint32_t)room, slots);
    for (uint32_t i = 0; i < n; i++) table_remove(t, s, slots[i], &removed[i]);
    *more = n < room ? segment_pass(cursor, s) : true;
    lock_drop(&s->lock);
    return n;
}

/* One step of a sweep that began with `*cursor` = 0: fills `removed` (room for LAPSE_STEP) with at most
 * `limit` expired entries. OK: the table's end was reached. MORE: call again. */
lapse_status lapse_sweep(lapse_table *t, uint64_t *cursor, int64_t now, size_t limit, lapse_item *removed,
                         size_t *n) {
    int64_t at = lapse_now(t, now);
    bool more = true;
    size_t room = limit < LAPSE_STEP ? limit : LAPSE_STEP;
    *n = 0;
    for (uint32_t i = 0; i < SWEEP_SEGMENTS && more && *n < room; i++)
        *n += sweep_segment(t, cursor, at, room - *n, removed + *n, &more);
    COUNT_MANY(t, expirations, *n);
    if (!more) COUNT(t, sweeps);
    return more ? LAPSE_MORE : LAPSE_OK;
}

/* --- Clearing --- */

static void bury(lapse_table *t, segment *s) {
    lock_take(&s->lock);
    write_begin(s); /* odd until the segment is used again */
    s->dead = true;
    s->next = t->graveyard;
    t->graveyard = s;
    lock_drop(&s->lock);
}

/* Move every segment from the directory to the graveyard, and answer how many entries they hold, and what those
 * weigh; what a forked parent had buried already is passed over. Under the directory lock. */
static uint64_t bury_all(lapse_table *t, uint64_t *weight) {
    uint64_t entries = 0;
    *weight = 0;
    for (uint64_t cursor = 0, more = 1; more;) {
        segment *s = locate(t, cursor);
        more = segment_pass(&cursor, s);
        if (s->dead) continue;
        bury(t, s);
        entries += s->used;
        *weight += s->weights ? s->weight : s->used;
    }
    return entries;
}

/* Make a blank segment, which is locked, the only one. */
static void start_over(lapse_table *t, segment *blank) {
    STORE(&blank->first_hash, 0);
    STORE(&blank->depth, 0);
    blank->dead = false;
    memset(t->depth_count, 0, sizeof t->depth_count);
    t->depth_count[0] = 1;
    STORE(&t->segments, 1);
    PUBLISH(&t->arrays[0][0], blank);
    write_end(blank);
    directory_publish(t, 0);
    structure_changed(t);
}

/* Empty the table in time proportional to its segments: the entries are only put aside, and
 * lapse_drain() hands them out. OK or NO_MEMORY (nothing has changed then). */
lapse_status lapse_detach(lapse_table *t) {
    lapse_order old_order = {.on = false};
    segment *fresh = new_heap_segment(t, SEGMENT_MIN_SLOTS);
    if (fresh == NULL) return LAPSE_NO_MEMORY;
    lock_take(&t->directory_lock);
    segment *old = retired_take(t, SEGMENT_MIN_SLOTS), *blank = old ? old : fresh;
    lock_take(&blank->lock);
    fence_cleared(&t->fence); /* what is filled from here on, into a segment not yet buried, is not stored */
    uint64_t weight, entries = bury_all(t, &weight);
    index_put_aside(&t->index);
    if (t->order.on) order_restart(&t->order, entries, weight, &old_order);
    duel_restart(&t->duel);
    fence_cleared(&t->fence); /* nor what was loaded meanwhile */
    start_over(t, blank);
    lock_drop(&blank->lock);
    if (old) t->config.memory->drop(fresh); /* nobody has seen it */
    lock_drop(&t->directory_lock);
    order_free(&old_order, t->config.memory);
    return LAPSE_OK;
}

/* In the child of a fork, before anything else there uses the table. Only one thread is left, so no
 * lock is held, though one may look it: a mutex is handed over to a thread that waits for it, and that
 * thread may not have come along. Waiting for a lock is all that a thread does inside the table while it
 * is stopped, and only bury_all() leaves work half done while it waits: it is finished here. A pass that was
 * under way in the parent would never end: everything goes instead of what it had still to remove. True: the
 * table was emptied, and lapse_drain() is due. */
bool lapse_after_fork(lapse_table *t) {
    bool burying = false;
    lock_init(&t->directory_lock);
    t->releasing = false;
#if LAPSE_THREADS
    pins_after_fork(t);
#endif
    for (uint64_t cursor = 0, more = 1; more;) {
        segment *s = locate(t, cursor);
        lock_init(&s->lock);
        burying |= s->dead;
        more = segment_pass(&cursor, s);
    }
    for (segment *s = t->retired; s; s = s->next) lock_init(&s->lock);
    for (segment *s = t->graveyard; s; s = s->next) lock_init(&s->lock);
    pool_reset_locks(&t->pool);
    pool_renew(&t->pool);
    lock_init(&t->index.lock);
    lock_init(&t->order.lock);
    lock_init(&t->duel.lock);
    lock_init(&t->duel.evicting);
    fence_reset_locks(&t->fence);
    bool removing = fence_abandon_passes(&t->fence);
    STORE(&t->storms, 0);
#if LAPSE_THREADS
    table_recount(t);
#endif
    if (burying || removing) lapse_detach(t);
    return burying || removing;
}

/* Take entries out of a buried segment. Its window has been open since it was buried. */
static size_t unbury(segment *s, size_t room, lapse_item *removed) {
    size_t n = 0;
    for (uint32_t g = 0; g < s->groups && s->used > 0; g++)
        for (group_mask m = group_full(group_load(s->ctrl + g * GROUP_SLOTS)); m; m &= m - 1) {
            if (n == room) return n;
            removed[n++] = segment_discard(s, g * GROUP_SLOTS + mask_slot(m));
        }
    return n;
}

/* Hand out entries that were put aside, at most LAPSE_STEP. MORE: call again. OK: none is left. */
lapse_status lapse_drain(lapse_table *t, lapse_item *removed, size_t *n) {
    *n = 0;
    lock_take(&t->directory_lock);
    while (t->graveyard && *n < LAPSE_STEP) {
        segment *s = t->graveyard;
        *n += unbury(s, LAPSE_STEP - *n, removed + *n);
        if (s->used > 0) break;
        t->graveyard = s->next;
        segment_reset(s, segment_slots(s));
        retire(t, s);
    }
    bool more = t->graveyard != NULL;
    lock_drop(&t->directory_lock);
    if (!more && RELAXED(&t->index.unsettled)) more = index_settle(&t->index, t->config.memory);
    return more ? LAPSE_MORE : LAPSE_OK;
}

/* Give every entry up and leave no segment: only lapse_table_free() may follow. */
void empty_for_good(lapse_table *t) {
    lapse_item removed[LAPSE_STEP];
    uint64_t weight;
    bury_all(t, &weight);
    index_put_aside(&t->index);
    t->directory = 0;
    for (lapse_status status = LAPSE_MORE; status == LAPSE_MORE;) {
        size_t n;
        status = lapse_drain(t, removed, &n);
        lapse_release(removed, n);
    }
}

/* --- Collecting --- */

static void copy_out(const segment *s, uint32_t slot, lapse_item *out) {
    record r;
    segment_read(s, slot, &r);
    object_ref(r.e.key);
    object_ref(r.e.value);
    *out = (lapse_item){r.e.key, r.e.value, r.deadline, r.ttl, r.limit, r.cost, r.own};
}

static size_t collect_segment(lapse_table *t, const segment *s, uint64_t from, int64_t at, lapse_item *out) {
    size_t n = 0;
    for (uint32_t g = 0; g < s->groups; g++)
        for (group_mask m = group_full(group_load(s->ctrl + g * GROUP_SLOTS)); m; m &= m - 1) {
            uint32_t slot = g * GROUP_SLOTS + mask_slot(m);
            bool live = DEADLINE_RANK(*deadline_at(s, slot)) >= (uint64_t)at;
            if (live && *hash_at(s, slot) >= from && !table_dooms(t, s, slot)) copy_out(s, slot, &out[n++]);
        }
    return n;
}

/* One step of a walk that began with `*cursor` = 0: new references to the live entries of the segment at
 * the cursor, all at one instant. OK: the table's end was reached. MORE: call again. NO_ROOM: `out`
 * needs room for `*n`; nothing was done. */
lapse_status lapse_collect(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *out, size_t room,
                           size_t *n) {
    int64_t at = lapse_now(t, now);
    segment *s = lock_segment(t, *cursor);
    if (s->used > room) {
        *n = s->used;
        lock_drop(&s->lock);
        return LAPSE_NO_ROOM;
    }
    *n = collect_segment(t, s, *cursor, at, out);
    bool more = segment_pass(cursor, s);
    lock_drop(&s->lock);
    return more ? LAPSE_MORE : LAPSE_OK;
}

static bool pop_from(lapse_table *t, segment *s, int64_t at, lapse_item *removed) {
    for (uint32_t g = 0; g < s->groups && s->used > 0; g++)
        for (group_mask m = group_full(group_load(s->ctrl + g * GROUP_SLOTS)); m; m &= m - 1) {
            uint32_t slot = g * GROUP_SLOTS + mask_slot(m);
            if (DEADLINE_RANK(*deadline_at(s, slot)) < (uint64_t)at || table_dooms(t, s, slot)) continue;
            if (UNLIKELY(RELAXED(&t->fence.out) > 0))
                fence_mark_key(&t->fence, *hash_at(s, slot), entry_at(s, slot)->key);
            table_remove(t, s, slot, removed);
            return true;
        }
    return false;
}

static bool pop_behind(lapse_table *t, uint64_t *cursor, int64_t at, lapse_item *removed) {
    for (bool more = true; more;) {
        segment *s = lock_segment(t, *cursor);
        bool found = pop_from(t, s, at, removed);
        if (!found) more = segment_pass(cursor, s);
        lock_drop(&s->lock);
        if (found) return true;
    }
    return false;
}

/* Take any live entry out, from the segment at the cursor or a later one, else from the first on: OK or
 * ABSENT. A caller that keeps the cursor does not walk the emptied front again each time. */
lapse_status lapse_pop_any(lapse_table *t, uint64_t *cursor, int64_t now, lapse_item *removed) {
    int64_t at = lapse_now(t, now);
    bool front = *cursor != 0; /* something lies before the cursor */
    bool found = pop_behind(t, cursor, at, removed);
    if (!found && front) found = pop_behind(t, cursor, at, removed);
    if (!found) return LAPSE_ABSENT;
    COUNT(t, deletes);
    return LAPSE_OK;
}
