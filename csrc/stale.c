/* Values past their deadline: absent for every read, and there for whoever reloads them.
 *
 *     stored ───────── live ─────────► deadline ──── grace ────► gone
 *                                      lapse_stale() alone finds it
 *
 *   grace       of the table: every entry has it
 *   softening   ends the lives of all entries now, with a grace of its own: their deadlines become that
 *               moment, `soft_at`, by which they are known until `soft_until`
 *
 * Whatever removes entries because they have expired goes by grace_before(); whatever else asks whether one is
 * live goes by its deadline alone. A removal for another reason removes stale entries like others, so nothing
 * comes back after it. */
#include "table.h"

#define SOFTEN_SEGMENTS 64u /* segments that one step treats */

static bool has_grace(const lapse_table *t, int64_t deadline, int64_t at) {
    if (deadline == RELAXED(&t->soft_at) && at < RELAXED(&t->soft_until)) return true;
    return at - deadline < t->config.grace;
}

/* The value of an entry within its grace: OK gives a new reference. ABSENT: there is none, or it is live, or its
 * grace has passed. RAISED or BUSY. Takes the segment's lock. */
lapse_status lapse_stale(lapse_table *t, lapse_object *key, uint64_t hash, int64_t now,
                         lapse_object **value) {
    lookup l;
    if (t->config.grace == 0 && RELAXED(&t->soft_until) == 0) return LAPSE_ABSENT;
    int64_t at = lapse_now(t, now);
    lapse_status status = lookup_begin(&l, t, key, mix_hash(hash));
    if (status > LAPSE_ABSENT) return status;
    if (status == LAPSE_OK) {
        int64_t deadline = *deadline_at(l.s, l.slot);
        if (passed(deadline, at) && has_grace(t, deadline, at))
            object_ref(*value = entry_at(l.s, l.slot)->value);
        else status = LAPSE_ABSENT;
    }
    lookup_end(&l);
    if (status == LAPSE_OK) COUNT(t, stale);
    return status;
}

/* As the time of a look or a listing: entries within their grace count as live. */
int64_t lapse_kept_since(const lapse_table *t, int64_t now) { return grace_before(t, lapse_now(t, now)); }

/* From here on no load that began before may be stored, and softened entries are known by `at`. */
static void soften_begin(lapse_table *t, int64_t at, int64_t until) {
    lock_take(&t->directory_lock);
    STORE(&t->soft_at, at);
    STORE(&t->soft_until, until);
    lock_drop(&t->directory_lock);
    fence_cleared(&t->fence);
}

static uint32_t soften_segment(lapse_table *t, uint64_t *cursor, int64_t at) {
    segment *s = lock_segment(t, *cursor);
    write_begin(s);
    uint32_t n = segment_soften(s, at);
    table_note_rank(t, DEADLINE_RANK(at));
    write_end(s);
    *cursor = segment_last_hash(s) + 1;
    lock_drop(&s->lock);
    return n;
}

/* One step of a pass that began with `*cursor` = 0: end the lives of all entries at `at`; until `until` they are
 * stale. Adds to `*n` how many were live. What is stored meanwhile may live on. OK: the table's end was
 * reached. MORE: call again. */
lapse_status lapse_soften(lapse_table *t, uint64_t *cursor, int64_t at, int64_t until, size_t *n) {
    if (*cursor == 0) soften_begin(t, at, until);
    for (uint32_t i = 0; i < SOFTEN_SEGMENTS; i++) {
        *n += soften_segment(t, cursor, at);
        if (*cursor != 0) continue;
        fence_cleared(&t->fence); /* nor what was loaded meanwhile */
        return LAPSE_OK;
    }
    return LAPSE_MORE;
}
